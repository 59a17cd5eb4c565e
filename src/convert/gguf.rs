//! A GGUF as the model: its tensors as they are, merged with adapters where there are some.

use std::collections::HashSet;
use std::path::Path;

use super::adapters::Adapters;
use super::open::{Chat, Opened, name_of};
use super::{ConvertError, ModelReport, Request};
use crate::adapter::{self, BaseInfo, MergeSummary, is_gguf_adapter, module_of};
use crate::arch::{self, ArchError, factor_names};
use crate::gguf::Value;
use crate::ollama::ModelfileInput;
use crate::plan::{Model, StoredTensor, Tensors};
use crate::recipe::Recipe;
use crate::source::{GgufModel, TensorSet};

/// Opens a GGUF, split or not, with the adapter that was named as the model and those of `--lora`.
pub(super) fn open(request: &Request, path: &Path, own: Option<&Path>) -> Result<Opened, ConvertError> {
    let gguf = GgufModel::open(path)?;
    let adapters = Adapters::open(request, own)?;
    if is_gguf_adapter(gguf.metadata()) {
        return Err(ConvertError::NoBase { path: path.to_owned() });
    }
    let mut tensors = gguf.tensors();
    let mut merge = MergeSummary::default();
    if !adapters.peft.is_empty() {
        merge = merge_peft(&adapters, &gguf, path, &mut tensors)?;
    }
    let metadata = gguf.metadata().clone();
    let architecture = metadata.get("general.architecture").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    adapters.merge_gguf(&architecture, &mut tensors, &mut merge)?;
    let parted = |name: &str| factor_names(name).into_iter().next().filter(|factor| tensors.contains(factor));
    let is_changed =
        |(name, recipe): (&str, &Recipe)| recipe.is_merged().then(|| Some((name.to_owned(), parted(name)?)));
    if let Some((name, factor)) = tensors.iter().filter_map(is_changed).flatten().next() {
        let reason = format!("its blocks are multiplied by {factor}");
        return Err(ArchError::NotRestored { file: path.to_owned(), name, reason }.into());
    }

    let own_types = gguf.source_tensors();
    let stored = tensors.iter().enumerate().map(|(i, (name, recipe))| StoredTensor {
        name: name.to_owned(),
        recipe: recipe.clone(),
        // A new tensor is stored as the one that it was parted from.
        kind: own_types.get(i).map_or(recipe.precision(), |t| t.kind),
        part: own_types.get(i).map_or(0, |t| t.part),
    });
    let stored: Vec<StoredTensor> = stored.collect();
    let warnings = std::mem::take(&mut merge.warnings);
    Ok(Opened {
        name: name_of(own.unwrap_or(path)),
        report: ModelReport {
            path: path.to_owned(),
            architecture,
            tensors: own_types.len(),
            parameters: 0,
            bytes: gguf.file().parts().iter().map(|p| p.size).sum(),
            quantization: None,
            dropped: Vec::new(),
        },
        chat: Chat { input: ModelfileInput::of_gguf(gguf.file(), path), projectors: Vec::new() },
        model: Model { metadata, tensors: Tensors::Stored(stored) },
        tokenizer_files: Vec::new(),
        adapters: adapters.reports(&merge),
        merge,
        warnings,
    })
}

/// Merges PEFT adapters, which know the names of the model that the GGUF was made of.
fn merge_peft(
    adapters: &Adapters,
    gguf: &GgufModel,
    path: &Path,
    tensors: &mut TensorSet,
) -> Result<MergeSummary, ConvertError> {
    let modules: HashSet<String> = adapters.peft.iter().flat_map(|(a, _)| a.changed_modules()).collect();
    let restored = arch::restore(path, gguf.metadata(), tensors, &|name| modules.contains(&module_of(name)))?;
    let mut merged = restored.tensors().clone();
    let base = BaseInfo::new(base_name(adapters, path), &restored.config());
    let mut merge = adapter::apply(&adapters.peft, &mut merged, &base, &adapters.options)?;
    let reshaped = merge.vocab_size.map(|_| "vocabulary").or(merge.layer_map.as_ref().map(|_| "number of layers"));
    if let Some(what) = reshaped {
        return Err(ConvertError::ReshapesGguf { path: path.to_owned(), what });
    }
    let changed: HashSet<&str> = merge.changes.iter().map(|c| c.tensor.as_str()).collect();
    let mut head_is_placed = false;
    for tensor in restored.convert(&merged, &changed, merge.untied_head.as_deref())? {
        head_is_placed |= tensor.source.iter().any(|s| Some(s) == merge.untied_head.as_ref());
        if let Some(stored) = tensors.get(&tensor.name)
            && stored.shape() != tensor.recipe.shape()
        {
            let reason = format!("it would be {}, and is {}", tensor.recipe.shape(), stored.shape());
            return Err(ArchError::NotRestored { file: path.to_owned(), name: tensor.name, reason }.into());
        }
        tensors.set(tensor.name, tensor.recipe);
    }
    if let Some(head) = merge.untied_head.take_if(|_| !head_is_placed) {
        merge.warnings.push(format!("llama.cpp takes no {head} for this architecture: it stays the embeddings"));
    }
    Ok(merge)
}

/// What the base is called in warnings: as the adapter calls it, where the file's name begins so.
fn base_name(adapters: &Adapters, path: &Path) -> String {
    let plain = |s: &str| s.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let named = adapters.peft.iter().find_map(|(a, _)| a.config().base_model());
    let last = |name: &str| name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(name).to_owned();
    match named {
        Some(name) if plain(&stem).starts_with(&plain(&last(name))) => name.to_owned(),
        _ => stem,
    }
}
