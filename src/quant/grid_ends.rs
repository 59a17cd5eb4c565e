//! Runs whose cells offer eight candidates at most, decided at their ends: for grids of four dimensions.
//!
//! ```text
//! all candidates' errors at the run's first try and at its last, in sixteen lanes
//! one that leads the others at both ends leads them between (grid_nearest.rs has the proof)
//! if there is none, sixteen tries in the lanes compare the eight
//! ```
//!
//! A point counts as its cell's only candidate, and nothing branches on what is found at the ends, which no processor
//! could foresee: so it works on several runs at once.
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::grid_exact::next_level;
use super::grid_nearest::{Neighbours, UNCLEAR_TRIES, Unclear};
use super::grid_runs::{GROUPS, TRIES, boxed};
use super::lanes::{LANES, Lanes, Vector, WIDE};

/// Added to the error over the scale of what is no candidate. Where errors are relative, none comes near to it: the scale
/// is 1e15 at most, roots of the importance are 4e18 at most, and `C` is below 1e33.
const FAR: f32 = 3e38;
/// Runs whose ends are looked at before those that these do not decide are looked at again.
const AT_ONCE: usize = 256;

/// Runs that are not decided yet, and what it takes to decide them.
pub(super) struct Ends<L: Lanes> {
    /// Subtracted from `A` and `2 B` where a cell has fewer than eight candidates, by their number.
    filling: [<L::Wide as Vector>::F32; LANES],
    /// Bit 3 in the second half ([`Lanes::lookup_halves`]): of every level of a word, and of the number itself.
    second_levels: <L::Wide as Vector>::I32,
    second: <L::Wide as Vector>::I32,
    /// 0 to 15.
    sixteen: <L::Wide as Vector>::I32,
    /// By group: the lead that decides, over the scale.
    lead: [f32; GROUPS],
    /// The runs that their ends do not decide, and the terms of their candidates.
    open: [u16; AT_ONCE],
    open_terms: Box<[[f32; WIDE]; AT_ONCE]>,
    open_count: usize,
}

impl<L: Lanes> Ends<L> {
    #[inline(always)]
    pub(super) fn new(l: L) -> Self {
        let zero = l.splat(0.0);
        let mut filling = [l.join([zero; 2]); LANES];
        for len in 1..LANES {
            let mut lanes = [0.0; LANES];
            lanes[len..].fill(FAR);
            filling[len] = l.join([zero, l.load(&lanes)]);
        }
        let eight = l.from_bits(l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]));
        Ends {
            filling,
            second_levels: in_second(l, 0x8888 << 16),
            second: in_second(l, 8),
            sixteen: l.wide().to_bits(l.join([eight; 2])) | in_second(l, 8),
            lead: [0.0; GROUPS],
            open: [0; AT_ONCE],
            open_terms: boxed([0.0; WIDE]),
            open_count: 0,
        }
    }
}

impl<L: Lanes, const D: usize> Neighbours<L, D> {
    /// Chooses points for all tries of all runs with eight candidates at most; the others are sorted in. By sub-block, no
    /// inverse scale is larger than `inverse`.
    #[inline(always)]
    pub(super) fn choose_at_ends(&mut self, inverse: L::F32) {
        let l = self.l;
        for (lead, at_ends) in self.lead.as_chunks().0.iter().zip(self.ends.lead.as_chunks_mut().0) {
            *at_ends = l.store(l.load(lead) * inverse);
        }
        let runs = self.runs.numbers();
        for first in runs.clone().step_by(AT_ONCE) {
            self.ends.open_count = 0;
            for number in first..runs.end.min(first + AT_ONCE) {
                self.decide(number);
            }
            for n in 0..self.ends.open_count {
                self.choose_of_eight(n);
            }
        }
    }

    /// Looks at a run's ends. Writes the word of the candidate that leads the others at both, also beyond the run's end,
    /// where later runs follow: nobody could foresee how far it goes. Notes if there is none, or too many.
    #[inline(always)]
    fn decide(&mut self, number: usize) {
        let (l, w) = (self.l, self.l.wide());
        let run = self.runs.get(number);
        let (group, from, last) = (run.group(), run.from(), run.last());
        let head = &self.grid.heads[run.cell()];
        let words = l.from_bits(l.load_i(&head.words));
        let mut index = w.shr::<16>(w.to_bits(l.join([words; 2])) | self.ends.second_levels);
        let mut terms = [w.splat(0.0); D];
        for i in 0..D {
            terms[i] = l.lookup_halves(l.join(self.terms[group][i]), index);
            index = next_level::<L::Wide, D>(w, index);
        }
        let terms = (terms[0] + terms[1]) + (terms[2] + terms[3]) - self.ends.filling[head.leaders as usize % LANES];
        let [a, b] = l.split(terms);
        let scales = &self.scales[group % LANES];
        let s = l.join([l.splat(scales[from]), l.splat(scales[last])]);
        let error = s * l.join([a; 2]) - l.join([b; 2]);
        let bound = w.min(l.least_of_halves(error), w.splat(0.0)) + w.splat(self.ends.lead[group]);
        let leading = w.bits(w.lt(error, bound));
        let place = (leading | 0x80).trailing_zeros() as usize % LANES;
        let word = l.store_i(l.splat_i(head.words[place]));
        let to = &mut self.words[group / LANES][group % LANES];
        for start in (from..run.to()).step_by(WIDE) {
            let to = &mut to[start..][..WIDE];
            to[..LANES].copy_from_slice(&word);
            to[LANES..].copy_from_slice(&word);
        }
        let many = (usize::from(head.leaders) > LANES) | (self.counting[group] != Self::ALL);
        let open = (leading != 0x101 << place) & !many & head.off_grid;
        self.ends.open[self.ends.open_count % AT_ONCE] = number as u16;
        self.ends.open_terms[self.ends.open_count % AT_ONCE] = l.store_wide(terms);
        self.ends.open_count += usize::from(open);
        let length = if many & head.off_grid { usize::from(head.leaders).div_ceil(2) } else { 0 };
        self.runs.sort_in(number, length);
    }

    /// Chooses a point for every try of a run, sixteen tries in the lanes, among eight candidates.
    #[inline(always)]
    fn choose_of_eight(&mut self, n: usize) {
        let (l, w) = (self.l, self.l.wide());
        let run = self.runs.get(self.ends.open[n % AT_ONCE] as usize);
        let (group, terms) = (run.group(), &self.ends.open_terms[n % AT_ONCE]);
        let head = &self.grid.heads[run.cell()];
        let table = l.join([l.from_bits(l.load_i(&head.words)); 2]);
        let zero = w.splat(0.0);
        for from in (run.from()..run.to()).step_by(WIDE) {
            let from = from % TRIES;
            let s = l.load_wide_at(&self.scales[group % LANES][from..]);
            let lead = w.splat(self.lead[group]) * l.load_wide_at(&self.inverses[group % LANES][from..]);
            // The place of a candidate stands in the lowest bits of its error: two at a time, then four, then all.
            let others = w.splat_i(-(WIDE as i32));
            let (mut least, mut second) = ([zero; 4], [zero; 4]);
            for i in 0..4 {
                let mut two = [zero; 2];
                for (place, error) in (2 * i..).zip(&mut two) {
                    *error = s * w.splat(terms[place]) - w.splat(terms[LANES + place]);
                    *error = w.from_bits(w.to_bits(*error) & others | (w.splat_i(place as i32) | self.ends.second));
                }
                (least[i], second[i]) = (w.min(two[0], two[1]), w.max(two[0], two[1]));
            }
            for (i, j) in [(0, 1), (2, 3), (0, 2)] {
                second[i] = w.min(w.max(least[i], least[j]), w.min(second[i], second[j]));
                least[i] = w.min(least[i], least[j]);
            }
            let (least, second) = (least[0], second[0]);
            // Above zero, the error would exceed C.
            let bound = w.min(least, zero) + lead;
            let unclear = w.bits(!w.lt(least, bound) | w.lt(second, bound)) & run.tries() >> (from - run.from());
            let to = &mut self.words[group / LANES][group % LANES][from..][..WIDE];
            let inside = w.lt_i(self.ends.sixteen, w.splat_i(run.to() as i32 - from as i32));
            let chosen = l.lookup_halves(table, w.to_bits(least));
            let old = l.join([l.from_bits(l.load_i_at(to)), l.from_bits(l.load_i_at(&to[LANES..]))]);
            let [first, second] = l.split(w.select(inside, chosen, old));
            to[..LANES].copy_from_slice(&l.store_i(l.to_bits(first)));
            to[LANES..].copy_from_slice(&l.store_i(l.to_bits(second)));
            // Noted without a branch, which nobody could foresee.
            self.unclear[self.unclear_count % UNCLEAR_TRIES] = Unclear { run, from: from as u8, tries: unclear };
            self.unclear_count += usize::from(unclear != 0);
        }
    }
}

/// A number in the lanes of the second half, 0 in the others.
#[inline(always)]
fn in_second<L: Lanes>(l: L, v: i32) -> <L::Wide as Vector>::I32 {
    l.wide().to_bits(l.join([l.splat(0.0), l.from_bits(l.splat_i(v))]))
}
