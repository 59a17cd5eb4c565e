//! `scale * B @ A` added to rows: the one kernel that nearly all merging time goes to.
//!
//! The rule, for every device: `values[i][j] += scale * sum`, where `sum` starts at +0 and takes
//! `b[i][k] * a[k][j]` for k = 0, 1, .. in order; each product, sum and the final product is rounded to f32 on
//! its own (no FMA). Independent elements lie in the vector's lanes, so the result does not depend on the
//! instruction set, the chunk or the tile.

use std::ops::Range;

use pulp::Simd;

use super::lazy::Recent;
use super::passes::{Squares, squares};
use crate::recipe::{LowRank, ReadError, Recipe, Scratch, Term};

/// Columns of a tile: its part of `a` is packed, so that a power-of-two row length does not make the rows of
/// `a` fight for the same cache sets.
const COLS: usize = 32;

/// Elements of `a` that are used on all rows before the next ones are: half of a core's first cache. Tiles next to
/// each other follow each other, so that rows are walked along and not only crossed.
const BLOCK: usize = 4096;

/// Elements of `a` that are read at a time: those of a form that is no low rank would fill a scratch for each thread.
const PART: usize = 1 << 18;

/// `B` and `A` of one change, as recipes over the adapter's file: rows are read when they are needed.
pub(super) struct Factors {
    /// `[rank, columns]`
    a: Recipe,
    /// `[rows, rank]`
    b: Recipe,
    /// The factor of the sum, rounded to f32 when it is used.
    pub(super) scale: f64,
    /// `A` in tiles, which all rows share.
    tiles: Recent,
}

impl Factors {
    /// The product that they stand for.
    pub(super) fn term(&self) -> Term {
        Term { a: self.a.clone(), b: self.b.clone(), scale: self.scale }
    }

    /// `scale * b @ a`, of `a` `[rank, columns]` and `b` `[rows, rank]`.
    pub(super) fn new(a: Recipe, b: Recipe, scale: f64) -> Self {
        Factors { a, b, scale, tiles: Recent::new() }
    }

    /// Adds the product's rows `rows` to `values`. With `round`, what is added is rounded by it first.
    pub(super) fn add(
        &self,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
        round: Option<fn(f32) -> f32>,
    ) -> Result<Squares, ReadError> {
        let rank = self.rank();
        let cols = self.a.shape().row_len() as usize;
        if rank == 0 || values.is_empty() {
            return Ok(Squares { before: squares(values), added: 0.0 });
        }
        let tiles = self.tiles.get(|| {
            let mut tiles = vec![0f32; cols.div_ceil(COLS) * rank * COLS];
            let part = (PART / cols).clamp(1, rank);
            let mut a = scratch.take_floats(part * cols);
            let read = (0..rank).step_by(part).try_for_each(|first| {
                let count = part.min(rank - first);
                let a = &mut a[..count * cols];
                self.a.rows(first as u64..(first + count) as u64, a, scratch)?;
                put_in_tiles(a, first, rank, &mut tiles, cols);
                Ok(())
            });
            scratch.give_floats(a);
            read.map(|()| tiles)
        })?;
        let mut b = scratch.take_floats((rows.end - rows.start) as usize * rank);
        let read = self.read_b(rows, &mut b, scratch);
        let product = Product { values, cols, b: &b, tiles: &tiles, rank, scale: self.scale(), round };
        let squares = read.map(|()| pulp::Arch::new().dispatch(product));
        scratch.give_floats(b);
        squares
    }
}

impl LowRank for Factors {
    fn rank(&self) -> usize {
        self.a.shape().rows() as usize
    }

    fn scale(&self) -> f32 {
        self.scale as f32
    }

    fn read_a(&self, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.a.rows(0..self.a.shape().rows(), out, scratch)
    }

    fn read_b(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.b.rows(rows, out, scratch)
    }
}

/// `values += scale * b @ a` for `values` `[n, m]`, `b` `[n, rank]` and `a` `[rank, m]`.
pub(super) fn add_product(values: &mut [f32], b: &[f32], a: &[f32], rank: usize, scale: f32) {
    if rank == 0 || values.is_empty() {
        return;
    }
    let (tiles, cols) = (tiled(a, rank), a.len() / rank);
    pulp::Arch::new().dispatch(Product { values, cols, b, tiles: &tiles, rank, scale, round: None });
}

/// `a` `[rank, m]` as tiles `[m / COLS, rank, COLS]`; the last is filled up with zeros.
fn tiled(a: &[f32], rank: usize) -> Vec<f32> {
    let cols = a.len() / rank;
    let mut tiles = vec![0f32; cols.div_ceil(COLS) * rank * COLS];
    put_in_tiles(a, 0, rank, &mut tiles, cols);
    tiles
}

/// Puts the rows of `A` from `first` on in their places.
fn put_in_tiles(a: &[f32], first: usize, rank: usize, tiles: &mut [f32], cols: usize) {
    for (k, row) in (first..).zip(a.chunks_exact(cols.max(1))) {
        for (tile, from) in tiles.chunks_exact_mut(rank * COLS).zip(row.chunks(COLS)) {
            tile[k * COLS..][..from.len()].copy_from_slice(from);
        }
    }
}

struct Product<'a> {
    values: &'a mut [f32],
    cols: usize,
    b: &'a [f32],
    tiles: &'a [f32],
    rank: usize,
    scale: f32,
    round: Option<fn(f32) -> f32>,
}

impl pulp::WithSimd for Product<'_> {
    type Output = Squares;

    /// With as many sums in registers as there are registers for them, beside two of `a`, one of `b` and a product.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Squares {
        match S::F32_LANES {
            16 => self.tiles::<S, 8, 2>(simd),
            8 => self.tiles::<S, 4, 2>(simd),
            4 => self.tiles::<S, 4, 4>(simd),
            _ => self.tiles::<S, 1, 8>(simd),
        }
    }
}

impl Product<'_> {
    /// Goes through the tiles, `R` rows at a time.
    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const V: usize>(self, simd: S) -> Squares {
        let Product { values, cols, b, tiles, rank, scale, round } = self;
        let tile_len = rank * COLS;
        let together = (BLOCK / tile_len).max(1);
        let mut squares = Squares::default();
        for (block, tiles) in tiles.chunks(together * tile_len).enumerate() {
            for (values, b) in values.chunks_mut(R * cols).zip(b.chunks(R * rank)) {
                let mut sums = [simd.splat_f32s(0.0); 2];
                for (i, a) in tiles.chunks_exact(tile_len).enumerate() {
                    let first = (block * together + i) * COLS;
                    let width = COLS.min(cols - first);
                    if b.len() == R * rank && width == COLS && round.is_none() {
                        let part = Part { a, b, rank, scale };
                        tile::<S, R, V>(simd, part, &mut values[first..], cols, &mut sums);
                        continue;
                    }
                    for (values, b) in values.chunks_exact_mut(cols).zip(b.chunks_exact(rank)) {
                        let part = Part { a, b, rank, scale };
                        let values = &mut values[first..first + width];
                        edge::<S, V>(simd, part, values, round, &mut sums);
                    }
                }
                squares.before += f64::from(simd.reduce_sum_f32s(sums[0]));
                squares.added += f64::from(simd.reduce_sum_f32s(sums[1]));
            }
        }
        squares
    }
}

/// A tile's part of the factors.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// `[rank, COLS]`
    a: &'a [f32],
    /// `[R, rank]`
    b: &'a [f32],
    rank: usize,
    scale: f32,
}

/// The scaled sums of `R` rows and `V` vectors of a tile, from column `at` on.
#[allow(clippy::needless_range_loop)] // `k` counts rows of one factor and columns of the other
#[inline(always)]
fn sums<S: Simd, const R: usize, const V: usize>(simd: S, part: Part, at: usize) -> [[S::f32s; V]; R] {
    let b: [&[f32]; R] = std::array::from_fn(|r| &part.b[r * part.rank..][..part.rank]);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for k in 0..part.rank {
        let a = vectors::<S, V>(&part.a[k * COLS + at..]);
        for r in 0..R {
            let x = simd.splat_f32s(b[r][k]);
            for v in 0..V {
                sums[r][v] = simd.add_f32s(sums[r][v], simd.mul_f32s(x, a[v]));
            }
        }
    }
    // Loops, not closures: those would be compiled for the baseline instruction set.
    let scale = simd.splat_f32s(part.scale);
    for row in &mut sums {
        for sum in row {
            *sum = simd.mul_f32s(*sum, scale);
        }
    }
    sums
}

/// Adds the product of a tile to `R` rows of `COLS` values that lie `stride` apart, and the squares to `squares`.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    part: Part,
    values: &mut [f32],
    stride: usize,
    squares: &mut [S::f32s; 2],
) {
    for at in (0..COLS).step_by(V * S::F32_LANES) {
        for (r, sums) in sums::<S, R, V>(simd, part, at).into_iter().enumerate() {
            let (values, _) = S::as_mut_simd_f32s(&mut values[r * stride + at..][..V * S::F32_LANES]);
            for (value, sum) in values.iter_mut().zip(sums) {
                squares[0] = simd.add_f32s(squares[0], simd.mul_f32s(*value, *value));
                squares[1] = simd.add_f32s(squares[1], simd.mul_f32s(sum, sum));
                *value = simd.add_f32s(*value, sum);
            }
        }
    }
}

/// One row of a tile that is not full, or whose sums are rounded.
#[inline(always)]
fn edge<S: Simd, const V: usize>(
    simd: S,
    part: Part,
    values: &mut [f32],
    round: Option<fn(f32) -> f32>,
    squares: &mut [S::f32s; 2],
) {
    let (mut added, mut before) = ([0f32; COLS], [0f32; COLS]);
    let (vectors, _) = S::as_mut_simd_f32s(&mut added);
    for (i, vectors) in vectors.chunks_exact_mut(V).enumerate() {
        let [row] = sums::<S, 1, V>(simd, part, i * V * S::F32_LANES);
        vectors.copy_from_slice(&row);
    }
    if let Some(round) = round {
        added.iter_mut().for_each(|x| *x = round(*x));
    }
    before[..values.len()].copy_from_slice(values);
    values.iter_mut().zip(&added).for_each(|(v, s)| *v += *s);
    // Beyond the width both are zero.
    for (squares, all) in squares.iter_mut().zip([&before, &added]) {
        for x in S::as_simd_f32s(all).0 {
            *squares = simd.add_f32s(*squares, simd.mul_f32s(*x, *x));
        }
    }
}

/// The first `V` vectors.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(values: &[f32]) -> &[S::f32s; V] {
    match S::as_simd_f32s(&values[..V * S::F32_LANES]).0.first_chunk() {
        Some(vectors) => vectors,
        None => panic!("{} values are not {V} vectors", values.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule as it is written.
    fn naive(values: &mut [f32], b: &[f32], a: &[f32], rank: usize, scale: f32) {
        let cols = a.len() / rank;
        for (values, b) in values.chunks_exact_mut(cols).zip(b.chunks_exact(rank)) {
            for (j, v) in values.iter_mut().enumerate() {
                let sum = (0..rank).fold(0f32, |sum, k| sum + b[k] * a[k * cols + j]);
                *v += scale * sum;
            }
        }
    }

    fn added(values: &mut [f32], b: &[f32], a: &[f32], rank: usize, scale: f32) -> Squares {
        let (tiles, cols) = (tiled(a, rank), a.len() / rank);
        pulp::Arch::new().dispatch(Product { values, cols, b, tiles: &tiles, rank, scale, round: None })
    }

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    #[test]
    fn tiles_are_the_same_from_parts() {
        let (rank, cols) = (5, 70);
        let a = noise(rank * cols, 7);
        let mut tiles = vec![0f32; cols.div_ceil(COLS) * rank * COLS];
        for first in [0, 2, 4] {
            put_in_tiles(&a[first * cols..(first + 2).min(rank) * cols], first, rank, &mut tiles, cols);
        }
        assert_eq!(tiles, tiled(&a, rank));
    }

    proptest! {
        #[test]
        fn tiles_equal_the_rule_bit_for_bit(rows in 1usize..20, cols in 1usize..140, rank in 1usize..20, seed: u64) {
            let (b, a) = (noise(rows * rank, seed), noise(rank * cols, seed ^ 1));
            let mut ours = noise(rows * cols, seed ^ 2);
            let mut rule = ours.clone();
            let before = ours.clone();
            let squares = added(&mut ours, &b, &a, rank, 0.37);
            naive(&mut rule, &b, &a, rank, 0.37);
            prop_assert!(ours.iter().zip(&rule).all(|(x, y)| x.to_bits() == y.to_bits()));
            let expected: f64 = ours.iter().zip(&before).map(|(x, y)| f64::from(x - y).powi(2)).sum();
            prop_assert!((squares.added - expected).abs() <= 1e-3 * expected + 1e-9);
            let expected: f64 = before.iter().map(|x| f64::from(*x).powi(2)).sum();
            prop_assert!((squares.before - expected).abs() <= 1e-3 * expected + 1e-9);
        }
    }
}
