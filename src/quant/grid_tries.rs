//! The tries of [`grid_lanes`](super::grid_lanes): runs of equal cells, the best try, and what is chosen again.
//!
//! ```text
//! every try rounds every magnitude; a group's cells that differ from those of the try before start a run
//! four tries at a time are summed up, and compared in their order
//! the groups to be chosen again are runs of one try, with the scale that was found; then the last sums
//! ```
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::codebook::{OFF_GRID, UNCLEAR};
use super::grid_exact::next_level;
use super::grid_lanes::GridSearch;
use super::grid_nearest::BORDER;
use super::grid_runs::{TRIES, Words};
use super::grid_search::Again;
use super::lanes::{LANES, Lanes, Vector};

/// Beyond this, rounding to a level would wrap.
pub(super) const WRAPS: f32 = 2e6;
/// Scales beyond this, or below its reciprocal, could make squares overflow or vanish.
const LARGE: f32 = 1e15;
/// Tries that are summed up at once.
const AT_ONCE: usize = 4;

/// The tries of eight sub-blocks: half their inverse scales, in ascending order, and their scales.
pub(super) struct Tries<L: Lanes> {
    pub(super) half_inverse: [L::F32; TRIES],
    pub(super) scale: [L::F32; TRIES],
}

/// What is chosen again, of eight sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Rechosen<L: Lanes> {
    /// Sub-blocks with a part in it.
    wanted: L::Mask,
    /// Those of which the group was looked at, by group.
    groups: [L::Mask; LANES],
    /// The inverse of the scale that was found, by sub-block.
    pub(super) inverse: L::F32,
}

/// Eight sub-blocks by column.
pub(super) struct Columns<L: Lanes, const N: usize> {
    pub(super) magnitude: [L::F32; N],
    pub(super) weight: [L::F32; N],
    /// `weight` times `magnitude`.
    pub(super) weighted: [L::F32; N],
}

impl<L: Lanes, const D: usize, const N: usize> GridSearch<L, D, N> {
    /// Rounds every magnitude in every try and notes the runs of equal cells, for the sound sub-blocks.
    #[inline(always)]
    pub(super) fn start_runs(&mut self, l: L, columns: &Columns<L, N>, tries: &Tries<L>, sound: L::Mask) {
        let sound = l.ones(sound) & l.splat_i(((1u64 << self.tries) - 1) as i32);
        self.neighbours.clear(self.tries);
        for k in 0..Self::GROUPS {
            let magnitude = &columns.magnitude[D * k..][..D];
            let mut root = [l.splat(0.0); D];
            for i in 0..D {
                root[i] = l.sqrt(columns.weight[D * k + i]);
            }
            self.neighbours.set_group(k, magnitude, &root, tries.scale[0]);
            let mut cells = [[0; LANES]; TRIES];
            let (starts, doubtful) = if self.grid.has_leaders {
                self.round::<true>(l, magnitude, tries, &mut cells)
            } else {
                self.round::<false>(l, magnitude, tries, &mut cells)
            };
            let (starts, doubtful) = (l.store_i(starts & sound), l.store_i(doubtful & sound));
            self.neighbours.starts[k] = starts;
            for (two, starts) in starts.as_chunks::<2>().0.iter().enumerate() {
                let mut left = u64::from(starts[0] as u32) | u64::from(starts[1] as u32) << 32;
                let mut place = left.trailing_zeros() as usize;
                while left != 0 {
                    left &= left - 1;
                    // Up to the next start, or the last try; the highest bit belongs to no try.
                    let next = (left | 1 << 63).trailing_zeros() as usize;
                    let (t, lane) = (place % 32, 2 * two + place / 32);
                    let to = (next - (place - t)).min(self.tries);
                    self.neighbours.runs.push(cells[t][lane] as usize, LANES * k + lane, t..to);
                    place = next;
                }
            }
            for (lane, mut doubtful) in doubtful.into_iter().enumerate() {
                while doubtful != 0 {
                    let t = doubtful.trailing_zeros() as usize % TRIES;
                    doubtful &= doubtful - 1;
                    self.neighbours.doubt(cells[t][lane] as usize, LANES * k + lane, t);
                }
            }
        }
    }

    /// The cells of eight groups in every try, two tries at a time. A bit for each try whose cell is not that of the try
    /// before, and with `BORDERS` for each in which a magnitude is on the border of its cell.
    #[inline(always)]
    fn round<const BORDERS: bool>(
        &self,
        l: L,
        magnitude: &[L::F32],
        tries: &Tries<L>,
        cells: &mut [[i32; LANES]; TRIES],
    ) -> (L::I32, L::I32) {
        let w = l.wide();
        let mut twice = [w.splat(0.0); D];
        for i in 0..D {
            twice[i] = l.join([magnitude[i]; 2]);
        }
        let mut tried = w.to_bits(l.join([l.from_bits(l.splat_i(1)), l.from_bits(l.splat_i(2))]));
        let (mut starts, mut doubtful) = (w.splat_i(0), w.splat_i(0));
        let mut before = l.from_bits(l.splat_i(-1));
        let halves = tries.half_inverse.as_chunks::<2>().0;
        for (&half_inverse, cells) in halves[..self.tries.div_ceil(2)].iter().zip(cells.as_chunks_mut::<2>().0) {
            let (cell, farthest) = self.cell::<L::Wide, BORDERS>(w, &twice, l.join(half_inverse));
            if BORDERS {
                doubtful = w.select_i(w.lt(w.splat(0.5 - BORDER), farthest), doubtful | tried, doubtful);
            }
            let two = l.split(w.from_bits(cell));
            let both = w.to_bits(l.join([before, two[0]]));
            starts = w.select_i(w.eq_i(cell, both), starts, starts | tried);
            *cells = [l.store_i(l.to_bits(two[0])), l.store_i(l.to_bits(two[1]))];
            before = two[1];
            tried = w.shl::<2>(tried);
        }
        let [starts, others] = l.split(w.from_bits(starts));
        let [doubtful, more] = l.split(w.from_bits(doubtful));
        (l.to_bits(starts) | l.to_bits(others), l.to_bits(doubtful) | l.to_bits(more))
    }

    /// The cells of groups, and with `BORDERS` the largest distance of a magnitude to its level, in levels.
    #[inline(always)]
    fn cell<V: Vector, const BORDERS: bool>(
        &self,
        v: V,
        magnitude: &[V::F32; D],
        half_inverse: V::F32,
    ) -> (V::I32, V::F32) {
        let (zero, half) = (v.splat(0.0), v.splat(0.5));
        let (radix, last) = (v.splat(self.grid.radix as f32), v.splat((self.grid.radix - 1) as f32));
        let (mut cell, mut farthest) = (zero, zero);
        for &x in magnitude.iter().rev() {
            // Half of `inverse * x - 1`: halves are exact, but for products that the 1 swallows.
            let exact = v.clamp(half_inverse * x - half, zero, last);
            let level = v.nearest(exact);
            if BORDERS {
                farthest = v.max(farthest, v.abs(exact - level));
            }
            cell = cell * radix + level;
        }
        (v.truncate(cell), farthest)
    }

    /// Sums up all tries and keeps the best: its scale and its words.
    #[inline(always)]
    pub(super) fn best_try(&mut self, l: L, columns: &Columns<L, N>, mut scale: L::F32) -> (L::F32, Words) {
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
        let mut words = [[off | self.grid.words[0]; LANES]; LANES];
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
    pub(super) fn start_again(
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
        self.neighbours.clear(1);
        let mut again = Rechosen { wanted, groups: [l.lt(zero, zero); LANES], inverse };
        for k in 0..Self::GROUPS {
            let mut chosen = wanted;
            if self.rule.again == Again::OffGrid {
                chosen = chosen & off_grid[k];
            }
            // Between two tries of a run with the same word, nothing else can be chosen.
            let (mut left, mut right, mut start) = ([0; LANES], [0; LANES], [0; LANES]);
            for lane in 0..LANES {
                let words = &self.neighbours.words[k][lane][before[lane] as usize % TRIES..];
                (left[lane], right[lane]) = (words[0], words[1]);
                start[lane] = self.neighbours.starts[k][lane] >> ((before[lane] + 1) % TRIES as i32) & 1;
            }
            let (left, right, start) = (l.load_i(&left), l.load_i(&right), l.load_i(&start));
            let unclear = left & l.splat_i(UNCLEAR);
            let same = l.eq_i(left, right) & l.eq_i(unclear | start, l.splat_i(0)) & between;
            words[k] = l.store_i(l.select_i(chosen & same, left, l.load_i(&words[k])));
            again.groups[k] = chosen & !same;
            let mut bits = l.bits(again.groups[k]) & 0xff;
            if bits == 0 {
                continue;
            }
            let mut magnitude = [zero; D];
            magnitude.copy_from_slice(&columns.magnitude[D * k..][..D]);
            let (cells, farthest) = self.cell::<L, true>(l, &magnitude, half_inverse);
            let on_border = l.bits(l.lt(l.splat(0.5 - BORDER), farthest));
            let doubtful = if self.grid.has_leaders { on_border } else { 0 };
            let cells = l.store_i(cells);
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize % LANES;
                bits &= bits - 1;
                self.neighbours.runs.push(cells[lane] as usize, LANES * k + lane, 0..1);
                if doubtful >> lane & 1 == 1 {
                    self.neighbours.doubt(cells[lane] as usize, LANES * k + lane, 0);
                }
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
    pub(super) fn fit_again(
        &self,
        l: L,
        columns: &Columns<L, N>,
        scale: L::F32,
        words: &mut Words,
        again: Rechosen<L>,
    ) -> L::F32 {
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
pub(super) fn usable<L: Lanes>(l: L, scale: L::F32) -> L::Mask {
    l.lt(l.splat(1.0 / LARGE), scale) & l.lt(scale, l.splat(LARGE))
}
