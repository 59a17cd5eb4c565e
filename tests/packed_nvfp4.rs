//! NVFP4 models through the whole program: blocks as llama.cpp's converter repacks them, their factors beside them.
//!
//! `tests/oracle/packed_files.py` compares whole files with the converter's.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{fixture, to_gguf};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;
use to_gguf::gguf::Value;
use to_gguf::quant::GgmlType;
use to_gguf::recipe::{Recipe, Scratch};
use to_gguf::source::{GgufModel, ModelFolder};

const QUERY: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

/// The fixture with two of its projections in NVFP4, ModelOpt's way. The second one's factor is 1.
fn packed(folder: &Path) {
    let plain = fixture("shakespeare-llama");
    std::fs::create_dir(folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(plain.join(file), folder.join(file)).unwrap();
    }
    let config = std::fs::read(plain.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["quantization_config"] = json!({"quant_method": "modelopt", "quant_algo": "NVFP4"});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(plain.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shapes = [QUERY, DOWN].map(|m| file.tensor(&format!("{m}.weight")).unwrap().shape().to_vec());
    let codes = shapes.clone().map(|s| (0..s[0] * s[1] / 2).map(|i| (i * 37 % 251) as u8).collect::<Vec<u8>>());
    let scales = shapes.clone().map(|s| (0..s[0] * s[1] / 16).map(|i| 0x28 + (i % 16) as u8).collect::<Vec<u8>>());
    let factors = [0.0625f32, 1.0].map(f32::to_le_bytes);
    let input = 0.5f32.to_le_bytes();
    let mut tensors: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    for (i, module) in [QUERY, DOWN].into_iter().enumerate() {
        let [rows, cols] = shapes[i][..] else { panic!("matrices") };
        let mut put = |leaf: &str, dtype, shape: Vec<usize>, data| {
            tensors.insert(format!("{module}.{leaf}"), TensorView::new(dtype, shape, data).unwrap())
        };
        put("weight", Dtype::U8, vec![rows, cols / 2], &codes[i]);
        put("weight_scale", Dtype::F8_E4M3, vec![rows, cols / 16], &scales[i]);
        put("weight_scale_2", Dtype::F32, vec![], &factors[i]);
        put("input_scale", Dtype::F32, vec![], &input);
    }
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn values(recipe: &Recipe) -> Vec<f32> {
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out
}

#[test]
fn blocks_come_first_with_their_factors_and_are_the_librarys_values() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    packed(&model);
    let run = to_gguf(dir.path(), ["model", "--quant", "f16", "-o", "out.gguf"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let gguf = GgufModel::open(dir.path().join("out.gguf")).unwrap();
    assert_eq!(gguf.metadata().get("general.file_type").and_then(Value::as_u64), Some(39));
    let tensors = gguf.file().tensors();
    let first: Vec<(&str, GgmlType)> = tensors[..5].iter().map(|t| (t.name.as_str(), t.kind)).collect();
    let expected = [
        ("blk.0.attn_q.weight", GgmlType::NVFP4),
        ("blk.0.attn_q.scale", GgmlType::F32),
        ("blk.0.attn_q.input_scale", GgmlType::F32),
        ("blk.1.ffn_down.weight", GgmlType::NVFP4),
        ("blk.1.ffn_down.input_scale", GgmlType::F32),
    ];
    assert_eq!(first, expected);
    let (stored, source) = (gguf.tensors(), ModelFolder::open(&model).unwrap().tensors());
    assert_eq!(values(stored.get("blk.0.attn_q.scale").unwrap()), [0.0625]);
    assert_eq!(values(stored.get("blk.0.attn_q.input_scale").unwrap()), [0.5]);
    // Factors that are powers of two change no bits.
    let query = source.get(&format!("{QUERY}.weight")).unwrap().clone().rope_permuted(4).unwrap();
    let blocks = values(stored.get("blk.0.attn_q.weight").unwrap());
    assert!(values(&query).iter().zip(&blocks).all(|(v, b)| *v == b * 0.0625));
    let down = values(source.get(&format!("{DOWN}.weight")).unwrap());
    assert!(down.iter().any(|&v| v != 0.0) && down == values(stored.get("blk.1.ffn_down.weight").unwrap()));
}

#[test]
fn an_adapter_is_merged_into_values_and_blocks_are_not_quantized_again_unasked() {
    let dir = tempfile::tempdir().unwrap();
    packed(&dir.path().join("model"));
    let adapter = fixture("shakespeare-lora");
    let adapter = adapter.to_str().unwrap();
    let run = to_gguf(dir.path(), [adapter, "--base", "model", "--quant", "f16", "-o", "merged.gguf"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let gguf = GgufModel::open(dir.path().join("merged.gguf")).unwrap();
    assert_eq!(gguf.file().tensor("blk.0.attn_q.weight").unwrap().kind, GgmlType::F16);
    assert!(gguf.file().tensor("blk.0.attn_q.scale").is_none());

    let refused = to_gguf(dir.path(), ["model", "--quant", "q4_k_m", "-o", "q4.gguf"]);
    assert!(refused.code == 1 && refused.error_line().contains("--allow-requantize"), "{}", refused.stderr);
    let allowed = to_gguf(dir.path(), ["model", "--quant", "q8_0", "--allow-requantize", "-o", "q8.gguf"]);
    assert_eq!(allowed.code, 0, "{}", allowed.stderr);
    let gguf = GgufModel::open(dir.path().join("q8.gguf")).unwrap();
    assert_eq!(gguf.file().tensor("blk.0.attn_q.weight").unwrap().kind, GgmlType::Q8_0);
    assert_eq!(values(gguf.tensors().get("blk.0.attn_q.scale").unwrap()), [0.0625]);
}

#[test]
fn an_adapter_of_blocks_in_a_gguf_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    packed(&dir.path().join("model"));
    let run = to_gguf(dir.path(), ["model", "--quant", "f16", "-o", "out.gguf"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let adapter = fixture("shakespeare-lora");
    let run = to_gguf(dir.path(), [adapter.to_str().unwrap(), "--base", "out.gguf", "--quant", "f16", "-o", "m.gguf"]);
    assert!(run.code == 1 && run.error_line().contains("multiplied by blk.0.attn_q.scale"), "{}", run.stderr);
}
