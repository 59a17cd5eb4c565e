//! What can be wrong with an adapter. Every variant names the adapter, its tensor or option, and both values.

use std::path::PathBuf;

use crate::gguf::GgufError;
use crate::recipe::{ReadError, ShapeError};
use crate::shape::Shape;
use crate::source::SourceError;

/// An adapter could not be read, or does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A file could not be read.
    #[error("{}: {source}; check that the adapter folder is complete and readable", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder is no adapter.
    #[error("{}: no adapter_config.json{hint}; name the folder that PEFT's save_pretrained wrote", path.display())]
    NoConfig {
        /// The folder.
        path: PathBuf,
        /// Adapters found in folders beneath, in words.
        hint: String,
    },
    /// The folder has a config, but no weights.
    #[error(
        "{}: neither adapter_model.safetensors nor adapter_model.bin; save the adapter again or copy its weights here",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A setting of adapter_config.json has an impossible value.
    #[error("{}: {key} {cause}; restore the file that PEFT wrote", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// This kind of adapter has no merged form, or not from what its file holds.
    #[error("{adapter}: {what} cannot be merged: {reason}; {remedy}")]
    NotMergeable {
        /// The adapter.
        adapter: String,
        /// The kind or option.
        what: String,
        /// Why not.
        reason: String,
        /// The way out.
        remedy: String,
    },
    /// Tensors that no rule explains.
    #[error("{adapter}: tensor {tensor} is not understood{}; {hint}", more(*others))]
    Unconsumed {
        /// The adapter.
        adapter: String,
        /// The first such tensor.
        tensor: String,
        /// How many others.
        others: usize,
        /// What may have happened.
        hint: String,
    },
    /// The adapter changes a module that the model does not have.
    #[error("{adapter}: tensor {tensor} changes {module}, which the model does not have{advice}")]
    NoSuchModule {
        /// The adapter.
        adapter: String,
        /// Its tensor.
        tensor: String,
        /// The module as the adapter names it.
        module: String,
        /// What the model has instead, and the way out.
        advice: String,
    },
    /// The adapter's name for a module fits several tensors of the model.
    #[error(
        "{adapter}: {module} could be {first} or {second} of the model; rename the adapter's tensors to one of them"
    )]
    Ambiguous {
        /// The adapter.
        adapter: String,
        /// The module as the adapter names it.
        module: String,
        /// One tensor.
        first: String,
        /// Another.
        second: String,
    },
    /// A tensor is there without another that it needs.
    #[error(
        "{adapter}: {module} has {has} but no {needs}; the adapter's file is incomplete, save or download it again"
    )]
    Missing {
        /// The adapter.
        adapter: String,
        /// The module.
        module: String,
        /// What is there.
        has: String,
        /// What is not.
        needs: String,
    },
    /// A tensor's shape does not fit the model's.
    #[error(transparent)]
    Mismatch(Box<Mismatch>),
    /// The rank of the file and that of the config disagree, so the scale is unknown.
    #[error(
        "{adapter}: tensor {tensor} has rank {found}, but adapter_config.json says {expected} for {module}; restore the \
         config that belongs to these weights"
    )]
    Rank {
        /// The adapter.
        adapter: String,
        /// Its tensor.
        tensor: String,
        /// The module.
        module: String,
        /// Rank of the tensor.
        found: u64,
        /// Rank of the config.
        expected: u64,
    },
    /// Two adapters cannot be combined.
    #[error("{first} and {second} cannot be combined: {cause}; merge one of them")]
    Conflict {
        /// One adapter.
        first: String,
        /// The other.
        second: String,
        /// Why not.
        cause: String,
    },
    /// A form that is no product of two matrices.
    #[error(
        "{adapter}: {what} cannot be part of one LoRA made of weighted adapters; merge into the model instead (leave out \
         --save-method lora)"
    )]
    NotCombinable {
        /// The adapter.
        adapter: String,
        /// The form.
        what: String,
    },
    /// A value of the model's or adapter's configuration makes a form impossible.
    #[error("{adapter}: {what}: {cause}")]
    Unfit {
        /// The adapter.
        adapter: String,
        /// The tensor or option.
        what: String,
        /// Why, and what to do.
        cause: String,
    },
    /// A weight file could not be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A GGUF adapter could not be opened.
    #[error(transparent)]
    Gguf(Box<GgufError>),
    /// Recipes do not fit together.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Reading factors failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A tensor of an adapter does not fit the tensor of the model that it changes.
#[derive(Debug, thiserror::Error)]
#[error(
    "{adapter}: tensor {tensor} has shape {shape}, but {target} {target_shape} needs {needs}; use the base model that \
     the adapter was trained on{base}"
)]
pub struct Mismatch {
    /// The adapter.
    pub adapter: String,
    /// Its tensor.
    pub tensor: String,
    /// The tensor's shape.
    pub shape: Shape,
    /// The tensor of the model.
    pub target: String,
    /// The shape of that.
    pub target_shape: Shape,
    /// What would fit, in words.
    pub needs: String,
    /// The base model that the adapter names, in brackets, or nothing.
    pub base: String,
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        n => format!(" (nor are {n} others)"),
    }
}
