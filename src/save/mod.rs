//! Files that appear whole or not at all, and the formats that rows are saved in.

pub mod adapter_file;
mod atomic;
mod flush;
mod gguf;
mod merged;
mod nf4;
mod safetensors;
pub mod shards;
mod torch_zip;

pub use atomic::{AtomicFile, OutputError, OutputSet, sweep};
pub use gguf::{GgufSink, GgufTarget};
pub use merged::{MergedError, MergedSink, MergedTarget, Place, packed_specs};
pub use safetensors::{ShardError, ShardLayout, TensorSpec};
