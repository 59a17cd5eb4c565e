//! The search of [`iq1`](super::iq1) over lanes: the same order, split and points, sooner.
//!
//! ```text
//! order: eight weights in the lanes count the smaller ones and the equal ones before them
//! split: eight ends of the middle run in the lanes; those that beat a good split found first (few do) are offered in
//! order
//! neighbours: eight candidates in the lanes
//! ```
//!
//! **Why a good split may be found first.** Offered in order, splits are compared with the best so far, each comparison
//! off by a few half-ulps. Offering only those above a threshold changes what is the best so far only while that is
//! at most the threshold, grown by those half-ulps per split: by 2^-11 at most. So once a split that is 2^-10 above the
//! threshold is offered, which the good one is, everything goes on as without it ([`threshold`]).
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::Rows;
use super::codebook::Near;
use super::grid_nearest::{LONGEST, nearest_exactly};
use super::iq1::{Best, DOWN, Iq1, Search, Split, UP, reference};
use super::lanes::{Kernel, LANES, Lanes};
use std::marker::PhantomData;

/// The kernel of IQ1_S and IQ1_M.
pub(super) struct OverLanes<T>(PhantomData<T>);

impl<T: Iq1> Kernel for OverLanes<T> {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        if !L::FAST_BITS {
            let row_bytes = rows.row_len / 256 * T::BYTES;
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(row_bytes)) {
                reference::<T>(row, rows.imatrix, out);
            }
            return;
        }
        let mut search = LaneSearch { l, errors: [l.splat(0.0); LONGEST] };
        for (i, (x, block)) in rows.values.chunks_exact(256).zip(out.chunks_exact_mut(T::BYTES)).enumerate() {
            let weights = rows.imatrix.map(|w| &w[256 * i % rows.row_len..][..256]);
            T::encode(&mut search, x, weights, block);
        }
    }
}

/// The search over lanes.
struct LaneSearch<L: Lanes> {
    l: L,
    errors: [L::F32; LONGEST],
}

/// Numbers by the end of the middle run, and room for whole vectors from any start.
type Ends = [f32; 48];

/// What IQ1_S's sums follow from.
struct SumsS<L: Lanes> {
    l: L,
    /// Prefix sums.
    sumx: Ends,
    sumw: Ends,
    /// The upper run's part, by its start and shift.
    x_up: Ends,
    x_down: Ends,
    w_up: Ends,
    w_down: Ends,
}

impl<L: Lanes> SumsS<L> {
    /// `sumqx` and `sumq2` of the eight splits from `(i1, i2)` on, shifted up and down.
    #[inline(always)]
    fn at(&self, i1: usize, i2: usize) -> [(L::F32, L::F32); 2] {
        let l = self.l;
        let (lower_x, lower_w) = (self.sumx[i1] - self.sumx[0], self.sumw[i1] - self.sumw[0]);
        let middle_x = l.load_at(&self.sumx[i2..]) - l.splat(self.sumx[i1]);
        let middle_w = l.load_at(&self.sumw[i2..]) - l.splat(self.sumw[i1]);
        // The middle value is squared, so its sign does not matter.
        let middle_w = middle_w * l.splat(UP[1]) * l.splat(UP[1]);
        let qx_up = l.splat(lower_x * UP[0]) + middle_x * l.splat(UP[1]) + l.load_at(&self.x_up[i2..]);
        let qx_down = l.splat(lower_x * DOWN[0]) + middle_x * l.splat(DOWN[1]) + l.load_at(&self.x_down[i2..]);
        let q2_up = l.splat(lower_w * UP[0] * UP[0]) + middle_w + l.load_at(&self.w_up[i2..]);
        let q2_down = l.splat(lower_w * DOWN[0] * DOWN[0]) + middle_w + l.load_at(&self.w_down[i2..]);
        [(qx_up, q2_up), (qx_down, q2_down)]
    }
}

/// What IQ1_M's sums follow from, by half and shift.
struct SumsM<L: Lanes> {
    l: L,
    /// Prefix sums, by half.
    px: [[f32; 32]; 2],
    pw: [[f32; 32]; 2],
    /// What does not depend on the split, and the upper run's part by its start.
    all_x: [[f32; 2]; 2],
    all_w: [[f32; 2]; 2],
    upper: [[[f32; 32]; 2]; 2],
}

impl<L: Lanes> SumsM<L> {
    /// `sumqx` and `sumq2` of the eight splits from `(i1, i2)` on, by shifts.
    #[inline(always)]
    fn at(&self, i1: usize, i2: usize) -> [(L::F32, L::F32); 4] {
        let l = self.l;
        let (mut qx, mut q2) = ([[l.splat(0.0); 2]; 2], [[l.splat(0.0); 2]; 2]);
        for h in 0..2 {
            let sx = l.splat(self.px[h][i1]) + l.load_at(&self.px[h][i2..]);
            for (s, v) in [UP, DOWN].iter().enumerate() {
                qx[h][s] = l.splat(self.all_x[h][s]) - sx;
                let lower = self.pw[h][i1] * (v[0] * v[0] - v[1] * v[1]);
                q2[h][s] = l.splat(self.all_w[h][s] + lower) + l.load_at(&self.upper[h][s][i2..]);
            }
        }
        let mut sums = [(l.splat(0.0), l.splat(0.0)); 4];
        for (k, sums) in sums.iter_mut().enumerate() {
            *sums = (qx[0][k / 2] + qx[1][k % 2], q2[0][k / 2] + q2[1][k % 2]);
        }
        sums
    }
}

/// Whether a split could be better: what [`Best::offer`] tests.
#[inline(always)]
fn beats<L: Lanes>(l: L, sumqx: L::F32, sumq2: L::F32, score: L::F32) -> L::Mask {
    l.lt(l.splat(0.0), sumq2) & l.lt(score * sumq2, sumqx * sumqx)
}

/// What a split must exceed to be offered when one of this score exists: too little to matter where numbers leave the
/// range in which rounding is relative. `weight` is the sum of the weights; `sumq2` is between its 64th and its double.
#[inline(always)]
fn threshold(score: f32, weight: f32) -> f32 {
    if score * weight > 1e-28 && score * weight < 1e30 && weight > 1e-30 && weight < 1e30 {
        score * (1.0 - 1.0 / 1024.0)
    } else {
        f32::MIN
    }
}

/// The larger of `best` and the scores of splits.
#[inline(always)]
fn better_score<L: Lanes>(l: L, best: L::F32, sumqx: L::F32, sumq2: L::F32) -> L::F32 {
    let score = sumqx * sumqx / sumq2;
    l.select(l.lt(l.splat(0.0), sumq2) & l.lt(best, score), score, best)
}

/// The largest lane.
#[inline(always)]
fn largest<L: Lanes>(l: L, v: L::F32) -> f32 {
    let zero = l.splat(0.0);
    l.store(zero - l.least(zero - v))[0]
}

impl<L: Lanes> Search for LaneSearch<L> {
    /// Infinite weights are refused before any search, so the order is total.
    #[inline(always)]
    fn ascending<const N: usize>(&mut self, x: &[f32]) -> [u8; N] {
        let l = self.l;
        let mut order = [0; N];
        let numbers = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        for v in 0..N / LANES {
            let here = l.load_at(&x[v * LANES..]);
            // How many come before: not smaller ones count −1 from all, so that each comparison is one subtraction.
            let mut place = l.splat_i(0);
            for (j, &other) in x[..N].iter().enumerate() {
                let other = l.splat(other);
                if j < v * LANES {
                    place = place - l.splat_i(1) - l.ones(l.lt(here, other));
                } else if j >= (v + 1) * LANES {
                    place = place + l.ones(l.lt(other, here));
                } else {
                    let equal_before = l.eq(other, here) & l.lt_i(l.splat_i((j - v * LANES) as i32), numbers);
                    place = place + l.ones(l.lt(other, here) | equal_before);
                }
            }
            for (i, place) in l.store_i(place).into_iter().enumerate() {
                order[(-place) as usize % N] = (v * LANES + i) as u8;
            }
        }
        order
    }

    #[inline(always)]
    fn split_s(&mut self, x: &[f32], weight: &[f32; 32], order: &[u8; 32]) -> Option<Split> {
        let l = self.l;
        let (mut sumx, mut sumw) = ([0.0; 48], [0.0; 48]);
        for (j, &i) in order.iter().enumerate() {
            let i = i as usize & 31;
            sumx[j + 1] = sumx[j] + weight[i] * x[i];
            sumw[j + 1] = sumw[j] + weight[i];
        }
        // The upper run's part, by its start; places beyond the end never beat anything.
        let (mut x_up, mut x_down): (Ends, Ends) = ([0.0; 48], [0.0; 48]);
        let (mut w_up, mut w_down): (Ends, Ends) = ([f32::NEG_INFINITY; 48], [f32::NEG_INFINITY; 48]);
        for i in 0..=32 {
            x_up[i] = (sumx[32] - sumx[i]) * UP[2];
            x_down[i] = (sumx[32] - sumx[i]) * DOWN[2];
            w_up[i] = (sumw[32] - sumw[i]) * UP[2] * UP[2];
            w_down[i] = (sumw[32] - sumw[i]) * DOWN[2] * DOWN[2];
        }
        let sums = SumsS { l, sumx, sumw, x_up, x_down, w_up, w_down };
        let mut good = l.splat(0.0);
        for i1 in [4, 8, 12, 16] {
            for i2 in (i1..=32).step_by(LANES) {
                let [(qx_up, q2_up), (qx_down, q2_down)] = sums.at(i1, i2);
                good = better_score(l, better_score(l, good, qx_up, q2_up), qx_down, q2_down);
            }
        }
        let mut best = Best { score: threshold(largest(l, good), sumw[32]), split: None };
        for i1 in 0..=32 {
            for i2 in (i1..=32).step_by(LANES) {
                let [(qx_up, q2_up), (qx_down, q2_down)] = sums.at(i1, i2);
                let score = l.splat(best.score);
                let up = beats(l, qx_up, q2_up, score);
                let down = beats(l, qx_down, q2_down, score);
                let mut places = l.bits(up | down);
                if places != 0 {
                    let (qx, q2) = ([l.store(qx_up), l.store(qx_down)], [l.store(q2_up), l.store(q2_down)]);
                    while places != 0 {
                        let i = places.trailing_zeros() as usize % LANES;
                        places &= places - 1;
                        best.offer(qx[0][i], q2[0][i], (i1, i2 + i), 0);
                        best.offer(qx[1][i], q2[1][i], (i1, i2 + i), 1);
                    }
                }
            }
        }
        best.split
    }

    #[inline(always)]
    fn split_m(&mut self, x: &[f32], weight: &[f32; 16], order: &[u8; 16]) -> Option<Split> {
        let l = self.l;
        let (mut px, mut pw) = ([[0.0; 32]; 2], [[0.0; 32]; 2]);
        for (j, &i) in order.iter().enumerate() {
            let i = i as usize & 15;
            let half = i / 8;
            for h in 0..2 {
                (px[h][j + 1], pw[h][j + 1]) = (px[h][j], pw[h][j]);
            }
            px[half][j + 1] += weight[i] * x[i];
            pw[half][j + 1] += weight[i];
        }
        // By half and shift: what does not depend on the split, and the upper run's part by its start.
        let (mut all_x, mut all_w, mut upper) = ([[0.0; 2]; 2], [[0.0; 2]; 2], [[[f32::NEG_INFINITY; 32]; 2]; 2]);
        for h in 0..2 {
            for (s, v) in [UP, DOWN].iter().enumerate() {
                all_x[h][s] = px[h][16] * v[2];
                all_w[h][s] = pw[h][16] * v[2] * v[2];
                for i in 0..=16 {
                    upper[h][s][i] = pw[h][i] * (v[1] * v[1] - v[2] * v[2]);
                }
            }
        }
        let weight = pw[0][16] + pw[1][16];
        let sums = SumsM { l, px, pw, all_x, all_w, upper };
        let mut good = l.splat(0.0);
        for i1 in [3, 6] {
            for (sumqx, sumq2) in sums.at(i1, 8) {
                good = better_score(l, good, sumqx, sumq2);
            }
        }
        let mut best = Best { score: threshold(largest(l, good), weight), split: None };
        for i1 in 0..=16 {
            for i2 in (i1..=16).step_by(LANES) {
                let sums = sums.at(i1, i2);
                let score = l.splat(best.score);
                let any = beats(l, sums[0].0, sums[0].1, score)
                    | beats(l, sums[1].0, sums[1].1, score)
                    | beats(l, sums[2].0, sums[2].1, score)
                    | beats(l, sums[3].0, sums[3].1, score);
                let mut places = l.bits(any);
                if places != 0 {
                    let (mut qx, mut q2) = ([[0.0; LANES]; 4], [[0.0; LANES]; 4]);
                    for k in 0..4 {
                        (qx[k], q2[k]) = (l.store(sums[k].0), l.store(sums[k].1));
                    }
                    while places != 0 {
                        let i = places.trailing_zeros() as usize % LANES;
                        places &= places - 1;
                        for k in 0..4 {
                            best.offer(qx[k][i], q2[k][i], (i1, i2 + i), k);
                        }
                    }
                }
            }
        }
        best.split
    }

    #[inline(always)]
    fn nearest(&mut self, near: Near<'_>, x: &[f32; 8], weight: &[f32; 8], scale: f32, values: &[f32; 3]) -> u16 {
        let l = self.l;
        // Packed levels of two bits are looked up with a third, which belongs to the next coordinate.
        let [a, b, c] = *values;
        let q = l.load(&[a, b, c, c, a, b, c, c]);
        near.points()[nearest_exactly(l, near, q, x, weight, scale, &mut self.errors)]
    }
}
