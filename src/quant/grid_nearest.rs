//! The nearest neighbours of many groups at once, for [`grid_lanes`](super::grid_lanes).
//!
//! A *run* is a group and neighbouring tries whose rounded magnitudes share a cell, and so its candidates. Those are
//! compared that are *leaders*. Where a grid has four dimensions most lists are so short that a look at the run's ends
//! decides ([`grid_ends`](super::grid_ends)). Otherwise what the candidates' errors depend on is computed with eight of
//! them in the lanes; of a long list only those are kept that may win somewhere in the run; then eight tries in the
//! lanes compare what is left, two candidates at a time. Such runs are sorted by the length of their lists, so that the
//! processor foresees most branches.
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

use super::codebook::{Codebook, Near, UNCLEAR, Word};
use super::grid_exact::{LONGEST, nearest_exactly, next_level};
use super::grid_runs::{GROUPS, ROOM, Run, Runs, TRIES, boxed};
use super::lanes::{LANES, Lanes, Vector, WIDE};

/// The lead, in parts of `C`, that the best candidate needs: 512 half-ulps.
const MARGIN: f32 = 1.0 / 32768.0;
/// Room for what is unclear: every try of every group, and once more where a magnitude is on a border.
pub(super) const UNCLEAR_TRIES: usize = 2 * TRIES * GROUPS;
/// A magnitude this near to the border of its cell, in levels, is on it.
pub(super) const BORDER: f32 = 1.0 / 131_072.0;
/// Weights of a sub-block, at most.
const LONGEST_SUB_BLOCK: usize = 32;
/// Lists longer than this are pruned.
const SHORT: usize = 4 * LANES;
/// Pruned lists are made a multiple of this, so that the processor foresees most of their ends.
const AT_LEAST: usize = 4;
/// Added to the error over the scale of what is no candidate. Where errors are relative, none comes near to it: the scale
/// is 1e15 at most, roots of the importance are 4e18 at most, and `C` is below 1e33.
const FAR: f32 = 3e38;
/// Runs whose ends are looked at before those that these do not decide are looked at again.
pub(super) const AT_ONCE: usize = 256;

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
    /// By group: the lead that decides; NaN if none does. Also times the largest inverse scale.
    pub(super) lead: [f32; GROUPS],
    pub(super) largest_lead: [f32; GROUPS],
    /// By group of the sub-block, and sub-block: a bit for each try that starts a run.
    pub(super) starts: [[i32; LANES]; LANES],
    /// By group: the packed levels of the coordinates with any importance.
    counting: [i32; GROUPS],
    /// By group: what makes any list too long to be decided at its ends if some coordinates have none; otherwise 0.
    pub(super) many: [u32; GROUPS],
    /// Added to `A` where the last vector of a list has no candidate, by the list's length.
    padding: [L::F32; LANES],
    /// Subtracted from `A` and `2 B` where a cell has fewer than eight candidates, by their number.
    pub(super) filling: [<L::Wide as Vector>::F32; LANES],
    /// Bit 3 in the second half ([`Lanes::lookup_halves`]): of every level of a word, and of the number itself.
    pub(super) second_levels: <L::Wide as Vector>::I32,
    pub(super) second: <L::Wide as Vector>::I32,
    /// 0 to 15, and 0 to 7.
    pub(super) sixteen: <L::Wide as Vector>::I32,
    eight: L::I32,
    all: Box<List>,
    kept: Box<List>,
    pub(super) unclear: Box<[Unclear; UNCLEAR_TRIES]>,
    pub(super) unclear_count: usize,
    errors: Box<[L::F32; LONGEST]>,
    /// Errors over the scale of candidates, at either end of a run.
    at_ends: Box<[[[f32; LANES]; 2]; LONGEST]>,
    /// The runs that their ends do not decide, and the terms of their candidates.
    pub(super) open: [u16; AT_ONCE],
    pub(super) open_terms: Box<[[f32; WIDE]; AT_ONCE]>,
    pub(super) open_count: usize,
}

/// Tries of a run in which no candidate leads by enough: a bit for each, the lowest for `from`.
#[derive(Clone, Copy)]
pub(super) struct Unclear {
    pub(super) run: Run,
    pub(super) from: u8,
    pub(super) tries: u32,
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
    /// The packed levels of all coordinates.
    const ALL: i32 = 0xffff;

    #[inline(always)]
    pub(super) fn new(l: L, grid: &'static Codebook<D>, q: L::F32) -> Self {
        let zero = l.splat(0.0);
        let (mut padding, mut filling) = ([zero; LANES], [l.join([zero; 2]); LANES]);
        for len in 1..LANES {
            let mut lanes = [0.0; LANES];
            lanes[len..].fill(f32::INFINITY);
            padding[len] = l.load(&lanes);
            lanes[len..].fill(FAR);
            filling[len] = l.join([zero, l.load(&lanes)]);
        }
        let eight = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let sixteen = l.wide().to_bits(l.join([l.from_bits(eight); 2])) | in_second(l, 8);
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
            largest_lead: [0.0; GROUPS],
            starts: [[0; LANES]; LANES],
            counting: [0; GROUPS],
            many: [0; GROUPS],
            padding,
            filling,
            second_levels: in_second(l, 0x8888 << 16),
            second: in_second(l, 8),
            sixteen,
            eight,
            all: Box::new(List::EMPTY),
            kept: Box::new(List::EMPTY),
            unclear: boxed(Unclear { run: Run::NONE, from: 0, tries: 0 }),
            unclear_count: 0,
            errors: boxed(zero),
            at_ends: boxed([[0.0; LANES]; 2]),
            open: [0; AT_ONCE],
            open_terms: boxed([0.0; WIDE]),
            open_count: 0,
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
        let whole = l.eq_i(counting, l.splat_i(Self::ALL));
        let many = l.store_i(l.select_i(whole, none, l.splat_i(SHORT as i32)));
        for lane in 0..LANES {
            self.many[LANES * k + lane] = many[lane] as u32;
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

    /// Tells what lead decides at the scales of which the largest inverses are these, by sub-block.
    #[inline(always)]
    pub(super) fn set_leads(&mut self, inverse: L::F32) {
        let l = self.l;
        for (lead, largest) in self.lead.as_chunks().0.iter().zip(self.largest_lead.as_chunks_mut().0) {
            *largest = l.store(l.load(lead) * inverse);
        }
    }

    /// Forgets all runs; those to come are of so many tries.
    #[inline(always)]
    pub(super) fn clear(&mut self, tries: usize) {
        self.vectors = tries.div_ceil(LANES).min(TRIES / LANES);
        self.runs.clear();
        self.unclear_count = 0;
    }

    /// Chooses points for all tries of all runs.
    #[inline(always)]
    pub(super) fn choose(&mut self) {
        if D == 4 {
            self.choose_at_ends();
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

    /// Fills in what the errors of all candidates depend on, and makes those infinitely bad that have the errors of an
    /// earlier one.
    #[inline(always)]
    fn put_terms(&mut self, group: usize, near: Near<'_>) {
        let l = self.l;
        let last = near.words.len() - 1;
        for (v, words) in near.words.iter().enumerate() {
            let padding = if v == last { self.padding[near.len % LANES] } else { l.splat(0.0) };
            let (a, b) = self.terms_of(group, words, padding);
            (self.all.a[v % LONGEST], self.all.b[v % LONGEST]) = (l.store(a), l.store(b));
            self.all.words[v % LONGEST] = *words;
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
        let (group, count) = (run.group(), near.words.len());
        let (from, last) = (run.from(), run.last());
        let (scales, inverses) = (&self.scales[group % LANES], &self.inverses[group % LANES]);
        let (s, t) = (l.splat(scales[from]), l.splat(scales[last]));
        // The place of a candidate stands in the lowest bits of its error.
        let others = l.splat_i(-((LANES * LONGEST) as i32));
        let mut places = self.eight;
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
            let inside = l.lt_i(self.eight, l.splat_i(run.to() as i32 - from as i32));
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

/// A number in the lanes of the second half, 0 in the others.
#[inline(always)]
fn in_second<L: Lanes>(l: L, v: i32) -> <L::Wide as Vector>::I32 {
    l.wide().to_bits(l.join([l.splat(0.0), l.from_bits(l.splat_i(v))]))
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
