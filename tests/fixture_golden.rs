//! The trained fixture against `fixtures/reference.json`: what llama.cpp 0.5.0 makes of it, every key and every
//! tensor of the 16-bit file, and every tensor's type and hash in each file type, with and without imatrix.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{fixture, to_gguf};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use to_gguf::gguf::{Array, GgufFile, Value};

fn reference() -> Json {
    serde_json::from_slice(&std::fs::read(fixture("reference.json")).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Tensors of a file: name to [type, sha256].
fn tensors(path: &Path) -> Vec<(String, String, Vec<u64>, String)> {
    let file = GgufFile::open(path).unwrap();
    let hash = |t| {
        let t: &to_gguf::gguf::GgufTensor = t;
        let mut bytes = vec![0; t.bytes as usize];
        file.read_rows(t, 0..t.shape.rows(), &mut bytes).unwrap();
        sha256(&bytes)
    };
    file.tensors().iter().map(|t| (t.name.clone(), t.kind.name().to_owned(), t.shape.ne(), hash(t))).collect()
}

/// A value as the reference writes it: [type, value], long arrays by the hash of their bytes.
fn described(value: &Value) -> Json {
    let long = |kind: &str, n: usize, bytes: &[u8]| {
        let mut raw = Vec::new();
        raw.extend_from_slice(bytes);
        Json::from(vec!["arr".to_owned(), format!("{kind}[{n}] sha256:{}", sha256(&raw))])
    };
    match value {
        Value::U32(v) => serde_json::json!(["u32", v]),
        Value::F32(v) => serde_json::json!(["f32", f64::from(*v)]),
        Value::Bool(v) => serde_json::json!(["bool", v]),
        Value::String(s) => serde_json::json!(["str", s.to_string()]),
        Value::Array(Array::I32(items)) => {
            let mut raw = header(5, items.len());
            items.iter().for_each(|i| raw.extend(i.to_le_bytes()));
            long("i32", items.len(), &raw)
        }
        Value::Array(Array::String(items)) => {
            let mut raw = header(8, items.len());
            for s in items {
                raw.extend((s.len() as u64).to_le_bytes());
                raw.extend_from_slice(s);
            }
            long("str", items.len(), &raw)
        }
        other => panic!("{other:?} is not in the reference"),
    }
}

/// The raw bytes that precede an array's items: value type, element type, count.
fn header(element: u32, count: usize) -> Vec<u8> {
    let mut raw = 9u32.to_le_bytes().to_vec();
    raw.extend(element.to_le_bytes());
    raw.extend((count as u64).to_le_bytes());
    raw
}

#[test]
fn the_16_bit_file_has_every_key_and_tensor_of_the_converter() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-llama");
    let run = to_gguf(dir.path(), [base.to_str().unwrap(), "--quant", "bf16", "-o", "x.gguf"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let path = dir.path().join("x.gguf");
    let reference = &reference()["bf16"];

    let file = GgufFile::open(&path).unwrap();
    let keys: Vec<(String, Json)> = file.metadata().iter().map(|(k, v)| (k.to_owned(), described(v))).collect();
    let expected: Vec<(String, Json)> =
        reference["keys"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(keys, expected, "keys, in order");

    let found: Vec<(String, Json)> =
        tensors(&path).into_iter().map(|(name, kind, ne, hash)| (name, serde_json::json!([kind, ne, hash]))).collect();
    let expected: Vec<(String, Json)> =
        reference["tensors"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(found, expected, "tensors, in order");
}

#[test]
fn every_file_type_has_every_tensor_of_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-llama");
    let imatrix = fixture("shakespeare.imatrix.gguf");
    let reference = reference();
    let entries = reference["quantized"].as_object().unwrap();
    assert!(entries.len() >= 60, "35 file types with and without imatrix, but for those that need one");
    // One run for all types without imatrix, one for all with it.
    for with in [false, true] {
        let of_kind = entries.iter().filter(|(k, _)| k.ends_with("+imatrix") == with);
        let (refused, made): (Vec<_>, Vec<_>) = of_kind.partition(|(_, v)| v.as_str() == Some("refused"));
        for (name, _) in &refused {
            let run = to_gguf(dir.path(), [base.to_str().unwrap(), "--quant", name, "-o", "refused"]);
            assert_eq!(run.code, 1, "{name}");
            assert!(run.error_line().contains("--imatrix"), "{name}: {}", run.stderr);
        }
        assert_eq!(refused.len(), if with { 0 } else { 9 });
        let names: Vec<&str> = made.iter().map(|(k, _)| k.trim_end_matches("+imatrix")).collect();
        let list = names.join(",");
        let mut args = vec![base.to_str().unwrap(), "--quant", &list, "-o", "out", "--force", "-q", "--no-modelfile"];
        if with {
            args.extend(["--imatrix", imatrix.to_str().unwrap()]);
        }
        let run = to_gguf(dir.path(), &args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        for name in names {
            let key = if with { format!("{name}+imatrix") } else { name.to_owned() };
            let expected: BTreeMap<String, Json> =
                entries[&key].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            let path = dir.path().join(format!("out/shakespeare-llama-{name}.gguf"));
            let found: BTreeMap<String, Json> = tensors(&path)
                .into_iter()
                .map(|(tensor, kind, _, hash)| (tensor, serde_json::json!([kind, hash])))
                .collect();
            assert_eq!(found, expected, "{key}");
        }
    }
}
