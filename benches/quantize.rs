//! Elements per second of each block type on one thread, and the ratio to llama.cpp's own code, measured in
//! turns on the same rows. Every timed output is compared, so a bench that runs has also checked its bytes.
//!
//! `NODE_LLAMA=… cargo bench --bench quantize [-- TYPE…]`; without `NODE_LLAMA` the ratio is to the reference.
#![allow(missing_docs)]

#[path = "../tests/common/rows.rs"]
mod data;
#[path = "../tests/oracle/mod.rs"]
mod oracle;

use std::time::{Duration, Instant};
use to_gguf::quant::{Engine, GgmlType, ImatrixRule, quantize_rows_with};

const ROW: usize = 4096;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let ggml = oracle::Ggml::open();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown CPU", |c| c.1);
    let peer = if ggml.is_some() { "llama.cpp" } else { "reference" };
    println!("{cpu}, one thread, rows of {ROW} normal elements; million elements per second, ratio to {peer}");
    println!("{:<18}{:>10}{:>10}{:>8}   {:>10}{:>8}", "type", peer, "portable", "ratio", "best", "ratio");
    for ty in GgmlType::all().filter(|t| t.is_quantized()) {
        let Some(rule) = ty.imatrix_rule() else { continue };
        if !wanted.is_empty() && !wanted.iter().any(|w| w.eq_ignore_ascii_case(ty.name())) {
            continue;
        }
        for with_imatrix in [false, true] {
            let skipped = if with_imatrix { ImatrixRule::Ignored } else { ImatrixRule::Required };
            if rule != skipped {
                bench(ggml.as_ref(), ty, with_imatrix);
            }
        }
    }
}

fn bench(ggml: Option<&oracle::Ggml>, ty: GgmlType, with_imatrix: bool) {
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
    let rate = times.map(|t| values.len() as f64 / t.as_secs_f64() / 1e6);
    let name = format!("{ty}{}", if with_imatrix { " + imatrix" } else { "" });
    println!(
        "{name:<18}{:>10.1}{:>10.1}{:>8.2}   {:>10.1}{:>8.2}",
        rate[0],
        rate[1],
        rate[1] / rate[0],
        rate[2],
        rate[2] / rate[0]
    );
}

fn timed(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}
