//! The search of [`iq1`](super::iq1) over lanes: the same order, split and points, sooner.
//!
//! ```text
//! order: eight weights in the lanes count the smaller ones and the equal ones before them
//! split: eight ends of the middle run in the lanes; those that beat the best so far (few do) are offered in order
//! neighbours: eight candidates in the lanes
//! ```
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::Rows;
use super::codebook::Near;
use super::grid_lanes::{LONGEST, nearest_exactly};
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

/// Whether a split could be better: what [`Best::offer`] tests.
#[inline(always)]
fn beats<L: Lanes>(l: L, sumqx: L::F32, sumq2: L::F32, score: L::F32) -> L::Mask {
    l.lt(l.splat(0.0), sumq2) & l.lt(score * sumq2, sumqx * sumqx)
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
        let mut best = Best::new();
        for i1 in 0..=32 {
            let (lower_x, lower_w) = (sumx[i1] - sumx[0], sumw[i1] - sumw[0]);
            for i2 in (i1..=32).step_by(LANES) {
                let middle_x = l.load_at(&sumx[i2..]) - l.splat(sumx[i1]);
                let middle_w = l.load_at(&sumw[i2..]) - l.splat(sumw[i1]);
                // The middle value is squared, so its sign does not matter.
                let middle_w = middle_w * l.splat(UP[1]) * l.splat(UP[1]);
                let qx_up = l.splat(lower_x * UP[0]) + middle_x * l.splat(UP[1]) + l.load_at(&x_up[i2..]);
                let qx_down = l.splat(lower_x * DOWN[0]) + middle_x * l.splat(DOWN[1]) + l.load_at(&x_down[i2..]);
                let q2_up = l.splat(lower_w * UP[0] * UP[0]) + middle_w + l.load_at(&w_up[i2..]);
                let q2_down = l.splat(lower_w * DOWN[0] * DOWN[0]) + middle_w + l.load_at(&w_down[i2..]);
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
        let mut best = Best::new();
        for i1 in 0..=16 {
            for i2 in (i1..=16).step_by(LANES) {
                let (mut qx, mut q2) = ([[l.splat(0.0); 2]; 2], [[l.splat(0.0); 2]; 2]);
                for h in 0..2 {
                    let sx = l.splat(px[h][i1]) + l.load_at(&px[h][i2..]);
                    for (s, v) in [UP, DOWN].iter().enumerate() {
                        qx[h][s] = l.splat(all_x[h][s]) - sx;
                        let lower = pw[h][i1] * (v[0] * v[0] - v[1] * v[1]);
                        q2[h][s] = l.splat(all_w[h][s] + lower) + l.load_at(&upper[h][s][i2..]);
                    }
                }
                let score = l.splat(best.score);
                let (mut sumqx, mut sumq2) = ([l.splat(0.0); 4], [l.splat(0.0); 4]);
                for k in 0..4 {
                    sumqx[k] = qx[0][k / 2] + qx[1][k % 2];
                    sumq2[k] = q2[0][k / 2] + q2[1][k % 2];
                }
                let any = beats(l, sumqx[0], sumq2[0], score)
                    | beats(l, sumqx[1], sumq2[1], score)
                    | beats(l, sumqx[2], sumq2[2], score)
                    | beats(l, sumqx[3], sumq2[3], score);
                let mut places = l.bits(any);
                if places != 0 {
                    let (mut qx, mut q2) = ([[0.0; LANES]; 4], [[0.0; LANES]; 4]);
                    for k in 0..4 {
                        (qx[k], q2[k]) = (l.store(sumqx[k]), l.store(sumq2[k]));
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
        near.points[nearest_exactly(l, near, q, x, weight, scale, &mut self.errors)]
    }
}
