//! The weight file of an adapter: a header that is known before any value, then tensors one after another.

use std::cmp::Ordering;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::torch_zip;
pub use super::torch_zip::crc32;
use crate::shape::Shape;

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct FileTensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Shape,
}

impl FileTensor {
    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.shape.elements() * self.dtype.bitsize() as u64 / 8
    }
}

/// Where everything stands in a weight file.
#[derive(Clone, Debug)]
pub struct FilePlan {
    /// Bytes of the file.
    pub size: u64,
    /// Where each tensor's values begin, in the order of the tensors.
    pub offsets: Vec<u64>,
    frame: Frame,
}

#[derive(Clone, Debug)]
enum Frame {
    Safetensors(Vec<u8>),
    Torch(torch_zip::Archive),
}

/// A file cannot be written in this format.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterFileError {
    /// PyTorch's pickles have no such type.
    #[error("--no-safe-serialization: tensor {tensor} is {dtype}, which has no place in a .bin file; leave it out")]
    Element {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Without the 64-bit extension a zip file ends at 4 GiB.
    #[error("--no-safe-serialization: {size} bytes are more than a .bin file of 4 GiB holds; leave it out")]
    TooLarge {
        /// Bytes of all tensors.
        size: u64,
    },
}

/// Plans a safetensors file; tensors lie in the given order.
pub fn safetensors(tensors: &[FileTensor]) -> FilePlan {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    let mut offsets = Vec::with_capacity(tensors.len());
    for t in tensors {
        let end = at + t.bytes();
        let entry = json!({"dtype": t.dtype.to_string(), "shape": t.shape.dims(), "data_offsets": [at, end]});
        header.insert(t.name.clone(), entry);
        offsets.push(at);
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut frame = (text.len() as u64).to_le_bytes().to_vec();
    frame.extend(text);
    let start = frame.len() as u64;
    offsets.iter_mut().for_each(|o| *o += start);
    FilePlan { size: start + at, offsets, frame: Frame::Safetensors(frame) }
}

/// Plans a file as `torch.save` writes it, which `torch.load(weights_only=True)` reads.
pub fn torch(tensors: &[FileTensor]) -> Result<FilePlan, AdapterFileError> {
    let archive = torch_zip::Archive::plan(tensors)?;
    Ok(FilePlan { size: archive.size, offsets: archive.offsets.clone(), frame: Frame::Torch(archive) })
}

impl FilePlan {
    /// Everything but the values, as pieces at their places. `checksums` are CRC-32 of each tensor's bytes; only a
    /// format that has them looks at them.
    pub fn frame(&self, checksums: &[u32]) -> Vec<(u64, Vec<u8>)> {
        match &self.frame {
            Frame::Safetensors(header) => vec![(0, header.clone())],
            Frame::Torch(archive) => archive.frame(checksums),
        }
    }
}

/// The order of `safetensors`: wide types first, then by name.
pub fn order(a: &FileTensor, b: &FileTensor) -> Ordering {
    b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name))
}
