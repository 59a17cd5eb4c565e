//! Adapters without a model around them: what adapter-only output is made from.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::adapters::adapter_report;
use super::open::{chat, name_of};
use super::{AdapterReport, ConvertError, Request};
use crate::adapter::{self, Adapter, BaseInfo, MergeSummary};
use crate::arch::Arranged;
use crate::gguf::Metadata;
use crate::ollama::{ChatInput, Modelfile, ModelfileInput, Wishes, licenses};
use crate::source::{self, ModelFolder, Places, SourceError, TensorSet, read_json, resolve_base, tokenizer_files};
use crate::tokenizer::{Tokenizer, TokenizerFiles, TokenizerOptions};

/// The model under adapters: its config, and its tensors as far as they are known.
pub(super) struct AdapterBase {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// `config.json`.
    pub(super) config: Json,
    /// What adapters need to know of it.
    pub(super) info: BaseInfo,
    /// Its tensors, or those that the adapters imply where there are no weights.
    pub(super) tensors: TensorSet,
    /// Whether their values can be read.
    pub(super) has_weights: bool,
    /// `generation_config.json`.
    pub(super) generation_config: Option<Json>,
}

impl AdapterBase {
    /// Opens a base for these adapters. Weights are not needed: their names and shapes follow from the factors.
    pub(super) fn open(folder: &Path, adapters: &[(Adapter, f32)]) -> Result<Self, ConvertError> {
        match ModelFolder::open(folder) {
            Ok(base) => Ok(AdapterBase {
                folder: folder.to_owned(),
                config: base.config().clone(),
                info: BaseInfo::new(base.name(), base.config()),
                tensors: base.tensors(),
                has_weights: true,
                generation_config: base.generation_config().cloned(),
            }),
            Err(SourceError::NoModel { .. }) if folder.join("config.json").is_file() => {
                let config = read_json(&folder.join("config.json"))?;
                let info = BaseInfo::new(name_of(folder), &config);
                let tensors = adapter::implied_tensors(adapters, &info)?;
                Ok(AdapterBase {
                    folder: folder.to_owned(),
                    config,
                    info,
                    tensors,
                    has_weights: false,
                    generation_config: None,
                })
            }
            Err(other) => Err(other.into()),
        }
    }
}

/// Adapters, and their base where it was found.
pub(super) struct Adapters {
    /// What files are named after.
    pub(super) name: String,
    /// The adapters, each with its weight, in order.
    pub(super) list: Vec<(Adapter, f32)>,
    /// The base's folder, or why there is none.
    pub(super) base: Result<PathBuf, SourceError>,
}

/// Opens the adapters that a request names: an adapter as the model, those of `--lora`, or both.
pub(super) fn open(request: &Request) -> Result<Adapters, ConvertError> {
    let places = Places::from_environment();
    let named = request.adapter.as_deref();
    let model = Path::new(&request.model);
    let (own, base) = match own_adapter(model, named) {
        Some(home) => {
            let base = match &request.base {
                Some(base) => resolve_base(base, &home, &places, "--base"),
                // A named adapter lies in a folder of its own, and its base beside the folder around that.
                None => source::base_of_adapter(&home, &places).or_else(|e| {
                    let name = read_json(&home.join("adapter_config.json")).ok();
                    let name = name.as_ref().and_then(|c| c.get("base_model_name_or_path")?.as_str());
                    name.and_then(|n| resolve_base(n, model, &places, "base_model_name_or_path").ok()).ok_or(e)
                }),
            };
            (Some(home), base)
        }
        None => match source::resolve_model(&request.model, request.base.as_deref(), &places)? {
            source::Model::Folder(folder) => (None, Ok(folder)),
            source::Model::Adapter { adapter, base } => (Some(adapter), Ok(base)),
            source::Model::Gguf(path) => return Err(ConvertError::AdapterOfGguf { path }),
        },
    };
    let mut list = Vec::new();
    let wanted = own
        .iter()
        .map(|path| (path.as_path(), 1.0))
        .chain(request.adapters.iter().map(|a| (a.path.as_path(), a.weight)));
    for (path, weight) in wanted {
        // The folder of a named adapter is already that adapter's.
        let named = named.filter(|n| !path.ends_with(n) || path.join(n).is_dir());
        list.push((Adapter::open(path, named)?, weight));
    }
    if list.is_empty() {
        return Err(ConvertError::NoAdapter { path: model.to_owned() });
    }
    let origin = own.as_deref().unwrap_or(list[0].0.path());
    let base = match base {
        Ok(folder) if folder.is_file() => return Err(ConvertError::AdapterOfGguf { path: folder }),
        base => base,
    };
    Ok(Adapters { name: name_of(origin), list, base })
}

/// The folder of the adapter that the model argument is, if it is one.
fn own_adapter(model: &Path, named: Option<&str>) -> Option<PathBuf> {
    if model.join("config.json").is_file() {
        return None;
    }
    let is_adapter = |p: &PathBuf| p.join("adapter_config.json").is_file();
    let beneath = named.map(|n| model.join(n)).filter(is_adapter);
    beneath.or_else(|| Some(model.to_owned()).filter(is_adapter))
}

impl Adapters {
    /// The folder whose card and name tell the origin.
    pub(super) fn origin(&self) -> &Path {
        self.list[0].0.path()
    }

    /// Bytes of the adapters' weight files.
    pub(super) fn bytes(&self) -> u64 {
        self.list.iter().map(|(a, _)| a.size_bytes()).sum()
    }

    /// What the report says of each.
    pub(super) fn reports(&self, merge: &MergeSummary) -> Vec<AdapterReport> {
        let report = |(a, weight): &(Adapter, f32)| adapter_report(a.path(), a.label(), *weight, merge);
        self.list.iter().map(report).collect()
    }

    /// The first folder with tokenizer files: an adapter's, or the base's.
    pub(super) fn tokenizer_files(&self) -> Vec<PathBuf> {
        let homes = self.list.iter().map(|(a, _)| a.path()).chain(self.base.as_deref().ok());
        let files = TokenizerFiles::new(homes);
        files.home().map(tokenizer_files).unwrap_or_default()
    }

    /// The Modelfile of an adapter file over `from`, a GGUF or a model folder, and notes about it.
    pub(super) fn modelfile(
        &self,
        base: &AdapterBase,
        arranged: &Arranged,
        from: &Path,
        adapter: &Path,
        wishes: &Wishes,
    ) -> (String, Vec<String>) {
        let homes = self.list.iter().map(|(a, _)| a.path()).chain([base.folder.as_path()]);
        let files = TokenizerFiles::new(homes);
        let options = TokenizerOptions { kind: arranged.vocab, ..TokenizerOptions::default() };
        let mut notes = Vec::new();
        let mut input = match Tokenizer::load(&files, &base.config, &options) {
            Ok(tokenizer) => {
                let rows = base.info.vocab_size.unwrap_or(0);
                let metadata: Metadata = tokenizer.metadata(rows);
                chat(&tokenizer, base.generation_config.as_ref(), &metadata, arranged.arch)
            }
            Err(e) => {
                notes.push(format!("the Modelfile has no TEMPLATE, since the tokenizer cannot be read: {e}"));
                ModelfileInput { chat: ChatInput::default(), ..ModelfileInput::default() }
            }
        };
        let name = adapter.file_name().unwrap_or_default().to_string_lossy();
        input.from = vec![from.display().to_string()];
        input.adapter = Some(format!("./{name}"));
        input.licenses = licenses(&[self.origin(), &base.folder]);
        input.system.clone_from(&wishes.system);
        input.messages.clone_from(&wishes.messages);
        let modelfile = Modelfile::build(&input);
        notes.extend(modelfile.notes.iter().cloned());
        (modelfile.render(), notes)
    }
}
