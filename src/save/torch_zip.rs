//! `adapter_model.bin`: the zip archive of `torch.save`, a pickle of a dictionary and one stored entry per tensor.
//!
//! Only what `torch.load(weights_only=True)` allows is in the pickle: a dict, `OrderedDict`,
//! `torch._utils._rebuild_tensor_v2` and storages.

use safetensors::Dtype;

use super::adapter_file::{AdapterFileError, FileTensor};

/// The folder inside the archive; PyTorch takes the first entry's.
const ROOT: &str = "adapter_model";

/// PyTorch aligns the bytes of every storage so that they can be mapped.
const ALIGNMENT: u64 = 64;

/// Where everything stands in the archive.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    /// Bytes of the file.
    pub(super) size: u64,
    /// Where each tensor's bytes begin.
    pub(super) offsets: Vec<u64>,
    entries: Vec<Entry>,
}

/// One file of the archive, stored as it is.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    at: u64,
    /// Fills the header up, so that the content is aligned.
    padding: u64,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// So many bytes of the tensor of this number.
    Tensor(usize, u64),
}

impl Entry {
    fn bytes(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Tensor(_, bytes) => *bytes,
        }
    }

    fn content_at(&self) -> u64 {
        self.at + 30 + self.name.len() as u64 + self.padding
    }
}

impl Archive {
    pub(super) fn plan(tensors: &[FileTensor]) -> Result<Self, AdapterFileError> {
        let total: u64 = tensors.iter().map(FileTensor::bytes).sum();
        let mut contents = vec![("data.pkl".to_owned(), Content::Bytes(pickle(tensors)?))];
        contents.push(("byteorder".to_owned(), Content::Bytes(b"little".to_vec())));
        contents.extend(tensors.iter().enumerate().map(|(i, t)| (format!("data/{i}"), Content::Tensor(i, t.bytes()))));
        contents.push(("version".to_owned(), Content::Bytes(b"3\n".to_vec())));
        let (mut at, mut entries, mut offsets) = (0, Vec::new(), vec![0; tensors.len()]);
        for (name, content) in contents {
            let name = format!("{ROOT}/{name}");
            let unpadded: u64 = at + 30 + name.len() as u64;
            let mut padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
            // An extra field has a header of four bytes.
            if (1..4).contains(&padding) {
                padding += ALIGNMENT;
            }
            let entry = Entry { name, at, padding, content };
            if let Content::Tensor(i, _) = entry.content {
                offsets[i] = entry.content_at();
            }
            at = entry.content_at() + entry.bytes();
            entries.push(entry);
        }
        let directory: u64 = entries.iter().map(|e| 46 + e.name.len() as u64).sum();
        let size = at + directory + 22;
        if size > u64::from(u32::MAX) || entries.len() > usize::from(u16::MAX) {
            return Err(AdapterFileError::TooLarge { size: total });
        }
        Ok(Archive { size, offsets, entries })
    }

    /// Headers, small files, and the directory at the end.
    pub(super) fn frame(&self, checksums: &[u32]) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut directory = Vec::new();
        let mut end = 0;
        for entry in &self.entries {
            let crc = match &entry.content {
                Content::Bytes(bytes) => crc32(0, bytes),
                Content::Tensor(i, _) => checksums.get(*i).copied().unwrap_or(0),
            };
            let size = (entry.bytes() as u32).to_le_bytes();
            // Version 1.0, names in UTF-8, stored, no date.
            let common = |out: &mut Vec<u8>, extra: u64| {
                out.extend([10, 0, 0, 8, 0, 0, 0, 0, 0, 0]);
                out.extend(crc.to_le_bytes());
                out.extend(size);
                out.extend(size);
                out.extend((entry.name.len() as u16).to_le_bytes());
                out.extend((extra as u16).to_le_bytes());
            };
            let mut header = b"PK\x03\x04".to_vec();
            common(&mut header, entry.padding);
            header.extend(entry.name.bytes());
            if entry.padding > 0 {
                header.extend(b"FB");
                header.extend(((entry.padding - 4) as u16).to_le_bytes());
                header.resize(header.len() + entry.padding as usize - 4, b'Z');
            }
            if let Content::Bytes(bytes) = &entry.content {
                header.extend(bytes);
            }
            pieces.push((entry.at, header));
            directory.extend(b"PK\x01\x02\x0a\x00");
            common(&mut directory, 0);
            directory.extend([0; 10]);
            directory.extend((entry.at as u32).to_le_bytes());
            directory.extend(entry.name.bytes());
            end = entry.content_at() + entry.bytes();
        }
        let (count, length) = (self.entries.len() as u16, directory.len() as u32);
        directory.extend(b"PK\x05\x06\0\0\0\0");
        directory.extend(count.to_le_bytes());
        directory.extend(count.to_le_bytes());
        directory.extend(length.to_le_bytes());
        directory.extend((end as u32).to_le_bytes());
        directory.extend([0, 0]);
        pieces.push((end, directory));
        pieces
    }
}

/// PyTorch's name of a storage of this type.
fn storage(tensor: &FileTensor) -> Result<&'static str, AdapterFileError> {
    Ok(match tensor.dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        other => {
            return Err(AdapterFileError::Element { tensor: tensor.name.clone(), dtype: other.to_string() });
        }
    })
}

/// The dictionary from names to tensors, in pickle protocol 2.
fn pickle(tensors: &[FileTensor]) -> Result<Vec<u8>, AdapterFileError> {
    let mut out = vec![0x80, 2, b'}', b'('];
    for (i, t) in tensors.iter().enumerate() {
        text(&mut out, &t.name);
        global(&mut out, "torch._utils", "_rebuild_tensor_v2");
        // The arguments: storage, offset, shape, strides, requires_grad, hooks.
        out.push(b'(');
        out.push(b'(');
        text(&mut out, "storage");
        global(&mut out, "torch", storage(t)?);
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        number(&mut out, t.shape.elements());
        out.extend(b"tQ");
        number(&mut out, 0);
        let dims = t.shape.dims();
        let strides: Vec<u64> = (0..dims.len()).map(|d| dims[d + 1..].iter().product()).collect();
        for list in [dims, &strides] {
            out.push(b'(');
            list.iter().for_each(|n| number(&mut out, *n));
            out.push(b't');
        }
        out.push(0x89);
        global(&mut out, "collections", "OrderedDict");
        out.extend(b")RtR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.extend(format!("c{module}\n{name}\n").bytes());
}

/// A whole number: in four bytes where it fits.
fn number(out: &mut Vec<u8>, n: u64) {
    match i32::try_from(n) {
        Ok(n) => {
            out.push(b'J');
            out.extend(n.to_le_bytes());
        }
        Err(_) => {
            // Little-endian two's complement with room for the sign.
            out.extend([0x8a, 9]);
            out.extend(n.to_le_bytes());
            out.push(0);
        }
    }
}

/// CRC-32 as zip has it, continued from `crc` (0 at the start).
pub fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let (mut c, mut k) = (i as u32, 0);
            while k < 8 {
                c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
                k += 1;
            }
            table[i] = c;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!crc, |c, b| TABLE[((c ^ u32::from(*b)) & 0xff) as usize] ^ (c >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zip() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(crc32(0, b"1234"), b"56789"), 0xcbf4_3926);
    }
}
