//! What can be wrong with a model on disk. Each message names the file or tensor, the cause, and what to do.

use std::path::{Path, PathBuf};

use crate::shape::Shape;

/// A model, an adapter or a weight file could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The system refused to read a file.
    #[error("{}: {source}; check that the file is there and readable", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing that the program can convert is at this place.
    #[error("{name}: {cause}{}; {remedy}", listed(tried))]
    NoModel {
        /// What the user typed, or a folder.
        name: String,
        /// Why it is none.
        cause: String,
        /// Places that were looked at.
        tried: Vec<PathBuf>,
        /// What to do.
        remedy: String,
    },
    /// A JSON file does not parse, or lacks what it must hold.
    #[error("{}: {cause}; {}", path.display(), RELOAD)]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: String,
    },
    /// A file that should hold weights holds something else: a Git LFS pointer, a web page, nothing.
    #[error("{}: is {found}, not weights; {remedy}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The header of a weight file breaks a rule of its format.
    #[error("{}: {cause}; {}", path.display(), RELOAD)]
    Header {
        /// The file.
        path: PathBuf,
        /// Which rule, and the tensor.
        cause: String,
    },
    /// The file ends before the data that its header announces.
    #[error("{}: is truncated: {expected} bytes announced, {found} present; {}", path.display(), RELOAD)]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header announces.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// The place that the header gives a tensor is not one it can have.
    #[error("{}: tensor {tensor}: {cause}; {}", path.display(), RELOAD)]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Which rule it breaks, with both values.
        cause: String,
    },
    /// The index names a weight file that is not there.
    #[error(
        "{}: the index names shard {shard}, which is missing ({tensors} tensors are in it); \
         download the shard into the folder",
        index.display()
    )]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing file's name.
        shard: String,
        /// Tensors that the index places there.
        tensors: usize,
    },
    /// File names say that there are more shards than are present.
    #[error("{}: shard {missing} of {count} is missing; download it into the folder", folder.display())]
    MissingPart {
        /// The model folder.
        folder: PathBuf,
        /// Name of the missing file.
        missing: String,
        /// How many shards there should be.
        count: u64,
    },
    /// The index and the shards disagree on which tensors there are.
    #[error("{}: tensor {tensor} {cause}; {}", index.display(), RELOAD)]
    IndexMismatch {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it is and where not.
        cause: String,
    },
    /// Two shards hold a tensor of the same name but of different shapes.
    #[error(
        "{}: tensor {tensor} has shape {here}, but {there} in {}; remove the file that does not belong to the model",
        path.display(),
        other.display()
    )]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// One file.
        path: PathBuf,
        /// Its shape there.
        here: Box<Shape>,
        /// The other file.
        other: PathBuf,
        /// Its shape there.
        there: Box<Shape>,
    },
    /// A tensor has an element type that the program does not decode.
    #[error("{}: tensor {tensor} has element type {dtype}; use a copy of the model in bf16, f16 or f32", path.display())]
    Element {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element type by its name in the file.
        dtype: String,
    },
    /// A PyTorch file holds something other than tensors and plain containers.
    #[error("{}: {cause}; {remedy}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What was met, by name.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The model is packed in a way that the program does not decode.
    #[error("quantization_config: {method} weights: {cause}; pass the 16-bit model instead (--base for an adapter)")]
    Packing {
        /// The quantization method.
        method: String,
        /// What is not supported, or contradicts itself.
        cause: String,
    },
    /// A packed tensor lacks a part, or a part does not fit.
    #[error("{}: {tensor} ({method}): {cause}; {}", path.display(), RELOAD)]
    PackedTensor {
        /// The file.
        path: PathBuf,
        /// The packed tensor or its module.
        tensor: String,
        /// The quantization method.
        method: &'static str,
        /// What is missing or wrong, with both values.
        cause: String,
    },
}

const RELOAD: &str = "download the file again or save the model anew";

fn listed(tried: &[PathBuf]) -> String {
    if tried.is_empty() {
        return String::new();
    }
    let names: Vec<String> = tried.iter().map(|p| p.display().to_string()).collect();
    format!(" (tried {})", names.join(", "))
}

impl SourceError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        SourceError::Io { path: path.to_path_buf(), source }
    }

    pub(super) fn header(path: &Path, cause: impl Into<String>) -> Self {
        SourceError::Header { path: path.to_path_buf(), cause: cause.into() }
    }

    pub(super) fn tensor(path: &Path, tensor: &str, cause: impl Into<String>) -> Self {
        SourceError::Tensor { path: path.to_path_buf(), tensor: tensor.to_string(), cause: cause.into() }
    }

    pub(super) fn json(path: &Path, cause: impl Into<String>) -> Self {
        SourceError::Json { path: path.to_path_buf(), cause: cause.into() }
    }
}
