//! Rotations applied to rows, several rows at a time: each element's sum waits for its last addend, and the sums of
//! other rows need not.

use pulp::{Arch, Simd, WithSimd};

use crate::adapter::dots::dots;
use crate::recipe::Scratch;

/// Rows that share each row of a matrix.
const ROWS: usize = 8;

/// Rows that share each reflection.
const REFLECTED: usize = 2;

/// Elements of a matrix's row in memory, of which `n` are used: whole vectors of any machine. The others are zero.
pub(super) fn stride(n: usize) -> usize {
    n.next_multiple_of(16)
}

/// Replaces runs `w` of `n` elements in rows of `cols` by `sum over c of w[c] * matrix[c]`, added up in order from +0,
/// with the matrix of each run,
/// `n` rows of [`stride`]; the matrices of a shorter list repeat. With `places`, element `i` of the runs
/// lies at place `places[i]` of the row.
pub(super) fn rotate(
    values: &mut [f32],
    cols: usize,
    matrices: &[f32],
    n: usize,
    places: Option<&[usize]>,
    scratch: &mut Scratch,
) {
    let (mut gathered, mut sums) = (scratch.take_floats(ROWS * n), scratch.take_floats(ROWS * stride(n)));
    let rotation = Rotation { values, cols, matrices, n, places, gathered: &mut gathered, sums: &mut sums };
    Arch::new().dispatch(rotation);
    scratch.give_floats(gathered);
    scratch.give_floats(sums);
}

struct Rotation<'a> {
    values: &'a mut [f32],
    cols: usize,
    matrices: &'a [f32],
    n: usize,
    places: Option<&'a [usize]>,
    /// `[ROWS, n]`: a run of each row.
    gathered: &'a mut [f32],
    /// `[ROWS, stride(n)]`
    sums: &'a mut [f32],
}

impl WithSimd for Rotation<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rotation { values, cols, matrices, n, places, gathered, sums } = self;
        for rows in values.chunks_mut(ROWS * cols) {
            let count = rows.len() / cols;
            let (gathered, sums) = (&mut gathered[..count * n], &mut sums[..count * stride(n)]);
            for (run, matrix) in (0..cols / n).zip(matrices.chunks_exact(n * stride(n)).cycle()) {
                let first = run * n;
                let places = places.map(|places| &places[first..first + n]);
                for (row, w) in rows.chunks_exact(cols).zip(gathered.chunks_exact_mut(n)) {
                    match places {
                        None => w.copy_from_slice(&row[first..first + n]),
                        Some(places) => {
                            for (w, &place) in w.iter_mut().zip(places) {
                                *w = row[place];
                            }
                        }
                    }
                }
                if count == ROWS {
                    combine::<S, ROWS>(simd, gathered, matrix, sums);
                } else {
                    for (w, sums) in gathered.chunks_exact(n).zip(sums.chunks_exact_mut(stride(n))) {
                        combine::<S, 1>(simd, w, matrix, sums);
                    }
                }
                for (row, sums) in rows.chunks_exact_mut(cols).zip(sums.chunks_exact(stride(n))) {
                    match places {
                        None => row[first..first + n].copy_from_slice(&sums[..n]),
                        Some(places) => {
                            for (sum, &place) in sums.iter().zip(places) {
                                row[place] = *sum;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `out[r] = sum over c of w[r][c] * matrix[c]` for `R` rows of `w` and `out`.
#[allow(clippy::needless_range_loop)] // `c` counts columns of one factor and rows of the other
#[inline(always)]
fn combine<S: Simd, const R: usize>(simd: S, w: &[f32], matrix: &[f32], out: &mut [f32]) {
    let n = w.len() / R;
    let w: [&[f32]; R] = std::array::from_fn(|r| &w[r * n..][..n]);
    for first in (0..n).step_by(S::F32_LANES) {
        let mut sums = [simd.splat_f32s(0.0); R];
        for c in 0..n {
            let m = S::as_simd_f32s(&matrix[c * stride(n) + first..][..S::F32_LANES]).0[0];
            for r in 0..R {
                sums[r] = simd.add_f32s(sums[r], simd.mul_f32s(simd.splat_f32s(w[r][c]), m));
            }
        }
        for (row, sum) in out.chunks_exact_mut(stride(n)).zip(sums) {
            S::as_mut_simd_f32s(&mut row[first..first + S::F32_LANES]).0[0] = sum;
        }
    }
}

/// Householder reflections of rows, one after another.
pub(super) struct Reflect<'a> {
    /// `[rows, cols]`
    pub(super) values: &'a mut [f32],
    pub(super) cols: usize,
    /// `[r, cols]`: unit vectors. Orthogonal ones do not see each other's reflections, so they need no other loop.
    pub(super) vectors: &'a [f32],
}

impl WithSimd for Reflect<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Reflect { values, cols, vectors } = self;
        for rows in values.chunks_mut(REFLECTED * cols) {
            for u in vectors.chunks_exact(cols) {
                if rows.len() == REFLECTED * cols {
                    reflect::<S, REFLECTED>(simd, rows, u);
                } else {
                    for row in rows.chunks_exact_mut(cols) {
                        reflect::<S, 1>(simd, row, u);
                    }
                }
            }
        }
    }
}

/// `row -= 2 (row · u) u` for `R` rows.
#[inline(always)]
fn reflect<S: Simd, const R: usize>(simd: S, rows: &mut [f32], u: &[f32]) {
    let products = dots::<S, R>(simd, rows, u.len(), Some(u));
    for (row, product) in rows.chunks_exact_mut(u.len()).zip(products) {
        let twice = (2.0 * product) as f32;
        for (w, u) in row.iter_mut().zip(u) {
            *w -= twice * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn rotations_equal_the_rule(rows in 1usize..20, n in 1usize..40, runs in 1usize..5, shared: bool, seed: u32) {
            let cols = n * runs;
            let matrices = noise(if shared { 1 } else { runs } * n * stride(n), seed);
            let values = noise(rows * cols, seed ^ 1);
            // Every second place first.
            let places: Vec<usize> = (0..cols).step_by(2).chain((1..cols).step_by(2)).collect();
            for places in [None, Some(places.as_slice())] {
                let mut ours = values.clone();
                rotate(&mut ours, cols, &matrices, n, places, &mut Scratch::default());
                let mut rule = values.clone();
                for (row, old) in rule.chunks_exact_mut(cols).zip(values.chunks_exact(cols)) {
                    for i in 0..cols {
                        let at = |i: usize| places.map_or(i, |places| places[i]);
                        let matrix = &matrices[if shared { 0 } else { i / n * n * stride(n) }..];
                        row[at(i)] = (0..n).fold(0.0, |sum, c| sum + old[at(i / n * n + c)] * matrix[c * stride(n) + i % n]);
                    }
                }
                prop_assert_eq!(bits(&ours), bits(&rule));
            }
        }

        #[test]
        fn reflections_do_not_depend_on_the_rows_beside(rows in 1usize..6, cols in 1usize..40, r in 1usize..4, seed: u32) {
            let (vectors, values) = (noise(r * cols, seed), noise(rows * cols, seed ^ 1));
            let mut together = values.clone();
            Arch::new().dispatch(Reflect { values: &mut together, cols, vectors: &vectors });
            for (row, old) in together.chunks_exact(cols).zip(values.chunks_exact(cols)) {
                let mut alone = old.to_vec();
                Arch::new().dispatch(Reflect { values: &mut alone, cols, vectors: &vectors });
                prop_assert_eq!(bits(row), bits(&alone));
                if r == 1 {
                    let product: f64 = old.iter().zip(&vectors).map(|(w, u)| f64::from(*w) * f64::from(*u)).sum();
                    let twice = 2.0 * product as f32;
                    let close = |(v, (w, u)): (&f32, (&f32, &f32))| (v - (w - twice * u)).abs() <= 1e-4;
                    prop_assert!(row.iter().zip(old.iter().zip(&vectors)).all(close));
                }
            }
        }
    }
}
