//! The kernel of [`iq1`](super::iq1): eight sub-blocks at a time, one in each lane.
//!
//! ```text
//! a sub-block in each lane: ranks, the best splits (`iq1_split.rs`), levels, cells of the grid
//! one group of eight weights after the other: the grid point, or the neighbour, eight candidates in the lanes
//! a sub-block in each lane: the scale that fits the points
//! ```
//!
//! Each lane computes what the reference computes, in its order.
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::Rows;
use super::codebook::{self, Codebook, Offer};
use super::grid_nearest::{LONGEST, nearest_exactly, next_level};
use super::grid_search::Plain;
use super::iq1::{Coded, Split, code, reference};
use super::iq1_split::{InLanes, best_splits, sort};
use super::lanes::{Kernel, LANES, Lanes, columns};
use super::search::sum_of_squares;
use std::marker::PhantomData;

/// The kernel of IQ1_S (`N` = 32) and IQ1_M (16).
pub(super) struct OverLanes<T, const N: usize>(PhantomData<T>);

impl<const N: usize, T: InLanes<N>> Kernel for OverLanes<T, N> {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        if !L::FAST_BITS {
            let row_bytes = rows.row_len / 256 * T::BYTES;
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(row_bytes)) {
                reference::<N, T>(row, rows.imatrix, out);
            }
            return;
        }
        let mut coder = Coder { l, grid: codebook::iq1(), errors: [l.splat(0.0); LONGEST] };
        for (i, (x, out)) in rows.values.chunks(BATCH).zip(out.chunks_mut(T::BYTES * LANES)).enumerate() {
            let squares = sums_of_squares(l, x);
            let (mut weight, mut found) = ([0.0; BATCH], [Coded::default(); BATCH / 16]);
            for (b, (x, weight)) in x.chunks_exact(256).zip(weight.as_chunks_mut().0).enumerate() {
                let at = (BATCH * i + 256 * b) % rows.row_len;
                let weights = rows.imatrix.map(|w| &w[at..][..256]);
                importance(l, T::PLAIN, x, weights, 2.0 * squares[b] / 256.0, weight);
            }
            let eights = x.len() / (N * LANES);
            for eight in (0..eights).step_by(2) {
                // The last one may be alone: then it is coded twice.
                coder.code::<N, T>(x, &weight, [eight, (eight + 1).min(eights - 1)], &mut found);
            }
            for (b, (x, out)) in x.chunks_exact(256).zip(out.chunks_exact_mut(T::BYTES)).enumerate() {
                let found = &found[256 / N * b..][..256 / N];
                T::finish(x, &weight[256 * b..][..256], found, out);
            }
        }
    }
}

/// Weights of eight blocks.
const BATCH: usize = 256 * LANES;

/// The sum of squares of up to eight blocks, each in order.
#[inline(always)]
fn sums_of_squares<L: Lanes>(l: L, x: &[f32]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    if x.len() < 256 * LANES {
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(256)) {
            *sum = sum_of_squares(x);
        }
        return sums;
    }
    let mut sum = l.splat(0.0);
    for at in (0..256).step_by(LANES) {
        let mut squares = [sum; LANES];
        for (b, squares) in squares.iter_mut().enumerate() {
            let x = l.load_at(&x[256 * b + at..]);
            *squares = x * x;
        }
        for squares in l.transpose(squares) {
            sum = sum + squares;
        }
    }
    l.store(sum)
}

/// The importance of a block's weights.
#[inline(always)]
fn importance<L: Lanes>(l: L, plain: Plain, x: &[f32], weights: Option<&[f32]>, sigma2: f32, out: &mut [f32; 256]) {
    let sigma2 = l.splat(sigma2);
    for (v, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let x = l.load_at(&x[LANES * v..]);
        *out = l.store(match (weights, plain) {
            (Some(weights), _) => l.load_at(&weights[LANES * v..]) * l.sqrt(sigma2 + x * x),
            (None, Plain::Ones) => l.sqrt(sigma2 + x * x),
            (None, _) => x * x,
        });
    }
}

/// Eight sub-blocks: as rows and as columns.
struct Eight<'a, L: Lanes, const N: usize> {
    x: &'a [[f32; N]; LANES],
    weight: &'a [[f32; N]; LANES],
    xs: [L::F32; N],
    weights: [L::F32; N],
}

impl<'a, L: Lanes, const N: usize> Eight<'a, L, N> {
    /// The `n`-th of a batch.
    #[inline(always)]
    fn new(l: L, x: &'a [f32], weight: &'a [f32], n: usize) -> Self {
        let (x, weight) = (eight_rows(x, n), eight_rows(weight, n));
        Eight { x, weight, xs: columns(l, x), weights: columns(l, weight) }
    }
}

/// The `n`-th eight rows.
#[inline(always)]
fn eight_rows<const N: usize>(v: &[f32], n: usize) -> &[[f32; N]; LANES] {
    &v.as_chunks::<N>().0.as_chunks::<LANES>().0[n]
}

/// What is at hand for all sub-blocks.
struct Coder<L: Lanes> {
    l: L,
    grid: &'static Codebook<8>,
    /// Room for the errors of candidates.
    errors: [L::F32; LONGEST],
}

impl<L: Lanes> Coder<L> {
    /// Codes two of the eights of sub-blocks in a batch.
    #[inline(always)]
    fn code<const N: usize, T: InLanes<N>>(&mut self, x: &[f32], weight: &[f32], at: [usize; 2], found: &mut [Coded]) {
        let l = self.l;
        let eights = [Eight::<L, N>::new(l, x, weight, at[0]), Eight::<L, N>::new(l, x, weight, at[1])];
        let sorted = [
            sort::<L, N, T>(l, &eights[0].xs, &eights[0].weights),
            sort::<L, N, T>(l, &eights[1].xs, &eights[1].weights),
        ];
        let splits = best_splits::<L, N, T>(l, &sorted);
        for b in 0..2 {
            let found = &mut found.as_chunks_mut::<LANES>().0[at[b]];
            self.code_eight::<N, T>(&eights[b], &sorted[b].ranks, &splits[b].0, splits[b].1, found);
        }
    }

    /// Codes eight sub-blocks by their splits, those `left` by the reference.
    #[inline(always)]
    fn code_eight<const N: usize, T: InLanes<N>>(
        &mut self,
        eight: &Eight<'_, L, N>,
        ranks: &[L::I32; N],
        splits: &[Option<Split>; LANES],
        left: u32,
        found: &mut [Coded; LANES],
    ) {
        let l = self.l;
        let Eight { x, weight, .. } = *eight;
        let mut max = l.abs(eight.xs[0]);
        for &x in &eight.xs {
            max = l.max(max, l.abs(x));
        }
        let zeros = l.bits(l.lt(max, l.splat(T::LEAST)));
        let (mut from, mut to, mut scale, mut shift) = ([0; LANES], [0; LANES], [0.0; LANES], [0; LANES]);
        let (mut delta, mut coded) = ([[0.0; LANES]; 4], [false; LANES]);
        for (i, split) in splits.iter().enumerate() {
            found[i] = Coded::default();
            if left >> i & 1 == 1 {
                found[i] = code::<N, T>(&x[i], &weight[i]);
            } else if let (Some(split), 0) = (split, zeros >> i & 1) {
                coded[i] = true;
                (from[i], to[i], scale[i]) = (split.at.0 as i32, split.at.1 as i32, split.scale);
                shift[i] = if split.scale < 0.0 { T::SHIFTS - split.shift } else { split.shift };
                for k in 0..N / 8 {
                    delta[k][i] = T::values(shift[i], k)[1];
                }
            }
        }
        let scale = l.load(&scale);
        let cells = cells(l, ranks, l.load_i(&from), l.load_i(&to), l.lt(scale, l.splat(0.0)));
        let scale = l.abs(scale);
        let scales = l.store(scale);
        let (mut packed, mut off_grid) = ([[0; LANES]; 4], [0; LANES]);
        for i in 0..LANES {
            if !coded[i] {
                continue;
            }
            (found[i].shift, found[i].scale) = (shift[i], scales[i]);
            for k in 0..N / 8 {
                let point = match self.grid.offer(cells[k][i] as usize) {
                    Offer::Point(n) => n,
                    Offer::Near(near) => {
                        off_grid[i] = -1;
                        // Packed levels of two bits are looked up with a third, which belongs to the next coordinate.
                        let [a, b, c] = *T::values(shift[i], k);
                        let q = l.load(&[a, b, c, c, a, b, c, c]);
                        let (x, weight) = (&x[i].as_chunks::<8>().0[k], &weight[i].as_chunks::<8>().0[k]);
                        near.points()[nearest_exactly(l, near, q, x, weight, scales[i], &mut self.errors)]
                    }
                };
                found[i].points[k] = point;
                packed[k][i] = i32::from(self.grid.packed[point as usize]);
            }
        }
        let (sumqx, sumq2) = fit(l, &eight.xs, &eight.weights, &packed, &delta);
        let zero = l.splat(0.0);
        let fits = l.lt_i(l.load_i(&off_grid), l.splat_i(0)) & l.lt(zero, sumqx) & l.lt(zero, sumq2);
        let scales = l.store(l.select(fits, sumqx / sumq2, scale));
        for i in 0..LANES {
            if coded[i] {
                found[i].scale = scales[i];
            }
        }
    }
}

/// The cells of the codes of weights with these ranks, by group: negated where `negated`.
#[inline(always)]
fn cells<L: Lanes, const N: usize>(
    l: L,
    ranks: &[L::I32; N],
    from: L::I32,
    to: L::I32,
    negated: L::Mask,
) -> [[i32; LANES]; 4] {
    let mut cells = [[0; LANES]; 4];
    for k in 0..N / 8 {
        let mut cell = l.splat_i(0);
        for &rank in ranks[8 * k..][..8].iter().rev() {
            // Less what is below the runs' first places: 0, -1 or -2.
            let below = l.ones(l.lt_i(rank, from)) + l.ones(l.lt_i(rank, to));
            let level = l.select_i(negated, l.splat_i(0) - below, l.splat_i(2) + below);
            cell = cell + cell + cell + level;
        }
        cells[k] = l.store_i(cell);
    }
    cells
}

/// `sumqx` and `sumq2` of points, given as packed levels and what a level of 1 stands for, by group.
#[inline(always)]
fn fit<L: Lanes, const N: usize>(
    l: L,
    x: &[L::F32; N],
    weight: &[L::F32; N],
    packed: &[[i32; LANES]; 4],
    delta: &[[f32; LANES]; 4],
) -> (L::F32, L::F32) {
    let levels = l.load(&[-1.0, 0.0, 1.0, 1.0, -1.0, 0.0, 1.0, 1.0]);
    let (mut sumqx, mut sumq2) = (l.splat(0.0), l.splat(0.0));
    for k in 0..N / 8 {
        let (mut index, delta) = (l.load_i(&packed[k]), l.load(&delta[k]));
        for i in 8 * k..8 * k + 8 {
            // A level and an eighth are added exactly.
            let q = l.lookup(levels, index) + delta;
            sumqx = sumqx + weight[i] * q * x[i];
            sumq2 = sumq2 + weight[i] * q * q;
            index = next_level::<L, 8>(l, index);
        }
    }
    (sumqx, sumq2)
}
