//! Importance matrices: the mean square of what each column of a weight is multiplied with, by llama-imatrix.
//!
//! Two formats. GGUF: per tensor `<name>.in_sum2` (sums of squares) and `<name>.counts` (one count per expert), both
//! F32. The older `.dat`:
//!
//! ```text
//! i32 entries, then each: i32 length, name, i32 calls, i32 values, f32[values]
//! optionally: i32 chunks, i32 length, dataset name
//! ```
//!
//! Source: `common_imatrix_load` and `load_imatrix` in llama-quantize, llama.cpp 0.5.0.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bstr::BString;

use super::{GgmlType, Importance};
use crate::gguf::{Array, GgufError, GgufFile, GgufTensor, Metadata, Value};

/// Longest value of a key that llama-quantize writes (`llama_model_kv_override::val_str` less its terminator).
const MAX_KEY_VALUE: usize = 127;
/// Longest name in a `.dat` file that is believed.
const MAX_NAME: u64 = 4096;
/// Longest dataset name in a `.dat` file that is believed.
const MAX_DATASET: u64 = 1 << 20;

/// The weights of one tensor.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// For every expert in turn, one weight per column.
    weights: Vec<f32>,
}

/// An importance matrix, read and normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Imatrix {
    path: PathBuf,
    entries: HashMap<String, Entry>,
    datasets: Vec<BString>,
    chunks: i32,
}

/// Which entries to use: those with one of these in their names. Both cannot be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImatrixFilter {
    /// All entries.
    #[default]
    All,
    /// Only these (`--include-weights`).
    Include(Vec<String>),
    /// All but these (`--exclude-weights`).
    Exclude(Vec<String>),
}

/// An importance matrix that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
#[non_exhaustive]
pub enum ImatrixError {
    #[error("{}: {source}; give a file that llama-imatrix wrote", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{}: not an importance matrix ({reason}); give a file that llama-imatrix wrote", path.display())]
    NotImatrix { path: PathBuf, reason: String },
    #[error("{}: truncated: {what} needs {needed} bytes, and {left} are left; download or copy it again", path.display())]
    Truncated { path: PathBuf, what: String, needed: u64, left: u64 },
    #[error("{}: {left} bytes follow the end of the data; the file is damaged", path.display())]
    Trailing { path: PathBuf, left: u64 },
    #[error("{}: the key '{key}' is missing or of another type; make the matrix again with a current llama-imatrix", path.display())]
    Key { path: PathBuf, key: &'static str },
    #[error("{}: tensor '{tensor}' has {present} but no {missing}; make the matrix again", path.display())]
    Unpaired { path: PathBuf, tensor: String, present: &'static str, missing: &'static str },
    #[error("{}: '{tensor}' is {kind}, and must be F32; make the matrix again", path.display())]
    NotF32 { path: PathBuf, tensor: String, kind: GgmlType },
    #[error("{}: tensor '{tensor}' has {sums} sums for {counts} counts, which do not divide; make the matrix again", path.display())]
    Counts { path: PathBuf, tensor: String, sums: u64, counts: u64 },
    #[error("{}: tensor '{tensor}' has the weight {value} at {index}; make the matrix again", path.display())]
    NotFinite { path: PathBuf, tensor: String, index: usize, value: f32 },
    #[error("{option} '{text}' matches none of the {entries} entries of {}; correct it", path.display())]
    NoMatch { path: PathBuf, option: &'static str, text: String, entries: usize },
}

impl Imatrix {
    /// Reads a file of either format and keeps the entries that the filter leaves.
    pub fn open(path: impl AsRef<Path>, filter: &ImatrixFilter) -> Result<Self, ImatrixError> {
        let path = path.as_ref();
        let io = |source| ImatrixError::Io { path: path.into(), source };
        let mut magic = [0; 4];
        let is_gguf = match File::open(path).map_err(io)?.read_exact(&mut magic) {
            Ok(()) => magic == *b"GGUF",
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(io(e)),
        };
        let mut imatrix = if is_gguf { Self::open_gguf(path)? } else { Self::open_dat(path)? };
        imatrix.filter(filter)?;
        for (tensor, entry) in &imatrix.entries {
            if let Some(index) = entry.weights.iter().position(|w| !w.is_finite()) {
                let (tensor, value) = (tensor.clone(), entry.weights[index]);
                return Err(ImatrixError::NotFinite { path: path.into(), tensor, index, value });
            }
        }
        Ok(imatrix)
    }

    fn open_gguf(path: &Path) -> Result<Self, ImatrixError> {
        let file = GgufFile::open(path)?;
        let mut entries = HashMap::new();
        for t in file.tensors() {
            let (name, suffix, other) = match (t.name.strip_suffix(".in_sum2"), t.name.strip_suffix(".counts")) {
                (Some(name), _) => (name, ".in_sum2", ".counts"),
                (_, Some(name)) => (name, ".counts", ".in_sum2"),
                _ => continue,
            };
            let Some(counterpart) = file.tensor(&format!("{name}{other}")) else {
                let tensor = name.to_owned();
                return Err(ImatrixError::Unpaired { path: path.into(), tensor, present: suffix, missing: other });
            };
            if suffix == ".in_sum2" {
                entries.insert(name.to_owned(), means(path, &file, name, t, counterpart)?);
            }
        }
        if entries.is_empty() {
            let reason = "it has no tensor whose name ends in .in_sum2".into();
            return Err(ImatrixError::NotImatrix { path: path.into(), reason });
        }
        let (datasets, chunks) = provenance(path, file.metadata())?;
        Ok(Imatrix { path: path.into(), entries, datasets, chunks })
    }

    fn open_dat(path: &Path) -> Result<Self, ImatrixError> {
        let io = |source| ImatrixError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let left = file.metadata().map_err(io)?.len();
        let mut r = Dat { path, input: BufReader::new(file), left };
        let count = r.positive("the number of entries")?;
        let mut entries = HashMap::new();
        for i in 0..count {
            let name = r.text(&format!("the name of entry {i}"), MAX_NAME)?;
            let name = String::from_utf8(name)
                .map_err(|_| r.not_imatrix(format!("the name of entry {i} is not UTF-8 text")))?;
            let calls = r.i32(&format!("the call count of '{name}'"))?;
            let values = r.positive(&format!("the number of values of '{name}'"))?;
            let mut weights = r.floats(&format!("the values of '{name}'"), values)?;
            if calls > 0 {
                weights.iter_mut().for_each(|w| *w /= calls as f32);
            }
            entries.insert(name, Entry { weights });
        }
        // Files of the first versions end here, those of later ones after the number of chunks.
        let (mut chunks, mut datasets) = (0, Vec::new());
        if r.left > 0 {
            chunks = r.i32("the number of chunks")?;
        }
        if r.left > 0 {
            let dataset = r.text("the dataset's name", MAX_DATASET)?;
            if !dataset.is_empty() {
                datasets.push(dataset.into());
            }
        }
        if r.left > 0 {
            return Err(ImatrixError::Trailing { path: path.into(), left: r.left });
        }
        Ok(Imatrix { path: path.into(), entries, datasets, chunks })
    }

    fn filter(&mut self, filter: &ImatrixFilter) -> Result<(), ImatrixError> {
        let (option, texts, keep) = match filter {
            ImatrixFilter::All => return Ok(()),
            ImatrixFilter::Include(texts) => ("--include-weights", texts, true),
            ImatrixFilter::Exclude(texts) => ("--exclude-weights", texts, false),
        };
        if let Some(text) = texts.iter().find(|t| !self.entries.keys().any(|name| name.contains(t.as_str()))) {
            let (path, entries) = (self.path.clone(), self.entries.len());
            return Err(ImatrixError::NoMatch { path, option, text: text.clone(), entries });
        }
        self.entries.retain(|name, _| texts.iter().any(|t| name.contains(t.as_str())) == keep);
        Ok(())
    }

    /// The weights of an expert of a tensor with rows of `row_len`: one per column. `None` where the matrix has none
    /// for the tensor, or not for so many columns and experts ([`Importance::len_for`] tells which).
    pub fn weights_for(&self, tensor: &str, row_len: usize, expert: usize) -> Option<&[f32]> {
        let start = expert.checked_mul(row_len)?;
        self.entries.get(tensor)?.weights.get(start..start.checked_add(row_len)?)
    }

    /// Number of tensors it has weights for.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a filter has left nothing. llama-quantize then works as without a matrix.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the texts it was made from.
    pub fn datasets(&self) -> &[BString] {
        &self.datasets
    }
}

impl Importance for Imatrix {
    fn len_for(&self, tensor: &str) -> Option<u64> {
        self.entries.get(tensor).map(|e| e.weights.len() as u64)
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        let text = |bytes: &[u8]| Value::string(&bytes[..bytes.len().min(MAX_KEY_VALUE)]);
        let mut keys = vec![("quantize.imatrix.file", text(self.path.as_os_str().as_encoded_bytes()))];
        if let Some(first) = self.datasets.first() {
            keys.push(("quantize.imatrix.dataset", text(first)));
        }
        keys.push(("quantize.imatrix.entries_count", Value::U32(self.entries.len() as u32)));
        if let Ok(chunks @ 1..) = u32::try_from(self.chunks) {
            keys.push(("quantize.imatrix.chunks_count", Value::U32(chunks)));
        }
        keys
    }
}

/// The mean of each sum: divided by its expert's count, or 1 for an expert that no token reached.
fn means(
    path: &Path,
    file: &GgufFile,
    name: &str,
    sums: &GgufTensor,
    counts: &GgufTensor,
) -> Result<Entry, ImatrixError> {
    let (n_sums, n_counts) = (sums.shape.elements(), counts.shape.elements());
    if n_sums == 0 || n_counts == 0 || !n_sums.is_multiple_of(n_counts) {
        let tensor = name.to_owned();
        return Err(ImatrixError::Counts { path: path.into(), tensor, sums: n_sums, counts: n_counts });
    }
    let mut weights = read_floats(path, file, sums)?;
    let counts = read_floats(path, file, counts)?;
    for (row, count) in weights.chunks_exact_mut((n_sums / n_counts) as usize).zip(counts) {
        let count = count.round();
        if count > 0.0 {
            row.iter_mut().for_each(|w| *w /= count);
        } else {
            row.fill(1.0);
        }
    }
    Ok(Entry { weights })
}

fn read_floats(path: &Path, file: &GgufFile, t: &GgufTensor) -> Result<Vec<f32>, ImatrixError> {
    if t.kind != GgmlType::F32 {
        return Err(ImatrixError::NotF32 { path: path.into(), tensor: t.name.clone(), kind: t.kind });
    }
    let mut bytes = vec![0; t.bytes as usize];
    file.read_rows(t, 0..t.shape.rows(), &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Datasets and number of chunks; llama-quantize wants all three keys.
fn provenance(path: &Path, metadata: &Metadata) -> Result<(Vec<BString>, i32), ImatrixError> {
    let missing = |key| ImatrixError::Key { path: path.into(), key };
    let number = |key: &'static str| match metadata.get(key) {
        Some(&Value::U32(n)) => Ok(n),
        _ => Err(missing(key)),
    };
    number("imatrix.chunk_size")?;
    let chunks = number("imatrix.chunk_count")?;
    let datasets = match metadata.get("imatrix.datasets") {
        Some(Value::Array(Array::String(names))) => names.clone(),
        // An array of nothing may claim any element type.
        Some(Value::Array(a)) if a.is_empty() => Vec::new(),
        _ => return Err(missing("imatrix.datasets")),
    };
    Ok((datasets, chunks as i32))
}

/// A `.dat` file, read forward; every length is compared with what is left before memory is reserved.
struct Dat<'a> {
    path: &'a Path,
    input: BufReader<File>,
    left: u64,
}

impl Dat<'_> {
    fn not_imatrix(&self, reason: String) -> ImatrixError {
        ImatrixError::NotImatrix { path: self.path.into(), reason }
    }

    fn bytes(&mut self, what: &str, n: u64) -> Result<Vec<u8>, ImatrixError> {
        if n > self.left {
            let (what, left) = (what.to_owned(), self.left);
            return Err(ImatrixError::Truncated { path: self.path.into(), what, needed: n, left });
        }
        let mut bytes = vec![0; n as usize];
        self.input.read_exact(&mut bytes).map_err(|source| ImatrixError::Io { path: self.path.into(), source })?;
        self.left -= n;
        Ok(bytes)
    }

    fn i32(&mut self, what: &str) -> Result<i32, ImatrixError> {
        let bytes = self.bytes(what, 4)?;
        Ok(bytes.first_chunk().map_or(0, |b| i32::from_le_bytes(*b)))
    }

    fn positive(&mut self, what: &str) -> Result<u64, ImatrixError> {
        let n = self.i32(what)?;
        match u64::try_from(n) {
            Ok(n @ 1..) => Ok(n),
            _ => Err(self.not_imatrix(format!("{what} is {n}"))),
        }
    }

    /// Text with its length before it, up to the first zero byte.
    fn text(&mut self, what: &str, limit: u64) -> Result<Vec<u8>, ImatrixError> {
        let n = self.i32(&format!("the length of {what}"))?;
        match u64::try_from(n) {
            Ok(n) if n <= limit => {
                let mut bytes = self.bytes(what, n)?;
                bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
                Ok(bytes)
            }
            _ => Err(self.not_imatrix(format!("the length of {what} is {n}"))),
        }
    }

    fn floats(&mut self, what: &str, n: u64) -> Result<Vec<f32>, ImatrixError> {
        let bytes = self.bytes(what, n * 4)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}
