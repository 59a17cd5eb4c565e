//! Files that appear whole or not at all, and the formats other than GGUF that rows are saved in.

pub mod adapter_file;
mod atomic;
mod gguf;
mod torch_zip;

pub use atomic::{AtomicFile, OutputError, OutputSet, sweep};
pub use gguf::{GgufSink, GgufTarget};
