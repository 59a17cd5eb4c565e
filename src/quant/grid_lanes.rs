//! The search of [`grid_search`](super::grid_search) over lanes: the same points and scales, sooner.
//!
//! ```text
//! eight tries in the lanes round every magnitude and find its group's cell
//! a run of tries that share a cell shares its candidates: the best one is found at both ends of the run, eight
//! candidates in the lanes; where it is the same, it is the best in between too
//! eight tries in the lanes sum up; equal neighbouring tries are summed once
//! ```
//!
//! **Why the candidate is the one that ggml takes.** At scale `s` the error of candidate `j` is `C + s (s A_j - 2 B_j)`,
//! with `A = sum w q^2`, `B = sum w x q`, `C = sum w x^2`. The lanes compare `s (s A_j - 2 B_j)`, which costs a few
//! operations instead of a sum over the coordinates. This and ggml's sum together differ from the true error by less
//! than 51 half-ulps of `s^2 A + C`, and `s^2 A` is at most twice `C` plus twice the error. So where the best error is
//! at most `C`, a lead of 510 half-ulps of `C` decides as ggml's comparison does. Since `s A_j - 2 B_j` is linear in
//! `s`, such a lead at both ends of a run of scales is one in between, but for the ratio of the scales, which is less
//! than 1.6. [`MARGIN`] covers both. Without such a lead, or where numbers leave the range in which errors are relative,
//! the candidates' errors are computed exactly as ggml does ([`nearest_exactly`]).
#![allow(clippy::needless_range_loop)] // one index into several arrays
#![allow(clippy::neg_cmp_op_on_partial_ord)] // NaN goes the other way

use super::Rows;
use super::codebook::{Codebook, Near, Offer};
use super::grid_search::{Again, GridType, Points, Rule, Search, SubBlock};
use super::lanes::{Kernel, LANES, Lanes};
use std::marker::PhantomData;

/// The lead, in parts of `C`, that the best candidate needs: 2048 half-ulps.
const MARGIN: f32 = 1.0 / 8192.0;
/// Beyond this, rounding to a level would wrap.
const WRAPS: f32 = 2e6;
/// Tries of a search, at most, and as many vectors.
const TRIES: usize = 32;
const TRY_VECTORS: usize = TRIES / LANES;
/// Marks a point that stands for a cell without one.
const OFF_GRID: u16 = 1 << 15;

/// The kernel of a grid type.
pub(super) struct OverLanes<T, const D: usize>(PhantomData<T>);

impl<T: GridType<D>, const D: usize> Kernel for OverLanes<T, D> {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let mut search = GridSearch::new(l, T::grid(), T::RULE);
        for (i, (x, block)) in rows.values.chunks_exact(256).zip(out.chunks_exact_mut(T::BYTES)).enumerate() {
            let weights = rows.imatrix.map(|w| &w[256 * i % rows.row_len..][..256]);
            T::encode(&mut search, x, weights, block);
        }
    }
}

/// A codebook and a rule, ready for lanes.
struct GridSearch<L: Lanes, const D: usize> {
    l: L,
    grid: &'static Codebook<D>,
    rule: Rule,
    /// What the levels stand for, and the squares.
    q: L::F32,
    /// Numerators of the inverse scales, by try.
    numerators: [L::F32; TRY_VECTORS],
    tries: usize,
    /// `A` and `2 B` of the candidates at hand, and their errors: room that is not cleared each time.
    terms: [(L::F32, L::F32); LONGEST],
    errors: [L::F32; LONGEST],
}

/// What the errors of a group's candidates depend on.
struct Group<'a, L: Lanes, const D: usize> {
    magnitude: &'a [f32; D],
    root: &'a [f32; D],
    /// By coordinate, for every level: the terms of `A` and of `2 B`.
    a: [L::F32; D],
    b: [L::F32; D],
    /// The lead that decides; NaN if none does.
    lead: f32,
}

impl<L: Lanes, const D: usize> Search for GridSearch<L, D> {
    #[inline(always)]
    fn search<const N: usize>(&mut self, block: &SubBlock<N>, max: f32, scale: f32) -> (f32, Points) {
        self.search_sub_block(self.l, block, max, scale)
    }
}

impl<L: Lanes, const D: usize> GridSearch<L, D> {
    #[inline(always)]
    fn new(l: L, grid: &'static Codebook<D>, rule: Rule) -> Self {
        let mut q = [0.0; LANES];
        for (i, q) in q.iter_mut().enumerate() {
            // Packed levels of two bits are looked up with a third, which belongs to the next coordinate.
            *q = (2 * (i % (1 << grid.bits)) + 1) as f32;
        }
        let mut numerators = [l.splat(0.0); TRY_VECTORS];
        for (v, numerators) in numerators.iter_mut().enumerate() {
            let mut lanes = [0.0; LANES];
            for (i, n) in lanes.iter_mut().enumerate() {
                let try_ = (v * LANES + i) as i32 - rule.half_tries;
                *n = rule.top + try_.min(rule.half_tries) as f32 * rule.step;
            }
            *numerators = l.load(&lanes);
        }
        let tries = 2 * rule.half_tries as usize + 1;
        let zero = l.splat(0.0);
        let (terms, errors) = ([(zero, zero); LONGEST], [zero; LONGEST]);
        GridSearch { l, grid, rule, q: l.load(&q), numerators, tries, terms, errors }
    }

    /// The search of one sub-block.
    #[inline(always)]
    fn search_sub_block<const N: usize>(&mut self, l: L, block: &SubBlock<N>, max: f32, scale: f32) -> (f32, Points) {
        let groups = N / D;
        let vectors = self.tries.div_ceil(LANES);
        let mut inverse = [[0.0; LANES]; TRY_VECTORS];
        let mut scales = [[0.0; LANES]; TRY_VECTORS];
        for v in 0..vectors {
            let id = self.numerators[v] / l.splat(max);
            inverse[v] = l.store(id);
            scales[v] = l.store(l.splat(1.0) / id);
        }
        let mut largest = l.splat(0.0);
        for x in block.magnitude.as_chunks::<LANES>().0 {
            largest = l.max(largest, l.abs(l.load(x)));
        }
        let largest = largest_lane(l, largest);
        if !(largest * inverse.as_flattened()[self.tries - 1] < WRAPS && scales[0][0].is_finite()) {
            return self.grid.search(&self.rule, block, max, scale);
        }

        // Points by group and try, marked where the cell has none.
        let mut chosen = [[0u16; 2 * TRIES]; 8];
        let mut wanted = [true; 8];
        let mut tries = self.tries;
        let mut found: Option<(f32, Points)> = None;
        // All tries, then some groups again with the scale that was found.
        loop {
            for (k, chosen) in chosen[..groups].iter_mut().enumerate() {
                if wanted[k] {
                    let group = self.group(block, k);
                    self.choose_group(&group, inverse.as_flattened(), scales.as_flattened(), tries, chosen);
                }
            }
            if let Some((scale, mut points)) = found {
                for k in 0..groups {
                    if wanted[k] {
                        points[k] = chosen[k][0] & !OFF_GRID;
                    }
                }
                let (sumqx, sumq2) = self.grid.sums(block, &points);
                return (if sumq2 > 0.0 { sumqx / sumq2 } else { scale }, points);
            }
            let (scale, points, on_grid) = self.best_try(block, &chosen, scale);
            let mut any_off_grid = false;
            for on in &on_grid[..groups] {
                any_off_grid |= !on;
            }
            if !(scale > 0.0 && (any_off_grid || self.rule.again == Again::All)) {
                return (scale, points);
            }
            if !(largest * (1.0 / scale) < WRAPS) {
                return self.grid.refine(&self.rule, block, scale, points, &on_grid[..groups]);
            }
            for (wanted, on_grid) in wanted.iter_mut().zip(on_grid) {
                *wanted = !on_grid || self.rule.again != Again::OffGrid;
            }
            (inverse[0], scales[0]) = ([1.0 / scale; LANES], [scale; LANES]);
            tries = 1;
            found = Some((scale, points));
        }
    }

    /// Chooses points for a group in all tries, marked where the cell has none.
    #[inline(always)]
    fn choose_group(
        &mut self,
        group: &Group<'_, L, D>,
        inverse: &[f32],
        scales: &[f32],
        tries: usize,
        chosen: &mut [u16; 2 * TRIES],
    ) {
        let l = self.l;
        let vectors = tries.div_ceil(LANES);
        let cells = self.cells(group.magnitude, inverse, vectors);
        let cells = cells.as_flattened();
        // A bit for every try whose cell differs from the one before, and one for the end.
        let mut starts = 0u64;
        for v in 0..vectors {
            let (here, before) = (&cells[v * LANES + 1..], &cells[v * LANES..]);
            let same = l.eq_i(l.load_i_at(here), l.load_i_at(before));
            starts |= u64::from(!l.bits(same) & 0xff) << (v * LANES + 1);
        }
        starts = starts & ((1 << tries) - 1) | 1 << tries;
        let mut from = 0;
        while from < tries {
            let to = starts.trailing_zeros() as usize;
            starts &= starts - 1;
            match self.grid.offer(cells[from] as usize) {
                // A fill of fixed length is cheaper; what it puts too much, the next run replaces.
                Offer::Point(n) => chosen[from..][..TRIES].fill(n),
                Offer::Near(near) => self.choose_run(group, near, &scales[from..to], &mut chosen[from..][..TRIES]),
            }
            from = to;
        }
    }

    /// The magnitudes and roots of group `k`, and the terms of its candidates' errors.
    #[inline(always)]
    fn group<'b, const N: usize>(&self, block: &'b SubBlock<N>, k: usize) -> Group<'b, L, D> {
        let l = self.l;
        let (magnitude, root) = (&block.magnitude.as_chunks().0[k], &block.root.as_chunks().0[k]);
        let (mut a, mut b) = ([l.splat(0.0); D], [l.splat(0.0); D]);
        let mut c = 0.0;
        let qq = self.q * self.q;
        for i in 0..D {
            let (x, w) = (magnitude[i], root[i]);
            a[i] = l.splat(w) * qq;
            b[i] = l.splat(2.0 * w * x) * self.q;
            c += w * x * x;
        }
        // Errors are relative only clear of denormals and infinities; elsewhere nothing leads.
        let lead = if c > 1e-31 && c < 1e33 { MARGIN * c } else { f32::NAN };
        Group { magnitude, root, a, b, lead }
    }

    /// The cell of a group in every try.
    #[inline(always)]
    fn cells(&self, magnitude: &[f32], inverse: &[f32], vectors: usize) -> [[i32; LANES]; TRY_VECTORS + 1] {
        let l = self.l;
        let mut cells = [[0; LANES]; TRY_VECTORS + 1];
        let (zero, one, half) = (l.splat(0.0), l.splat(1.0), l.splat(0.5));
        let (radix, last) = (l.splat(self.grid.radix as f32), l.splat((self.grid.radix - 1) as f32));
        for v in 0..vectors {
            let id = l.load_at(&inverse[v * LANES..]);
            let mut cell = zero;
            for &x in magnitude.iter().rev() {
                let level = l.nearest(half * (id * l.splat(x) - one));
                cell = cell * radix + l.clamp(level, zero, last);
            }
            cells[v] = l.store_i(l.truncate(cell));
        }
        cells
    }

    /// Chooses among `near` for a run of tries with descending scales. What `chosen` has beyond the run may change.
    #[inline(always)]
    fn choose_run(&mut self, group: &Group<'_, L, D>, near: Near<'_>, scales: &[f32], chosen: &mut [u16]) {
        let ends = [0, scales.len() - 1];
        if let [levels] = near.levels
            && let Some(place) = self.leader_of_eight(group, levels, near.points.len(), scales[0], scales[ends[1]])
        {
            chosen[..TRIES].fill(OFF_GRID | near.points[place]);
            return;
        }
        self.put_terms(group, near);
        let mut leaders = [None; 2];
        for (leader, &end) in leaders.iter_mut().zip(&ends) {
            *leader = self.leader(group, near, scales[end]);
        }
        if let [Some(first), Some(last)] = leaders
            && first == last
        {
            chosen[..TRIES].fill(OFF_GRID | near.points[first]);
            return;
        }
        for (i, (chosen, &scale)) in chosen.iter_mut().zip(scales).enumerate() {
            let leader = match i {
                0 => leaders[0],
                _ if i == ends[1] => leaders[1],
                _ => self.leader(group, near, scale),
            };
            let n = match leader {
                Some(place) => place,
                None => nearest_exactly(self.l, near, self.q, group.magnitude, group.root, scale, &mut self.errors),
            };
            *chosen = OFF_GRID | near.points[n];
        }
    }

    /// The place of the candidate that leads at both scales, if there is one, among `count` of eight.
    #[inline(always)]
    fn leader_of_eight(
        &self,
        group: &Group<'_, L, D>,
        levels: &[u16; LANES],
        count: usize,
        first: f32,
        last: f32,
    ) -> Option<usize> {
        let l = self.l;
        let (a, b) = terms(l, group, levels);
        let (zero, lead) = (l.splat(0.0), l.splat(group.lead));
        let (mut both, mut several) = (0xff >> (LANES - count), 0);
        for scale in [first, last] {
            let error = l.splat(scale * scale) * a - l.splat(scale) * b;
            let bound = l.least(l.min(error, zero)) + lead;
            let close = l.bits(l.lt(error, bound)) & 0xff >> (LANES - count);
            several |= close & close.wrapping_sub(1);
            both &= close;
        }
        (several == 0 && both != 0).then_some(both.trailing_zeros() as usize)
    }

    /// Fills in `A` and `2 B` of every candidate.
    #[inline(always)]
    fn put_terms(&mut self, group: &Group<'_, L, D>, near: Near<'_>) {
        let l = self.l;
        for (to, levels) in self.terms.iter_mut().zip(near.levels) {
            *to = terms(l, group, levels);
        }
    }

    /// The place of the candidate with the least error at a scale, if it leads by enough.
    #[inline(always)]
    fn leader(&mut self, group: &Group<'_, L, D>, near: Near<'_>, scale: f32) -> Option<usize> {
        let l = self.l;
        let vectors = near.levels.len();
        let (s, ss) = (l.splat(scale), l.splat(scale * scale));
        let zero = l.splat(0.0);
        // Above zero, the error would exceed C.
        let mut least = zero;
        for (error, &(a, b)) in self.errors.iter_mut().zip(&self.terms[..vectors]) {
            *error = ss * a - s * b;
            least = l.min(*error, least);
        }
        let bound = l.least(least) + l.splat(group.lead);
        let (mut place, mut several) = (usize::MAX, 0);
        for (v, &error) in self.errors[..vectors].iter().enumerate() {
            let mut bits = l.bits(l.lt(error, bound));
            if v + 1 == vectors {
                // What fills the last vector up is no candidate.
                bits &= 0xff >> (8 * vectors - near.points.len());
            }
            if bits != 0 {
                several |= (bits & (bits - 1)) as usize | (place != usize::MAX) as usize;
                place = 8 * v + bits.trailing_zeros() as usize;
            }
        }
        (several == 0 && place != usize::MAX).then_some(place)
    }

    /// Sums up all tries and keeps the best: its scale, its points, and which of their cells had one.
    #[inline(always)]
    fn best_try<const N: usize>(
        &self,
        block: &SubBlock<N>,
        chosen: &[[u16; 2 * TRIES]; 8],
        mut scale: f32,
    ) -> (f32, Points, [bool; 8]) {
        let l = self.l;
        let groups = N / D;
        let (mut wx, mut ww) = ([l.splat(0.0); N], [l.splat(0.0); N]);
        for i in 0..N {
            let w = block.weight[i];
            wx[i] = l.splat(w * block.magnitude[i]) * self.q;
            ww[i] = l.splat(w) * self.q * self.q;
        }
        // Tries that differ from the one before; equal ones cannot change the outcome.
        let (mut distinct, mut count) = ([0; TRIES], 0);
        for t in 0..self.tries {
            let mut differs = t == 0;
            for of_group in &chosen[..groups] {
                differs |= t > 0 && of_group[t] != of_group[t - 1];
            }
            if differs {
                distinct[count] = t;
                count += 1;
            }
        }
        let mut best = 0.0;
        let mut found = None;
        for tries in distinct[..count].chunks(LANES) {
            let (mut sumqx, mut sumq2) = (l.splat(0.0), l.splat(0.0));
            for k in 0..groups {
                let mut levels = [0u16; LANES];
                for (levels, &t) in levels.iter_mut().zip(tries) {
                    *levels = self.grid.packed[(chosen[k][t] & !OFF_GRID) as usize];
                }
                let mut index = l.load_u16(&levels);
                for i in D * k..D * k + D {
                    sumqx = sumqx + l.lookup(wx[i], index);
                    sumq2 = sumq2 + l.lookup(ww[i], index);
                    index = next_level::<L, D>(l, index);
                }
            }
            for ((&t, sumqx), sumq2) in tries.iter().zip(l.store(sumqx)).zip(l.store(sumq2)) {
                if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
                    scale = sumqx / sumq2;
                    best = scale * sumqx;
                    found = Some(t);
                }
            }
        }
        let (mut points, mut on_grid) = ([0; 8], [self.rule.again != Again::AllIfOffGrid; 8]);
        if let Some(t) = found {
            for k in 0..groups {
                points[k] = chosen[k][t] & !OFF_GRID;
                on_grid[k] = chosen[k][t] & OFF_GRID == 0;
            }
        }
        (scale, points, on_grid)
    }
}

/// Vectors in the longest list of neighbours of any codebook.
pub(super) const LONGEST: usize = 64;

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

/// `A` and `2 B` of eight candidates.
#[inline(always)]
fn terms<L: Lanes, const D: usize>(l: L, group: &Group<'_, L, D>, levels: &[u16; LANES]) -> (L::F32, L::F32) {
    let (mut a, mut b) = (l.splat(0.0), l.splat(0.0));
    let mut index = l.load_u16(levels);
    for i in 0..D {
        a = a + l.lookup(group.a[i], index);
        b = b + l.lookup(group.b[i], index);
        index = next_level::<L, D>(l, index);
    }
    (a, b)
}

/// Brings the next coordinate's level to the lowest bits.
#[inline(always)]
fn next_level<L: Lanes, const D: usize>(l: L, index: L::I32) -> L::I32 {
    if D == 8 { l.shr::<2>(index) } else { l.shr::<3>(index) }
}

/// The largest lane.
#[inline(always)]
fn largest_lane<L: Lanes>(l: L, v: L::F32) -> f32 {
    let zero = l.splat(0.0);
    l.store(zero - l.least(zero - v))[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::codebook;

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
