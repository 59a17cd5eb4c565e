//! Any bytes as an adapter: refused with an error, or merged into a small model whose rows can be read.
//!
//! A case that begins with `GGUF` is a LoRA of llama.cpp's; any other is an `adapter_config.json`, a byte 0xff, and the
//! file of the weights.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use to_gguf::adapter::{Adapter, BaseInfo, GgufLora, MergeOptions, apply};
use to_gguf::source::{TensorSet, open_weight_file};

mod common;

/// A model of one layer; every matrix is 8 by 8.
static MODEL: LazyLock<TensorSet> = LazyLock::new(|| {
    let names = ["model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "lm_head"];
    model(names.map(|n| (format!("{n}.weight"), vec![8, 8])).into_iter().collect())
});

/// The same under GGUF names, with experts.
static GGUF: LazyLock<TensorSet> = LazyLock::new(|| {
    let names = [("token_embd", 2), ("blk.0.attn_q", 2), ("blk.0.ffn_down_exps", 3), ("output_norm", 1)];
    model(names.map(|(n, dims)| (format!("{n}.weight"), vec![8; dims])).into_iter().collect())
});

/// Tensors of ones, from a safetensors file that stays.
fn model(tensors: Vec<(String, Vec<usize>)>) -> TensorSet {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0, 0, 0x80, 0x3f].repeat(at / 4));
    let file = common::File::with(&bytes, &format!("-base-{at}.safetensors"));
    // The open file outlives its name.
    open_weight_file(file.path()).expect("a well-formed file")
}

fuzz_target!(|data: &[u8]| {
    let options = MergeOptions::default();
    if data.starts_with(b"GGUF") {
        let file = common::File::with(data, ".gguf");
        let Ok(lora) = GgufLora::open(file.path()) else { return };
        let mut tensors = GGUF.clone();
        if GgufLora::apply(&[(lora, 0.5)], "llama", &mut tensors, &options).is_ok() {
            common::read_all(&tensors);
        }
        return;
    }
    let mut parts = data.splitn(2, |&b| b == 0xff);
    let (config, weights) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let folder = common::Folder::with(&[("adapter_config.json", config), ("adapter_model.safetensors", weights)]);
    let Ok(adapter) = Adapter::open(folder.path(), None) else { return };
    let base = BaseInfo::new("base", &json!({"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 1}));
    let mut tensors = MODEL.clone();
    if apply(&[(adapter, 1.0)], &mut tensors, &base, &options).is_ok() {
        common::read_all(&tensors);
    }
});
