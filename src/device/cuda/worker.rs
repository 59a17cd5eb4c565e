//! One thread's rows, piece by piece, through two stagings or more: while the GPU works on one piece, the next is
//! read and sent, and the one before comes back.
//!
//! Whatever is out of the ordinary in a piece (a value that is no number, a scale out of range) is computed
//! again on the CPU, which finds the words for it.

use std::ops::Range;

use super::driver_staging::Staging;
use super::gpu::Gpu;
use super::piece::{Piece, footprint, is_quantized_there};
use super::{Cuda, Failure};
use crate::device::{CpuWorker, DeviceError, Encoding, Worker};
use crate::quant::{first_bad_block, quantize_rows};
use crate::recipe::{RawPart, Recipe, Scratch};

/// Elements of a piece, unless memory is short: enough sub-blocks of 32 to fill the largest GPU.
pub(super) const PIECE_ELEMENTS: u64 = 1 << 22;

/// A worker of a [`Cuda`] device.
pub(super) struct CudaWorker<'d> {
    device: &'d Cuda,
    /// The number of the GPU that the first staging is on.
    first_gpu: usize,
    stagings: Vec<Staging<'d>>,
    /// Pieces so far: they take the stagings in turn.
    turn: usize,
    /// Elements of a piece, halved when memory is out.
    piece_elements: u64,
    cpu: CpuWorker,
    scratch: Scratch,
    /// What the CPU computed of a piece.
    spare: Vec<Vec<u8>>,
    spare_values: Vec<f32>,
}

/// What is asked for: rows of a recipe in encodings.
#[derive(Clone)]
struct Job<'a> {
    recipe: &'a Recipe,
    rows: Range<u64>,
    encodings: &'a [Encoding<'a>],
}

/// Where it goes.
struct Results<'a> {
    outputs: &'a mut [Vec<u8>],
    values: Option<&'a mut Vec<f32>>,
}

impl<'d> CudaWorker<'d> {
    pub(super) fn new(device: &'d Cuda, first_gpu: usize) -> Self {
        CudaWorker {
            device,
            first_gpu,
            stagings: Vec::new(),
            turn: 0,
            piece_elements: PIECE_ELEMENTS,
            cpu: CpuWorker::default(),
            scratch: Scratch::default(),
            spare: Vec::new(),
            spare_values: Vec::new(),
        }
    }

    /// Whether sending these rows to the GPU saves anything. Stored blocks that are copied as they are never go.
    fn is_worth_it(job: &Job<'_>, parts: &[RawPart<'_>]) -> bool {
        let copies = job.recipe.native().is_some_and(|native| job.encodings.iter().any(|e| e.ty == native));
        let merges = || parts.iter().any(|p| p.form.as_ref().is_some_and(|f| !f.deltas().is_empty()));
        let quantizes = || job.encodings.iter().any(is_quantized_there);
        !copies && !job.rows.is_empty() && (quantizes() || merges())
    }

    fn compute(&mut self, job: &Job<'_>, parts: &[RawPart<'_>], to: &mut Results<'_>) -> Result<(), DeviceError> {
        let row_len = job.recipe.shape().row_len();
        let count = job.rows.end - job.rows.start;
        for (encoding, out) in job.encodings.iter().zip(&mut *to.outputs) {
            out.resize((count * encoding.row_bytes(row_len)?) as usize, 0);
        }
        if let Some(values) = &mut to.values {
            values.resize((count * row_len) as usize, 0.0);
        }
        while self.stagings.len() < self.device.stagings() {
            let gpu: &Gpu = &self.device.gpus[(self.first_gpu + self.stagings.len()) % self.device.gpus.len()];
            self.stagings.push(Staging::new(gpu)?);
        }
        let mut pending: Vec<Option<Piece<'_>>> = self.stagings.iter().map(|_| None).collect();
        for part in parts {
            let mut next = part.rows.start;
            let mut tried_alone = false;
            while next < part.rows.end {
                let slot = self.turn % self.stagings.len();
                if let Some(piece) = pending[slot].take() {
                    self.collect(slot, &piece, job, to)?;
                }
                let end = self.end(job, part, next, slot);
                match self.start(slot, part, next..end, job, to) {
                    Ok(piece) => {
                        pending[slot] = piece;
                        next = end;
                        self.turn += 1;
                    }
                    // Out of memory: what is under way comes back, all memory is given back, and half of it will do.
                    Err(DeviceError::Cuda(e)) if e.is_out_of_memory() && !(end - next == 1 && tried_alone) => {
                        for (slot, piece) in pending.iter_mut().enumerate() {
                            if let Some(piece) = piece.take() {
                                self.collect(slot, &piece, job, to)?;
                            }
                        }
                        self.stagings.iter_mut().for_each(Staging::release);
                        tried_alone = end - next == 1;
                        self.piece_elements = ((end - next) * row_len / 2).max(1);
                        tracing::info!("{e}; going on with pieces of {} elements", self.piece_elements);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        for turn in self.turn..self.turn + self.stagings.len() {
            let slot = turn % self.stagings.len();
            if let Some(piece) = pending[slot].take() {
                self.collect(slot, &piece, job, to)?;
            }
        }
        Ok(())
    }

    /// Where the piece ends that begins at row `start` of a part.
    fn end(&self, job: &Job<'_>, part: &RawPart<'_>, start: u64, slot: usize) -> u64 {
        let row_len = part.recipe.shape().row_len().max(1);
        let (per_row, fixed) = footprint(part, job.encodings);
        let budget = self.device.budget(self.stagings[slot].gpu());
        let rows = (budget.saturating_sub(fixed) / per_row).min(self.piece_elements / row_len).max(1);
        // Importance belongs to a matrix of a stack.
        let matrix = matrix_rows(job.recipe);
        let boundary = match job.encodings.iter().any(|e| e.importance.is_some()) {
            true => ((part.shift + start) / matrix + 1) * matrix - part.shift,
            false => u64::MAX,
        };
        (start + rows).min(boundary).min(part.rows.end)
    }

    /// Queues rows of a part. `None`: the CPU has computed them.
    fn start<'p>(
        &mut self,
        slot: usize,
        part: &RawPart<'p>,
        rows: Range<u64>,
        job: &Job<'_>,
        to: &mut Results<'_>,
    ) -> Result<Option<Piece<'p>>, DeviceError> {
        let importance = importance(job, part.shift + rows.start);
        if importance.iter().flatten().flat_map(|w| w.iter()).any(|w| !w.is_finite()) {
            self.by_cpu(part.shift + rows.start..part.shift + rows.end, job, to)?;
            return Ok(None);
        }
        let piece = Piece::new(part, rows, job.encodings, &importance, to.values.is_some());
        piece.start(part, &importance, &mut self.stagings[slot], &mut self.scratch)?;
        Ok(Some(piece))
    }

    /// Waits for a piece and puts its rows where they belong.
    fn collect(
        &mut self,
        slot: usize,
        piece: &Piece<'_>,
        job: &Job<'_>,
        to: &mut Results<'_>,
    ) -> Result<(), DeviceError> {
        self.stagings[slot].wait()?;
        let returned = self.stagings[slot].returned();
        let sound = |(i, e): (usize, &Encoding<'_>)| {
            let blocks = piece.encoded(i, returned).filter(|_| e.ty.is_quantized());
            blocks.is_none_or(|blocks| first_bad_block(e.ty, blocks).is_none())
        };
        if !piece.is_finite(returned) || !job.encodings.iter().enumerate().all(sound) {
            return self.by_cpu(piece.rows.clone(), job, to);
        }
        piece.record(returned);
        let row_len = job.recipe.shape().row_len();
        let importance = importance(job, piece.rows.start);
        for (i, encoding) in job.encodings.iter().enumerate() {
            let out = &mut to.outputs[i][place(job, &piece.rows, encoding.row_bytes(row_len)?)];
            match (piece.encoded(i, returned), piece.values(returned)) {
                (Some(encoded), _) => out.copy_from_slice(encoded),
                (None, Some(values)) => quantize_rows(encoding.ty, values, row_len as usize, importance[i], out)?,
                (None, None) => unreachable!("values come back for what the host encodes"),
            }
        }
        if let (Some(values), Some(returned)) = (&mut to.values, piece.values(returned)) {
            values[place(job, &piece.rows, row_len)].copy_from_slice(returned);
        }
        Ok(())
    }

    /// Computes rows on the CPU.
    fn by_cpu(&mut self, rows: Range<u64>, job: &Job<'_>, to: &mut Results<'_>) -> Result<(), DeviceError> {
        self.spare.resize(job.encodings.len(), Vec::new());
        let values = to.values.is_some().then_some(&mut self.spare_values);
        self.cpu.rows(job.recipe, rows.clone(), job.encodings, &mut self.spare, values)?;
        let row_len = job.recipe.shape().row_len();
        for ((encoding, out), made) in job.encodings.iter().zip(&mut *to.outputs).zip(&self.spare) {
            out[place(job, &rows, encoding.row_bytes(row_len)?)].copy_from_slice(made);
        }
        if let Some(values) = &mut to.values {
            values[place(job, &rows, row_len)].copy_from_slice(&self.spare_values);
        }
        Ok(())
    }
}

/// Rows of one matrix of a stack.
fn matrix_rows(recipe: &Recipe) -> u64 {
    recipe.shape().dims().iter().rev().nth(1).copied().unwrap_or(1).max(1)
}

/// The weights of each encoding for the matrix that a row belongs to.
fn importance<'a>(job: &Job<'a>, row: u64) -> Vec<Option<&'a [f32]>> {
    let row_len = job.recipe.shape().row_len();
    let first = (row / matrix_rows(job.recipe) * row_len) as usize;
    job.encodings.iter().map(|e| e.importance.map(|w| &w[first..first + row_len as usize])).collect()
}

/// Where rows lie in the result, with so many bytes or elements each.
fn place(job: &Job<'_>, rows: &Range<u64>, per_row: u64) -> Range<usize> {
    ((rows.start - job.rows.start) * per_row) as usize..((rows.end - job.rows.start) * per_row) as usize
}

impl Worker for CudaWorker<'_> {
    fn rows(
        &mut self,
        recipe: &Recipe,
        rows: Range<u64>,
        encodings: &[Encoding<'_>],
        outputs: &mut [Vec<u8>],
        mut values: Option<&mut Vec<f32>>,
    ) -> Result<(), DeviceError> {
        let job = Job { recipe, rows: rows.clone(), encodings };
        let parts = recipe.raw_parts(rows.clone());
        if !self.device.is_lost() && Self::is_worth_it(&job, &parts) {
            let mut results = Results { outputs: &mut *outputs, values: values.as_deref_mut() };
            match self.compute(&job, &parts, &mut results) {
                Err(DeviceError::Cuda(failure)) if self.device.cpu_goes_on => {
                    self.stagings.clear();
                    self.device.lose(&failure);
                }
                done => return done,
            }
        }
        self.cpu.rows(recipe, rows, encodings, outputs, values)
    }
}

impl From<Failure> for DeviceError {
    fn from(failure: Failure) -> Self {
        DeviceError::Cuda(Box::new(failure))
    }
}
