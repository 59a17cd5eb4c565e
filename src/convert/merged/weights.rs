//! What each tensor of a merged model becomes, in the order in which transformers saves them.
//!
//! Names are the source's: transformers undoes on saving what it renamed on loading. What it would not write again
//! is left out: buffers that the model computes, and a second copy of tied weights.

use safetensors::Dtype;

use super::layers::{Linear, Packer, stays_f32};
use crate::quant::GgmlType;
use crate::recipe::Recipe;
use crate::report::Dropped;
use crate::save::shards::Parcel;
use crate::save::{TensorSpec, packed_specs};
use crate::shape::Shape;
use crate::source::{ModelFolder, Stored, TensorSet};

/// A tensor of the merged model.
pub(super) struct Weight {
    /// Its name.
    pub(super) name: String,
    /// What is written.
    pub(super) form: Form,
    /// The tensors of the file that it becomes.
    pub(super) specs: Vec<TensorSpec>,
    /// Which of them share a shard, see [`Parcel::group`].
    group: Option<(String, u8)>,
}

/// What is written of a tensor.
pub(super) enum Form {
    /// Its rows in a plain type.
    Plain(Recipe, GgmlType),
    /// Its rows in four bits.
    Packed(Recipe),
    /// Its bytes as they are: integers and booleans.
    Bytes(Stored),
}

/// Last words of tensors that a model computes when it is made.
const COMPUTED: [&str; 6] = ["inv_freq", "masked_bias", "position_ids", "token_type_ids", "cos_cached", "sin_cached"];

/// PyTorch's and safetensors' names of a plain type.
pub(super) fn names_of(ty: GgmlType) -> (&'static str, Dtype) {
    match ty {
        GgmlType::BF16 => ("bfloat16", Dtype::BF16),
        GgmlType::F16 => ("float16", Dtype::F16),
        _ => ("float32", Dtype::F32),
    }
}

/// The tensors of the result, in the order in which transformers saves them, and those that are left out.
pub(super) fn weights(
    base: &ModelFolder,
    tensors: &TensorSet,
    ty: GgmlType,
    packer: Option<&Packer>,
) -> (Vec<Weight>, Vec<Dropped>) {
    let model_types = model_types(base);
    let (mut weights, mut dropped) = (Vec::new(), Vec::new());
    for (name, recipe) in tensors.iter() {
        if is_computed(name, recipe.shape()) {
            let reason = "the model computes it".to_owned();
            dropped.push(Dropped { tensor: name.to_owned(), reason });
            continue;
        }
        let stored = base.stored(name).filter(|s| !is_float(s.dtype()));
        let plain = |ty: GgmlType| TensorSpec::new(name, names_of(ty).1, recipe.shape().dims());
        let linear = packer.and_then(|p| p.linear(name, recipe.shape()));
        let (form, specs) = match (stored, linear) {
            (Some(stored), _) => {
                let spec = TensorSpec::new(name, stored.dtype(), stored.shape().dims());
                (Form::Bytes(stored.clone()), vec![spec])
            }
            (None, Some(linear)) if recipe.shape().elements() > 0 => {
                let recipe = match linear {
                    Linear::Straight => recipe.clone(),
                    // A matrix can always be transposed.
                    Linear::Transposed => recipe.clone().transposed().unwrap_or_else(|_| recipe.clone()),
                };
                let specs = packed_specs(name, recipe.shape(), names_of(ty).0).to_vec();
                (Form::Packed(recipe), specs)
            }
            _ => {
                let kept = model_types.iter().any(|t| stays_f32(name, t, ty == GgmlType::F16));
                let ty = if kept { GgmlType::F32 } else { ty };
                (Form::Plain(recipe.clone(), ty), vec![plain(ty)])
            }
        };
        weights.push(Weight { name: name.to_owned(), form, specs, group: group(name) });
    }
    weights.sort_by_cached_key(|w| order(&w.name));
    (weights, dropped)
}

/// The shares of shards that all tensors of the weights take, in order.
pub(super) fn parcels(weights: &[Weight]) -> Vec<Parcel> {
    let mut groups = indexmap::IndexSet::new();
    let mut parcels = Vec::new();
    for weight in weights {
        let group = weight.group.as_ref().filter(|_| weight.specs.len() == 1).map(|g| groups.insert_full(g).0);
        parcels.extend(weight.specs.iter().map(|s| Parcel { bytes: s.bytes(), group }));
    }
    parcels
}

/// `model_type` of the model and of its language model.
fn model_types(base: &ModelFolder) -> Vec<&str> {
    let config = base.config();
    [&config["model_type"], &config["text_config"]["model_type"]].into_iter().filter_map(|v| v.as_str()).collect()
}

fn is_float(dtype: Dtype) -> bool {
    !matches!(
        dtype,
        Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::I64
            | Dtype::U64
    )
}

/// Whether a tensor is a buffer that older versions of a library saved: frequencies, masks (a bias of four
/// dimensions), positions.
fn is_computed(name: &str, shape: &Shape) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    COMPUTED.contains(&last) || (last == "bias" && shape.ndim() == 4)
}

/// The matrices of one expert, by the stacked parameter that they are a part of in memory and their number there.
const EXPERT: [(&str, &str, u8); 6] = [
    ("gate_proj", "gate_up_proj", 0),
    ("w1", "gate_up_proj", 0),
    ("up_proj", "gate_up_proj", 1),
    ("w3", "gate_up_proj", 1),
    ("down_proj", "down_proj", 0),
    ("w2", "down_proj", 0),
];

/// A tensor of one expert of many: the name of their stack in memory, its part of it, and the expert's number.
fn of_expert(name: &str) -> Option<(String, u8, u64)> {
    let (before, rest) = name.split_once(".experts.")?;
    let (number, leaf) = rest.strip_suffix(".weight")?.split_once('.')?;
    let (_, stack, part) = EXPERT.iter().find(|(piece, ..)| *piece == leaf)?;
    Some((format!("{before}.experts.{stack}"), *part, number.parse().ok()?))
}

/// When saved, the experts of a stack are views of one half of it.
fn group(name: &str) -> Option<(String, u8)> {
    of_expert(name).map(|(stack, part, _)| (stack, part))
}

/// A word of a name, as transformers sorts them: numbers by value and before words; a number at a word's end by
/// value too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Number(u64),
    Text(String, Option<u64>),
}

/// Words that files and memory name differently, where it matters for the order.
const MEMORY: [(&str, &str); 2] = [("block_sparse_moe", "mlp"), ("embed_out", "lm_head")];

/// The order of a tensor in the saved state (`dot_natural_key`), by its name in memory.
fn order(name: &str) -> (Vec<Word>, u8, u64) {
    let (memory, part, expert) = of_expert(name).unwrap_or_else(|| (name.to_owned(), 0, 0));
    let words = memory.split('.').map(|word| {
        let word = MEMORY.iter().find(|(file, _)| *file == word).map_or(word, |(_, memory)| memory);
        let text = word.trim_end_matches(|c: char| c.is_ascii_digit());
        match word[text.len()..].parse() {
            Ok(number) if text.is_empty() => Word::Number(number),
            number => Word::Text(text.to_owned(), number.ok()),
        }
    });
    (words.collect(), part, expert)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_in_the_order_of_the_saved_state() {
        let sorted = [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.layers.2.block_sparse_moe.experts.0.w2.weight",
            "model.layers.2.block_sparse_moe.experts.10.w2.weight",
            "model.layers.2.block_sparse_moe.experts.0.w1.weight",
            "model.layers.2.block_sparse_moe.experts.10.w1.weight",
            "model.layers.2.block_sparse_moe.experts.0.w3.weight",
            "model.layers.2.block_sparse_moe.gate.weight",
            "model.layers.2.self_attn.q_proj.weight",
            "model.layers.2.self_attn.q_proj.weight.absmax",
            "model.layers.10.input_layernorm.weight",
            "model.norm.weight",
        ];
        for pair in sorted.windows(2) {
            assert!(order(pair[0]) < order(pair[1]), "{} before {}", pair[0], pair[1]);
        }
        assert!(order("x.fc2.weight") < order("x.fc11.weight"));
        assert_eq!(group(sorted[2]), group(sorted[3]));
        assert_ne!(group(sorted[4]), group(sorted[6]));
    }

    #[test]
    fn buffers_of_old_files_are_no_weights() {
        let mask = Shape::new([1, 1, 4, 4]).unwrap();
        assert!(is_computed("h.0.attn.bias", &mask));
        assert!(!is_computed("h.0.attn.c_attn.bias", &Shape::vector(4)));
        assert!(is_computed("model.layers.0.self_attn.rotary_emb.inv_freq", &Shape::vector(4)));
    }
}
