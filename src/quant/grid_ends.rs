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
use super::grid_nearest::{AT_ONCE, Neighbours, UNCLEAR_TRIES, Unclear};
use super::grid_runs::TRIES;
use super::lanes::{LANES, Lanes, Vector, WIDE};

impl<L: Lanes, const D: usize> Neighbours<L, D> {
    /// Chooses points for all tries of all runs with eight candidates at most; the others are sorted in.
    #[inline(always)]
    pub(super) fn choose_at_ends(&mut self) {
        let runs = self.runs.numbers();
        for first in runs.clone().step_by(AT_ONCE) {
            self.open_count = 0;
            for number in first..runs.end.min(first + AT_ONCE) {
                self.decide(number);
            }
            for n in 0..self.open_count {
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
        let mut index = w.shr::<16>(w.to_bits(l.join([words; 2])) | self.second_levels);
        let mut terms = [w.splat(0.0); D];
        for i in 0..D {
            terms[i] = l.lookup_halves(l.join(self.terms[group][i]), index);
            index = next_level::<L::Wide, D>(w, index);
        }
        let terms = (terms[0] + terms[1]) + (terms[2] + terms[3]) - self.filling[head.leaders as usize % LANES];
        let [a, b] = l.split(terms);
        let scales = &self.scales[group % LANES];
        let s = l.join([l.splat(scales[from]), l.splat(scales[last])]);
        let error = s * l.join([a; 2]) - l.join([b; 2]);
        let bound = w.min(l.least_of_halves(error), w.splat(0.0)) + w.splat(self.largest_lead[group]);
        let leading = w.bits(w.lt(error, bound));
        let place = (leading | 0x80).trailing_zeros() as usize % LANES;
        let word = l.store_i(l.splat_i(head.words[place]));
        let to = &mut self.words[group / LANES][group % LANES];
        for start in (from..run.to()).step_by(WIDE) {
            let to = &mut to[start..][..WIDE];
            to[..LANES].copy_from_slice(&word);
            to[LANES..].copy_from_slice(&word);
        }
        let many = u32::from(head.leaders) + self.many[group] > LANES as u32;
        let open = (leading != 0x101 << place) & !many & head.off_grid;
        self.open[self.open_count % AT_ONCE] = number as u16;
        self.open_terms[self.open_count % AT_ONCE] = l.store_wide(terms);
        self.open_count += usize::from(open);
        let length = if many & head.off_grid { usize::from(head.leaders).div_ceil(2) } else { 0 };
        self.runs.sort_in(number, length);
    }

    /// Chooses a point for every try of a run, sixteen tries in the lanes, among eight candidates.
    #[inline(always)]
    fn choose_of_eight(&mut self, n: usize) {
        let (l, w) = (self.l, self.l.wide());
        let run = self.runs.get(self.open[n % AT_ONCE] as usize);
        let (group, terms) = (run.group(), &self.open_terms[n % AT_ONCE]);
        let head = &self.grid.heads[run.cell()];
        let table = l.join([l.from_bits(l.load_i(&head.words)); 2]);
        let zero = w.splat(0.0);
        for from in (run.from()..run.to()).step_by(WIDE) {
            let from = from % TRIES;
            let s = self.l.load_wide_at(&self.scales[group % LANES][from..]);
            let lead = w.splat(self.lead[group]) * l.load_wide_at(&self.inverses[group % LANES][from..]);
            // The place of a candidate stands in the lowest bits of its error: two at a time, then four, then all.
            let others = w.splat_i(-(WIDE as i32));
            let (mut least, mut second) = ([zero; 4], [zero; 4]);
            for i in 0..4 {
                let mut two = [zero; 2];
                for (place, error) in (2 * i..).zip(&mut two) {
                    *error = s * w.splat(terms[place]) - w.splat(terms[LANES + place]);
                    *error = w.from_bits(w.to_bits(*error) & others | (w.splat_i(place as i32) | self.second));
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
            let inside = w.lt_i(self.sixteen, w.splat_i(run.to() as i32 - from as i32));
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
