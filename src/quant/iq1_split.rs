//! The best splits of sub-blocks of IQ1_S or IQ1_M, eight sub-blocks in the lanes.
//!
//! ```text
//! rank every weight; its terms, put in place by rank, give the prefix sums
//! offer every split to ggml's comparison, in ggml's order; keep the best score and its number
//! ```
//!
//! Each lane does what the reference does, operation by operation, so the same split wins whatever the numbers are. Three
//! things are left out:
//!
//! * The sort. Of two weights the larger comes later, of equal ones the second: that is where a stable sort puts them.
//!   Elements are finite, so the order is total.
//! * The test that `sumq2` is positive: it is at least a 64th of the sum of the importance, but for rounding. Sub-blocks
//!   where that is not clear are left to the reference ([`usable`]).
//! * The scale of a split that does not win: it is computed again for the one that does.
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::iq1::{DOWN, IQ1_M, IQ1_S, Iq1, Split, UP};
use super::lanes::{LANES, Lanes, Vector};

/// `sumqx` and `sumq2`.
type Pair<L> = (<L as Vector>::F32, <L as Vector>::F32);

/// A type of which eight sub-blocks are searched at once.
pub(super) trait InLanes<const N: usize>: Iq1<N> {
    /// Parts of a sub-block with a shift of their own.
    const PARTS: usize;
    /// What the sums of its splits follow from.
    type Sums<L: Lanes>: Sums<L>;
}

impl InLanes<32> for IQ1_S {
    const PARTS: usize = 1;
    type Sums<L: Lanes> = SumsS<L>;
}

impl InLanes<16> for IQ1_M {
    const PARTS: usize = 2;
    type Sums<L: Lanes> = SumsM<L>;
}

/// The terms of the sums, in ascending order of the weights: vectors by part and place, zero where the weight in that
/// place is of the other part (which changes no sum, as none is a negative zero).
pub(super) struct Sorted {
    /// Importance times weight.
    wx: [f32; 256],
    /// Importance.
    w: [f32; 256],
}

impl Sorted {
    /// Puts the terms of `N` weights in place.
    #[inline(always)]
    fn new<L: Lanes, const N: usize>(
        l: L,
        parts: usize,
        x: &[L::F32; N],
        weight: &[L::F32; N],
        ranks: &[L::I32; N],
    ) -> Self {
        let (mut wx, mut w) = ([0.0; 256], [0.0; 256]);
        let lanes = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        for i in 0..N {
            let first = l.splat_i((i * parts / N * LANES * N) as i32);
            let to = l.store_i(l.shl::<3>(ranks[i]) + lanes + first);
            let (from_wx, from_w) = (l.store(weight[i] * x[i]), l.store(weight[i]));
            for lane in 0..LANES {
                let to = to[lane] as usize % 256;
                wx[to] = from_wx[lane];
                w[to] = from_w[lane];
            }
        }
        Sorted { wx, w }
    }
}

/// The sums before each of `P` places.
#[inline(always)]
fn prefix_sums<L: Lanes, const P: usize>(l: L, terms: &[f32]) -> [L::F32; P] {
    let mut sums = [l.splat(0.0); P];
    for j in 1..P {
        sums[j] = sums[j - 1] + l.load_at(&terms[LANES * (j - 1)..]);
    }
    sums
}

/// The sums of all splits of eight sub-blocks.
pub(super) trait Sums<L: Lanes> {
    /// What they have in common for a first place of the middle run.
    type Row: Copy;
    /// One pair for each shift.
    type Pairs: AsRef<[Pair<L>]>;

    fn new(l: L, sorted: &Sorted) -> Self;
    /// The sum of all importance.
    fn weight(&self) -> L::F32;
    fn row(&self, i1: usize) -> Self::Row;
    fn pairs(&self, row: Self::Row, i2: usize) -> Self::Pairs;
}

/// IQ1_S's.
pub(super) struct SumsS<L: Lanes> {
    l: L,
    wx: [L::F32; 33],
    w: [L::F32; 33],
    /// The upper run's part, by its first place and shift.
    upper: [[Pair<L>; 2]; 33],
}

impl<L: Lanes> Sums<L> for SumsS<L> {
    /// Prefix sums, and the lower run's part by shift.
    type Row = (L::F32, L::F32, [Pair<L>; 2]);
    type Pairs = [Pair<L>; 2];

    #[inline(always)]
    fn new(l: L, sorted: &Sorted) -> Self {
        let wx: [L::F32; 33] = prefix_sums(l, &sorted.wx);
        let w: [L::F32; 33] = prefix_sums(l, &sorted.w);
        let mut upper = [[(wx[0], w[0]); 2]; 33];
        for i in 0..33 {
            for (upper, v) in upper[i].iter_mut().zip([UP, DOWN]) {
                let v = l.splat(v[2]);
                *upper = ((wx[32] - wx[i]) * v, (w[32] - w[i]) * v * v);
            }
        }
        SumsS { l, wx, w, upper }
    }

    #[inline(always)]
    fn weight(&self) -> L::F32 {
        self.w[32]
    }

    #[inline(always)]
    fn row(&self, i1: usize) -> Self::Row {
        let (wx, w) = (self.wx[i1], self.w[i1]);
        let mut lower = [(wx, w); 2];
        for (lower, v) in lower.iter_mut().zip([UP, DOWN]) {
            let v = self.l.splat(v[0]);
            *lower = (wx * v, w * v * v);
        }
        (wx, w, lower)
    }

    #[inline(always)]
    fn pairs(&self, (wx, w, lower): Self::Row, i2: usize) -> Self::Pairs {
        let middle = self.l.splat(UP[1]);
        // The other shift's middle value is the negative of this one.
        let middle_x = (self.wx[i2] - wx) * middle;
        let middle_w = (self.w[i2] - w) * middle * middle;
        let [up, down] = self.upper[i2];
        [
            (lower[0].0 + middle_x + up.0, lower[0].1 + middle_w + up.1),
            (lower[1].0 - middle_x + down.0, lower[1].1 + middle_w + down.1),
        ]
    }
}

/// IQ1_M's, first by half.
pub(super) struct SumsM<L: Lanes> {
    wx: [[L::F32; 17]; 2],
    w: [[L::F32; 17]; 2],
    /// By shift: what does not depend on the split.
    all: [[Pair<L>; 2]; 2],
    /// By shift: the factor of the importance before the first place of the middle run.
    lower: [L::F32; 2],
    /// By the first place of the upper run and shift: what follows from the importance before it.
    upper: [[[L::F32; 2]; 17]; 2],
}

impl<L: Lanes> Sums<L> for SumsM<L> {
    /// By half: the prefix sum, and by shift what `sumq2` begins with.
    type Row = [(L::F32, [L::F32; 2]); 2];
    type Pairs = [Pair<L>; 4];

    #[inline(always)]
    fn new(l: L, sorted: &Sorted) -> Self {
        let zero = l.splat(0.0);
        let wx: [[L::F32; 17]; 2] = [prefix_sums(l, &sorted.wx), prefix_sums(l, &sorted.wx[128..])];
        let w: [[L::F32; 17]; 2] = [prefix_sums(l, &sorted.w), prefix_sums(l, &sorted.w[128..])];
        let (mut all, mut lower, mut upper) = ([[(zero, zero); 2]; 2], [zero; 2], [[[zero; 2]; 17]; 2]);
        for (s, v) in [UP, DOWN].iter().enumerate() {
            let top = l.splat(v[2]);
            lower[s] = l.splat(v[0] * v[0] - v[1] * v[1]);
            for h in 0..2 {
                all[h][s] = (wx[h][16] * top, w[h][16] * top * top);
                for i in 0..17 {
                    upper[h][i][s] = w[h][i] * l.splat(v[1] * v[1] - v[2] * v[2]);
                }
            }
        }
        SumsM { wx, w, all, lower, upper }
    }

    #[inline(always)]
    fn weight(&self) -> L::F32 {
        self.w[0][16] + self.w[1][16]
    }

    #[inline(always)]
    fn row(&self, i1: usize) -> Self::Row {
        let mut row = [(self.wx[0][i1], self.lower); 2];
        for h in 0..2 {
            row[h].0 = self.wx[h][i1];
            for s in 0..2 {
                row[h].1[s] = self.all[h][s].1 + self.w[h][i1] * self.lower[s];
            }
        }
        row
    }

    #[inline(always)]
    fn pairs(&self, row: Self::Row, i2: usize) -> Self::Pairs {
        let mut half = self.all;
        for h in 0..2 {
            let wx = row[h].0 + self.wx[h][i2];
            for s in 0..2 {
                half[h][s] = (self.all[h][s].0 - wx, row[h].1[s] + self.upper[h][i2][s]);
            }
        }
        let [[up, down], [second_up, second_down]] = half;
        [
            (up.0 + second_up.0, up.1 + second_up.1),
            (up.0 + second_down.0, up.1 + second_down.1),
            (down.0 + second_up.0, down.1 + second_up.1),
            (down.0 + second_down.0, down.1 + second_down.1),
        ]
    }
}

/// The places of weights in ascending order; equal ones stay as they are.
#[inline(always)]
pub(super) fn ranks<L: Lanes, const N: usize>(l: L, x: &[L::F32; N]) -> [L::I32; N] {
    let mut ranks = [l.splat_i(0); N];
    for j in 0..N {
        let mut rank = l.splat_i(j as i32);
        for i in 0..j {
            // One less for `j` and one more for `i` where they change places.
            let turned = l.ones(l.lt(x[j], x[i]));
            rank = rank + turned;
            ranks[i] = ranks[i] - turned;
        }
        ranks[j] = rank;
    }
    ranks
}

/// Eight sub-blocks, ready to be searched.
pub(super) struct Sorting<L: Lanes, S, const N: usize> {
    /// The places of the weights in ascending order.
    pub(super) ranks: [L::I32; N],
    sums: S,
    usable: L::Mask,
}

/// Sorts eight sub-blocks.
#[inline(always)]
pub(super) fn sort<L: Lanes, const N: usize, T: InLanes<N>>(
    l: L,
    x: &[L::F32; N],
    weight: &[L::F32; N],
) -> Sorting<L, T::Sums<L>, N> {
    let ranks = ranks(l, x);
    let sums = T::Sums::new(l, &Sorted::new(l, T::PARTS, x, weight, &ranks));
    let mut least = weight[0];
    for &weight in weight {
        least = l.min(weight, least);
    }
    let usable = usable(l, least, sums.weight());
    Sorting { ranks, sums, usable }
}

/// Whether `sumq2` is certainly positive, given the least importance and the sum.
#[inline(always)]
fn usable<L: Lanes>(l: L, least: L::F32, sum: L::F32) -> L::Mask {
    !l.lt(least, l.splat(0.0)) & l.lt(l.splat(1e-30), sum) & l.lt(sum, l.splat(1e30))
}

/// Places that a first place of the middle run is multiplied with in a split's number; more than there are.
const PLACES: usize = 64;

/// The best splits of twice eight sub-blocks: one search waits while the other computes. None where the reference has
/// none or must be asked; the bits tell the lanes where it must.
#[inline(always)]
pub(super) fn best_splits<L: Lanes, const N: usize, T: InLanes<N>>(
    l: L,
    sorted: &[Sorting<L, T::Sums<L>, N>; 2],
) -> [([Option<Split>; LANES], u32); 2] {
    let [first, second] = sorted;
    let mut best = [l.splat(f32::MIN); 2];
    // A split's number is its places and its shift.
    let mut winner = [l.splat_i(-1); 2];
    let (one, shifts) = (l.splat_i(1), T::SHIFTS + 1);
    for i1 in 0..=N {
        let rows = [first.sums.row(i1), second.sums.row(i1)];
        let mut number = l.splat_i(((PLACES * i1 + i1) * shifts) as i32);
        for i2 in i1..=N {
            let pairs = [first.sums.pairs(rows[0], i2), second.sums.pairs(rows[1], i2)];
            for k in 0..shifts {
                for b in 0..2 {
                    let (sumqx, sumq2) = pairs[b].as_ref()[k];
                    let better = l.lt(best[b] * sumq2, sumqx * sumqx);
                    best[b] = l.select(better, sumqx / sumq2 * sumqx, best[b]);
                    winner[b] = l.select_i(better, number, winner[b]);
                }
                number = number + one;
            }
        }
    }
    let mut found = [([None; LANES], 0); 2];
    for b in 0..2 {
        let usable = l.bits(sorted[b].usable);
        found[b].1 = !usable & 0xff;
        for (lane, number) in l.store_i(winner[b]).into_iter().enumerate() {
            if number >= 0 && usable >> lane & 1 == 1 {
                let (shift, number) = (number as usize % shifts, number as usize / shifts);
                let at = ((number / PLACES).min(N), (number % PLACES).min(N));
                let sums = &sorted[b].sums;
                let (sumqx, sumq2) = sums.pairs(sums.row(at.0), at.1).as_ref()[shift];
                found[b].0[lane] = Some(Split { at, shift, scale: l.store(sumqx / sumq2)[lane] });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::iq1::ascending;
    use super::super::lanes::{Portable, columns};
    use super::*;

    /// Eight sub-blocks of weights and importance, with ties, zeros of both signs and constants in some.
    fn sub_blocks<const N: usize>(seed: &mut u32) -> ([[f32; N]; LANES], [[f32; N]; LANES]) {
        let (mut x, mut weight) = ([[0.0; N]; LANES], [[1.0; N]; LANES]);
        for (lane, (x, weight)) in x.iter_mut().zip(&mut weight).enumerate() {
            for (x, weight) in x.iter_mut().zip(weight) {
                *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let v = *seed as i32 as f32 / 2_147_483_648.0;
                *x = match lane {
                    0 => 0.25,
                    1 => (2.0 * v).round() * -0.0,
                    2 => (3.0 * v).round(),
                    3 => v.max(0.0),
                    4 => 1.0 + 1e-6 * v,
                    _ => v,
                };
                *weight = if lane == 6 { *x * *x } else { (*seed >> 8 & 63) as f32 };
            }
        }
        (x, weight)
    }

    /// The splits of eight sub-blocks, and the lanes that are left to the reference.
    fn splits<const N: usize, T: InLanes<N>>(
        x: &[[f32; N]; LANES],
        weight: &[[f32; N]; LANES],
    ) -> ([Option<Split>; LANES], u32) {
        let (x, weight) = (columns(Portable, x), columns(Portable, weight));
        let [first, second] = best_splits::<_, N, T>(
            Portable,
            &[sort::<_, N, T>(Portable, &x, &weight), sort::<_, N, T>(Portable, &x, &weight)],
        );
        assert_eq!(first, second);
        first
    }

    fn check<const N: usize, T: InLanes<N>>(seed: &mut u32) {
        let (x, weight) = sub_blocks::<N>(seed);
        let (splits, left) = splits::<N, T>(&x, &weight);
        let ranks = ranks(Portable, &columns(Portable, &x));
        for lane in 0..LANES {
            let order: [u8; N] = ascending(&x[lane]);
            for (place, &i) in order.iter().enumerate() {
                assert_eq!(Portable.store_i(ranks[i as usize])[lane], place as i32, "{:?}", x[lane]);
            }
            assert_eq!(left >> lane & 1, 0);
            assert_eq!(splits[lane], T::split(&x[lane], &weight[lane], &order), "{:?} {:?}", x[lane], weight[lane]);
        }
    }

    #[test]
    fn splits_are_those_of_the_reference() {
        let mut seed = 1;
        for _ in 0..300 {
            check::<32, IQ1_S>(&mut seed);
            check::<16, IQ1_M>(&mut seed);
        }
    }

    #[test]
    fn importance_that_can_vanish_is_left_to_the_reference() {
        let (x, mut weight) = sub_blocks::<16>(&mut 7);
        weight[0][5] = -1e-3;
        weight[1] = [0.0; 16];
        weight[2][1] = 1e35;
        assert_eq!(splits::<16, IQ1_M>(&x, &weight).1, 0b111);
    }
}
