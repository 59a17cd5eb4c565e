//! NVIDIA ModelOpt: FP8 and NVFP4.
//!
//! FP8: `w = q * scale`, both in the model's type, rounded once. NVFP4: E2M1 pairs, the low nibble first, an E4M3
//! scale per 16 elements and one f32 factor `weight_scale_2` per tensor, which multiplies:
//! `w = round(E2M1[q] * f32(scale * scale_2))`. Equals `FP8QTensor` and `NVFP4QTensor` exactly.

use std::collections::HashMap;

use safetensors::Dtype;
use serde_json::Value;

use super::fields::e2m1_pairs;
use super::grid::{Adjust, Codes, Grid, Scales};
use super::nvfp4::Nvfp4;
use super::rounded::Rounded;
use super::{Shelf, SourceError, Stored, read_json};
use crate::quant::GgmlType;
use crate::recipe::BlockFactors;

/// What activations and caches leave behind.
const IGNORED: [&str; 5] = [".input_scale", ".k_scale", ".v_scale", ".output_scale", "._amax"];

/// Unpacks every weight that has a scale.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for (ending, what) in
        [(".pre_quant_scale", "inputs that are scaled first"), (".svdquant_lora_a", "SVDQuant factors")]
    {
        if let Some(module) = shelf.bases(ending).first() {
            return Err(shelf.wrong(module, format!("needs {what} ({ending}), which a weight alone cannot hold")));
        }
    }
    let algorithms = Algorithms::read(shelf)?;
    let model = shelf.model;
    for module in shelf.bases(".weight_scale") {
        let name = format!("{module}.weight");
        let scale = shelf.need(&format!("{name}_scale"), &name)?;
        let factor = shelf.take(&format!("{name}_scale_2"));
        let codes = shelf.need(&name, &name)?;
        let mut dims = codes.shape().dims().to_vec();
        match (codes.dtype(), factor) {
            (Dtype::F8_E4M3, None) => {
                let shape = shelf.shape(&name, dims)?;
                let fit = || Scales::fit(shelf, &name, &shape, scale.clone(), None);
                let (rounded, plain) = (fit()?.adjusted(Adjust::Round(model)), fit()?);
                let grid = |scales| Grid::new(shape.clone(), Codes::Elements(codes.clone()), scales, GgmlType::F32);
                let both = Rounded::beside(grid(rounded), grid(plain), model);
                shelf.put(&name, &name, both)?;
            }
            (Dtype::U8, Some(factor)) => {
                if let Some(last) = dims.last_mut() {
                    *last = last.saturating_mul(2);
                }
                let shape = shelf.shape(&name, dims)?;
                if factor.shape().elements() != 1 && factor.shape().elements() != shape.dims()[0] {
                    return Err(shelf.wrong(&name, format!("weight_scale_2 has shape {}", factor.shape())));
                }
                let Some(bytes) = codes.as_bytes() else { return Err(shelf.wrong(&name, "is a strided view")) };
                let input = shelf.take(&format!("{module}.input_scale"));
                let read = |factor: &Stored| shelf.read(&name, factor.read_all_floats());
                let input = input.map(|i| read(&i)).transpose()?.unwrap_or(vec![1.0]);
                let factors = match (&read(&factor)?[..], &input[..]) {
                    (&[weight], &[input]) => {
                        Some(BlockFactors { weight, input, wide_inputs: algorithms.keeps_inputs(&module) })
                    }
                    _ => None,
                };
                let scales =
                    Scales::fit(shelf, &name, &shape, scale.clone(), Some((1, 16)))?.adjusted(Adjust::Times(factor));
                let grid = Grid::new(shape, Codes::Pairs(bytes.clone(), e2m1_pairs()), scales, model);
                shelf.put(&name, &name, Nvfp4::new(grid, bytes, scale, factors))?;
            }
            (dtype, _) => {
                return Err(shelf.wrong(&name, format!("weights of type {dtype} are not read, only FP8 and NVFP4")));
            }
        }
    }
    shelf.drop_ending(&IGNORED);
    Ok(())
}

/// Which algorithm quantized which layers, as the converter finds it (`ModelBase.prepare_tensors`).
struct Algorithms {
    whole: Option<String>,
    layers: HashMap<String, String>,
}

impl Algorithms {
    /// From the model's configuration; from the file that ModelOpt writes beside it where that says too little.
    fn read(shelf: &Shelf) -> Result<Self, SourceError> {
        let text = |v: &Value| v.get("quant_algo").and_then(Value::as_str).map(str::to_string);
        let layers = |v: &Value| -> HashMap<String, String> {
            let listed = v.get("quantized_layers").and_then(Value::as_object).into_iter().flatten();
            listed.filter_map(|(layer, entry)| Some((plain_name(layer), text(entry)?))).collect()
        };
        let mut found = Algorithms { whole: text(&shelf.config), layers: layers(&shelf.config) };
        let file = shelf.folder.join("hf_quant_config.json");
        if (found.whole.is_none() || found.layers.is_empty()) && file.is_file() {
            let beside = read_json(&file)?;
            if let Some(told) = beside.get("quantization") {
                found.whole = text(told).or(found.whole);
                let told = layers(told);
                found.layers = if told.is_empty() { found.layers } else { told };
            }
        }
        Ok(found)
    }

    /// Whether the module's inputs stay in 16 bits: what is said of it, of what it is part of, or of the whole model.
    /// Experts are asked for as the stack that they become.
    fn keeps_inputs(&self, module: &str) -> bool {
        let mut name = stack_of(&plain_name(module));
        let said = loop {
            if let Some(algorithm) = self.layers.get(&name) {
                break Some(algorithm);
            }
            match name.rfind('.') {
                Some(at) => name.truncate(at),
                None => break self.whole.as_ref(),
            }
        };
        said.is_some_and(|algorithm| algorithm == "W4A16_NVFP4")
    }
}

/// A module's name as a text model has it.
fn plain_name(module: &str) -> String {
    module.replace("language_model.", "")
}

/// `model.layers.3.mlp.experts.gate_proj` for `..experts.7.gate_proj` of that layer; other names as they are.
fn stack_of(module: &str) -> String {
    let stacked = || {
        let (head, tail) = module.split_once(".experts.")?;
        let (expert, projection) = tail.split_once('.')?;
        let (_, layer) = head.split_once(".layers.")?;
        let layer = layer.split('.').next()?;
        let numbers = [expert, layer].iter().all(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let known = ["gate_proj", "up_proj", "down_proj"].contains(&projection);
        (numbers && known).then(|| format!("model.layers.{layer}.mlp.experts.{projection}"))
    };
    stacked().unwrap_or_else(|| module.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_nearest_part_decides() {
        let layers = [("model.layers.0", "W4A16_NVFP4"), ("model.layers.0.mlp", "NVFP4")];
        let layers = layers.map(|(l, a)| (l.to_string(), a.to_string())).into();
        let algorithms = Algorithms { whole: Some("W4A16_NVFP4".into()), layers };
        let keeps = |m| algorithms.keeps_inputs(m);
        assert!(keeps("model.layers.0.self_attn.q_proj") && keeps("model.language_model.layers.0.self_attn.q_proj"));
        assert!(!keeps("model.layers.0.mlp.up_proj") && keeps("model.layers.1.mlp.up_proj") && keeps("lm_head"));
        assert!(!keeps("model.layers.0.feed.experts.3.up_proj"));
    }
}
