//! A merged model's shards as one sink of rows: plain tensors at their places, packed ones block by block.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use super::nf4::{self, BLOCK};
use super::safetensors::{ShardLayout, TensorSpec};
use super::{AtomicFile, ShardError};
use crate::device::Encoding;
use crate::quant::GgmlType;
use crate::shape::Shape;
use crate::source::round_all;
use crate::stream::{Rows, Sink, SinkError, Want};
use safetensors::Dtype;

/// The tensors that a weight becomes when it is packed, under the names of bitsandbytes, in their order.
pub fn packed_specs(name: &str, shape: &Shape, dtype: &str) -> [TensorSpec; 6] {
    let (elements, part) = (shape.elements(), |part: &str| format!("{name}.{part}"));
    let blocks = elements.div_ceil(BLOCK as u64);
    [
        TensorSpec::new(name, Dtype::U8, &[elements.div_ceil(2), 1]),
        TensorSpec::new(part("absmax"), Dtype::U8, &[blocks]),
        TensorSpec::new(part("nested_absmax"), Dtype::F32, &[blocks.div_ceil(nf4::NESTED_BLOCK as u64)]),
        TensorSpec::new(part("nested_quant_map"), Dtype::F32, &[nf4::DYNAMIC_MAP.len() as u64]),
        TensorSpec::new(part("quant_map"), Dtype::F32, &[nf4::LEVELS.len() as u64]),
        TensorSpec::late(part("quant_state.bitsandbytes__nf4"), nf4::state_size(dtype, shape.dims())),
    ]
}

/// A tensor in the shards: which one, and its number there.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The shard.
    pub shard: usize,
    /// The tensor's number in the shard's layout.
    pub tensor: usize,
}

/// What becomes of a stream.
#[derive(Clone, Debug)]
pub enum MergedTarget {
    /// Rows in a plain type.
    Plain {
        /// The type.
        ty: GgmlType,
        /// Where.
        place: Place,
    },
    /// Four bits: the places of the tensors of [`packed_specs`].
    Packed {
        /// The type that values are rounded to first.
        ty: GgmlType,
        /// PyTorch's name of that type.
        dtype: &'static str,
        /// The weight's shape.
        shape: Shape,
        /// Where the six tensors are.
        places: [Place; 6],
    },
}

/// The shards of a model.
pub struct MergedSink<'a> {
    shards: Vec<(&'a AtomicFile, &'a ShardLayout)>,
    targets: Vec<Target>,
    /// By shard: the late tensors.
    late: Mutex<Vec<Vec<Vec<u8>>>>,
}

struct Target {
    what: MergedTarget,
    packing: Mutex<Packing>,
}

/// A weight while its blocks arrive. The maxima of a weight's blocks, one float for 64 elements, are all that is
/// kept of it; the engine works on as many weights at a time as it has threads, at most.
#[derive(Default)]
struct Packing {
    absmax: Vec<f32>,
    done: usize,
    /// Blocks of which one chunk had only a part: their elements so far, and how many.
    parts: HashMap<u64, (Vec<f32>, usize)>,
}

/// What a packed weight's blocks are made of and where they go.
struct Weight<'t> {
    ty: GgmlType,
    elements: u64,
    places: &'t [Place; 6],
}

impl<'a> MergedSink<'a> {
    /// A sink whose stream number i becomes `targets[i]`.
    pub fn new(shards: Vec<(&'a AtomicFile, &'a ShardLayout)>, targets: Vec<MergedTarget>) -> Self {
        let late = shards.iter().map(|(_, layout)| vec![Vec::new(); layout.late_count()]).collect();
        let targets = targets.into_iter().map(|what| Target { what, packing: Mutex::default() }).collect();
        MergedSink { shards, targets, late: Mutex::new(late) }
    }

    /// Writes what is known only when all rows have come: the headers.
    pub fn finish(&self) -> Result<(), MergedError> {
        let late = locked(&self.late);
        for ((file, layout), late) in self.shards.iter().zip(late.iter()) {
            let head = layout.head(late)?;
            file.write_at(&head, 0).map_err(|cause| sink_error(file, cause))?;
        }
        Ok(())
    }

    /// Writes bytes of a tensor, from its byte `at` on.
    pub fn write(&self, place: Place, bytes: &[u8], at: u64) -> Result<(), SinkError> {
        let (file, layout) = self.shards[place.shard];
        file.write_at(bytes, layout.offset(place.tensor) + at).map_err(|cause| sink_error(file, cause))
    }

    /// Packs elements `start..` of a weight: whole blocks at once, parts of blocks when their other parts come.
    fn pack(&self, target: &Target, start: u64, values: &[f32]) -> Result<(), SinkError> {
        let MergedTarget::Packed { ty, places, shape, .. } = &target.what else { return Ok(()) };
        let weight = Weight { ty: *ty, elements: shape.elements(), places };
        let (block, end) = (BLOCK as u64, start + values.len() as u64);
        // The last block may be a short one, and is then whole as it is.
        let whole_end = if end == weight.elements { end } else { end - end % block };
        let first = start.next_multiple_of(block).min(end);
        let whole = first..whole_end.max(first);
        let cut = |range: &Range<u64>| &values[(range.start - start) as usize..(range.end - start) as usize];
        let maxima = self.write_blocks(&weight, whole.start / block, cut(&whole))?;

        let mut ready = Vec::new();
        let mut packing = locked(&target.packing);
        packing.absmax.resize(weight.elements.div_ceil(block) as usize, 0.0);
        packing.absmax[(whole.start / block) as usize..][..maxima.len()].copy_from_slice(&maxima);
        packing.done += maxima.len();
        for edge in [start..whole.start, whole.end..end].into_iter().filter(|e| !e.is_empty()) {
            let number = edge.start / block;
            let size = (weight.elements - number * block).min(block) as usize;
            let (elements, have) = packing.parts.entry(number).or_insert_with(|| (vec![0.0; size], 0));
            elements[(edge.start % block) as usize..][..(edge.end - edge.start) as usize].copy_from_slice(cut(&edge));
            *have += (edge.end - edge.start) as usize;
            if *have == size {
                ready.extend(packing.parts.remove(&number).map(|(elements, _)| (number, elements)));
            }
        }
        for (number, elements) in ready {
            let maxima = self.write_blocks(&weight, number, &elements)?;
            packing.absmax[number as usize] = maxima[0];
            packing.done += 1;
        }
        if packing.done < packing.absmax.len() {
            return Ok(());
        }
        let absmax = std::mem::take(&mut *packing).absmax;
        drop(packing);
        self.write_scales(target, absmax)
    }

    /// Codes and writes blocks from number `first` on. Gives their maxima.
    fn write_blocks(&self, weight: &Weight<'_>, first: u64, values: &[f32]) -> Result<Vec<f32>, SinkError> {
        let mut rounded = [0f32; BLOCK];
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        let maxima = values
            .chunks(BLOCK)
            .zip(codes.chunks_mut(BLOCK / 2))
            .map(|(block, codes)| {
                let rounded = &mut rounded[..block.len()];
                rounded.copy_from_slice(block);
                round_all(weight.ty, rounded);
                nf4::quantize_block(rounded, codes)
            })
            .collect();
        self.write(weight.places[0], &codes, first * BLOCK as u64 / 2)?;
        Ok(maxima)
    }

    fn write_scales(&self, target: &Target, absmax: Vec<f32>) -> Result<(), SinkError> {
        let MergedTarget::Packed { dtype, shape, places, .. } = &target.what else { return Ok(()) };
        let nested = nf4::quantize_scales(absmax);
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        self.write(places[1], &nested.codes, 0)?;
        self.write(places[2], &floats(&nested.scales), 0)?;
        self.write(places[3], &floats(&*nf4::DYNAMIC_MAP), 0)?;
        self.write(places[4], &floats(&nf4::LEVELS), 0)?;
        let Place { shard, tensor } = places[5];
        let number = self.shards[shard].1.late_number(tensor);
        locked(&self.late)[shard][number] = nf4::state(dtype, shape.dims(), nested.offset);
        Ok(())
    }
}

impl Sink for MergedSink<'_> {
    fn wants(&self, tensor: usize) -> Want<'_> {
        match &self.targets[tensor].what {
            MergedTarget::Plain { ty, .. } => Want::Encoded(Encoding { ty: *ty, importance: None }),
            MergedTarget::Packed { .. } => Want::Values,
        }
    }

    fn put(&self, tensor: usize, rows: Range<u64>, data: Rows<'_>) -> Result<(), SinkError> {
        let target = &self.targets[tensor];
        match (&target.what, data) {
            (MergedTarget::Plain { place, .. }, Rows::Encoded(bytes)) => {
                let row_bytes = bytes.len() as u64 / (rows.end - rows.start).max(1);
                self.write(*place, bytes, rows.start * row_bytes)
            }
            (MergedTarget::Packed { shape, .. }, Rows::Values(values)) => {
                self.pack(target, rows.start * shape.row_len(), values)
            }
            _ => Ok(()),
        }
    }
}

/// Finishing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergedError {
    /// A header.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Writing it.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn sink_error(file: &AtomicFile, cause: std::io::Error) -> SinkError {
    SinkError { path: file.target().display().to_string(), cause }
}
