//! Files that appear whole or not at all, and the formats other than GGUF that rows are saved in.

mod atomic;
mod gguf;

pub use atomic::{AtomicFile, OutputError, OutputSet, sweep};
pub use gguf::{GgufSink, GgufTarget};
