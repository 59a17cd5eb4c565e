//! A model folder: its configuration, the files beside it, and its tensors.
//!
//! Which files hold the weights is decided as by llama.cpp's converter (`ModelBase.index_tensors`): the shards
//! that `model.safetensors.index.json` names, or without an index all `model*.safetensors` in sorted order; where
//! there are none, `pytorch_model*.bin` likewise. `consolidated.safetensors` is Mistral's second copy of the same
//! weights and is not read.

use std::collections::BTreeMap;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use super::file::WeightFile;
use super::packed::Unpacked;
use super::safetensors::{self, Contents};
use super::stored::Stored;
use super::{SourceError, TensorSet, packed, torch};
use crate::quant::GgmlType;
use crate::recipe::Recipe;

/// The longest JSON file that is read; tokenizer files are read elsewhere.
const MAX_JSON: u64 = 64 << 20;

/// Files (and a folder) that belong to a tokenizer, in the order in which they are copied.
pub const TOKENIZER_FILES: [&str; 16] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
];

/// The tensors of a model as they lie in its files, in the order in which a converter meets them.
pub(super) type StoredTensors = IndexMap<String, Stored>;

/// An opened model folder. Headers are read and checked, weights are not.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: Value,
    generation_config: Option<Value>,
    files: Vec<Arc<WeightFile>>,
    stored: StoredTensors,
    tensors: TensorSet,
    plain: HashSet<String>,
    packing: Option<&'static str>,
}

impl ModelFolder {
    /// Opens a folder that has a `config.json`. Every tensor's place is checked here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = path.as_ref();
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            return Err(SourceError::NoModel {
                name: path.display().to_string(),
                cause: "is not a model folder: it has no config.json".to_string(),
                tried: vec![config_path],
                remedy: "give the folder that the model was saved or downloaded to".to_string(),
            });
        }
        let config = read_json(&config_path)?;
        if !config.is_object() {
            return Err(SourceError::json(&config_path, "is not a JSON object"));
        }
        let generation_path = path.join("generation_config.json");
        let generation_config = generation_path.is_file().then(|| read_json(&generation_path)).transpose()?;
        let (stored, metadata, files) = open_weights_of(path)?;
        let Unpacked { tensors, plain, method } = packed::unpack(&stored, &config, &metadata, path)?;
        let path = path.to_path_buf();
        Ok(ModelFolder { path, config, generation_config, files, stored, tensors, plain, packing: method })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's own name, resolved where the path is relative (`.`).
    pub fn name(&self) -> String {
        let absolute = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        absolute.file_name().map_or_else(|| "model".to_string(), |n| n.to_string_lossy().into_owned())
    }

    /// `config.json` as it is, keys in their order.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, where there is one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// The path of a file or folder beside the weights, where it exists.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let path = self.path.join(name);
        path.exists().then_some(path)
    }

    /// The model card.
    pub fn readme(&self) -> Option<PathBuf> {
        self.file("README.md")
    }

    /// The tokenizer's files and chat templates that are there.
    pub fn tokenizer_files(&self) -> Vec<PathBuf> {
        tokenizer_files(&self.path)
    }

    /// The model's tensors in the order in which a converter meets them; packed ones decoded under their logical
    /// names.
    pub fn tensors(&self) -> TensorSet {
        self.tensors.clone()
    }

    /// The type that the model is loaded in: its config's, else that of its first tensor of floats.
    pub fn element_type(&self) -> GgmlType {
        let first = || {
            let floats = self.stored.values().map(Stored::dtype).find(|d| packed::is_plain_float(*d));
            floats.map(super::element::precision)
        };
        packed::named_type(&self.config).or_else(first).unwrap_or(GgmlType::BF16)
    }

    /// The method that packed the weights (`bitsandbytes`, `gptq`, ..), where they are packed.
    pub fn packing(&self) -> Option<&'static str> {
        self.packing
    }

    /// A tensor as it lies in its file, unless it is packed.
    pub fn stored(&self, name: &str) -> Option<&Stored> {
        self.stored.get(name).filter(|_| self.plain.contains(name))
    }

    /// The matrices of plain numbers as they lie in the files, packed or not, and their types.
    pub fn stored_matrices(&self) -> impl Iterator<Item = (&str, GgmlType)> {
        let plain = self.stored.iter().filter(|(_, t)| t.shape().ndim() >= 2 && packed::is_plain_float(t.dtype()));
        plain.map(|(name, t)| (name.as_str(), super::element::precision(t.dtype())))
    }

    /// The weight files, in the order in which they are read.
    pub fn weight_files(&self) -> impl ExactSizeIterator<Item = (&Path, u64)> {
        self.files.iter().map(|f| (f.path(), f.size_bytes()))
    }

    /// Bytes of all weight files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size_bytes()).sum()
    }

    /// Tensors that are the same bytes under several names, as PyTorch files have for tied weights.
    pub fn aliases(&self) -> Vec<Vec<&str>> {
        let mut places: IndexMap<_, Vec<&str>> = IndexMap::new();
        for (name, tensor) in self.stored.iter().filter(|(_, t)| t.shape().elements() > 0) {
            places.entry((tensor.place(), tensor.width(), tensor.shape().clone())).or_default().push(name);
        }
        places.into_values().filter(|names| names.len() > 1).collect()
    }
}

/// The tokenizer's files in any folder, an adapter's included.
pub fn tokenizer_files(folder: &Path) -> Vec<PathBuf> {
    TOKENIZER_FILES.iter().map(|n| folder.join(n)).filter(|p| p.exists()).collect()
}

/// Reads a JSON file of bounded size, keys in their order.
pub fn read_json(path: &Path) -> Result<Value, SourceError> {
    let size = fs::metadata(path).map_err(|e| SourceError::io(path, e))?.len();
    if size > MAX_JSON {
        return Err(SourceError::json(path, format!("has {size} bytes, more than the {MAX_JSON} that are read")));
    }
    let bytes = fs::read(path).map_err(|e| SourceError::io(path, e))?;
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    if text.starts_with(b"version https://git-lfs") {
        return Err(SourceError::json(path, "is a Git LFS pointer, not the file itself"));
    }
    serde_json::from_slice(text).map_err(|e| SourceError::json(path, format!("is not valid JSON: {e}")))
}

/// Opens one weight file of any known format by its contents, not by its name: an adapter's factors.
pub fn open_weight_file(path: &Path) -> Result<TensorSet, SourceError> {
    Ok(open_any(path)?.tensors.into_iter().map(as_recipe).collect())
}

/// The tensors of one weight file as they are stored, in its order.
pub fn open_stored(path: &Path) -> Result<Vec<Stored>, SourceError> {
    Ok(open_any(path)?.tensors)
}

fn as_recipe(tensor: Stored) -> (String, Recipe) {
    (tensor.name().to_string(), Recipe::source(Arc::new(tensor)))
}

fn open_any(path: &Path) -> Result<Contents, SourceError> {
    let file = WeightFile::open(path)?;
    // The length of a safetensors header may begin with the bytes of a zip or a pickle; its brace decides.
    if !safetensors::looks_like(&file) && torch::looks_like(&file) {
        torch::open(file)
    } else {
        safetensors::open(file)
    }
}

/// A set of shards by file name: prefix and ending, and the name of the index.
struct Format {
    prefix: &'static str,
    ending: &'static str,
    index: &'static str,
}

const FORMATS: [Format; 2] = [
    Format { prefix: "model", ending: ".safetensors", index: "model.safetensors.index.json" },
    Format { prefix: "pytorch_model", ending: ".bin", index: "pytorch_model.bin.index.json" },
];

type Weights = (StoredTensors, HashMap<String, String>, Vec<Arc<WeightFile>>);

/// Opens the weights of a model folder.
fn open_weights_of(folder: &Path) -> Result<Weights, SourceError> {
    let names = file_names(folder)?;
    for format in &FORMATS {
        let parts: Vec<&String> =
            names.iter().filter(|n| n.starts_with(format.prefix) && n.ends_with(format.ending)).collect();
        let index_path = folder.join(format.index);
        if index_path.is_file() {
            return open_indexed(folder, &index_path);
        }
        if !parts.is_empty() {
            check_complete(folder, &parts)?;
            let contents = parts.iter().map(|n| open_any(&folder.join(n))).collect::<Result<Vec<_>, _>>()?;
            return join(contents);
        }
    }
    let (cause, remedy) = if names.iter().any(|n| n.starts_with("consolidated")) {
        (
            "holds the weights in Mistral's own format only (consolidated.*)",
            "download the model*.safetensors files of the repository too",
        )
    } else if names.iter().any(|n| n.ends_with(".safetensors.part") || n.ends_with(".incomplete")) {
        ("holds an unfinished download", "finish the download")
    } else {
        ("has a config.json but no weights", "download the model*.safetensors or pytorch_model*.bin files into it")
    };
    Err(SourceError::NoModel {
        name: folder.display().to_string(),
        cause: cause.to_string(),
        tried: FORMATS.iter().map(|f| PathBuf::from(format!("{}*{}", f.prefix, f.ending))).collect(),
        remedy: remedy.to_string(),
    })
}

fn file_names(folder: &Path) -> Result<Vec<String>, SourceError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| SourceError::io(folder, e))? {
        let entry = entry.map_err(|e| SourceError::io(folder, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Without an index, `…-00001-of-00003…` says how many shards there are; all must be there.
fn check_complete(folder: &Path, parts: &[&String]) -> Result<(), SourceError> {
    for part in parts {
        let Some((head, number, count, tail)) = shard_name(part) else { continue };
        let digits = number.len();
        let count: u64 = count.parse().unwrap_or(0);
        // A count that no folder can have is not a count.
        for i in (1..=count).take(100_000) {
            let name = format!("{head}{i:0digits$}-of-{count:0digits$}{tail}");
            if !parts.contains(&&name) {
                return Err(SourceError::MissingPart { folder: folder.to_path_buf(), missing: name, count });
            }
        }
    }
    Ok(())
}

/// Splits `model-00001-of-00003.safetensors` into `model-`, `00001`, `00003` and `.safetensors`.
fn shard_name(name: &str) -> Option<(&str, &str, &str, &str)> {
    let at = name.find("-of-")?;
    let head = name[..at].trim_end_matches(|c: char| c.is_ascii_digit());
    let rest = &name[at + 4..];
    let tail = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let (number, count) = (&name[head.len()..at], &rest[..rest.len() - tail.len()]);
    (!number.is_empty() && number.len() == count.len()).then_some((head, number, count, tail))
}

fn open_indexed(folder: &Path, index_path: &Path) -> Result<Weights, SourceError> {
    let index = read_json(index_path)?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(SourceError::json(index_path, "has no weight_map"));
    };
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in map {
        let plain = |s: &str| Path::new(s).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        match shard.as_str() {
            Some(s) if plain(s) && !s.is_empty() => shards.entry(s).or_default().push(tensor),
            _ => {
                return Err(SourceError::json(
                    index_path,
                    format!("weight_map places tensor {tensor} in {shard}, which is not a file of this folder"),
                ));
            }
        }
    }
    let mut contents = Vec::with_capacity(shards.len());
    for (shard, tensors) in &shards {
        let path = folder.join(shard);
        if !path.is_file() {
            let (index, shard, tensors) = (index_path.to_path_buf(), shard.to_string(), tensors.len());
            return Err(SourceError::MissingShard { index, shard, tensors });
        }
        contents.push(open_any(&path)?);
    }
    let weights = join(contents)?;
    let mismatch = |tensor: &str, cause: String| {
        Err(SourceError::IndexMismatch { index: index_path.to_path_buf(), tensor: tensor.to_string(), cause })
    };
    for (tensor, shard) in map {
        if !weights.0.contains_key(tensor) {
            let shard = shard.as_str().unwrap_or_default();
            return mismatch(tensor, format!("should be in {shard} according to the index, but is in no shard"));
        }
    }
    for (name, tensor) in &weights.0 {
        if !map.contains_key(name) {
            return mismatch(name, format!("is in {} but not in the index", tensor.file().path().display()));
        }
    }
    Ok(weights)
}

/// Joins the tensors of all shards. Where two hold the same name the later one counts, as in the converter and
/// in transformers, but both must have the same shape.
fn join(contents: Vec<Contents>) -> Result<Weights, SourceError> {
    let mut stored = StoredTensors::new();
    let mut metadata = HashMap::new();
    let mut files: Vec<Arc<WeightFile>> = Vec::with_capacity(contents.len());
    for part in contents {
        metadata.extend(part.metadata);
        files.push(part.file);
        for tensor in part.tensors {
            if let Some(before) = stored.get(tensor.name()) {
                let (here, there) = (tensor.file().path(), before.file().path());
                if tensor.shape() != before.shape() {
                    return Err(SourceError::TwoShards {
                        tensor: tensor.name().to_string(),
                        path: here.to_path_buf(),
                        here: Box::new(tensor.shape().clone()),
                        other: there.to_path_buf(),
                        there: Box::new(before.shape().clone()),
                    });
                }
                let (here, there) = (here.display(), there.display());
                tracing::warn!("tensor {} is in {there} and in {here}; the one in {here} is used", tensor.name());
            }
            stored.insert(tensor.name().to_string(), tensor);
        }
    }
    Ok((stored, metadata, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_tell_number_and_count() {
        let parts = shard_name("model-00002-of-00005.safetensors");
        assert_eq!(parts, Some(("model-", "00002", "00005", ".safetensors")));
        assert_eq!(shard_name("model.safetensors"), None);
        assert_eq!(shard_name("model-one-of-many.safetensors"), None);
    }
}
