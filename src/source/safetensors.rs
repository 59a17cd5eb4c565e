//! Safetensors headers: read, checked in full, and turned into tensors with known places.
//!
//! A file is the header's length (u64), the header (JSON: name to element type, shape and byte range), and the
//! data. Ranges cover the data exactly once. The `safetensors` crate has the last word on a header; the checks
//! here come first because they can name the tensor.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ::safetensors::tensor::{Metadata, TensorInfo};
use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::file::WeightFile;
use super::stored::Stored;
use super::{SourceError, element};
use crate::shape::Shape;

/// The longest header that is read: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What a weight file holds: tensors by name, and the free-form text map of its header.
#[derive(Debug)]
pub(super) struct Contents {
    /// The file itself.
    pub(super) file: Arc<WeightFile>,
    /// Tensors in a converter's order: by name in safetensors, as stored in PyTorch files.
    pub(super) tensors: Vec<Stored>,
    /// The header's `__metadata__`.
    pub(super) metadata: HashMap<String, String>,
}

/// Opens a safetensors file and checks its header; no weight is read.
pub(super) fn open(file: WeightFile) -> Result<Contents, SourceError> {
    let file = Arc::new(file);
    let path = file.path();
    let header = read_header(&file)?;
    let data_start = 8 + header.bytes;
    check_ranges(path, &header.tensors, file.size_bytes() - data_start)?;
    let mut by_place: Vec<(String, TensorInfo)> = header.tensors.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
    by_place.sort_by_key(|(_, t)| t.data_offsets);
    Metadata::new(None, by_place).map_err(|e| SourceError::header(path, e.to_string()))?;

    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, info) in header.tensors {
        if !element::is_known(info.dtype) {
            return Err(SourceError::Element { path: path.to_path_buf(), tensor: name, dtype: info.dtype.to_string() });
        }
        let dims: Vec<u64> = info.shape.iter().map(|&d| d as u64).collect();
        let shape = Shape::new(dims).ok_or_else(|| SourceError::tensor(path, &name, "has more than 2^64 elements"))?;
        let offset = data_start + info.data_offsets.0 as u64;
        tensors.push(Stored::new(file.clone(), name, info.dtype, shape, offset, None));
    }
    tensors.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(Contents { file, tensors, metadata: header.metadata })
}

/// Whether the file begins as a safetensors file does: a plausible length, then a JSON object.
pub(super) fn looks_like(file: &WeightFile) -> bool {
    let mut start = [0u8; 9];
    file.read_at(0, &mut start).is_ok()
        && start[8] == b'{'
        && u64::from_le_bytes(start[..8].try_into().unwrap_or_default()) <= MAX_HEADER
}

struct Header {
    bytes: u64,
    tensors: IndexMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

fn read_header(file: &WeightFile) -> Result<Header, SourceError> {
    let path = file.path();
    let size = file.size_bytes();
    let truncated = |expected| SourceError::Truncated { path: path.to_path_buf(), expected, found: size };
    if size < 8 {
        return Err(truncated(8));
    }
    let mut length = [0u8; 8];
    file.read_at(0, &mut length).map_err(|e| SourceError::io(path, e))?;
    if length.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return Err(SourceError::NotWeights {
            path: path.to_path_buf(),
            found: "text",
            remedy: "download the file again",
        });
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(SourceError::header(
            path,
            format!("is not a safetensors file (it announces a header of {length} bytes, the limit is {MAX_HEADER})"),
        ));
    }
    if size < 8 + length {
        return Err(truncated(8 + length));
    }
    let mut text = vec![0u8; length as usize];
    file.read_at(8, &mut text).map_err(|e| SourceError::io(path, e))?;
    parse_header(&text).map_err(|e| SourceError::header(path, format!("the header is not valid: {e}")))
}

/// Parses the JSON of a header.
fn parse_header(text: &[u8]) -> Result<Header, serde_json::Error> {
    let Table { tensors, metadata } = serde_json::from_slice(text)?;
    Ok(Header { bytes: text.len() as u64, tensors, metadata })
}

/// The JSON object of a header; a name that occurs twice is an error, not a replacement.
struct Table {
    tensors: IndexMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut tensors = IndexMap::new();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if metadata.replace(map.next_value::<Option<_>>()?.unwrap_or_default()).is_some() {
                            return Err(A::Error::custom("__metadata__ occurs twice"));
                        }
                        continue;
                    }
                    let value: serde_json::Value = map.next_value()?;
                    let info = TensorInfo::deserialize(value)
                        .map_err(|e| A::Error::custom(format_args!("tensor {name}: {e}")))?;
                    match tensors.entry(name) {
                        Entry::Vacant(e) => {
                            e.insert(info);
                        }
                        Entry::Occupied(e) => {
                            return Err(A::Error::custom(format_args!("tensor {} occurs twice", e.key())));
                        }
                    }
                }
                Ok(Table { tensors, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Ranges must hold their tensors exactly, and cover the `data` bytes after the header once, without holes.
fn check_ranges(path: &Path, tensors: &IndexMap<String, TensorInfo>, data: u64) -> Result<(), SourceError> {
    let fail = |name: &str, cause: String| Err(SourceError::tensor(path, name, cause));
    let mut places = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if start > end {
            return fail(name, format!("its data ends at byte {end}, before it starts at {start}"));
        }
        let elements = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize() as u64));
        let Some(bits) = bits else {
            return fail(name, format!("shape {:?} of {} overflows", info.shape, info.dtype));
        };
        if !bits.is_multiple_of(8) || bits / 8 != end - start {
            let held = end - start;
            return fail(
                name,
                format!("shape {:?} of {} needs {} bytes, its range holds {held}", info.shape, info.dtype, bits / 8),
            );
        }
        places.push((start, end, name));
    }
    places.sort();
    let mut covered = 0;
    let mut last = "the header";
    for (start, end, name) in places {
        if start < covered {
            return fail(name, format!("its data (from byte {start}) overlaps that of {last} (to byte {covered})"));
        }
        if start > covered {
            return fail(name, format!("{} unclaimed bytes lie between {last} and it", start - covered));
        }
        covered = end;
        last = name;
    }
    if covered > data {
        let header = path.to_path_buf();
        let found = data;
        return Err(SourceError::Truncated { path: header, expected: covered, found });
    }
    if covered < data {
        return Err(SourceError::header(path, format!("{} unclaimed bytes follow the last tensor", data - covered)));
    }
    Ok(())
}

/// For fuzzing and property tests: the whole path from header bytes to checked ranges.
#[cfg(test)]
fn accepts(text: &[u8], data: u64) -> bool {
    parse_header(text).is_ok_and(|h| check_ranges(Path::new("fuzz"), &h.tensors, data).is_ok())
}

#[cfg(test)]
mod tests {
    use ::safetensors::Dtype;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever we accept, the crate accepts too, and nothing panics.
        #[test]
        fn no_header_panics_and_none_is_accepted_that_the_format_refuses(
            dims in proptest::collection::vec((0usize..5, 0usize..40, 0usize..40), 0..4),
            data in 0u64..60,
        ) {
            let mut text = String::from("{");
            for (i, (n, s, e)) in dims.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                text += &format!(r#"{comma}"t{i}":{{"dtype":"F16","shape":[{n},2],"data_offsets":[{s},{e}]}}"#);
            }
            text += "}";
            let ours = accepts(text.as_bytes(), data);
            let mut whole = (text.len() as u64).to_le_bytes().to_vec();
            whole.extend_from_slice(text.as_bytes());
            whole.resize(whole.len() + data as usize, 0);
            let theirs = ::safetensors::SafeTensors::deserialize(&whole).is_ok();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            accepts(&text, 0);
        }
    }

    #[test]
    fn a_name_that_occurs_twice_is_refused() {
        let t = r#""a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}"#;
        assert!(accepts(format!("{{{t}}}").as_bytes(), 2));
        assert!(!accepts(format!("{{{t},{t}}}").as_bytes(), 2));
    }

    #[test]
    fn sub_byte_elements_are_not_decoded() {
        assert!(!element::is_known(Dtype::F4));
    }
}
