//! An adapter as PEFT saves it: settings, and tensors under the names that its file has.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::contents::Tensor;
use super::keys::{self, Key, Part};
use super::names;
use super::{Adapter, AdapterError};
use crate::recipe::Recipe;
use crate::source::TensorSet;

/// An adapter that is ready to be written as a folder.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    /// `adapter_config.json`.
    pub settings: Map<String, Value>,
    /// Tensors under their names in the file.
    pub tensors: IndexMap<String, PeftTensor>,
}

/// Where the values of a tensor come from.
#[derive(Clone, Debug)]
pub enum PeftTensor {
    /// The tensor of this name in the adapter's own file, as it is.
    Stored(String, Recipe),
    /// Computed, or read from the base; in f32 unless its precision says otherwise.
    Values(Recipe),
}

impl PeftTensor {
    /// Its values.
    pub fn recipe(&self) -> &Recipe {
        match self {
            PeftTensor::Stored(_, recipe) | PeftTensor::Values(recipe) => recipe,
        }
    }
}

impl Adapter {
    /// The adapter as it is, under the names that PEFT gives it today: without the words of wrappers and without its
    /// own name. Other adapters in the same file are left out.
    pub fn resaved(&self) -> PeftAdapter {
        let mut tensors: IndexMap<String, PeftTensor> = IndexMap::new();
        let mut copies = Vec::new();
        for Tensor { name, recipe } in &self.contents.file {
            let key = Key::parse(name);
            let stored = PeftTensor::Stored(name.clone(), recipe.clone());
            if key.adapter.is_some() && key.adapter != self.contents.wanted {
                continue;
            }
            let saved = keys::saved_name(name);
            match key.part {
                Part::Original(_) => {}
                Part::Copy(_) => copies.push((saved, stored)),
                _ => drop(tensors.insert(saved, stored)),
            }
        }
        for (saved, copy) in copies {
            tensors.entry(saved).or_insert(copy);
        }
        PeftAdapter { settings: self.config.settings().clone(), tensors }
    }
}

/// The embedding and the head of a model, as adapters name them, with their weights.
#[derive(Clone, Debug)]
pub struct EmbeddingLayers {
    layers: Vec<(String, Recipe)>,
}

impl EmbeddingLayers {
    /// Finds them in a model; a tied head has the embedding's weight.
    pub fn of(base: &TensorSet, tied: bool) -> Self {
        let found = names::Names::new(base);
        let layer = |name: &str| Some((name.strip_suffix(".weight")?.to_owned(), base.get(name)?.clone()));
        let embedding = found.embedding().and_then(layer);
        let head = match found.head() {
            Some(head) => layer(head),
            None => embedding.clone().filter(|_| tied).map(|(name, recipe)| {
                let head = super::draft::head_of(&format!("{name}.weight"));
                (head.trim_end_matches(".weight").to_owned(), recipe)
            }),
        };
        EmbeddingLayers { layers: embedding.into_iter().chain(head).collect() }
    }
}

/// What saving the embedding layers changed, for the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingChanges {
    /// Layers that were added from the base.
    pub added: Vec<String>,
    /// Tensors that were left out.
    pub removed: Vec<String>,
}

impl PeftAdapter {
    /// Whether PEFT's rule for `save_embedding_layers="auto"` says yes: the adapter targets the embedding or the
    /// head, or brings a vocabulary of another size than the base's.
    pub fn saves_embeddings(&self, base: Option<&EmbeddingLayers>) -> bool {
        let tokens = self.settings.get("trainable_token_indices").is_some_and(|v| !v.is_null());
        let targeted = self.tensors.keys().any(|name| {
            let key = Key::parse(name);
            matches!(key.part, Part::Parameter(ref p) if p.starts_with("lora_")) && is_embedding_layer(&key.module)
        });
        (targeted && !tokens) || base.is_some_and(|base| self.resizes(base))
    }

    fn resizes(&self, base: &EmbeddingLayers) -> bool {
        base.layers.iter().any(|(module, weight)| {
            self.saved_weight(module).is_some_and(|saved| saved.recipe().shape().rows() != weight.shape().rows())
        })
    }

    /// The saved weight of a module, however its name is wrapped.
    fn saved_weight(&self, module: &str) -> Option<&PeftTensor> {
        let wanted = names::canonical(module);
        let holds = |name: &str| {
            let key = Key::parse(name);
            matches!(key.part, Part::Saved(ref leaf) if leaf == "weight") && names::canonical(&key.module) == wanted
        };
        self.tensors.iter().find(|(name, _)| holds(name)).map(|(_, tensor)| tensor)
    }

    /// Adds the weights of the embedding and the head that are missing, as PEFT does: of both where the adapter
    /// targets neither, otherwise of those that it targets.
    pub fn add_embeddings(&mut self, base: &EmbeddingLayers) -> EmbeddingChanges {
        let targets = |module: &str, tensors: &IndexMap<String, PeftTensor>| {
            let wanted = names::canonical(module);
            tensors
                .keys()
                .map(|name| Key::parse(name))
                .any(|key| matches!(key.part, Part::Parameter(_)) && names::canonical(&key.module) == wanted)
        };
        let any = base.layers.iter().any(|(module, _)| targets(module, &self.tensors));
        let mut changes = EmbeddingChanges::default();
        for (module, weight) in &base.layers {
            let targeted = targets(module, &self.tensors);
            if (any && !targeted) || self.saved_weight(module).is_some() {
                continue;
            }
            // The name under which the adapter knows the module, where it does.
            let known = self.tensors.keys().map(|name| Key::parse(name).module);
            let wanted = names::canonical(module);
            let module = known.into_iter().find(|m| names::canonical(m) == wanted).unwrap_or_else(|| module.clone());
            let layer = if targeted { "base_layer." } else { "" };
            let name = format!("base_model.model.{module}.{layer}weight");
            self.tensors.insert(name, PeftTensor::Values(weight.clone()));
            changes.added.push(module);
        }
        changes
    }

    /// Leaves out the weights of the embedding and the head, unless they were trained as `modules_to_save`.
    pub fn drop_embeddings(&mut self) -> EmbeddingChanges {
        let kept: Vec<String> = match self.settings.get("modules_to_save") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let mut changes = EmbeddingChanges::default();
        self.tensors.retain(|name, _| {
            let key = Key::parse(name);
            let trained = kept.iter().any(|k| key.module == *k || key.module.ends_with(&format!(".{k}")));
            let goes = matches!(key.part, Part::Saved(_)) && is_embedding_layer(&key.module) && !trained;
            if goes {
                changes.removed.push(name.clone());
            }
            !goes
        });
        changes
    }
}

fn is_embedding_layer(module: &str) -> bool {
    names::is_embedding(module) || names::is_head(module)
}

/// Fails where an adapter is of a kind that is not a plain LoRA.
pub(super) fn only_lora(adapter: &Adapter) -> Result<(), AdapterError> {
    match adapter.config.kind()?.as_str() {
        "LORA" => Ok(()),
        other => Err(not_combinable(adapter, format!("an adapter of type {other}"))),
    }
}

/// The error for what has no place in one LoRA made of several.
pub(super) fn not_combinable(adapter: &Adapter, what: impl Into<String>) -> AdapterError {
    AdapterError::NotCombinable { adapter: adapter.label.clone(), what: what.into() }
}
