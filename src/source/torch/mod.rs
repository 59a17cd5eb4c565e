//! PyTorch files (`.bin`, `.pth`), as `torch.save` writes them: a zip archive since PyTorch 1.6, a sequence of
//! pickles followed by raw storages before.
//!
//! Zip: `<name>/data.pkl` is the pickle, `<name>/data/<key>` are the storages, stored without compression, so that
//! their bytes lie at a known place in the file. Legacy: the pickles are a magic number, the protocol version, the
//! system's byte order, the object, and the list of storage keys; then, per key, the number of elements (i64) and
//! the elements.

mod pickle;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use indexmap::IndexMap;
use safetensors::Dtype;

use self::pickle::{Bytes, Machine, Object, Refusal, Value};
use super::file::WeightFile;
use super::safetensors::Contents;
use super::stored::Stored;
use super::{SourceError, element};
use crate::shape::Shape;

/// The longest pickle that is read: names and shapes take a few hundred bytes per tensor.
const MAX_PICKLE: u64 = 256 << 20;

/// The magic number of the legacy form, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Keys under which training programs put the tensors of a checkpoint.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

const RESAVE: &str = "save the tensors alone, as a safetensors file";
const RELOAD: &str = "download the file again or save it anew";

/// Whether the file begins as a PyTorch file does.
pub(super) fn looks_like(file: &WeightFile) -> bool {
    let mut start = [0u8; 4];
    file.size_bytes() >= 4
        && file.read_at(0, &mut start).is_ok()
        && (start.starts_with(b"PK") || start[0] == 0x80 || is_tar(file))
}

fn is_tar(file: &WeightFile) -> bool {
    let mut magic = [0u8; 5];
    file.size_bytes() > 262 && file.read_at(257, &mut magic).is_ok() && &magic == b"ustar"
}

/// Opens a PyTorch file: runs its pickle, restricted to tensors and containers, and checks every tensor's place.
pub(super) fn open(file: WeightFile) -> Result<Contents, SourceError> {
    let file = Arc::new(file);
    let mut start = [0u8; 4];
    file.read_at(0, &mut start).map_err(|e| SourceError::io(file.path(), e))?;
    let (value, machine, storages) = if start.starts_with(b"PK") {
        open_zip(&file)?
    } else if start == [0x80, 2, 0x8a, 0x0a] {
        open_legacy(&file)?
    } else if is_tar(&file) {
        return Err(refuse(&file, "is a tar file of PyTorch before 0.1.10", RESAVE));
    } else {
        return Err(refuse(&file, "is a pickle that torch.save did not write", RESAVE));
    };
    let mut tensors = Vec::new();
    for (name, tensor) in named_tensors(&file, value, &machine)? {
        tensors.push(place(&file, name.to_string(), tensor, &storages)?);
    }
    Ok(Contents { file, tensors, metadata: HashMap::new() })
}

fn refuse(file: &WeightFile, cause: impl Into<String>, remedy: &'static str) -> SourceError {
    SourceError::Pickle { path: file.path().to_path_buf(), cause: cause.into(), remedy }
}

fn refused(file: &WeightFile, refusal: Refusal) -> SourceError {
    match refusal {
        Refusal::Io(e) => SourceError::io(file.path(), e),
        Refusal::Foreign(_) => refuse(file, refusal.to_string(), RESAVE),
        Refusal::Damaged(_) => refuse(file, refusal.to_string(), RELOAD),
    }
}

/// Where a storage lies: its first byte and its length in bytes.
type Storages = HashMap<Arc<str>, (u64, u64)>;

fn open_zip(file: &WeightFile) -> Result<(Value, Machine, Storages), SourceError> {
    let path = file.path();
    let broken = |cause: String| refuse(file, format!("its zip archive is damaged: {cause}"), RELOAD);
    let reader = File::open(path).map_err(|e| SourceError::io(path, e))?;
    let mut archive =
        zip::ZipArchive::new(std::io::BufReader::new(reader)).map_err(|e| broken(format!("{e} (is it truncated?)")))?;
    let mut entries: HashMap<String, (u64, u64)> = HashMap::with_capacity(archive.len());
    let mut prefix = None;
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| broken(e.to_string()))?;
        let (name, size) = (entry.name().map_err(|e| broken(e.to_string()))?.into_owned(), entry.size());
        if entry.is_dir() {
            continue;
        }
        let start = entry.data_start().ok_or_else(|| broken(format!("{name} has no data")))?;
        if entry.compression() != zip::CompressionMethod::Stored || entry.encrypted() {
            return Err(refuse(file, format!("its entry {name} is compressed or encrypted"), RESAVE));
        }
        if start.checked_add(size).is_none_or(|end| end > file.size_bytes()) {
            return Err(broken(format!("entry {name} of {size} bytes reaches beyond the end of the file")));
        }
        if let Some(head) = name.strip_suffix("data.pkl").filter(|h| h.is_empty() || h.ends_with('/')) {
            prefix = Some(head.to_string());
        }
        if name.ends_with("/constants.pkl") {
            return Err(refuse(file, "is a TorchScript program, not a state dict", RESAVE));
        }
        entries.insert(name, (start, size));
    }
    let prefix = prefix.ok_or_else(|| refuse(file, "is a zip archive without data.pkl", RESAVE))?;
    let read = |name: &str| -> Result<Option<Vec<u8>>, SourceError> {
        let Some(&(start, size)) = entries.get(&format!("{prefix}{name}")) else { return Ok(None) };
        if size > MAX_PICKLE {
            return Err(refuse(file, format!("its {name} has {size} bytes, more than {MAX_PICKLE}"), RESAVE));
        }
        let mut bytes = vec![0; size as usize];
        file.read_at(start, &mut bytes).map_err(|e| SourceError::io(path, e))?;
        Ok(Some(bytes))
    };
    if read("byteorder")?.is_some_and(|order| order.trim_ascii() != b"little") {
        return Err(refuse(file, "was written on a big-endian machine", RESAVE));
    }
    let program = read("data.pkl")?.unwrap_or_default();
    let (value, machine) = pickle::run(&mut &program[..]).map_err(|e| refused(file, e))?;
    let head = format!("{prefix}data/");
    let storages = entries.into_iter().filter_map(|(n, p)| Some((n.strip_prefix(&head)?.into(), p))).collect();
    Ok((value, machine, storages))
}

/// The pickles of a legacy file, read through a small buffer since their length is not known.
struct Stream<'a> {
    file: &'a WeightFile,
    buffer: Vec<u8>,
    /// Place in the file of the buffer's first byte, and in the buffer of the next byte.
    start: u64,
    next: usize,
}

impl Stream<'_> {
    fn position(&self) -> u64 {
        self.start + self.next as u64
    }

    fn fill(&mut self) -> Result<(), Refusal> {
        self.start += self.buffer.len() as u64;
        self.next = 0;
        let left = self.file.size_bytes().saturating_sub(self.start).min(1 << 16) as usize;
        if left == 0 || self.start > MAX_PICKLE {
            return Err(Refusal::Damaged("it ends in the middle, or is too long".to_string()));
        }
        self.buffer.resize(left, 0);
        self.file.read_at(self.start, &mut self.buffer).map_err(Refusal::Io)
    }
}

impl Bytes for Stream<'_> {
    fn take(&mut self, n: usize) -> Result<Vec<u8>, Refusal> {
        if n as u64 > self.file.size_bytes().saturating_sub(self.position()).min(MAX_PICKLE) {
            return Err(Refusal::Damaged("it ends in the middle".to_string()));
        }
        (0..n).map(|_| self.byte()).collect()
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        if self.next == self.buffer.len() {
            self.fill()?;
        }
        self.next += 1;
        Ok(self.buffer[self.next - 1])
    }
}

fn open_legacy(file: &WeightFile) -> Result<(Value, Machine, Storages), SourceError> {
    let mut stream = Stream { file, buffer: Vec::new(), start: 0, next: 0 };
    let mut next = || pickle::run(&mut stream).map_err(|e| refused(file, e));
    let (magic, machine) = next()?;
    if !matches!(machine.object(magic), Some(Object::Long(bytes)) if bytes == &MAGIC) {
        return Err(refuse(file, "is a pickle that torch.save did not write", RESAVE));
    }
    next()?;
    let (system, machine) = next()?;
    if let Some(Object::Dict(items)) = machine.object(system) {
        let little = items.iter().find(|(k, _)| machine.text(*k) == Some("little_endian"));
        if little.is_some_and(|(_, v)| *v == Value::Bool(false)) {
            return Err(refuse(file, "was written on a big-endian machine", RESAVE));
        }
    }
    let (value, machine) = next()?;
    let (keys, key_machine) = next()?;
    let widths = storage_widths(&machine);
    let mut at = stream.position();
    let mut storages = Storages::new();
    for &key in key_machine.items(keys).unwrap_or_default() {
        let Some(key) = key_machine.text(key) else {
            return Err(refuse(file, "its list of storages holds what is no key", RELOAD));
        };
        let truncated =
            |expected| SourceError::Truncated { path: file.path().to_path_buf(), expected, found: file.size_bytes() };
        let mut count = [0u8; 8];
        if at.saturating_add(8) > file.size_bytes() {
            return Err(truncated(at.saturating_add(8)));
        }
        file.read_at(at, &mut count).map_err(|e| SourceError::io(file.path(), e))?;
        let width = widths.get(key).copied().unwrap_or(1);
        let bytes = u64::from_le_bytes(count).checked_mul(width);
        let end = bytes.and_then(|b| b.checked_add(at + 8)).unwrap_or(u64::MAX);
        if end > file.size_bytes() {
            return Err(truncated(end));
        }
        storages.insert(key.into(), (at + 8, end - at - 8));
        at = end;
    }
    Ok((value, machine, storages))
}

/// Bytes per element of every storage that the tensors name.
fn storage_widths(machine: &Machine) -> HashMap<&str, u64> {
    machine.storages().map(|s| (&*s.key, s.dtype.map_or(1, |d| d.bitsize() as u64 / 8))).collect()
}

/// The tensors of a state dict, in its order; a checkpoint's wrapper around it is opened.
fn named_tensors<'a>(
    file: &WeightFile,
    value: Value,
    machine: &'a Machine,
) -> Result<IndexMap<&'a str, &'a pickle::Tensor>, SourceError> {
    let Some(Object::Dict(items)) = machine.object(value) else {
        return Err(refuse(file, "does not hold a dictionary of tensors", RESAVE));
    };
    let has_tensors = items.iter().any(|(_, v)| matches!(machine.object(*v), Some(Object::Tensor(_))));
    if !has_tensors {
        let wrapped = items.iter().find(|(k, v)| {
            machine.text(*k).is_some_and(|k| WRAPPERS.contains(&k))
                && matches!(machine.object(*v), Some(Object::Dict(_)))
        });
        if let Some(&(_, inner)) = wrapped.filter(|(_, inner)| *inner != value) {
            return tensors_of(file, inner, machine);
        }
    }
    tensors_of(file, value, machine)
}

fn tensors_of<'a>(
    file: &WeightFile,
    value: Value,
    machine: &'a Machine,
) -> Result<IndexMap<&'a str, &'a pickle::Tensor>, SourceError> {
    let Some(Object::Dict(items)) = machine.object(value) else {
        return Err(refuse(file, "does not hold a dictionary of tensors", RESAVE));
    };
    // As in Python, a later entry of a name replaces an earlier one.
    let mut named = IndexMap::new();
    for &(key, value) in items {
        let Some(name) = machine.text(key) else {
            return Err(refuse(file, "its dictionary has a key that is no text", RESAVE));
        };
        match machine.object(value) {
            Some(Object::Tensor(tensor)) => {
                named.insert(name, tensor);
            }
            None | Some(Object::Text(_) | Object::Long(_)) => {}
            Some(_) => return Err(refuse(file, format!("its entry {name} is a container, not a tensor"), RESAVE)),
        }
    }
    Ok(named)
}

/// Checks that a tensor lies within its storage, and gives it its place in the file.
fn place(
    file: &Arc<WeightFile>,
    name: String,
    tensor: &pickle::Tensor,
    storages: &Storages,
) -> Result<Stored, SourceError> {
    let path = file.path();
    let storage = &tensor.storage;
    let fail = |cause: String| Err(SourceError::tensor(path, &name, cause));
    if !element::is_known(tensor.dtype) {
        let (path, dtype) = (path.to_path_buf(), tensor.dtype.to_string());
        return Err(SourceError::Element { path, tensor: name, dtype });
    }
    let Some(&(start, held)) = storages.get(&storage.key) else {
        return fail(format!("its storage {} is not in the file", storage.key));
    };
    let Some(shape) = Shape::new(tensor.dims.clone()) else { return fail("has more than 2^64 elements".to_string()) };
    let width = tensor.dtype.bitsize() as u64 / 8;
    let unit = storage.dtype.map_or(1, |d: Dtype| d.bitsize() as u64 / 8);
    let announced = storage.len.checked_mul(unit);
    if announced.is_none_or(|bytes| bytes > held) {
        return fail(format!("its storage should hold {} elements, the file has {held} bytes of it", storage.len));
    }
    let view = storage.view.map_or(Some(0), |(offset, _)| offset.checked_mul(unit));
    let offset = tensor.offset.checked_mul(width).zip(view).and_then(|(a, b)| a.checked_add(b));
    let last = tensor
        .dims
        .iter()
        .zip(&tensor.strides)
        .try_fold(0u64, |at, (&dim, &stride)| at.checked_add(dim.saturating_sub(1).checked_mul(stride)?));
    let end = last.and_then(|l| l.checked_add(1)?.checked_mul(width)).zip(offset).and_then(|(l, o)| l.checked_add(o));
    let end = if shape.elements() == 0 { Some(0) } else { end };
    match (end, offset) {
        (Some(end), Some(offset)) if end <= held => {
            let (file, strides) = (file.clone(), Some(tensor.strides.clone()));
            Ok(Stored::new(file, name, tensor.dtype, shape, start + offset, strides))
        }
        _ => fail(format!("shape {shape} reaches beyond its storage of {held} bytes")),
    }
}
