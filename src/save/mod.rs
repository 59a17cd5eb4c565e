//! Files that appear whole or not at all, and the formats other than GGUF that rows are saved in.

mod atomic;

pub use atomic::{AtomicFile, OutputError, OutputSet, sweep};
