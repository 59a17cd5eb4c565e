//! `layer_replication`: a model whose layers were repeated before it was trained. `[[0, 4], [2, 5]]` makes the
//! layers 0, 1, 2, 3, 2, 3, 4 of the model the layers 0 to 6 of the trained one.

use super::config::AdapterConfig;
use super::{Adapter, AdapterError, names};
use crate::recipe::Recipe;
use crate::source::TensorSet;

/// More layers than any model has: a damaged config is not followed further.
const MOST: u64 = 10_000;

/// Which layer of the model each layer of the trained model is; `None` where nothing was repeated.
fn layer_map(config: &AdapterConfig) -> Result<Option<Vec<u64>>, AdapterError> {
    const KEY: &str = "layer_replication";
    let Some(value) = config.get(KEY) else { return Ok(None) };
    let bad = || config.bad(KEY, format!("is {value}, not a list of layer ranges"));
    let mut map = Vec::new();
    for range in value.as_array().ok_or_else(bad)? {
        let [start, end] = range.as_array().map(Vec::as_slice).ok_or_else(bad)? else { return Err(bad()) };
        let (Some(start), Some(end)) = (start.as_u64(), end.as_u64()) else { return Err(bad()) };
        if end.saturating_sub(start) > MOST - map.len() as u64 {
            return Err(config.bad(KEY, format!("asks for more than {MOST} layers")));
        }
        map.extend(start..end);
    }
    Ok((!map.is_empty()).then_some(map))
}

/// A tensor's name around the number of its layer.
fn split(name: &str) -> Option<(&str, u64, &str)> {
    let canonical = names::canonical(name);
    let words = ["layers.", "h.", "encoder.layer."];
    let rest = words.iter().find_map(|w| canonical.strip_prefix(w))?;
    // The canonical form may rename what follows the number, not the number itself.
    let digits = rest.split('.').next()?;
    let number: u64 = digits.parse().ok()?;
    let needle = format!(".{digits}.");
    let at = match name.find(&needle) {
        Some(at) => at + 1,
        None => return None,
    };
    Some((&name[..at], number, &name[at + digits.len()..]))
}

/// Repeats the model's layers as the adapters ask, all in the same way. Answers which of them each new layer is.
pub(super) fn replicate(
    adapters: &[(Adapter, f32)],
    tensors: &mut TensorSet,
) -> Result<Option<Vec<u64>>, AdapterError> {
    let mut wanted: Option<(&Adapter, Option<Vec<u64>>)> = None;
    for (adapter, _) in adapters {
        let map = layer_map(&adapter.config)?;
        match &wanted {
            Some((first, other)) if *other != map => {
                return Err(AdapterError::Conflict {
                    first: first.label.clone(),
                    second: adapter.label.clone(),
                    cause: "they repeat the model's layers differently (layer_replication)".into(),
                });
            }
            _ => wanted = Some((adapter, map)),
        }
    }
    let Some((adapter, Some(map))) = wanted else { return Ok(None) };
    let count = tensors.iter().filter_map(|(name, _)| split(name)).map(|(_, n, _)| n + 1).max().unwrap_or(0);
    if let Some(missing) = map.iter().find(|n| **n >= count) {
        let cause = format!("repeats layer {missing}, but the model has {count}; use the base model it was trained on");
        return Err(adapter.config.bad("layer_replication", cause));
    }
    let mut kept = TensorSet::new();
    let mut repeated: Vec<(String, Recipe)> = Vec::new();
    for (name, recipe) in tensors.iter() {
        match split(name) {
            None => kept.set(name, recipe.clone()),
            Some((before, number, after)) => {
                let places = map.iter().enumerate().filter(|(_, n)| **n == number);
                repeated.extend(places.map(|(i, _)| (format!("{before}{i}{after}"), recipe.clone())));
            }
        }
    }
    repeated.sort_by(|a, b| a.0.cmp(&b.0));
    repeated.into_iter().for_each(|(name, recipe)| kept.set(name, recipe));
    *tensors = kept;
    Ok(Some(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_layer_is_found() {
        assert_eq!(split("model.layers.12.mlp.x.weight"), Some(("model.layers.", 12, ".mlp.x.weight")));
        assert_eq!(split("transformer.h.0.attn.c_attn.weight"), Some(("transformer.h.", 0, ".attn.c_attn.weight")));
        assert_eq!(split("vision_tower.layers.0.x.weight"), None);
        assert_eq!(split("model.norm.weight"), None);
    }
}
