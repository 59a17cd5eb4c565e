//! Adapters whose base is a GGUF, and adapters in llama.cpp's form: the same tensors as merging into the folder.
//! `tests/arch_golden.rs` has the other architectures, `tests/oracle/gguf_merge.py` compares with llama.cpp.

mod common;
#[path = "common/crafted.rs"]
mod crafted;

use std::path::{Path, PathBuf};

use common::{fixture, names, to_gguf};
use crafted::crafted;
use tempfile::TempDir;
use to_gguf::adapter::{AdapterError, GgufLora, MergeOptions};
use to_gguf::gguf::{GgufFile, Layout, Metadata, TensorInfo, Value};
use to_gguf::quant::GgmlType;
use to_gguf::recipe::{Recipe, Scratch};
use to_gguf::shape::Shape;
use to_gguf::source::TensorSet;

/// Runs the program for one file.
fn convert(dir: &TempDir, out: &str, args: &[&str]) -> PathBuf {
    let path = dir.path().join(out);
    let run = to_gguf(dir.path(), [args, &["-q", "-o", out]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    path
}

fn refusal(dir: &TempDir, args: &[&str]) -> String {
    let run = to_gguf(dir.path(), [args, &["-q", "-o", "refused.gguf"]].concat());
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(!dir.path().join("refused.gguf").exists());
    run.error_line().to_owned()
}

/// Every tensor's type and bytes by name.
fn contents(path: &Path) -> Vec<(String, GgmlType, Vec<u8>)> {
    let file = GgufFile::open(path).unwrap();
    let mut all: Vec<_> = file
        .tensors()
        .iter()
        .map(|t| {
            let mut bytes = vec![0; t.bytes as usize];
            file.read_rows(t, 0..t.shape.rows(), &mut bytes).unwrap();
            (t.name.clone(), t.kind, bytes)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_peft_adapter_merges_into_a_gguf_as_into_the_folder() {
    let dir = TempDir::new().unwrap();
    let (model, adapter) = (fixture("shakespeare-llama"), fixture("shakespeare-lora"));
    let (model, adapter) = (model.to_str().unwrap(), adapter.to_str().unwrap());
    for quant in ["f32", "q4_k_m"] {
        let folder = convert(&dir, "folder.gguf", &[adapter, "--quant", quant, "--force"]);
        let expected = contents(&folder);
        convert(&dir, "base.gguf", &[model, "--quant", "f32", "--force"]);
        let by_lora = convert(&dir, "a.gguf", &["base.gguf", "--lora", adapter, "--quant", quant, "--force"]);
        assert!(contents(&by_lora) == expected, "{quant} with --lora");
        let by_base = convert(&dir, "b.gguf", &[adapter, "--base", "base.gguf", "--quant", quant, "--force"]);
        assert!(std::fs::read(by_base).unwrap() == std::fs::read(by_lora).unwrap(), "{quant} with --base");
    }
    let split = ["--quant", "f32", "--split-max-tensors", "9", "--force"];
    convert(&dir, "parts.gguf", &[&[model], &split[..]].concat());
    let first = names(dir.path()).into_iter().find(|n| n.starts_with("parts-00001")).unwrap();
    let parts = convert(&dir, "c.gguf", &[&first, "--lora", adapter, "--quant", "q4_k_m"]);
    assert!(contents(&parts) == contents(&dir.path().join("a.gguf")), "a split base");
}

/// Names of the tensors in file order.
fn order(path: &Path) -> Vec<String> {
    GgufFile::open(path).unwrap().tensors().iter().map(|t| t.name.clone()).collect()
}

#[test]
fn a_head_that_parts_from_its_embedding_stands_where_a_merged_models_file_has_it() {
    let (dir, model) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for file in std::fs::read_dir(fixture("shakespeare-llama")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.path().join(file.file_name())).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(model.path().join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    std::fs::write(model.path().join("config.json"), config.to_string()).unwrap();
    let weights = model.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tied = file.iter().filter(|(name, _)| *name != "lm_head.weight");
    std::fs::write(&weights, safetensors::serialize(tied, None).unwrap()).unwrap();

    let embedding = file.tensor("model.embed_tokens.weight").unwrap().shape().to_vec();
    let adapter = crafted(|config, tensors| {
        config["modules_to_save"] = serde_json::json!(["lm_head"]);
        tensors.insert(
            "base_model.model.lm_head.weight".into(),
            (embedding.clone(), vec![0.5; embedding.iter().product()]),
        );
    });
    let (model, adapter) = (model.path().to_str().unwrap(), adapter.path().to_str().unwrap());
    let folder = convert(&dir, "folder.gguf", &[adapter, "--base", model, "--quant", "f32"]);
    assert_eq!(order(&folder)[..2], ["output.weight", "token_embd.weight"]);
    let base = convert(&dir, "base.gguf", &[model, "--quant", "f32"]);
    assert_eq!(order(&base)[0], "token_embd.weight");
    let into_gguf = convert(&dir, "merged.gguf", &["base.gguf", "--lora", adapter, "--quant", "f32"]);
    assert!(contents(&into_gguf) == contents(&folder));
}

#[test]
fn what_no_adapter_changes_is_copied_and_a_quantized_base_needs_consent() {
    let dir = TempDir::new().unwrap();
    let (model, adapter) = (fixture("shakespeare-llama"), fixture("shakespeare-lora"));
    let adapter = adapter.to_str().unwrap();
    convert(&dir, "q8.gguf", &[model.to_str().unwrap(), "--quant", "q8_0"]);
    let error = refusal(&dir, &["q8.gguf", "--lora", adapter, "--quant", "q4_k_m"]);
    assert!(error.contains("--allow-requantize"), "{error}");
    let args = ["q8.gguf", "--lora", adapter, "--quant", "auto"];
    let merged = contents(&convert(&dir, "merged.gguf", &args));
    let base = contents(&dir.path().join("q8.gguf"));
    let changed: Vec<&str> = merged.iter().zip(&base).filter(|(m, b)| m.2 != b.2).map(|(m, _)| m.0.as_str()).collect();
    assert!(merged.iter().zip(&base).all(|(m, b)| (&m.0, m.1) == (&b.0, b.1)), "names and types stay");
    assert_eq!(changed.len(), 30, "{changed:?}");
}

/// A GGUF with F32 tensors.
fn write_gguf(path: &Path, metadata: &Metadata, tensors: &[(&str, &[u64], Vec<f32>)]) {
    let info = |(name, dims, _): &(&str, &[u64], Vec<f32>)| TensorInfo {
        name: (*name).into(),
        shape: Shape::new(dims.to_vec()).unwrap(),
        kind: GgmlType::F32,
    };
    let layout = Layout::new(metadata, &tensors.iter().map(info).collect::<Vec<_>>()).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    for (i, (_, _, values)) in tensors.iter().enumerate() {
        let (at, len) = layout.place(i);
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes[at as usize..(at + len) as usize].copy_from_slice(&data);
    }
    std::fs::write(path, bytes).unwrap();
}

fn lora_keys(arch: &str, alpha: f32) -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string(arch));
    m.set("general.type", Value::string("adapter"));
    m.set("adapter.type", Value::string("lora"));
    m.set("adapter.lora.alpha", Value::F32(alpha));
    m
}

/// Small whole numbers, so that every order of summing gives the same.
fn counting(n: u64, from: i32) -> Vec<f32> {
    (0..n).map(|i| ((i as i32 * 7 + from) % 11 - 5) as f32).collect()
}

fn recipe(dims: &[u64], values: Vec<f32>) -> Recipe {
    Recipe::constant(Shape::new(dims.to_vec()).unwrap(), values).unwrap()
}

fn values(tensors: &TensorSet, name: &str) -> Vec<f32> {
    let recipe = tensors.get(name).unwrap();
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out
}

/// `w + scale * b @ a`, for `b` `[rows, rank]` and `a` `[rank, cols]`.
fn product(w: &[f32], b: &[f32], a: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    let cols = a.len() / rank;
    let element = |i: usize| (0..rank).map(|k| b[i / cols * rank + k] * a[k * cols + i % cols]).sum::<f32>();
    w.iter().enumerate().map(|(i, w)| w + scale * element(i)).collect()
}

#[test]
fn gguf_adapters_merge_matrices_embeddings_experts_and_norms() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.gguf");
    let (q_a, q_b) = (counting(2 * 6, 1), counting(4 * 2, 2));
    let (t_a, t_b) = (counting(5 * 2, 3), counting(6 * 2, 4));
    let (e_a, e_b) = (counting(3 * 2 * 6, 5), counting(3 * 4 * 2, 6));
    let pairs: [(&str, &[u64], Vec<f32>); 7] = [
        ("blk.0.attn_q.weight.lora_a", &[2, 6], q_a.clone()),
        ("blk.0.attn_q.weight.lora_b", &[4, 2], q_b.clone()),
        ("token_embd.weight.lora_a", &[5, 2], t_a.clone()),
        ("token_embd.weight.lora_b", &[6, 2], t_b.clone()),
        ("blk.0.ffn_up_exps.weight.lora_a", &[3, 2, 6], e_a.clone()),
        ("blk.0.ffn_up_exps.weight.lora_b", &[3, 4, 2], e_b.clone()),
        ("blk.0.attn_norm.weight", &[6], counting(6, 9)),
    ];
    write_gguf(&path, &lora_keys("qwen3moe", 8.0), &pairs);
    let (q, t, e) = (counting(4 * 6, 7), counting(5 * 6, 8), counting(3 * 4 * 6, 0));
    let mut tensors: TensorSet = [
        ("token_embd.weight", recipe(&[5, 6], t.clone())),
        ("blk.0.attn_norm.weight", recipe(&[6], vec![1.0; 6])),
        ("blk.0.attn_q.weight", recipe(&[4, 6], q.clone())),
        ("blk.0.attn_k.weight", recipe(&[4, 6], q.clone())),
        ("blk.0.ffn_up_exps.weight", recipe(&[3, 4, 6], e.clone())),
    ]
    .map(|(name, recipe)| (name.to_owned(), recipe))
    .into_iter()
    .collect();
    let lora = GgufLora::open(&path).unwrap();
    let changes = GgufLora::apply(&[(lora, 0.5)], "qwen3moe", &mut tensors, &MergeOptions::default()).unwrap();
    assert_eq!(changes.len(), 4);
    // alpha 8 over rank 2, times the weight.
    let scale = 8.0 / 2.0 * 0.5;
    assert_eq!(values(&tensors, "blk.0.attn_q.weight"), product(&q, &q_b, &q_a, 2, scale));
    assert_eq!(values(&tensors, "blk.0.attn_k.weight"), q);
    let t_b_turned: Vec<f32> = (0..12).map(|i| t_b[i % 6 * 2 + i / 6]).collect();
    assert_eq!(values(&tensors, "token_embd.weight"), product(&t, &t_a, &t_b_turned, 2, scale));
    let experts: Vec<f32> =
        (0..3).flat_map(|i| product(&e[i * 24..][..24], &e_b[i * 8..][..8], &e_a[i * 12..][..12], 2, scale)).collect();
    assert_eq!(values(&tensors, "blk.0.ffn_up_exps.weight"), experts);
    let norm: Vec<f32> = counting(6, 9).iter().map(|n| 1.0 + 0.5 * (n - 1.0)).collect();
    assert_eq!(values(&tensors, "blk.0.attn_norm.weight"), norm);
}

#[test]
fn a_gguf_adapter_merges_into_a_folder_and_into_its_gguf_alike() {
    let dir = TempDir::new().unwrap();
    let model = fixture("shakespeare-llama");
    let model = model.to_str().unwrap();
    let base = convert(&dir, "base.gguf", &[model, "--quant", "f32"]);
    let file = GgufFile::open(&base).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape.dims().to_vec();
    let (q, embd) = (shape("blk.1.attn_q.weight"), shape("token_embd.weight"));
    let small = |n: u64| counting(n, 3).iter().map(|x| x / 64.0).collect::<Vec<f32>>();
    let pairs: [(&str, &[u64], Vec<f32>); 4] = [
        ("blk.1.attn_q.weight.lora_a", &[3, q[1]], small(3 * q[1])),
        ("blk.1.attn_q.weight.lora_b", &[q[0], 3], small(q[0] * 3)),
        ("token_embd.weight.lora_a", &[embd[0], 2], small(embd[0] * 2)),
        ("token_embd.weight.lora_b", &[embd[1], 2], small(embd[1] * 2)),
    ];
    write_gguf(&dir.path().join("lora.gguf"), &lora_keys("llama", 4.0), &pairs);
    for quant in ["f32", "q5_k_m"] {
        let folder = contents(&convert(&dir, "a.gguf", &[model, "--lora", "lora.gguf", "--quant", quant, "--force"]));
        let gguf = convert(&dir, "b.gguf", &["base.gguf", "--lora", "lora.gguf", "--quant", quant, "--force"]);
        assert!(contents(&gguf) == folder, "{quant}");
        let named = convert(&dir, "c.gguf", &["lora.gguf", "--base", "base.gguf", "--quant", quant, "--force"]);
        assert!(std::fs::read(named).unwrap() == std::fs::read(gguf).unwrap(), "{quant}");
    }
    let plain = contents(&base);
    let merged = contents(&dir.path().join("a.gguf"));
    assert_eq!(merged.len(), plain.len() + usize::from(file.tensor("output.weight").is_none()));
}

#[test]
fn gguf_adapters_that_do_not_fit_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.gguf");
    let base =
        || -> TensorSet { [("blk.0.attn_q.weight".to_owned(), recipe(&[4, 6], vec![0.0; 24]))].into_iter().collect() };
    let apply = |keys: &Metadata, pairs: &[(&str, &[u64], Vec<f32>)]| -> AdapterError {
        write_gguf(&path, keys, pairs);
        let options = MergeOptions::default();
        match GgufLora::open(&path) {
            Err(e) => e,
            Ok(lora) => GgufLora::apply(&[(lora, 1.0)], "llama", &mut base(), &options).unwrap_err(),
        }
    };
    let keys = lora_keys("llama", 4.0);
    let a: (&str, &[u64], Vec<f32>) = ("blk.0.attn_q.weight.lora_a", &[2, 6], vec![0.0; 12]);
    let b: (&str, &[u64], Vec<f32>) = ("blk.0.attn_q.weight.lora_b", &[4, 2], vec![0.0; 8]);
    let with = |key: &str, value: Value| {
        let mut keys = keys.clone();
        keys.set(key, value);
        keys
    };
    let pair = [a.clone(), b.clone()];
    let invocation = Value::Array(to_gguf::gguf::Array::U32(vec![1]));
    for (error, words) in [
        (apply(&keys, std::slice::from_ref(&a)), "has lora_a but no lora_b"),
        (apply(&keys, std::slice::from_ref(&b)), "has lora_b but no lora_a"),
        (apply(&keys, &[a.clone(), (b.0, &[5, 2], vec![0.0; 10])]), "needs [4, 2]"),
        (apply(&keys, &[(a.0, &[3, 6], vec![0.0; 18]), b.clone()]), "needs [2, 6]"),
        (apply(&keys, &[("blk.0.attn_q.bias", &[4], vec![0.0; 4])]), "blk.0.attn_q.bias is not understood"),
        (apply(&keys, &[("blk.9.attn_norm.weight", &[4], vec![0.0; 4])]), "blk.9.attn_norm.weight"),
        (apply(&with("general.architecture", Value::string("qwen2")), &pair), "is 'qwen2', but the model's is 'llama'"),
        (apply(&with("general.type", Value::string("model")), &pair), "not 'adapter'"),
        (apply(&with("adapter.type", Value::string("control")), &pair), "'control'"),
        (apply(&with("adapter.lora.alpha", Value::F32(f32::NAN)), &pair), "adapter.lora.alpha"),
        (apply(&with("adapter.alora.invocation_tokens", invocation), &pair), "activated"),
    ] {
        let message = error.to_string();
        assert!(message.contains(words) && message.contains("lora.gguf"), "{message} does not say '{words}'");
    }
    write_gguf(&path, &keys, &pair);
    assert!(refusal(&dir, &["lora.gguf"]).contains("--base"));
}
