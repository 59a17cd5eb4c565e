//! What a GGUF file holds: keys, tensors, types, sizes, bits per weight.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::json;

use super::{Array, GgufError, GgufFile, Value};
use crate::quant::{FileType, GgmlType};

/// Elements of an array that are shown unless all are wanted.
const SHOWN: usize = 8;

/// A whole file, described.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file that was named.
    pub path: PathBuf,
    /// All files of the model and their sizes.
    pub parts: Vec<PartReport>,
    /// Format version.
    pub version: u32,
    /// Alignment of tensor data.
    pub alignment: u64,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// Name of `general.file_type`.
    pub file_type: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors, padding not counted.
    pub tensor_bytes: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Bits of tensor data per element.
    pub bits_per_weight: f64,
    /// All keys in file order.
    pub metadata: Vec<KeyReport>,
    /// How many tensors have which type.
    pub types: Vec<TypeReport>,
    /// All tensors in file order.
    pub tensors: Vec<TensorReport>,
}

/// A file of the model.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Where tensor data begins.
    pub data_offset: u64,
}

/// A key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyReport {
    /// The key.
    pub key: String,
    /// Its type, as llama.cpp names it.
    #[serde(rename = "type")]
    pub kind: String,
    /// Number of elements of an array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Its value; of a long array the first elements.
    pub value: serde_json::Value,
}

/// The tensors of one type.
#[derive(Clone, Debug, Serialize)]
pub struct TypeReport {
    /// The type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// How many.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Dimensions as in the file: fastest first.
    pub shape: Vec<u64>,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its bytes, padding not counted.
    pub bytes: u64,
    /// Bits per element.
    pub bits_per_weight: f64,
    /// Index of the part that holds it.
    pub part: usize,
    /// Where it begins there.
    pub offset: u64,
}

/// Describes a file; `full` shows all elements of long arrays.
pub fn inspect(path: &Path, full: bool) -> Result<Inspection, GgufError> {
    let file = GgufFile::open(path)?;
    let metadata = file.metadata();
    let mut types: IndexMap<GgmlType, TypeReport> = IndexMap::new();
    for t in file.tensors() {
        let empty = || TypeReport { kind: t.kind.name(), tensors: 0, parameters: 0, bytes: 0 };
        let of_type = types.entry(t.kind).or_insert_with(empty);
        of_type.tensors += 1;
        of_type.parameters += t.shape.elements();
        of_type.bytes += t.bytes;
    }
    let mut types: Vec<_> = types.into_values().collect();
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    let (parameters, tensor_bytes) = types.iter().fold((0, 0), |(p, b), t| (p + t.parameters, b + t.bytes));

    let file_type = metadata.get("general.file_type").and_then(Value::as_u64);
    let named = |id: u64| {
        let known = u32::try_from(id).ok().and_then(FileType::from_id);
        known.map_or_else(|| format!("unknown ({id})"), |t| t.name().to_owned())
    };
    Ok(Inspection {
        path: path.to_owned(),
        parts: file
            .parts()
            .iter()
            .map(|p| PartReport { path: p.path.clone(), bytes: p.size, data_offset: p.data_start })
            .collect(),
        version: file.parts().first().map_or(0, |p| p.version),
        alignment: file.alignment(),
        architecture: metadata.get("general.architecture").and_then(Value::as_str).map(str::to_owned),
        file_type: file_type.map(named),
        parameters,
        tensor_bytes,
        file_bytes: file.parts().iter().map(|p| p.size).sum(),
        bits_per_weight: bits(tensor_bytes, parameters),
        metadata: metadata
            .iter()
            .map(|(key, value)| KeyReport {
                key: key.to_owned(),
                kind: value.type_name(),
                length: match value {
                    Value::Array(a) => Some(a.len()),
                    _ => None,
                },
                value: shown_value(value, if full { usize::MAX } else { SHOWN }),
            })
            .collect(),
        types,
        tensors: file
            .tensors()
            .iter()
            .map(|t| TensorReport {
                name: t.name.clone(),
                shape: t.shape.ne(),
                kind: t.kind.name(),
                bytes: t.bytes,
                bits_per_weight: bits(t.bytes, t.shape.elements()),
                part: t.part,
                offset: t.offset,
            })
            .collect(),
    })
}

fn bits(bytes: u64, elements: u64) -> f64 {
    if elements == 0 { 0.0 } else { bytes as f64 * 8.0 / elements as f64 }
}

/// A value as JSON, at most `limit` elements of an array. Text that is not UTF-8 is shown as far as it is.
pub fn shown_value(value: &Value, limit: usize) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => single(*v),
        Value::Bool(v) => json!(v),
        Value::String(s) => json!(s.to_string()),
        Value::Array(a) => array(a, limit),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => double(*v),
    }
}

/// The shortest digits that mean this f32; JSON has no word for what is not finite.
fn single(v: f32) -> serde_json::Value {
    match v.to_string().parse::<f64>() {
        Ok(x) if v.is_finite() => json!(x),
        _ => json!(v.to_string()),
    }
}

fn double(v: f64) -> serde_json::Value {
    if v.is_finite() { json!(v) } else { json!(v.to_string()) }
}

fn array(a: &Array, limit: usize) -> serde_json::Value {
    fn list<T>(items: &[T], limit: usize, shown: impl Fn(&T) -> serde_json::Value) -> serde_json::Value {
        items.iter().take(limit).map(shown).collect::<Vec<_>>().into()
    }
    match a {
        Array::U8(a) => list(a, limit, |v| json!(v)),
        Array::I8(a) => list(a, limit, |v| json!(v)),
        Array::U16(a) => list(a, limit, |v| json!(v)),
        Array::I16(a) => list(a, limit, |v| json!(v)),
        Array::U32(a) => list(a, limit, |v| json!(v)),
        Array::I32(a) => list(a, limit, |v| json!(v)),
        Array::F32(a) => list(a, limit, |v| single(*v)),
        Array::Bool(a) => list(a, limit, |v| json!(v)),
        Array::String(a) => list(a, limit, |v| json!(v.to_string())),
        Array::Array(a) => list(a, limit, |v| array(v, limit)),
        Array::U64(a) => list(a, limit, |v| json!(v)),
        Array::I64(a) => list(a, limit, |v| json!(v)),
        Array::F64(a) => list(a, limit, |v| double(*v)),
    }
}
