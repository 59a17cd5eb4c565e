//! The GGUF format: typed metadata, reading and writing.

mod value;

pub use value::{Array, Metadata, Value};
