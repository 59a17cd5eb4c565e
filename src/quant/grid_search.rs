//! The search behind IQ2 and IQ3: a scale and a grid point for every 8 (IQ2) or 4 (IQ3) magnitudes.
//!
//! ```text
//! for each inverse scale, a little below and above that which puts the largest magnitude on the top level:
//!     round every magnitude to a level; where a group's levels are no grid point, take the neighbour with the
//!     least weighted squared error at this scale
//!     keep the points with the largest sumqx^2 / sumq2, and the least-squares scale for them
//! with that scale, choose the points of (some of) the groups again; then fit the scale once more
//! ```
//!
//! The five types differ in a few numbers and in which groups are chosen again: a [`Rule`] each. Bytes depend on the
//! order of every sum, on the first of equal neighbours winning, and on the error's weight being the square root of
//! the importance.
#![allow(clippy::needless_range_loop)] // one index into several arrays
#![allow(clippy::neg_cmp_op_on_partial_ord)] // NaN goes the other way

use super::codebook::{Codebook, Near, Offer};
use super::search::{c_max, make_qp_quants, nearest_int, sum_of_squares};

/// Which groups are chosen again with the found scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Again {
    /// All of them (IQ2_XXS).
    All,
    /// Those whose rounded levels were no grid point (IQ2_XS, IQ2_S, IQ3_XXS).
    OffGrid,
    /// All when there was one of those, or no try counted (IQ3_S).
    AllIfOffGrid,
}

/// The importance of a weight without an imatrix; with one it is `imatrix * sqrt(sigma2 + x^2)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plain {
    /// As with an imatrix of ones (IQ2_XXS and IQ2_XS, for which ggml demands one).
    Ones,
    /// `x^2` (IQ3_XXS, IQ3_S).
    Square,
    /// `sigma2 / 4 + x^2` (IQ2_S).
    QuarterAndSquare,
}

/// Where the plain scale comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Start {
    /// It puts the largest magnitude on the top level.
    Largest,
    /// It is fitted by `make_qp_quants` with the codes 0 to 4 (IQ2_XXS).
    Fit,
}

/// What distinguishes the search of one type from that of another.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// `sigma2` is this many times the mean square.
    pub(super) sigma: f32,
    /// Importance without an imatrix.
    pub(super) plain: Plain,
    /// Whether every eight signs are made even in number.
    pub(super) even_signs: bool,
    /// A sub-block whose largest magnitude is below this is zero.
    pub(super) least: f32,
    /// Where the plain scale comes from.
    pub(super) start: Start,
    /// Twice the largest level, plus 1.
    pub(super) top: f32,
    /// Tries on either side of the plain scale, and their distance in levels.
    pub(super) half_tries: i32,
    /// See `half_tries`.
    pub(super) step: f32,
    /// Which groups are chosen again.
    pub(super) again: Again,
}

impl Rule {
    /// The importance of `N` weights.
    #[inline(always)]
    fn importance<const N: usize>(&self, x: &[f32], weights: Option<&[f32]>, sigma2: f32) -> [f32; N] {
        importance(x, weights, sigma2, |v| match self.plain {
            Plain::Ones => (sigma2 + v * v).sqrt(),
            Plain::Square => v * v,
            Plain::QuarterAndSquare => 0.25 * sigma2 + v * v,
        })
    }
}

/// A block type whose codes are points of a grid with `D` coordinates, and whose sub-blocks have `N` weights. A row is
/// a whole number of blocks of 256.
pub(super) trait GridType<const D: usize, const N: usize> {
    /// Bytes of a block.
    const BYTES: usize;
    /// Its search.
    const RULE: Rule;

    /// Its codebook.
    fn grid() -> &'static Codebook<D>;
    /// Writes a block of zeros from what was found for its sub-blocks.
    fn write(found: &[Coded], block: &mut [u8]);
}

/// What was found for a sub-block.
#[derive(Clone, Copy, Default)]
pub(super) struct Coded {
    /// Whether there is anything: not for a sub-block of zeros.
    pub(super) present: bool,
    /// The scale, positive.
    pub(super) scale: f32,
    /// The points of its groups.
    pub(super) points: Points,
    /// Signs of each eight weights, a bit set for a negative one.
    pub(super) signs: [u8; 4],
}

/// The means to search: the reference or lanes.
pub(super) trait Search<const N: usize> {
    /// Codes eight sub-blocks.
    fn code_eight(&mut self, x: &[f32], weights: Option<&[f32]>, sigma2: f32, found: &mut [Coded; 8]);
}

/// The search as ggml writes it.
struct Reference<const D: usize>(&'static Codebook<D>, Rule);

impl<const D: usize, const N: usize> Search<N> for Reference<D> {
    fn code_eight(&mut self, x: &[f32], weights: Option<&[f32]>, sigma2: f32, found: &mut [Coded; 8]) {
        for (i, (x, found)) in x.chunks_exact(N).zip(found).enumerate() {
            *found = self.0.code::<N>(&self.1, x, weights.map(|w| &w[N * i..][..N]), sigma2);
        }
    }
}

/// Encodes a row by the reference. Types for which ggml demands an imatrix count every weight as 1 without one.
pub(super) fn reference<T: GridType<D, N>, const D: usize, const N: usize>(
    row: &[f32],
    weights: Option<&[f32]>,
    out: &mut [u8],
) {
    let mut search = Reference(T::grid(), T::RULE);
    for (i, (x, block)) in row.chunks_exact(256).zip(out.chunks_exact_mut(T::BYTES)).enumerate() {
        let sigma2 = T::RULE.sigma * sum_of_squares(x) / 256.0;
        encode::<T, _, D, N>(&mut search, x, weights.map(|w| &w[256 * i..][..256]), sigma2, block);
    }
}

/// Encodes 256 elements as a block, given the means to search. `sigma2` is the rule's multiple of their mean square.
#[inline(always)]
pub(super) fn encode<T: GridType<D, N>, S: Search<N>, const D: usize, const N: usize>(
    search: &mut S,
    x: &[f32],
    weights: Option<&[f32]>,
    sigma2: f32,
    block: &mut [u8],
) {
    let mut found = [Coded::default(); 16];
    let found = &mut found[..256 / N];
    for (i, found) in found.as_chunks_mut().0.iter_mut().enumerate() {
        search.code_eight(&x[8 * N * i..][..8 * N], weights.map(|w| &w[8 * N * i..][..8 * N]), sigma2, found);
    }
    block.fill(0);
    T::write(found, block);
}

/// The largest scale of a block's sub-blocks.
pub(super) fn largest_scale(found: &[Coded]) -> f32 {
    found.iter().fold(0.0, |m, s| c_max(m, s.scale))
}

/// The four-bit scales of a block's sub-blocks, `2 l + 1` being a 31st of the largest.
pub(super) fn scale_levels<const S: usize>(found: &[Coded], d: f32) -> [u8; S] {
    let id = 1.0 / d;
    std::array::from_fn(|i| nearest_int(0.5 * (id * found[i].scale - 1.0)).clamp(0, 15) as u8)
}

/// A sub-block of `N` weights, ready to be searched.
struct SubBlock<const N: usize> {
    /// Importance of each weight.
    weight: [f32; N],
    /// Square roots of `weight`.
    root: [f32; N],
    /// Magnitudes; some are negative where a type stores an even number of signs only.
    magnitude: [f32; N],
    /// Signs of each eight weights, a bit set for a negative one.
    signs: [u8; 4],
}

impl<const N: usize> SubBlock<N> {
    /// Splits weights into signs and magnitudes. With `even_signs`, every eight get an even number of signs by flipping
    /// the least important one, whose magnitude turns negative, and bit 7 is dropped.
    fn new(x: &[f32], weight: [f32; N], even_signs: bool) -> Self {
        let mut magnitude = [0.0; N];
        let mut signs = [0; 4];
        for (k, signs) in signs.iter_mut().enumerate().take(N / 8) {
            for i in 8 * k..8 * k + 8 {
                let negative = !(x[i] >= 0.0);
                magnitude[i] = if negative { -x[i] } else { x[i] };
                *signs |= u8::from(negative) << (i % 8);
            }
            if even_signs {
                if signs.count_ones() % 2 == 1 {
                    let cost = |i: usize| weight[i] * x[i] * x[i];
                    let least =
                        (8 * k + 1..8 * k + 8).fold(8 * k, |least, i| if cost(i) < cost(least) { i } else { least });
                    magnitude[least] = -magnitude[least];
                    *signs ^= 1 << (least % 8);
                }
                *signs &= 127;
            }
        }
        SubBlock { weight, root: weight.map(f32::sqrt), magnitude, signs }
    }

    /// The largest magnitude.
    fn max(&self) -> f32 {
        self.magnitude[1..].iter().fold(self.magnitude[0], |m, &v| c_max(m, v))
    }
}

/// Importance as most IQ types have it: `imatrix * sqrt(sigma2 + x^2)`, or `plain(x)` without an imatrix.
pub(super) fn importance<const N: usize>(
    x: &[f32],
    weights: Option<&[f32]>,
    sigma2: f32,
    plain: impl Fn(f32) -> f32,
) -> [f32; N] {
    match weights {
        Some(w) => std::array::from_fn(|i| w[i] * (sigma2 + x[i] * x[i]).sqrt()),
        None => std::array::from_fn(|i| plain(x[i])),
    }
}

impl Coded {
    /// What was found, the scale made positive by flipping all signs where it is negative.
    #[inline(always)]
    pub(super) fn new(rule: &Rule, scale: f32, points: Points, signs: [u8; 4]) -> Self {
        let mask = if rule.even_signs { 127 } else { 255 };
        let signs = if scale < 0.0 { signs.map(|s| !s & mask) } else { signs };
        let scale = if scale < 0.0 { -scale } else { scale };
        Coded { present: true, scale, points, signs }
    }
}

/// The points found for a sub-block: one per group, of which there are at most eight.
pub(super) type Points = [u16; 8];

/// The level of a magnitude under an inverse scale, `levels` being their number.
fn level(magnitude: f32, inverse: f32, levels: usize) -> u8 {
    nearest_int(0.5 * (inverse * magnitude - 1.0)).clamp(0, levels as i32 - 1) as u8
}

impl<const D: usize> Codebook<D> {
    /// The point for a group of magnitudes, and whether their rounded levels were one.
    fn choose(&self, magnitude: &[f32], root: &[f32], inverse: f32, scale: f32) -> (u16, bool) {
        match self.offer(self.cell(&std::array::from_fn(|i| level(magnitude[i], inverse, self.radix)))) {
            Offer::Point(n) => (n, true),
            Offer::Near(candidates) => (self.nearest(candidates, magnitude, root, scale), false),
        }
    }

    /// `iq2_find_best_neighbour`, `iq3_find_best_neighbour`. Where no error is a number (infinite weights), ggml aborts;
    /// this takes the first candidate.
    fn nearest(&self, candidates: Near<'_>, magnitude: &[f32], root: &[f32], scale: f32) -> u16 {
        let (mut best, mut least) = (candidates.point(0), f32::MAX);
        for n in candidates.points() {
            let error = self.points[n as usize].iter().zip(magnitude).zip(root).fold(0.0, |sum, ((&l, &x), &w)| {
                let diff = scale * f32::from(2 * l + 1) - x;
                sum + w * diff * diff
            });
            if error < least {
                (best, least) = (n, error);
            }
        }
        best
    }

    /// `sumqx` and `sumq2` of a sub-block under these points.
    fn sums<const N: usize>(&self, block: &SubBlock<N>, points: &Points) -> (f32, f32) {
        (0..N).fold((0.0, 0.0), |(sumqx, sumq2), i| {
            let w = block.weight[i];
            let q = f32::from(2 * self.points[points[i / D] as usize][i % D] + 1);
            (sumqx + w * block.magnitude[i] * q, sumq2 + w * q * q)
        })
    }

    /// Codes a sub-block of `N` weights.
    pub(super) fn code<const N: usize>(&self, rule: &Rule, x: &[f32], weights: Option<&[f32]>, sigma2: f32) -> Coded {
        let block = SubBlock::<N>::new(x, rule.importance(x, weights, sigma2), rule.even_signs);
        let max = block.max();
        if max < rule.least {
            return Coded::default();
        }
        let (max, scale) = match rule.start {
            Start::Largest => (max, max / rule.top),
            Start::Fit => {
                let scale = make_qp_quants(4, &block.magnitude, &mut [0; N], &block.weight);
                (scale * 3.0, scale)
            }
        };
        if max <= 0.0 {
            return Coded::default();
        }
        let (scale, points) = self.search(rule, &block, max, scale);
        Coded::new(rule, scale, points, block.signs)
    }

    /// The scale and the points of a sub-block. `max` is the magnitude that the plain scale puts on the top level,
    /// `scale` what is kept when no try counts. The scale can be negative.
    fn search<const N: usize>(&self, rule: &Rule, block: &SubBlock<N>, max: f32, mut scale: f32) -> (f32, Points) {
        let groups = N / D;
        let (mut points, mut on_grid, mut best) = ([0; 8], [rule.again != Again::AllIfOffGrid; 8], 0.0);
        for try_ in -rule.half_tries..=rule.half_tries {
            let inverse = (rule.top + try_ as f32 * rule.step) / max;
            let mut tried = ([0; 8], [true; 8]);
            for k in 0..groups {
                let (magnitude, root) = (&block.magnitude[D * k..][..D], &block.root[D * k..][..D]);
                (tried.0[k], tried.1[k]) = self.choose(magnitude, root, inverse, 1.0 / inverse);
            }
            let (sumqx, sumq2) = self.sums(block, &tried.0);
            if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
                scale = sumqx / sumq2;
                best = scale * sumqx;
                (points, on_grid) = tried;
            }
        }
        self.refine(rule, block, scale, points, &on_grid[..groups])
    }

    /// The last step of the search: chooses points again with the scale that was found.
    fn refine<const N: usize>(
        &self,
        rule: &Rule,
        block: &SubBlock<N>,
        mut scale: f32,
        mut points: Points,
        on_grid: &[bool],
    ) -> (f32, Points) {
        let any_off_grid = on_grid.contains(&false);
        if scale > 0.0 && (any_off_grid || rule.again == Again::All) {
            for (k, on_grid) in on_grid.iter().enumerate() {
                if !on_grid || rule.again != Again::OffGrid {
                    let (magnitude, root) = (&block.magnitude[D * k..][..D], &block.root[D * k..][..D]);
                    points[k] = self.choose(magnitude, root, 1.0 / scale, scale).0;
                }
            }
            let (sumqx, sumq2) = self.sums(block, &points);
            if sumq2 > 0.0 {
                scale = sumqx / sumq2;
            }
        }
        (scale, points)
    }
}
