//! Adapters whose initial values were taken out of the model: trained on a *residual* base, which is recomputed
//! from the model's own weights.
//!
//! * PiSSA (arXiv:2404.02948) starts from the `r` largest singular values: the base is `W - U_r S_r V_r`.
//! * OLoRA (arXiv:2406.01775) starts from the first `r` columns of a QR decomposition: `W - scale * Q_r R_r`,
//!   where `R_r = Q_r^T W`, so that only the first `r` columns of `W` are made orthonormal.
//!
//! Singular vectors come from a Golub–Kahan–Lanczos bidiagonalisation with full reorthogonalisation, in f64, which
//! is continued until the wanted ones have converged to `TOLERANCE`.

use std::ops::Range;
use std::sync::Arc;

use super::change::Rewrite;
use super::lazy::Lazy;
use super::lowrank::{Factors, add_product};
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
    pub(super) initial: Arc<Lazy<Initial>>,
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
        add_product(values, b, a, kept, self.removed() as f32, None);
        self.factors.add(rows, values, scratch, None).map(|_| ())
    }

    fn terms(&self, base: &Recipe) -> Option<Vec<Term>> {
        let factor = |side: Side| {
            let (rows, cols) = (base.shape().rows(), base.shape().row_len());
            let kept = (self.factors.rank() as u64).min(rows).min(cols);
            let shape = match side {
                Side::A => Shape::matrix(kept, cols),
                Side::B => Shape::matrix(rows, kept),
            };
            let (base, init, initial) = (base.clone(), self.init, self.initial.clone());
            Recipe::source(Arc::new(InitialFactor { base, init, rank: self.factors.rank(), initial, side, shape }))
        };
        let removed = Term { a: factor(Side::A), b: factor(Side::B), scale: self.removed() };
        Some(vec![self.factors.term(), removed])
    }
}

impl Residual {
    /// The factor of the initial product in the residual base.
    fn removed(&self) -> f64 {
        if self.init == Init::Olora { -f64::from(self.factors.scale()) } else { -1.0 }
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

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0f64; 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(l, (a, b))| *l += a * b);
    }
    lanes.iter().sum()
}

/// Takes the parts along `basis` out of `v`, twice, which is enough; answers the norm of what is left.
fn orthogonalize(v: &mut [f64], basis: &[Vec<f64>]) -> f64 {
    for _ in 0..2 {
        for b in basis {
            let along = dot(v, b);
            v.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
        }
    }
    dot(v, v).sqrt()
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
    let rank = rank.min(rows).min(cols);
    let w = whole(base, scratch)?;
    // The right vectors lie on the shorter side: when there are as many as it is long, nothing is left outside.
    let most = rows.min(cols);
    let turned = rows < cols;
    let (long, short) = if turned { (cols, rows) } else { (rows, cols) };
    let times = |v: &[f64]| if turned { from_left(&w, cols, v) } else { from_right(&w, cols, v) };
    let times_back = |u: &[f64]| if turned { from_right(&w, cols, u) } else { from_left(&w, cols, u) };
    let (mut left, mut right): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let (mut alphas, mut betas): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |n: usize| -> Vec<f64> {
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        std::iter::repeat_with(next).take(n).collect()
    };
    let mut v = random(short);
    let norm = dot(&v, &v).sqrt();
    v.iter_mut().for_each(|x| *x /= norm);
    let mut check_at = (2 * rank + 8).min(most);
    loop {
        // u = W v - beta u_before
        let mut u = times(&v);
        right.push(v);
        let mut alpha = orthogonalize(&mut u, &left);
        if alpha < f64::MIN_POSITIVE.sqrt() {
            (u, alpha) = (fresh(random(long), &left), 0.0);
        } else {
            u.iter_mut().for_each(|x| *x /= alpha);
        }
        alphas.push(alpha);
        // v = W^T u - alpha v
        let mut next = times_back(&u);
        left.push(u);
        let mut beta = orthogonalize(&mut next, &right);
        let steps = alphas.len();
        if steps == most || steps == check_at {
            let (small_left, values, small_right) = bidiagonal_svd(&alphas, &betas);
            let last = |k: usize| (beta * small_left[(steps - 1) * steps + k]).abs();
            if steps == most || (0..rank).all(|k| last(k) <= TOLERANCE * values[0]) {
                return Ok(if turned {
                    assemble(&right, &left, (&small_right, &values, &small_left), rank)
                } else {
                    assemble(&left, &right, (&small_left, &values, &small_right), rank)
                });
            }
            check_at = (check_at + check_at / 2).min(most);
        }
        if beta < f64::MIN_POSITIVE.sqrt() {
            (next, beta) = (fresh(random(short), &right), 0.0);
        } else {
            next.iter_mut().for_each(|x| *x /= beta);
        }
        betas.push(beta);
        v = next;
    }
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

/// A unit vector orthogonal to all of `basis`: where a bidiagonalisation breaks down, it goes on with one.
fn fresh(mut v: Vec<f64>, basis: &[Vec<f64>]) -> Vec<f64> {
    let norm = orthogonalize(&mut v, basis);
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

/// The singular vectors of the matrix from those of its bidiagonal form.
fn assemble(
    left: &[Vec<f64>],
    right: &[Vec<f64>],
    (small_left, values, small_right): (&[f64], &[f64], &[f64]),
    rank: usize,
) -> (Vec<f32>, Vec<f32>) {
    let steps = values.len();
    let combine = |basis: &[Vec<f64>], small: &[f64], k: usize| -> Vec<f64> {
        let mut out = vec![0f64; basis[0].len()];
        for (i, b) in basis.iter().enumerate() {
            out.iter_mut().zip(b).for_each(|(o, b)| *o += small[i * steps + k] * b);
        }
        out
    };
    let us: Vec<Vec<f64>> = (0..rank).map(|k| combine(left, small_left, k)).collect();
    let b = (0..left[0].len()).flat_map(|i| us.iter().zip(values).map(move |(u, s)| (u[i] * s) as f32)).collect();
    let a = (0..rank).flat_map(|k| combine(right, small_right, k)).map(|v| v as f32).collect();
    (b, a)
}

/// The singular values, largest first, and vectors (as columns) of an upper bidiagonal matrix, by one-sided Jacobi
/// rotations of its columns.
fn bidiagonal_svd(alphas: &[f64], betas: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let n = alphas.len();
    // Columns of B and of V, each contiguous.
    let mut b = vec![vec![0f64; n]; n];
    let mut v = vec![vec![0f64; n]; n];
    for j in 0..n {
        b[j][j] = alphas[j];
        if j > 0 {
            b[j][j - 1] = betas[j - 1];
        }
        v[j][j] = 1.0;
    }
    for _ in 0..60 {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (bp, bq) = pair(&mut b, p, q);
                let (x, y, z) = (dot(bp, bp), dot(bq, bq), dot(bp, bq));
                if z.abs() <= 1e-15 * (x * y).sqrt() || z == 0.0 {
                    continue;
                }
                rotated = true;
                let zeta = (y - x) / (2.0 * z);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                rotate(bp, bq, c, c * t);
                let (vp, vq) = pair(&mut v, p, q);
                rotate(vp, vq, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    let norms: Vec<f64> = b.iter().map(|c| dot(c, c).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let (mut left, mut right) = (vec![0f64; n * n], vec![0f64; n * n]);
    for (k, &from) in order.iter().enumerate() {
        for i in 0..n {
            left[i * n + k] = if norms[from] > 0.0 { b[from][i] / norms[from] } else { 0.0 };
            right[i * n + k] = v[from][i];
        }
    }
    (left, order.iter().map(|&i| norms[i]).collect(), right)
}

fn pair(columns: &mut [Vec<f64>], p: usize, q: usize) -> (&mut [f64], &mut [f64]) {
    let (before, after) = columns.split_at_mut(q);
    (&mut before[p], &mut after[0])
}

fn rotate(a: &mut [f64], b: &mut [f64], c: f64, s: f64) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
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
        add_product(&mut product, &b, &a, 2, 1.0, None);
        for (x, y) in product.iter().zip(w(2)) {
            assert!((f64::from(*x) - y).abs() < 2e-6, "{x} {y}");
        }
    }
}
