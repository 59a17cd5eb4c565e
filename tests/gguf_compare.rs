//! What is promised about GGUF files as models and as things to look at: rows decode and copy, `inspect` describes,
//! `diff` finds every kind of difference.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use to_gguf::gguf::{Layout, Metadata, TensorInfo, Value, diff};
use to_gguf::quant::{GgmlType, quantize_rows};
use to_gguf::recipe::Scratch;
use to_gguf::shape::Shape;
use to_gguf::source::GgufModel;

/// A tensor's name, type, row length and values.
type Tensor = (&'static str, GgmlType, u64, Vec<f32>);

fn file(keys: &[(&str, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut m = Metadata::new();
    for (k, v) in keys {
        m.set(*k, v.clone());
    }
    let infos: Vec<_> = tensors
        .iter()
        .map(|(name, kind, row, values)| TensorInfo {
            name: (*name).into(),
            shape: Shape::matrix(values.len() as u64 / row, *row),
            kind: *kind,
        })
        .collect();
    let layout = Layout::new(&m, &infos).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    for (i, (_, kind, row, values)) in tensors.iter().enumerate() {
        let (at, len) = layout.place(i);
        let out = &mut bytes[at as usize..(at + len) as usize];
        quantize_rows(*kind, values, *row as usize, None, out).unwrap();
    }
    bytes
}

fn waves(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn keys() -> Vec<(&'static str, Value)> {
    vec![
        ("general.architecture", Value::string("llama")),
        ("llama.block_count", Value::U32(1)),
        ("tokens", Value::strings(["a", "b", "c", "d", "e"])),
    ]
}

fn tensors() -> Vec<Tensor> {
    vec![
        ("token_embd.weight", GgmlType::BF16, 64, waves(640)),
        ("blk.0.ffn_up.weight", GgmlType::Q8_0, 64, waves(192)),
        ("output_norm.weight", GgmlType::F32, 64, waves(64)),
    ]
}

fn written(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_gguf_is_a_source_of_values_and_of_blocks() {
    let dir = TempDir::new().unwrap();
    let model = GgufModel::open(written(&dir, "x.gguf", &file(&keys(), &tensors()))).unwrap();
    let set = model.tensors();
    let mut scratch = Scratch::default();
    let up = set.get("blk.0.ffn_up.weight").unwrap();
    assert_eq!((up.native(), up.shape()), (Some(GgmlType::Q8_0), &Shape::matrix(3, 64)));
    let mut rows = vec![0.0; 128];
    up.rows(1..3, &mut rows, &mut scratch).unwrap();
    assert!(rows.iter().zip(&waves(192)[64..]).all(|(x, y)| (x - y).abs() < 0.01));
    let mut blocks = vec![0; 2 * 68];
    up.native_rows(1..3, &mut blocks, &mut scratch).unwrap();
    let mut want = vec![0; 2 * 68];
    quantize_rows(GgmlType::Q8_0, &waves(192)[64..], 64, None, &mut want).unwrap();
    assert_eq!(blocks, want);
    assert_eq!(model.source_tensors()[0].kind, GgmlType::BF16);
}

#[test]
fn damaged_blocks_are_refused_when_read() {
    let dir = TempDir::new().unwrap();
    let mut bytes = file(&keys(), &tensors());
    let path = written(&dir, "x.gguf", &bytes);
    let at = GgufModel::open(&path).unwrap().file().tensor("blk.0.ffn_up.weight").unwrap().offset as usize;
    bytes[at + 34..at + 36].copy_from_slice(&0x7c00u16.to_le_bytes());
    let path = written(&dir, "y.gguf", &bytes);
    let set = GgufModel::open(&path).unwrap().tensors();
    let up = set.get("blk.0.ffn_up.weight").unwrap();
    let said = up.rows(0..1, &mut [0.0; 64], &mut Scratch::default()).unwrap_err().to_string();
    assert!(said.contains("y.gguf: tensor 'blk.0.ffn_up.weight'") && said.contains("block 1"), "{said}");
}

fn differences(change: impl Fn(&mut Vec<(&'static str, Value)>, &mut Vec<Tensor>)) -> to_gguf::gguf::DiffReport {
    let dir = TempDir::new().unwrap();
    let a = written(&dir, "a.gguf", &file(&keys(), &tensors()));
    let (mut k, mut t) = (keys(), tensors());
    change(&mut k, &mut t);
    diff(&a, &written(&dir, "b.gguf", &file(&k, &t))).unwrap()
}

#[test]
fn equal_files_are_identical() {
    let d = differences(|_, _| {});
    assert!(d.identical && !d.differs() && d.equal_tensors == 3);
}

#[test]
fn keys_that_differ_are_found() {
    let d = differences(|k, _| {
        k[1].1 = Value::U64(1);
        k[2].1 = Value::strings(["a", "b", "x", "d", "e"]);
        k.push(("new", Value::F32(0.1)));
    });
    let found: Vec<_> = d.keys.iter().map(|k| (k.key.as_str(), k.a.clone(), k.b.clone(), k.first_index)).collect();
    assert_eq!(found[0], ("llama.block_count", Some("u32 1".into()), Some("u64 1".into()), None));
    assert_eq!((found[1].0, found[1].3), ("tokens", Some(2)));
    assert_eq!(found[2], ("new", None, Some("f32 0.1".into()), None));
    assert!(d.differs() && d.tensors.is_empty());
}

#[test]
fn order_alone_is_a_difference() {
    let d = differences(|k, _| k.swap(0, 1));
    assert!(d.differs() && d.key_order_differs && d.keys.is_empty());
    let d = differences(|_, t| t.swap(0, 1));
    assert!(d.differs() && d.tensor_order_differs && d.tensors.is_empty());
}

#[test]
fn values_are_measured_where_bytes_differ() {
    let d = differences(|_, t| t[0].3[130] += 0.5);
    let [t] = &d.tensors[..] else { panic!("{:?}", d.tensors) };
    let bytes = t.bytes.unwrap();
    assert_eq!((bytes.blocks, bytes.of, bytes.first), (1, 640, 130));
    let v = t.values.unwrap();
    assert!(v.differing == 1 && (v.max_error - 0.5).abs() < 0.01 && (v.rmse - 0.5 / 640f64.sqrt()).abs() < 1e-3);
    assert!(v.cosine < 1.0 && v.cosine > 0.99);
}

#[test]
fn another_type_is_measured_and_another_shape_is_not() {
    let d = differences(|_, t| t[0].1 = GgmlType::Q4_0);
    let v = d.tensors[0].values.unwrap();
    assert!(d.tensors[0].bytes.is_none() && v.rmse > 0.0 && v.cosine > 0.99);
    let d = differences(|_, t| t[0].2 = 32);
    assert!(d.tensors[0].values.is_none() && d.tensors[0].b == Some(("BF16", vec![32, 20])));
    let d = differences(|_, t| t[2].0 = "other");
    assert_eq!(
        d.tensors.iter().map(|t| (t.a.is_some(), t.b.is_some())).collect::<Vec<_>>(),
        [(true, false), (false, true)]
    );
}

#[test]
fn padding_is_not_overlooked() {
    let dir = TempDir::new().unwrap();
    let mut bytes = file(&keys(), &tensors());
    let a = written(&dir, "a.gguf", &bytes);
    let end = {
        let model = GgufModel::open(&a).unwrap();
        let t = model.file().tensor("blk.0.ffn_up.weight").unwrap();
        (t.offset + t.bytes) as usize
    };
    bytes[end] = 1;
    let d = diff(&a, &written(&dir, "b.gguf", &bytes)).unwrap();
    assert!(d.differs() && d.layout[0].starts_with(&format!("padding differs: first at byte {end}")), "{:?}", d.layout);
}

fn to_gguf(args: &[&Path]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_to-gguf")).args(args).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn inspect_describes_a_file() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir, "x.gguf", &file(&keys(), &tensors()));
    let (status, out, _) = to_gguf(&[Path::new("inspect"), &path]);
    assert_eq!(status, 0);
    for words in ["llama, GGUF v3, 896 parameters", "tokens", "arr[str][5]", "[\"a\",\"b\",\"c\",\"d\",\"e\"]", "Q8_0"]
    {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    let (_, out, _) = to_gguf(&[Path::new("inspect"), &path, Path::new("--json")]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["tensors"][1]["type"], "Q8_0");
    assert_eq!(json["tensors"][1]["shape"], serde_json::json!([64, 3]));
    assert_eq!(json["metadata"][1]["value"], 1);
    assert_eq!(json["tensor_bytes"], 640 * 2 + 204 + 256);
}

#[test]
fn diff_exits_with_one_on_a_difference() {
    let dir = TempDir::new().unwrap();
    let a = written(&dir, "a.gguf", &file(&keys(), &tensors()));
    let mut t = tensors();
    t[1].3[0] = 0.7;
    let b = written(&dir, "b.gguf", &file(&keys(), &t));
    let (status, out, _) = to_gguf(&[Path::new("diff"), &a, &b]);
    assert_eq!(status, 1);
    assert!(out.contains("tensor blk.0.ffn_up.weight: Q8_0 [64, 3]  1 of 6 blocks differ, the first at 0"), "{out}");
    let (status, out, _) = to_gguf(&[Path::new("diff"), &a, &a]);
    assert_eq!((status, out.contains("identical files")), (0, true));
    let (status, out, err) = to_gguf(&[Path::new("diff"), &a, &dir.path().join("none.gguf")]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("error: ") && err.contains("none.gguf"), "{err}");
}
