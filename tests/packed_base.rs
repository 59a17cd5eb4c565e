//! An adapter over a quantized base: the report names what was merged into, and what `--base` would change.

mod common;

use std::collections::BTreeMap;

use common::{fixture, to_gguf};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const PACKED: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn the_report_says_which_base_was_used_and_why_it_matters() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, quantized) = (fixture("shakespeare-llama"), dir.path().join("llama-8bit"));
    std::fs::create_dir(&quantized).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(plain.join(file), quantized.join(file)).unwrap();
    }
    let config = std::fs::read(plain.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes", "load_in_8bit": true});
    std::fs::write(quantized.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(plain.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = file.tensor(PACKED).unwrap().shape().to_vec();
    let codes: Vec<u8> = (0..shape[0] * shape[1]).map(|i| (i % 251) as u8).collect();
    let scales: Vec<u8> = (0..shape[0]).flat_map(|_| 0.05f32.to_le_bytes()).collect();
    let mut tensors: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    tensors.insert(PACKED.into(), TensorView::new(Dtype::I8, shape.clone(), &codes).unwrap());
    tensors.insert(PACKED.replace("weight", "SCB"), TensorView::new(Dtype::F32, vec![shape[0]], &scales).unwrap());
    std::fs::write(quantized.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();

    let adapter = fixture("shakespeare-lora");
    let report = |base: &std::path::Path, out: &str| {
        let args = [adapter.to_str().unwrap(), "--base", base.to_str().unwrap(), "--quant", "f16", "--json", "-o", out];
        let run = to_gguf(dir.path(), args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap()
    };
    let over_packed = report(&quantized, "packed.gguf");
    assert_eq!(over_packed["model"]["quantization"], "bitsandbytes");
    let told = over_packed["warnings"].to_string();
    assert!(told.contains("llama-8bit, quantized by bitsandbytes") && told.contains("--base"), "{told}");
    assert!(over_packed["changes"][0]["relative_change"].as_f64().is_some_and(|r| r > 0.0), "{over_packed}");
    let over_plain = report(&plain, "plain.gguf");
    assert!(over_plain["model"]["quantization"].is_null());
    assert!(!over_plain["warnings"].to_string().contains("quantized by"), "{over_plain}");
}
