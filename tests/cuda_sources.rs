//! Packed models on the software driver: decoded there, the same files as on the CPU.

mod common;
#[path = "common/rows.rs"]
mod data;
#[path = "common/host_gpu.rs"]
mod host_gpu;
#[path = "common/software_gpu.rs"]
mod software_gpu;

use std::collections::HashMap;
use std::path::Path;

use common::{fixture, names};
use data::Random;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;
use software_gpu::Bench;

/// A tensor to be written.
struct Written {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Written {
    /// A tensor of another file.
    fn copy(name: &str, tensor: &TensorView<'_>) -> Written {
        let (dtype, shape, bytes) = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
        Written { name: name.to_owned(), dtype, shape, bytes }
    }

    fn floats(name: String, shape: Vec<usize>, random: &mut Random) -> Self {
        let count: usize = shape.iter().product();
        let bytes = (0..count).flat_map(|_| (0.002 + 0.02 * random.uniform()).to_le_bytes()).collect();
        Written { name, dtype: Dtype::F32, shape, bytes }
    }
}

/// Writes a safetensors file.
fn write_tensors(path: &Path, written: &[Written]) {
    let views: HashMap<&str, TensorView<'_>> = written
        .iter()
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// How a linear layer is packed.
type Pack = fn(&str, &[usize], &mut Random) -> Vec<Written>;

fn nf4(name: &str, shape: &[usize], random: &mut Random) -> Vec<Written> {
    let count: usize = shape.iter().product();
    let state = json!({ "shape": shape, "blocksize": 32, "dtype": "bfloat16", "quant_type": "nf4" }).to_string();
    let codes = (0..count / 2).map(|_| random.bits() as u8).collect();
    vec![
        Written { name: name.to_owned(), dtype: Dtype::U8, shape: vec![count / 2, 1], bytes: codes },
        Written::floats(format!("{name}.absmax"), vec![count / 32], random),
        Written {
            name: format!("{name}.quant_state.bitsandbytes__nf4"),
            dtype: Dtype::U8,
            shape: vec![state.len()],
            bytes: state.into_bytes(),
        },
    ]
}

fn int8(name: &str, shape: &[usize], random: &mut Random) -> Vec<Written> {
    let codes = (0..shape.iter().product()).map(|_| random.bits() as u8).collect();
    let module = name.trim_end_matches(".weight");
    vec![
        Written { name: name.to_owned(), dtype: Dtype::I8, shape: shape.to_vec(), bytes: codes },
        Written::floats(format!("{module}.SCB"), vec![shape[0]], random),
    ]
}

fn fp8(name: &str, shape: &[usize], random: &mut Random) -> Vec<Written> {
    // Without the two bytes that are no numbers.
    let code = |random: &mut Random| Some(random.bits() as u8).map(|b| if b & 0x7f == 0x7f { b ^ 1 } else { b });
    let codes = (0..shape.iter().product()).filter_map(|_| code(random)).collect();
    vec![
        Written { name: name.to_owned(), dtype: Dtype::F8_E4M3, shape: shape.to_vec(), bytes: codes },
        Written::floats(format!("{name}_scale_inv"), vec![shape[0].div_ceil(48), shape[1].div_ceil(80)], random),
    ]
}

/// The fixture with its linear layers packed: any codes will do.
fn write_model(folder: &Path, quantization: serde_json::Value, pack: Pack) {
    let base = fixture("shakespeare-llama");
    std::fs::create_dir(folder).unwrap();
    for file in names(&base).iter().filter(|f| !f.ends_with(".safetensors")) {
        std::fs::copy(base.join(file), folder.join(file)).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    config["quantization_config"] = quantization;
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut random = Random(7);
    let mut names: Vec<&str> = stored.names();
    names.sort_unstable();
    let mut written = Vec::new();
    for name in names {
        let tensor = stored.tensor(name).unwrap();
        if name.contains("_proj.weight") {
            written.extend(pack(name, tensor.shape(), &mut random));
        } else {
            written.push(Written::copy(name, &tensor));
        }
    }
    write_tensors(&folder.join("model.safetensors"), &written);
}

#[test]
fn packed_sources_are_decoded_there() {
    let Some(bench) = Bench::new() else { return };
    let adapter = fixture("shakespeare-lora");
    let cases: [(&str, serde_json::Value, Pack, &[&str]); 3] = [
        ("nf4", json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), nf4, &["decode_four_bit"]),
        ("int8", json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }), int8, &["decode_i8", "scale_blocks"]),
        ("fp8", json!({ "quant_method": "fp8", "weight_block_size": [48, 80] }), fp8, &["decode_e4m3", "scale_blocks"]),
    ];
    for (name, quantization, pack, kernels) in cases {
        let model = bench.path().join(name);
        write_model(&model, quantization, pack);
        for lora in [&[][..], &["--lora", adapter.to_str().unwrap()]] {
            let args = [&["--quant", "q4_k_m,q8_0"], lora].concat();
            bench.convert(name, "cpu", &[&args[..], &["--device", "cpu"]].concat(), &[]);
            let log = bench.log();
            let settings = [("SOFT_CUDA_LOG", log.to_str().unwrap())];
            for memory in ["1GB", "700KB"] {
                let args = [&args[..], &["--device", "cuda", "--gpu-memory", memory]].concat();
                bench.convert(name, "gpu", &args, &settings);
                bench.assert_same("cpu", "gpu");
            }
            let calls = bench.calls();
            for kernel in kernels.iter().copied().chain((!lora.is_empty()).then_some("merge")) {
                assert!(calls.contains_key(&format!("kernel {kernel}")), "{name}: {kernel} of {calls:?}");
            }
        }
    }
}

/// The fixture's adapter with magnitudes: as DoRA.
fn write_dora(folder: &Path) {
    let lora = fixture("shakespeare-lora");
    std::fs::create_dir(folder).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lora.join("adapter_config.json")).unwrap()).unwrap();
    config["use_dora"] = true.into();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(lora.join("adapter_model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut random = Random(3);
    let mut written = Vec::new();
    let mut names: Vec<&str> = stored.names();
    names.sort_unstable();
    for name in names {
        let tensor = stored.tensor(name).unwrap();
        if let Some(module) = name.strip_suffix(".lora_B.weight") {
            let magnitudes = format!("{module}.lora_magnitude_vector");
            written.push(Written::floats(magnitudes, vec![tensor.shape()[0]], &mut random));
        }
        written.push(Written::copy(name, &tensor));
    }
    write_tensors(&folder.join("adapter_model.safetensors"), &written);
}

#[test]
fn dora_is_merged_there() {
    let Some(bench) = Bench::new() else { return };
    write_dora(&bench.path().join("dora"));
    let (lora, log) = (fixture("shakespeare-lora"), bench.log());
    let settings = [("SOFT_CUDA_LOG", log.to_str().unwrap())];
    for more in [&[][..], &["--lora", lora.to_str().unwrap()]] {
        let args = [&["--quant", "q4_k_m", "--lora", "dora"], more].concat();
        bench.convert("shakespeare-llama", "cpu", &[&args[..], &["--device", "cpu"]].concat(), &[]);
        for memory in ["1GB", "700KB"] {
            let args = [&args[..], &["--device", "cuda", "--gpu-memory", memory]].concat();
            bench.convert("shakespeare-llama", "gpu", &args, &settings);
            bench.assert_same("cpu", "gpu");
        }
        let calls = bench.calls();
        for kernel in ["merge", "row_ratios", "scale_rows", "run_distance"] {
            assert!(calls.contains_key(&format!("kernel {kernel}")), "{kernel} of {calls:?}");
        }
    }
    let ratios = |device: &str| -> Vec<f64> {
        let model = fixture("shakespeare-llama");
        let args = [model.to_str().unwrap(), "--lora", "dora", "--device", device, "--force", "--json", "-o", "x.gguf"];
        let run = bench.run(&args, &[]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        report["changes"].as_array().unwrap().iter().map(|c| c["relative_change"].as_f64().unwrap()).collect()
    };
    for (x, y) in ratios("cpu").iter().zip(ratios("cuda")) {
        assert!(*x > 0.0 && (x - y).abs() < 1e-5 * x, "{x} {y}");
    }
}
