//! The nearest neighbours of many groups at once, for [`grid_lanes`](super::grid_lanes).
//!
//! A *run* is a group and neighbouring tries whose rounded magnitudes share a cell, and so its candidates. Those are
//! compared that are *leaders*. Where a grid has four dimensions most lists are so short that a look at the run's ends
//! decides ([`grid_ends`](super::grid_ends)). The other runs are sorted by the length of their lists, so that the processor
//! foresees most branches, and all tries of one compare what may win ([`grid_lists`](super::grid_lists)).
//!
//! **Why the candidate is the one that ggml takes.** At scale `s` the error of candidate `j` is `C + E_j`, with
//! `E_j = s^2 A_j - 2 s B_j`, `A = sum w q^2`, `B = sum w x q`, `C = sum w x^2`. The lanes compare `E_j / s`, which costs
//! a few operations instead of a sum over the coordinates. In half-ulps (`u = 2^-24`, relative):
//!
//! * `2 s sum w |x| q <= s^2 A + C`, and `s^2 A <= 2 C + 2 error`.
//! * `E_j` as computed, a place in its five lowest bits, is off by less than `u (20 s^2 A + 10 C + 62 |E|)`; ggml's sum
//!   of up to eight terms by less than `u (12 error + s^2 A)`.
//! * Let `j` have the least `E`, not above zero but for the lead, so that its error is `C` at most; and let `E_k` be
//!   larger by `512 u C` ([`MARGIN`]). Then the true errors differ by `D > 200 u C`. ggml's differ by more than
//!   `D - u (32 C + 14 D)`: `k` is not what it takes, and `j` is if it leads all others so.
//! * **Between two scales.** `E_j / s` is a line over `s`. If `j` leads `k` at two scales, so it does between them: by
//!   `200 u C` times the ratio of the scales, which is 2/3 at least in a search. That is more than the 33 that ggml's
//!   sums need. So a candidate that another one beats at both ends of a run can be forgotten, one that leads all others
//!   at both is chosen in between, and so is what two tries of a run choose.
//! * **Leaders.** A candidate is none if another one is nearer to the cell, on the same side, in every coordinate in which
//!   they differ. Then each of its differences to the magnitudes is at least as large, also as ggml computes it, for
//!   rounding keeps the order; so is its error; and it comes later in the list. Only where one of the two levels is the
//!   cell's own, the other the next, and the magnitude on the border between them, could rounding turn them round. The
//!   levels' scaled values and the difference are off by less than `40 u` of the scale, the position in the cell by less
//!   than `30 u` of a level: both far below [`BORDER`]. Groups with a magnitude that near to a border are compared exactly.
//!
//! Candidates that differ only where the importance is zero have the same error in both, and ggml takes the first of
//! them. Without a lead, or where numbers leave the range in which errors are relative, the candidates' errors are
//! computed exactly as ggml does ([`nearest_exactly`]).
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::codebook::{Codebook, UNCLEAR, Word};
use super::grid_ends::Ends;
use super::grid_exact::{LONGEST, nearest_exactly};
use super::grid_lists::{Lists, SHORT};
use super::grid_runs::{GROUPS, ROOM, Run, Runs, TRIES, boxed};
use super::lanes::{LANES, Lanes};

/// The lead, in parts of `C`, that the best candidate needs: 512 half-ulps.
const MARGIN: f32 = 1.0 / 32768.0;
/// Room for what is unclear: every try of every group, and once more where a magnitude is on a border.
pub(super) const UNCLEAR_TRIES: usize = 2 * TRIES * GROUPS;
/// A magnitude this near to the border of its cell, in levels, is on it.
pub(super) const BORDER: f32 = 1.0 / 131_072.0;
/// Weights of a sub-block, at most.
const LONGEST_SUB_BLOCK: usize = 32;

/// The runs at hand, and what the errors of each group's candidates depend on: room that is not cleared each time.
pub(super) struct Neighbours<L: Lanes, const D: usize> {
    pub(super) l: L,
    pub(super) grid: &'static Codebook<D>,
    /// What the levels stand for.
    q: L::F32,
    /// By sub-block and try; and their reciprocals, roughly.
    pub(super) scales: Box<[[f32; ROOM]; LANES]>,
    pub(super) inverses: Box<[[f32; ROOM]; LANES]>,
    /// By group of the sub-block, sub-block and try.
    pub(super) words: Box<[[[Word; ROOM]; LANES]; LANES]>,
    pub(super) runs: Runs,
    /// Vectors that hold all tries.
    vectors: usize,
    /// By coordinate of the sub-blocks: their magnitudes, and the roots of the importance.
    magnitude: [[f32; LANES]; LONGEST_SUB_BLOCK],
    root: [[f32; LANES]; LONGEST_SUB_BLOCK],
    /// By group, the terms of `A` and those of `2 B`: of each coordinate for every level, or, where a level has two bits,
    /// of two coordinates for every pair of levels.
    pub(super) terms: Box<[[[L::F32; 2]; D]; GROUPS]>,
    /// By group: the lead that decides; NaN if none does.
    pub(super) lead: [f32; GROUPS],
    /// By group of the sub-block, and sub-block: a bit for each try that starts a run.
    pub(super) starts: [[i32; LANES]; LANES],
    /// By group: the packed levels of the coordinates with any importance.
    pub(super) counting: [i32; GROUPS],
    pub(super) unclear: Box<[Unclear; UNCLEAR_TRIES]>,
    pub(super) unclear_count: usize,
    errors: Box<[L::F32; LONGEST]>,
    pub(super) ends: Ends<L>,
    pub(super) lists: Lists<L>,
}

/// Tries of a run in which no candidate leads by enough: a bit for each, the lowest for `from`.
#[derive(Clone, Copy)]
pub(super) struct Unclear {
    pub(super) run: Run,
    pub(super) from: u8,
    pub(super) tries: u32,
}

impl<L: Lanes, const D: usize> Neighbours<L, D> {
    /// The packed levels of all coordinates.
    pub(super) const ALL: i32 = 0xffff;

    #[inline(always)]
    pub(super) fn new(l: L, grid: &'static Codebook<D>, q: L::F32) -> Self {
        let zero = l.splat(0.0);
        Neighbours {
            l,
            grid,
            q,
            scales: boxed([1.0; ROOM]),
            inverses: boxed([1.0; ROOM]),
            words: boxed([[0; ROOM]; LANES]),
            runs: Runs::new(),
            vectors: 0,
            magnitude: [[0.0; LANES]; LONGEST_SUB_BLOCK],
            root: [[0.0; LANES]; LONGEST_SUB_BLOCK],
            terms: boxed([[zero; 2]; D]),
            lead: [0.0; GROUPS],
            starts: [[0; LANES]; LANES],
            counting: [0; GROUPS],
            unclear: boxed(Unclear { run: Run::NONE, from: 0, tries: 0 }),
            unclear_count: 0,
            errors: boxed(zero),
            ends: Ends::new(l),
            lists: Lists::new(l),
        }
    }

    /// Takes group `k` of eight sub-blocks: the magnitudes and the roots of the importance, by coordinate. No scale
    /// will be more than twice `largest`.
    #[inline(always)]
    pub(super) fn set_group(&mut self, k: usize, magnitude: &[L::F32], root: &[L::F32], largest: L::F32) {
        let l = self.l;
        let qq = self.q * self.q;
        let (zero, none) = (l.splat(0.0), l.splat_i(0));
        // What the second level of a pair stands for; it changes with every fourth entry.
        let second_q = [l.load(&[1., 1., 1., 1., 3., 3., 3., 3.]), l.load(&[5., 5., 5., 5., 7., 7., 7., 7.])];
        let second_qq = [second_q[0] * second_q[0], second_q[1] * second_q[1]];
        let (mut c, mut counting, mut twice_wx) = (zero, none, [[0.0; LANES]; D]);
        for i in 0..D {
            let levels = l.splat_i(((1 << Codebook::<D>::BITS) - 1) << (Codebook::<D>::BITS * i as u32));
            counting = counting | l.select_i(l.eq(root[i], zero), none, levels);
            let wx = root[i] * magnitude[i];
            c = c + wx * magnitude[i];
            self.magnitude[D * k + i] = l.store(magnitude[i]);
            self.root[D * k + i] = l.store(root[i]);
            twice_wx[i] = l.store(wx + wx);
        }
        let root = &self.root[D * k..][..D];
        for lane in 0..LANES {
            let terms = &mut self.terms[LANES * k + lane];
            if D == 8 {
                for i in (0..D).step_by(2) {
                    let (w, v) = (l.splat(root[i][lane]) * qq, l.splat(root[i + 1][lane]));
                    let (wx, vx) = (l.splat(twice_wx[i][lane]) * self.q, l.splat(twice_wx[i + 1][lane]));
                    terms[i] = [w + v * second_qq[0], wx + vx * second_q[0]];
                    terms[i + 1] = [w + v * second_qq[1], wx + vx * second_q[1]];
                }
            } else {
                for i in 0..D {
                    terms[i] = [l.splat(root[i][lane]) * qq, l.splat(twice_wx[i][lane]) * self.q];
                }
            }
        }
        self.counting[LANES * k..][..LANES].copy_from_slice(&l.store_i(counting));
        // Errors are relative only clear of denormals and infinities; elsewhere nothing leads. What denormals lose,
        // 2^-150 at a time, is multiplied by up to the square of the scale. Where nothing has any importance, all
        // errors are zero, and any lead decides.
        let unit = l.splat(1.0) + largest;
        let relative = l.lt(l.splat(1e-30) * unit * unit, c) & l.lt(c, l.splat(1e33));
        let lead = l.select(relative, l.splat(MARGIN) * c, l.splat(f32::NAN));
        let lead = l.select(l.eq_i(counting, none), l.splat(1.0), lead);
        self.lead[LANES * k..][..LANES].copy_from_slice(&l.store(lead));
    }

    /// Forgets all runs; those to come are of so many tries.
    #[inline(always)]
    pub(super) fn clear(&mut self, tries: usize) {
        self.vectors = tries.div_ceil(LANES).min(TRIES / LANES);
        self.runs.clear();
        self.unclear_count = 0;
    }

    /// Chooses points for all tries of all runs, at scales of which the largest inverses are these, by sub-block.
    #[inline(always)]
    pub(super) fn choose(&mut self, inverse: L::F32) {
        if D == 4 {
            self.choose_at_ends(inverse);
        } else {
            for number in self.runs.numbers() {
                self.take_point(number);
            }
        }
        for length in 1..Runs::LENGTHS {
            let mut number = self.runs.last(length);
            while number != 0 {
                let run = self.runs.get(number);
                number = self.runs.before(number);
                let near = self.grid.leaders(self.grid.at(run.cell()));
                self.put_terms(run.group(), near);
                if near.len > SHORT {
                    self.prune(run, near);
                }
                self.choose_run(run, near);
            }
        }
        for n in 0..self.unclear_count {
            self.settle(self.unclear[n % UNCLEAR_TRIES]);
        }
    }

    /// Writes the word of a run's point, without asking whether there is one, also beyond the run's end, where later runs
    /// follow: nobody could foresee how far it goes. Runs without a point are sorted in.
    #[inline(always)]
    fn take_point(&mut self, number: usize) {
        let l = self.l;
        let run = self.runs.get(number);
        let (group, from) = (run.group(), run.from());
        let cell = self.grid.at(run.cell());
        let word = self.grid.words.get(cell.point as usize).copied().unwrap_or(0);
        let word = l.store_i(l.splat_i(word));
        let words = &mut self.words[group / LANES][group % LANES];
        for v in 0..self.vectors {
            words[from + LANES * v..][..LANES].copy_from_slice(&word);
        }
        self.runs.sort_in(number, cell.leaders().div_ceil(2));
    }

    /// Notes that a magnitude of a group is on the border of its cell in a try.
    #[inline(always)]
    pub(super) fn doubt(&mut self, cell: usize, group: usize, at: usize) {
        if self.grid.at(cell).leaders() != 0 {
            let run = Run::new(cell, group, at..at + 1);
            self.unclear[self.unclear_count % UNCLEAR_TRIES] = Unclear { run, from: at as u8, tries: 1 };
            self.unclear_count += 1;
        }
    }

    /// Chooses the points of tries in which no candidate leads by enough, or a magnitude is on a border.
    #[inline(always)]
    fn settle(&mut self, Unclear { run, from, mut tries }: Unclear) {
        let near = self.grid.near(self.grid.at(run.cell()));
        while tries != 0 {
            let at = (from as usize + tries.trailing_zeros() as usize) % TRIES;
            tries &= tries - 1;
            self.compare(run.group(), at, near.words);
        }
    }

    /// Chooses the point of a try by the candidates' exact errors.
    #[inline(always)]
    fn compare(&mut self, group: usize, at: usize, candidates: &[[Word; LANES]]) {
        let (mut x, mut w) = ([0.0; D], [0.0; D]);
        for i in 0..D {
            let coordinate = (D * (group / LANES) + i) % LONGEST_SUB_BLOCK;
            (x[i], w[i]) = (self.magnitude[coordinate][group % LANES], self.root[coordinate][group % LANES]);
        }
        let scale = self.scales[group % LANES][at];
        let place = nearest_exactly(self.l, candidates, self.q, &x, &w, scale, &mut self.errors);
        self.words[group / LANES][group % LANES][at] = candidates.as_flattened()[place] | UNCLEAR;
    }
}

#[cfg(test)]
mod tests {
    use crate::quant::grid_search::GridType;
    use crate::quant::iq2::{IQ2_S, IQ2_XS, IQ2_XXS};
    use crate::quant::iq3::{IQ3_S, IQ3_XXS};

    /// What holds at two scales of a search holds between them only because these are near each other.
    #[test]
    fn scales_of_a_search_are_within_a_half_of_each_other() {
        for rule in [IQ2_XXS::RULE, IQ2_XS::RULE, IQ2_S::RULE, IQ3_XXS::RULE, IQ3_S::RULE] {
            let reach = rule.half_tries as f32 * rule.step;
            assert!((rule.top + reach) / (rule.top - reach) < 1.5001, "{}", rule.top);
        }
    }
}
