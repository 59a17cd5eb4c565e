//! What a conversion is asked to do, and where its files go.

use std::path::{Path, PathBuf};

use super::ConvertError;
use crate::adapter::MergeDtype;
use crate::ollama::Wishes;
use crate::plan::PlanOptions;
use crate::quant::{FileType, GgmlType, Imatrix, ImatrixFilter, QuantName};

/// A conversion as the user asks for it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Model folder, adapter folder, GGUF file or Hub id.
    pub model: String,
    /// Adapters to merge, beyond the model's own.
    pub adapters: Vec<AdapterRequest>,
    /// Which of several adapters in one folder, by name.
    pub adapter: Option<String>,
    /// Where the base of an adapter is, if not where the adapter says.
    pub base: Option<String>,
    /// How the result is saved.
    pub method: Method,
    /// Types to write, of a GGUF.
    pub quants: Vec<QuantName>,
    /// A `.gguf` file or a folder; `./NAME-gguf` if not given.
    pub output: Option<PathBuf>,
    /// The quantizer's and the splitter's options.
    pub plan: PlanOptions,
    /// The type that merged sums are rounded to.
    pub merge_dtype: MergeDtype,
    /// File of importance weights.
    pub imatrix: Option<PathBuf>,
    /// Which of its weights to use.
    pub imatrix_filter: ImatrixFilter,
    /// The pre-tokenizer's name, where it is not to be recognised.
    pub pre_tokenizer: Option<String>,
    /// Whether a Modelfile is to be written.
    pub modelfile: bool,
    /// What it is to say beyond what the model says.
    pub wishes: Wishes,
    /// Whether existing files may be replaced.
    pub force: bool,
}

/// The ways to save, with what only each of them needs.
#[derive(Clone, Debug)]
pub enum Method {
    /// GGUF files.
    Gguf,
    /// The merged model under its own names.
    Merged(MergedOptions),
    /// The adapters alone.
    Lora(AdapterSave),
}

/// How adapters are saved without their model.
#[derive(Clone, Copy, Debug)]
pub struct AdapterSave {
    /// What as.
    pub format: AdapterFormat,
    /// Whether a PEFT folder's weights are safetensors; otherwise a pickle.
    pub safe: bool,
    /// Whether embedding and head are saved beside the factors.
    pub embeddings: SaveEmbeddings,
}

/// What an adapter is saved as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterFormat {
    /// A folder as PEFT saves it.
    Peft,
    /// A GGUF.
    Gguf,
}

/// PEFT's `save_embedding_layers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveEmbeddings {
    /// Where the adapter targets them, or the vocabulary was resized.
    Auto,
    /// Always.
    Yes,
    /// Only where they are modules_to_save.
    No,
}

/// How a merged model is saved.
#[derive(Clone, Copy, Debug)]
pub struct MergedOptions {
    /// The type of its weights, where it is not to be the base's.
    pub dtype: Option<GgmlType>,
    /// Whether its linear layers are packed in four bits, as bitsandbytes does.
    pub four_bit: bool,
    /// Bytes of tensors from which a new shard begins.
    pub max_shard_size: u64,
}

/// One `--lora`.
#[derive(Clone, Debug)]
pub struct AdapterRequest {
    /// The adapter's folder.
    pub path: PathBuf,
    /// Factor of its changes.
    pub weight: f32,
}

/// Where the files of a conversion go.
pub(super) enum Place {
    /// One GGUF and nothing else.
    File(PathBuf),
    /// A folder of files that begin with a name.
    Folder { folder: PathBuf, name: String },
}

impl Request {
    /// A request for an adapter alone, as f32 where a type is asked for, with all else as it is by default.
    pub(super) fn adapter_only(adapter: &Path, method: Method) -> Self {
        Request {
            model: adapter.to_string_lossy().into_owned(),
            adapters: Vec::new(),
            adapter: None,
            base: None,
            method,
            quants: vec![QuantName::Type(FileType::F32)],
            output: None,
            plan: PlanOptions::default(),
            merge_dtype: MergeDtype::F32,
            imatrix: None,
            imatrix_filter: ImatrixFilter::All,
            pre_tokenizer: None,
            modelfile: true,
            wishes: Wishes::default(),
            force: false,
        }
    }

    /// The importance weights, filtered as asked.
    pub(super) fn imatrix(&self) -> Result<Option<Imatrix>, ConvertError> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        let imatrix = Imatrix::open(path, &self.imatrix_filter)?;
        Ok((!imatrix.is_empty()).then_some(imatrix))
    }

    /// Where the files go, for a model of this name; `kind` ends the name of the folder where none is given.
    pub(super) fn place(&self, name: &str, kind: &str) -> Result<Place, ConvertError> {
        let folder = match &self.output {
            Some(path) if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) => {
                if self.quants.len() > 1 {
                    return Err(ConvertError::OneFile { path: path.clone(), types: self.quants.len() });
                }
                return Ok(Place::File(path.clone()));
            }
            Some(path) => path.clone(),
            None => PathBuf::from(format!("{name}-{kind}")),
        };
        if folder.exists() && !folder.is_dir() {
            return Err(ConvertError::NotAFolder { path: folder });
        }
        Ok(Place::Folder { folder, name: name.to_owned() })
    }
}

impl Place {
    /// Paths of the GGUFs of one type. A model that is split has numbers in its names, also where one part is enough.
    pub(super) fn gguf_paths(&self, label: &str, count: usize, split: bool) -> Vec<PathBuf> {
        let one = count == 1 && !split;
        let prefix = match self {
            Place::File(path) if one => return vec![path.clone()],
            Place::File(path) => path.with_extension(""),
            Place::Folder { folder, name } if one => return vec![folder.join(format!("{name}-{label}.gguf"))],
            Place::Folder { folder, name } => folder.join(format!("{name}-{label}")),
        };
        (0..count).map(|no| crate::gguf::part_path(&prefix, no, count)).collect()
    }

    /// The folder, unless one file is all that is wanted.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Place::File(_) => None,
            Place::Folder { folder, .. } => Some(folder),
        }
    }
}
