//! Adapters without their model: PEFT folders, GGUF adapters, extraction.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::{fixture, names, to_gguf};
use serde_json::{Value as Json, json};
use to_gguf::gguf::{GgufFile, Value};
use to_gguf::recipe::Scratch;
use to_gguf::source::{TensorSet, open_weight_file};

const BASE: &str = "shakespeare-llama";
const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// A safetensors file of f32 tensors.
fn write_tensors(path: &Path, tensors: &[(&str, Vec<u64>, Vec<f32>)]) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let text = Json::Object(header).to_string();
    let bytes: Vec<u8> = (text.len() as u64).to_le_bytes().into_iter().chain(text.bytes()).chain(data).collect();
    std::fs::write(path, bytes).unwrap();
}

fn noise(n: u64, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n as usize).collect()
}

/// An adapter over q_proj (256 x 256) and k_proj (128 x 256) of layer 0, with these settings on top.
fn adapter(folder: &Path, rank: u64, seed: u64, settings: Json) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let k = Q.replace("q_proj", "k_proj");
    let name = |module: &str, factor: &str| format!("{module}.lora_{factor}.weight");
    let (qa, qb, ka, kb) = (name(Q, "A"), name(Q, "B"), name(&k, "A"), name(&k, "B"));
    let tensors = [
        (ka.as_str(), vec![rank, 256], noise(rank * 256, seed)),
        (kb.as_str(), vec![128, rank], noise(128 * rank, seed + 1)),
        (qa.as_str(), vec![rank, 256], noise(rank * 256, seed + 2)),
        (qb.as_str(), vec![256, rank], noise(256 * rank, seed + 3)),
    ];
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors);
    let mut config = json!({
        "peft_type": "LORA", "base_model_name_or_path": BASE, "r": rank, "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "k_proj"], "layers_to_transform": [0],
    });
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder.to_owned()
}

fn values(set: &TensorSet, name: &str) -> Vec<f32> {
    let recipe = set.get(name).unwrap_or_else(|| panic!("no {name}"));
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out
}

fn opened(path: &Path) -> HashMap<String, Vec<f32>> {
    let set = open_weight_file(path).unwrap();
    set.iter().map(|(name, _)| (name.to_owned(), values(&set, name))).collect()
}

/// `scale * b @ a`.
fn product(b: &[f32], a: &[f32], rank: usize, scale: f64) -> Vec<f64> {
    let cols = a.len() / rank;
    let row = |b: &[f32]| -> Vec<f64> {
        let sum = |j: usize| (0..rank).map(|k| f64::from(b[k]) * f64::from(a[k * cols + j])).sum::<f64>();
        (0..cols).map(|j| scale * sum(j)).collect()
    };
    b.chunks_exact(rank).flat_map(row).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let most = want.iter().fold(0f64, |m, v| m.max(v.abs()));
    let far = got.iter().zip(want).fold(0f64, |m, (g, w)| m.max((g - w).abs()));
    assert!(far <= 1e-5 * most, "{far} of {most}");
}

fn run(folder: &Path, args: &[&str]) -> common::Run {
    let base = fixture(BASE);
    let base = base.to_str().unwrap();
    let args: Vec<&str> = args.iter().map(|a| if *a == "BASE" { base } else { a }).collect();
    to_gguf(folder, args)
}

fn settings(folder: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn one_adapter_is_saved_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    adapter(&dir.path().join("a"), 4, 1, json!({}));
    let done = run(dir.path(), &["a", "--base", "BASE", "--save-method", "lora"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let files = names(&dir.path().join("a-lora"));
    for file in ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"] {
        assert!(files.iter().any(|f| f == file), "{file} in {files:?}");
    }
    let of = |folder: &str| opened(&dir.path().join(folder).join("adapter_model.safetensors"));
    assert_eq!(of("a"), of("a-lora"));
    assert_eq!(settings(&dir.path().join("a-lora"))["r"], 4);
}

#[test]
fn a_pickle_holds_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    adapter(&dir.path().join("a"), 4, 1, json!({}));
    let done =
        run(dir.path(), &["a", "--base", "BASE", "--save-method", "lora", "--no-safe-serialization", "-o", "out"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let own = opened(&dir.path().join("a/adapter_model.safetensors"));
    assert_eq!(opened(&dir.path().join("out/adapter_model.bin")), own);
}

#[test]
fn several_adapters_become_one() {
    let dir = tempfile::tempdir().unwrap();
    adapter(&dir.path().join("a"), 4, 1, json!({}));
    adapter(&dir.path().join("b"), 6, 9, json!({"use_rslora": true, "alpha_pattern": {"k_proj": 5}}));
    let done = run(dir.path(), &["BASE", "--lora", "a=0.5", "--lora", "b=-2", "--save-method", "lora", "-o", "out"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let [a, b, out] = ["a", "b", "out"].map(|f| opened(&dir.path().join(f).join("adapter_model.safetensors")));
    for (module, alpha) in [(Q.to_owned(), 12.0), (Q.replace("q_proj", "k_proj"), 5.0)] {
        let delta = |t: &HashMap<String, Vec<f32>>, rank, scale| {
            product(&t[&format!("{module}.lora_B.weight")], &t[&format!("{module}.lora_A.weight")], rank, scale)
        };
        let (one, two) = (delta(&a, 4, 0.5 * 2.0), delta(&b, 6, -2.0 * alpha / 6f64.sqrt()));
        let want: Vec<f64> = one.iter().zip(&two).map(|(x, y)| x + y).collect();
        close(&delta(&out, 10, 1.0), &want);
    }
    let settings = settings(&dir.path().join("out"));
    assert_eq!(
        (&settings["r"], &settings["lora_alpha"], &settings["use_rslora"]),
        (&json!(10), &json!(10), &json!(false))
    );
}

#[test]
fn a_gguf_adapter_has_the_true_scale_of_every_tensor() {
    let dir = tempfile::tempdir().unwrap();
    adapter(&dir.path().join("a"), 4, 1, json!({"use_rslora": true, "alpha_pattern": {"k_proj": 5}}));
    let done = run(dir.path(), &["a", "--base", "BASE", "--save-method", "lora", "--format", "gguf", "-o", "a.gguf"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let file = GgufFile::open(dir.path().join("a.gguf")).unwrap();
    let key = |name: &str| file.metadata().get(name).cloned();
    assert_eq!(key("general.type"), Some(Value::string("adapter")));
    assert_eq!(key("adapter.type"), Some(Value::string("lora")));
    let Some(Value::F32(alpha)) = key("adapter.lora.alpha") else { panic!("no alpha") };
    let floats = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        let mut bytes = vec![0; tensor.bytes as usize];
        file.read_rows(tensor, 0..tensor.shape.rows(), &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let own = opened(&dir.path().join("a/adapter_model.safetensors"));
    // Four heads of 64 rows for queries, two for keys: halves of a head are interleaved.
    for (module, tensor, scale) in [
        (Q.to_owned(), "blk.0.attn_q.weight", 8.0 / 2.0),
        (Q.replace("q_proj", "k_proj"), "blk.0.attn_k.weight", 5.0 / 2.0),
    ] {
        let want =
            product(&own[&format!("{module}.lora_B.weight")], &own[&format!("{module}.lora_A.weight")], 4, scale);
        let rows: Vec<&[f64]> = want.chunks_exact(256).collect();
        let permuted: Vec<f64> =
            (0..rows.len()).flat_map(|i| rows[i / 64 * 64 + i % 2 * 32 + i % 64 / 2].to_vec()).collect();
        let (a, b) = (floats(&format!("{tensor}.lora_a")), floats(&format!("{tensor}.lora_b")));
        close(&product(&b, &a, 4, f64::from(alpha) / 4.0), &permuted);
    }
}

#[test]
fn what_a_gguf_adapter_cannot_hold_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let made = adapter(&dir.path().join("a"), 4, 1, json!({"use_dora": true}));
    let set = opened(&made.join("adapter_model.safetensors"));
    let dims = |name: &str, n: usize| if name.ends_with("A.weight") { vec![4, 256] } else { vec![n as u64 / 4, 4] };
    let mut tensors: Vec<(&str, Vec<u64>, Vec<f32>)> =
        set.iter().map(|(n, v)| (n.as_str(), dims(n, v.len()), v.clone())).collect();
    let magnitude = format!("{Q}.lora_magnitude_vector");
    tensors.push((&magnitude, vec![256], noise(256, 5)));
    write_tensors(&made.join("adapter_model.safetensors"), &tensors);
    let args = ["a", "--base", "BASE", "--save-method", "lora", "--format", "gguf", "-o", "a.gguf"];
    let refused = run(dir.path(), &args);
    assert_eq!(refused.code, 1);
    for word in ["DoRA", "q_proj", "--save-method lora"] {
        assert!(refused.error_line().contains(word), "{}", refused.error_line());
    }
    assert!(!dir.path().join("a.gguf").exists());

    let lora = fixture("shakespeare-lora");
    let whole = run(dir.path(), &[lora.to_str().unwrap(), "--save-method", "lora", "--format", "gguf"]);
    assert!(whole.error_line().contains("modules_to_save"), "{}", whole.error_line());
    let quant =
        run(dir.path(), &["a", "--base", "BASE", "--save-method", "lora", "--format", "gguf", "--quant", "q4_k_m"]);
    assert!(quant.error_line().contains("--quant"), "{}", quant.error_line());
    let none = run(dir.path(), &["BASE", "--save-method", "lora"]);
    assert!(none.error_line().contains("--lora"), "{}", none.error_line());
    let dora = run(dir.path(), &["BASE", "--lora", "a=0.5", "--save-method", "lora", "-o", "out"]);
    assert!(dora.error_line().contains("DoRA"), "{}", dora.error_line());
}

#[test]
fn the_difference_of_two_models_is_extracted() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, q: Vec<f32>, norm: f32| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let config =
            json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": false});
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let tensors = [
            ("model.layers.0.input_layernorm.weight", vec![24], vec![norm; 24]),
            ("model.layers.0.self_attn.k_proj.weight", vec![8, 24], noise(8 * 24, 3)),
            ("model.layers.0.self_attn.q_proj.weight", vec![16, 24], q),
        ];
        write_tensors(&folder.join("model.safetensors"), &tensors);
    };
    let (before, b, a) = (noise(16 * 24, 1), noise(16 * 2, 7), noise(2 * 24, 8));
    let delta = product(&b, &a, 2, 0.1);
    let after: Vec<f32> = before.iter().zip(&delta).map(|(w, d)| w + *d as f32).collect();
    model("base", before.clone(), 1.0);
    model("tuned", after.clone(), 1.5);
    let done =
        to_gguf(dir.path(), ["extract", "--base", "base", "--tuned", "tuned", "--rank", "2", "-o", "out", "--json"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let report: Json = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["extracted"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["extracted"][0]["energy"].as_f64().unwrap() > 0.999_999);
    let out = opened(&dir.path().join("out/adapter_model.safetensors"));
    let got = product(&out[&format!("{Q}.lora_B.weight")], &out[&format!("{Q}.lora_A.weight")], 2, 1.0);
    let want: Vec<f64> = after.iter().zip(&before).map(|(t, w)| f64::from(t - w)).collect();
    close(&got, &want);
    assert_eq!(out["base_model.model.model.layers.0.input_layernorm.weight"], vec![1.5; 24]);
    let settings = settings(&dir.path().join("out"));
    assert_eq!(settings["target_modules"], json!(["q_proj"]));
    assert_eq!(settings["modules_to_save"], json!(["input_layernorm"]));

    let gguf = to_gguf(
        dir.path(),
        ["extract", "--base", "base", "--tuned", "tuned", "--rank", "2", "--format", "gguf", "-o", "x.gguf"],
    );
    assert!(gguf.error_line().contains("input_layernorm"), "{}", gguf.error_line());
    let same = to_gguf(dir.path(), ["extract", "--base", "base", "--tuned", "base", "--rank", "2", "-o", "y"]);
    assert!(same.error_line().contains("no tensor differs"), "{}", same.error_line());
    assert!(names(dir.path()).iter().all(|n| !n.starts_with(".to-gguf")));
}

#[test]
fn a_model_is_split_as_llama_gguf_split_does() {
    let dir = tempfile::tempdir().unwrap();
    let whole = run(dir.path(), &["BASE", "--quant", "bf16", "-o", "whole.gguf", "-q"]);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let args = ["BASE", "--quant", "bf16", "-o", "m.gguf", "--split-max-tensors", "20", "--no-tensor-first-split"];
    let split = run(dir.path(), &args);
    assert_eq!(split.code, 0, "{}", split.stderr);
    let parts: Vec<String> = names(dir.path()).into_iter().filter(|n| n.starts_with("m-")).collect();
    assert_eq!(parts, ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]);
    let same = to_gguf(dir.path(), ["m-00001-of-00003.gguf", "--quant", "copy", "-o", "again.gguf", "-q"]);
    assert_eq!(same.code, 0, "{}", same.stderr);
    let [one, again] = ["whole.gguf", "again.gguf"].map(|f| GgufFile::open(dir.path().join(f)).unwrap());
    assert_eq!(one.tensors().len(), again.tensors().len());
    std::fs::remove_file(dir.path().join("m-00002-of-00003.gguf")).unwrap();
    let missing = to_gguf(dir.path(), ["m-00001-of-00003.gguf", "--quant", "copy", "-o", "x.gguf"]);
    assert!(missing.error_line().contains("m-00002-of-00003.gguf"), "{}", missing.error_line());
    let single = run(dir.path(), &["BASE", "--quant", "bf16", "-o", "s.gguf", "--split-max-size", "1GB", "-q"]);
    assert_eq!(single.code, 0, "{}", single.stderr);
    assert!(dir.path().join("s-00001-of-00001.gguf").exists());
}
