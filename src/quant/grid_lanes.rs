//! The search of [`grid_search`](super::grid_search) over lanes, eight sub-blocks at a time: the same points and
//! scales, sooner.
//!
//! ```text
//! per eight weights of a row: importance, signs, magnitudes
//! from here on, a lane is a sub-block:
//! every try rounds every magnitude; a group's cells that differ from those of the try before start a run
//! the nearest neighbours of all runs (grid_nearest.rs; grid_ends.rs where there are few, grid_lists.rs where many)
//! the best try; some groups again, with its scale; the last sums (grid_tries.rs)
//! ```
//!
//! A sub-block whose numbers leave the range where lanes and reference agree goes through the reference.
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::Rows;
use super::codebook::{Codebook, POINT};
use super::grid_nearest::Neighbours;
use super::grid_runs::TRIES;
use super::grid_search::{Coded, GridType, Plain, Rule, Search, Start, encode};
use super::grid_tries::{Columns, Tries, WRAPS, usable};
use super::lane_search::make_qp_quants;
use super::lanes::{Kernel, LANES, Lanes, Vector, columns};
use std::marker::PhantomData;

/// Importances beyond this could overflow in sums.
const HEAVY: f32 = 1e37;

/// The kernel of a grid type.
pub(super) struct OverLanes<T, const D: usize, const N: usize>(PhantomData<T>);

impl<T: GridType<D, N>, const D: usize, const N: usize> Kernel for OverLanes<T, D, N> {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let mut search = GridSearch::<L, D, N>::new(l, T::grid(), T::RULE);
        for (i, (x, out)) in rows.values.chunks(512).zip(out.chunks_mut(2 * T::BYTES)).enumerate() {
            // Two blocks, or the last one twice.
            let second = x.len() - 256;
            let at = [512 * i, 512 * i + second];
            let x = [&x[..256], &x[second..]];
            let (mut sigma2, mut weights) = (sums_of_squares(x), [None; 2]);
            for j in 0..2 {
                sigma2[j] = T::RULE.sigma * sigma2[j] / 256.0;
                weights[j] = rows.imatrix.map(|w| &w[at[j] % rows.row_len..][..256]);
            }
            if T::RULE.start == Start::Fit {
                search.fit(x, weights, sigma2);
            }
            for (j, block) in out.chunks_exact_mut(T::BYTES).enumerate() {
                search.turn = j;
                encode::<T, _, D, N>(&mut search, x[j], weights[j], sigma2[j], block);
            }
        }
    }
}

/// `sum_of_squares` of two blocks: one sum waits less while the other is added to.
#[inline(always)]
fn sums_of_squares(x: [&[f32]; 2]) -> [f32; 2] {
    let mut sums = [0.0; 2];
    for (a, b) in x[0].iter().zip(x[1]) {
        sums = [sums[0] + a * a, sums[1] + b * b];
    }
    sums
}

/// A codebook and a rule, ready for lanes, and room for eight sub-blocks.
pub(super) struct GridSearch<L: Lanes, const D: usize, const N: usize> {
    pub(super) l: L,
    pub(super) grid: &'static Codebook<D>,
    pub(super) rule: Rule,
    /// What the levels stand for.
    pub(super) q: L::F32,
    /// Numerators of the inverse scales, by try.
    numerators: [f32; TRIES],
    pub(super) tries: usize,
    /// By sub-block: importance, magnitudes and signs as in the reference.
    weight: [[f32; N]; LANES],
    magnitude: [[f32; N]; LANES],
    signs: [[u8; 4]; LANES],
    /// The fitted plain scales of two blocks, and which block is at hand.
    starts: [L::F32; 2],
    turn: usize,
    pub(super) neighbours: Neighbours<L, D>,
}

impl<L: Lanes, const D: usize, const N: usize> Search<N> for GridSearch<L, D, N> {
    #[inline(always)]
    fn code_eight(&mut self, x: &[f32], weights: Option<&[f32]>, sigma2: f32, found: &mut [Coded; 8]) {
        self.search(self.l, x, weights, sigma2, found);
    }
}

impl<L: Lanes, const D: usize, const N: usize> GridSearch<L, D, N> {
    /// Groups of a sub-block.
    pub(super) const GROUPS: usize = N / D;

    #[inline(always)]
    fn new(l: L, grid: &'static Codebook<D>, rule: Rule) -> Self {
        let mut q = [0.0; LANES];
        for (i, q) in q.iter_mut().enumerate() {
            // Packed levels of two bits are looked up with a third, which belongs to the next coordinate.
            *q = (2 * (i % (1 << Codebook::<D>::BITS)) + 1) as f32;
        }
        let q = l.load(&q);
        let tries = 2 * rule.half_tries as usize + 1;
        let mut numerators = [0.0; TRIES];
        for (t, numerator) in numerators[..tries].iter_mut().enumerate() {
            *numerator = rule.top + (t as i32 - rule.half_tries) as f32 * rule.step;
        }
        GridSearch {
            l,
            grid,
            rule,
            q,
            numerators,
            tries,
            weight: [[0.0; N]; LANES],
            magnitude: [[0.0; N]; LANES],
            signs: [[0; 4]; LANES],
            starts: [l.splat(0.0); 2],
            turn: 0,
            neighbours: Neighbours::new(l, grid, q),
        }
    }

    /// Fits the plain scales of two blocks of eight sub-blocks.
    #[inline(always)]
    fn fit(&mut self, x: [&[f32]; 2], weights: [Option<&[f32]>; 2], sigma2: [f32; 2]) {
        let l = self.l;
        let (mut magnitude, mut weight) = ([[l.splat(0.0); N]; 2], [[l.splat(0.0); N]; 2]);
        for j in 0..2 {
            self.prepare(x[j], weights[j], sigma2[j]);
            (magnitude[j], weight[j]) = (columns(l, &self.magnitude), columns(l, &self.weight));
        }
        let zero = l.wide().splat(0.0);
        let (mut both, mut weights) = ([zero; N], [zero; N]);
        for i in 0..N {
            both[i] = l.join([magnitude[0][i], magnitude[1][i]]);
            weights[i] = l.join([weight[0][i], weight[1][i]]);
        }
        let (starts, _) = make_qp_quants(l.wide(), 4, &both, &weights);
        self.starts = l.split(starts);
    }

    /// The search of eight sub-blocks.
    #[inline(always)]
    fn search(&mut self, l: L, x: &[f32], weights: Option<&[f32]>, sigma2: f32, found: &mut [Coded; 8]) {
        let zero = l.splat(0.0);
        self.prepare(x, weights, sigma2);
        let (magnitude, weight) = (columns(l, &self.magnitude), columns(l, &self.weight));
        let mut weighted = [zero; N];
        let (mut max, mut reach) = (magnitude[0], zero);
        let mut sound = l.eq(zero, zero);
        for i in 0..N {
            weighted[i] = weight[i] * magnitude[i];
            max = l.max(max, magnitude[i]);
            reach = l.max(l.abs(magnitude[i]), reach);
            sound = sound & l.lt(weight[i], l.splat(HEAVY));
        }
        let empty = l.lt(max, l.splat(self.rule.least));
        let (max, start) = match self.rule.start {
            Start::Largest => (max, max / l.splat(self.rule.top)),
            Start::Fit => {
                let start = self.starts[self.turn % 2];
                (start * l.splat(3.0), start)
            }
        };
        // What is no number goes on, and to the reference.
        let present = !(empty | l.lt(max, zero) | l.eq(max, zero));

        let mut tries = Tries { half_inverse: [zero; TRIES], scale: [zero; TRIES] };
        let mut inverse = zero;
        for t in 0..self.tries {
            inverse = l.splat(self.numerators[t]) / max;
            tries.half_inverse[t] = l.splat(0.5) * inverse;
            tries.scale[t] = l.splat(1.0) / inverse;
        }
        let last = tries.scale[self.tries - 1];
        let sound =
            present & sound & l.lt(reach * inverse, l.splat(WRAPS)) & usable(l, tries.scale[0]) & usable(l, last);
        let sound_bits = l.bits(sound) & 0xff;
        let mut unsound = l.bits(present) & !sound_bits & 0xff;
        let (mut scale, mut words) = (start, [[0; LANES]; LANES]);
        if sound_bits != 0 {
            let halves = tries.half_inverse.as_chunks().0;
            for (eight, (scales, halves)) in tries.scale.as_chunks().0.iter().zip(halves).enumerate() {
                let (at, scales, halves) = (LANES * eight, l.transpose(*scales), l.transpose(*halves));
                for lane in 0..LANES {
                    self.neighbours.scales[lane][at..][..LANES].copy_from_slice(&l.store(scales[lane]));
                    let inverses = halves[lane] + halves[lane];
                    self.neighbours.inverses[lane][at..][..LANES].copy_from_slice(&l.store(inverses));
                }
            }
            let columns = Columns { magnitude, weight, weighted };
            self.start_runs(l, &columns, &tries, sound);
            // Runs of all tries, then those of the groups to be chosen again: a loop, so that the code is there once.
            let mut again = None;
            loop {
                self.neighbours.choose(inverse);
                if let Some(again) = again {
                    scale = self.fit_again(l, &columns, scale, &mut words, again);
                    break;
                }
                (scale, words) = self.best_try(l, &columns, start);
                let (groups, left) = self.start_again(l, &columns, &tries, scale, &mut words, reach, sound);
                unsound |= left;
                inverse = groups.inverse;
                again = Some(groups);
            }
        }
        let scale = l.store(scale);
        let present = l.bits(present);
        for (i, found) in found.iter_mut().enumerate() {
            *found = if unsound >> i & 1 == 1 {
                let weights = weights.map(|w| &w[N * i..][..N]);
                self.grid.code::<N>(&self.rule, &x[N * i..][..N], weights, sigma2)
            } else if present >> i & 1 == 1 {
                let mut own = [0; 8];
                for k in 0..Self::GROUPS {
                    own[k] = (words[k][i] & POINT) as u16;
                }
                Coded::new(&self.rule, scale[i], own, self.signs[i])
            } else {
                Coded::default()
            };
        }
    }

    /// Importance, signs and magnitudes of eight sub-blocks.
    #[inline(always)]
    fn prepare(&mut self, x: &[f32], weights: Option<&[f32]>, sigma2: f32) {
        let l = self.l;
        let (zero, sigma2, quarter) = (l.splat(0.0), l.splat(sigma2), l.splat(0.25 * sigma2));
        // Flips the sign of one lane, or of none.
        let mut flips = [[0; LANES]; LANES + 1];
        for (lane, flip) in flips[..LANES].iter_mut().enumerate() {
            flip[lane] = i32::MIN;
        }
        let (weight, magnitude) = (self.weight.as_flattened_mut(), self.magnitude.as_flattened_mut());
        for v in 0..N {
            let x = l.load_at(&x[LANES * v..]);
            let w = match (weights, self.rule.plain) {
                (Some(weights), _) => l.load_at(&weights[LANES * v..]) * l.sqrt(sigma2 + x * x),
                (None, Plain::Ones) => l.sqrt(sigma2 + x * x),
                (None, Plain::Square) => x * x,
                (None, Plain::QuarterAndSquare) => quarter + x * x,
            };
            let mut m = l.abs(x);
            let mut signs = l.bits(l.lt(x, zero)) as u8;
            if self.rule.even_signs {
                let cost = w * x * x;
                let first = (l.bits(l.eq(cost, l.least(cost))) | 0x80).trailing_zeros() as usize;
                let odd = signs.count_ones() % 2 == 1;
                m = l.from_bits(l.to_bits(m) ^ l.load_i(&flips[if odd { first } else { LANES }]));
                signs = (signs ^ u8::from(odd) << first) & 127;
            }
            weight[LANES * v..][..LANES].copy_from_slice(&l.store(w));
            magnitude[LANES * v..][..LANES].copy_from_slice(&l.store(m));
            self.signs[v * LANES / N][v % (N / LANES)] = signs;
        }
    }
}
