//! Scalar products in f64, of several rows at a time: in the vectors of the machine, and with sums enough that none waits
//! for its last addend.
//!
//! Each product is summed in eight f64 lanes, element `i` in lane `i mod 8`, and the lanes in order, so that it depends
//! neither on the instruction set nor on the rows beside it.

use pulp::Simd;

/// Lanes of a sum.
const LANES: usize = 8;

/// Elements that are widened at a time.
const RUN: usize = 256;

/// The scalar products of `R` rows of `cols` elements with `other`, or with themselves.
#[inline(always)]
pub(super) fn dots<S: Simd, const R: usize>(simd: S, rows: &[f32], cols: usize, other: Option<&[f32]>) -> [f64; R] {
    // A vector has one lane, two, four or eight.
    let vectors = LANES / S::F64_LANES;
    let whole = cols - cols % LANES;
    let mut sums = [[simd.splat_f64s(0.0); LANES]; R];
    let (mut left, mut right) = ([[0f64; RUN]; R], [0f64; RUN]);
    for first in (0..whole).step_by(RUN) {
        let len = RUN.min(whole - first);
        for (r, left) in left.iter_mut().enumerate() {
            widen(&rows[r * cols + first..][..len], left);
        }
        if let Some(other) = other {
            widen(&other[first..first + len], &mut right);
        }
        for at in (0..len).step_by(LANES) {
            let u = S::as_simd_f64s(&right[at..at + LANES]).0;
            for (sums, left) in sums.iter_mut().zip(&left) {
                let w = S::as_simd_f64s(&left[at..at + LANES]).0;
                let u = if other.is_some() { u } else { w };
                for v in 0..vectors {
                    sums[v] = simd.add_f64s(sums[v], simd.mul_f64s(w[v], u[v]));
                }
            }
        }
    }
    let mut products = [0.0; R];
    for (r, (product, sums)) in products.iter_mut().zip(&sums).enumerate() {
        let mut lanes = [0f64; LANES];
        S::as_mut_simd_f64s(&mut lanes).0.copy_from_slice(&sums[..vectors]);
        let rest = &rows[r * cols + whole..(r + 1) * cols];
        let others = other.map_or(rest, |other| &other[whole..]);
        for ((lane, w), u) in lanes.iter_mut().zip(rest).zip(others) {
            *lane += f64::from(*w) * f64::from(*u);
        }
        *product = lanes.iter().sum();
    }
    products
}

#[inline(always)]
fn widen(from: &[f32], to: &mut [f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f64::from(*from);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pulp::{Arch, WithSimd};

    use super::*;

    struct Dots<'a>(&'a [f32], usize, Option<&'a [f32]>);

    impl WithSimd for Dots<'_> {
        type Output = [f64; 3];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [f64; 3] {
            dots::<S, 3>(simd, self.0, self.1, self.2)
        }
    }

    /// The rule as it is written.
    fn naive(w: &[f32], u: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        w.iter().zip(u).enumerate().for_each(|(i, (w, u))| lanes[i % LANES] += f64::from(*w) * f64::from(*u));
        lanes.iter().sum()
    }

    proptest! {
        #[test]
        fn dots_equal_the_rule(cols in 1usize..700, seed: u32) {
            let noise = |n: usize, salt: u32| -> Vec<f32> {
                let mixed = |i: u32| (i ^ seed ^ salt).wrapping_mul(2_654_435_761) >> 8;
                (0..n as u32).map(|i| mixed(i) as f32 / (1u32 << 23) as f32 - 1.0).collect()
            };
            let (rows, other) = (noise(3 * cols, 1), noise(cols, 2));
            let portable = dots::<_, 3>(pulp::Scalar, &rows, cols, Some(&other));
            let best = Arch::new().dispatch(Dots(&rows, cols, Some(&other)));
            let own = Arch::new().dispatch(Dots(&rows, cols, None));
            for (r, row) in rows.chunks_exact(cols).enumerate() {
                let rule = naive(row, &other).to_bits();
                prop_assert_eq!((portable[r].to_bits(), best[r].to_bits()), (rule, rule));
                prop_assert_eq!(own[r].to_bits(), naive(row, row).to_bits());
            }
        }
    }
}
