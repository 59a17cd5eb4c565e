//! The CUDA kernels around the quantizers (decoding, merging, rounding) against the CPU, bit for bit, and what their
//! PTX may hold. Compiled as host C++, so without a GPU.

#[path = "common/rows.rs"]
mod data;
#[path = "common/kernels.rs"]
mod host;
#[path = "common/host_gpu.rs"]
mod host_gpu;

use std::collections::BTreeMap;
use std::path::Path;

use data::{Kind, Random};
use host::{Arg, Buffer, Geometry, Machine};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use to_gguf::device::cuda::kernels::{self, Kernel, Module};
use to_gguf::quant::{GgmlType, decode_bf16, decode_f16, encode_bf16, encode_f16};
use to_gguf::recipe::{Recipe, Scratch};
use to_gguf::source::{ModelFolder, open_weight_file};

fn same(want: &[f32], got: &[f32]) -> Option<usize> {
    assert_eq!(want.len(), got.len());
    want.iter().zip(got).position(|(a, b)| a.to_bits() != b.to_bits())
}

/// All kernels that the Rust table names.
fn all_kernels() -> Vec<Kernel> {
    use kernels::*;
    let mut all = vec![
        DECODE_BF16,
        DECODE_F16,
        DECODE_F32,
        DECODE_I8,
        DECODE_E4M3,
        DECODE_E5M2,
        DECODE_FOUR_BIT,
        SCALE_BLOCKS,
        MERGE,
        RUN_SQUARES,
        RUN_DISTANCE,
        FIND_NOT_FINITE,
        ROW_RATIOS,
        SCALE_ROWS,
        COLUMN_SQUARES,
        COLUMN_RATIOS,
        SCALE_COLUMNS,
        ENCODE_F16,
        ENCODE_BF16,
        ROW_SIGMA2,
    ];
    for ty in GgmlType::all() {
        all.extend([false, true].iter().filter_map(|with| quantizer(ty, *with)).map(|q| q.kernel));
    }
    all.dedup();
    all
}

#[test]
fn the_table_the_sources_and_the_ptx_name_the_same_kernels() {
    // Name, module, parameters, threads: what the PTX says.
    let mut in_ptx = BTreeMap::new();
    for module in Module::ALL {
        let ptx = module.ptx();
        assert!(ptx.contains(".version 8.0\n.target sm_75\n"), "{module:?} is not ISA 8.0 for compute capability 7.5");
        for entry in ptx.split(".visible .entry ").skip(1) {
            let (name, rest) = entry.split_once('(').expect("parameters");
            let (parameters, rest) = rest.split_once(')').expect("their end");
            let letter = |line: &str| match line.split_whitespace().nth(1) {
                Some(".u64") => 'U',
                Some(".u32") => 'u',
                Some(".f32") => 'f',
                other => panic!("{name} has a parameter of type {other:?}"),
            };
            let letters: String = parameters.trim().lines().map(letter).collect();
            let bounds = rest.split_once(".maxntid ").expect("launch bounds").1.split_once(',').expect("numbers").0;
            in_ptx.insert(name, (module, letters, bounds.parse::<u32>().expect("a number")));
        }
    }
    let table = all_kernels();
    assert_eq!(table.len(), in_ptx.len(), "kernels in the table and in the PTX");
    for kernel in &table {
        let (module, _, threads) = &in_ptx[kernel.name];
        assert_eq!((*module, *threads), (kernel.module, kernel.threads), "{}", kernel.name);
    }
    let Some(Machine::Host(host)) = Machine::open() else { return };
    assert_eq!(host.signatures().count(), in_ptx.len());
    for (name, letters) in host.signatures() {
        // A pointer is a 64-bit number there.
        assert_eq!(letters.replace('p', "U"), in_ptx[name].1, "{name}");
    }
}

#[test]
fn no_ptx_rounds_otherwise_than_the_cpu() {
    for module in Module::ALL {
        for (number, line) in module.ptx().lines().enumerate() {
            let operation =
                line.trim_start().trim_start_matches(|c: char| c != ' ' && line.trim_start().starts_with('@'));
            let mut parts = operation.split_whitespace().next().unwrap_or("").trim_end_matches(';').split('.');
            let name = parts.next().unwrap_or("");
            let modifiers: Vec<&str> = parts.collect();
            let place = format!("{module:?}:{}: {line}", number + 1);
            assert!(!modifiers.iter().any(|m| ["ftz", "approx", "full", "sat"].contains(m)), "{place}");
            if modifiers.last().is_some_and(|t| ["f32", "f64", "f32x2"].contains(t)) {
                assert!(!["fma", "mad"].contains(&name), "{place}");
                let rounds = modifiers.contains(&"rn") || (module == Module::Iq4 && modifiers.contains(&"rm"));
                assert!(!["add", "sub", "mul", "div", "sqrt", "rcp"].contains(&name) || rounds, "{place}");
            }
            assert!(!["ex2", "lg2", "sin", "cos", "tanh", "rsqrt"].contains(&name), "{place}");
        }
    }
}

/// Runs a script of the project with the Python that `TO_GGUF_PTX_PYTHON` names, if it does.
fn script(path: &str, arguments: &[&std::ffi::OsStr]) {
    let Some(python) = std::env::var_os("TO_GGUF_PTX_PYTHON") else {
        eprintln!(
            "SKIPPED: set TO_GGUF_PTX_PYTHON to a Python with numpy and nvidia-cuda-nvrtc-cu12 12.0.76 to run {path}"
        );
        return;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let output = std::process::Command::new(python).arg(&path).args(arguments).output().expect("Python starts");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&said));
}

#[test]
fn the_committed_ptx_is_what_the_sources_give() {
    script("cuda/build_ptx.py", &["--check".as_ref()]);
}

#[test]
fn the_ptx_computes_what_the_host_kernels_compute() {
    let Some(library) = host_gpu::library() else { return };
    script("tests/oracle/ptx_emulator.py", &[library.as_os_str()]);
}

/// Every pattern of `N` bytes, and some more, so that tiles are ragged.
fn patterns<const N: usize>() -> Vec<u8> {
    let mut all: Vec<u8> =
        if N == 1 { (0..=255).collect() } else { (0..=u16::MAX).flat_map(u16::to_le_bytes).collect() };
    let mut r = Random(N as u64);
    all.extend((0..N * 4099).map(|_| r.bits() as u8));
    all
}

fn decode(machine: &Machine, kernel: Kernel, bytes: &[u8], count: usize, geometry: Geometry) -> Vec<f32> {
    let mut out = Buffer::new(4 * count);
    let source = Buffer::of(bytes);
    machine.launch(kernel, count as u64, geometry, &mut [Arg::In(&source), Arg::Out(&mut out), Arg::U64(count as u64)]);
    out.get().to_vec()
}

/// What the program reads from a file of these elements.
fn read(dtype: Dtype, bytes: &[u8], count: usize) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let view = TensorView::new(dtype, vec![count], bytes).expect("a tensor");
    std::fs::write(&path, safetensors::serialize([("t", view)], None).expect("a file")).expect("written");
    rows(open_weight_file(&path).expect("a weight file").get("t").expect("the tensor"))
}

fn rows(recipe: &Recipe) -> Vec<f32> {
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).expect("rows");
    out
}

#[test]
fn every_pattern_of_bits_decodes_as_on_the_cpu() {
    let Some(machine) = Machine::open() else { return };
    for geometry in Geometry::ALL {
        let bytes = patterns::<2>();
        let mut want = vec![0.0; bytes.len() / 2];
        decode_bf16(&bytes, &mut want);
        assert_eq!(same(&want, &decode(machine, kernels::DECODE_BF16, &bytes, want.len(), geometry)), None, "bf16");
        decode_f16(&bytes, &mut want);
        assert_eq!(same(&want, &decode(machine, kernels::DECODE_F16, &bytes, want.len(), geometry)), None, "f16");
        let bytes = patterns::<1>();
        for (kernel, dtype) in [
            (kernels::DECODE_I8, Dtype::I8),
            (kernels::DECODE_E4M3, Dtype::F8_E4M3),
            (kernels::DECODE_E5M2, Dtype::F8_E5M2),
        ] {
            let want = read(dtype, &bytes, bytes.len());
            assert_eq!(same(&want, &decode(machine, kernel, &bytes, bytes.len(), geometry)), None, "{dtype}");
        }
        let mut r = Random(9);
        let bits: Vec<u32> = (0..3001).map(|_| r.bits() as u32).collect();
        let got = decode(machine, kernels::DECODE_F32, bytemuck::cast_slice(&bits), bits.len(), geometry);
        assert!(got.iter().zip(&bits).all(|(v, b)| v.to_bits() == *b), "f32");
    }
}

#[test]
fn values_become_16_bit_elements_as_on_the_cpu() {
    let Some(machine) = Machine::open() else { return };
    let mut r = Random(4);
    // Around every boundary of both types, and anything.
    let mut values: Vec<f32> = (0..=u16::MAX)
        .map(|h| f32::from_bits(u32::from(h) << 16 | [0, 0x7fff, 0x8000, 0x8001][h as usize % 4]))
        .collect();
    for half in 0..=u16::MAX {
        let mut exact = [0.0];
        decode_f16(&half.to_le_bytes(), &mut exact);
        let bits = exact[0].to_bits();
        values.extend([0, 0xfff, 0x1000, 0x1001].map(|more| f32::from_bits(bits.wrapping_add(more))));
    }
    values.extend((0..50_003).map(|_| f32::from_bits(r.bits() as u32)));
    values.extend((0..20_000).map(|_| f32::from_bits(r.bits() as u32 & 0x80ff_ffff | 0x3200_0000)));
    for (i, (kernel, encode)) in
        [(kernels::ENCODE_F16, encode_f16 as fn(&[f32], &mut [u8])), (kernels::ENCODE_BF16, encode_bf16)]
            .into_iter()
            .enumerate()
    {
        let mut want = vec![0; 2 * values.len()];
        encode(&values, &mut want);
        let (source, mut out) = (Buffer::of(&values), Buffer::new(want.len()));
        let arguments = &mut [Arg::In(&source), Arg::Out(&mut out), Arg::U64(values.len() as u64)];
        machine.launch(kernel, values.len() as u64, Geometry::ALL[i], arguments);
        let differs = want.chunks(2).zip(out.get::<u8>().chunks(2)).position(|(a, b)| a != b);
        assert_eq!(differs.map(|i| values[i].to_bits()), None, "{}", kernel.name);
    }
}

/// A packed case of `fixtures/packed`: its file, its decoded weight, its configuration.
fn packed(case: &str) -> (Vec<u8>, Vec<f32>, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/packed").join(case);
    let model = ModelFolder::open(&folder).expect("a model");
    let weight = rows(model.tensors().get(WEIGHT).expect("its weight"));
    let config = model.config()["quantization_config"].clone();
    (std::fs::read(folder.join("model.safetensors")).expect("its file"), weight, config)
}

const WEIGHT: &str = "model.layers.0.self_attn.q_proj.weight";

/// The number of a type, as kernels take it.
fn rounding(name: &str) -> u32 {
    match name {
        "bfloat16" => GgmlType::BF16 as u32,
        "float16" => GgmlType::F16 as u32,
        _ => GgmlType::F32 as u32,
    }
}

#[test]
fn four_bit_weights_decode_as_on_the_cpu() {
    let Some(machine) = Machine::open() else { return };
    for case in [
        "bnb_nf4_nested_bfloat16_b64_260x72",
        "bnb_nf4_nested_float32_b128_9x72",
        "bnb_nf4_float16_b64_8x64",
        "bnb_fp4_nested_bfloat16_b64_7x33",
        "bnb_fp4_float32_b32_5x40",
    ] {
        let (file, want, _) = packed(case);
        let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
        let part = |name: &str| tensors.tensor(&format!("{WEIGHT}{name}")).map(|t| t.data().to_vec());
        let kind = if case.contains("fp4") { "fp4" } else { "nf4" };
        let state: Value =
            serde_json::from_slice(&part(&format!(".quant_state.bitsandbytes__{kind}")).expect("a state"))
                .expect("JSON");
        let block = state["blocksize"].as_u64().expect("a block");
        let round = rounding(state["dtype"].as_str().expect("a type"));
        let (codes, absmax) = (part("").expect("codes"), part(".absmax").expect("scales"));
        let table = Buffer::of(&part(".quant_map").expect("a map"));
        // From the middle of a byte and of a block, and as a whole.
        for (first, geometry) in [0u64, 1, 2, 67, 97].into_iter().zip(Geometry::ALL.into_iter().cycle()) {
            let count = want.len() as u64 - first;
            let (first_block, last_block) = (first / block, (want.len() as u64 - 1) / block);
            let floats = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            let blocks = first_block as usize..last_block as usize + 1;
            let scales: Vec<f32> = match part(".nested_absmax") {
                // Scales that are quantized themselves are decoded on the CPU.
                Ok(nested) => {
                    let (map, offset) =
                        (floats(&part(".nested_quant_map").expect("a map")), state["nested_offset"].as_f64());
                    let (nested, outer) =
                        (floats(&nested), state["nested_blocksize"].as_u64().expect("a block") as usize);
                    let offset = offset.expect("an offset") as f32;
                    blocks.map(|b| map[absmax[b] as usize] * nested[b / outer] + offset).collect()
                }
                Err(_) => floats(&absmax)[blocks].to_vec(),
            };
            let scales = Buffer::of(&scales);
            let mut out = Buffer::new(4 * count as usize);
            let arguments = &mut [
                Arg::In(&Buffer::of(&codes[first as usize / 2..])),
                Arg::In(&table),
                Arg::In(&scales),
                Arg::Out(&mut out),
                Arg::U64(first),
                Arg::U64(count),
                Arg::U64(block),
                Arg::U32(round),
            ];
            machine.launch(kernels::DECODE_FOUR_BIT, count, geometry, arguments);
            assert_eq!(same(&want[first as usize..], out.get()), None, "{case} from element {first}");
        }
    }
}

#[test]
fn scaled_weights_decode_as_on_the_cpu() {
    let Some(machine) = Machine::open() else { return };
    let cases = [
        ("fp8_layout_block", ".weight_scale_inv"),
        ("fp8_layout_ragged", ".weight_scale_inv"),
        ("fp8_layout_row", ".weight_scale_inv"),
        ("bnb_int8", ".SCB"),
    ];
    for (case, ending) in cases {
        let (file, want, config) = packed(case);
        let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
        let codes = tensors.tensor(WEIGHT).expect("codes");
        let scales = tensors.tensor(&WEIGHT.replace(".weight", ending)).expect("scales");
        let (rows, cols) = (codes.shape()[0] as u64, codes.shape()[1] as u64);
        let int8 = codes.dtype() == Dtype::I8;
        let sides: Option<Vec<u64>> =
            config["weight_block_size"].as_array().map(|b| b.iter().filter_map(Value::as_u64).collect());
        let (block_rows, block_cols) = sides.map_or((1, cols), |b| (b[0], b[1]));
        let scale_cols = cols.div_ceil(block_cols);
        let (kernel, factor, round) = if int8 {
            (kernels::DECODE_I8, 0.007_874_016, 0)
        } else {
            (kernels::DECODE_E4M3, 1.0, GgmlType::BF16 as u32)
        };
        for (first, geometry) in [0u64, 1, 5].into_iter().zip(Geometry::ALL) {
            let part = &codes.data()[(first * cols) as usize..];
            let mut values = Buffer::of(&decode(machine, kernel, part, part.len(), geometry));
            let arguments = &mut [
                Arg::Out(&mut values),
                Arg::In(&Buffer::of(&scales.data()[(first / block_rows * scale_cols * 4) as usize..])),
                Arg::U64(first),
                Arg::U64(rows - first),
                Arg::U64(cols),
                Arg::U64(block_rows),
                Arg::U64(block_cols),
                Arg::U64(scale_cols),
                Arg::F32(factor),
                Arg::U32(round),
            ];
            machine.launch(kernels::SCALE_BLOCKS, part.len() as u64, geometry, arguments);
            assert_eq!(same(&want[(first * cols) as usize..], values.get()), None, "{case} from row {first}");
        }
    }
}

#[test]
fn merges_follow_the_rule() {
    let Some(machine) = Machine::open() else { return };
    let shapes = [(1, 1, 1), (3, 64, 8), (64, 64, 16), (65, 68, 17), (70, 129, 33), (5, 200, 64), (130, 7, 3)];
    for (i, (rows, cols, rank)) in shapes.into_iter().enumerate() {
        let [mut want, b, a] = [rows * cols, rows * rank, rank * cols]
            .map(|n| data::rows([Kind::Normal, Kind::SparseZeros][i % 2], (n + i) as u64, n));
        let (mut values, tiles) = (Buffer::of(&want), kernels::merge_tiles(rows as u64, cols as u64));
        let mut squares = Buffer::new(8 * tiles as usize);
        let scale = 0.37f32;
        let mut sum_of_squares = 0f64;
        for (row, b) in want.chunks_exact_mut(cols).zip(b.chunks_exact(rank)) {
            for (j, v) in row.iter_mut().enumerate() {
                let delta = scale * (0..rank).fold(0f32, |sum, k| sum + b[k] * a[k * cols + j]);
                *v += delta;
                sum_of_squares += f64::from(delta).powi(2);
            }
        }
        let measured = i % 3 != 2;
        let arguments = &mut [
            Arg::Out(&mut values),
            Arg::In(&Buffer::of(&b)),
            Arg::In(&Buffer::of(&a)),
            if measured { Arg::Out(&mut squares) } else { Arg::Null },
            Arg::U64(rows as u64),
            Arg::U64(cols as u64),
            Arg::U64(rank as u64),
            Arg::F32(scale),
        ];
        machine.launch(kernels::MERGE, tiles, Geometry::ALL[i % 4], arguments);
        assert_eq!(same(&want, values.get()), None, "{rows} x {cols}, rank {rank}");
        if measured {
            let got: f64 = squares.get::<f64>().iter().sum();
            assert!((got - sum_of_squares).abs() <= 1e-5 * sum_of_squares, "{got}, not {sum_of_squares}");
        }
    }
}

#[test]
fn magnitudes_and_measures_are_those_of_the_cpu() {
    let Some(machine) = Machine::open() else { return };
    for (i, (rows, cols)) in [(1, 1), (33, 128), (70, 129), (3, 1000), (40, 260)].into_iter().enumerate() {
        let geometry = Geometry::ALL[i % 4];
        let values = data::rows(Kind::HeavyTailed, i as u64, rows * cols);
        let counts = [Arg::U64(rows as u64), Arg::U64(cols as u64)];
        let [count_rows, count_cols] = counts;
        let source = Buffer::of(&values);
        let magnitudes = data::rows(Kind::Positive, i as u64, rows.max(cols));
        let squares = |v: &[f32]| v.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();

        let want: Vec<f32> =
            values.chunks(cols).zip(&magnitudes).map(|(row, m)| m / squares(row).sqrt() as f32).collect();
        let mut ratios = Buffer::new(4 * rows);
        let arguments =
            &mut [Arg::In(&source), Arg::In(&Buffer::of(&magnitudes)), Arg::Out(&mut ratios), count_rows, count_cols];
        machine.launch(kernels::ROW_RATIOS, rows as u64, geometry, arguments);
        assert_eq!(same(&want, ratios.get()), None, "row ratios of {rows} x {cols}");
        let mut scaled = Buffer::of(&values);
        let (n_rows, n_cols) = (Arg::U64(rows as u64), Arg::U64(cols as u64));
        let arguments = &mut [Arg::Out(&mut scaled), Arg::In(&ratios), n_rows, n_cols];
        machine.launch(kernels::SCALE_ROWS, (rows * cols) as u64, geometry, arguments);
        let by_rows: Vec<f32> = values.iter().enumerate().map(|(at, v)| v * want[at / cols]).collect();
        assert_eq!(same(&by_rows, scaled.get()), None, "scaled rows of {rows} x {cols}");

        // The rows in two parts, as chunks come.
        let mut sums = Buffer::of(&vec![0f64; cols]);
        let cut = rows / 2;
        for part in [&values[..cut * cols], &values[cut * cols..]] {
            let (n_rows, n_cols) = (Arg::U64((part.len() / cols) as u64), Arg::U64(cols as u64));
            let arguments = &mut [Arg::In(&Buffer::of(part)), Arg::Out(&mut sums), n_rows, n_cols];
            machine.launch(kernels::COLUMN_SQUARES, cols as u64, geometry, arguments);
        }
        let column = |c: usize| (0..rows).fold(0f64, |s, r| s + f64::from(values[r * cols + c]).powi(2));
        let want: Vec<f32> = (0..cols).map(|c| magnitudes[c] / column(c).sqrt() as f32).collect();
        let mut ratios = Buffer::new(4 * cols);
        let arguments =
            &mut [Arg::In(&Buffer::of(&magnitudes)), Arg::In(&sums), Arg::Out(&mut ratios), Arg::U64(cols as u64)];
        machine.launch(kernels::COLUMN_RATIOS, cols as u64, geometry, arguments);
        assert_eq!(same(&want, ratios.get()), None, "column ratios of {rows} x {cols}");
        let mut scaled = Buffer::of(&values);
        let (n_rows, n_cols) = (Arg::U64(rows as u64), Arg::U64(cols as u64));
        let arguments = &mut [Arg::Out(&mut scaled), Arg::In(&ratios), n_rows, n_cols];
        machine.launch(kernels::SCALE_COLUMNS, (rows * cols) as u64, geometry, arguments);
        let by_columns: Vec<f32> = values.iter().enumerate().map(|(at, v)| v * want[at % cols]).collect();
        assert_eq!(same(&by_columns, scaled.get()), None, "scaled columns of {rows} x {cols}");

        let runs = values.len().div_ceil(kernels::RUN as usize);
        let mut sums = Buffer::new(8 * runs);
        let arguments = &mut [Arg::In(&source), Arg::Out(&mut sums), Arg::U64(values.len() as u64)];
        machine.launch(kernels::RUN_SQUARES, runs as u64, geometry, arguments);
        let (got, want) = (sums.get::<f64>().iter().sum::<f64>(), squares(&values));
        assert!((got - want).abs() <= 1e-5 * want, "{got}, not {want}");
        let mut sums = Buffer::new(8 * runs);
        let arguments = &mut [Arg::In(&source), Arg::In(&scaled), Arg::Out(&mut sums), Arg::U64(values.len() as u64)];
        machine.launch(kernels::RUN_DISTANCE, runs as u64, geometry, arguments);
        let differences: Vec<f32> = values.iter().zip(&by_columns).map(|(a, b)| a - b).collect();
        let (got, want) = (sums.get::<f64>().iter().sum::<f64>(), squares(&differences));
        assert!((got - want).abs() <= 1e-5 * want, "{got}, not {want}");
    }
}

#[test]
fn the_first_value_that_is_no_number_is_found() {
    let Some(machine) = Machine::open() else { return };
    let mut values = data::rows(Kind::NearInfinity, 1, 5003);
    for (bad, want) in [(None, u64::MAX), (Some(5002), 5002), (Some(4001), 4001), (Some(6), 6)] {
        if let Some(at) = bad {
            values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][at % 3];
        }
        for geometry in Geometry::ALL {
            let mut first = Buffer::of(&[u64::MAX]);
            let arguments = &mut [Arg::In(&Buffer::of(&values)), Arg::Out(&mut first), Arg::U64(values.len() as u64)];
            machine.launch(kernels::FIND_NOT_FINITE, values.len() as u64, geometry, arguments);
            assert_eq!(first.get::<u64>(), [want]);
        }
    }
}
