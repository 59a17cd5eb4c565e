//! The nearest neighbours of many groups at once, for [`grid_lanes`](super::grid_lanes).
//!
//! A *run* is a group and neighbouring tries whose rounded magnitudes share a cell, and so its candidates. What their
//! errors depend on is computed with eight candidates in the lanes, and compared with eight tries in the lanes. Runs
//! are sorted by the length of their lists, so that the processor foresees most branches.
//!
//! **Why the candidate is the one that ggml takes.** At scale `s` the error of candidate `j` is `C + s (s A_j - 2 B_j)`,
//! with `A = sum w q^2`, `B = sum w x q`, `C = sum w x^2`. The lanes compare `s (s A_j - 2 B_j)`, which costs a few
//! operations instead of a sum over the coordinates. This and ggml's sum together differ from the true error by less
//! than 51 half-ulps of `s^2 A + C`, and `s^2 A` is at most twice `C` plus twice the error. So where the best error is
//! at most `C`, a lead of 510 half-ulps of `C` decides as ggml's comparison does; [`MARGIN`] asks for more. Candidates
//! that differ only where the importance is zero have the same error in both, and ggml takes the first of them.
//! Without such a lead, or where numbers leave the range in which errors are relative, the candidates' errors are
//! computed exactly as ggml does ([`nearest_exactly`]).
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::codebook::{Cell, Codebook, Near};
use super::lanes::{LANES, Lanes};

/// The lead, in parts of `C`, that the best candidate needs: 1024 half-ulps.
const MARGIN: f32 = 1.0 / 16384.0;
/// Vectors in the longest list of neighbours of any codebook.
pub(super) const LONGEST: usize = 64;
/// Weights of a sub-block, at most.
const LONGEST_SUB_BLOCK: usize = 32;
/// Groups of eight sub-blocks, at most.
const GROUPS: usize = 64;
/// Tries of a search, at most.
pub(super) const TRIES: usize = 32;
/// Tries with room for a vector from any of them on.
const ROOM: usize = TRIES + LANES;
/// Runs that all groups can have, and one that is never looked at.
const RUNS: usize = TRIES * GROUPS + 1;
/// Runs are sorted by the vectors of their lists: none, one ... and this many or more.
const CLASSES: usize = 8;

/// What is chosen for a group: the point's number in the low half, its packed levels in the high one.
pub(super) type Word = i32;
/// Set where the rounded magnitudes were no point.
pub(super) const OFF_GRID: Word = 1 << 15;
/// The point's number.
pub(super) const POINT: Word = OFF_GRID - 1;

/// Words by group of the sub-block, and sub-block.
pub(super) type Words = [[Word; LANES]; LANES];

/// Neighbouring tries of a group that share a cell.
#[derive(Clone, Copy)]
struct Run {
    cell: Cell,
    /// `LANES` times the group within its sub-block, plus the sub-block.
    group: u8,
    /// First try, and the one after the last.
    from: u8,
    to: u8,
}

/// The runs at hand, and what the errors of each group's candidates depend on: room that is not cleared each time.
pub(super) struct Neighbours<L: Lanes, const D: usize> {
    l: L,
    grid: &'static Codebook<D>,
    /// What the levels stand for.
    q: L::F32,
    /// By sub-block and try.
    pub(super) scales: Box<[[f32; ROOM]; LANES]>,
    /// By group of the sub-block, sub-block and try.
    pub(super) words: Box<[[[Word; ROOM]; LANES]; LANES]>,
    runs: Box<[Run; RUNS]>,
    count: usize,
    /// The last run of each sub-block's group at hand.
    last: [usize; LANES],
    order: Box<[[u16; RUNS]; CLASSES]>,
    counts: [usize; CLASSES],
    /// By coordinate of the sub-blocks: their magnitudes, and the roots of the importance.
    magnitude: [[f32; LANES]; LONGEST_SUB_BLOCK],
    root: [[f32; LANES]; LONGEST_SUB_BLOCK],
    /// By group and coordinate, for every level: the terms of `A` and of `2 B`.
    a: Box<[[L::F32; D]; GROUPS]>,
    b: Box<[[L::F32; D]; GROUPS]>,
    /// By group: the lead that decides; NaN if none does.
    lead: [f32; GROUPS],
    /// By group: the packed levels of the coordinates with any importance.
    counting: [i32; GROUPS],
    /// Added to `A` where the last vector of a list has no candidate, by the list's length.
    padding: [L::F32; LANES],
    /// `A` and `2 B` of candidates, and errors.
    terms: Box<[[[f32; LANES]; 2]; LONGEST]>,
    errors: Box<[L::F32; LONGEST]>,
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
            words: boxed([[0; ROOM]; LANES]),
            runs: boxed(Run { cell: grid.at(0), group: 0, from: 0, to: 0 }),
            count: 1,
            last: [0; LANES],
            order: boxed([0; RUNS]),
            counts: [0; CLASSES],
            magnitude: [[0.0; LANES]; LONGEST_SUB_BLOCK],
            root: [[0.0; LANES]; LONGEST_SUB_BLOCK],
            a: boxed([zero; D]),
            b: boxed([zero; D]),
            lead: [0.0; GROUPS],
            counting: [0; GROUPS],
            padding,
            terms: boxed([[0.0; LANES]; 2]),
            errors: boxed(zero),
        }
    }

    /// Takes group `k` of eight sub-blocks: the magnitudes and the roots of the importance, by coordinate.
    #[inline(always)]
    pub(super) fn set_group(&mut self, k: usize, magnitude: &[L::F32], root: &[L::F32]) {
        let l = self.l;
        let qq = self.q * self.q;
        let (zero, none) = (l.splat(0.0), l.splat_i(0));
        let (mut c, mut counting) = (zero, none);
        for i in 0..D {
            let levels = l.splat_i(((1 << self.grid.bits) - 1) << (self.grid.bits * i as u32));
            counting = counting | l.select_i(l.eq(root[i], zero), none, levels);
            let wx = root[i] * magnitude[i];
            c = c + wx * magnitude[i];
            self.magnitude[D * k + i] = l.store(magnitude[i]);
            self.root[D * k + i] = l.store(root[i]);
            let (w, twice_wx) = (&self.root[D * k + i], l.store(wx + wx));
            for lane in 0..LANES {
                self.a[LANES * k + lane][i] = l.splat(w[lane]) * qq;
                self.b[LANES * k + lane][i] = l.splat(twice_wx[lane]) * self.q;
            }
        }
        self.counting[LANES * k..][..LANES].copy_from_slice(&l.store_i(counting));
        // Errors are relative only clear of denormals and infinities; elsewhere nothing leads. Where nothing has any
        // importance, all errors are zero, and any lead decides.
        let relative = l.lt(l.splat(1e-31), c) & l.lt(c, l.splat(1e33));
        let lead = l.select(relative, l.splat(MARGIN) * c, l.splat(f32::NAN));
        let lead = l.select(l.eq_i(counting, none), l.splat(1.0), lead);
        self.lead[LANES * k..][..LANES].copy_from_slice(&l.store(lead));
    }

    /// Forgets all runs.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.count = 1;
        self.counts = [0; CLASSES];
    }

    /// The next runs are of another group of the sub-blocks.
    #[inline(always)]
    pub(super) fn next_group(&mut self) {
        self.last = [0; LANES];
    }

    /// Notes that group `k` of a sub-block falls on `cell` from a try on, up to `to` or the next such note.
    #[inline(always)]
    pub(super) fn start_run(&mut self, k: usize, lane: usize, cell: usize, from: usize, to: usize) {
        let l = self.l;
        let (k, lane, from) = (k % LANES, lane % LANES, from % TRIES);
        let cell = self.grid.at(cell);
        // The first run of a group has none before it; what is written then belongs to run 0, which nobody reads.
        self.runs[self.last[lane] % RUNS].to = from as u8;
        self.runs[self.count] = Run { cell, group: (LANES * k + lane) as u8, from: from as u8, to: to as u8 };
        self.last[lane] = self.count;
        let class = (cell.len as usize).div_ceil(LANES).min(CLASSES - 1);
        self.order[class][self.counts[class]] = self.count as u16;
        self.counts[class] += 1;
        self.count += 1;
        // The word of a point, without asking whether it is one: later runs and `choose` replace it where not.
        let word = l.splat_i(Word::from(cell.point) | Word::from(self.grid.packed[cell.point as usize]) << 16);
        let words = &mut self.words[k][lane];
        for at in (from..to).step_by(LANES) {
            words[at..][..LANES].copy_from_slice(&l.store_i(word));
        }
    }

    /// Chooses points for all tries of all runs.
    #[inline(always)]
    pub(super) fn choose(&mut self) {
        for class in 1..CLASSES {
            for n in 0..self.counts[class] {
                let run = self.runs[self.order[class][n] as usize % RUNS];
                self.choose_run(run);
            }
        }
    }

    /// Chooses a point for every try of a run, eight tries in the lanes.
    #[inline(always)]
    fn choose_run(&mut self, run: Run) {
        let l = self.l;
        let near = self.grid.near(run.cell);
        let group = run.group as usize % GROUPS;
        self.put_terms(group, near);
        let (zero, infinite, lead) = (l.splat(0.0), l.splat(f32::INFINITY), l.splat(self.lead[group]));
        let numbers = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        for from in (run.from as usize..run.to as usize).step_by(LANES) {
            let from = from % TRIES;
            let s = l.load_at(&self.scales[group % LANES][from..]);
            let ss = s * s;
            // By try: the least error, the least but one, and the place of the least.
            let (mut least, mut second, mut place) = (infinite, infinite, l.splat_i(0));
            for (v, [a, b]) in self.terms[..near.levels.len()].iter().enumerate() {
                for j in 0..LANES {
                    let error = ss * l.splat(a[j]) - s * l.splat(b[j]);
                    let lower = l.lt(error, least);
                    second = l.min(second, l.max(least, error));
                    least = l.min(error, least);
                    place = l.select_i(lower, l.splat_i((LANES * v + j) as i32), place);
                }
            }
            // Above zero, the error would exceed C.
            let bound = l.min(least, zero) + lead;
            let inside = l.lt_i(numbers, l.splat_i(run.to as i32 - from as i32));
            let unclear = inside & (!l.lt(least, bound) | l.lt(second, bound));
            let words = if let [levels] = near.levels {
                let words = l.load_u16(&near.numbers[0]) | l.shl::<16>(l.load_u16(levels));
                l.lookup_i(words | l.splat_i(OFF_GRID), place)
            } else {
                let mut words = [0; LANES];
                for (word, place) in words.iter_mut().zip(l.store_i(place)) {
                    *word = word_of(near, place as usize);
                }
                l.load_i(&words)
            };
            let to = &mut self.words[group / LANES][group % LANES][from..][..LANES];
            let old = l.load_i_at(to);
            to.copy_from_slice(&l.store_i(l.select_i(inside, words, old)));
            let mut unclear = l.bits(unclear) & 0xff;
            while unclear != 0 {
                let at = from + unclear.trailing_zeros() as usize % LANES;
                unclear &= unclear - 1;
                let place = self.nearest(group, near, self.scales[group % LANES][at]);
                self.words[group / LANES][group % LANES][at] = word_of(near, place);
            }
        }
    }

    /// Fills in `A` and `2 B` of every candidate, and makes those infinitely bad that have the errors of an earlier one.
    #[inline(always)]
    fn put_terms(&mut self, group: usize, near: Near<'_>) {
        let l = self.l;
        let last = near.levels.len() - 1;
        for (v, levels) in near.levels.iter().enumerate() {
            let padding = if v == last { self.padding[near.len % LANES] } else { l.splat(0.0) };
            let (a, b) = self.terms_of(group, levels, padding);
            self.terms[v % LONGEST] = [l.store(a), l.store(b)];
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
                    self.terms[v % LONGEST][0][alike.trailing_zeros() as usize % LANES] = f32::INFINITY;
                    alike &= alike - 1;
                }
            }
        }
    }

    /// `A` and `2 B` of eight candidates.
    #[inline(always)]
    fn terms_of(&self, group: usize, levels: &[u16; LANES], padding: L::F32) -> (L::F32, L::F32) {
        let l = self.l;
        let (mut a, mut b) = (padding, l.splat(0.0));
        let mut index = l.load_u16(levels);
        for i in 0..D {
            a = a + l.lookup(self.a[group][i], index);
            b = b + l.lookup(self.b[group][i], index);
            index = next_level::<L, D>(l, index);
        }
        (a, b)
    }

    /// Chooses a point for every run, all of them of one try with its sub-block's scale among `scales`.
    #[inline(always)]
    pub(super) fn choose_once(&mut self, scales: &[f32; LANES], words: &mut Words) {
        for n in 0..self.counts[0] {
            let run = self.runs[self.order[0][n] as usize % RUNS];
            let group = run.group as usize % GROUPS;
            let packed = self.grid.packed[run.cell.point as usize];
            words[group / LANES][group % LANES] = Word::from(run.cell.point) | Word::from(packed) << 16;
        }
        for class in 1..CLASSES {
            for n in 0..self.counts[class] {
                let run = self.runs[self.order[class][n] as usize % RUNS];
                let near = self.grid.near(run.cell);
                let group = run.group as usize % GROUPS;
                let scale = scales[group % LANES];
                let place = match self.leader(group, near, scale) {
                    Some(place) => place,
                    None => self.nearest(group, near, scale),
                };
                words[group / LANES][group % LANES] = word_of(near, place);
            }
        }
    }

    /// The place of the candidate with the least error at a scale, if it leads by enough: the first of those alike.
    #[inline(always)]
    fn leader(&mut self, group: usize, near: Near<'_>, scale: f32) -> Option<usize> {
        let l = self.l;
        let (s, ss) = (l.splat(scale), l.splat(scale * scale));
        // Above zero, the error would exceed C.
        let mut least = l.splat(0.0);
        let last = near.levels.len() - 1;
        for (v, levels) in near.levels.iter().enumerate() {
            let padding = if v == last { self.padding[near.len % LANES] } else { l.splat(0.0) };
            let (a, b) = self.terms_of(group, levels, padding);
            let error = ss * a - s * b;
            self.errors[v % LONGEST] = error;
            least = l.min(error, least);
        }
        let bound = l.least(least) + l.splat(self.lead[group]);
        // Bit by candidate.
        let mut close = [0u64; LONGEST / 8];
        for v in 0..=last {
            close[v / 8 % (LONGEST / 8)] |=
                u64::from(l.bits(l.lt(self.errors[v % LONGEST], bound)) & 0xff) << (v % 8 * 8);
        }
        let mut leader = None;
        let counting = self.counting[group];
        for (eight, mut close) in close[..=last / 8].iter().copied().enumerate() {
            while close != 0 {
                let place = 64 * eight + close.trailing_zeros() as usize;
                close &= close - 1;
                let levels = i32::from(near.levels.as_flattened()[place]) & counting;
                match leader {
                    None => leader = Some((place, levels)),
                    Some((_, first)) if first == levels => {}
                    Some(_) => return None,
                }
            }
        }
        leader.map(|(place, _)| place)
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

/// An array on the heap, where the compiler leaves it.
fn boxed<T: Clone, const N: usize>(v: T) -> Box<[T; N]> {
    match vec![v; N].try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("a vector of {N} elements is an array of as many"),
    }
}

/// The word of a candidate.
#[inline(always)]
fn word_of(near: Near<'_>, place: usize) -> Word {
    OFF_GRID | Word::from(near.numbers.as_flattened()[place]) | Word::from(near.levels.as_flattened()[place]) << 16
}

/// The place of the candidate with the least weighted squared error, computed in ggml's order: the first of equals, and
/// the first of all where no error is a number. `q` is what the levels stand for; `errors` is room for all candidates.
#[inline(always)]
pub(super) fn nearest_exactly<L: Lanes, const D: usize>(
    l: L,
    near: Near<'_>,
    q: L::F32,
    x: &[f32; D],
    weight: &[f32; D],
    scale: f32,
    errors: &mut [L::F32; LONGEST],
) -> usize {
    let scaled = l.splat(scale) * q;
    let mut terms = [l.splat(0.0); D];
    for i in 0..D {
        let diff = scaled - l.splat(x[i]);
        terms[i] = l.splat(weight[i]) * diff * diff;
    }
    let mut least = l.splat(f32::MAX);
    for (error, levels) in errors.iter_mut().zip(near.levels) {
        let mut sum = l.splat(0.0);
        let mut index = l.load_u16(levels);
        for &terms in &terms {
            sum = sum + l.lookup(terms, index);
            index = next_level::<L, D>(l, index);
        }
        *error = sum;
        least = l.min(sum, least);
    }
    let least = l.least(least);
    for (v, &error) in errors[..near.levels.len()].iter().enumerate() {
        let bits = l.bits(l.eq(error, least) & l.lt(error, l.splat(f32::MAX)));
        if bits != 0 {
            return 8 * v + bits.trailing_zeros() as usize;
        }
    }
    0
}

/// Brings the next coordinate's level to the lowest bits.
#[inline(always)]
pub(super) fn next_level<L: Lanes, const D: usize>(l: L, index: L::I32) -> L::I32 {
    if D == 8 { l.shr::<2>(index) } else { l.shr::<3>(index) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::codebook::{self, Offer};

    #[test]
    fn every_list_of_neighbours_fits() {
        fn longest<const D: usize>(grid: &Codebook<D>) -> usize {
            let cells = 0..grid.radix.pow(D as u32);
            let len = |cell| match grid.offer(cell) {
                Offer::Point(_) => 0,
                Offer::Near(near) => near.levels.len(),
            };
            cells.map(len).max().unwrap_or(0)
        }
        assert!(longest(codebook::iq1()) <= LONGEST, "{}", longest(codebook::iq1()));
        for grid in [codebook::iq2_xxs(), codebook::iq2_xs(), codebook::iq2_s()] {
            assert!(longest(grid) <= LONGEST);
        }
        for grid in [codebook::iq3_xxs(), codebook::iq3_s()] {
            assert!(longest(grid) <= LONGEST);
        }
    }
}
