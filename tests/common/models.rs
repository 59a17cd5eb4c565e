//! Model shapes from `fixtures/mixtures`: headers without weights.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};
use to_gguf::gguf::{Array, Metadata, TensorInfo, Value};
use to_gguf::quant::{GgmlType, SourceTensor};
use to_gguf::shape::Shape;

/// A JSON object in a file.
pub fn json(path: &str) -> Map<String, Json> {
    match serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() {
        Json::Object(map) => map,
        other => panic!("{path}: {other}"),
    }
}

/// The first 16 digits of a SHA-256, as the goldens have it.
pub fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// A model's keys and tensors.
pub struct Model {
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
}

impl Model {
    /// A model as `tests/oracle/mixture.py` describes it.
    pub fn of(description: &Json) -> Self {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", Value::string(description["architecture"].as_str().unwrap()));
        for (key, v) in description["keys"].as_object().unwrap() {
            let number = |v: &Json| v.as_u64().unwrap();
            let value = match v {
                Json::Bool(b) => Value::Bool(*b),
                Json::Array(a) => Value::Array(Array::I32(a.iter().map(|v| number(v) as i32).collect())),
                v if v.is_f64() => Value::F32(v.as_f64().unwrap() as f32),
                v => Value::U32(number(v) as u32),
            };
            metadata.set(key, value);
        }
        let mut tensors = Vec::new();
        for t in description["tensors"].as_array().unwrap() {
            let dims: Vec<u64> = t[1].as_array().unwrap().iter().rev().map(|n| n.as_u64().unwrap()).collect();
            let shape = Shape::new(dims).unwrap();
            let kind = GgmlType::from_name(t[2].as_str().unwrap()).unwrap();
            let name = t[0].as_str().unwrap();
            let mut push = |name| tensors.push(TensorInfo { name, shape: shape.clone(), kind });
            match t[3].as_array() {
                None => push(name.to_owned()),
                Some(layers) => {
                    for i in layers[0].as_u64().unwrap()..layers[1].as_u64().unwrap() {
                        push(name.replace("{}", &i.to_string()));
                    }
                }
            }
        }
        Model { metadata, tensors }
    }

    /// What a plan decides about.
    pub fn sources(&self) -> Vec<SourceTensor<'_>> {
        self.tensors.iter().map(|t| SourceTensor { name: &t.name, shape: &t.shape, kind: t.kind, part: 0 }).collect()
    }

    /// The number of weights that an imatrix has for each tensor.
    pub fn imatrix_lengths(&self) -> std::collections::HashMap<String, u64> {
        let len = |t: &TensorInfo| t.shape.ne()[0] * t.shape.ne().get(2).copied().unwrap_or(1);
        self.tensors.iter().map(|t| (t.name.clone(), len(t))).collect()
    }
}
