//! A 16-bit model whose files hold single matrices in f32: a converter stores them in 16 bits like the others, so
//! the quantized file is that of the 16-bit GGUF, and the f32 file keeps every bit.

mod common;

use std::path::Path;

use common::{fixture, to_gguf};
use serde_json::{Map, Value, json};

/// The fixture with matrices of one block in f32, each with bits that bf16 has no room for.
fn mixed_model(folder: &Path) {
    for entry in std::fs::read_dir(fixture("shakespeare-llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let (mut data, mut described) = (Vec::new(), Map::new());
    for (name, tensor) in &header {
        if name == "__metadata__" {
            described.insert(name.clone(), tensor.clone());
            continue;
        }
        let place = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize + 8 + n;
        let stored = &bytes[place(0)..place(1)];
        let start = data.len();
        let mut tensor = tensor.clone();
        if name.contains("layers.1.mlp") || name.contains("layers.1.self_attn.q_proj") {
            assert_eq!(tensor["dtype"], "BF16");
            tensor["dtype"] = json!("F32");
            for (i, x) in stored.as_chunks::<2>().0.iter().enumerate() {
                data.extend_from_slice(
                    &(u32::from(u16::from_le_bytes(*x)) << 16 | (i as u32 * 2_654_435_761) >> 16).to_le_bytes(),
                );
            }
        } else {
            data.extend_from_slice(stored);
        }
        tensor["data_offsets"] = json!([start, data.len()]);
        described.insert(name.clone(), tensor);
    }
    let header = serde_json::to_vec(&described).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    std::fs::write(path, out).unwrap();
}

#[test]
fn single_f32_matrices_are_quantized_as_the_models_16_bit_gguf_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("shakespeare-llama");
    std::fs::create_dir(&model).unwrap();
    mixed_model(&model);
    let convert = |args: &[&str]| {
        let run = to_gguf(dir.path(), [args, &["-q", "--force"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
    };
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    convert(&["shakespeare-llama", "--quant", "auto", "-o", "bf16.gguf"]);
    convert(&["shakespeare-llama", "--quant", "f32", "-o", "f32.gguf"]);
    for quant in ["q4_k_m", "q8_0"] {
        convert(&["shakespeare-llama", "--quant", quant, "-o", "model.gguf"]);
        convert(&["bf16.gguf", "--quant", quant, "-o", "gguf.gguf"]);
        assert!(read("model.gguf") == read("gguf.gguf"), "{quant}");
    }
    // Both at once: each file has its own rows.
    let several = ["shakespeare-llama", "--quant", "f32,q4_k_m,bf16", "--no-modelfile", "-o", "several"];
    convert(&several);
    let of = |label: &str| read(&format!("several/shakespeare-llama-{label}.gguf"));
    convert(&["shakespeare-llama", "--quant", "q4_k_m", "-o", "model.gguf"]);
    assert!(of("F32") == read("f32.gguf") && of("Q4_K_M") == read("model.gguf") && of("BF16") == read("bf16.gguf"));
    // Layers kept in their own precision are kept as the 16-bit file has them.
    convert(&["shakespeare-llama", "--quant", "q4_0", "--tensor-type", "blk.1.ffn_down=bf16", "-o", "model.gguf"]);
    convert(&["bf16.gguf", "--quant", "q4_0", "--tensor-type", "blk.1.ffn_down=bf16", "-o", "gguf.gguf"]);
    assert!(read("model.gguf") == read("gguf.gguf"));
}
