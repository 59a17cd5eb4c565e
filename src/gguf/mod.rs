//! The GGUF format: typed metadata, reading and writing.
//!
//! A file is a header (counts, keys, tensor descriptions), padding, and the tensors' bytes, each at a multiple of
//! the alignment. [`Layout`] computes a header and every offset without any I/O; [`GgufFile`] reads one back,
//! split files included, and trusts nothing that it reads.

mod diff;
mod error;
mod inspect;
mod layout;
mod reader;
mod split;
mod value;

pub use diff::{ByteDifference, DiffError, DiffReport, KeyDifference, TensorDifference, ValueDistance, diff};
pub use error::{GgufError, LayoutError};
pub use inspect::{Inspection, KeyReport, TensorReport, TypeReport, inspect, shown_value};
pub use layout::{DEFAULT_ALIGNMENT, Layout, MAX_NAME, TensorInfo};
pub use reader::{GgufFile, GgufTensor, Part};
pub use split::{SplitLimit, SplitRule, part_path, split};
pub use value::{Array, Metadata, Value};
