//! Elements per second of each block type on one thread, and the ratio to llama.cpp's own code, measured in
//! turns on the same rows. Every timed output is compared, so a bench that runs has also checked its bytes.
//!
//! `NODE_LLAMA=… cargo bench --bench quantize [-- TYPE…]`; without `NODE_LLAMA` the ratio is to the reference.
//! `-- --markdown` prints the table of `docs/quant-types.md` instead.
#![allow(missing_docs)]

#[path = "../tests/common/rows.rs"]
mod data;
#[path = "../tests/oracle/mod.rs"]
mod oracle;

use std::time::{Duration, Instant};
use to_gguf::quant::{Engine, GgmlType, ImatrixRule, dequantize_rows, quantize_rows_with};

const ROW: usize = 4096;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let ggml = oracle::Ggml::open();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown CPU", |c| c.1);
    let peer = if ggml.is_some() { "llama.cpp" } else { "reference" };
    let markdown = std::env::args().any(|a| a == "--markdown");
    if markdown {
        println!("Measured on one thread of {cpu}; the ratio is to {peer} in the same run.\n");
        println!(
            "| type | bits per weight | error | with imatrix | speed (M/s) | ratio | with imatrix (M/s) | ratio |"
        );
        println!("|---|---:|---:|---|---:|---:|---:|---:|");
    } else {
        println!("{cpu}, one thread, rows of {ROW} normal elements; million elements per second, ratio to {peer}");
        println!("{:<18}{:>10}{:>10}{:>8}   {:>10}{:>8}", "type", peer, "portable", "ratio", "best", "ratio");
    }
    for ty in GgmlType::all().filter(|t| t.is_quantized()) {
        let Some(rule) = ty.imatrix_rule() else { continue };
        if !wanted.is_empty() && !wanted.iter().any(|w| w.eq_ignore_ascii_case(ty.name())) {
            continue;
        }
        let measured = [(false, ImatrixRule::Required), (true, ImatrixRule::Ignored)]
            .map(|(with_imatrix, except)| (rule != except).then(|| bench(ggml.as_ref(), ty, with_imatrix)));
        if markdown {
            let cells =
                measured.map(|m| m.map_or("– | –".into(), |[c, _, best]| format!("{best:.0} | {:.1}", best / c)));
            let rule = match rule {
                ImatrixRule::Ignored => "no effect",
                ImatrixRule::Optional => "better",
                ImatrixRule::Required => "required",
            };
            let (bits, error) = (ty.bits_per_weight(), relative_error(ty) * 100.0);
            println!("| {ty} | {bits:.4} | {error:.2} % | {rule} | {} | {} |", cells[0], cells[1]);
            continue;
        }
        for (m, suffix) in measured.into_iter().zip(["", " + imatrix"]) {
            if let Some([c, portable, best]) = m {
                let name = format!("{ty}{suffix}");
                let (p, b) = (portable / c, best / c);
                println!("{name:<18}{c:>10.1}{portable:>10.1}{p:>8.2}   {best:>10.1}{b:>8.2}");
            }
        }
    }
}

/// The root of the mean squared error of normal elements, relative to theirs; all weights the same.
fn relative_error(ty: GgmlType) -> f64 {
    let values = data::rows(data::Kind::Normal, 3, ROW * 8);
    let weights = vec![1.0; ROW];
    let imatrix = (ty.imatrix_rule() == Some(ImatrixRule::Required)).then_some(&weights[..]);
    let mut blocks = vec![0; 8 * ty.row_bytes(ROW as u64).expect("whole blocks") as usize];
    let mut back = vec![0.0; values.len()];
    quantize_rows_with(Engine::default(), ty, &values, ROW, imatrix, &mut blocks).expect("normal rows quantize");
    dequantize_rows(ty, &blocks, ROW, &mut back).expect("sizes fit");
    let square = |d: f32| f64::from(d) * f64::from(d);
    let error: f64 = values.iter().zip(&back).map(|(x, y)| square(x - y)).sum();
    (error / values.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

/// Million elements per second of the peer, the portable lanes and the best engine.
fn bench(ggml: Option<&oracle::Ggml>, ty: GgmlType, with_imatrix: bool) -> [f64; 3] {
    let g = ty.geometry();
    let values = data::rows(data::Kind::Normal, 1, ROW * 24);
    let weights = data::imatrix(7, ROW);
    let imatrix = with_imatrix.then_some(&weights[..]);
    let bytes = values.len() / g.elements as usize * g.bytes as usize;
    let (mut want, mut got) = (vec![0u8; bytes], vec![0u8; bytes]);
    let run = |engine, out: &mut [u8]| {
        quantize_rows_with(engine, ty, &values, ROW, imatrix, out).expect("normal rows quantize");
    };
    let peer = |out: &mut [u8]| match ggml {
        Some(ggml) => ggml.quantize(ty, &values, ROW, imatrix, out),
        None => run(Engine::Reference, out),
    };
    peer(&mut want);
    let engines = Engine::available();
    let (portable, best) = (engines[1], *engines.last().expect("there is always the reference"));
    let mut times = [Duration::MAX; 3];
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || started.elapsed() < Duration::from_millis(700) && rounds < 200 {
        times[0] = times[0].min(timed(|| peer(&mut want)));
        for (i, engine) in [(1, portable), (2, best)] {
            got.fill(0);
            times[i] = times[i].min(timed(|| run(engine, &mut got)));
            assert!(got == want, "{ty} by {engine} is not what the peer wrote");
        }
        rounds += 1;
    }
    times.map(|t| values.len() as f64 / t.as_secs_f64() / 1e6)
}

/// The time that this thread computed: what other processes take does not count.
fn timed(f: impl FnOnce()) -> Duration {
    let start = cpu_time();
    f();
    cpu_time() - start
}

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}
