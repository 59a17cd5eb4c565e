//! Blocks with a factor of their own (NVFP4): the factor becomes a tensor beside them.
//!
//! `X.weight` stays what its library packed, `X.scale` is the factor of the matrix, or one for each of a stack, and
//! `X.input_scale` that of its inputs; neither is written where it is 1 (`ModelBase._generate_nvfp4_tensors` of the
//! converter). All of them stand before the other tensors.

use std::collections::HashMap;

use super::claim::Claimed;
use super::config::Config;
use super::error::ArchError;
use super::stored::{ConvertedTensor, Stored};
use crate::gguf::{Array, Metadata, Value};
use crate::recipe::{BlockFactors, Recipe};
use crate::shape::Shape;
use crate::source::TensorSet;

/// Where the weight's factor, and that of its inputs, stand.
pub fn factor_names(weight: &str) -> [String; 2] {
    ["scale", "input_scale"].map(|name| match weight.strip_suffix("weight") {
        Some(stem) => format!("{stem}{name}"),
        None => format!("{weight}.{name}"),
    })
}

/// Parts blocks from their factors, and puts them first.
pub(super) fn part(claimed: &mut Claimed, config: &Config, source: &TensorSet) -> Result<(), ArchError> {
    let is_blocks = |t: &ConvertedTensor| t.recipe.factored().is_some();
    if !claimed.tensors.iter().any(is_blocks) {
        return Ok(());
    }
    // The converter writes a stack when it has met as many experts as the config tells, else after all others.
    let experts_are_told = config.uint(&["num_local_experts", "num_experts"])?.is_some_and(|n| n > 0);
    let places: HashMap<&str, usize> = source.iter().enumerate().map(|(i, (name, _))| (name, i)).collect();
    let (mut blocks, others): (Vec<_>, Vec<_>) = claimed.tensors.drain(..).partition(is_blocks);
    blocks.sort_by_key(|t| {
        let met = t.source.iter().filter_map(|s| places.get(s.as_str()).copied());
        let waits = t.source.len() > 1 && !experts_are_told;
        (waits, if waits { met.min() } else { met.max() })
    });
    for mut tensor in blocks {
        let Some(parted) = tensor.recipe.factored() else { continue };
        if parted.factors.iter().any(|f| f.wide_inputs) {
            claimed.wide_inputs.push(tensor.name.clone());
        }
        tensor.whole = Some(tensor.recipe);
        tensor.recipe = parted.blocks;
        if let Some(kind) = tensor.recipe.native() {
            tensor.stored = Stored::Fixed(kind);
        }
        let [weight, input] = factor_names(&tensor.name);
        claimed.tensors.push(tensor);
        let factors = |f: fn(&BlockFactors) -> f32| parted.factors.iter().map(f).collect::<Vec<f32>>();
        for (name, values) in [(weight, factors(|f| f.weight)), (input, factors(|f| f.input))] {
            if is_one(&values) {
                continue;
            }
            let recipe = Recipe::constant(Shape::vector(values.len() as u64), values)
                .map_err(|source| ArchError::Shape { name: name.clone(), source })?;
            let stored = Stored::of(&name, recipe.shape());
            claimed.tensors.push(ConvertedTensor { name, recipe, stored, source: Vec::new(), whole: None });
        }
    }
    claimed.tensors.extend(others);
    Ok(())
}

/// Whether multiplying by the factors can be left out: the converter's tolerances, for one and for several.
fn is_one(factors: &[f32]) -> bool {
    let distance = |f: f32| (f64::from(f) - 1.0).abs();
    match factors {
        [one] => distance(*one) < 1e-6,
        several => several.iter().all(|&f| distance(f) <= 1e-6 + 1e-5),
    }
}

/// Says of which tensors the inputs are not to be rounded to four bits.
pub(super) fn write_wide_inputs(names: &[String], metadata: &mut Metadata) {
    if names.is_empty() {
        return;
    }
    let mut names = names.to_vec();
    names.sort_unstable();
    let allowed = vec![false; names.len()];
    metadata.set("general.tensor_extra.name", Value::strings(names));
    metadata.set("general.tensor_extra.prec_a4", Value::Array(Array::Bool(allowed)));
}
