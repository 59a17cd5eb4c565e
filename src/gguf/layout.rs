//! Where everything stands in a GGUF file: the header's bytes, each tensor's offset, the file's size.
//!
//! ```text
//! "GGUF" u32 version=3  u64 tensors  u64 keys
//! key:    string, u32 value type, value                    string = u64 length, bytes
//! tensor: string, u32 n_dims, u64 ne[n_dims] fastest first, u32 type, u64 offset from the data's start
//! zeros to the alignment, then every tensor's bytes, each padded with zeros to the alignment
//! ```
//!
//! Source: `ggml/docs/gguf.md`; `gguf_write_out` in ggml and `GGUFWriter` in gguf-py, which write the same bytes.

use std::collections::HashSet;

use super::{Array, LayoutError, Metadata, Value};
use crate::quant::GgmlType;
use crate::shape::Shape;

/// Alignment of tensor data where `general.alignment` does not say otherwise (`GGUF_DEFAULT_ALIGNMENT`).
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Longest tensor name in bytes that llama.cpp reads (`GGML_MAX_NAME` − 1).
pub const MAX_NAME: usize = 63;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Dimensions; written fastest first.
    pub shape: Shape,
    /// Element or block type.
    pub kind: GgmlType,
}

/// The layout of one file: pure arithmetic, so a plan is exact to the byte before a weight is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    header: Vec<u8>,
    places: Vec<(u64, u64)>,
    alignment: u64,
    size: u64,
}

impl Layout {
    /// Lays out keys and tensors in the order given.
    pub fn new(metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Self, LayoutError> {
        let alignment = alignment(metadata)?;
        let mut header = Vec::new();
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_string(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }

        let mut names = HashSet::with_capacity(tensors.len());
        let mut places = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for t in tensors {
            if t.name.len() > MAX_NAME {
                return Err(LayoutError::NameTooLong(t.name.clone()));
            }
            if !names.insert(t.name.as_str()) {
                return Err(LayoutError::DuplicateName(t.name.clone()));
            }
            if t.shape.ndim() > 4 {
                return Err(LayoutError::Dimensions { tensor: t.name.clone(), found: t.shape.ndim() });
            }
            let too_large = || LayoutError::TooLarge { tensor: t.name.clone(), shape: t.shape.clone() };
            let block = t.kind.geometry().elements;
            if !t.shape.row_len().is_multiple_of(block) {
                return Err(LayoutError::RaggedRow {
                    tensor: t.name.clone(),
                    shape: t.shape.clone(),
                    kind: t.kind,
                    row: t.shape.row_len(),
                    block,
                });
            }
            let row = t.kind.row_bytes(t.shape.row_len()).ok_or_else(too_large)?;
            let bytes = row.checked_mul(t.shape.rows()).ok_or_else(too_large)?;
            put_string(&mut header, t.name.as_bytes());
            header.extend_from_slice(&(t.shape.ndim() as u32).to_le_bytes());
            for ne in t.shape.ne() {
                header.extend_from_slice(&ne.to_le_bytes());
            }
            header.extend_from_slice(&(t.kind as u32).to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            places.push((offset, bytes));
            offset = bytes
                .checked_next_multiple_of(alignment)
                .and_then(|padded| padded.checked_add(offset))
                .ok_or_else(too_large)?;
        }

        let start = (header.len() as u64).next_multiple_of(alignment);
        header.resize(start as usize, 0);
        // The sum of both is checked once: every place lies below it.
        let size = start.checked_add(offset).ok_or_else(|| match tensors.last() {
            Some(t) => LayoutError::TooLarge { tensor: t.name.clone(), shape: t.shape.clone() },
            None => LayoutError::Alignment(alignment.to_string()),
        })?;
        for place in &mut places {
            place.0 += start;
        }
        Ok(Layout { header, places, alignment, size })
    }

    /// The file's first bytes, up to and including the padding before the data.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where tensor `index` begins in the file, and its bytes without padding.
    pub fn place(&self, index: usize) -> (u64, u64) {
        self.places[index]
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The alignment of data; what lies between a tensor's end and the next multiple is zeros.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The whole file's size, the padding after the last tensor included.
    pub fn file_size(&self) -> u64 {
        self.size
    }
}

/// The alignment that the keys ask for.
fn alignment(metadata: &Metadata) -> Result<u64, LayoutError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(a)) if a.is_power_of_two() => Ok(a.into()),
        Some(other) => Err(LayoutError::Alignment(format!("{other:?}"))),
    }
}

fn put_string(out: &mut Vec<u8>, s: &[u8]) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s);
}

/// Appends the numbers of an array or a single one.
macro_rules! put_numbers {
    ($out:expr, $items:expr) => {
        for v in $items {
            $out.extend_from_slice(&v.to_le_bytes());
        }
    };
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(&value.type_id().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(s) => put_string(out, s),
        Value::Array(a) => put_array(out, a),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.element_type_id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(a) => out.extend_from_slice(a),
        Array::I8(a) => put_numbers!(out, a),
        Array::U16(a) => put_numbers!(out, a),
        Array::I16(a) => put_numbers!(out, a),
        Array::U32(a) => put_numbers!(out, a),
        Array::I32(a) => put_numbers!(out, a),
        Array::F32(a) => put_numbers!(out, a),
        Array::Bool(a) => out.extend(a.iter().map(|&b| u8::from(b))),
        Array::String(a) => a.iter().for_each(|s| put_string(out, s)),
        Array::Array(a) => a.iter().for_each(|inner| put_array(out, inner)),
        Array::U64(a) => put_numbers!(out, a),
        Array::I64(a) => put_numbers!(out, a),
        Array::F64(a) => put_numbers!(out, a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dims: &[u64], kind: GgmlType) -> TensorInfo {
        TensorInfo { name: name.into(), shape: Shape::new(dims).unwrap(), kind }
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut m = Metadata::new();
        m.set("general.architecture", Value::string("llama"));
        m.set("a.b", Value::Array(Array::I32(vec![-1, 7])));
        let l = Layout::new(&m, &[tensor("x", &[2, 32], GgmlType::Q8_0), tensor("y", &[3], GgmlType::F32)]).unwrap();
        let mut want = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        want.extend_from_slice(b"\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama");
        want.extend_from_slice(
            b"\x03\0\0\0\0\0\0\0a.b\x09\0\0\0\x05\0\0\0\x02\0\0\0\0\0\0\0\xff\xff\xff\xff\x07\0\0\0",
        );
        want.extend_from_slice(
            b"\x01\0\0\0\0\0\0\0x\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0",
        );
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0y\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\x60\0\0\0\0\0\0\0");
        want.resize(want.len().next_multiple_of(32), 0);
        assert_eq!(l.header(), want);
        let start = want.len() as u64;
        assert_eq!(l.place(0), (start, 68));
        assert_eq!(l.place(1), (start + 96, 12));
        assert_eq!(l.file_size(), start + 96 + 32);
    }

    #[test]
    fn what_llama_cpp_would_refuse_is_refused() {
        let m = Metadata::new();
        let long = "n".repeat(64);
        for (tensors, want) in [
            (vec![tensor(&long, &[1], GgmlType::F32)], LayoutError::NameTooLong(long.clone())),
            (
                vec![tensor("a", &[1], GgmlType::F32), tensor("a", &[1], GgmlType::F32)],
                LayoutError::DuplicateName("a".into()),
            ),
            (
                vec![tensor("a", &[1, 1, 1, 1, 1], GgmlType::F32)],
                LayoutError::Dimensions { tensor: "a".into(), found: 5 },
            ),
            (
                vec![tensor("a", &[2, 33], GgmlType::Q8_0)],
                LayoutError::RaggedRow {
                    tensor: "a".into(),
                    shape: Shape::matrix(2, 33),
                    kind: GgmlType::Q8_0,
                    row: 33,
                    block: 32,
                },
            ),
            (
                vec![tensor("a", &[1 << 62], GgmlType::F64)],
                LayoutError::TooLarge { tensor: "a".into(), shape: Shape::vector(1 << 62) },
            ),
        ] {
            assert_eq!(Layout::new(&m, &tensors), Err(want));
        }
    }

    #[test]
    fn alignment_comes_from_its_key() {
        let mut m = Metadata::new();
        m.set("general.alignment", Value::U32(64));
        let l = Layout::new(&m, &[tensor("a", &[1], GgmlType::F32), tensor("b", &[1], GgmlType::F32)]).unwrap();
        assert_eq!(l.header().len() % 64, 0);
        assert_eq!(l.place(1).0 - l.place(0).0, 64);
        m.set("general.alignment", Value::U32(48));
        assert!(matches!(Layout::new(&m, &[]), Err(LayoutError::Alignment(_))));
    }
}
