//! Per family: every key and tensor as llama.cpp's converter writes them, from headers alone.
//!
//! A golden in `fixtures/arch/` holds a config.json, the names, types and shapes of the model's tensors, and what
//! `convert_hf_to_gguf --outtype bf16` made of them. `tests/oracle/arch_golden.py` writes one.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use to_gguf::adapter::module_of;
use to_gguf::arch::{self, ArchError, ArchInput, Converted, restore};
use to_gguf::gguf::{Array, Value};
use to_gguf::quant::GgmlType;
use to_gguf::recipe::{ReadError, Recipe, RowSource, Scratch};
use to_gguf::shape::Shape;
use to_gguf::source::TensorSet;

/// A tensor of which only the header is known, with made-up values.
struct Header {
    name: String,
    shape: Shape,
    precision: GgmlType,
}

impl RowSource for Header {
    fn shape(&self) -> &Shape {
        &self.shape
    }
    fn precision(&self) -> GgmlType {
        self.precision
    }
    /// Every element of every tensor has a value of its own, a multiple of 2^-8.
    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        let seed = self.name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let first = rows.start * self.shape.row_len();
        for (i, x) in out.iter_mut().enumerate() {
            let mixed =
                (seed ^ (first + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *x = (mixed >> 48) as f32 / 256.0;
        }
        Ok(())
    }
    fn describe(&self) -> String {
        self.name.clone()
    }
}

fn header(line: &str) -> (String, Recipe) {
    let mut words = line.split(' ');
    let (name, dtype, dims) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let shape = Shape::new(serde_json::from_str::<Vec<u64>>(dims).unwrap()).unwrap();
    let precision = match dtype {
        "BF16" => GgmlType::BF16,
        "F16" => GgmlType::F16,
        _ => GgmlType::F32,
    };
    (name.into(), Recipe::source(Arc::new(Header { name: name.into(), shape, precision })))
}

fn convert(golden: &Json) -> Result<Converted, ArchError> {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(golden["folder"].as_str().unwrap());
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in golden["files"].as_object().unwrap() {
        std::fs::write(folder.join(name), text.as_str().unwrap()).unwrap();
    }
    if let Some(n) = golden["tokenizer_tokens"].as_u64() {
        let vocab: serde_json::Map<String, Json> = (0..n).map(|i| (format!("t{i}"), i.into())).collect();
        let text = json!({"model": {"vocab": vocab}, "added_tokens": []}).to_string();
        std::fs::write(folder.join("tokenizer.json"), text).unwrap();
    } else {
        // Gemma 3 asks whether it is there.
        std::fs::write(folder.join("tokenizer.model"), "").unwrap();
    }
    let tensors = source(golden);
    arch::convert(&ArchInput {
        config: &golden["config"],
        config_file: Path::new("config.json"),
        tensors: &tensors,
        folder: &folder,
        tokenizer_folder: &folder,
        name: None,
    })
}

/// A value as the golden writes it: its kind and itself.
fn told(value: &Value) -> (String, Json) {
    let text = |s: &bstr::BString| Json::from(s.to_string());
    match value {
        Value::U32(v) => ("uint32".into(), (*v).into()),
        Value::I32(v) => ("int32".into(), (*v).into()),
        Value::F32(v) => ("float32".into(), f64::from(*v).into()),
        Value::Bool(v) => ("bool".into(), (*v).into()),
        Value::String(s) => ("string".into(), text(s)),
        Value::Array(Array::I32(v)) => ("[int32]".into(), v.clone().into()),
        Value::Array(Array::U32(v)) => ("[uint32]".into(), v.clone().into()),
        Value::Array(Array::Bool(v)) => ("[bool]".into(), v.clone().into()),
        Value::Array(Array::F32(v)) => ("[float32]".into(), v.iter().map(|&x| f64::from(x)).collect()),
        Value::Array(Array::String(v)) => ("[string]".into(), v.iter().map(text).collect()),
        other => (format!("{other:?}"), Json::Null),
    }
}

/// All goldens by name.
fn goldens() -> Vec<(String, Json)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/arch");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let golden = |path: &PathBuf| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let files = files.iter().filter(|p| p.extension().is_some_and(|e| e == "json"));
    files.map(|p| (p.file_stem().unwrap().to_string_lossy().into_owned(), golden(p))).collect()
}

fn source(golden: &Json) -> TensorSet {
    golden["source"].as_array().unwrap().iter().map(|l| header(l.as_str().unwrap())).collect()
}

/// Rows here and there: all that a wrong order would show.
fn sample(recipe: &Recipe) -> Vec<f32> {
    let (rows, len) = (recipe.shape().rows(), recipe.shape().row_len() as usize);
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    for row in (0..16).map(|i| i * 7 % rows).chain((0..4).map(|i| rows * i / 4)).chain([rows - 1]) {
        let at = out.len();
        out.resize(at + len, 0.0);
        recipe.rows(row..row + 1, &mut out[at..], &mut scratch).unwrap();
    }
    out
}

/// What an adapter of the model is merged into, where the base is the model's GGUF.
#[test]
fn the_original_tensors_are_restored_from_those_of_the_gguf() {
    let mut restored = 0;
    for (name, golden) in goldens() {
        let made = convert(&golden).unwrap();
        let gguf: TensorSet = made.tensors.iter().map(|t| (t.name.clone(), t.recipe.clone())).collect();
        let source = source(&golden);
        let modules: HashSet<String> = source.iter().map(|(name, _)| module_of(name)).collect();
        let back = restore(Path::new("x.gguf"), &made.metadata, &gguf, &|n| modules.contains(&module_of(n))).unwrap();
        for (tensor, recipe) in source.iter().filter(|(t, _)| !made.dropped.iter().any(|(d, _)| d == t)) {
            if tensor.ends_with(".A_log") {
                assert!(back.tensors().get(tensor).is_none(), "a logarithm is not undone exactly");
                continue;
            }
            // The names' beginnings may be those of another class of the family.
            let found = back.tensors().iter().find(|(n, _)| module_of(n) == module_of(tensor) && same_leaf(n, tensor));
            let (_, got) = found.unwrap_or_else(|| panic!("{name}: {tensor} is not restored"));
            if got.shape().elements() == recipe.shape().elements() {
                assert!(
                    sample(got) == sample(&recipe.clone().reshape(got.shape().clone()).unwrap()),
                    "{name}: {tensor}"
                );
            } else {
                let rows = got.shape().rows();
                let head = recipe.clone().slice(0, rows).unwrap();
                assert!(tensor.contains("embed") && sample(got) == sample(&head), "{name}: {tensor}");
            }
            restored += 1;
        }
        let changed: HashSet<&str> = back.tensors().iter().map(|(n, _)| n).collect();
        for tensor in back.convert(back.tensors(), &changed, None).unwrap() {
            let stored = gguf.get(&tensor.name).unwrap_or_else(|| panic!("{name}: {} is new", tensor.name));
            assert_eq!(stored.shape(), tensor.recipe.shape(), "{name}: {}", tensor.name);
            assert!(sample(stored) == sample(&tensor.recipe), "{name}: {}", tensor.name);
        }
    }
    assert!(restored > 700, "only {restored} tensors");
}

fn same_leaf(one: &str, other: &str) -> bool {
    one.rsplit('.').next() == other.rsplit('.').next()
}

#[test]
fn keys_and_tensors_are_those_of_the_converter() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for (name, golden) in goldens() {
        seen += 1;
        let made = match convert(&golden) {
            Ok(made) => made,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        let mut metadata = made.metadata.clone();
        if metadata.get("general.file_type").is_some() {
            metadata.set("general.file_type", Value::U32(32));
        }
        let keys: Vec<Json> = metadata
            .iter()
            .filter(|(k, _)| !k.starts_with("tokenizer."))
            .map(|(k, v)| {
                let (kind, value) = told(v);
                json!([k, kind, value])
            })
            .collect();
        let tensors: Vec<Json> = made
            .tensors
            .iter()
            .map(|t| {
                let ne: Vec<String> = t.recipe.shape().ne().iter().map(u64::to_string).collect();
                format!("{} {} [{}]", t.name, t.stored_type(GgmlType::BF16), ne.join(",")).into()
            })
            .collect();
        for (what, ours, theirs) in [("key", &keys, &golden["keys"]), ("tensor", &tensors, &golden["tensors"])] {
            let theirs = theirs.as_array().unwrap();
            let first = (0..ours.len().max(theirs.len())).find(|&i| ours.get(i) != theirs.get(i));
            if let Some(i) = first {
                wrong.push(format!("{name}: {what} {i} is {:?}, should be {:?}", ours.get(i), theirs.get(i)));
            }
        }
    }
    assert!(seen >= 5, "only {seen} goldens found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
