//! The nearest neighbours of many groups at once, for [`grid_lanes`](super::grid_lanes).
//!
//! A *run* is a group and neighbouring tries whose rounded magnitudes share a cell, and so its candidates. Those are
//! compared that are *leaders*; what their errors depend on is computed with eight of them in the lanes. Of a long list
//! only those are kept that may win somewhere in the run; then eight tries in the lanes compare what is left, two
//! candidates at a time. Runs are sorted by the length of their lists, so that the processor foresees most branches.
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
//!   sums need. So a candidate that another one beats at both ends of a run can be forgotten, and what is chosen by
//!   two tries of a run is chosen between them.
//!
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

use super::codebook::{Codebook, Near};
use super::grid_exact::{LONGEST, nearest_exactly, next_level};
use super::grid_runs::{GROUPS, OFF_GRID, ROOM, RUNS, Run, Runs, TRIES, UNCLEAR, Word, boxed};
use super::lanes::{LANES, Lanes, Vector};
use std::ops::Range;

/// The lead, in parts of `C`, that the best candidate needs: 512 half-ulps.
const MARGIN: f32 = 1.0 / 32768.0;
/// A magnitude this near to the border of its cell, in levels, is on it.
pub(super) const BORDER: f32 = 1.0 / 131_072.0;
/// Weights of a sub-block, at most.
const LONGEST_SUB_BLOCK: usize = 32;
/// Lists longer than this are pruned.
const SHORT: usize = 4 * LANES;
/// Pruned lists are made a multiple of this, so that the processor foresees most of their ends.
const AT_LEAST: usize = 4;

/// The runs at hand, and what the errors of each group's candidates depend on: room that is not cleared each time.
pub(super) struct Neighbours<L: Lanes, const D: usize> {
    l: L,
    grid: &'static Codebook<D>,
    /// What the levels stand for.
    q: L::F32,
    /// By sub-block and try; and their reciprocals, roughly.
    pub(super) scales: Box<[[f32; ROOM]; LANES]>,
    pub(super) inverses: Box<[[f32; ROOM]; LANES]>,
    /// By group of the sub-block, sub-block and try.
    pub(super) words: Box<[[[Word; ROOM]; LANES]; LANES]>,
    runs: Runs,
    /// By coordinate of the sub-blocks: their magnitudes, and the roots of the importance.
    magnitude: [[f32; LANES]; LONGEST_SUB_BLOCK],
    root: [[f32; LANES]; LONGEST_SUB_BLOCK],
    /// By group, the terms of `A` and of `2 B`: of each coordinate for every level, or, where a level has two bits, of
    /// two coordinates for every pair of levels.
    a: Box<[[L::F32; D]; GROUPS]>,
    b: Box<[[L::F32; D]; GROUPS]>,
    /// By group: the lead that decides; NaN if none does.
    lead: [f32; GROUPS],
    /// By group of the sub-block, and sub-block: a bit for each try in which a magnitude is on the border of its cell.
    pub(super) doubtful: [[i32; LANES]; LANES],
    /// By group: the packed levels of the coordinates with any importance.
    counting: [i32; GROUPS],
    /// Added to `A` where the last vector of a list has no candidate, by the list's length.
    padding: [L::F32; LANES],
    all: Box<List>,
    kept: Box<List>,
    unclear: Box<[Unclear; RUNS]>,
    unclear_count: usize,
    errors: Box<[L::F32; LONGEST]>,
    /// Errors over the scale of candidates, at either end of a run.
    at_ends: Box<[[[f32; LANES]; 2]; LONGEST]>,
}

/// Tries of a run in which no candidate leads by enough: a bit for each of eight.
#[derive(Clone, Copy)]
struct Unclear {
    run: Run,
    from: u8,
    tries: u8,
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
    #[inline(always)]
    pub(super) fn new(l: L, grid: &'static Codebook<D>, q: L::F32) -> Self {
        let zero = l.splat(0.0);
        let mut padding = [zero; LANES];
        for (len, padding) in padding.iter_mut().enumerate() {
            let mut lanes = [0.0; LANES];
            if len > 0 {
                lanes[len..].fill(f32::INFINITY);
            }
            *padding = l.load(&lanes);
        }
        Neighbours {
            l,
            grid,
            q,
            scales: boxed([1.0; ROOM]),
            inverses: boxed([1.0; ROOM]),
            words: boxed([[0; ROOM]; LANES]),
            runs: Runs::new(grid.at(0)),
            magnitude: [[0.0; LANES]; LONGEST_SUB_BLOCK],
            root: [[0.0; LANES]; LONGEST_SUB_BLOCK],
            a: boxed([zero; D]),
            b: boxed([zero; D]),
            lead: [0.0; GROUPS],
            doubtful: [[0; LANES]; LANES],
            counting: [0; GROUPS],
            padding,
            all: Box::new(List::EMPTY),
            kept: Box::new(List::EMPTY),
            unclear: boxed(Unclear { run: Run::none(grid.at(0)), from: 0, tries: 0 }),
            unclear_count: 0,
            errors: boxed(zero),
            at_ends: boxed([[0.0; LANES]; 2]),
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
            let levels = l.splat_i(((1 << self.grid.bits) - 1) << (self.grid.bits * i as u32));
            counting = counting | l.select_i(l.eq(root[i], zero), none, levels);
            let wx = root[i] * magnitude[i];
            c = c + wx * magnitude[i];
            self.magnitude[D * k + i] = l.store(magnitude[i]);
            self.root[D * k + i] = l.store(root[i]);
            twice_wx[i] = l.store(wx + wx);
        }
        let root = &self.root[D * k..][..D];
        for lane in 0..LANES {
            let (a, b) = (&mut self.a[LANES * k + lane], &mut self.b[LANES * k + lane]);
            if D == 8 {
                for i in (0..D).step_by(2) {
                    let (w, v) = (l.splat(root[i][lane]) * qq, l.splat(root[i + 1][lane]));
                    let (wx, vx) = (l.splat(twice_wx[i][lane]) * self.q, l.splat(twice_wx[i + 1][lane]));
                    (a[i], a[i + 1]) = (w + v * second_qq[0], w + v * second_qq[1]);
                    (b[i], b[i + 1]) = (wx + vx * second_q[0], wx + vx * second_q[1]);
                }
            } else {
                for i in 0..D {
                    a[i] = l.splat(root[i][lane]) * qq;
                    b[i] = l.splat(twice_wx[i][lane]) * self.q;
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

    /// Forgets all runs.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }

    /// Notes that group `k` of a sub-block falls on `cell` in some of `all` tries. The runs of a group come one after
    /// another.
    #[inline(always)]
    pub(super) fn start_run(&mut self, k: usize, lane: usize, cell: usize, tries: Range<usize>, all: usize) {
        let l = self.l;
        let (k, lane, from, to) = (k % LANES, lane % LANES, tries.start % TRIES, tries.end);
        let cell = self.grid.at(cell);
        let run = self.runs.start(cell, LANES * k + lane, from..to);
        // The word of a point, without asking whether it is one: `choose` replaces it where not.
        let levels = self.grid.packed.get(cell.point as usize).map_or(0, |&levels| Word::from(levels));
        let word = l.splat_i(Word::from(cell.point) | run.mark() | levels << 16);
        let words = &mut self.words[k][lane];
        // Beyond its end as well, where later runs follow: nobody could foresee how far it goes.
        for v in 0..all.div_ceil(LANES) {
            words[from + LANES * v..][..LANES].copy_from_slice(&l.store_i(word));
        }
    }

    /// Chooses points for all tries of all runs.
    #[inline(always)]
    pub(super) fn choose(&mut self) {
        self.unclear_count = 0;
        for length in 1..Runs::LENGTHS {
            let mut next = self.runs.first(length);
            while let Some((run, following)) = self.runs.at(next) {
                next = following;
                let near = self.grid.leaders(run.cell);
                self.put_terms(run.group(), near);
                if near.len > SHORT {
                    self.prune(run, near);
                }
                self.choose_run(run, near);
            }
        }
        for n in 0..self.unclear_count {
            self.settle(self.unclear[n % RUNS]);
        }
    }

    /// Fills in what the errors of all candidates depend on, and makes those infinitely bad that have the errors of an
    /// earlier one.
    #[inline(always)]
    fn put_terms(&mut self, group: usize, near: Near<'_>) {
        let l = self.l;
        let last = near.levels.len() - 1;
        for (v, levels) in near.levels.iter().enumerate() {
            let padding = if v == last { self.padding[near.len % LANES] } else { l.splat(0.0) };
            let (a, b) = self.terms_of(group, levels, padding);
            (self.all.a[v % LONGEST], self.all.b[v % LONGEST]) = (l.store(a), l.store(b));
            let words = l.load_u16(&near.numbers[v]) | l.shl::<16>(l.load_u16(levels)) | l.splat_i(OFF_GRID);
            self.all.words[v % LONGEST] = l.store_i(words);
        }
        let counting = self.counting[group];
        if counting == (1 << (self.grid.bits * D as u32)) - 1 {
            return;
        }
        let counting = l.splat_i(counting);
        for place in 0..near.len {
            let one = l.splat_i(i32::from(near.levels.as_flattened()[place])) & counting;
            for v in place / LANES..=last {
                let mut alike = l.bits(l.eq_i(l.load_u16(&near.levels[v]) & counting, one)) & 0xff;
                if v == place / LANES {
                    alike &= 0xfe << (place % LANES);
                }
                while alike != 0 {
                    self.all.a[v % LONGEST][alike.trailing_zeros() as usize % LANES] = f32::INFINITY;
                    alike &= alike - 1;
                }
            }
        }
    }

    /// Keeps the candidates of a run that another one does not beat at both its ends. That one is the best of the two
    /// ends together, roughly. None are kept if errors are not relative.
    #[inline(always)]
    fn prune(&mut self, run: Run, near: Near<'_>) {
        let l = self.l;
        let (group, count) = (run.group(), near.levels.len());
        let (from, last) = (run.from(), (run.to() - 1) % TRIES);
        let (scales, inverses) = (&self.scales[group % LANES], &self.inverses[group % LANES]);
        let (s, t) = (l.splat(scales[from]), l.splat(scales[last]));
        // The place of a candidate stands in the lowest bits of its error.
        let others = l.splat_i(-((LANES * LONGEST) as i32));
        let mut places = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let mut least = l.splat(f32::INFINITY);
        for v in 0..count {
            let (a, b) = (l.load(&self.all.a[v % LONGEST]), l.load(&self.all.b[v % LONGEST]));
            let (error, at_end) = (s * a - b, t * a - b);
            self.at_ends[v % LONGEST] = [l.store(error), l.store(at_end)];
            let both = l.to_bits(error + at_end);
            least = l.min(l.from_bits(both & others | places), least);
            places = places + l.splat_i(LANES as i32);
        }
        let best = (l.store(l.least(least))[0].to_bits() as usize) % (LANES * LONGEST);
        let [error, at_end] = self.at_ends[best / LANES];
        let (error, at_end, lead) = (error[best % LANES], at_end[best % LANES], self.lead[group]);
        // Above zero, the error would exceed C.
        let bound = l.splat(if error <= 0.0 { error + lead * inverses[from] } else { f32::INFINITY });
        let bound_at_end = l.splat(if at_end <= 0.0 { at_end + lead * inverses[last] } else { f32::INFINITY });
        let mut kept = 0;
        for eight in 0..count.div_ceil(8) {
            let mut bits = 0;
            for v in 8 * eight..count.min(8 * eight + 8) {
                let [error, at_end] = self.at_ends[v % LONGEST];
                let close = l.lt(l.load(&error), bound) | l.lt(l.load(&at_end), bound_at_end);
                bits |= u64::from(l.bits(close) & 0xff) << (8 * (v % 8));
            }
            // Four at a time, though there may be fewer: what is kept in vain is overwritten.
            loop {
                for _ in 0..AT_LEAST {
                    let place = (64 * eight + bits.trailing_zeros() as usize) % (LANES * LONGEST);
                    let to = kept % (LANES * LONGEST);
                    self.kept.a.as_flattened_mut()[to] = self.all.a.as_flattened()[place];
                    self.kept.b.as_flattened_mut()[to] = self.all.b.as_flattened()[place];
                    self.kept.words.as_flattened_mut()[to] = self.all.words.as_flattened()[place];
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
            self.kept.a.as_flattened_mut()[to % (LANES * LONGEST)] = f32::INFINITY;
        }
        self.kept.count = end;
    }

    /// Chooses a point for every try of a run, eight tries in the lanes, among the candidates of a short list or those
    /// that are kept of a long one.
    #[inline(always)]
    fn choose_run(&mut self, run: Run, near: Near<'_>) {
        let l = self.l;
        let group = run.group();
        let (zero, lead) = (l.splat(0.0), l.splat(self.lead[group]));
        let numbers = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let place_bits = l.splat_i(SHORT as i32 - 1);
        let places = if near.len > SHORT { self.kept.count } else { near.len };
        let list = if near.len > SHORT { &self.kept } else { &self.all };
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
            let inside = l.lt_i(numbers, l.splat_i(run.to() as i32 - from as i32));
            let unclear = inside & (!l.lt(least, bound) | l.lt(second, bound));
            let to = &mut self.words[group / LANES][group % LANES][from..][..LANES];
            let old = l.load_i_at(to);
            to.copy_from_slice(&l.store_i(l.select_i(inside, chosen | l.splat_i(run.mark()), old)));
            // Noted without a branch, which nobody could foresee.
            let unclear = l.bits(if places > SHORT { inside } else { unclear });
            let doubtful = self.doubtful[group / LANES][group % LANES] as u32 >> from & l.bits(inside);
            let tries = (unclear | doubtful) & 0xff;
            self.unclear[self.unclear_count % RUNS] = Unclear { run, from: from as u8, tries: tries as u8 };
            self.unclear_count += usize::from(tries != 0);
        }
    }

    /// By try, the least error over the scale of pairs of candidates, with the place in its lowest bits, and the least but
    /// one. What is no number, or infinite, drops out: also what fills up lists.
    #[inline(always)]
    fn least_two(&self, s: L::F32, a: &[[f32; 2]], b: &[[f32; 2]]) -> (L::F32, L::F32) {
        let (l, w) = (self.l, self.l.wide());
        // Among candidates of even and of odd place.
        let (least, second) = if D == 8 {
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
            (l.copies(least), l.copies(second))
        } else {
            // Lists are so short that it would not pay to part the copies again.
            let (two, others) = (l.splat_i(2), l.splat_i(-(SHORT as i32)));
            let mut place = [l.splat_i(0), l.splat_i(1)];
            let (mut least, mut second) = ([l.splat(f32::INFINITY); 2], [l.splat(f32::INFINITY); 2]);
            for (a, b) in a.iter().zip(b) {
                for i in 0..2 {
                    let error = l.to_bits(s * l.splat(a[i]) - l.splat(b[i]));
                    let error = l.from_bits(error & others | place[i]);
                    second[i] = l.min(l.max(least[i], error), second[i]);
                    least[i] = l.min(error, least[i]);
                    place[i] = place[i] + two;
                }
            }
            (least, second)
        };
        (l.min(least[0], least[1]), l.min(l.max(least[0], least[1]), l.min(second[0], second[1])))
    }

    /// Chooses the points of tries in which no candidate leads by enough, by their exact errors.
    #[inline(always)]
    fn settle(&mut self, Unclear { run, from, mut tries }: Unclear) {
        let group = run.group();
        let near = self.grid.near(run.cell);
        while tries != 0 {
            let at = (from as usize + tries.trailing_zeros() as usize) % TRIES;
            tries &= tries - 1;
            let word = word_of(near, self.nearest(group, near, self.scales[group % LANES][at])) | UNCLEAR;
            self.words[group / LANES][group % LANES][at] = word;
        }
    }

    /// `A` and `2 B` of eight candidates.
    #[inline(always)]
    fn terms_of(&self, group: usize, levels: &[u16; LANES], padding: L::F32) -> (L::F32, L::F32) {
        let l = self.l;
        let (mut a, mut b) = (padding, l.splat(0.0));
        let mut index = l.load_u16(levels);
        if D == 8 {
            for i in (0..D).step_by(2) {
                a = a + l.lookup_16([self.a[group][i], self.a[group][i + 1]], index);
                b = b + l.lookup_16([self.b[group][i], self.b[group][i + 1]], index);
                index = l.shr::<4>(index);
            }
        } else {
            for i in 0..D {
                a = a + l.lookup(self.a[group][i], index);
                b = b + l.lookup(self.b[group][i], index);
                index = next_level::<L, D>(l, index);
            }
        }
        (a, b)
    }

    /// [`nearest_exactly`] for a group.
    #[inline(always)]
    fn nearest(&mut self, group: usize, near: Near<'_>, scale: f32) -> usize {
        let (mut x, mut w) = ([0.0; D], [0.0; D]);
        for i in 0..D {
            let at = (D * (group / LANES) + i) % LONGEST_SUB_BLOCK;
            (x[i], w[i]) = (self.magnitude[at][group % LANES], self.root[at][group % LANES]);
        }
        nearest_exactly(self.l, near, self.q, &x, &w, scale, &mut self.errors)
    }
}

/// The word of a candidate.
#[inline(always)]
fn word_of(near: Near<'_>, place: usize) -> Word {
    OFF_GRID | Word::from(near.numbers.as_flattened()[place]) | Word::from(near.levels.as_flattened()[place]) << 16
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
