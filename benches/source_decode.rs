//! Decoding of stored weights against a plain copy of the same file, one thread, pages in memory.
//!
//! `cargo bench --bench source_decode` prints, per format, gigabytes of the file per second, millions of weights
//! per second, and the ratio to reading the same bytes into a buffer.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};
use to_gguf::recipe::Scratch;
use to_gguf::source::{ModelFolder, WeightFile};

const ROWS: u64 = 8192;
const COLS: u64 = 4096;
/// Rows of a chunk, as the engine cuts them.
const CHUNK: u64 = 64;

/// Element type, shape.
type Part<'a> = (&'a str, &'a str, Vec<u64>);

fn main() {
    let (r, c) = (ROWS, COLS);
    let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [r, c],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.01})
    .to_string();
    run("f32", json!(null), &[("w.weight", "F32", vec![r, c])], "");
    run("bf16", json!(null), &[("w.weight", "BF16", vec![r, c])], "");
    run("f16", json!(null), &[("w.weight", "F16", vec![r, c])], "");
    let blocks = r * c / 64;
    let nf4 = [
        ("w.weight", "U8", vec![r * c / 2, 1]),
        ("w.weight.absmax", "U8", vec![blocks]),
        ("w.weight.nested_absmax", "F32", vec![blocks / 256]),
        ("w.weight.nested_quant_map", "F32", vec![256]),
        ("w.weight.quant_map", "F32", vec![16]),
        ("w.weight.quant_state.bitsandbytes__nf4", "U8", vec![state.len() as u64]),
    ];
    run("bitsandbytes nf4, nested", json!({"quant_method": "bitsandbytes"}), &nf4, &state);
    let int8 = [("w.weight", "I8", vec![r, c]), ("w.SCB", "F32", vec![r])];
    run("bitsandbytes int8", json!({"quant_method": "bitsandbytes"}), &int8, "");
    let fp8 = [("w.weight", "F8_E4M3", vec![r, c]), ("w.weight_scale_inv", "F32", vec![r / 128, c / 128])];
    run("fp8, blocks of 128", json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), &fp8, "");
    let gptq = [
        ("w.qweight", "I32", vec![c / 8, r]),
        ("w.qzeros", "I32", vec![c / 128, r / 8]),
        ("w.scales", "F16", vec![c / 128, r]),
    ];
    run("GPTQ 4 bits", json!({"quant_method": "gptq", "bits": 4, "group_size": 128}), &gptq, "");
    let order: Vec<_> = gptq.iter().cloned().chain([("w.g_idx", "I32", vec![c])]).collect();
    run("GPTQ 4 bits, act-order", json!({"quant_method": "gptq", "bits": 4, "group_size": 128}), &order, "");
    let gptq = [
        ("w.qweight", "I32", vec![c * 3 / 32, r]),
        ("w.qzeros", "I32", vec![c / 128, r * 3 / 32]),
        ("w.scales", "F16", vec![c / 128, r]),
    ];
    run("GPTQ 3 bits", json!({"quant_method": "gptq", "bits": 3, "group_size": 128}), &gptq, "");
    let awq = [
        ("w.qweight", "I32", vec![c, r / 8]),
        ("w.qzeros", "I32", vec![c / 128, r / 8]),
        ("w.scales", "F16", vec![c / 128, r]),
    ];
    run("AWQ gemm", json!({"quant_method": "awq", "bits": 4, "group_size": 128}), &awq, "");
    let gemv = [
        ("w.qweight", "I32", vec![r, c / 8]),
        ("w.qzeros", "I32", vec![r, c / 1024]),
        ("w.scales", "F16", vec![r, c / 128]),
    ];
    run("AWQ gemv", json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}), &gemv, "");
    let packed = [
        ("w.weight_packed", "I32", vec![r, c / 8]),
        ("w.weight_scale", "BF16", vec![r, c / 128]),
        ("w.weight_shape", "I64", vec![2]),
    ];
    let groups = json!({"group_0": {"weights": {"num_bits": 4, "group_size": 128}}});
    let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups});
    run("compressed-tensors, int4", config, &packed, "");
    let nvfp4 = [
        ("w.weight", "U8", vec![r, c / 2]),
        ("w.weight_scale", "F8_E4M3", vec![r, c / 16]),
        ("w.weight_scale_2", "F32", vec![1]),
    ];
    run("NVFP4", json!({"quant_method": "modelopt"}), &nvfp4, "");
    let mxfp4 = [("w.weight_blocks", "U8", vec![1, r, c / 32, 16]), ("w.weight_scales", "U8", vec![1, r, c / 32])];
    run("MXFP4", json!({"quant_method": "mxfp4"}), &mxfp4, "");
    let bitnet = [("w.weight", "U8", vec![r / 4, c]), ("w.weight_scale", "BF16", vec![1])];
    run("BitNet", json!({"quant_method": "bitnet"}), &bitnet, "");
}

fn run(name: &str, quantization: Value, parts: &[Part], state: &str) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut seed = 1u64;
    for (tensor, dtype, shape) in parts {
        let width = match *dtype {
            "I64" => 8,
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let start = data.len();
        if tensor.contains("quant_state") {
            data.extend_from_slice(state.as_bytes());
        } else if tensor.ends_with("weight_shape") {
            data.extend([ROWS, COLS].into_iter().flat_map(u64::to_le_bytes));
        } else if tensor.ends_with("g_idx") {
            // Columns in any order of their groups.
            data.extend((0..COLS).flat_map(|i| ((i * 1021 % COLS / 128) as u32).to_le_bytes()));
        } else {
            // Bytes of 0x20..0x40 are small finite numbers in every element type.
            data.extend((0..shape.iter().product::<u64>() * width).map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                0x20 | (seed >> 59) as u8
            }));
        }
        header.insert(tensor.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.append(&mut data);
    let path = dir.path().join("model.safetensors");
    fs::write(&path, &file).expect("room for the model");
    let size = file.len();
    drop(file);
    let config = if quantization.is_null() { json!({}) } else { json!({"quantization_config": quantization}) };
    fs::write(dir.path().join("config.json"), config.to_string()).expect("room for the configuration");

    let raw = WeightFile::open(&path).expect("the file just written");
    let mut buffer = vec![0u8; 1 << 20];
    let mut copy = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        for at in (0..size).step_by(buffer.len()) {
            let n = buffer.len().min(size - at);
            raw.read_at(at as u64, &mut buffer[..n]).expect("bytes that are there");
        }
        copy = copy.min(start.elapsed().as_secs_f64());
    }
    let model = ModelFolder::open(dir.path()).expect("a model");
    let tensors = model.tensors();
    let mut recipe = tensors.get("w.weight").expect("the weight").clone();
    if recipe.shape().row_len() != COLS {
        // Experts appear as a 16-bit model stores them; they are written the other way round.
        recipe = recipe.transposed().expect("a matrix");
    }
    let mut scratch = Scratch::default();
    let mut out = vec![0.0f32; (CHUNK * COLS) as usize];
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        for row in (0..ROWS).step_by(CHUNK as usize) {
            recipe.rows(row..row + CHUNK, &mut out, &mut scratch).expect("rows");
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let gb = size as f64 / 1e9;
    let weights = (ROWS * COLS) as f64 / 1e6;
    println!(
        "{name:26} {:6.2} GB/s of file  {:6.0} M weights/s  {:5.2} GB/s of f32  {:5.2} x the time of a plain copy ({:.2} GB/s)",
        gb / best,
        weights / best,
        weights * 4.0 / 1e3 / best,
        best / copy,
        gb / copy
    );
}
