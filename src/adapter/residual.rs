//! Adapters whose initial values were taken out of the model: trained on a *residual* base, which is recomputed
//! from the model's own weights.
//!
//! * PiSSA (arXiv:2404.02948) starts from the `r` largest singular values: the base is `W - U_r S_r V_r`.
//! * OLoRA (arXiv:2406.01775) starts from the first `r` columns of a QR decomposition: `W - scale * Q_r R_r`,
//!   where `R_r = Q_r^T W`, so that only the first `r` columns of `W` are made orthonormal.
//!
//! Singular vectors are those of `singular`, converged to `TOLERANCE`.

use std::ops::Range;
use std::sync::Arc;

use super::change::Rewrite;
use super::lazy::Lazy;
use super::lowrank::{Factors, add_product};
use super::singular::{self, Until, orthogonalize};
use crate::quant::GgmlType;
use crate::recipe::{LowRank, ReadError, Recipe, RowSource, Scratch, Term};
use crate::shape::Shape;

/// Largest residual of a singular triplet, in units of the largest singular value.
const TOLERANCE: f64 = 1e-12;

/// What was taken out of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Init {
    /// The largest singular values.
    Pissa,
    /// The first columns of a QR decomposition.
    Olora,
}

/// A LoRA over the residual of its base.
pub(super) struct Residual {
    /// The trained factors.
    pub(super) factors: Factors,
    /// What the initial ones were.
    pub(super) init: Init,
    /// The initial product.
    pub(super) initial: Lazy<Initial>,
}

/// The initial product: `b` `[rows, r]`, then `a` `[r, cols]`.
pub(super) type Initial = (Vec<f32>, Vec<f32>);

/// Computes the initial product from the model's own weights.
fn initial(base: &Recipe, init: Init, rank: usize, scratch: &mut Scratch) -> Result<Initial, ReadError> {
    match init {
        Init::Pissa => largest_singular(base, rank, scratch),
        Init::Olora => first_columns(base, rank, scratch),
    }
}

impl Rewrite for Residual {
    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let rank = self.factors.rank();
        let initial = self.initial.get(|| initial(base, self.init, rank, scratch))?;
        let (b, a) = &*initial;
        let kept = b.len() / base.shape().rows().max(1) as usize;
        let b = &b[rows.start as usize * kept..rows.end as usize * kept];
        add_product(values, b, a, kept, removed(self.init, self.factors.scale) as f32);
        self.factors.add(rows, values, scratch, None).map(|_| ())
    }

    fn terms(&self, base: &Recipe) -> Option<Vec<Term>> {
        Some(vec![self.factors.term(), initial_term(base, self.init, self.factors.rank(), self.factors.scale)])
    }
}

/// What training with factors of this rank and scale took out of the base: computed when its first row is read.
pub(super) fn initial_term(base: &Recipe, init: Init, rank: usize, scale: f64) -> Term {
    let initial = Arc::new(Lazy::default());
    let factor = |side: Side| {
        let (rows, cols) = (base.shape().rows(), base.shape().row_len());
        let kept = (rank as u64).min(rows).min(cols);
        let shape = match side {
            Side::A => Shape::matrix(kept, cols),
            Side::B => Shape::matrix(rows, kept),
        };
        Recipe::source(Arc::new(InitialFactor {
            base: base.clone(),
            init,
            rank,
            initial: initial.clone(),
            side,
            shape,
        }))
    };
    Term { a: factor(Side::A), b: factor(Side::B), scale: removed(init, scale) }
}

/// The factor of the initial product in the residual base.
fn removed(init: Init, scale: f64) -> f64 {
    match init {
        Init::Olora => -f64::from(scale as f32),
        Init::Pissa => -1.0,
    }
}

#[derive(Clone, Copy)]
enum Side {
    A,
    B,
}

/// One factor of the initial product, computed when its first row is read.
struct InitialFactor {
    base: Recipe,
    init: Init,
    rank: usize,
    initial: Arc<Lazy<Initial>>,
    side: Side,
    shape: Shape,
}

impl RowSource for InitialFactor {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::F32
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let initial = self.initial.get(|| initial(&self.base, self.init, self.rank, scratch))?;
        let values = match self.side {
            Side::A => &initial.1,
            Side::B => &initial.0,
        };
        let cols = self.shape.row_len();
        out.copy_from_slice(&values[(rows.start * cols) as usize..(rows.end * cols) as usize]);
        Ok(())
    }

    fn describe(&self) -> String {
        format!("the initial factors taken out of {:?}", self.base)
    }
}

/// A whole matrix, for the vectors of which there is no other way.
fn whole(base: &Recipe, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
    let (rows, cols) = (base.shape().rows(), base.shape().row_len());
    let mut w = vec![0f32; (rows * cols) as usize];
    base.rows(0..rows, &mut w, scratch)?;
    Ok(w)
}

/// `Q_r` of the first `r` columns, and `Q_r^T W`.
fn first_columns(base: &Recipe, rank: usize, scratch: &mut Scratch) -> Result<(Vec<f32>, Vec<f32>), ReadError> {
    let (rows, cols) = (base.shape().rows() as usize, base.shape().row_len() as usize);
    let rank = rank.min(rows).min(cols);
    let mut row = scratch.take_floats(cols);
    let mut columns = vec![vec![0f64; rows]; rank];
    for i in 0..rows {
        base.rows(i as u64..i as u64 + 1, &mut row, scratch)?;
        columns.iter_mut().zip(&row).for_each(|(c, v)| c[i] = f64::from(*v));
    }
    for k in 0..rank {
        let (before, rest) = columns.split_at_mut(k);
        let norm = orthogonalize(&mut rest[0], before);
        rest[0].iter_mut().for_each(|v| *v /= norm);
    }
    let mut a = vec![0f64; rank * cols];
    for i in 0..rows {
        base.rows(i as u64..i as u64 + 1, &mut row, scratch)?;
        for (a, q) in a.chunks_exact_mut(cols).zip(&columns) {
            a.iter_mut().zip(&row).for_each(|(a, w)| *a += q[i] * f64::from(*w));
        }
    }
    scratch.give_floats(row);
    let b = (0..rows * rank).map(|at| columns[at % rank][at / rank] as f32).collect();
    Ok((b, a.into_iter().map(|v| v as f32).collect()))
}

/// `U_r S_r` and `V_r` of the largest singular values.
fn largest_singular(base: &Recipe, rank: usize, scratch: &mut Scratch) -> Result<(Vec<f32>, Vec<f32>), ReadError> {
    let (rows, cols) = (base.shape().rows() as usize, base.shape().row_len() as usize);
    let w = whole(base, scratch)?;
    let found = singular::largest(
        (rows, cols),
        rank,
        Until::Converged(TOLERANCE),
        |v| from_right(&w, cols, v),
        |u| from_left(&w, cols, u),
    );
    let of = |i: usize| found.left.iter().zip(&found.values).map(move |(u, s)| (u[i] * s) as f32);
    let b = (0..rows).flat_map(of).collect();
    let a = found.right.into_iter().flatten().map(|v| v as f32).collect();
    Ok((b, a))
}

/// `W v`.
fn from_right(w: &[f32], cols: usize, v: &[f64]) -> Vec<f64> {
    let product = |row: &[f32]| {
        let mut lanes = [0f64; 8];
        for (w, v) in row.chunks(8).zip(v.chunks(8)) {
            lanes.iter_mut().zip(w.iter().zip(v)).for_each(|(l, (w, v))| *l += f64::from(*w) * v);
        }
        lanes.iter().sum()
    };
    w.chunks_exact(cols).map(product).collect()
}

/// `W^T u`.
fn from_left(w: &[f32], cols: usize, u: &[f64]) -> Vec<f64> {
    let mut out = vec![0f64; cols];
    for (row, u) in w.chunks_exact(cols).zip(u) {
        out.iter_mut().zip(row).for_each(|(o, w)| *o += u * f64::from(*w));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `diag(5, 4, 3, ..)` between two reflections: the singular values are known.
    #[test]
    fn the_largest_singular_values_are_taken_out() {
        taken_out(9, 6);
        taken_out(6, 9);
        taken_out(7, 7);
    }

    fn taken_out(rows: usize, cols: usize) {
        let reflect = |i: usize, j: usize, n: usize| (if i == j { 1.0 } else { 0.0 }) - 2.0 / n as f64;
        let w = |rank: usize| -> Vec<f64> {
            let at = |i, j| (0..rank).map(|k| reflect(i, k, rows) * (6 - k) as f64 * reflect(k, j, cols)).sum();
            (0..rows * cols).map(|x| at(x / cols, x % cols)).collect()
        };
        let matrix = Shape::matrix(rows as u64, cols as u64);
        let base = Recipe::constant(matrix, w(6).iter().map(|v| *v as f32).collect()).unwrap();
        let (b, a) = largest_singular(&base, 2, &mut Scratch::default()).unwrap();
        let mut product = vec![0f32; rows * cols];
        add_product(&mut product, &b, &a, 2, 1.0);
        for (x, y) in product.iter().zip(w(2)) {
            assert!((f64::from(*x) - y).abs() < 2e-6, "{x} {y}");
        }
    }
}
