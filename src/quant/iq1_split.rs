//! The best splits of sub-blocks of IQ1_S or IQ1_M, sixteen sub-blocks in the lanes.
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
use super::lanes::{LANES, Lanes, Vector, WIDE};

/// Numbers of sixteen sub-blocks.
type F32<L> = <<L as Lanes>::Wide as Vector>::F32;
/// `sumqx` and `sumq2`.
type Pair<L> = (F32<L>, F32<L>);

/// A type of which sixteen sub-blocks are searched at once.
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
    wx: [[f32; WIDE]; 32],
    /// Importance.
    w: [[f32; WIDE]; 32],
}

impl Sorted {
    /// Puts the terms of `N` weights of sub-blocks of the first or second eight lanes in place.
    #[inline(always)]
    fn put<L: Lanes, const N: usize>(
        &mut self,
        l: L,
        half: usize,
        parts: usize,
        x: &[L::F32; N],
        weight: &[L::F32; N],
        ranks: &[L::I32; N],
    ) {
        let (to_wx, to_w) = (self.wx.as_flattened_mut(), self.w.as_flattened_mut());
        let lanes = l.load_i(&[0, 1, 2, 3, 4, 5, 6, 7]);
        for i in 0..N {
            let first = l.splat_i((i * parts / N * N * WIDE + half * LANES) as i32);
            let to = l.store_i(l.shl::<4>(ranks[i]) + lanes + first);
            let (wx, w) = (l.store(weight[i] * x[i]), l.store(weight[i]));
            for lane in 0..LANES {
                let to = to[lane] as usize % (32 * WIDE);
                to_wx[to] = wx[lane];
                to_w[to] = w[lane];
            }
        }
    }
}

/// The sums before each of `P` places.
#[inline(always)]
fn prefix_sums<L: Lanes, const P: usize>(l: L, terms: &[[f32; WIDE]]) -> [F32<L>; P] {
    let mut sums = [l.wide().splat(0.0); P];
    for j in 1..P {
        sums[j] = sums[j - 1] + l.load_wide(&terms[j - 1]);
    }
    sums
}

/// The sums of all splits of sixteen sub-blocks.
pub(super) trait Sums<L: Lanes> {
    /// What they have in common for a first place of the middle run.
    type Row: Copy;
    /// One pair for each shift.
    type Pairs: AsRef<[Pair<L>]>;

    fn new(l: L, sorted: &Sorted) -> Self;
    /// The sum of all importance.
    fn weight(&self) -> F32<L>;
    fn row(&self, i1: usize) -> Self::Row;
    fn pairs(&self, row: Self::Row, i2: usize) -> Self::Pairs;
}

/// IQ1_S's.
pub(super) struct SumsS<L: Lanes> {
    l: L,
    wx: [F32<L>; 33],
    w: [F32<L>; 33],
    /// The upper run's part, by its first place and shift.
    upper: [[Pair<L>; 2]; 33],
}

impl<L: Lanes> Sums<L> for SumsS<L> {
    /// Prefix sums, and the lower run's part by shift.
    type Row = (F32<L>, F32<L>, [Pair<L>; 2]);
    type Pairs = [Pair<L>; 2];

    #[inline(always)]
    fn new(l: L, sorted: &Sorted) -> Self {
        let wx: [F32<L>; 33] = prefix_sums(l, &sorted.wx);
        let w: [F32<L>; 33] = prefix_sums(l, &sorted.w);
        let mut upper = [[(wx[0], w[0]); 2]; 33];
        for i in 0..33 {
            for (upper, v) in upper[i].iter_mut().zip([UP, DOWN]) {
                let v = l.wide().splat(v[2]);
                *upper = ((wx[32] - wx[i]) * v, (w[32] - w[i]) * v * v);
            }
        }
        SumsS { l, wx, w, upper }
    }

    #[inline(always)]
    fn weight(&self) -> F32<L> {
        self.w[32]
    }

    #[inline(always)]
    fn row(&self, i1: usize) -> Self::Row {
        let (wx, w) = (self.wx[i1], self.w[i1]);
        let mut lower = [(wx, w); 2];
        for (lower, v) in lower.iter_mut().zip([UP, DOWN]) {
            let v = self.l.wide().splat(v[0]);
            *lower = (wx * v, w * v * v);
        }
        (wx, w, lower)
    }

    #[inline(always)]
    fn pairs(&self, (wx, w, lower): Self::Row, i2: usize) -> Self::Pairs {
        let middle = self.l.wide().splat(UP[1]);
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
    wx: [[F32<L>; 17]; 2],
    w: [[F32<L>; 17]; 2],
    /// By shift: what does not depend on the split.
    all: [[Pair<L>; 2]; 2],
    /// By shift: the factor of the importance before the first place of the middle run.
    lower: [F32<L>; 2],
    /// By the first place of the upper run and shift: what follows from the importance before it.
    upper: [[[F32<L>; 2]; 17]; 2],
}

impl<L: Lanes> Sums<L> for SumsM<L> {
    /// By half: the prefix sum, and by shift what `sumq2` begins with.
    type Row = [(F32<L>, [F32<L>; 2]); 2];
    type Pairs = [Pair<L>; 4];

    #[inline(always)]
    fn new(l: L, sorted: &Sorted) -> Self {
        let zero = l.wide().splat(0.0);
        let wx: [[F32<L>; 17]; 2] = [prefix_sums(l, &sorted.wx), prefix_sums(l, &sorted.wx[16..])];
        let w: [[F32<L>; 17]; 2] = [prefix_sums(l, &sorted.w), prefix_sums(l, &sorted.w[16..])];
        let (mut all, mut lower, mut upper) = ([[(zero, zero); 2]; 2], [zero; 2], [[[zero; 2]; 17]; 2]);
        for (s, v) in [UP, DOWN].iter().enumerate() {
            let top = l.wide().splat(v[2]);
            lower[s] = l.wide().splat(v[0] * v[0] - v[1] * v[1]);
            for h in 0..2 {
                all[h][s] = (wx[h][16] * top, w[h][16] * top * top);
                for i in 0..17 {
                    upper[h][i][s] = w[h][i] * l.wide().splat(v[1] * v[1] - v[2] * v[2]);
                }
            }
        }
        SumsM { wx, w, all, lower, upper }
    }

    #[inline(always)]
    fn weight(&self) -> F32<L> {
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
    /// Weights that are compared with another at once.
    const TILE: usize = 4;
    let mut ranks = [l.splat_i(0); N];
    for at in (0..N).step_by(TILE) {
        let mut own = [l.splat_i(at as i32); TILE];
        for i in 0..at {
            let mut rank = ranks[i];
            for j in 0..TILE {
                // One less for the later and one more for the earlier where they change places.
                let turned = l.ones(l.lt(x[at + j], x[i]));
                own[j] = own[j] + turned;
                rank = rank - turned;
            }
            ranks[i] = rank;
        }
        for j in 0..TILE {
            own[j] = own[j] + l.splat_i(j as i32);
            for i in 0..j {
                let turned = l.ones(l.lt(x[at + j], x[at + i]));
                own[j] = own[j] + turned;
                own[i] = own[i] - turned;
            }
        }
        ranks[at..at + TILE].copy_from_slice(&own);
    }
    ranks
}

/// What [`best_splits`] finds for sixteen sub-blocks.
pub(super) struct Splits {
    /// The best splits; none where the reference has none or must be asked.
    pub(super) best: [Option<Split>; WIDE],
    /// By lane, a bit where the reference must be asked.
    pub(super) left: u32,
}

/// The best splits of twice eight sub-blocks, given their weights, importance and ranks.
#[inline(always)]
pub(super) fn best_splits<L: Lanes, const N: usize, T: InLanes<N>>(
    l: L,
    x: [&[L::F32; N]; 2],
    weight: [&[L::F32; N]; 2],
    ranks: [&[L::I32; N]; 2],
) -> Splits {
    let mut sorted = Sorted { wx: [[0.0; WIDE]; 32], w: [[0.0; WIDE]; 32] };
    let mut least = [weight[0][0], weight[1][0]];
    for half in 0..2 {
        sorted.put(l, half, T::PARTS, x[half], weight[half], ranks[half]);
        for &weight in weight[half] {
            least[half] = l.min(weight, least[half]);
        }
    }
    let sums = T::Sums::new(l, &sorted);
    let w = l.wide();
    let usable = w.bits(usable(w, l.join(least), sums.weight()));
    let mut best = w.splat(f32::MIN);
    // A split's number is its places and its shift.
    let mut winner = w.splat_i(-1);
    let (one, shifts) = (w.splat_i(1), T::SHIFTS + 1);
    for i1 in 0..=N {
        let row = sums.row(i1);
        let mut number = w.splat_i(((PLACES * i1 + i1) * shifts) as i32);
        for i2 in i1..=N {
            for &(sumqx, sumq2) in sums.pairs(row, i2).as_ref() {
                let better = w.lt(best * sumq2, sumqx * sumqx);
                best = w.select(better, sumqx / sumq2 * sumqx, best);
                winner = w.select_i(better, number, winner);
                number = number + one;
            }
        }
    }
    let mut splits = Splits { best: [None; WIDE], left: !usable & 0xffff };
    for (lane, number) in l.store_wide(w.from_bits(winner)).into_iter().enumerate() {
        let number = number.to_bits() as i32;
        if number >= 0 && usable >> lane & 1 == 1 {
            let (shift, number) = (number as usize % shifts, number as usize / shifts);
            let at = ((number / PLACES).min(N), (number % PLACES).min(N));
            let (sumqx, sumq2) = sums.pairs(sums.row(at.0), at.1).as_ref()[shift];
            splits.best[lane] = Some(Split { at, shift, scale: l.store_wide(sumqx / sumq2)[lane] });
        }
    }
    splits
}

/// Whether `sumq2` is certainly positive, given the least importance and the sum.
#[inline(always)]
fn usable<V: Vector>(v: V, least: V::F32, sum: V::F32) -> V::Mask {
    !v.lt(least, v.splat(0.0)) & v.lt(v.splat(1e-30), sum) & v.lt(sum, v.splat(1e30))
}

/// Places that a first place of the middle run is multiplied with in a split's number; more than there are.
const PLACES: usize = 64;

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
        let ranks = ranks(Portable, &x);
        let found = best_splits::<_, N, T>(Portable, [&x; 2], [&weight; 2], [&ranks; 2]);
        let (first, second) = found.best.split_at(LANES);
        assert_eq!(first, second);
        assert_eq!(found.left & 0xff, found.left >> LANES);
        (*first.first_chunk().unwrap(), found.left & 0xff)
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
