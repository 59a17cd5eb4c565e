//! The tries of [`grid_lanes`](super::grid_lanes): runs of equal cells, the best try, and what is chosen again.
//!
//! ```text
//! every try rounds every magnitude; a group's cells that differ from those of the try before start a run
//! four tries at a time are summed up, and compared in their order
//! the groups to be chosen again are runs of one try, with the scale that was found; then the last sums
//! ```
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::grid_exact::next_level;
use super::grid_lanes::GridSearch;
use super::grid_nearest::BORDER;
use super::grid_runs::{OFF_GRID, TRIES, UNCLEAR, Word, Words};
use super::grid_search::Again;
use super::lanes::{LANES, Lanes};

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
        let sound = l.ones(sound);
        self.neighbours.clear();
        for k in 0..Self::GROUPS {
            let magnitude = &columns.magnitude[D * k..][..D];
            let mut root = [l.splat(0.0); D];
            for i in 0..D {
                root[i] = l.sqrt(columns.weight[D * k + i]);
            }
            self.neighbours.set_group(k, magnitude, &root, tries.scale[0]);
            let mut cells = [[0; LANES]; TRIES];
            // A bit for each try whose cell is not that of the try before.
            let (mut starts, mut before) = (l.splat_i(0), l.splat_i(-1));
            let mut doubtful = l.splat_i(0);
            for t in 0..self.tries {
                let (cell, on_border) = self.cell(l, magnitude, tries.half_inverse[t]);
                doubtful = l.select_i(on_border, doubtful | l.splat_i(1 << t), doubtful);
                starts = l.select_i(l.eq_i(cell, before), starts, starts | l.splat_i(1 << t));
                cells[t] = l.store_i(cell);
                before = cell;
            }
            let starts = l.store_i(starts & sound);
            self.neighbours.doubtful[k] = l.store_i(doubtful);
            for (two, starts) in starts.as_chunks::<2>().0.iter().enumerate() {
                let mut left = u64::from(starts[0] as u32) | u64::from(starts[1] as u32) << 32;
                let mut place = left.trailing_zeros() as usize;
                while left != 0 {
                    left &= left - 1;
                    // Up to the next start, or the last try; the highest bit belongs to no try.
                    let next = (left | 1 << 63).trailing_zeros() as usize;
                    let (t, lane) = (place % 32, 2 * two + place / 32);
                    let to = (next - (place - t)).min(self.tries);
                    self.neighbours.start_run(k, lane, cells[t][lane] as usize, t..to, self.tries);
                    place = next;
                }
            }
        }
    }

    /// The cells of eight groups under half an inverse scale each, and where a magnitude is on the border of its cell if
    /// that is of interest.
    #[inline(always)]
    fn cell(&self, l: L, magnitude: &[L::F32], half_inverse: L::F32) -> (L::I32, L::Mask) {
        let zero = l.splat(0.0);
        if self.grid.has_leaders {
            let (cell, farthest) = self.cell_and_distance::<true>(l, magnitude, half_inverse);
            (cell, l.lt(l.splat(0.5 - BORDER), farthest))
        } else {
            (self.cell_and_distance::<false>(l, magnitude, half_inverse).0, l.lt(zero, zero))
        }
    }

    /// The cells of eight groups, and with `DISTANCE` the largest distance of a magnitude to its level, in levels.
    #[inline(always)]
    fn cell_and_distance<const DISTANCE: bool>(
        &self,
        l: L,
        magnitude: &[L::F32],
        half_inverse: L::F32,
    ) -> (L::I32, L::F32) {
        let (zero, half) = (l.splat(0.0), l.splat(0.5));
        let (radix, last) = (l.splat(self.grid.radix as f32), l.splat((self.grid.radix - 1) as f32));
        let (mut cell, mut farthest) = (zero, zero);
        for &x in magnitude.iter().rev() {
            // Half of `inverse * x - 1`: halves are exact, but for products that the 1 swallows.
            let exact = l.clamp(half_inverse * x - half, zero, last);
            let level = l.nearest(exact);
            if DISTANCE {
                farthest = l.max(farthest, l.abs(exact - level));
            }
            cell = cell * radix + level;
        }
        (l.truncate(cell), farthest)
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
        self.neighbours.clear();
        let mut again = Rechosen { wanted, groups: [l.lt(zero, zero); LANES] };
        for k in 0..Self::GROUPS {
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
            let (cells, on_border) = self.cell(l, &columns.magnitude[D * k..][..D], half_inverse);
            let cells = l.store_i(cells);
            self.neighbours.doubtful[k] = l.store_i(l.ones(on_border));
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize % LANES;
                bits &= bits - 1;
                self.neighbours.start_run(k, lane, cells[lane] as usize, 0..1, 1);
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
