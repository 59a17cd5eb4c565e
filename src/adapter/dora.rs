//! DoRA (arXiv:2402.09353): a magnitude for each output, the direction from LoRA:
//! `W' = m / ‖W + Δ‖ * (W + Δ)`.
//!
//! The norm runs over the inputs of an output. Where an output is a row of the stored tensor (linear layers,
//! convolutions) a row needs nothing but itself; where it is a column (Conv1D; embeddings, whose norm runs over
//! the vocabulary), all norms are computed first, in one pass over the tensor a few rows at a time.

use std::ops::Range;

use super::AdapterError;
use super::change::{Effect, Rewrite};
use super::contents::Tensor;
use super::draft::{Context, Target};
use super::lazy::Lazy;
use super::lowrank::Factors;
use crate::recipe::{LowRank, Magnitudes, ReadError, Recipe, Scratch};
use crate::shape::Shape;

/// Elements that the pass over the tensor holds at a time.
const STEP: u64 = 1 << 17;

/// Where the outputs lie in the stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// An output is a row.
    Rows,
    /// An output is a column.
    Columns,
}

struct Dora {
    factors: Factors,
    /// `[outputs, 1]`
    magnitude: Recipe,
    axis: Axis,
    ratios: Lazy<Vec<f32>>,
}

/// The change of a weight with `outputs` outputs along `axis`.
pub(super) fn plan(
    magnitude: &Tensor,
    factors: Factors,
    outputs: u64,
    axis: Axis,
    target: &Target,
    cx: &Context,
) -> Result<Effect, AdapterError> {
    if magnitude.recipe.shape().elements() != outputs {
        return Err(cx.mismatch(magnitude, target, format!("{outputs} magnitudes")));
    }
    let magnitude = magnitude.recipe.clone().reshape(Shape::matrix(outputs, 1))?;
    Ok(Effect::Rewrites(Box::new(Dora { factors, magnitude, axis, ratios: Lazy::default() })))
}

impl Dora {
    /// `m / ‖W + Δ‖` for every column.
    fn column_ratios(&self, base: &Recipe, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let (rows, cols) = (base.shape().rows(), base.shape().row_len());
        let step = (STEP / cols.max(1)).max(1);
        let mut sums = vec![0f64; cols as usize];
        let mut values = scratch.take_floats((step.min(rows) * cols) as usize);
        let mut start = 0;
        while start < rows {
            let end = (start + step).min(rows);
            let values = &mut values[..((end - start) * cols) as usize];
            base.rows(start..end, values, scratch)?;
            self.factors.add(start..end, values, scratch, None)?;
            for row in values.chunks_exact(cols as usize) {
                sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
            }
            start = end;
        }
        scratch.give_floats(values);
        let mut ratios = vec![0f32; cols as usize];
        self.magnitude.rows(0..cols, &mut ratios, scratch)?;
        ratios.iter_mut().zip(&sums).for_each(|(m, s)| *m /= s.sqrt() as f32);
        Ok(ratios)
    }
}

impl LowRank for Dora {
    fn rank(&self) -> usize {
        self.factors.rank()
    }

    fn scale(&self) -> f32 {
        self.factors.scale()
    }

    fn read_a(&self, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.factors.read_a(out, scratch)
    }

    fn read_b(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.factors.read_b(rows, out, scratch)
    }

    fn magnitudes(&self) -> Option<&dyn Magnitudes> {
        Some(self)
    }
}

impl Magnitudes for Dora {
    fn read(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.magnitude.rows(rows, out, scratch)
    }
}

impl Rewrite for Dora {
    fn low_rank(&self) -> Option<&dyn LowRank> {
        (self.axis == Axis::Rows).then_some(self)
    }

    /// Few enough that the second pass over them, and what is measured afterwards, find them in a core's own cache.
    fn step(&self, cols: u64) -> u64 {
        (STEP / 2 / cols.max(1)).max(1)
    }

    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let cols = base.shape().row_len() as usize;
        self.factors.add(rows.clone(), values, scratch, None)?;
        match self.axis {
            Axis::Rows => {
                let mut magnitudes = scratch.take_floats((rows.end - rows.start) as usize);
                self.magnitude.rows(rows, &mut magnitudes, scratch)?;
                pulp::Arch::new().dispatch(|| {
                    for (row, m) in values.chunks_exact_mut(cols).zip(&magnitudes) {
                        let ratio = m / norm(row);
                        row.iter_mut().for_each(|v| *v *= ratio);
                    }
                });
                scratch.give_floats(magnitudes);
            }
            Axis::Columns => {
                let ratios = self.ratios.get(|| self.column_ratios(base, scratch))?;
                for row in values.chunks_exact_mut(cols) {
                    row.iter_mut().zip(&*ratios).for_each(|(v, r)| *v *= r);
                }
            }
        }
        Ok(())
    }
}

/// The L2 norm, summed in eight f64 lanes.
#[inline(always)]
fn norm(row: &[f32]) -> f32 {
    let mut lanes = [0f64; 8];
    let (eights, rest) = row.as_chunks::<8>();
    for chunk in eights {
        lanes.iter_mut().zip(chunk).for_each(|(l, v)| *l += f64::from(*v) * f64::from(*v));
    }
    lanes.iter_mut().zip(rest).for_each(|(l, v)| *l += f64::from(*v) * f64::from(*v));
    lanes.iter().sum::<f64>().sqrt() as f32
}
