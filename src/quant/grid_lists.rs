//! Runs with more candidates than the ends decide at once ([`grid_ends`](super::grid_ends)), or of a grid of eight dimensions.
//!
//! ```text
//! what the candidates' errors depend on, eight candidates in the lanes
//! of a long list, those that may win somewhere in the run
//! every try by the two candidates with the least errors, eight tries in the lanes
//! ```

use super::codebook::{Near, Word};
use super::grid_exact::{LONGEST, next_level};
use super::grid_nearest::{Neighbours, UNCLEAR_TRIES, Unclear};
use super::grid_runs::{Run, TRIES, boxed};
use super::lanes::{LANES, Lanes, Vector};

/// Lists longer than this are pruned.
pub(super) const SHORT: usize = 4 * LANES;
/// Pruned lists are made a multiple of this, so that the processor foresees most of their ends.
const AT_LEAST: usize = 4;

/// The candidates of one run: room that is not cleared each time.
pub(super) struct Lists<L: Lanes> {
    /// Added to `A` where the last vector of a list has no candidate, by the list's length.
    padding: [L::F32; LANES],
    /// 0 to 7.
    eight: L::I32,
    all: Box<List>,
    kept: Box<List>,
    /// Errors over the scale of candidates, at either end of a run.
    at_ends: Box<[[[f32; LANES]; 2]; LONGEST]>,
}

impl<L: Lanes> Lists<L> {
    #[inline(always)]
    pub(super) fn new(l: L) -> Self {
        let mut padding = [l.splat(0.0); LANES];
        for len in 1..LANES {
            let mut lanes = [0.0; LANES];
            lanes[len..].fill(f32::INFINITY);
            padding[len] = l.load(&lanes);
        }
        Lists {
            padding,
            eight: l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]),
            all: Box::new(List::EMPTY),
            kept: Box::new(List::EMPTY),
            at_ends: boxed([[0.0; LANES]; 2]),
        }
    }
}

/// Candidates: `A`, `2 B` and the word of each.
struct List {
    count: usize,
    a: [[f32; LANES]; LONGEST],
    b: [[f32; LANES]; LONGEST],
    words: [[Word; LANES]; LONGEST],
}

impl List {
    const EMPTY: List =
        List { count: 0, a: [[0.0; LANES]; LONGEST], b: [[0.0; LANES]; LONGEST], words: [[0; LANES]; LONGEST] };
}

impl<L: Lanes, const D: usize> Neighbours<L, D> {
    /// Fills in what the errors of all candidates depend on, and makes those infinitely bad that have the errors of an
    /// earlier one.
    #[inline(always)]
    pub(super) fn put_terms(&mut self, group: usize, near: Near<'_>) {
        let l = self.l;
        let last = near.words.len() - 1;
        for (v, words) in near.words.iter().enumerate() {
            let padding = if v == last { self.lists.padding[near.len % LANES] } else { l.splat(0.0) };
            let (a, b) = self.terms_of(group, words, padding);
            (self.lists.all.a[v % LONGEST], self.lists.all.b[v % LONGEST]) = (l.store(a), l.store(b));
            self.lists.all.words[v % LONGEST] = *words;
        }
        let counting = self.counting[group];
        if counting == Self::ALL {
            return;
        }
        let counting = l.splat_i(counting << 16);
        for place in 0..near.len {
            let one = l.splat_i(near.words.as_flattened()[place]) & counting;
            for v in place / LANES..=last {
                let mut alike = l.bits(l.eq_i(l.load_i(&near.words[v]) & counting, one)) & 0xff;
                if v == place / LANES {
                    alike &= 0xfe << (place % LANES);
                }
                while alike != 0 {
                    self.lists.all.a[v % LONGEST][alike.trailing_zeros() as usize % LANES] = f32::INFINITY;
                    alike &= alike - 1;
                }
            }
        }
    }

    /// Keeps the candidates of a run that another one does not beat at both its ends. That one is the best of the two
    /// ends together, roughly. None are kept if errors are not relative.
    #[inline(always)]
    pub(super) fn prune(&mut self, run: Run, near: Near<'_>) {
        let l = self.l;
        let (group, count) = (run.group(), near.words.len());
        let (from, last) = (run.from(), run.last());
        let (scales, inverses) = (&self.scales[group % LANES], &self.inverses[group % LANES]);
        let (s, t) = (l.splat(scales[from]), l.splat(scales[last]));
        // The place of a candidate stands in the lowest bits of its error.
        let others = l.splat_i(-((LANES * LONGEST) as i32));
        let mut places = self.lists.eight;
        let mut least = l.splat(f32::INFINITY);
        for v in 0..count {
            let (a, b) = (l.load(&self.lists.all.a[v % LONGEST]), l.load(&self.lists.all.b[v % LONGEST]));
            let (error, at_end) = (s * a - b, t * a - b);
            self.lists.at_ends[v % LONGEST] = [l.store(error), l.store(at_end)];
            let both = l.to_bits(error + at_end);
            least = l.min(l.from_bits(both & others | places), least);
            places = places + l.splat_i(LANES as i32);
        }
        let best = (l.store(l.least(least))[0].to_bits() as usize) % (LANES * LONGEST);
        let [error, at_end] = self.lists.at_ends[best / LANES];
        let (error, at_end, lead) = (error[best % LANES], at_end[best % LANES], self.lead[group]);
        // Above zero, the error would exceed C.
        let bound = l.splat(if error <= 0.0 { error + lead * inverses[from] } else { f32::INFINITY });
        let bound_at_end = l.splat(if at_end <= 0.0 { at_end + lead * inverses[last] } else { f32::INFINITY });
        let mut kept = 0;
        for eight in 0..count.div_ceil(8) {
            let mut bits = 0;
            for v in 8 * eight..count.min(8 * eight + 8) {
                let [error, at_end] = self.lists.at_ends[v % LONGEST];
                let close = l.lt(l.load(&error), bound) | l.lt(l.load(&at_end), bound_at_end);
                bits |= u64::from(l.bits(close) & 0xff) << (8 * (v % 8));
            }
            // Four at a time, though there may be fewer: what is kept in vain is overwritten.
            loop {
                for _ in 0..AT_LEAST {
                    let place = (64 * eight + bits.trailing_zeros() as usize) % (LANES * LONGEST);
                    let to = kept % (LANES * LONGEST);
                    self.lists.kept.a.as_flattened_mut()[to] = self.lists.all.a.as_flattened()[place];
                    self.lists.kept.b.as_flattened_mut()[to] = self.lists.all.b.as_flattened()[place];
                    self.lists.kept.words.as_flattened_mut()[to] = self.lists.all.words.as_flattened()[place];
                    kept += usize::from(bits != 0);
                    bits &= bits.wrapping_sub(1);
                }
                if bits == 0 {
                    break;
                }
            }
        }
        let end = kept.next_multiple_of(AT_LEAST).max(AT_LEAST);
        for to in kept..end {
            self.lists.kept.a.as_flattened_mut()[to % (LANES * LONGEST)] = f32::INFINITY;
        }
        self.lists.kept.count = end;
    }

    /// Chooses a point for every try of a run, eight tries in the lanes, among the candidates of a short list or those
    /// that are kept of a long one.
    #[inline(always)]
    pub(super) fn choose_run(&mut self, run: Run, near: Near<'_>) {
        let l = self.l;
        let group = run.group();
        let (zero, lead) = (l.splat(0.0), l.splat(self.lead[group]));
        let place_bits = l.splat_i(SHORT as i32 - 1);
        let places = if near.len > SHORT { self.lists.kept.count } else { near.len };
        let list = if near.len > SHORT { &self.lists.kept } else { &self.lists.all };
        let pairs = places.div_ceil(2);
        let (a, b) = (list.a.as_flattened().as_chunks().0, list.b.as_flattened().as_chunks().0);
        let (a, b) = (&a[..pairs], &b[..pairs]);
        for from in (run.from()..run.to()).step_by(LANES) {
            let from = from % TRIES;
            let s = l.load_at(&self.scales[group % LANES][from..]);
            let lead = lead * l.load_at(&self.inverses[group % LANES][from..]);
            let (least, second) = self.least_two(s, a, b);
            let place = l.to_bits(least);
            let mut chosen = l.lookup_i(l.load_i(&list.words[0]), place);
            for v in 1..places.min(SHORT).div_ceil(LANES) {
                let here = l.eq_i(l.shr::<3>(place & place_bits), l.splat_i(v as i32));
                chosen = l.select_i(here, l.lookup_i(l.load_i(&list.words[v]), place), chosen);
            }
            // Above zero, the error would exceed C.
            let bound = l.min(least, zero) + lead;
            let inside = l.lt_i(self.lists.eight, l.splat_i(run.to() as i32 - from as i32));
            let unclear = inside & (!l.lt(least, bound) | l.lt(second, bound));
            let to = &mut self.words[group / LANES][group % LANES][from..][..LANES];
            let old = l.load_i_at(to);
            to.copy_from_slice(&l.store_i(l.select_i(inside, chosen, old)));
            // Noted without a branch, which nobody could foresee.
            let tries = l.bits(if places > SHORT { inside } else { unclear }) & 0xff;
            self.unclear[self.unclear_count % UNCLEAR_TRIES] = Unclear { run, from: from as u8, tries };
            self.unclear_count += usize::from(tries != 0);
        }
    }

    /// By try, the least error over the scale of pairs of candidates, with the place in its lowest bits, and the least but
    /// one. What is no number, or infinite, drops out: also what fills up lists.
    #[inline(always)]
    fn least_two(&self, s: L::F32, a: &[[f32; 2]], b: &[[f32; 2]]) -> (L::F32, L::F32) {
        let (l, w) = (self.l, self.l.wide());
        let s = l.twice(s);
        let (two, others) = (w.splat_i(2), w.splat_i(-(SHORT as i32)));
        let mut place = w.to_bits(l.in_copies(&[f32::from_bits(0), f32::from_bits(1)]));
        let (mut least, mut second) = (w.splat(f32::INFINITY), w.splat(f32::INFINITY));
        for (a, b) in a.iter().zip(b) {
            let error = w.to_bits(s * l.in_copies(a) - l.in_copies(b));
            let error = w.from_bits(error & others | place);
            second = w.min(w.max(least, error), second);
            least = w.min(error, least);
            place = place + two;
        }
        // Among candidates of even and of odd place.
        let (least, second) = (l.copies(least), l.copies(second));
        (l.min(least[0], least[1]), l.min(l.max(least[0], least[1]), l.min(second[0], second[1])))
    }

    /// `A` and `2 B` of eight candidates.
    #[inline(always)]
    fn terms_of(&self, group: usize, words: &[Word; LANES], padding: L::F32) -> (L::F32, L::F32) {
        let l = self.l;
        let (mut a, mut b) = (padding, l.splat(0.0));
        let mut index = l.shr::<16>(l.load_i(words));
        let terms = &self.terms[group];
        if D == 8 {
            for i in (0..D).step_by(2) {
                let ([a0, b0], [a1, b1]) = (terms[i], terms[i + 1]);
                a = a + l.lookup_16([a0, a1], index);
                b = b + l.lookup_16([b0, b1], index);
                index = l.shr::<4>(index);
            }
        } else {
            for &[of_a, of_b] in terms {
                a = a + l.lookup(of_a, index);
                b = b + l.lookup(of_b, index);
                index = next_level::<L, D>(l, index);
            }
        }
        (a, b)
    }
}
