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
//! operations instead of a sum over the coordinates. Both this and ggml's sum differ from the true error by less than
//! 60 half-ulps of `s^2 A + C`, so a lead of [`MARGIN`] times that decides as ggml's comparison does; and since
//! `s A_j - 2 B_j` is linear in `s`, a lead at both ends of a run of scales is one in between (scales within a search
//! differ by less than half). Without such a lead, or where numbers leave the range in which errors are relative, the
//! reference decides.

use super::Rows;
use super::codebook::{Codebook, Near, Offer};
use super::grid_search::{Again, GridType, Points, Rule, Search, SubBlock};
use super::lanes::{Kernel, LANES, Lanes};
use std::marker::PhantomData;

/// The lead, in parts of `s^2 A + C`, that the best candidate needs: 2^-14, ten times what rounding can amount to.
const MARGIN: f32 = 1.0 / 16384.0;
/// Tries of a search, at most, and as many vectors.
const TRIES: usize = 32;
const TRY_VECTORS: usize = TRIES / LANES;
/// Marks a point that stands for a cell without one.
const OFF_GRID: u16 = 1 << 15;
/// Vectors in the longest list of neighbours (292 candidates).
const LONGEST: usize = 40;

/// The kernel of a grid type.
pub(super) struct OverLanes<T, const D: usize>(PhantomData<T>);

impl<T: GridType<D>, const D: usize> Kernel for OverLanes<T, D> {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let mut search = GridSearch::new(l, T::grid(), T::RULE);
        for (i, (x, block)) in rows.values.chunks_exact(256).zip(out.chunks_exact_mut(T::BYTES)).enumerate() {
            let weights = match rows.imatrix {
                Some(w) => Some(&w[256 * i % rows.row_len..][..256]),
                None => None,
            };
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
    magnitude: &'a [f32],
    root: &'a [f32],
    /// By coordinate, for every level: the terms of `A` and of `2 B`.
    a: [L::F32; D],
    b: [L::F32; D],
    /// The lead that decides.
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
        let (inverse, scales) = (inverse.as_flattened(), scales.as_flattened());
        let mut largest = l.splat(0.0);
        for x in block.magnitude.as_chunks::<LANES>().0 {
            largest = l.max(largest, l.abs(l.load(x)));
        }
        let largest = largest_lane(l, largest);
        if !(largest * inverse[self.tries - 1] < 2e6 && scales[0].is_finite()) {
            // Rounding to a level would wrap.
            return self.grid.search(&self.rule, block, max, scale);
        }

        // Points by group and try, marked where the cell has none.
        let mut chosen = [[0u16; TRIES]; 8];
        for k in 0..groups {
            let group = self.group(l, block, k, scales[0]);
            let cells = self.cells(l, group.magnitude, inverse, vectors);
            let cells = cells.as_flattened();
            let mut from = 0;
            while from < self.tries {
                let cell = cells[from];
                let mut to = from + 1;
                while to < self.tries && cells[to] == cell {
                    to += 1;
                }
                match self.grid.offer(cell as usize) {
                    Offer::Point(n) => chosen[k][from..to].fill(n),
                    Offer::Near(near) => self.choose_run(&group, near, &scales[from..to], &mut chosen[k][from..to]),
                }
                from = to;
            }
        }
        self.best_try(l, block, &chosen, scale)
    }

    /// The magnitudes and roots of group `k`, and the terms of its candidates' errors.
    #[inline(always)]
    fn group<'b, const N: usize>(&self, l: L, block: &'b SubBlock<N>, k: usize, top_scale: f32) -> Group<'b, L, D> {
        let (magnitude, root) = (&block.magnitude[D * k..][..D], &block.root[D * k..][..D]);
        let (mut a, mut b) = ([l.splat(0.0); D], [l.splat(0.0); D]);
        let (mut sum_w, mut c) = (0.0, 0.0);
        let qq = self.q * self.q;
        for i in 0..D {
            let (x, w) = (magnitude[i], root[i]);
            a[i] = l.splat(w) * qq;
            b[i] = l.splat(2.0 * w * x) * self.q;
            sum_w += w;
            c += w * x * x;
        }
        Group { magnitude, root, a, b, lead: MARGIN * (self.most(top_scale) * sum_w + c) }
    }

    /// The largest squared value that a level stands for at a scale.
    #[inline(always)]
    fn most(&self, scale: f32) -> f32 {
        scale * self.rule.top * (scale * self.rule.top)
    }

    /// The cell of a group in every try.
    #[inline(always)]
    fn cells(&self, l: L, magnitude: &[f32], inverse: &[f32], vectors: usize) -> [[i32; LANES]; TRY_VECTORS] {
        let mut cells = [[0; LANES]; TRY_VECTORS];
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

    /// Chooses among `near` for a run of tries with descending scales.
    #[inline(always)]
    fn choose_run(&mut self, group: &Group<'_, L, D>, near: Near<'_>, scales: &[f32], chosen: &mut [u16]) {
        self.put_terms(group, near);
        let last = scales.len() - 1;
        let mut settled = true;
        // Both ends first, then what is between.
        for step in 0..scales.len() {
            let i = match step {
                0 => 0,
                1 => last,
                _ => step - 1,
            };
            if step < 2 || !settled {
                let (n, leads) = self.nearest(group, near, scales[i]);
                chosen[i] = OFF_GRID | n;
                settled &= leads && chosen[0] == chosen[i];
            } else {
                chosen[i] = chosen[0];
            }
        }
    }

    /// Fills in `A` and `2 B` of every candidate.
    #[inline(always)]
    fn put_terms(&mut self, group: &Group<'_, L, D>, near: Near<'_>) {
        let l = self.l;
        for (terms, levels) in self.terms.iter_mut().zip(near.levels) {
            let (mut a, mut b) = (l.splat(0.0), l.splat(0.0));
            let mut index = l.load_u16(levels);
            for i in 0..D {
                a = a + l.lookup(group.a[i], index);
                b = b + l.lookup(group.b[i], index);
                index = if D == 8 { l.shr::<2>(index) } else { l.shr::<3>(index) };
            }
            *terms = (a, b);
        }
    }

    /// The candidate with the least error at a scale, and whether it leads by enough to be it nearby too.
    #[inline(always)]
    fn nearest(&mut self, group: &Group<'_, L, D>, near: Near<'_>, scale: f32) -> (u16, bool) {
        let l = self.l;
        let vectors = near.levels.len();
        let (s, ss) = (l.splat(scale), l.splat(scale * scale));
        let mut least = l.splat(f32::INFINITY);
        for (error, &(a, b)) in self.errors.iter_mut().zip(&self.terms[..vectors]) {
            *error = ss * a - s * b;
            least = l.min(*error, least);
        }
        let bound = l.least(least) + l.splat(group.lead);
        let (mut close, mut place) = (0, 0);
        for (v, &error) in self.errors[..vectors].iter().enumerate() {
            let mut bits = l.bits(l.lt(error, bound));
            if v + 1 == vectors {
                // What fills the last vector up is no candidate.
                bits &= 0xff >> (8 * vectors - near.points.len());
            }
            if bits != 0 {
                close += bits.count_ones();
                place = 8 * v + bits.trailing_zeros() as usize;
            }
        }
        // Both bounds keep clear of denormals and infinities.
        if close == 1 && group.lead > 1e-35 && group.lead < 1e33 {
            return (near.points[place], true);
        }
        (self.grid.nearest(near.points, group.magnitude, group.root, scale), false)
    }

    /// Sums up all tries, keeps the best, and chooses again with its scale.
    #[inline(always)]
    fn best_try<const N: usize>(
        &mut self,
        l: L,
        block: &SubBlock<N>,
        chosen: &[[u16; TRIES]; 8],
        mut scale: f32,
    ) -> (f32, Points) {
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
                    index = if D == 8 { l.shr::<2>(index) } else { l.shr::<3>(index) };
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
        self.refine(l, block, scale, points, &on_grid[..groups])
    }

    /// [`Codebook::refine`].
    #[inline(always)]
    fn refine<const N: usize>(
        &mut self,
        l: L,
        block: &SubBlock<N>,
        scale: f32,
        mut points: Points,
        on_grid: &[bool],
    ) -> (f32, Points) {
        let mut any_off_grid = false;
        for on in on_grid {
            any_off_grid |= !on;
        }
        if !(scale > 0.0 && (any_off_grid || self.rule.again == Again::All)) {
            return (scale, points);
        }
        let inverse = [1.0 / scale; LANES];
        for (k, on_grid) in on_grid.iter().enumerate() {
            if !on_grid || self.rule.again != Again::OffGrid {
                let group = self.group(l, block, k, scale);
                if !(inverse[0] * 1e-6 * self.grid.largest(group.magnitude) < 1.0) {
                    points[k] = self.grid.choose(group.magnitude, group.root, inverse[0], scale).0;
                    continue;
                }
                let cell = self.cells(l, group.magnitude, &inverse, 1)[0][0];
                points[k] = match self.grid.offer(cell as usize) {
                    Offer::Point(n) => n,
                    Offer::Near(near) => {
                        let mut chosen = [0];
                        self.choose_run(&group, near, &[scale], &mut chosen);
                        chosen[0] & !OFF_GRID
                    }
                };
            }
        }
        let (sumqx, sumq2) = self.grid.sums(block, &points);
        (if sumq2 > 0.0 { sumqx / sumq2 } else { scale }, points)
    }
}

/// The largest lane.
#[inline(always)]
fn largest_lane<L: Lanes>(l: L, v: L::F32) -> f32 {
    let zero = l.splat(0.0);
    l.store(zero - l.least(zero - v))[0]
}
