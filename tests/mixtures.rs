//! What is promised about mixtures: every tensor of every model shape in `fixtures/mixtures` gets the type that
//! llama.cpp gives it, under all file types, with and without an imatrix; and so do the fixture's own tensors.
//! `tests/oracle/mixture.py` makes the goldens and says how.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};
use to_gguf::gguf::{Array, Layout, Metadata, TensorInfo, Value};
use to_gguf::quant::{
    FileType, GgmlType, Importance, QuantName, QuantOptions, QuantPlan, QuantPlanError, SourceTensor,
};
use to_gguf::shape::Shape;

fn json(path: &str) -> Map<String, Json> {
    match serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() {
        Json::Object(map) => map,
        other => panic!("{path}: {other}"),
    }
}

fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

struct Model {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

impl Model {
    fn of(description: &Json) -> Self {
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

    fn sources(&self) -> Vec<SourceTensor<'_>> {
        self.tensors.iter().map(|t| SourceTensor { name: &t.name, shape: &t.shape, kind: t.kind, part: 0 }).collect()
    }
}

/// An imatrix with weights for every tensor.
struct Complete(HashMap<String, u64>);

impl Complete {
    fn of(tensors: &[TensorInfo]) -> Self {
        let len = |t: &TensorInfo| t.shape.ne()[0] * t.shape.ne().get(2).copied().unwrap_or(1);
        Complete(tensors.iter().map(|t| (t.name.clone(), len(t))).collect())
    }
}

impl Importance for Complete {
    fn len_for(&self, tensor: &str) -> Option<u64> {
        self.0.get(tensor).copied()
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }
}

#[test]
fn every_tensor_gets_llama_cpps_type() {
    let goldens = json("fixtures/mixtures/goldens.json");
    let models = json("fixtures/mixtures/models.json");
    assert!(models.len() >= 30 && models.keys().eq(goldens.keys()));
    let mut checked = 0;
    for (name, description) in &models {
        let model = Model::of(description);
        let golden = goldens[name].as_object().unwrap();
        let complete = Complete::of(&model.tensors);
        let options = QuantOptions { allow_requantize: true, ..QuantOptions::default() };
        for (key, want) in golden.iter().filter(|(key, _)| *key != "header") {
            let (file_type, imatrix) = match key.strip_suffix("+imatrix") {
                Some(t) => (t, Some(&complete as &dyn Importance)),
                None => (key.as_str(), None),
            };
            let target = QuantName::Type(FileType::from_name(file_type).unwrap());
            let plan = QuantPlan::new(&model.metadata, &model.sources(), target, &options, imatrix);
            let lines = match plan {
                Ok(plan) => plan.decisions.iter().fold(String::new(), |mut s, d| {
                    writeln!(s, "{} {}", d.name, d.to).unwrap();
                    s
                }),
                Err(QuantPlanError::RaggedRow { .. }) => {
                    assert_eq!(want, "error", "{name} {key}");
                    continue;
                }
                // A dry run of llama.cpp's goes on without the imatrix that the real one would demand.
                Err(QuantPlanError::NeedsImatrix { .. }) if imatrix.is_none() => continue,
                Err(e) => panic!("{name} {key}: {e}"),
            };
            if short_hash(lines.as_bytes()) != *want {
                let ours = std::env::temp_dir().join("to-gguf-mixture.txt");
                std::fs::write(&ours, lines).unwrap();
                panic!(
                    "{name} {key} differs: compare {} with tests/oracle/mixture.py dump {name} {key}",
                    ours.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 1800, "only {checked} mixtures were compared");
}

#[test]
fn headers_equal_those_of_gguf_py() {
    let goldens = json("fixtures/mixtures/goldens.json");
    for (name, description) in &json("fixtures/mixtures/models.json") {
        let model = Model::of(description);
        let layout = Layout::new(&model.metadata, &model.tensors).unwrap();
        assert_eq!(short_hash(layout.header()), goldens[name]["header"], "{name}");
    }
}

/// `fixtures/reference.json` says what llama-quantize made of the fixture.
#[test]
fn the_fixture_gets_its_reference_types() {
    let reference = json("fixtures/reference.json");
    let bf16 = reference["bf16"].as_object().unwrap();
    let mut metadata = Metadata::new();
    for (key, v) in bf16["keys"].as_object().unwrap() {
        match (v[0].as_str().unwrap(), &v[1]) {
            ("u32", v) => metadata.set(key, Value::U32(v.as_u64().unwrap() as u32)),
            ("str", v) => metadata.set(key, Value::string(v.as_str().unwrap())),
            _ => {}
        }
    }
    let mut tensors = Vec::new();
    for (name, t) in bf16["tensors"].as_object().unwrap() {
        let dims: Vec<u64> = t[1].as_array().unwrap().iter().rev().map(|n| n.as_u64().unwrap()).collect();
        let kind = GgmlType::from_name(t[0].as_str().unwrap()).unwrap();
        tensors.push(TensorInfo { name: name.clone(), shape: Shape::new(dims).unwrap(), kind });
    }
    let model = Model { metadata, tensors };
    let complete = Complete::of(&model.tensors);
    let types = reference["quantized"].as_object().unwrap();
    for (key, want) in types {
        let (file_type, imatrix) = match key.strip_suffix("+imatrix") {
            Some(t) => (t, Some(&complete as &dyn Importance)),
            None => (key.as_str(), None),
        };
        let target = QuantName::Type(FileType::from_name(file_type).unwrap());
        let plan = QuantPlan::new(&model.metadata, &model.sources(), target, &QuantOptions::default(), imatrix);
        if want.is_string() {
            assert!(matches!(plan, Err(QuantPlanError::NeedsImatrix { .. })), "{key}");
            continue;
        }
        let plan = plan.unwrap();
        let got: Vec<_> = plan.decisions.iter().map(|d| (d.name.clone(), d.to.name().to_owned())).collect();
        let want: Vec<_> = want
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, t)| (name.clone(), t[0].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(got, want, "{key}");
    }
}
