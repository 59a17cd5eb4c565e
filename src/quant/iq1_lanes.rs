//! The kernel of [`iq1`](super::iq1): twice eight sub-blocks at a time, one in each lane.
//!
//! ```text
//! a sub-block in each lane: ranks, the best splits (`iq1_split.rs`), levels, cells of the grid
//! one group of eight weights after the other: the grid point, or the neighbour, eight candidates in the lanes
//! a sub-block in each lane: the scale that fits the points
//! ```
//!
//! Each lane computes what the reference computes, in its order. Groups that need a neighbour are taken by the length of
//! their lists, so that the processor foresees most branches.
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::Rows;
use super::codebook::{self, Cell, Codebook, Near};
use super::grid_exact::next_level;
use super::grid_search::Plain;
use super::iq1::{Coded, Split, Sums, code, reference, scale_levels};
use super::iq1_split::{InLanes, best_splits, ranks};
use super::lanes::{Kernel, LANES, Lanes, columns};
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
        let coder = Coder { l, grid: codebook::iq1() };
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
            let sums = if T::FITTED { block_sums::<L, N, T>(l, x, &weight, &found) } else { [(0.0, 0.0); LANES] };
            for ((found, sums), out) in found.chunks_exact(256 / N).zip(sums).zip(out.chunks_exact_mut(T::BYTES)) {
                T::finish(found, sums, out);
            }
        }
    }
}

/// Weights of eight blocks.
const BATCH: usize = 256 * LANES;

/// The sum of squares of up to eight blocks, each in order.
#[inline(always)]
fn sums_of_squares<L: Lanes>(l: L, x: &[f32]) -> [f32; LANES] {
    let mut squares = [0.0; BATCH];
    for (squares, x) in squares.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        let x = l.load(x);
        *squares = l.store(x * x);
    }
    sums_by_block(l, &squares)
}

/// The sum of each of eight blocks, in order.
#[inline(always)]
fn sums_by_block<L: Lanes>(l: L, terms: &[f32; BATCH]) -> [f32; LANES] {
    let mut sum = l.splat(0.0);
    for at in (0..256).step_by(LANES) {
        let mut rows = [sum; LANES];
        for (b, row) in rows.iter_mut().enumerate() {
            *row = l.load_at(&terms[256 * b + at..]);
        }
        for column in l.transpose(rows) {
            sum = sum + column;
        }
    }
    l.store(sum)
}

/// `sumqx` and `sumq2` of up to eight blocks, by what is stored of each sub-block's scale.
#[inline(always)]
fn block_sums<L: Lanes, const N: usize, T: InLanes<N>>(
    l: L,
    x: &[f32],
    weight: &[f32; BATCH],
    found: &[Coded],
) -> [Sums; LANES] {
    let grid = codebook::iq1();
    let (mut qx, mut q2) = ([0.0; BATCH], [0.0; BATCH]);
    for (b, x) in x.chunks_exact(256).enumerate() {
        let found = &found[256 / N * b..][..256 / N];
        let levels = scale_levels(found);
        for (i, x) in x.as_chunks().0.iter().enumerate() {
            let (found, level, k) = (&found[LANES * i / N], levels[LANES * i / N], i % (N / 8));
            // A level less 1 and an eighth are added exactly.
            let point = l.to_f32(l.load_u8(&grid.points[found.points[k] as usize]));
            let value = point - l.splat(1.0) + l.splat(T::values(found.shift, k)[1]);
            let q = value * l.splat(f32::from(2 * level + 1));
            let at = 256 * b + LANES * i;
            let wq = l.load_at(&weight[at..]) * q;
            qx[at..][..LANES].copy_from_slice(&l.store(wq * l.load(x)));
            q2[at..][..LANES].copy_from_slice(&l.store(wq * q));
        }
    }
    let (sumqx, sumq2) = (sums_by_block(l, &qx), sums_by_block(l, &q2));
    let mut sums = [(0.0, 0.0); LANES];
    for b in 0..LANES {
        sums[b] = (sumqx[b], sumq2[b]);
    }
    sums
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

/// The codes of eight sub-blocks.
struct Codes {
    /// Whether there are any; the others are zero, or done by the reference.
    coded: [bool; LANES],
    /// As in [`Coded`].
    shift: [usize; LANES],
    scale: [f32; LANES],
    /// By group and sub-block: the cells, then the packed levels of the points.
    cells: [[i32; LANES]; 4],
    packed: [[i32; LANES]; 4],
    /// What a level of 1 stands for.
    delta: [[f32; LANES]; 4],
    /// -1 where a cell has no point.
    off_grid: [i32; LANES],
}

/// Groups of twice eight sub-blocks: eight times the group, plus the sub-block; the second eight's after 32.
const GROUPS: usize = 2 * 4 * LANES;
/// Groups are sorted by the vectors of their lists of neighbours: none, one ... and this many or more.
const CLASSES: usize = 8;

/// Groups by class.
struct Groups {
    sorted: [[u8; GROUPS]; CLASSES],
    counts: [usize; CLASSES],
}

impl Groups {
    /// Notes a group with as many neighbours, without a branch.
    #[inline(always)]
    fn note(&mut self, group: usize, neighbours: usize) {
        let class = neighbours.div_ceil(LANES).min(CLASSES - 1);
        self.sorted[class][self.counts[class] % GROUPS] = group as u8;
        self.counts[class] += 1;
    }
}

/// What is at hand for all sub-blocks.
struct Coder<L: Lanes> {
    l: L,
    grid: &'static Codebook<8>,
}

impl<L: Lanes> Coder<L> {
    /// Codes two of the eights of sub-blocks in a batch.
    #[inline(always)]
    fn code<const N: usize, T: InLanes<N>>(&self, x: &[f32], weight: &[f32], at: [usize; 2], found: &mut [Coded]) {
        let l = self.l;
        let eights = [Eight::<L, N>::new(l, x, weight, at[0]), Eight::<L, N>::new(l, x, weight, at[1])];
        let ranks = [ranks(l, &eights[0].xs), ranks(l, &eights[1].xs)];
        let splits = best_splits::<L, N, T>(
            l,
            [&eights[0].xs, &eights[1].xs],
            [&eights[0].weights, &eights[1].weights],
            [&ranks[0], &ranks[1]],
        );
        let found = found.as_chunks_mut::<LANES>().0;
        let (first, second) = splits.best.split_at(LANES);
        let mut codes = [
            self.codes::<N, T>(&eights[0], &ranks[0], first, splits.left, &mut found[at[0]]),
            self.codes::<N, T>(&eights[1], &ranks[1], second, splits.left >> LANES, &mut found[at[1]]),
        ];
        let mut groups = Groups { sorted: [[0; GROUPS]; CLASSES], counts: [0; CLASSES] };
        for b in 0..2 {
            self.look_up::<N>(&mut codes[b], 32 * b, &mut groups, &mut found[at[b]]);
        }
        for class in 1..CLASSES {
            for &group in &groups.sorted[class][..groups.counts[class]] {
                let group = group as usize;
                let (b, k, i) = (group / 32 % 2, group / LANES % (N / 8), group % LANES);
                let codes = &mut codes[b];
                let (x, weight) = (eights[b].x[i].as_chunks().0, eights[b].weight[i].as_chunks().0);
                let near = self.grid.near(self.cell(codes, k, i));
                let place = self.nearest(near, &x[k], &weight[k], codes.scale[i], T::values(codes.shift[i], k));
                found[at[b]][i].points[k] = near.point(place);
                codes.packed[k][i] = near.words.as_flattened()[place] >> 16;
                codes.off_grid[i] = -1;
            }
        }
        for b in 0..2 {
            self.fit_scales(&eights[b], &codes[b], &mut found[at[b]]);
        }
    }

    /// Takes the points of the codes' cells, and notes the groups that have none.
    #[inline(always)]
    fn look_up<const N: usize>(
        &self,
        codes: &mut Codes,
        first: usize,
        groups: &mut Groups,
        found: &mut [Coded; LANES],
    ) {
        for k in 0..N / 8 {
            for i in 0..LANES {
                let (cell, coded) = (self.cell(codes, k, i), codes.coded[i]);
                groups.note(first + LANES * k + i, if coded { cell.len as usize } else { 0 });
                codes.packed[k][i] = self.grid.words[cell.point as usize] >> 16;
                found[i].points[k] = if coded { cell.point } else { found[i].points[k] };
            }
        }
    }

    /// The cell of a group.
    #[inline(always)]
    fn cell(&self, codes: &Codes, k: usize, i: usize) -> Cell {
        self.grid.at(codes.cells[k][i] as usize)
    }

    /// The codes of eight sub-blocks with these splits; the reference codes those `left` to it.
    #[inline(always)]
    fn codes<const N: usize, T: InLanes<N>>(
        &self,
        eight: &Eight<'_, L, N>,
        ranks: &[L::I32; N],
        splits: &[Option<Split>],
        left: u32,
        found: &mut [Coded; LANES],
    ) -> Codes {
        let l = self.l;
        let mut max = l.abs(eight.xs[0]);
        for &x in &eight.xs {
            max = l.max(max, l.abs(x));
        }
        let zeros = l.bits(l.lt(max, l.splat(T::LEAST)));
        let mut codes = Codes {
            coded: [false; LANES],
            shift: [0; LANES],
            scale: [0.0; LANES],
            cells: [[0; LANES]; 4],
            packed: [[0; LANES]; 4],
            delta: [[0.0; LANES]; 4],
            off_grid: [0; LANES],
        };
        let (mut from, mut to, mut scale) = ([0; LANES], [0; LANES], [0.0; LANES]);
        for (i, split) in splits.iter().enumerate() {
            found[i] = Coded::default();
            if left >> i & 1 == 1 {
                found[i] = code::<N, T>(&eight.x[i], &eight.weight[i]);
            } else if let (Some(split), 0) = (split, zeros >> i & 1) {
                (from[i], to[i], scale[i]) = (split.at.0 as i32, split.at.1 as i32, split.scale);
                let shift = if split.scale < 0.0 { T::SHIFTS - split.shift } else { split.shift };
                (codes.coded[i], codes.shift[i], found[i].shift) = (true, shift, shift);
                for k in 0..N / 8 {
                    codes.delta[k][i] = T::values(shift, k)[1];
                }
            }
        }
        let scale = l.load(&scale);
        cells(l, ranks, l.load_i(&from), l.load_i(&to), l.lt(scale, l.splat(0.0)), &mut codes.cells);
        codes.scale = l.store(l.abs(scale));
        codes
    }

    /// The place of the neighbour with the least weighted squared error: the first of equals, and the first of all where
    /// no error is a number.
    #[inline(always)]
    fn nearest(&self, near: Near<'_>, x: &[f32; 8], weight: &[f32; 8], scale: f32, values: &[f32; 3]) -> usize {
        let l = self.l;
        // Packed levels of two bits are looked up with a third, which belongs to the next coordinate.
        let [a, b, c] = *values;
        let scaled = l.splat(scale) * l.load(&[a, b, c, c, a, b, c, c]);
        let mut terms = [scaled; 8];
        for i in 0..8 {
            let diff = scaled - l.splat(x[i]);
            terms[i] = l.splat(weight[i]) * diff * diff;
        }
        let (mut least, mut place) = (l.splat(f32::MAX), l.splat_i(0));
        for (v, words) in near.words.iter().enumerate() {
            let mut index = l.shr::<16>(l.load_i(words));
            let mut error = l.splat(0.0);
            for &terms in &terms {
                error = error + l.lookup(terms, index);
                index = next_level::<L, 8>(l, index);
            }
            let lower = l.lt(error, least);
            least = l.min(error, least);
            place = l.select_i(lower, l.splat_i((LANES * v) as i32), place);
        }
        let place = l.to_f32(place + l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]));
        let first = l.select(l.eq(least, l.least(least)), place, l.splat(f32::MAX));
        l.store(l.least(first))[0] as usize
    }

    /// Fits the scales of sub-blocks whose codes were off the grid to the points.
    #[inline(always)]
    fn fit_scales<const N: usize>(&self, eight: &Eight<'_, L, N>, codes: &Codes, found: &mut [Coded; LANES]) {
        let l = self.l;
        let levels = l.load(&[-1.0, 0.0, 1.0, 1.0, -1.0, 0.0, 1.0, 1.0]);
        let zero = l.splat(0.0);
        let (mut sumqx, mut sumq2) = (zero, zero);
        for k in 0..N / 8 {
            let (mut index, delta) = (l.load_i(&codes.packed[k]), l.load(&codes.delta[k]));
            for i in 8 * k..8 * k + 8 {
                // A level and an eighth are added exactly.
                let q = l.lookup(levels, index) + delta;
                let wq = eight.weights[i] * q;
                sumqx = sumqx + wq * eight.xs[i];
                sumq2 = sumq2 + wq * q;
                index = next_level::<L, 8>(l, index);
            }
        }
        let fits = l.lt_i(l.load_i(&codes.off_grid), l.splat_i(0)) & l.lt(zero, sumqx) & l.lt(zero, sumq2);
        let scale = l.store(l.select(fits, sumqx / sumq2, l.load(&codes.scale)));
        for i in 0..LANES {
            if codes.coded[i] {
                found[i].scale = scale[i];
            }
        }
    }
}

/// Fills in the cells of the codes of weights with these ranks, by group: negated where `negated`.
#[inline(always)]
fn cells<L: Lanes, const N: usize>(
    l: L,
    ranks: &[L::I32; N],
    from: L::I32,
    to: L::I32,
    negated: L::Mask,
    cells: &mut [[i32; LANES]; 4],
) {
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
}
