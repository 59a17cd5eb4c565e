//! The adapters of a run, in both forms: PEFT's change the model's own tensors, llama.cpp's those of the GGUF.

use std::path::Path;

use super::{AdapterReport, ConvertError, Request};
use crate::adapter::{Adapter, GgufLora, MergeOptions, MergeSummary};
use crate::arch::{self, Converted, ConvertedTensor, Stored, factor_names};
use crate::recipe::Recipe;
use crate::source::TensorSet;

/// The GGUF names of embeddings and head.
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Opened adapters with their weights.
pub(super) struct Adapters {
    pub(super) peft: Vec<(Adapter, f32)>,
    pub(super) gguf: Vec<(GgufLora, f32)>,
    pub(super) options: MergeOptions,
}

impl Adapters {
    /// Opens the adapter that was named as the model, and those of `--lora`.
    pub(super) fn open(request: &Request, own: Option<&Path>) -> Result<Self, ConvertError> {
        let options = MergeOptions { dtype: request.merge_dtype };
        let mut adapters = Adapters { peft: Vec::new(), gguf: Vec::new(), options };
        let requested = request.adapters.iter().map(|a| (a.path.as_path(), a.weight));
        for (path, weight) in own.map(|path| (path, 1.0)).into_iter().chain(requested) {
            if path.is_file() {
                adapters.gguf.push((GgufLora::open(path)?, weight));
            } else {
                adapters.peft.push((Adapter::open(path, request.adapter.as_deref())?, weight));
            }
        }
        Ok(adapters)
    }

    /// Merges the GGUF adapters into tensors under GGUF names.
    pub(super) fn merge_gguf(
        &self,
        arch: &str,
        tensors: &mut TensorSet,
        merge: &mut MergeSummary,
    ) -> Result<(), ConvertError> {
        if self.gguf.is_empty() {
            return Ok(());
        }
        let before = tensors.get(EMBEDDING).cloned();
        let changes = GgufLora::apply(&self.gguf, arch, tensors, &self.options)?;
        // llama.cpp changes the embeddings where tokens are looked up, not where they are a tied model's head.
        if let Some(embedding) = before.filter(|_| !tensors.contains(HEAD))
            && changes.iter().any(|c| c.tensor == EMBEDDING)
        {
            if arch::has_head(arch) {
                tensors.set(HEAD, embedding);
                merge.untied_head = Some(HEAD.into());
            } else {
                merge.warnings.push(format!("{EMBEDDING} is the model's head as well, which changes with it"));
            }
        }
        merge.changes.extend(changes);
        Ok(())
    }

    /// Merges the GGUF adapters into the tensors of a converted model folder.
    pub(super) fn merge_converted(
        &self,
        converted: &mut Converted,
        merge: &mut MergeSummary,
    ) -> Result<(), ConvertError> {
        // An adapter changes values, not blocks that lack their factor.
        let whole = |t: &ConvertedTensor| (t.name.clone(), t.whole.clone().unwrap_or(t.recipe.clone()));
        let mut merged: TensorSet = converted.tensors.iter().map(whole).collect();
        self.merge_gguf(converted.arch, &mut merged, merge)?;
        let mut decoded = Vec::new();
        for tensor in &mut converted.tensors {
            let Some(recipe) = merged.remove(&tensor.name) else { continue };
            if tensor.whole.is_some() {
                if !recipe.is_merged() {
                    continue;
                }
                decoded.extend(factor_names(&tensor.name));
                tensor.whole = None;
            }
            // Blocks that were to be copied are values now, and stored as others are.
            if tensor.recipe.native().is_some() && recipe.native().is_none() {
                tensor.stored = Stored::of(&tensor.name, recipe.shape());
            }
            tensor.recipe = recipe;
        }
        converted.tensors.retain(|t| !decoded.contains(&t.name));
        converted.tensors.extend(merged.iter().map(|(name, recipe)| new_tensor(name, recipe.clone())));
        Ok(())
    }

    /// What the report says of each.
    pub(super) fn reports(&self, merge: &MergeSummary) -> Vec<AdapterReport> {
        let peft = self.peft.iter().map(|(a, weight)| (a.path(), a.label(), *weight));
        let gguf = self.gguf.iter().map(|(a, weight)| (a.path(), a.label(), *weight));
        peft.chain(gguf).map(|(path, label, weight)| adapter_report(path, label, weight, merge)).collect()
    }
}

/// What the report says of an adapter.
pub(super) fn adapter_report(path: &Path, label: &str, weight: f32, merge: &MergeSummary) -> AdapterReport {
    let changes: Vec<_> = merge.changes.iter().filter(|c| c.adapter == label).collect();
    let mut kinds: Vec<&str> = changes.iter().map(|c| c.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    AdapterReport { path: path.to_owned(), weight, kind: kinds.join(", "), tensors: changes.len() }
}

/// A tensor that merging made, such as a head that is parted from the embeddings.
fn new_tensor(name: &str, recipe: Recipe) -> ConvertedTensor {
    ConvertedTensor {
        name: name.into(),
        stored: Stored::of(name, recipe.shape()),
        recipe,
        source: Vec::new(),
        whole: None,
    }
}
