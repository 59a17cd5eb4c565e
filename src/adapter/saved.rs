//! Tensors of the model itself in an adapter's file: modules that were trained whole (`modules_to_save`, biases),
//! embeddings of a resized vocabulary, and single retrained rows (`trainable_token_indices`).

use std::ops::Range;

use serde_json::Value;

use super::AdapterError;
use super::change::{Effect, Rewrite};
use super::contents::{Module, Saved, Tensor};
use super::draft::{Context, Edit, REPLACED, Target};
use super::{lora, names};
use crate::recipe::{ReadError, Recipe, Scratch, Term};

/// The tensor as the adapter brings it.
pub(super) struct Replace {
    pub(super) tensor: Recipe,
    /// Whether it is PEFT's copy of a tensor that was frozen in training: what lies beneath the factors of an
    /// embedding or a head is saved with them.
    pub(super) frozen: bool,
}

impl Rewrite for Replace {
    fn rows(&self, _: &Recipe, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.tensor.rows(rows, values, scratch)
    }

    /// Nothing, where the tensor is the model's own.
    fn terms(&self, base: &Recipe) -> Option<Vec<Term>> {
        let same = base.shape() == self.tensor.shape();
        let unchanged = same && (self.frozen || base.equals(&self.tensor).unwrap_or(false));
        unchanged.then(Vec::new)
    }
}

/// Plans a tensor that replaces one of the model's.
pub(super) fn replace(saved: Saved, cx: &mut Context) -> Result<(), AdapterError> {
    let Saved { module, leaf, tensor } = saved;
    let mut target = match cx.find(&module, &leaf)? {
        Some(target) => target,
        None if leaf == "bias" || leaf == "weight" => return Err(cx.no_such_module(&module, &leaf, &tensor.name)),
        None => {
            return Err(AdapterError::Unconsumed {
                adapter: cx.label.to_string(),
                tensor: tensor.name,
                others: 0,
                hint: "it is no parameter of any known kind of adapter and no tensor of the model".into(),
            });
        }
    };
    let is_vocabulary = names::is_embedding(&module) || names::is_head(&module);
    let resized = target.shape() != tensor.recipe.shape();
    if resized {
        resize(&mut target, &tensor, is_vocabulary, cx)?;
    }
    let frozen = !resized && tensor.name.contains(".base_layer.") && leaf == "weight";
    let effect = Effect::Rewrites(Box::new(Replace { tensor: tensor.recipe.clone(), frozen }));
    let edit = Edit::new(REPLACED, None, &[&tensor], effect);
    cx.edit(&target, &module, edit);
    Ok(())
}

/// A vocabulary that grew keeps the model's rows and starts the new ones from the adapter's; one that shrank
/// loses its last rows.
fn resize(target: &mut Target, tensor: &Tensor, is_vocabulary: bool, cx: &mut Context) -> Result<(), AdapterError> {
    let (old, new) = (target.shape().dims(), tensor.dims());
    let fits = is_vocabulary && !old.is_empty() && old.len() == new.len() && old.len() <= 2 && old[1..] == new[1..];
    if !fits {
        let needs = if is_vocabulary {
            format!("rows of {}", target.shape().row_len())
        } else {
            "exactly its shape".to_string()
        };
        return Err(cx.mismatch(tensor, target, needs));
    }
    let (old, new) = (old[0], new[0]);
    let rows = target.recipe.clone().slice(0, old.min(new))?;
    target.recipe =
        if new > old { Recipe::concat(vec![rows, tensor.recipe.clone().slice(old, new - old)?])? } else { rows };
    cx.resize(&target.name, target.recipe.clone());
    Ok(())
}

/// Plans LN tuning: whole norms, trained, under the wrapper's own name.
pub(super) fn ln_tuning(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    for (part, leaf) in [("ln_tuning_layers", "weight"), ("ln_tuning_layers.bias", "bias")] {
        if let Some(tensor) = module.take(part) {
            replace(Saved { module: module.name.clone(), leaf: leaf.into(), tensor }, cx)?;
        }
    }
    cx.nothing_left(&module)
}

/// Plans BEFT: a trained addend `[1, out]` of a layer's bias.
pub(super) fn beft(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let addend = module.need("beft_bias", "other parameters", cx.label)?;
    lora::bias(&module.name, addend, 1.0, "BEFT", cx)?;
    cx.nothing_left(&module)
}

/// Single rows of an embedding, retrained.
struct TokenRows {
    /// Row numbers in order, with the row of `values` that each gets.
    rows: Vec<(u64, u64)>,
    values: Recipe,
}

impl Rewrite for TokenRows {
    fn rows(&self, _: &Recipe, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let cols = self.values.shape().row_len() as usize;
        let first = self.rows.partition_point(|(row, _)| *row < rows.start);
        for &(row, from) in self.rows[first..].iter().take_while(|(row, _)| *row < rows.end) {
            let at = (row - rows.start) as usize * cols;
            self.values.rows(from..from + 1, &mut values[at..at + cols], scratch)?;
        }
        Ok(())
    }
}

/// Plans `token_adapter.trainable_tokens_delta` of `module`: rows that replace the embedding's, at the indices
/// that the config lists. The head of a tied model shares them.
pub(super) fn trainable_tokens(module: &str, tensor: Tensor, cx: &mut Context) -> Result<(), AdapterError> {
    let target = cx.target(module, "weight", &tensor.name)?;
    let key = if cx.config.get("token_indices").is_some() { "token_indices" } else { "trainable_token_indices" };
    let indices = token_indices(module, key, cx)?;
    let [rows, cols] = target.shape().dims() else {
        return Err(cx.mismatch(&tensor, &target, "a matrix"));
    };
    if tensor.dims() != [indices.len() as u64, *cols] {
        return Err(cx.mismatch(&tensor, &target, format!("{} rows of {cols}, as {key} lists", indices.len())));
    }
    let mut places: Vec<(u64, u64)> = indices.iter().copied().zip(0..).collect();
    places.sort_unstable();
    if let Some(&(last, _)) = places.last().filter(|(last, _)| last >= rows) {
        return Err(cx.config.bad(key, format!("lists token {last}, but {} has {rows} rows", target.name)));
    }
    if let Some(twice) = places.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(cx.config.bad(key, format!("lists token {} twice", twice[0].0)));
    }
    let effect = Effect::Rewrites(Box::new(TokenRows { rows: places, values: tensor.recipe.clone() }));
    cx.edit(&target, module, Edit::new(TOKENS, Some(indices.len() as u64), &[&tensor], effect));
    Ok(())
}

/// The kind of change that retrained rows make.
pub(super) const TOKENS: &str = "trained tokens";

/// The indices of a module's rows: a list, or a table by module name.
fn token_indices(module: &str, key: &str, cx: &Context) -> Result<Vec<u64>, AdapterError> {
    let config = cx.config;
    let list = match config.get(key) {
        Some(Value::Array(list)) => list,
        Some(Value::Object(table)) => {
            let fits = |name: &str| module == name || module.ends_with(&format!(".{name}"));
            match table.iter().find(|(name, _)| fits(name)) {
                Some((_, Value::Array(list))) => list,
                _ => return Err(config.bad(key, format!("has no list for {module}"))),
            }
        }
        Some(other) => return Err(config.bad(key, format!("is {other}, not a list of token ids"))),
        None => return Err(config.bad(key, format!("is missing, but the file has rows of {module}"))),
    };
    list.iter().map(|v| v.as_u64().ok_or_else(|| config.bad(key, format!("lists {v}, which is no token id")))).collect()
}
