//! What an adapter's file holds, by module: every tensor is taken by the rule that understands it, and what is
//! left at the end is an error that names it.

use indexmap::IndexMap;

use super::AdapterError;
use super::keys::{Key, Part};
use crate::recipe::Recipe;
use crate::source::TensorSet;

/// A tensor of the adapter's file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    /// Its name in the file.
    pub(super) name: String,
    /// Its values.
    pub(super) recipe: Recipe,
}

impl Tensor {
    /// Dimensions, slowest first.
    pub(super) fn dims(&self) -> &[u64] {
        self.recipe.shape().dims()
    }
}

/// The adapter's parameters for one module, not yet taken.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// The module as the adapter names it.
    pub(super) name: String,
    /// How many wrappers lie beneath this one (`base_layer` in the name).
    pub(super) depth: usize,
    parts: IndexMap<String, Tensor>,
}

impl Module {
    /// Takes a parameter.
    pub(super) fn take(&mut self, part: &str) -> Option<Tensor> {
        self.parts.shift_remove(part)
    }

    /// A parameter, left where it is.
    pub(super) fn peek(&self, part: &str) -> Option<&Tensor> {
        self.parts.get(part)
    }

    /// Whether a parameter is there.
    pub(super) fn has(&self, part: &str) -> bool {
        self.parts.contains_key(part)
    }

    /// Takes `part`, which another, `has`, cannot do without.
    pub(super) fn need(&mut self, part: &str, has: &str, adapter: &str) -> Result<Tensor, AdapterError> {
        self.take(part).ok_or_else(|| AdapterError::Missing {
            adapter: adapter.to_string(),
            module: self.name.clone(),
            has: has.to_string(),
            needs: part.to_string(),
        })
    }

    /// The names of the parameters that nobody has taken.
    pub(super) fn rest(&self) -> impl Iterator<Item = &Tensor> {
        self.parts.values()
    }
}

/// A tensor of the model itself that the adapter's file holds.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    /// The module as the adapter names it.
    pub(super) module: String,
    /// `weight` or `bias`.
    pub(super) leaf: String,
    /// The tensor.
    pub(super) tensor: Tensor,
}

/// All of the adapter's file, sorted by module.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    /// Parameters by module and depth, in file order.
    pub(super) modules: Vec<Module>,
    /// Tensors of the model itself.
    pub(super) saved: Vec<Saved>,
    /// Parameters that belong to no module, since all share them.
    pub(super) shared: IndexMap<String, Tensor>,
    /// The adapters' names that the file still has.
    pub(super) names: Vec<String>,
    /// The one of them that this is.
    pub(super) wanted: Option<String>,
    /// All tensors of the file, in its order.
    pub(super) file: Vec<Tensor>,
}

impl Contents {
    /// Sorts the tensors of a file. Where names of several adapters are left in it, `adapter` says which is
    /// wanted; the others' tensors are not looked at.
    pub(super) fn sort(tensors: &TensorSet, label: &str, adapter: Option<&str>) -> Result<Self, AdapterError> {
        let keys: Vec<(Key, Tensor)> = tensors
            .iter()
            .map(|(name, recipe)| (Key::parse(name), Tensor { name: name.to_string(), recipe: recipe.clone() }))
            .collect();
        let mut names: Vec<String> = keys.iter().filter_map(|(k, _)| k.adapter.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let wanted = match (adapter, names.as_slice()) {
            (Some(name), all) if all.iter().any(|n| n == name) => Some(name.to_string()),
            (_, []) => None,
            (_, [one]) => Some(one.clone()),
            (_, several) if several.iter().any(|n| n == "default") => Some("default".to_string()),
            (_, several) => {
                return Err(AdapterError::Unfit {
                    adapter: label.to_string(),
                    what: "its file".into(),
                    cause: format!("holds several adapters ({}); name one of them, as FOLDER/NAME", several.join(", ")),
                });
            }
        };
        let mut modules: IndexMap<(String, usize), Module> = IndexMap::new();
        let mut saved: IndexMap<(String, String), Saved> = IndexMap::new();
        let mut copies = Vec::new();
        for (key, tensor) in keys {
            if key.adapter.is_some() && key.adapter != wanted {
                continue;
            }
            let twice = |first: &Tensor| AdapterError::Unfit {
                adapter: label.to_string(),
                what: format!("tensor {}", tensor.name),
                cause: format!("is the same as {}; remove one of them", first.name),
            };
            match key.part {
                Part::Original(_) => {}
                Part::Copy(leaf) => copies.push(Saved { module: key.module, leaf, tensor }),
                Part::Parameter(part) => {
                    let module = modules.entry((key.module.clone(), key.depth)).or_insert_with(|| Module {
                        name: key.module,
                        depth: key.depth,
                        parts: IndexMap::new(),
                    });
                    if let Some(first) = module.parts.get(&part) {
                        return Err(twice(first));
                    }
                    module.parts.insert(part, tensor);
                }
                Part::Saved(leaf) => {
                    let place = (key.module.clone(), leaf.clone());
                    if let Some(first) = saved.get(&place) {
                        return Err(twice(&first.tensor));
                    }
                    saved.insert(place, Saved { module: key.module, leaf, tensor });
                }
            }
        }
        for copy in copies {
            saved.entry((copy.module.clone(), copy.leaf.clone())).or_insert(copy);
        }
        let shared = modules.shift_remove(&(String::new(), 0)).map(|m| m.parts).unwrap_or_default();
        let (modules, saved) = (modules.into_values().collect(), saved.into_values().collect());
        let file = tensors.iter().map(|(name, recipe)| Tensor { name: name.into(), recipe: recipe.clone() }).collect();
        Ok(Contents { modules, saved, shared, names, wanted, file })
    }
}
