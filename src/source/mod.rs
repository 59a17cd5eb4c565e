//! A model on disk as named tensors: safetensors, PyTorch files, GGUF; plain and packed formats.
//!
//! [`resolve_model`] finds what the user named, [`ModelFolder`] opens it: headers are read and checked in full,
//! weights are read later, by position, a few rows at a time.

mod element;
mod error;
mod file;
mod folder;
mod gguf;
mod packed;
mod resolve;
mod safetensors;
mod stored;
mod tensors;
mod torch;

pub(crate) use element::round_all;
pub use error::SourceError;
pub use file::WeightFile;
pub use folder::{ModelFolder, TOKENIZER_FILES, open_stored, open_weight_file, read_json, tokenizer_files};
pub use gguf::GgufModel;
pub(crate) use packed::NF4;
pub use resolve::{Model, Places, base_of_adapter, resolve_base, resolve_model};
pub use stored::Stored;
pub use tensors::TensorSet;
