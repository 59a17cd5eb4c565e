//! DoRA (arXiv:2402.09353): a magnitude for each output, the direction from LoRA:
//! `W' = m / ‖W + Δ‖ * (W + Δ)`.
//!
//! The norm runs over the inputs of an output. Where an output is a row of the stored tensor (linear layers,
//! convolutions) a row needs nothing but itself; where it is a column (Conv1D; embeddings, whose norm runs over
//! the vocabulary), all norms are computed first, in one pass over the tensor a few rows at a time.

use std::ops::Range;

use super::AdapterError;
use super::change::{self, Effect, Rewrite};
use super::contents::Tensor;
use super::dots::dots;
use super::draft::{Context, Target};
use super::lazy::Lazy;
use super::lowrank::Factors;
use super::passes::{self, Squares};
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

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }

    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.measured(base, rows, values, scratch).map(|_| ())
    }

    fn measured(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Squares, ReadError> {
        let cols = base.shape().row_len() as usize;
        let mut before = scratch.take_floats(values.len());
        before.copy_from_slice(values);
        self.factors.add(rows.clone(), values, scratch, None)?;
        let mut sums = Squares::default();
        match self.axis {
            Axis::Rows => {
                let mut magnitudes = scratch.take_floats((rows.end - rows.start) as usize);
                self.magnitude.rows(rows, &mut magnitudes, scratch)?;
                pulp::Arch::new().dispatch(Norms { rows: values, cols, factors: &mut magnitudes });
                let rows = values.chunks_exact_mut(cols).zip(before.chunks_exact(cols));
                for ((row, before), ratio) in rows.zip(&magnitudes) {
                    sums += passes::scale_since(row, before, *ratio);
                }
                scratch.give_floats(magnitudes);
            }
            Axis::Columns => {
                let ratios = self.ratios.get(|| self.column_ratios(base, scratch))?;
                for (row, before) in values.chunks_exact_mut(cols).zip(before.chunks_exact(cols)) {
                    passes::multiply(row, &ratios);
                    sums += passes::compare(before, row);
                }
            }
        }
        scratch.give_floats(before);
        Ok(sums)
    }
}

/// Rows whose norms are summed at a time.
const TOGETHER: usize = 4;

/// Divides factors of rows by the rows' norms.
struct Norms<'a> {
    /// `[rows, cols]`
    rows: &'a [f32],
    cols: usize,
    /// `[rows]`
    factors: &'a mut [f32],
}

impl pulp::WithSimd for Norms<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Norms { rows, cols, factors } = self;
        for (rows, factors) in rows.chunks(TOGETHER * cols).zip(factors.chunks_mut(TOGETHER)) {
            if factors.len() == TOGETHER {
                divide(factors, dots::<S, TOGETHER>(simd, rows, cols, None));
                continue;
            }
            for (row, factor) in rows.chunks_exact(cols).zip(factors.chunks_exact_mut(1)) {
                divide(factor, dots::<S, 1>(simd, row, cols, None));
            }
        }
    }
}

/// Divides factors by the roots of as many squares.
#[inline(always)]
fn divide<const R: usize>(factors: &mut [f32], squares: [f64; R]) {
    for (factor, squares) in factors.iter_mut().zip(squares) {
        *factor /= squares.sqrt() as f32;
    }
}
