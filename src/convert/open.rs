//! From what the user names to a model under GGUF names: source, adapters, architecture and tokenizer together.

use std::path::{Path, PathBuf};

use super::adapters::Adapters;
use super::{AdapterReport, ConvertError, ModelReport, Request, gguf, unplaced};
use crate::adapter::{self, BaseInfo, MergeSummary, is_gguf_adapter};
use crate::arch::{self, ArchInput};
use crate::gguf::{GgufFile, Metadata, Value};
use crate::ollama::{ChatInput, Modelfile, ModelfileInput, Wishes, licenses};
use crate::plan::{Model, Tensors};
use crate::report::Dropped;
use crate::source::{self, GgufModel, ModelFolder, Places, TOKENIZER_FILES, TensorSet, resolve_base, resolve_model};
use crate::tokenizer::{SavedFile, Special, Tokenizer, TokenizerFiles, TokenizerOptions, VocabFit, saved_files};

/// A model that is ready to be planned.
pub(super) struct Opened {
    /// What files are named after.
    pub(super) name: String,
    /// Keys and tensors.
    pub(super) model: Model,
    /// Tokenizer files to put beside the GGUF.
    pub(super) tokenizer_files: Vec<SavedFile>,
    /// What a Modelfile is made of.
    pub(super) chat: Chat,
    /// Facts about the source.
    pub(super) report: ModelReport,
    /// Facts about the adapters.
    pub(super) adapters: Vec<AdapterReport>,
    /// What merging does, to be measured while rows stream by.
    pub(super) merge: MergeSummary,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

/// What a Modelfile says beyond the file's name.
pub(super) struct Chat {
    pub(super) input: ModelfileInput,
    pub(super) projectors: Vec<PathBuf>,
}

impl Chat {
    /// Adds what the user wants it to say.
    fn wish(&mut self, wishes: &Wishes) -> Result<(), ConvertError> {
        self.input.system.clone_from(&wishes.system);
        self.input.messages.clone_from(&wishes.messages);
        for path in &wishes.projectors {
            let kind = crate::ollama::store::kind_of(&GgufFile::open(path)?);
            if kind != "projector" {
                return Err(ConvertError::NoProjector { path: path.clone(), kind });
            }
            self.projectors.push(path.clone());
        }
        Ok(())
    }

    /// The Modelfile over these GGUF files in the same folder, and notes about it.
    pub(super) fn modelfile(&self, files: &[PathBuf]) -> (String, Vec<String>) {
        // A split model is named by all its parts: Ollama joins those that it is given.
        let name = |path: &PathBuf| format!("./{}", path.file_name().unwrap_or_default().to_string_lossy());
        let folder = files[0].parent().unwrap_or(Path::new("."));
        let mut input = ModelfileInput { from: files.iter().map(name).collect(), ..self.input.clone() };
        input.from.extend(self.projectors.iter().map(|path| seen_from(folder, path)));
        let modelfile = Modelfile::build(&input);
        (modelfile.render(), modelfile.notes.clone())
    }
}

/// Opens what the request names.
pub(super) fn open(request: &Request) -> Result<Opened, ConvertError> {
    let places = Places::from_environment();
    let base = |base: &Path, adapter: Option<&Path>| match base.is_file() {
        true => gguf::open(request, base, adapter),
        false => open_folder(request, base, adapter),
    };
    let mut opened = match resolve_model(&request.model, request.base.as_deref(), &places)? {
        source::Model::Folder(folder) => open_folder(request, &folder, None),
        source::Model::Adapter { adapter, base: model } => base(&model, Some(&adapter)),
        source::Model::Gguf(path) if is_gguf_adapter(GgufModel::open(&path)?.metadata()) => match &request.base {
            Some(name) => base(&resolve_base(name, &path, &places, "--base")?, Some(&path)),
            None => Err(ConvertError::NoBase { path }),
        },
        source::Model::Gguf(path) => gguf::open(request, &path, None),
    }?;
    opened.chat.wish(&request.wishes)?;
    Ok(opened)
}

/// A file's path as a Modelfile in a folder names it.
fn seen_from(folder: &Path, path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let beside = folder.canonicalize().is_ok_and(|folder| whole.parent() == Some(&folder));
    match whole.file_name().filter(|_| beside) {
        Some(name) => format!("./{}", name.to_string_lossy()),
        None => whole.to_string_lossy().into_owned(),
    }
}

/// A model folder with its adapters merged, under its own names.
pub(super) struct MergedFolder {
    /// The base.
    pub(super) base: ModelFolder,
    /// Merged tensors under the base's names.
    pub(super) tensors: TensorSet,
    /// The adapters. Those in llama.cpp's form are not merged yet: they change GGUF names.
    pub(super) adapters: Adapters,
    /// What merging does.
    pub(super) merge: MergeSummary,
    /// `config.json` as merging leaves it.
    pub(super) config: serde_json::Value,
    /// The tokenizer's folders: the fine-tune's own win over the base's.
    pub(super) tokenizer: TokenizerFiles,
    /// The folder that the user named.
    pub(super) origin: PathBuf,
}

impl MergedFolder {
    /// Opens a model folder, with the adapter that was named as the model and those of `--lora`.
    pub(super) fn open(request: &Request, folder: &Path, own: Option<&Path>) -> Result<Self, ConvertError> {
        let base = ModelFolder::open(folder)?;
        let tensors = base.tensors();
        Self::merge(request, base, tensors, own)
    }

    /// The same for an opened folder and those of its tensors that count.
    pub(super) fn merge(
        request: &Request,
        base: ModelFolder,
        mut tensors: TensorSet,
        own: Option<&Path>,
    ) -> Result<Self, ConvertError> {
        let adapters = Adapters::open(request, own)?;
        let mut merge = MergeSummary::default();
        if !adapters.peft.is_empty() {
            let info = BaseInfo::new(base.name(), base.config());
            merge = adapter::apply(&adapters.peft, &mut tensors, &info, &adapters.options)?;
            if let Some(method) = base.packing() {
                merge.warnings.push(format!(
                    "merged into the weights of {}, quantized by {method}: right for an adapter that was trained on \
                     them (QLoRA), but their rounding stays; --base MODEL takes a 16-bit model instead",
                    base.path().display()
                ));
            }
        }
        let homes: Vec<&Path> = adapters.peft.iter().map(|(a, _)| a.path()).chain([base.path()]).collect();
        let tokenizer = TokenizerFiles::new(homes);
        let config = merged_config(base.config(), &merge);
        let origin = own.unwrap_or(base.path()).to_owned();
        Ok(MergedFolder { base, tensors, adapters, merge, config, tokenizer, origin })
    }

    /// What files are named after.
    pub(super) fn name(&self) -> String {
        name_of(&self.origin)
    }
}

/// Opens a model folder under GGUF names.
fn open_folder(request: &Request, folder: &Path, own: Option<&Path>) -> Result<Opened, ConvertError> {
    let merged = MergedFolder::open(request, folder, own)?;
    let name = merged.name();
    let MergedFolder { base, tensors, adapters, mut merge, config, tokenizer: files, origin, .. } = merged;
    let mut converted = arch::convert(&ArchInput {
        config: &config,
        config_file: &folder.join("config.json"),
        tensors: &tensors,
        folder: if origin.is_dir() { &origin } else { folder },
        tokenizer_folder: files.model_folder().or(files.home()).unwrap_or(folder),
        name: None,
    })?;
    adapters.merge_converted(&mut converted, &mut merge)?;
    let tied = ["/tie_word_embeddings", "/text_config/tie_word_embeddings"];
    let tied = tied.iter().find_map(|p| base.config().pointer(p)?.as_bool());
    unplaced::check(converted.arch, &converted.dropped, tied, &mut merge)?;
    let mut warnings = merge.warnings.clone();
    let options = TokenizerOptions {
        pre_tokenizer: request.pre_tokenizer.clone(),
        kind: converted.vocab,
        ..TokenizerOptions::default()
    };
    let tokenizer = Tokenizer::load(&files, &config, &options)?;

    let rows = converted.tensors.iter().find(|t| t.name == "token_embd.weight").map_or(0, |t| t.recipe.shape().rows());
    if let VocabFit::Excess { tokens, rows, without_row } = tokenizer.fit(rows) {
        let some = without_row.iter().take(3).map(|t| format!("{t:?}")).collect::<Vec<_>>().join(", ");
        let more = if without_row.len() > 3 { ", …" } else { "" };
        warnings.push(format!(
            "the tokenizer has {tokens} tokens, the embedding {rows} rows: left out {some}{more}; the model was never \
             trained on them, or the adapter that adds their rows is missing"
        ));
    }
    let auto = match base.packing() {
        Some(_) => arch::guess_output_type(base.stored_matrices()),
        None => {
            let matrices = tensors.iter().filter(|(_, recipe)| recipe.shape().ndim() >= 2);
            arch::guess_output_type(matrices.map(|(name, recipe)| (name, recipe.precision())))
        }
    };
    let mut metadata: Metadata = converted.metadata;
    metadata.extend(tokenizer.metadata(rows));
    metadata.extend(converted.late_metadata);
    let report = ModelReport {
        path: folder.to_owned(),
        architecture: converted.arch.to_owned(),
        tensors: base.tensors().len(),
        parameters: 0,
        bytes: base.size_bytes(),
        quantization: base.packing(),
        dropped: converted
            .dropped
            .into_iter()
            .map(|(tensor, reason)| Dropped { tensor, reason: reason.to_owned() })
            .collect(),
    };
    let (tokenizer_files, notes) = saved_files(&files, &TOKENIZER_FILES)?;
    warnings.extend(notes);
    let mut input = chat(&tokenizer, base.generation_config(), &metadata, converted.arch);
    input.licenses = licenses(&[origin.as_path(), base.path()]);
    let chat = Chat { input, projectors: Vec::new() };
    Ok(Opened {
        name,
        model: Model { metadata, tensors: Tensors::Converted { tensors: converted.tensors, auto } },
        tokenizer_files,
        chat,
        report,
        adapters: adapters.reports(&merge),
        merge,
        warnings,
    })
}

/// The model's configuration as merging leaves it: a head of its own, another vocabulary, more layers.
fn merged_config(config: &serde_json::Value, merge: &MergeSummary) -> serde_json::Value {
    let mut config = config.clone();
    let set = |config: &mut serde_json::Value, key: &str, value: serde_json::Value| {
        let Some(whole) = config.as_object_mut() else { return };
        // Models of several parts keep the language model's settings in a table of their own.
        let nested = whole.get("text_config").is_some_and(|t| t.get(key).is_some());
        let table = if nested { whole["text_config"].as_object_mut() } else { Some(whole) };
        table.and_then(|t| t.insert(key.to_owned(), value));
    };
    if merge.untied_head.is_some() {
        set(&mut config, "tie_word_embeddings", false.into());
        // A model of several parts may say it twice.
        if let Some(whole) = config.get_mut("tie_word_embeddings") {
            *whole = false.into();
        }
    }
    if let Some(rows) = merge.vocab_size {
        set(&mut config, "vocab_size", rows.into());
    }
    if let Some(map) = &merge.layer_map {
        replicate(&mut config, map);
    }
    config
}

/// Sets the number of layers, and repeats what a config lists layer by layer (`layer_types`) as they were.
fn replicate(config: &mut serde_json::Value, map: &[u64]) {
    const COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
    let whole = |c: &serde_json::Value| COUNTS.iter().find_map(|k| Some((*k, c.get(*k)?.as_u64()?)));
    let nested = config.get("text_config").is_some_and(|t| whole(t).is_some());
    let table = if nested { &mut config["text_config"] } else { config };
    let Some((key, before)) = whole(table) else { return };
    table[key] = map.len().into();
    let lists = table.as_object_mut().into_iter().flat_map(|t| t.iter_mut());
    for (_, list) in lists.filter(|(key, _)| key.contains("layer")) {
        if let Some(list) = list.as_array_mut().filter(|l| l.len() as u64 == before) {
            *list = map.iter().filter_map(|&layer| list.get(layer as usize).cloned()).collect();
        }
    }
}

/// A folder's own name, also for `.` and `..`; a file's without its ending.
pub(super) fn name_of(path: &Path) -> String {
    let name = if path.is_file() {
        path.file_stem().map(ToOwned::to_owned)
    } else {
        let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        resolved.file_name().map(ToOwned::to_owned)
    };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// What a Modelfile needs to know of a model.
pub(super) fn chat(
    tokenizer: &Tokenizer,
    generation_config: Option<&serde_json::Value>,
    metadata: &Metadata,
    arch: &str,
) -> ModelfileInput {
    let added: Vec<(String, bool)> = tokenizer.added_tokens().map(|(_, text, special)| (text, special)).collect();
    ModelfileInput {
        from: Vec::new(),
        adapter: None,
        chat: ChatInput {
            template: tokenizer.chat_templates().default.clone(),
            bos_token: tokenizer.special_text(Special::Bos),
            eos_token: tokenizer.special_text(Special::Eos),
            add_bos: metadata.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool),
            special_tokens: added.iter().filter(|(_, special)| *special).map(|(t, _)| t.clone()).collect(),
            added_tokens: added.into_iter().map(|(t, _)| t).collect(),
            eos_tokens: tokenizer.ends().into_iter().map(|(_, t)| t).collect(),
        },
        generation_config: generation_config.cloned(),
        context_length: metadata.get(&format!("{arch}.context_length")).and_then(Value::as_u64),
        architecture: Some(arch.to_owned()),
        licenses: Vec::new(),
        system: None,
        messages: Vec::new(),
    }
}
