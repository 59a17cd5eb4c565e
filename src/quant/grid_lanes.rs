//! The search of [`grid_search`](super::grid_search) over lanes, eight sub-blocks at a time: the same points and
//! scales, sooner.
//!
//! ```text
//! per eight weights of a row: importance, signs, magnitudes
//! from here on, a lane is a sub-block:
//! every try rounds every magnitude; a group's cells that differ from those of the try before start a run
//! the nearest neighbours of all runs (grid_nearest.rs)
//! four tries at a time are summed up, and compared in their order
//! the groups to be chosen again are runs of one try, with the scale that was found; then the last sums
//! ```
//!
//! A sub-block whose numbers leave the range where lanes and reference agree goes through the reference.
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::Rows;
use super::codebook::Codebook;
use super::grid_nearest::{Neighbours, next_level};
use super::grid_runs::{OFF_GRID, POINT, TRIES, UNCLEAR, Word, Words};
use super::grid_search::{Again, Coded, GridType, Plain, Rule, Search, Start, encode};
use super::lane_search::make_qp_quants;
use super::lanes::{Kernel, LANES, Lanes, Vector, columns};
use std::marker::PhantomData;

/// Beyond this, rounding to a level would wrap.
const WRAPS: f32 = 2e6;
/// Scales beyond this, or below its reciprocal, could make squares overflow or vanish.
const LARGE: f32 = 1e15;
/// Importances beyond this could overflow in sums.
const HEAVY: f32 = 1e37;
/// Tries that are summed up at once.
const AT_ONCE: usize = 4;

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
struct GridSearch<L: Lanes, const D: usize, const N: usize> {
    l: L,
    grid: &'static Codebook<D>,
    rule: Rule,
    /// What the levels stand for.
    q: L::F32,
    /// Numerators of the inverse scales, by try.
    numerators: [f32; TRIES],
    tries: usize,
    /// By sub-block: importance, magnitudes and signs as in the reference.
    weight: [[f32; N]; LANES],
    magnitude: [[f32; N]; LANES],
    signs: [[u8; 4]; LANES],
    /// The fitted plain scales of two blocks, and which block is at hand.
    starts: [L::F32; 2],
    turn: usize,
    neighbours: Neighbours<L, D>,
}

/// The tries of eight sub-blocks: half their inverse scales, in ascending order, and their scales.
struct Tries<L: Lanes> {
    half_inverse: [L::F32; TRIES],
    scale: [L::F32; TRIES],
}

/// What is chosen again, of eight sub-blocks.
#[derive(Clone, Copy)]
struct Rechosen<L: Lanes> {
    /// Sub-blocks with a part in it.
    wanted: L::Mask,
    /// Those of which the group was looked at, by group.
    groups: [L::Mask; LANES],
}

/// Eight sub-blocks by column.
struct Columns<L: Lanes, const N: usize> {
    magnitude: [L::F32; N],
    weight: [L::F32; N],
    /// `weight` times `magnitude`.
    weighted: [L::F32; N],
}

impl<L: Lanes, const D: usize, const N: usize> Search<N> for GridSearch<L, D, N> {
    #[inline(always)]
    fn code_eight(&mut self, x: &[f32], weights: Option<&[f32]>, sigma2: f32, found: &mut [Coded; 8]) {
        self.search(self.l, x, weights, sigma2, found);
    }
}

impl<L: Lanes, const D: usize, const N: usize> GridSearch<L, D, N> {
    /// Groups of a sub-block.
    const GROUPS: usize = N / D;

    #[inline(always)]
    fn new(l: L, grid: &'static Codebook<D>, rule: Rule) -> Self {
        let mut q = [0.0; LANES];
        for (i, q) in q.iter_mut().enumerate() {
            // Packed levels of two bits are looked up with a third, which belongs to the next coordinate.
            *q = (2 * (i % (1 << grid.bits)) + 1) as f32;
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
            self.start_runs(l, &columns, &tries, sound_bits);
            // Runs of all tries, then those of the groups to be chosen again: a loop, so that the code is there once.
            let mut again = None;
            loop {
                self.neighbours.choose();
                if let Some(again) = again {
                    scale = self.fit_again(l, &columns, scale, &mut words, again);
                    break;
                }
                (scale, words) = self.best_try(l, &columns, start);
                let (groups, left) = self.start_again(l, &columns, &tries, scale, &mut words, reach, sound);
                unsound |= left;
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

    /// Rounds every magnitude in every try and notes the runs of equal cells, for the sub-blocks of `bits`.
    #[inline(always)]
    fn start_runs(&mut self, l: L, columns: &Columns<L, N>, tries: &Tries<L>, bits: u32) {
        self.neighbours.clear();
        for k in 0..Self::GROUPS {
            let magnitude = &columns.magnitude[D * k..][..D];
            let mut root = [l.splat(0.0); D];
            for i in 0..D {
                root[i] = l.sqrt(columns.weight[D * k + i]);
            }
            self.neighbours.set_group(k, magnitude, &root, tries.scale[0]);
            let (mut changed, mut cells) = ([0; TRIES], [[0; LANES]; TRIES]);
            let mut before = l.splat_i(-1);
            for t in 0..self.tries {
                let cell = self.cell(l, magnitude, tries.half_inverse[t]);
                changed[t] = (!l.bits(l.eq_i(cell, before)) & bits) as u8;
                cells[t] = l.store_i(cell);
                before = cell;
            }
            self.neighbours.next_group();
            for (eight, changed) in changed.as_chunks::<8>().0.iter().enumerate() {
                let mut changed = u64::from_le_bytes(*changed);
                while changed != 0 {
                    let place = changed.trailing_zeros() as usize;
                    changed &= changed - 1;
                    let (t, lane) = ((8 * eight + place / LANES) % TRIES, place % LANES);
                    self.neighbours.start_run(k, lane, cells[t][lane] as usize, t, self.tries);
                }
            }
        }
    }

    /// The cells of eight groups under half an inverse scale each.
    #[inline(always)]
    fn cell(&self, l: L, magnitude: &[L::F32], half_inverse: L::F32) -> L::I32 {
        let (zero, half) = (l.splat(0.0), l.splat(0.5));
        let (radix, last) = (l.splat(self.grid.radix as f32), l.splat((self.grid.radix - 1) as f32));
        let mut cell = zero;
        for &x in magnitude.iter().rev() {
            // Half of `inverse * x - 1`: halves are exact, but for products that the 1 swallows.
            let level = l.nearest(half_inverse * x - half);
            cell = cell * radix + l.clamp(level, zero, last);
        }
        l.truncate(cell)
    }

    /// Sums up all tries and keeps the best: its scale and its words.
    #[inline(always)]
    fn best_try(&mut self, l: L, columns: &Columns<L, N>, mut scale: L::F32) -> (L::F32, Words) {
        let zero = l.splat(0.0);
        let mut best = zero;
        let mut best_try = l.splat_i(-1);
        for eight in 0..self.tries.div_ceil(LANES) {
            // By try and group, a lane being a sub-block.
            let mut index = [[l.splat_i(0); LANES]; LANES];
            for k in 0..Self::GROUPS {
                let mut rows = [zero; LANES];
                for (row, words) in rows.iter_mut().zip(&self.neighbours.words[k]) {
                    *row = l.from_bits(l.shr::<16>(l.load_i_at(&words[LANES * eight..])));
                }
                for (index, words) in index.iter_mut().zip(l.transpose(rows)) {
                    index[k] = l.to_bits(words);
                }
            }
            for (half, index) in index.as_chunks::<AT_ONCE>().0.iter().enumerate() {
                let first = LANES * eight + AT_ONCE * half;
                if first >= self.tries {
                    break;
                }
                for (t, (sumqx, sumq2)) in (first..self.tries).zip(self.sums(l, columns, *index)) {
                    let better = l.lt(zero, sumq2) & l.lt(best * sumq2, sumqx * sumqx);
                    scale = l.select(better, sumqx / sumq2, scale);
                    best = l.select(better, scale * sumqx, best);
                    best_try = l.select_i(better, l.splat_i(t as i32), best_try);
                }
            }
        }
        let off = if self.rule.again == Again::AllIfOffGrid { OFF_GRID } else { 0 };
        let mut words = [[off | Word::from(self.grid.packed[0]) << 16; LANES]; LANES];
        for (lane, t) in l.store_i(best_try).into_iter().enumerate() {
            if t >= 0 {
                for k in 0..Self::GROUPS {
                    words[k][lane] = self.neighbours.words[k][lane][t as usize % TRIES];
                }
            }
        }
        (scale, words)
    }

    /// `sumqx` and `sumq2` of eight sub-blocks under the packed levels of `T` tries.
    #[inline(always)]
    fn sums<const T: usize>(
        &self,
        l: L,
        columns: &Columns<L, N>,
        mut index: [[L::I32; LANES]; T],
    ) -> [(L::F32, L::F32); T] {
        let mut sums = [(l.splat(0.0), l.splat(0.0)); T];
        for i in 0..N {
            let (wx, w) = (columns.weighted[i], columns.weight[i]);
            for j in 0..T {
                let q = l.lookup(self.q, index[j][i / D]);
                sums[j] = (sums[j].0 + wx * q, sums[j].1 + w * q * q);
                index[j][i / D] = next_level::<L, D>(l, index[j][i / D]);
            }
        }
        sums
    }

    /// Notes the runs of one try, with the scale that was found, of the groups whose words are to be chosen again. Also
    /// returns the sub-blocks that are left to the reference.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // what the search knows of eight sub-blocks
    fn start_again(
        &mut self,
        l: L,
        columns: &Columns<L, N>,
        tries: &Tries<L>,
        scale: L::F32,
        words: &mut Words,
        reach: L::F32,
        sound: L::Mask,
    ) -> (Rechosen<L>, u32) {
        let zero = l.splat(0.0);
        let mut off_grid = [l.lt(zero, zero); LANES];
        let mut any_off_grid = l.lt(zero, zero);
        for k in 0..Self::GROUPS {
            let flag = l.load_i(&words[k]) & l.splat_i(OFF_GRID);
            off_grid[k] = l.lt_i(l.splat_i(0), flag);
            any_off_grid = any_off_grid | off_grid[k];
        }
        let mut wanted = sound & l.lt(zero, scale);
        if self.rule.again != Again::All {
            wanted = wanted & any_off_grid;
        }
        let inverse = l.splat(1.0) / scale;
        let safe =
            l.lt(reach * inverse, l.splat(WRAPS)) & usable(l, scale) & l.lt(scale, l.splat(2.0) * tries.scale[0]);
        let left = l.bits(wanted & !safe) & 0xff;
        wanted = wanted & safe;
        let half_inverse = l.splat(0.5) * inverse;
        // How many tries come before the scale; not the same for both where it is too near one to tell.
        let (mut before, mut larger) = (l.splat_i(0), l.splat_i(0));
        for t in 0..self.tries {
            before = before - l.ones(!l.lt(half_inverse, tries.half_inverse[t]));
            larger = larger - l.ones(!l.lt(tries.scale[t], scale));
        }
        let (none, all) = (l.splat_i(0), l.splat_i(self.tries as i32));
        let between = l.eq_i(before, larger) & l.lt_i(none, before) & l.lt_i(before, all);
        let before = l.store_i(before - l.splat_i(1));
        self.neighbours.clear();
        let mut again = Rechosen { wanted, groups: [l.lt(zero, zero); LANES] };
        for k in 0..Self::GROUPS {
            self.neighbours.next_group();
            let mut chosen = wanted;
            if self.rule.again == Again::OffGrid {
                chosen = chosen & off_grid[k];
            }
            // Between two tries of a run with the same word, nothing else can be chosen.
            let (mut left, mut right) = ([0; LANES], [0; LANES]);
            for lane in 0..LANES {
                let words = &self.neighbours.words[k][lane][before[lane] as usize % TRIES..];
                (left[lane], right[lane]) = (words[0], words[1]);
            }
            let (left, right) = (l.load_i(&left), l.load_i(&right));
            let same = l.eq_i(left, right) & l.eq_i(left & l.splat_i(UNCLEAR), l.splat_i(0)) & between;
            words[k] = l.store_i(l.select_i(chosen & same, left, l.load_i(&words[k])));
            again.groups[k] = chosen & !same;
            let mut bits = l.bits(again.groups[k]) & 0xff;
            if bits == 0 {
                continue;
            }
            let cells = l.store_i(self.cell(l, &columns.magnitude[D * k..][..D], half_inverse));
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize % LANES;
                bits &= bits - 1;
                self.neighbours.start_run(k, lane, cells[lane] as usize, 0, 1);
            }
        }
        let (scale, inverse) = (l.store(scale), l.store(inverse));
        for lane in 0..LANES {
            (self.neighbours.scales[lane][0], self.neighbours.inverses[lane][0]) = (scale[lane], inverse[lane]);
        }
        (again, left)
    }

    /// Takes the words that were chosen again, and fits the scale once more.
    #[inline(always)]
    fn fit_again(&self, l: L, columns: &Columns<L, N>, scale: L::F32, words: &mut Words, again: Rechosen<L>) -> L::F32 {
        let mut index = [l.splat_i(0); LANES];
        for k in 0..Self::GROUPS {
            let mut found = [0; LANES];
            for lane in 0..LANES {
                found[lane] = self.neighbours.words[k][lane][0];
            }
            words[k] = l.store_i(l.select_i(again.groups[k], l.load_i(&found), l.load_i(&words[k])));
            index[k] = l.shr::<16>(l.load_i(&words[k]));
        }
        let [(sumqx, sumq2)] = self.sums(l, columns, [index]);
        l.select(again.wanted & l.lt(l.splat(0.0), sumq2), sumqx / sumq2, scale)
    }
}

/// Whether a scale is far from overflow and underflow.
#[inline(always)]
fn usable<L: Lanes>(l: L, scale: L::F32) -> L::Mask {
    l.lt(l.splat(1.0 / LARGE), scale) & l.lt(scale, l.splat(LARGE))
}
