//! Every way in which a conversion can fail: the rooms' errors, and those of putting them together.

use std::io;
use std::path::{Path, PathBuf};

use crate::gguf::GgufError;
use crate::plan::PlanError;
use crate::quant::ImatrixError;
use crate::save::OutputError;
use crate::source::SourceError;
use crate::stream::{SinkError, StreamError};

/// A conversion failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The model's files.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// An adapter.
    #[error(transparent)]
    Adapter(#[from] crate::adapter::AdapterError),
    /// The architecture.
    #[error(transparent)]
    Arch(#[from] crate::arch::ArchError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// The importance matrix.
    #[error(transparent)]
    Imatrix(#[from] ImatrixError),
    /// The choice of types and the layout.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The streaming.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Writing rows.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The output files.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// An adapter that changes more of a GGUF than its weights.
    #[error(
        "{}: the adapter changes the {what}, and a GGUF's own keys cannot follow; merge into the model folder instead",
        path.display()
    )]
    ReshapesGguf {
        /// The GGUF.
        path: PathBuf,
        /// What changes, in words.
        what: &'static str,
    },
    /// An adapter that changes the output head of an architecture whose head is its embeddings.
    #[error(
        "the adapter changes {tensor}, and llama.cpp takes no head of its own for {arch}: the change would be lost; use \
         --save-method merged_16bit"
    )]
    NoHead {
        /// The head.
        tensor: String,
        /// The architecture.
        arch: String,
    },
    /// An adapter without the model that it belongs to.
    #[error("{}: is an adapter, not a model; name its model with --base", path.display())]
    NoBase {
        /// The adapter.
        path: PathBuf,
    },
    /// A projector that is none.
    #[error("--mmproj {path}: this GGUF is {}, not a projector; give the mmproj file", article(kind))]
    NoProjector {
        /// The GGUF.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A merged model of a GGUF.
    #[error(
        "--save-method: {path} is a GGUF, whose tensors have no names of their own; give the folder it was made from"
    )]
    MergedGguf {
        /// The GGUF.
        path: PathBuf,
    },
    /// A model without a layer that four bits are for.
    #[error("{path}: has no linear layer that bitsandbytes would pack; use --save-method merged_16bit")]
    NothingToPack {
        /// The model.
        path: PathBuf,
    },
    /// A folder is needed for several files.
    #[error("--output {path}: a merged model is a folder of files; give a folder's name")]
    NeedsFolder {
        /// The path.
        path: PathBuf,
    },
    /// The result would stand where its sources do.
    #[error("--output {path}: holds a model or an adapter that is read, and would be damaged; give another folder")]
    OverSource {
        /// The folder.
        path: PathBuf,
    },
    /// The header of a shard.
    #[error(transparent)]
    Shard(#[from] crate::save::ShardError),
    /// Finishing the shards of a merged model.
    #[error(transparent)]
    Merged(#[from] crate::save::MergedError),
    /// A tensor that is copied could not be read.
    #[error("tensor '{tensor}': {cause}")]
    Copy {
        /// The tensor.
        tensor: String,
        /// Why.
        #[source]
        cause: crate::recipe::ReadError,
    },
    /// One output file for several types.
    #[error("--output {path}: one file cannot hold {types} types; give a folder, or one --quant type")]
    OneFile {
        /// The file.
        path: PathBuf,
        /// Number of types.
        types: usize,
    },
    /// Adapter-only output of a model that has no adapter.
    #[error("--save-method lora: {path} is a model, and no adapter is named; name one with --lora, or give its folder")]
    NoAdapter {
        /// The model.
        path: PathBuf,
    },
    /// Adapter-only output over a GGUF.
    #[error("{path}: is a GGUF, but the adapter's base is needed as a folder with config.json; give it with --base")]
    AdapterOfGguf {
        /// The GGUF.
        path: PathBuf,
    },
    /// There is nothing to extract.
    #[error("{tuned}: no tensor differs from {base} where --target looks; give the fine-tuned model as --tuned")]
    NoDifference {
        /// The base.
        base: String,
        /// The other model.
        tuned: String,
    },
    /// A tensor that a GGUF adapter has no place for.
    #[error(
        "--format gguf: {tensor} was trained whole, which a GGUF adapter cannot hold; use --format peft, or leave it out \
         with --target"
    )]
    WholeInGguf {
        /// The tensor.
        tensor: String,
    },
    /// A PEFT adapter is a folder.
    #[error("--output {path}: names a GGUF, but --format peft writes a folder; name a folder, or use --format gguf")]
    PeftNeedsFolder {
        /// The path.
        path: PathBuf,
    },
    /// The embedding's weights are wanted and not there.
    #[error(
        "--save-embedding-layers yes: neither the adapter nor its base has the weights of the embedding here; give the \
         base with --base"
    )]
    NoEmbeddings,
    /// A PEFT adapter's weight file.
    #[error(transparent)]
    AdapterFile(#[from] crate::save::adapter_file::AdapterFileError),
    /// A GGUF adapter.
    #[error(transparent)]
    AdapterGguf(#[from] super::AdapterGgufError),
    /// The output folder is a file.
    #[error("--output {path}: is a file, but a folder is needed; give a name that ends in .gguf, or another folder")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A small file could not be read or written.
    #[error("{path}: cannot {action}: {cause}; check its permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

impl ConvertError {
    pub(super) fn io(path: &Path, action: &'static str, cause: io::Error) -> Self {
        ConvertError::Io { path: path.to_owned(), action, cause }
    }
}

/// A word with its article.
fn article(word: &str) -> String {
    format!("{} {word}", if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
}
