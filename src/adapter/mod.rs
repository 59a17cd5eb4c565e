//! PEFT adapters: what each one changes in a model, exactly.
//!
//! [`Adapter::open`] reads an adapter folder's config and the header of its weights. [`apply`] turns the model's
//! tensors into merged ones: every tensor of every adapter is taken by the rule that understands it, and one that
//! none understands is an error that names it. No weight is read for that; rows are merged when they stream by.
//!
//! [`GgufLora`] is an adapter in llama.cpp's own form, whose changes belong to GGUF names.
//!
//! Names are taken apart in `keys` and found in the model by `names`; `draft` collects the changes by tensor; one
//! file per family of forms says what its parameters do; `change` weighs, rounds, measures and checks.

mod blocks;
mod change;
mod check;
mod combine;
mod config;
mod contents;
mod coverage;
mod delora;
mod dora;
mod dots;
mod draft;
mod error;
mod experts;
mod extract;
mod gguf;
mod gralora;
mod hira;
mod implied;
mod keys;
mod lazy;
mod lora;
mod lowrank;
mod names;
mod passes;
mod peft;
mod plan;
mod products;
mod replicate;
mod residual;
mod road;
mod rotations;
mod saved;
mod scaled;
mod singular;
mod sparse;
mod vblora;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

pub use change::{MergeDtype, Meter};
pub use check::{NotFinite, all_finite, check_rows, encoded_finite};
pub use combine::{ResidualBase, combine, has_residual_base};
pub use config::AdapterConfig;
pub use error::{AdapterError, Mismatch};
pub use extract::{Captured, Extracted, extract};
pub use gguf::{GgufLora, is_gguf_adapter};
pub use implied::implied_tensors;
pub use names::{embedding_and_head, is_head};
pub use peft::{EmbeddingChanges, EmbeddingLayers, PeftAdapter, PeftTensor};
pub use plan::apply;

use contents::Contents;

use crate::quant::GgmlType;

/// The file names of an adapter's weights, in the order in which PEFT looks for them.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// An opened adapter: its settings, and its tensors by module. Weights are read later, by position.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    label: String,
    config: AdapterConfig,
    weights: PathBuf,
    contents: Contents,
}

impl Adapter {
    /// Opens the adapter in `dir`; `name` chooses among several in one folder. PEFT saves the adapter `default`
    /// in the folder itself and every other in a folder of its name beneath. Where one file holds several, a last
    /// word of `dir` that is no folder is the name.
    pub fn open(dir: &Path, name: Option<&str>) -> Result<Adapter, AdapterError> {
        if let (None, Some(parent), Some(last)) = (name, dir.parent(), dir.file_name().and_then(|n| n.to_str()))
            && !dir.exists()
            && parent.join("adapter_config.json").is_file()
        {
            return Self::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }, Some(last));
        }
        let plain = |n: &&str| Path::new(n).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        let beneath = name.filter(plain).map(|n| dir.join(n)).filter(|p| p.join("adapter_config.json").is_file());
        let path = beneath.unwrap_or_else(|| dir.to_path_buf());
        let config_path = path.join("adapter_config.json");
        if !config_path.is_file() {
            let found = adapters_in(dir);
            let hint = match found.as_slice() {
                [] => String::new(),
                all => format!(", but adapters in its folders {}", all.join(", ")),
            };
            return Err(AdapterError::NoConfig { path: dir.to_path_buf(), hint });
        }
        let label = match name {
            Some(name) => format!("{} ({name})", dir.display()),
            None => dir.display().to_string(),
        };
        let config = AdapterConfig::read(&config_path)?;
        plan::refuse_by_kind(&config, &label)?;
        let weights = WEIGHTS.iter().map(|f| path.join(f)).find(|p| p.is_file());
        let Some(weights) = weights else {
            return Err(AdapterError::NoWeights { path });
        };
        let tensors = crate::source::open_weight_file(&weights)?;
        let contents = Contents::sort(&tensors, &label, name)?;
        if contents.file.is_empty() {
            let cause = "holds no tensors; save the adapter again".to_string();
            return Err(AdapterError::Unfit { adapter: label, what: "its file".into(), cause });
        }
        if let Some(name) = name
            && path == dir
            && name != "default"
            && !contents.names.iter().any(|n| n == name)
        {
            let names = if contents.names.is_empty() { adapters_in(dir) } else { contents.names };
            let cause = match names.as_slice() {
                [] => "is neither a folder nor a name: the file holds one adapter without a name; leave the name out"
                    .into(),
                all => format!("is no adapter here, but {} are; name one of them", all.join(", ")),
            };
            return Err(AdapterError::Unfit { adapter: dir.display().to_string(), what: name.to_string(), cause });
        }
        Ok(Adapter { path, label, config, weights, contents })
    }

    /// The folder that holds its files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to call it in messages and reports.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Bytes of its weight file.
    pub fn size_bytes(&self) -> u64 {
        std::fs::metadata(&self.weights).map_or(0, |m| m.len())
    }

    /// The plain types of its parameters, in the order of its file.
    pub fn precisions(&self) -> impl Iterator<Item = GgmlType> {
        self.contents.modules.iter().flat_map(|m| m.rest()).map(|t| t.recipe.precision())
    }

    /// The modules that it has parameters for, in the order of its file.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.contents.modules.iter().map(|m| m.name.as_str())
    }

    /// The file of its weights.
    pub fn weights(&self) -> &Path {
        &self.weights
    }

    /// Its settings.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The modules that it changes, in the form of [`module_of`].
    pub fn changed_modules(&self) -> impl Iterator<Item = String> + '_ {
        let trained = self.contents.modules.iter().map(|m| &m.name);
        trained.chain(self.contents.saved.iter().map(|s| &s.module)).map(|name| names::canonical(name))
    }
}

/// The module of a model's tensor, without what only says how the model is wrapped: equal for tensors that adapters
/// and models of different versions name differently.
pub fn module_of(tensor: &str) -> String {
    names::canonical(tensor.rsplit_once('.').map_or("", |(module, _)| module))
}

/// The names of folders beneath `dir` that hold an adapter.
fn adapters_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|e| e.path().join("adapter_config.json").is_file())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// What an adapter needs to know of the model it changes.
#[derive(Clone, Debug)]
pub struct BaseInfo {
    /// The model's folder or id, as adapters name it.
    pub name: String,
    /// `model_type` of its config.
    pub model_type: Option<String>,
    /// Whether the output head is the input embedding, unless the model holds a head of its own.
    pub tie_word_embeddings: bool,
    /// `vocab_size` of its config.
    pub vocab_size: Option<u64>,
    /// `config.json` as it is.
    pub config: Value,
}

impl BaseInfo {
    /// Reads what matters from a model's `config.json`. Models of several parts keep the language model's
    /// settings in a table of their own.
    pub fn new(name: impl Into<String>, config: &Value) -> Self {
        let text = ["text_config", "llm_config", "language_config", "thinker_config"]
            .iter()
            .find_map(|key| config.get(key).filter(|v| v.is_object()));
        let setting = |key: &str| text.and_then(|t| t.get(key)).or_else(|| config.get(key));
        let tied = [config.get("tie_word_embeddings"), text.and_then(|t| t.get("tie_word_embeddings"))];
        BaseInfo {
            name: name.into(),
            model_type: config.get("model_type").and_then(Value::as_str).map(String::from),
            tie_word_embeddings: tied.into_iter().flatten().find_map(Value::as_bool).unwrap_or(true),
            vocab_size: setting("vocab_size").and_then(Value::as_u64),
            config: config.clone(),
        }
    }
}

/// How adapters are merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeOptions {
    /// The type of the sums.
    pub dtype: MergeDtype,
}

/// One adapter's change to one tensor.
#[derive(Clone, Debug)]
pub struct TensorChange {
    /// The tensor of the model.
    pub tensor: String,
    /// The adapter.
    pub adapter: String,
    /// The module as the adapter names it.
    pub module: String,
    /// The form: `LoRA`, `DoRA`, `replaced`.
    pub kind: &'static str,
    /// The rank, for forms that have one; the number of rows, for retrained tokens.
    pub rank: Option<u64>,
    /// `‖Δ‖ / ‖W‖`, once the tensor's rows have streamed by.
    pub meter: Arc<Meter>,
}

/// What merging does to a model, known before a weight is read.
#[derive(Clone, Debug, Default)]
pub struct MergeSummary {
    /// Every change, by tensor in order of names, then by adapter.
    pub changes: Vec<TensorChange>,
    /// The model's head was its embedding, and now is a tensor of its own: this one.
    pub untied_head: Option<String>,
    /// Rows of the embedding, where merging changed their number.
    pub vocab_size: Option<u64>,
    /// For each layer of the result the base's layer that it was, where layers were repeated.
    pub layer_map: Option<Vec<u64>>,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
}

impl MergeSummary {
    /// What can only be said after the rows have streamed by: adapters that change next to nothing.
    pub fn closing_warnings(&self) -> Vec<String> {
        plan::nearly_zero(&self.changes)
    }
}
