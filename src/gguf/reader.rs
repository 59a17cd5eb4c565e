//! Opening GGUF files: headers are parsed and checked in full, weights are read later by rows.
//!
//! Nothing that a file says is believed before it is checked: every length is compared with what is left of the
//! file before memory is reserved, sums are checked, and a tensor's bytes must lie inside the file, aligned, and
//! apart from every other tensor's. Reads are positional, so one open file serves all threads.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bstr::BString;

use super::{Array, DEFAULT_ALIGNMENT, GgufError, Metadata, Value, part_path};
use crate::quant::GgmlType;
use crate::shape::Shape;

/// Longest string that is read (`GGUF_MAX_STRING_LENGTH` in ggml).
const MAX_STRING: u64 = 1 << 30;
/// Longest array that is read (`GGUF_MAX_ARRAY_ELEMENTS` in ggml).
const MAX_ARRAY: u64 = 1 << 30;
/// Longest key (the format's specification) and tensor name. ggml reads shorter names only, other programs write longer ones.
const MAX_KEY: u64 = 65_535;
/// Deepest array of arrays. Nothing in use nests at all.
const MAX_NESTING: u32 = 4;

/// One file of a model.
#[derive(Debug)]
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Where tensor data begins.
    pub data_start: u64,
    /// Format version, 2 or 3.
    pub version: u32,
    file: File,
}

/// A tensor of an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// Dimensions, slowest first.
    pub shape: Shape,
    /// Element or block type.
    pub kind: GgmlType,
    /// Index of the part that holds it.
    pub part: usize,
    /// Where its bytes begin in that part.
    pub offset: u64,
    /// Its bytes, padding not counted.
    pub bytes: u64,
}

/// An open GGUF model: one file, or all parts of a split one.
#[derive(Debug)]
pub struct GgufFile {
    metadata: Metadata,
    alignment: u64,
    parts: Vec<Part>,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Opens a file and, where its `split.count` says that it is the first of several, the others beside it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let first = Header::read(path)?;
        let number = |key: &str| first.metadata.get(key).and_then(Value::as_u64);
        let count = number("split.count").unwrap_or(0);
        let mut model = GgufFile {
            metadata: Metadata::new(),
            alignment: first.alignment,
            parts: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        };
        if count <= 1 {
            return model.with_part(first);
        }

        let no = number("split.no").unwrap_or(0);
        let prefix =
            part_prefix(path, no, count).ok_or_else(|| GgufError::PartName { path: path.into(), no, count })?;
        let nth = |i: u64| part_path(&prefix, i as usize, count as usize);
        if no != 0 {
            return Err(GgufError::NotFirstPart { path: path.into(), no, count, expected: nth(0) });
        }
        let total = number("split.tensors.count");
        model = model.with_part(first)?;
        for i in 1..count {
            let path = nth(i);
            let part = Header::read(&path)?;
            let no = part.metadata.get("split.no");
            if no.and_then(Value::as_u64) != Some(i) {
                let found = no.map_or("nothing".into(), |v| format!("split.no = {v:?}"));
                return Err(GgufError::PartNumber { path, no: i, count, found });
            }
            model = model.with_part(part)?;
        }
        let found = model.tensors.len() as u64;
        match total {
            Some(expected) if expected != found => Err(GgufError::PartTensors { path: path.into(), found, expected }),
            _ => Ok(model),
        }
    }

    fn with_part(mut self, header: Header) -> Result<Self, GgufError> {
        let index = self.parts.len();
        for mut t in header.tensors {
            if let Some(&earlier) = self.by_name.get(&t.name) {
                let first = self.tensors[earlier].part;
                return Err(GgufError::DuplicateTensor {
                    first: self.parts.get(first).map_or_else(|| header.part.path.clone(), |p| p.path.clone()),
                    path: header.part.path,
                    tensor: t.name,
                });
            }
            t.part = index;
            self.by_name.insert(t.name.clone(), self.tensors.len());
            self.tensors.push(t);
        }
        if index == 0 {
            self.metadata = header.metadata;
        }
        self.parts.push(header.part);
        Ok(self)
    }

    /// The keys, those of the first part for a split model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in file order, part after part.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The files that make up the model.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The alignment of tensor data in the first file.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Reads rows as they are stored into a buffer of exactly their size. Rows count over all dimensions but the
    /// fastest; see [`Shape::rows`].
    pub fn read_rows(&self, tensor: &GgufTensor, rows: Range<u64>, out: &mut [u8]) -> Result<(), GgufError> {
        let part = &self.parts[tensor.part];
        let total = tensor.shape.rows();
        if rows.start > rows.end || rows.end > total {
            let Range { start, end } = rows;
            return Err(GgufError::Rows {
                path: part.path.clone(),
                tensor: tensor.name.clone(),
                start,
                end,
                rows: total,
            });
        }
        let row = tensor.bytes.checked_div(total).unwrap_or(0);
        let needed = (rows.end - rows.start) * row;
        if needed != out.len() as u64 {
            return Err(GgufError::Buffer {
                path: part.path.clone(),
                tensor: tensor.name.clone(),
                rows: rows.end - rows.start,
                needed,
                given: out.len() as u64,
            });
        }
        let offset = tensor.offset + rows.start * row;
        read_exact_at(&part.file, out, offset).map_err(|source| match source.kind() {
            // The header was checked against the size at opening, so the file has shrunk since.
            io::ErrorKind::UnexpectedEof => GgufError::Truncated {
                path: part.path.clone(),
                what: format!("tensor '{}'", tensor.name),
                offset,
                needed,
                size: part.file.metadata().map_or(0, |m| m.len()),
            },
            _ => GgufError::Io { path: part.path.clone(), source },
        })
    }
}

/// `dir/prefix` of `dir/prefix-00001-of-00003.gguf` (`llama_split_prefix`).
fn part_prefix(path: &Path, no: u64, count: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let prefix = name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", no.checked_add(1)?))?;
    (!prefix.is_empty()).then(|| path.with_file_name(prefix))
}

/// Fills the buffer from an offset, leaving the file's own position alone.
#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Fills the buffer from an offset.
#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// One parsed and checked file; `part` of its tensors is not set yet.
struct Header {
    metadata: Metadata,
    alignment: u64,
    part: Part,
    tensors: Vec<GgufTensor>,
}

impl Header {
    fn read(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let info = file.metadata().map_err(io)?;
        if info.is_dir() {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        }
        let mut r = Cursor { path, file: &file, size: info.len(), pos: 0, buffer: Vec::new(), at: 0 };

        if r.size == 0 {
            return Err(GgufError::Empty { path: path.into() });
        }
        let mut magic = vec![0; r.size.min(4) as usize];
        r.fill(&mut magic, "the magic")?;
        if magic != b"GGUF" {
            return Err(GgufError::NotGguf { path: path.into(), magic });
        }
        let version = r.u32("the version")?;
        match version {
            2 | 3 => {}
            v if v != 0 && v & 0xffff == 0 => return Err(GgufError::BigEndian { path: path.into(), version }),
            _ => return Err(GgufError::Version { path: path.into(), version }),
        }
        let n_tensors = r.u64("the number of tensors")?;
        let n_keys = r.u64("the number of keys")?;
        // The least that a tensor or a key takes: name length, counts, type, offset; key length, type, value.
        r.cap("the number of tensors", n_tensors, r.left() / 24)?;
        r.cap("the number of keys", n_keys, r.left() / 13)?;

        let metadata = read_keys(&mut r, n_keys)?;
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::U32(a)) if a.is_power_of_two() => a.into(),
            Some(other) => return Err(GgufError::Alignment { path: path.into(), found: format!("{other:?}") }),
        };
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            tensors.push(read_tensor(&mut r, alignment)?);
        }
        // A file without tensors may end with its header; nothing is there to be aligned.
        let data_start = match r.pos.checked_next_multiple_of(alignment) {
            Some(start) if start <= r.size || n_tensors == 0 => start.min(r.size),
            start => return Err(r.truncated("the padding before the data", start.unwrap_or(u64::MAX) - r.pos)),
        };
        let size = r.size;
        place_tensors(path, &mut tensors, data_start, size)?;
        let part = Part { path: path.into(), size, data_start, version, file };
        Ok(Header { metadata, alignment, part, tensors })
    }
}

fn read_keys(r: &mut Cursor<'_>, count: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::new();
    for index in 0..count {
        let what = || format!("key number {index}");
        let key = r.string(&what(), MAX_KEY)?;
        let key =
            String::from_utf8(key.into()).map_err(|_| GgufError::NotUtf8 { path: r.path.into(), what: what() })?;
        if key.is_empty() {
            return Err(GgufError::EmptyKey { path: r.path.into(), index });
        }
        if metadata.get(&key).is_some() {
            return Err(GgufError::DuplicateKey { path: r.path.into(), key });
        }
        let id = r.u32(&format!("the type of key '{key}'"))?;
        let value = read_value(r, &key, id)?;
        metadata.set(key, value);
    }
    Ok(metadata)
}

fn read_value(r: &mut Cursor<'_>, key: &str, id: u32) -> Result<Value, GgufError> {
    let what = format!("the value of key '{key}'");
    Ok(match id {
        0 => Value::U8(u8::from_le_bytes(r.array(&what)?)),
        1 => Value::I8(i8::from_le_bytes(r.array(&what)?)),
        2 => Value::U16(u16::from_le_bytes(r.array(&what)?)),
        3 => Value::I16(i16::from_le_bytes(r.array(&what)?)),
        4 => Value::U32(u32::from_le_bytes(r.array(&what)?)),
        5 => Value::I32(i32::from_le_bytes(r.array(&what)?)),
        6 => Value::F32(f32::from_le_bytes(r.array(&what)?)),
        7 => Value::Bool(r.array::<1>(&what)?[0] != 0),
        8 => Value::String(r.string(&what, MAX_STRING)?),
        9 => Value::Array(read_array(r, key, MAX_NESTING)?),
        10 => Value::U64(u64::from_le_bytes(r.array(&what)?)),
        11 => Value::I64(i64::from_le_bytes(r.array(&what)?)),
        12 => Value::F64(f64::from_le_bytes(r.array(&what)?)),
        _ => return Err(GgufError::ValueType { path: r.path.into(), key: key.into(), id }),
    })
}

fn read_array(r: &mut Cursor<'_>, key: &str, depth: u32) -> Result<Array, GgufError> {
    if depth == 0 {
        return Err(GgufError::Nesting { path: r.path.into(), key: key.into(), limit: MAX_NESTING });
    }
    let what = format!("the array of key '{key}'");
    let id = r.u32(&what)?;
    let n = r.u64(&what)?;
    r.cap(format_args!("the length of {what}"), n, MAX_ARRAY)?;
    /// Numbers of one type, read through a small buffer.
    macro_rules! numbers {
        ($variant:ident, $t:ty) => {{
            const SIZE: usize = size_of::<$t>();
            r.need(&what, n * SIZE as u64)?;
            let mut items = Vec::with_capacity(n as usize);
            for _ in 0..n {
                items.push(<$t>::from_le_bytes(r.array(&what)?));
            }
            Array::$variant(items)
        }};
    }
    Ok(match id {
        0 => numbers!(U8, u8),
        1 => numbers!(I8, i8),
        2 => numbers!(U16, u16),
        3 => numbers!(I16, i16),
        4 => numbers!(U32, u32),
        5 => numbers!(I32, i32),
        6 => numbers!(F32, f32),
        7 => {
            r.need(&what, n)?;
            let mut items = Vec::with_capacity(n as usize);
            for _ in 0..n {
                items.push(r.array::<1>(&what)?[0] != 0);
            }
            Array::Bool(items)
        }
        8 => {
            r.need(&what, n * 8)?;
            let mut items = Vec::with_capacity(n as usize);
            for _ in 0..n {
                items.push(r.string(&what, MAX_STRING)?);
            }
            Array::String(items)
        }
        9 => {
            r.need(&what, n * 12)?;
            let mut items = Vec::with_capacity(n as usize);
            for _ in 0..n {
                items.push(read_array(r, key, depth - 1)?);
            }
            Array::Array(items)
        }
        10 => numbers!(U64, u64),
        11 => numbers!(I64, i64),
        12 => numbers!(F64, f64),
        _ => return Err(GgufError::ValueType { path: r.path.into(), key: key.into(), id }),
    })
}

/// One tensor's description; its offset is still relative to the data's start.
fn read_tensor(r: &mut Cursor<'_>, alignment: u64) -> Result<GgufTensor, GgufError> {
    let path = r.path;
    let name = r.string("a tensor's name", MAX_KEY)?;
    let name = String::from_utf8(name.into()).map_err(|e| GgufError::NotUtf8 {
        path: path.into(),
        what: format!("the tensor name '{}'", BString::from(e.into_bytes())),
    })?;
    let what = format!("the description of tensor '{name}'");
    let n_dims = r.u32(&what)?;
    if n_dims > 4 {
        return Err(GgufError::Dimensions { path: path.into(), tensor: name, found: n_dims });
    }
    let mut ne = Vec::with_capacity(4);
    for _ in 0..n_dims {
        ne.push(r.u64(&what)?);
    }
    let id = r.u32(&what)?;
    let offset = r.u64(&what)?;

    let Some(kind) = GgmlType::from_id(id) else {
        return Err(GgufError::TensorType { path: path.into(), tensor: name, id });
    };
    // As in ggml, zeros are no way to hide an overflow.
    let overflow = || GgufError::Overflow { path: path.into(), tensor: name.clone(), ne: ne.clone() };
    let nonzero: Vec<u64> = ne.iter().copied().filter(|&n| n > 0).collect();
    if Shape::new(nonzero).is_none_or(|s| s.elements() > i64::MAX as u64) {
        return Err(overflow());
    }
    let shape = Shape::new(ne.iter().rev().copied().collect::<Vec<_>>()).ok_or_else(overflow)?;
    let block = kind.geometry().elements;
    if !shape.row_len().is_multiple_of(block) {
        return Err(GgufError::RaggedRow { path: path.into(), tensor: name, shape, kind, block });
    }
    let row = kind.row_bytes(shape.row_len()).ok_or_else(overflow)?;
    let bytes = row.checked_mul(shape.rows()).ok_or_else(overflow)?;
    if offset % alignment != 0 {
        return Err(GgufError::Misaligned { path: path.into(), tensor: name, offset, alignment });
    }
    Ok(GgufTensor { name, shape, kind, part: 0, offset, bytes })
}

/// Makes offsets absolute and checks that every tensor lies inside the file and apart from the others.
fn place_tensors(path: &Path, tensors: &mut [GgufTensor], data_start: u64, size: u64) -> Result<(), GgufError> {
    for t in tensors.iter_mut() {
        let end = t.offset.checked_add(data_start).and_then(|o| o.checked_add(t.bytes));
        if end.is_none_or(|end| end > size) {
            return Err(GgufError::Truncated {
                path: path.into(),
                what: format!("tensor '{}'", t.name),
                offset: t.offset.saturating_add(data_start),
                needed: t.bytes,
                size,
            });
        }
        t.offset += data_start;
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().filter(|t| t.bytes > 0).collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(GgufError::Overlap { path: path.into(), first, second });
        }
    }
    Ok(())
}

/// Reads a header forward through a buffer, by positional reads.
struct Cursor<'a> {
    path: &'a Path,
    file: &'a File,
    size: u64,
    /// Offset in the file of the next byte to hand out.
    pos: u64,
    buffer: Vec<u8>,
    /// Index in the buffer of the next byte to hand out.
    at: usize,
}

impl Cursor<'_> {
    const BUFFER: u64 = 1 << 16;

    fn left(&self) -> u64 {
        self.size - self.pos
    }

    fn truncated(&self, what: &str, needed: u64) -> GgufError {
        GgufError::Truncated { path: self.path.into(), what: what.into(), offset: self.pos, needed, size: self.size }
    }

    /// Fails where fewer bytes are left, before memory is reserved for them.
    fn need(&self, what: &str, bytes: u64) -> Result<(), GgufError> {
        if bytes > self.left() { Err(self.truncated(what, bytes)) } else { Ok(()) }
    }

    fn cap(&self, what: impl Display, value: u64, limit: u64) -> Result<(), GgufError> {
        if value > limit {
            return Err(GgufError::TooLarge { path: self.path.into(), what: what.to_string(), value, limit });
        }
        Ok(())
    }

    fn fill(&mut self, mut out: &mut [u8], what: &str) -> Result<(), GgufError> {
        self.need(what, out.len() as u64)?;
        while !out.is_empty() {
            if self.at == self.buffer.len() {
                let n = Self::BUFFER.min(self.left()) as usize;
                self.buffer.resize(n, 0);
                read_exact_at(self.file, &mut self.buffer, self.pos)
                    .map_err(|source| GgufError::Io { path: self.path.into(), source })?;
                self.at = 0;
            }
            let n = out.len().min(self.buffer.len() - self.at);
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&self.buffer[self.at..self.at + n]);
            self.at += n;
            self.pos += n as u64;
            out = later;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &str, limit: u64) -> Result<BString, GgufError> {
        let len = self.u64(what)?;
        self.cap(format_args!("the length of {what}"), len, limit)?;
        self.need(what, len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, what)?;
        Ok(bytes.into())
    }
}
