//! Where rows are computed: evaluate a recipe's rows and encode them. Every device gives the same bytes.

mod choice;
mod cpu;
pub mod cuda;

use std::ops::Range;

pub use choice::{Choice, Chosen, open};
pub use cpu::Cpu;
use cpu::CpuWorker;

use crate::quant::{GgmlType, QuantError};
use crate::recipe::{ReadError, Recipe};

/// How rows are to be encoded.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    /// The element type of the file.
    pub ty: GgmlType,
    /// Importance of each column, for the rows of each matrix of a stack: `row_len` values per matrix.
    pub importance: Option<&'a [f32]>,
}

impl Encoding<'_> {
    /// Bytes of an encoded row of `row_len` elements.
    pub fn row_bytes(&self, row_len: u64) -> Result<u64, QuantError> {
        self.ty.row_bytes(row_len).ok_or(QuantError::RowNotBlocks {
            ty: self.ty,
            row_len: row_len as usize,
            block: self.ty.geometry().elements as usize,
        })
    }

    /// Whether two encodings give the same bytes for the same rows.
    pub fn same_as(&self, other: &Encoding<'_>) -> bool {
        let identity = |e: &Encoding<'_>| e.importance.map(|w| (w.as_ptr(), w.len()));
        self.ty == other.ty && identity(self) == identity(other)
    }
}

/// A device: makes one worker per thread.
pub trait Device: Sync {
    /// What to call the device in reports.
    fn name(&self) -> String;

    /// The state of one thread: its buffers, its stream.
    fn worker(&self) -> Result<Box<dyn Worker + '_>, DeviceError>;

    /// Elements of the rows that a worker is best given at once: 1 MiB of f32, which stays in a core's cache.
    fn chunk_elements(&self) -> u64 {
        1 << 18
    }

    /// What the user should know once the work is done.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// One thread's way to compute rows.
pub trait Worker {
    /// Evaluates rows `rows` of `recipe` and encodes them in each of `encodings` into `outputs`, which are
    /// resized to fit. Where `values` is given, the evaluated rows are left there too.
    fn rows(
        &mut self,
        recipe: &Recipe,
        rows: Range<u64>,
        encodings: &[Encoding<'_>],
        outputs: &mut [Vec<u8>],
        values: Option<&mut Vec<f32>>,
    ) -> Result<(), DeviceError>;
}

/// Computing rows failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A source tensor could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The rows cannot be encoded.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// A GPU failed.
    #[error(transparent)]
    Cuda(Box<cuda::Failure>),
}
