//! IQ1_S and IQ1_M: eight weights at a time are a point of a ternary grid, all shifted by an eighth up or down.
//!
//! ```text
//! IQ1_S, 256 weights in 50 bytes:  d f16 | 32 points, low 8 bits | 8 x u16 (4 x high 3 bits, scale 3 bits, shift)
//! IQ1_M, 256 weights in 56 bytes:  32 points, low 8 bits | 32 x (high 3 bits, shift) | 16 scales, 3 bits, and d f16 in
//!                                  the top 4 bits of 4 u16
//! ```
//!
//! The search (`quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl`), per 32 weights (IQ1_S) or 16 (IQ1_M):
//!
//! ```text
//! sort the weights; every split of the sorted list into three runs is a ternary code, and prefix sums give its sumqx
//! and sumq2 for both shifts (IQ1_M: both shifts of either half); keep the split with the largest sumqx^2 / sumq2
//! turn the code so that the scale is positive; replace groups that are no grid point by the neighbour with the least
//! weighted squared error, and fit the scale again
//! ```
//!
//! Bytes depend on the sort being stable, on the order of every sum, and on the first of equal splits winning.
#![allow(clippy::needless_range_loop)] // one index into several arrays
#![allow(clippy::neg_cmp_op_on_partial_ord)] // NaN goes the other way

use super::codebook::{self, Near, Offer};
use super::grid_search::{Plain, importance};
use super::plain::{f16_at, f16_bits, put_f16};
use super::search::{c_max, nearest_int, sum_of_squares};

/// `IQ1S_DELTA`, `IQ1M_DELTA`.
const DELTA: f32 = 0.125;
/// What the levels stand for, shifted up and shifted down.
pub(super) const UP: [f32; 3] = [-1.0 + DELTA, DELTA, 1.0 + DELTA];
pub(super) const DOWN: [f32; 3] = [-1.0 - DELTA, -DELTA, 1.0 - DELTA];

/// The best split of a sorted sub-block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Split {
    /// First place of the middle and of the upper run.
    pub(super) at: (usize, usize),
    /// Which shifts: for IQ1_S 0 up, 1 down; for IQ1_M bit 1 for the first half, bit 0 for the second, set for down.
    pub(super) shift: usize,
    /// The least-squares scale, of either sign.
    pub(super) scale: f32,
}

/// A sub-block with its codes; by default one of zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Coded {
    /// The grid points of its groups of eight.
    pub(super) points: [u16; 4],
    /// As in [`Split`].
    pub(super) shift: usize,
    /// Never negative.
    pub(super) scale: f32,
}

/// IQ1_S or IQ1_M, with sub-blocks of `N` weights. A row is a whole number of blocks of 256.
pub(super) trait Iq1<const N: usize> {
    /// Bytes of a block.
    const BYTES: usize;
    /// The importance of a weight without an imatrix.
    const PLAIN: Plain;
    /// A sub-block whose magnitudes are all below this is zero.
    const LEAST: f32;
    /// The shift that belongs to a negated code is this less the code's own.
    const SHIFTS: usize;
    /// The best split of weights in ascending order.
    fn split(x: &[f32], weight: &[f32; N], order: &[u8; N]) -> Option<Split>;
    /// What the levels of a group of eight stand for under a shift.
    fn values(shift: usize, group: usize) -> &'static [f32; 3];
    /// Whether the scale of a block is fitted to all its weights.
    const FITTED: bool;
    /// Writes a block of what was found for its sub-blocks, given the [`block_sums`] if it is fitted.
    fn finish(found: &[Coded], sums: Sums, block: &mut [u8]);
}

/// `sumqx` and `sumq2`.
pub(super) type Sums = (f32, f32);

/// Encodes a row by the reference.
pub(super) fn reference<const N: usize, T: Iq1<N>>(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(256).zip(out.chunks_exact_mut(T::BYTES)).enumerate() {
        let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
        let weight: [f32; 256] = match (weights, T::PLAIN) {
            (None, Plain::Ones) => importance(x, Some(&[1.0; 256]), sigma2, |v| v),
            _ => importance(x, weights.map(|w| &w[256 * i..][..256]), sigma2, |v| v * v),
        };
        let mut found = [Coded::default(); 16];
        for ((found, x), weight) in found.iter_mut().zip(x.chunks_exact(N)).zip(weight.as_chunks().0) {
            *found = code::<N, T>(x, weight);
        }
        let found = &found[..256 / N];
        let sums = if T::FITTED { block_sums::<N, T>(x, &weight, found) } else { (0.0, 0.0) };
        T::finish(found, sums, block);
    }
}

/// The order of the weights in ascending order, as glibc's merge sort leaves it: NaN compares equal to everything.
pub(super) fn ascending<const N: usize>(x: &[f32]) -> [u8; N] {
    fn sort(order: &mut [u8], x: &[f32]) {
        if order.len() < 2 {
            return;
        }
        let (low, high) = order.split_at_mut(order.len() / 2);
        sort(low, x);
        sort(high, x);
        let mut merged = [0; 32];
        let (mut l, mut h) = (0, 0);
        for slot in &mut merged[..low.len() + high.len()] {
            let take_low = h == high.len() || (l < low.len() && !(x[low[l] as usize] > x[high[h] as usize]));
            *slot = if take_low { low[l] } else { high[h] };
            (l, h) = if take_low { (l + 1, h) } else { (l, h + 1) };
        }
        let len = order.len();
        order.copy_from_slice(&merged[..len]);
    }
    let mut order = std::array::from_fn(|i| i as u8);
    sort(&mut order, x);
    order
}

/// Keeps the better of two splits, as ggml compares them.
#[derive(Clone, Copy)]
pub(super) struct Best {
    /// What a better split's `sumqx^2` has to exceed, in parts of its `sumq2`.
    score: f32,
    /// The best split so far.
    pub(super) split: Option<Split>,
}

impl Best {
    /// Worse than any.
    #[inline(always)]
    pub(super) fn new() -> Self {
        Best { score: f32::MIN, split: None }
    }

    /// Takes a split if it is better.
    #[inline(always)]
    pub(super) fn offer(&mut self, sumqx: f32, sumq2: f32, at: (usize, usize), shift: usize) {
        if sumq2 > 0.0 && sumqx * sumqx > self.score * sumq2 {
            let scale = sumqx / sumq2;
            self.score = scale * sumqx;
            self.split = Some(Split { at, shift, scale });
        }
    }
}

/// IQ1_S's best split of 32 weights in ascending order.
fn split_s(x: &[f32], weight: &[f32; 32], order: &[u8; 32]) -> Option<Split> {
    let (mut sumx, mut sumw) = ([0.0f32; 33], [0.0f32; 33]);
    for (j, &i) in order.iter().enumerate() {
        sumx[j + 1] = sumx[j] + weight[i as usize] * x[i as usize];
        sumw[j + 1] = sumw[j] + weight[i as usize];
    }
    let mut best = Best::new();
    for i1 in 0..=32 {
        for i2 in i1..=32 {
            for (shift, v) in [UP, DOWN].iter().enumerate() {
                let sumqx = (sumx[i1] - sumx[0]) * v[0] + (sumx[i2] - sumx[i1]) * v[1] + (sumx[32] - sumx[i2]) * v[2];
                let sumq2 = (sumw[i1] - sumw[0]) * v[0] * v[0]
                    + (sumw[i2] - sumw[i1]) * v[1] * v[1]
                    + (sumw[32] - sumw[i2]) * v[2] * v[2];
                best.offer(sumqx, sumq2, (i1, i2), shift);
            }
        }
    }
    best.split
}

/// IQ1_M's best split of 16 weights in ascending order; either half has a shift of its own.
fn split_m(x: &[f32], weight: &[f32; 16], order: &[u8; 16]) -> Option<Split> {
    let (mut px, mut pw) = ([[0.0f32; 17]; 2], [[0.0f32; 17]; 2]);
    for (j, &i) in order.iter().enumerate() {
        let (i, half) = (i as usize, i as usize / 8);
        for h in 0..2 {
            (px[h][j + 1], pw[h][j + 1]) = (px[h][j], pw[h][j]);
        }
        px[half][j + 1] += weight[i] * x[i];
        pw[half][j + 1] += weight[i];
    }
    let mut best = Best::new();
    for i1 in 0..=16 {
        for i2 in i1..=16 {
            // [half][shift]
            let (mut qx, mut q2) = ([[0.0f32; 2]; 2], [[0.0f32; 2]; 2]);
            for h in 0..2 {
                let sx = px[h][i1] + px[h][i2];
                for (s, v) in [UP, DOWN].iter().enumerate() {
                    qx[h][s] = px[h][16] * v[2] - sx;
                    q2[h][s] = pw[h][16] * v[2] * v[2]
                        + pw[h][i1] * (v[0] * v[0] - v[1] * v[1])
                        + pw[h][i2] * (v[1] * v[1] - v[2] * v[2]);
                }
            }
            for k in 0..4 {
                best.offer(qx[0][k / 2] + qx[1][k % 2], q2[0][k / 2] + q2[1][k % 2], (i1, i2), k);
            }
        }
    }
    best.split
}

/// `iq1_find_best_neighbour2`. Where no error is a number, ggml aborts; this takes the first candidate.
fn nearest(candidates: Near<'_>, x: &[f32], weight: &[f32], scale: f32, values: &[f32; 3]) -> u16 {
    let grid = codebook::iq1();
    let (mut best, mut least) = (candidates.point(0), f32::MAX);
    for n in candidates.points() {
        let error = grid.points[n as usize].iter().zip(x).zip(weight).fold(0.0, |sum, ((&l, &x), &w)| {
            let diff = scale * values[l as usize] - x;
            sum + w * diff * diff
        });
        if error < least {
            (best, least) = (n, error);
        }
    }
    best
}

/// Codes a sub-block of `N` weights.
pub(super) fn code<const N: usize, T: Iq1<N>>(x: &[f32], weight: &[f32; N]) -> Coded {
    if largest_magnitude(x) < T::LEAST {
        return Coded::default();
    }
    let order = ascending(x);
    let Some(split) = T::split(x, weight, &order) else { return Coded::default() };
    let grid = codebook::iq1();
    let mut levels = [0; N];
    for (place, &i) in order.iter().enumerate() {
        levels[i as usize] = u8::from(place >= split.at.0) + u8::from(place >= split.at.1);
    }
    let (mut scale, mut shift) = (split.scale, split.shift);
    if scale < 0.0 {
        levels = levels.map(|l| 2 - l);
        (scale, shift) = (-scale, T::SHIFTS - shift);
    }
    let mut points = [0; 4];
    let mut all_on_grid = true;
    for (k, levels) in levels.as_chunks().0.iter().enumerate() {
        points[k] = match grid.offer(grid.cell(levels)) {
            Offer::Point(n) => n,
            Offer::Near(near) => {
                all_on_grid = false;
                nearest(near, &x[8 * k..][..8], &weight[8 * k..][..8], scale, T::values(shift, k))
            }
        };
    }
    if !all_on_grid {
        let (mut sumqx, mut sumq2) = (0.0, 0.0);
        for i in 0..N {
            let q = T::values(shift, i / 8)[grid.points[points[i / 8] as usize][i % 8] as usize];
            sumqx += weight[i] * q * x[i];
            sumq2 += weight[i] * q * q;
        }
        if sumqx > 0.0 && sumq2 > 0.0 {
            scale = sumqx / sumq2;
        }
    }
    Coded { points, shift, scale }
}

/// The sums of all weights of a block, in order, by what is stored of each sub-block's scale.
fn block_sums<const N: usize, T: Iq1<N>>(x: &[f32], weight: &[f32], found: &[Coded]) -> Sums {
    let grid = codebook::iq1();
    let (mut sumqx, mut sumq2) = (0.0, 0.0);
    for ((ib, found), level) in found.iter().enumerate().zip(scale_levels(found)) {
        for j in 0..N {
            let value = T::values(found.shift, j / 8)[grid.points[found.points[j / 8] as usize][j % 8] as usize];
            let (q, i) = (value * f32::from(2 * level + 1), N * ib + j);
            sumqx += weight[i] * q * x[i];
            sumq2 += weight[i] * q * q;
        }
    }
    (sumqx, sumq2)
}

fn largest_magnitude(x: &[f32]) -> f32 {
    x[1..].iter().fold(x[0].abs(), |m, v| c_max(m, v.abs()))
}

/// The largest scale of sub-blocks.
fn max_scale(found: &[Coded]) -> f32 {
    found.iter().fold(0.0, |m, f| c_max(m, f.scale))
}

/// Levels of the sub-blocks' scales, `2 l + 1` being in 15ths of the largest.
pub(super) fn scale_levels(found: &[Coded]) -> [u8; 16] {
    let id = 1.0 / (max_scale(found) / 15.0);
    let mut levels = [0; 16];
    for (level, found) in levels.iter_mut().zip(found) {
        *level = nearest_int(0.5 * (id * found.scale - 1.0)).clamp(0, 7) as u8;
    }
    levels
}

/// IQ1_S. ggml demands an imatrix here; without one, every weight counts as 1.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ1_S {}

impl Iq1<32> for IQ1_S {
    const BYTES: usize = 50;
    const PLAIN: Plain = Plain::Ones;
    const LEAST: f32 = 1e-12;
    const SHIFTS: usize = 1;
    const FITTED: bool = false;

    fn split(x: &[f32], weight: &[f32; 32], order: &[u8; 32]) -> Option<Split> {
        split_s(x, weight, order)
    }

    #[inline(always)]
    fn values(shift: usize, _group: usize) -> &'static [f32; 3] {
        if shift == 0 { &UP } else { &DOWN }
    }

    #[inline(always)]
    fn finish(found: &[Coded], _: Sums, block: &mut [u8]) {
        block.fill(0);
        for (ib, Coded { points, .. }) in found.iter().enumerate() {
            let high = points.iter().rev().fold(0, |high, p| high << 3 | p >> 8);
            for (byte, point) in block[2 + 4 * ib..].iter_mut().zip(points) {
                *byte = *point as u8;
            }
            block[34 + 2 * ib..][..2].copy_from_slice(&high.to_le_bytes());
        }
        let max_scale = max_scale(found);
        if max_scale == 0.0 {
            return;
        }
        put_f16(max_scale / 15.0 * 1.125, block);
        for ((ib, found), level) in found.iter().enumerate().zip(scale_levels(found)) {
            block[35 + 2 * ib] |= (level | (found.shift as u8) << 3) << 4;
        }
    }
}

/// IQ1_M.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ1_M {}

impl Iq1<16> for IQ1_M {
    const BYTES: usize = 56;
    const PLAIN: Plain = Plain::Square;
    const LEAST: f32 = 1e-7;
    const SHIFTS: usize = 3;
    const FITTED: bool = true;

    fn split(x: &[f32], weight: &[f32; 16], order: &[u8; 16]) -> Option<Split> {
        split_m(x, weight, order)
    }

    /// Each group of a sub-block has its own shift.
    #[inline(always)]
    fn values(shift: usize, group: usize) -> &'static [f32; 3] {
        if shift >> (1 - group) & 1 == 0 { &UP } else { &DOWN }
    }

    /// The scale is the one that fits the whole block best.
    #[inline(always)]
    fn finish(found: &[Coded], (sumqx, sumq2): Sums, block: &mut [u8]) {
        block.fill(0);
        for (ib, Coded { points: [a, b, ..], .. }) in found.iter().enumerate() {
            block[2 * ib] = *a as u8;
            block[2 * ib + 1] = *b as u8;
            block[32 + ib] = (a >> 8 | b >> 8 << 4) as u8;
        }
        let max_scale = max_scale(found);
        if max_scale == 0.0 {
            return;
        }
        let mut packed = [0u16; 4];
        for ((ib, found), level) in found.iter().enumerate().zip(scale_levels(found)) {
            packed[ib / 4] |= u16::from(level) << (3 * (ib % 4));
            block[32 + ib] |= ((found.shift as u8 & 2) << 2) | ((found.shift as u8 & 1) << 7);
        }
        let d = if sumq2 > 0.0 { sumqx / sumq2 } else { max_scale / 15.0 };
        let scale = f16_bits(d * 1.1125);
        for (k, packed) in packed.iter().enumerate() {
            let word = packed | (scale >> (4 * k) & 15) << 12;
            block[48 + 2 * k..][..2].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn put_point(out: &mut [f32], grid: &codebook::Codebook<8>, point: usize, scale: f32, down: bool) {
    let delta = if down { -DELTA } else { DELTA };
    for (out, value) in out.iter_mut().zip(grid.values(point)) {
        *out = scale * (value + delta);
    }
}

/// Decodes IQ1_S (ggml's `dequantize_row_iq1_s`).
pub(super) fn dequantize_iq1_s(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq1();
    for (block, out) in blocks.chunks_exact(50).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (ib, out) in out.chunks_exact_mut(32).enumerate() {
            let high = u16::from_le_bytes([block[34 + 2 * ib], block[35 + 2 * ib]]);
            let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
            for (k, out) in out.chunks_exact_mut(8).enumerate() {
                let point = usize::from(block[2 + 4 * ib + k]) | usize::from(high >> (3 * k) & 7) << 8;
                put_point(out, grid, point, scale, high & 0x8000 != 0);
            }
        }
    }
}

/// The bits of IQ1_M's block scale, four in each word of sub-block scales.
fn iq1_m_scale(block: &[u8]) -> u16 {
    (0..4).fold(0, |d, k| d | u16::from(block[49 + 2 * k] >> 4) << (4 * k))
}

/// Whether the scale of an IQ1_M block is finite.
pub(super) fn iq1_m_is_sound(block: &[u8]) -> bool {
    iq1_m_scale(block) & 0x7c00 != 0x7c00
}

/// Decodes IQ1_M (ggml's `dequantize_row_iq1_m`).
pub(super) fn dequantize_iq1_m(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq1();
    for (block, out) in blocks.chunks_exact(56).zip(out.chunks_exact_mut(256)) {
        let packed: [u16; 4] = std::array::from_fn(|k| u16::from_le_bytes([block[48 + 2 * k], block[49 + 2 * k]]));
        let d = f16_at(&iq1_m_scale(block).to_le_bytes());
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let ib = k / 2;
            let scale = d * f32::from(2 * (packed[ib / 4] >> (3 * (ib % 4)) & 7) + 1);
            let high = block[32 + ib] >> (4 * (k % 2));
            let point = usize::from(block[k]) | usize::from(high & 7) << 8;
            put_point(out, grid, point, scale, high & 8 != 0);
        }
    }
}
