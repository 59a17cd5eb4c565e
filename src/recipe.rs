//! The recipe: an output tensor as an expression over source tensors.
//!
//! Its one operation is "give me rows i..j as f32" ([`Recipe::rows`]). The vocabulary is small and closed; an
//! ill-shaped recipe cannot be built, since every constructor checks shapes, so evaluating one fails only for
//! I/O. A property covers every word: rows cut into any ranges equal the rows in one piece.
//!
//! Decoding is a property of the source ([`RowSource`]), merging a property of the source tensor's name
//! ([`Delta`]), rearranging a property of the architecture: none knows the others.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::quant::GgmlType;
use crate::shape::Shape;

mod eval;
mod factored;
mod low_rank;
mod raw;
#[cfg(test)]
mod tests;
mod words;

pub use factored::{BlockFactors, Factored};
pub use low_rank::{NotLowRank, Term};
pub use raw::{RawCodes, RawFormat, RawPart, RawRows, RawScales};
pub use words::{Elementwise, RowMap};

/// Reusable buffers of one worker thread. Recipes borrow what they need and give it back, so a worker's
/// memory settles at what the deepest recipe needs for one chunk of rows.
#[derive(Default)]
pub struct Scratch {
    floats: Vec<Vec<f32>>,
    bytes: Vec<Vec<u8>>,
}

impl Scratch {
    /// A buffer of `len` floats with arbitrary contents. Give it back with [`Scratch::give_floats`].
    pub fn take_floats(&mut self, len: usize) -> Vec<f32> {
        let mut v = self.floats.pop().unwrap_or_default();
        v.resize(len, 0.0);
        v
    }

    /// Returns a buffer for reuse.
    pub fn give_floats(&mut self, v: Vec<f32>) {
        self.floats.push(v);
    }

    /// A buffer of `len` bytes with arbitrary contents. Give it back with [`Scratch::give_bytes`].
    pub fn take_bytes(&mut self, len: usize) -> Vec<u8> {
        let mut v = self.bytes.pop().unwrap_or_default();
        v.resize(len, 0);
        v
    }

    /// Returns a buffer for reuse.
    pub fn give_bytes(&mut self, v: Vec<u8>) {
        self.bytes.push(v);
    }
}

/// A stored tensor that can be read a few rows at a time: the leaf of a recipe. Implementations read by
/// position into the given buffers; they hold no data of the tensor between calls, except small side tables.
pub trait RowSource: Send + Sync {
    /// Logical shape (of the decoded tensor).
    fn shape(&self) -> &Shape;

    /// The plain type that holds every decoded value without loss, as a converter would store it: F32, F16 or
    /// BF16 for floating-point data (packed sources answer the type their library decodes to).
    fn precision(&self) -> GgmlType;

    /// Reads and decodes rows `rows` into `out` (exactly `rows.len() * row_len` floats).
    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError>;

    /// Reads and decodes columns `cols` of rows `rows`, what a transposed tensor needs. The default reads whole
    /// rows, a few at a time; a source whose elements lie at computable places reads less.
    fn read_window(
        &self,
        rows: Range<u64>,
        cols: Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        eval::crop(self.shape().row_len(), rows, cols, out, scratch, |rows, out, scratch| {
            self.read_rows(rows, out, scratch)
        })
    }

    /// The block type whose bytes this source holds as they are, when it holds ggml blocks.
    fn native(&self) -> Option<GgmlType> {
        None
    }

    /// Copies the native blocks of rows `rows` into `out`; called only when [`RowSource::native`] is `Some`.
    fn read_native_rows(&self, _rows: Range<u64>, _out: &mut [u8], _scratch: &mut Scratch) -> Result<(), ReadError> {
        Err(ReadError::new("a tensor", "has no native blocks"))
    }

    /// How the bytes of this source decode, where they can be handed on as they are ([`RowSource::read_raw_rows`]).
    fn raw(&self) -> Option<RawFormat> {
        None
    }

    /// Reads the codes and the scales of rows `rows` into buffers of exactly their size; called only when
    /// [`RowSource::raw`] is `Some`.
    fn read_raw_rows(
        &self,
        _rows: Range<u64>,
        _codes: &mut [u8],
        _scales: &mut [f32],
        _scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        Err(ReadError::new(self.describe(), "has no raw rows"))
    }

    /// The same tensor as ggml blocks, and the factors that llama.cpp keeps apart from them, where it does.
    fn factored(&self) -> Option<(Arc<dyn RowSource>, BlockFactors)> {
        None
    }

    /// The same tensor as llama.cpp's converter decodes it, where that keeps bits of a packed weight which the
    /// library that packed it rounds away.
    fn as_converted(&self) -> Option<Arc<dyn RowSource>> {
        None
    }

    /// What to call this tensor in messages: file and name.
    fn describe(&self) -> String;
}

/// What an adapter adds to a tensor.
///
/// `apply` gets the rows as the base (and earlier deltas) made them, and changes them in place. It may read
/// other rows of `base` where a norm needs them, but holds no more than a chunk.
pub trait Delta: Send + Sync {
    /// Changes `values`, the rows `rows` of the tensor, in place. `base` is the unmerged tensor.
    fn apply(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError>;

    /// The factors, where the change is `scale * B @ A` and nothing else: what a device can do by itself.
    fn low_rank(&self) -> Option<&dyn LowRank> {
        None
    }

    /// Hears of rows that a device changed by itself: the sums of squares of what they were and of the change.
    fn record(&self, _base: f64, _change: f64, _elements: u64) {}

    /// The change to `base` as a sum of products, where it is one, whoever adds it up: what an adapter file holds.
    fn terms(&self, _base: &Recipe) -> Option<Vec<Term>> {
        None
    }

    /// What to call this change in messages: the adapter and the module.
    fn describe(&self) -> String;
}

/// A change `values[i][j] += scale * (sum over k = 0..rank in order of b[i][k] * a[k][j])`, in f32 and without
/// FMA: one rule for every device, so that each gives the same bytes.
pub trait LowRank: Send + Sync {
    /// Rank: rows of `a`, columns of `b`.
    fn rank(&self) -> usize;

    /// The factor of the sum.
    fn scale(&self) -> f32;

    /// Reads the whole of `a`, `[rank, columns]`.
    fn read_a(&self, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError>;

    /// Reads rows `rows` of `b`, `[rows, rank]`.
    fn read_b(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError>;

    /// The norm that each changed row is then given, for changes that give it one (DoRA along rows).
    fn magnitudes(&self) -> Option<&dyn Magnitudes> {
        None
    }
}

/// Norms of rows: `row *= magnitude / ‖row‖`, where the squares are summed in f64 in the order of the columns, and
/// the root and the quotient are rounded to f32.
pub trait Magnitudes: Send + Sync {
    /// Reads those of rows `rows`.
    fn read(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError>;
}

/// Reading rows failed: the tensor or file, and why.
#[derive(Debug, thiserror::Error)]
#[error("{subject}: {cause}")]
pub struct ReadError {
    subject: String,
    cause: String,
    #[source]
    io: Option<std::io::Error>,
}

impl ReadError {
    /// An error about `subject` (file and tensor).
    pub fn new(subject: impl Into<String>, cause: impl Into<String>) -> Self {
        ReadError { subject: subject.into(), cause: cause.into(), io: None }
    }

    /// An I/O error about `subject`.
    pub fn io(subject: impl Into<String>, io: std::io::Error) -> Self {
        ReadError { subject: subject.into(), cause: io.to_string(), io: Some(io) }
    }
}

/// A recipe could not be built, since shapes do not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// An operation needs another shape.
    #[error("{subject} has shape {shape}, but {operation} needs {needs}")]
    Unfit {
        /// What was operated on.
        subject: String,
        /// Its shape.
        shape: Shape,
        /// The word of the vocabulary.
        operation: &'static str,
        /// What it needs, in words.
        needs: String,
    },
}

/// An expression over source tensors, with a known shape. Cloning is cheap.
#[derive(Clone)]
pub struct Recipe {
    shape: Shape,
    precision: GgmlType,
    node: Arc<Node>,
}

enum Node {
    /// A stored tensor.
    Source(Arc<dyn RowSource>),
    /// Base and adapter deltas, applied in order.
    Merge { base: Recipe, deltas: Vec<Arc<dyn Delta>> },
    /// Output row i is input row `map(i)`.
    Rows { input: Recipe, map: RowMap },
    /// One after another along the rows; also the stack of experts.
    Concat { parts: Vec<Recipe>, starts: Vec<u64> },
    /// The last two dimensions swapped.
    Transpose(Recipe),
    /// The same operation on every element.
    Map { input: Recipe, op: Elementwise },
    /// Columns `start..start + row_len` of each row.
    Columns { input: Recipe, start: u64 },
    /// The same elements in other rows.
    Reshape(Recipe),
    /// Values computed when planning.
    Constant(Vec<f32>),
}

impl Recipe {
    /// The shape of the result.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The plain type in which a converter would hold the result: the source's own precision.
    pub fn precision(&self) -> GgmlType {
        self.precision
    }

    /// The same recipe with another precision, for what a converter computes in f32.
    pub fn with_precision(mut self, precision: GgmlType) -> Self {
        self.precision = precision;
        self
    }

    /// The same recipe over what llama.cpp's converter decodes, where that differs from what the library of a packed
    /// format does. A merge stands on the library's values, since those are what the adapter was trained on.
    pub fn as_converted(&self) -> Option<Recipe> {
        let node = match &*self.node {
            Node::Source(tensor) => Node::Source(tensor.as_converted()?),
            Node::Rows { input, map } => Node::Rows { input: input.as_converted()?, map: map.clone() },
            Node::Concat { parts, starts } => {
                let converted: Vec<_> = parts.iter().map(Recipe::as_converted).collect();
                converted.iter().any(Option::is_some).then_some(())?;
                let parts = converted.into_iter().zip(parts).map(|(c, part)| c.unwrap_or_else(|| part.clone()));
                Node::Concat { parts: parts.collect(), starts: starts.clone() }
            }
            Node::Transpose(input) => Node::Transpose(input.as_converted()?),
            Node::Map { input, op } => Node::Map { input: input.as_converted()?, op: *op },
            Node::Columns { input, start } => Node::Columns { input: input.as_converted()?, start: *start },
            Node::Reshape(input) => Node::Reshape(input.as_converted()?),
            Node::Merge { .. } | Node::Constant(_) => return None,
        };
        Some(Recipe { shape: self.shape.clone(), precision: self.precision, node: Arc::new(node) })
    }

    /// Whether an adapter changes any of the rows.
    pub fn is_merged(&self) -> bool {
        match &*self.node {
            Node::Merge { .. } => true,
            Node::Source(_) | Node::Constant(_) => false,
            Node::Concat { parts, .. } => parts.iter().any(Recipe::is_merged),
            Node::Rows { input, .. } | Node::Map { input, .. } | Node::Columns { input, .. } => input.is_merged(),
            Node::Transpose(input) | Node::Reshape(input) => input.is_merged(),
        }
    }

    /// Whether two tensors hold the same values. Reads both, a few rows at a time, up to the first difference.
    pub fn equals(&self, other: &Recipe) -> Result<bool, ReadError> {
        if self.shape() != other.shape() {
            return Ok(false);
        }
        let (rows, cols) = (self.shape().rows(), self.shape().row_len());
        let step = ((1 << 17) / cols.max(1)).max(1);
        let mut scratch = Scratch::default();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < rows {
            let end = (start + step).min(rows);
            a.resize(((end - start) * cols) as usize, 0f32);
            b.resize(a.len(), 0f32);
            self.rows(start..end, &mut a, &mut scratch)?;
            other.rows(start..end, &mut b, &mut scratch)?;
            if a.iter().zip(&b).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Ok(false);
            }
            start = end;
        }
        Ok(true)
    }
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.node {
            Node::Source(s) => write!(f, "{}{}", s.describe(), self.shape),
            Node::Merge { base, deltas } => write!(f, "merge({base:?}, {} deltas)", deltas.len()),
            Node::Rows { input, map } => write!(f, "{map:?}({input:?})"),
            Node::Concat { parts, .. } => write!(f, "concat({} parts){}", parts.len(), self.shape),
            Node::Transpose(input) => write!(f, "transpose({input:?})"),
            Node::Map { input, op } => write!(f, "{op:?}({input:?})"),
            Node::Columns { input, start } => write!(f, "columns({input:?}, {start}..){}", self.shape),
            Node::Reshape(input) => write!(f, "reshape({input:?}){}", self.shape),
            Node::Constant(_) => write!(f, "constant{}", self.shape),
        }
    }
}
