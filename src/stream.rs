//! The engine: every tensor in row chunks, in parallel, from recipe to sinks.
//!
//! Threads take chunks from one counter, in source order, so that a file is read about once from front to back.
//! A chunk is evaluated once and encoded once for all sinks that want the same encoding. Memory is
//! chunk x threads, whatever the model's size.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::adapter::{NotFinite, check_rows, encoded_finite};
use crate::device::{Device, DeviceError, Encoding};
use crate::quant::GgmlType;
use crate::recipe::{Recipe, Scratch};

#[cfg(test)]
mod tests;

/// Bytes that a thread holds per element of a chunk, at most: f32 values, a merged or rearranged copy of them,
/// the source's bytes, encoded rows.
const BYTES_PER_ELEMENT: u64 = 24;

/// A tensor as the engine sees it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What to call it in progress and errors.
    pub name: String,
    /// How its rows are made.
    pub recipe: Recipe,
}

impl Stream {
    /// Bytes of `rows` rows in the source's own precision: what progress is counted in.
    fn bytes(&self, rows: u64) -> u64 {
        rows * self.recipe.precision().row_bytes(self.recipe.shape().row_len()).unwrap_or(0)
    }
}

/// Bytes that a run over these streams reports in all, when every stream is wanted.
pub fn total_bytes(streams: &[Stream]) -> u64 {
    streams.iter().map(|s| s.bytes(s.recipe.shape().rows())).sum()
}

/// What a sink wants of a tensor.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// Nothing: the tensor is not part of this file.
    Nothing,
    /// Rows encoded in a type.
    Encoded(Encoding<'a>),
    /// The f32 values, for an encoding of the sink's own.
    Values,
}

/// Rows as a sink gets them.
pub enum Rows<'a> {
    /// Encoded as wanted.
    Encoded(&'a [u8]),
    /// Plain values.
    Values(&'a [f32]),
}

/// Where rows go. A sink knows nothing of where they come from, and gets the chunks of a tensor in any order,
/// from any thread.
pub trait Sink: Sync {
    /// What the sink wants of tensor number `tensor`.
    fn wants(&self, tensor: usize) -> Want<'_>;

    /// Takes rows `rows` of tensor number `tensor`.
    fn put(&self, tensor: usize, rows: Range<u64>, data: Rows<'_>) -> Result<(), SinkError>;
}

/// Writing failed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot write: {cause}")]
pub struct SinkError {
    /// The file.
    pub path: String,
    /// What the system said.
    #[source]
    pub cause: std::io::Error,
}

/// Told of what the engine does; may be called from any thread.
pub trait Progress: Sync {
    /// So many bytes of this tensor are done, counted in its source's own precision.
    fn advance(&self, tensor: &str, bytes: u64);
}

/// Streaming failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A tensor's rows could not be made.
    #[error("tensor '{tensor}': {cause}")]
    Rows {
        /// The tensor, by its output name.
        tensor: String,
        /// Why.
        #[source]
        cause: DeviceError,
    },
    /// A merged value is none that the type of the file can hold.
    #[error("tensor '{tensor}': {cause}")]
    Cast {
        /// The tensor, by its output name.
        tensor: String,
        /// Where, why, and what to do.
        #[source]
        cause: NotFinite,
    },
    /// A sink failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The threads could not be started.
    #[error("cannot start {threads} threads: {cause}; use a smaller --threads")]
    Threads {
        /// How many.
        threads: usize,
        /// Why not.
        cause: String,
    },
    /// The user interrupted the run.
    #[error("interrupted")]
    Interrupted,
}

/// How to run the engine.
pub struct Settings<'a> {
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Upper bound of the memory that chunks may take in all, in bytes.
    pub max_memory: Option<u64>,
    /// Raised to stop early.
    pub interrupted: &'a AtomicBool,
}

impl Settings<'_> {
    /// Rows of a chunk of a tensor with rows of `row_len`, for a device that likes chunks of `elements`.
    fn chunk_rows(&self, row_len: u64, elements: u64) -> u64 {
        let budget = self.max_memory.map_or(u64::MAX, |m| m / self.threads as u64 / BYTES_PER_ELEMENT);
        (elements.min(budget) / row_len.max(1)).max(1)
    }
}

/// Makes every row of every stream and hands it to the sinks.
pub fn run(
    streams: &[Stream],
    sinks: &[&dyn Sink],
    device: &dyn Device,
    settings: &Settings<'_>,
    progress: &dyn Progress,
) -> Result<(), StreamError> {
    let chunks = chunks(streams, sinks, settings, device.chunk_elements());
    let merged: Vec<bool> = streams.iter().map(|s| s.recipe.is_merged()).collect();
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<StreamError>> = Mutex::new(None);
    let stopped = AtomicBool::new(false);
    let fail = |e: StreamError| {
        stopped.store(true, Ordering::Relaxed);
        failure.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .build()
        .map_err(|e| StreamError::Threads { threads: settings.threads, cause: e.to_string() })?;
    pool.broadcast(|_| {
        let mut thread = match Thread::new(device, sinks) {
            Ok(t) => t,
            Err(cause) => return fail(StreamError::Rows { tensor: device.name(), cause }),
        };
        while !stopped.load(Ordering::Relaxed) {
            if settings.interrupted.load(Ordering::Relaxed) {
                return fail(StreamError::Interrupted);
            }
            let Some((tensor, rows)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let stream = &streams[*tensor];
            if let Err(e) = thread.chunk(*tensor, stream, rows.clone(), merged[*tensor]) {
                return fail(e);
            }
            progress.advance(&stream.name, stream.bytes(rows.end - rows.start));
        }
    });
    failure.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
}

/// All chunks in source order, without the tensors that no sink wants.
fn chunks(streams: &[Stream], sinks: &[&dyn Sink], settings: &Settings<'_>, elements: u64) -> Vec<(usize, Range<u64>)> {
    let mut chunks = Vec::new();
    for (i, stream) in streams.iter().enumerate() {
        if sinks.iter().all(|s| matches!(s.wants(i), Want::Nothing)) {
            continue;
        }
        let shape = stream.recipe.shape();
        let (rows, step) = (shape.rows(), settings.chunk_rows(shape.row_len(), elements) as usize);
        chunks.extend((0..rows).step_by(step).map(|start| (i, start..(start + step as u64).min(rows))));
    }
    chunks
}

/// One thread's state.
struct Thread<'a> {
    worker: Box<dyn crate::device::Worker + 'a>,
    sinks: &'a [&'a dyn Sink],
    outputs: Vec<Vec<u8>>,
    values: Vec<f32>,
}

impl<'a> Thread<'a> {
    fn new(device: &'a dyn Device, sinks: &'a [&'a dyn Sink]) -> Result<Self, DeviceError> {
        Ok(Thread { worker: device.worker()?, sinks, outputs: Vec::new(), values: Vec::new() })
    }

    /// Makes one chunk and hands it to every sink that wants it. Equal encodings are made once; merged rows are
    /// checked before any sink gets them.
    fn chunk(&mut self, tensor: usize, stream: &Stream, rows: Range<u64>, merged: bool) -> Result<(), StreamError> {
        let mut encodings: Vec<Encoding<'_>> = Vec::new();
        let mut wanted_values = false;
        let wants: Vec<_> = self
            .sinks
            .iter()
            .map(|sink| {
                let want = sink.wants(tensor);
                match want {
                    Want::Encoded(e) => {
                        let slot = encodings.iter().position(|x| x.same_as(&e)).unwrap_or_else(|| {
                            encodings.push(e);
                            encodings.len() - 1
                        });
                        (want, slot)
                    }
                    Want::Values => {
                        wanted_values = true;
                        (want, 0)
                    }
                    Want::Nothing => (want, 0),
                }
            })
            .collect();
        while self.outputs.len() < encodings.len() {
            self.outputs.push(Vec::new());
        }
        self.worker
            .rows(
                &stream.recipe,
                rows.clone(),
                &encodings,
                &mut self.outputs[..encodings.len()],
                wanted_values.then_some(&mut self.values),
            )
            .map_err(|cause| StreamError::Rows { tensor: stream.name.clone(), cause })?;
        if merged {
            for (encoding, bytes) in encodings.iter().zip(&self.outputs) {
                check_cast(stream, &rows, encoding.ty, bytes)?;
            }
        }
        for (sink, (want, slot)) in self.sinks.iter().zip(wants) {
            match want {
                Want::Nothing => {}
                Want::Encoded(_) => sink.put(tensor, rows.clone(), Rows::Encoded(&self.outputs[slot]))?,
                Want::Values => sink.put(tensor, rows.clone(), Rows::Values(&self.values))?,
            }
        }
        Ok(())
    }
}

/// Checks encoded rows of plain numbers; those of blocks are checked where they are made. Only rows that fail are
/// evaluated again, to say where and why.
fn check_cast(stream: &Stream, rows: &Range<u64>, ty: GgmlType, encoded: &[u8]) -> Result<(), StreamError> {
    if encoded_finite(ty, encoded) {
        return Ok(());
    }
    let row_len = stream.recipe.shape().row_len();
    let mut values = vec![0f32; ((rows.end - rows.start) * row_len) as usize];
    stream
        .recipe
        .rows(rows.clone(), &mut values, &mut Scratch::default())
        .map_err(|e| StreamError::Rows { tensor: stream.name.clone(), cause: e.into() })?;
    check_rows(&values, row_len as usize, rows.start, ty)
        .map_err(|cause| StreamError::Cast { tensor: stream.name.clone(), cause })
}
