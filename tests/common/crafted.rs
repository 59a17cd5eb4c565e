//! The fixture's adapter, changed.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::fixture;

/// Shapes and values by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A module of the adapter, as its file names it.
pub const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// The fixture's adapter, changed by `change`, in a folder of its own.
pub fn crafted(change: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let text = std::fs::read_to_string(fixture("shakespeare-lora/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(fixture("shakespeare-lora/adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, t)| {
            let values = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            (name.to_string(), (t.shape().to_vec(), values))
        })
        .collect();
    change(&mut config, &mut tensors);
    let folder = TempDir::new().unwrap();
    save(folder.path(), &config, &tensors);
    folder
}

/// Writes an adapter folder's two files.
pub fn save(folder: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes: BTreeMap<&String, (&Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(n, (s, v))| (n, (s, v.iter().flat_map(|x| x.to_le_bytes()).collect()))).collect();
    let views = bytes.iter().map(|(n, (s, b))| (n, TensorView::new(Dtype::F32, s.to_vec(), b).unwrap()));
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Gives a tensor another name.
pub fn rename(tensors: &mut Tensors, from: &str, to: &str) {
    let tensor = tensors.remove(from).unwrap();
    tensors.insert(to.to_string(), tensor);
}
