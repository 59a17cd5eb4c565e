//! `scale * B @ A` added to rows: the one kernel that nearly all merging time goes to.
//!
//! The rule, for every device: `values[i][j] += scale * sum`, where `sum` starts at +0 and takes
//! `b[i][k] * a[k][j]` for k = 0, 1, .. in order; each product, sum and the final product is rounded to f32 on
//! its own (no FMA). Independent elements lie in the vector's lanes, so the result does not depend on the
//! instruction set, the chunk or the tile.

use std::ops::Range;

use super::lazy::Recent;
use crate::recipe::{LowRank, ReadError, Recipe, Scratch, Term};

/// Columns of a tile: its part of `a` is packed, so that a power-of-two row length does not make the rows of
/// `a` fight for the same cache sets.
const COLS: usize = 16;

/// Rows of a tile: with `COLS` columns, as many sums as eight vector registers hold.
const ROWS: usize = 4;

/// Elements of `a` that are used on all rows before the next ones are: half of a core's first cache. Tiles next to
/// each other follow each other, so that rows are walked along and not only crossed.
const BLOCK: usize = 4096;

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

    /// Adds the product's rows `rows` to `values`; answers the sum of squares of what was added. With `round`,
    /// what is added is rounded by it first.
    pub(super) fn add(
        &self,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
        round: Option<fn(f32) -> f32>,
    ) -> Result<f64, ReadError> {
        let rank = self.rank();
        let cols = self.a.shape().row_len() as usize;
        if rank == 0 || values.is_empty() {
            return Ok(0.0);
        }
        let tiles = self.tiles.get(|| {
            let mut a = scratch.take_floats(rank * cols);
            let read = self.read_a(&mut a, scratch);
            let tiles = read.map(|()| tiled(&a, rank));
            scratch.give_floats(a);
            tiles
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

/// `values += scale * b @ a` for `values` `[n, m]`, `b` `[n, rank]` and `a` `[rank, m]`. Answers the sum of
/// squares of what was added.
pub(super) fn add_product(
    values: &mut [f32],
    b: &[f32],
    a: &[f32],
    rank: usize,
    scale: f32,
    round: Option<fn(f32) -> f32>,
) -> f64 {
    if rank == 0 || values.is_empty() {
        return 0.0;
    }
    let (tiles, cols) = (tiled(a, rank), a.len() / rank);
    pulp::Arch::new().dispatch(Product { values, cols, b, tiles: &tiles, rank, scale, round })
}

/// `a` `[rank, m]` as tiles `[m / COLS, rank, COLS]`; the last is filled up with zeros.
fn tiled(a: &[f32], rank: usize) -> Vec<f32> {
    let cols = a.len() / rank;
    let mut tiles = vec![0f32; cols.div_ceil(COLS) * rank * COLS];
    for (k, row) in a.chunks_exact(cols.max(1)).enumerate() {
        for (tile, from) in tiles.chunks_exact_mut(rank * COLS).zip(row.chunks(COLS)) {
            tile[k * COLS..][..from.len()].copy_from_slice(from);
        }
    }
    tiles
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

impl pulp::NullaryFnOnce for Product<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Product { values, cols, b, tiles, rank, scale, round } = self;
        let tile_len = rank * COLS;
        let together = (BLOCK / tile_len).max(1);
        let mut squares = 0f64;
        for (block, tiles) in tiles.chunks(together * tile_len).enumerate() {
            for (values, b) in values.chunks_mut(ROWS * cols).zip(b.chunks(ROWS * rank)) {
                let mut lanes = [0f32; COLS];
                for (i, a) in tiles.chunks_exact(tile_len).enumerate() {
                    let first = (block * together + i) * COLS;
                    let width = COLS.min(cols - first);
                    let mut tile = [[0f32; COLS]; ROWS];
                    if b.len() == ROWS * rank {
                        full_tile(&mut tile, b, a, rank);
                    } else {
                        for (sums, b) in tile.iter_mut().zip(b.chunks_exact(rank)) {
                            one_row(sums, b, a);
                        }
                    }
                    for (sums, values) in tile.iter_mut().zip(values.chunks_exact_mut(cols)) {
                        sums.iter_mut().for_each(|x| *x *= scale);
                        if let Some(round) = round {
                            sums.iter_mut().for_each(|x| *x = round(*x));
                        }
                        match values[first..first + width].first_chunk_mut::<COLS>() {
                            Some(values) => values.iter_mut().zip(&*sums).for_each(|(v, s)| *v += *s),
                            None => values[first..first + width].iter_mut().zip(&*sums).for_each(|(v, s)| *v += *s),
                        }
                        // Beyond the width the sums are zero.
                        lanes.iter_mut().zip(&*sums).for_each(|(l, s)| *l += s * s);
                    }
                }
                squares += f64::from(sum_pairwise(&lanes));
            }
        }
        squares
    }
}

/// Sums of `ROWS` rows of `b` over one packed tile of `a`.
#[inline(always)]
fn full_tile(tile: &mut [[f32; COLS]; ROWS], b: &[f32], packed: &[f32], rank: usize) {
    let (b0, rest) = b.split_at(rank);
    let (b1, rest) = rest.split_at(rank);
    let (b2, b3) = rest.split_at(rank);
    let [mut s0, mut s1, mut s2, mut s3] = *tile;
    for ((((a, x0), x1), x2), x3) in packed.chunks_exact(COLS).zip(b0).zip(b1).zip(b2).zip(b3) {
        for j in 0..COLS {
            s0[j] += x0 * a[j];
            s1[j] += x1 * a[j];
            s2[j] += x2 * a[j];
            s3[j] += x3 * a[j];
        }
    }
    *tile = [s0, s1, s2, s3];
}

/// Sums of one row of `b` over one packed tile of `a`.
#[inline(always)]
fn one_row(sums: &mut [f32; COLS], b: &[f32], packed: &[f32]) {
    for (a, x) in packed.chunks_exact(COLS).zip(b) {
        for j in 0..COLS {
            sums[j] += x * a[j];
        }
    }
}

#[inline(always)]
fn sum_pairwise(row: &[f32; COLS]) -> f32 {
    let mut half = [0f32; COLS / 2];
    for j in 0..COLS / 2 {
        half[j] = row[j] + row[j + COLS / 2];
    }
    half.iter().sum()
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

    proptest! {
        #[test]
        fn tiles_equal_the_rule_bit_for_bit(rows in 1usize..11, cols in 1usize..70, rank in 1usize..20, seed: u64) {
            let (b, a) = (noise(rows * rank, seed), noise(rank * cols, seed ^ 1));
            let mut ours = noise(rows * cols, seed ^ 2);
            let mut rule = ours.clone();
            let before = ours.clone();
            let squares = add_product(&mut ours, &b, &a, rank, 0.37, None);
            naive(&mut rule, &b, &a, rank, 0.37);
            prop_assert!(ours.iter().zip(&rule).all(|(x, y)| x.to_bits() == y.to_bits()));
            let expected: f64 = ours.iter().zip(&before).map(|(x, y)| f64::from(x - y).powi(2)).sum();
            prop_assert!((squares - expected).abs() <= 1e-3 * expected + 1e-9);
        }
    }
}
