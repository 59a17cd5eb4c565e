//! How two GGUF files differ: keys, order, types, shapes, bytes; and how far apart the values are.
//!
//! Data is read in chunks, each tensor twice where its bytes differ: once to find that out, once for the values.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::{Array, GgufError, GgufFile, GgufTensor, Value, shown_value};
use crate::quant::{QuantError, dequantize_rows};

/// Decoded bytes of a tensor that are compared in one step.
const CHUNK: u64 = 1 << 20;
/// Elements of an array that a difference shows.
const SHOWN: usize = 4;

/// Two files that cannot be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
#[non_exhaustive]
pub enum DiffError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{}: tensor '{tensor}': {source}", path.display())]
    Decode { path: PathBuf, tensor: String, source: QuantError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// All differences between files A and B.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DiffReport {
    /// File A.
    pub a: PathBuf,
    /// File B.
    pub b: PathBuf,
    /// Whether the files are the same, byte for byte.
    pub identical: bool,
    /// Keys that one lacks or that have other values.
    pub keys: Vec<KeyDifference>,
    /// Whether the keys that both have stand in another order.
    pub key_order_differs: bool,
    /// Whether the tensors that both have stand in another order.
    pub tensor_order_differs: bool,
    /// Version, alignment, parts, or bytes between and after the tensors, in words.
    pub layout: Vec<String>,
    /// Tensors that both have and that are equal in name, type, shape and bytes.
    pub equal_tensors: usize,
    /// All other tensors, in the order of A, then of B.
    pub tensors: Vec<TensorDifference>,
}

/// A key that differs.
#[derive(Clone, Debug, Serialize)]
pub struct KeyDifference {
    /// The key.
    pub key: String,
    /// Its type and value in A.
    pub a: Option<String>,
    /// Its type and value in B.
    pub b: Option<String>,
    /// The first element of an array that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_index: Option<usize>,
}

/// A tensor that differs.
#[derive(Clone, Debug, Serialize)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// Type and dimensions (fastest first) in A.
    pub a: Option<(&'static str, Vec<u64>)>,
    /// Type and dimensions in B.
    pub b: Option<(&'static str, Vec<u64>)>,
    /// How the bytes differ, where type and shape are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteDifference>,
    /// How far apart the values are, where the shape is the same and both are floats or blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<ValueDistance>,
}

/// How the bytes of a tensor differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteDifference {
    /// Blocks (elements of plain types) that differ.
    pub blocks: u64,
    /// All blocks.
    pub of: u64,
    /// Index of the first that differs.
    pub first: u64,
}

/// How far apart decoded values are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValueDistance {
    /// Root of the mean squared difference.
    pub rmse: f64,
    /// The same, relative to the root mean square of A; 0 where both are.
    pub relative_rmse: f64,
    /// The largest difference.
    pub max_error: f64,
    /// Cosine of the angle between both as vectors; 1 where both are zero.
    pub cosine: f64,
    /// Elements that differ.
    pub differing: u64,
}

impl DiffReport {
    /// Whether the files are not the same.
    pub fn differs(&self) -> bool {
        !self.identical
    }
}

/// Compares two files; parts of split ones are opened with the first.
pub fn diff(a: &Path, b: &Path) -> Result<DiffReport, DiffError> {
    let (fa, fb) = (GgufFile::open(a)?, GgufFile::open(b)?);
    let mut report = DiffReport { a: a.into(), b: b.into(), ..DiffReport::default() };
    compare_keys(&fa, &fb, &mut report);

    let common = |x: &GgufFile, y: &GgufFile| -> Vec<String> {
        x.tensors().iter().filter(|t| y.tensor(&t.name).is_some()).map(|t| t.name.clone()).collect()
    };
    report.tensor_order_differs = common(&fa, &fb) != common(&fb, &fa);
    let compared: Vec<Option<TensorDifference>> = fa
        .tensors()
        .par_iter()
        .map(|t| match fb.tensor(&t.name) {
            None => Ok(Some(one_sided(t, true))),
            Some(u) => compare_tensor(&fa, t, &fb, u),
        })
        .collect::<Result<_, DiffError>>()?;
    report.equal_tensors = compared.iter().filter(|d| d.is_none()).count();
    report.tensors.extend(compared.into_iter().flatten());
    report.tensors.extend(fb.tensors().iter().filter(|t| fa.tensor(&t.name).is_none()).map(|t| one_sided(t, false)));

    compare_layout(&fa, &fb, &mut report);
    let same_content = report.keys.is_empty()
        && report.tensors.is_empty()
        && report.layout.is_empty()
        && !report.key_order_differs
        && !report.tensor_order_differs;
    if same_content {
        report.identical = true;
        for (p, q) in fa.parts().iter().zip(fb.parts()) {
            if let Some(at) = first_differing_byte(&p.path, &q.path)? {
                report.identical = false;
                report.layout.push(format!("padding differs: first at byte {at} of {}", p.path.display()));
            }
        }
    }
    Ok(report)
}

fn compare_keys(a: &GgufFile, b: &GgufFile, report: &mut DiffReport) {
    let (ma, mb) = (a.metadata(), b.metadata());
    let shown = |v: &Value| match v {
        Value::Array(x) if x.len() > SHOWN => {
            let head = shown_value(v, SHOWN).to_string();
            format!("{}[{}] {}, ...]", v.type_name(), x.len(), head.trim_end_matches(']'))
        }
        _ => format!("{} {}", v.type_name(), shown_value(v, SHOWN)),
    };
    for (key, x) in ma.iter() {
        let y = mb.get(key);
        if !y.is_some_and(|y| same_value(x, y)) {
            let first_index = y.and_then(|y| first_differing_element(x, y));
            report.keys.push(KeyDifference { key: key.into(), a: Some(shown(x)), b: y.map(shown), first_index });
        }
    }
    for (key, y) in mb.iter().filter(|(key, _)| ma.get(key).is_none()) {
        report.keys.push(KeyDifference { key: key.into(), a: None, b: Some(shown(y)), first_index: None });
    }
    let order_a = ma.iter().map(|(k, _)| k).filter(|k| mb.get(k).is_some());
    let order_b = mb.iter().map(|(k, _)| k).filter(|k| ma.get(k).is_some());
    report.key_order_differs = !order_a.eq(order_b);
}

/// Equality of bits: a NaN equals itself, and zeros of both signs are two values.
fn same_value(x: &Value, y: &Value) -> bool {
    match (x, y) {
        (Value::F32(x), Value::F32(y)) => x.to_bits() == y.to_bits(),
        (Value::F64(x), Value::F64(y)) => x.to_bits() == y.to_bits(),
        (Value::Array(Array::F32(x)), Value::Array(Array::F32(y))) => {
            x.iter().map(|v| v.to_bits()).eq(y.iter().map(|v| v.to_bits()))
        }
        (Value::Array(Array::F64(x)), Value::Array(Array::F64(y))) => {
            x.iter().map(|v| v.to_bits()).eq(y.iter().map(|v| v.to_bits()))
        }
        _ => x == y,
    }
}

/// Where two arrays of one type part.
fn first_differing_element(x: &Value, y: &Value) -> Option<usize> {
    fn first<T: PartialEq>(x: &[T], y: &[T]) -> Option<usize> {
        Some(x.iter().zip(y).position(|(x, y)| x != y).unwrap_or(x.len().min(y.len())))
    }
    let (Value::Array(x), Value::Array(y)) = (x, y) else { return None };
    match (x, y) {
        (Array::U8(x), Array::U8(y)) => first(x, y),
        (Array::I8(x), Array::I8(y)) => first(x, y),
        (Array::U16(x), Array::U16(y)) => first(x, y),
        (Array::I16(x), Array::I16(y)) => first(x, y),
        (Array::U32(x), Array::U32(y)) => first(x, y),
        (Array::I32(x), Array::I32(y)) => first(x, y),
        (Array::F32(x), Array::F32(y)) => first(x, y),
        (Array::Bool(x), Array::Bool(y)) => first(x, y),
        (Array::String(x), Array::String(y)) => first(x, y),
        (Array::Array(x), Array::Array(y)) => first(x, y),
        (Array::U64(x), Array::U64(y)) => first(x, y),
        (Array::I64(x), Array::I64(y)) => first(x, y),
        (Array::F64(x), Array::F64(y)) => first(x, y),
        _ => None,
    }
}

fn one_sided(t: &GgufTensor, in_a: bool) -> TensorDifference {
    let side = Some((t.kind.name(), t.shape.ne()));
    let (a, b) = if in_a { (side, None) } else { (None, side) };
    TensorDifference { name: t.name.clone(), a, b, bytes: None, values: None }
}

fn compare_tensor(
    fa: &GgufFile,
    a: &GgufTensor,
    fb: &GgufFile,
    b: &GgufTensor,
) -> Result<Option<TensorDifference>, DiffError> {
    let bytes = if (a.kind, &a.shape) == (b.kind, &b.shape) {
        match compare_bytes(fa, a, fb, b)? {
            None => return Ok(None),
            different => different,
        }
    } else {
        None
    };
    let values = if a.shape == b.shape { compare_values(fa, a, fb, b)? } else { None };
    Ok(Some(TensorDifference {
        name: a.name.clone(),
        a: Some((a.kind.name(), a.shape.ne())),
        b: Some((b.kind.name(), b.shape.ne())),
        bytes,
        values,
    }))
}

/// Ranges of rows that take about a chunk when decoded.
fn row_chunks(t: &GgufTensor) -> impl Iterator<Item = Range<u64>> + use<> {
    let rows = if t.bytes == 0 { 0 } else { t.shape.rows() };
    let per = (CHUNK / (4 * t.shape.row_len().max(1))).max(1);
    (0..rows.div_ceil(per)).map(move |i| i * per..((i + 1) * per).min(rows))
}

fn row_bytes(t: &GgufTensor) -> u64 {
    t.bytes.checked_div(t.shape.rows()).unwrap_or(0)
}

fn compare_bytes(
    fa: &GgufFile,
    a: &GgufTensor,
    fb: &GgufFile,
    b: &GgufTensor,
) -> Result<Option<ByteDifference>, DiffError> {
    let block = a.kind.geometry().bytes;
    let mut found = ByteDifference { blocks: 0, of: a.bytes / block, first: 0 };
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for rows in row_chunks(a) {
        let len = ((rows.end - rows.start) * row_bytes(a)) as usize;
        x.resize(len, 0);
        y.resize(len, 0);
        fa.read_rows(a, rows.clone(), &mut x)?;
        fb.read_rows(b, rows.clone(), &mut y)?;
        if x == y {
            continue;
        }
        let before = rows.start * row_bytes(a) / block;
        for (i, (p, q)) in x.chunks(block as usize).zip(y.chunks(block as usize)).enumerate() {
            if p != q {
                if found.blocks == 0 {
                    found.first = before + i as u64;
                }
                found.blocks += 1;
            }
        }
    }
    Ok((found.blocks > 0).then_some(found))
}

/// Decodes both and measures; `None` for types that hold no weights.
fn compare_values(
    fa: &GgufFile,
    a: &GgufTensor,
    fb: &GgufFile,
    b: &GgufTensor,
) -> Result<Option<ValueDistance>, DiffError> {
    let weights = |t: &GgufTensor| crate::quant::can_hold_weights(t.kind);
    if !weights(a) || !weights(b) {
        return Ok(None);
    }
    let row = a.shape.row_len() as usize;
    let (mut squares, mut max, mut dot, mut norm_a, mut norm_b) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut differing = 0;
    let mut bytes = Vec::new();
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for rows in row_chunks(a) {
        let n = (rows.end - rows.start) as usize;
        for (file, t, out) in [(fa, a, &mut x), (fb, b, &mut y)] {
            bytes.resize(n * row_bytes(t) as usize, 0);
            out.resize(n * row, 0.0f32);
            file.read_rows(t, rows.clone(), &mut bytes)?;
            dequantize_rows(t.kind, &bytes, row, out).map_err(|source| DiffError::Decode {
                path: file.parts()[t.part].path.clone(),
                tensor: t.name.clone(),
                source,
            })?;
        }
        for (&x, &y) in x.iter().zip(&y) {
            differing += u64::from(x != y);
            let (x, y) = (f64::from(x), f64::from(y));
            let d = (x - y).abs();
            squares += d * d;
            // Written so that a NaN is kept.
            max = if d > max || d.is_nan() { d } else { max };
            dot += x * y;
            norm_a += x * x;
            norm_b += y * y;
        }
    }
    let n = a.shape.elements().max(1) as f64;
    let rmse = (squares / n).sqrt();
    let scale = (norm_a / n).sqrt();
    let norms = norm_a.sqrt() * norm_b.sqrt();
    Ok(Some(ValueDistance {
        rmse,
        relative_rmse: if rmse == 0.0 { 0.0 } else { rmse / scale },
        max_error: max,
        cosine: if norm_a == 0.0 && norm_b == 0.0 { 1.0 } else { dot / norms },
        differing,
    }))
}

fn compare_layout(a: &GgufFile, b: &GgufFile, report: &mut DiffReport) {
    let mut unequal = |what: &str, x: u64, y: u64| {
        if x != y {
            report.layout.push(format!("{what}: {x} and {y}"));
        }
    };
    unequal("number of parts", a.parts().len() as u64, b.parts().len() as u64);
    unequal("alignment", a.alignment(), b.alignment());
    for (p, q) in a.parts().iter().zip(b.parts()) {
        unequal("format version", p.version.into(), q.version.into());
        unequal("file size", p.size, q.size);
    }
}

/// The first byte in which two files differ.
fn first_differing_byte(a: &Path, b: &Path) -> Result<Option<u64>, DiffError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| DiffError::Io { path: path.clone(), source }
    };
    let (mut fa, mut fb) = (File::open(a).map_err(io(a))?, File::open(b).map_err(io(b))?);
    let (mut x, mut y) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut at = 0;
    loop {
        let n = fill(&mut fa, &mut x).map_err(io(a))?;
        let m = fill(&mut fb, &mut y).map_err(io(b))?;
        if let Some(i) = x[..n].iter().zip(&y[..m]).position(|(p, q)| p != q) {
            return Ok(Some(at + i as u64));
        }
        if n != m {
            return Ok(Some(at + n.min(m) as u64));
        }
        if n == 0 {
            return Ok(None);
        }
        at += n as u64;
    }
}

fn fill(file: &mut File, out: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < out.len() {
        match file.read(&mut out[n..]) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}
