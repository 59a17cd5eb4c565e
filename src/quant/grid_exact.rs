//! ggml's own comparison of a group's candidates, for where nothing quicker decides.

use super::codebook::Word;
use super::lanes::{LANES, Lanes, Vector};

/// Vectors in the longest list of neighbours of any codebook.
pub(super) const LONGEST: usize = 64;

/// The place of the candidate with the least weighted squared error, computed in ggml's order: the first of equals, and
/// the first of all where no error is a number. `q` is what the levels stand for; `errors` is room for all candidates.
#[inline(always)]
pub(super) fn nearest_exactly<L: Lanes, const D: usize>(
    l: L,
    candidates: &[[Word; LANES]],
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
    for (error, words) in errors.iter_mut().zip(candidates) {
        let mut sum = l.splat(0.0);
        let mut index = l.shr::<16>(l.load_i(words));
        for &terms in &terms {
            sum = sum + l.lookup(terms, index);
            index = next_level::<L, D>(l, index);
        }
        *error = sum;
        least = l.min(sum, least);
    }
    let least = l.least(least);
    for (v, &error) in errors[..candidates.len()].iter().enumerate() {
        let bits = l.bits(l.eq(error, least) & l.lt(error, l.splat(f32::MAX)));
        if bits != 0 {
            return LANES * v + bits.trailing_zeros() as usize;
        }
    }
    0
}

/// Brings the next coordinate's level to the lowest bits.
#[inline(always)]
pub(super) fn next_level<V: Vector, const D: usize>(v: V, index: V::I32) -> V::I32 {
    if D == 8 { v.shr::<2>(index) } else { v.shr::<4>(index) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::codebook::{self, Codebook, Offer};

    #[test]
    fn every_list_of_neighbours_fits() {
        fn longest<const D: usize>(grid: &Codebook<D>) -> usize {
            let cells = 0..grid.radix.pow(D as u32);
            let len = |cell| match grid.offer(cell) {
                Offer::Point(_) => 0,
                Offer::Near(near) => near.words.len(),
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
