//! What can be wrong with a GGUF file, and with the description of one to write.

use std::path::PathBuf;

use crate::quant::GgmlType;
use crate::shape::Shape;

/// A GGUF file that cannot be read. Every variant names the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
#[non_exhaustive]
pub enum GgufError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: the file is empty; download or copy it again", path.display())]
    Empty { path: PathBuf },
    #[error("{}: not a GGUF file (it begins with {magic:02x?}); give a file that llama.cpp's tools or to-gguf wrote", path.display())]
    NotGguf { path: PathBuf, magic: Vec<u8> },
    #[error("{}: a big-endian GGUF (its version reads {version:#x}); convert it with gguf-py's gguf_convert_endian first", path.display())]
    BigEndian { path: PathBuf, version: u32 },
    #[error("{}: GGUF version {version} is not supported (2 and 3 are); write the file again with a current llama.cpp", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error(
        "{}: truncated: {what} needs {needed} bytes at offset {offset}, and the file has {size}; download or copy it again", path.display()
    )]
    Truncated { path: PathBuf, what: String, offset: u64, needed: u64, size: u64 },
    #[error("{}: {what} is {value}, more than the {limit} allowed; the file is damaged", path.display())]
    TooLarge { path: PathBuf, what: String, value: u64, limit: u64 },
    #[error("{}: {what} is not UTF-8 text; the file is damaged", path.display())]
    NotUtf8 { path: PathBuf, what: String },
    #[error("{}: key number {index} is empty; the file is damaged", path.display())]
    EmptyKey { path: PathBuf, index: u64 },
    #[error("{}: the key '{key}' stands there twice; the file is damaged", path.display())]
    DuplicateKey { path: PathBuf, key: String },
    #[error("{}: the key '{key}' has the unknown value type {id}; the file is damaged or newer than this program", path.display())]
    ValueType { path: PathBuf, key: String, id: u32 },
    #[error("{}: the array of key '{key}' is nested more than {limit} deep; the file is damaged", path.display())]
    Nesting { path: PathBuf, key: String, limit: u32 },
    #[error("{}: general.alignment is {found}, and must be a power of two in 32 bits; the file is damaged", path.display())]
    Alignment { path: PathBuf, found: String },
    #[error("{}: the tensor '{tensor}' is there twice (second time in {}); the file is damaged", first.display(), path.display())]
    DuplicateTensor { path: PathBuf, first: PathBuf, tensor: String },
    #[error("{}: tensor '{tensor}' has {found} dimensions, and GGUF allows 4; the file is damaged", path.display())]
    Dimensions { path: PathBuf, tensor: String, found: u32 },
    #[error("{}: the shape {ne:?} of tensor '{tensor}' overflows 64 bits; the file is damaged", path.display())]
    Overflow { path: PathBuf, tensor: String, ne: Vec<u64> },
    #[error(
        "{}: tensor '{tensor}' has the type number {id}, which ggml {}; write the file again with a current llama.cpp", path.display(),
        if is_removed(*id) { "has removed" } else { "does not store in files" }
    )]
    TensorType { path: PathBuf, tensor: String, id: u32 },
    #[error(
        "{}: tensor '{tensor}' {shape} of type {kind} has rows that are not whole blocks of {block}; the file is damaged", path.display()
    )]
    RaggedRow { path: PathBuf, tensor: String, shape: Shape, kind: GgmlType, block: u64 },
    #[error("{}: tensor '{tensor}' begins at {offset}, which is not a multiple of {alignment}; the file is damaged", path.display())]
    Misaligned { path: PathBuf, tensor: String, offset: u64, alignment: u64 },
    #[error("{}: the data of the tensors '{first}' and '{second}' overlap; the file is damaged", path.display())]
    Overlap { path: PathBuf, first: String, second: String },
    #[error(
        "{}: this is part {} of {count}; give the first part, {}", path.display(), no + 1, expected.display()
    )]
    NotFirstPart { path: PathBuf, no: u64, count: u64, expected: PathBuf },
    #[error(
        "{}: it says that it is part {} of {count}, but its name does not end in -{:05}-of-{count:05}.gguf; rename the parts as they were",
        path.display(), no + 1, no + 1
    )]
    PartName { path: PathBuf, no: u64, count: u64 },
    #[error("{}: expected part {} of {count}, and the file says {found}; put the parts of one model together", path.display(), no + 1)]
    PartNumber { path: PathBuf, no: u64, count: u64, found: String },
    #[error("{}: the parts hold {found} tensors, and split.tensors.count says {expected}; a part is missing or from another model", path.display())]
    PartTensors { path: PathBuf, found: u64, expected: u64 },
    #[error("{}: rows {start}..{end} of tensor '{tensor}' were asked for, which has {rows}", path.display())]
    Rows { path: PathBuf, tensor: String, start: u64, end: u64, rows: u64 },
    #[error("{}: {rows} rows of tensor '{tensor}' are {needed} bytes, and the buffer has {given}", path.display())]
    Buffer { path: PathBuf, tensor: String, rows: u64, needed: u64, given: u64 },
}

/// Numbers of types that ggml once wrote and has given up (Q4_2, Q4_3, Q4_0_4_4 and its siblings, IQ4_NL_4_4 ...).
fn is_removed(id: u32) -> bool {
    matches!(id, 4 | 5 | 31..=33 | 36..=38)
}

/// A file that must not be written as described.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum LayoutError {
    #[error("the tensor name '{0}' has {len} bytes, and llama.cpp reads at most {limit}; rename the tensor", len = .0.len(), limit = super::MAX_NAME)]
    NameTooLong(String),
    #[error("the tensor name '{0}' is used twice; rename one of them")]
    DuplicateName(String),
    #[error("tensor '{tensor}' has {found} dimensions, and GGUF allows 4; merge some of them")]
    Dimensions { tensor: String, found: usize },
    #[error(
        "tensor '{tensor}' {shape} cannot be {kind}: a row of {row} is not whole blocks of {block}; choose another type for it"
    )]
    RaggedRow { tensor: String, shape: Shape, kind: GgmlType, row: u64, block: u64 },
    #[error("tensor '{tensor}' ends beyond 2^64 bytes; check its shape {shape}")]
    TooLarge { tensor: String, shape: Shape },
    #[error("general.alignment is {0}, and must be a power of two as u32; correct the key")]
    Alignment(String),
    #[error("the file would have {0} parts, and GGUF counts at most 65535; choose a larger limit")]
    TooManyParts(usize),
    #[error("a limit of zero would leave no room for a tensor; choose a larger one")]
    ZeroLimit,
}
