//! Passes over rows that measure on the way: in the vectors of the machine, sums of squares in f32 within a run, the
//! runs in f64.
//!
//! A pass is a type, not a closure: one that the compiler does not inline is compiled for the baseline instruction
//! set, and each of its vectors goes through memory.

use pulp::{Arch, Simd, WithSimd};

/// Elements whose squares are summed in f32.
const RUN: usize = 4096;

/// Sums of each kind that do not wait for each other.
const SUMS: usize = 4;

/// Sums of squares, gathered while rows change.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Squares {
    /// Of the values before.
    pub(super) before: f64,
    /// Of what was added.
    pub(super) added: f64,
}

impl std::ops::AddAssign for Squares {
    fn add_assign(&mut self, other: Squares) {
        self.before += other.before;
        self.added += other.added;
    }
}

impl Squares {
    /// Whether both are finite; then so is every value after: in f32, squares overflow long before sums do.
    pub(super) fn finite(&self) -> bool {
        (self.before + self.added).is_finite()
    }
}

/// The sum of squares.
pub(super) fn squares(values: &[f32]) -> f64 {
    Arch::new().dispatch(Measure { pass: Itself, inputs: [values] }).before
}

/// What changed between two states of the same rows.
pub(super) fn compare(before: &[f32], after: &[f32]) -> Squares {
    Arch::new().dispatch(Measure { pass: Difference, inputs: [before, after] })
}

/// `values += delta`.
pub(super) fn add(values: &mut [f32], delta: &[f32]) -> Squares {
    Arch::new().dispatch(Turn { pass: Add, values, others: [delta] })
}

/// `values += a * b * scale`, multiplied from left to right.
pub(super) fn add_scaled_products(values: &mut [f32], a: &[f32], b: &[f32], scale: f32) -> Squares {
    Arch::new().dispatch(Turn { pass: AddProducts(scale), values, others: [a, b] })
}

/// `values *= factor`.
pub(super) fn scale(values: &mut [f32], factor: f32) -> Squares {
    Arch::new().dispatch(Turn { pass: Scale(factor), values, others: [] })
}

/// `values *= factors`, element by element.
pub(super) fn multiply(values: &mut [f32], factors: &[f32]) -> Squares {
    Arch::new().dispatch(Turn { pass: Multiply, values, others: [factors] })
}

/// `values += values * factors`, element by element.
pub(super) fn modulate(values: &mut [f32], factors: &[f32]) -> Squares {
    Arch::new().dispatch(Turn { pass: Modulate, values, others: [factors] })
}

/// `values *= factor`; measured against `before`, what the values were before an earlier change.
pub(super) fn scale_since(values: &mut [f32], before: &[f32], factor: f32) -> Squares {
    Arch::new().dispatch(Turn { pass: ScaleSince(factor), values, others: [before] })
}

/// What is done to each vector of values, given the vectors of other rows at the same place.
trait Pass<const N: usize> {
    /// The new values, and what is measured: the old ones and the change. Must be `inline(always)`.
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, others: [S::f32s; N]) -> [S::f32s; 3];
}

struct Add;

impl Pass<1> for Add {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, [delta]: [S::f32s; 1]) -> [S::f32s; 3] {
        [simd.add_f32s(value, delta), value, delta]
    }
}

struct AddProducts(f32);

impl Pass<2> for AddProducts {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, [a, b]: [S::f32s; 2]) -> [S::f32s; 3] {
        let delta = simd.mul_f32s(simd.mul_f32s(a, b), simd.splat_f32s(self.0));
        [simd.add_f32s(value, delta), value, delta]
    }
}

struct Scale(f32);

impl Pass<0> for Scale {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, _: [S::f32s; 0]) -> [S::f32s; 3] {
        let new = simd.mul_f32s(value, simd.splat_f32s(self.0));
        [new, value, simd.sub_f32s(new, value)]
    }
}

struct Multiply;

impl Pass<1> for Multiply {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, [factor]: [S::f32s; 1]) -> [S::f32s; 3] {
        let new = simd.mul_f32s(value, factor);
        [new, value, simd.sub_f32s(new, value)]
    }
}

struct Modulate;

impl Pass<1> for Modulate {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, [factor]: [S::f32s; 1]) -> [S::f32s; 3] {
        let delta = simd.mul_f32s(value, factor);
        [simd.add_f32s(value, delta), value, delta]
    }
}

struct ScaleSince(f32);

impl Pass<1> for ScaleSince {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, value: S::f32s, [before]: [S::f32s; 1]) -> [S::f32s; 3] {
        let new = simd.mul_f32s(value, simd.splat_f32s(self.0));
        [new, before, simd.sub_f32s(new, before)]
    }
}

/// What is measured of rows that stay as they are.
trait Look<const N: usize> {
    /// The old values and the change. Must be `inline(always)`.
    fn vector<S: Simd>(&self, simd: S, inputs: [S::f32s; N]) -> [S::f32s; 2];
}

struct Itself;

impl Look<1> for Itself {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, [value]: [S::f32s; 1]) -> [S::f32s; 2] {
        [value, simd.splat_f32s(0.0)]
    }
}

struct Difference;

impl Look<2> for Difference {
    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, [before, after]: [S::f32s; 2]) -> [S::f32s; 2] {
        [before, simd.sub_f32s(after, before)]
    }
}

/// Squares of vectors, in lanes.
struct Sums<S: Simd>([[S::f32s; 2]; SUMS]);

impl<S: Simd> Sums<S> {
    #[inline(always)]
    fn zero(simd: S) -> Self {
        Sums([[simd.splat_f32s(0.0); 2]; SUMS])
    }

    #[inline(always)]
    fn take(&mut self, simd: S, at: usize, vectors: [S::f32s; 2]) {
        for (sum, v) in self.0[at % SUMS].iter_mut().zip(vectors) {
            *sum = simd.add_f32s(*sum, simd.mul_f32s(v, v));
        }
    }

    #[inline(always)]
    fn total(self, simd: S) -> Squares {
        let mut all = Squares::default();
        for [before, added] in self.0 {
            all.before += f64::from(simd.reduce_sum_f32s(before));
            all.added += f64::from(simd.reduce_sum_f32s(added));
        }
        all
    }
}

/// A pass over rows that change.
struct Turn<'a, P, const N: usize> {
    pass: P,
    values: &'a mut [f32],
    others: [&'a [f32]; N],
}

impl<P: Pass<N>, const N: usize> WithSimd for Turn<'_, P, N> {
    type Output = Squares;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Squares {
        let mut all = Squares::default();
        for (i, run) in self.values.chunks_mut(RUN).enumerate() {
            let others = parts(self.others, i * RUN, run.len());
            let mut sums = Sums::zero(simd);
            let (vectors, tail) = S::as_mut_simd_f32s(run);
            let (whole, tails) = split::<S, N>(others, vectors.len());
            for (at, value) in vectors.iter_mut().enumerate() {
                let [new, before, change] = self.pass.vector(simd, *value, at_place(simd, whole, at));
                *value = new;
                sums.take(simd, at, [before, change]);
            }
            if !tail.is_empty() {
                let others = partial(simd, tails);
                let [new, before, change] = self.pass.vector(simd, simd.partial_load_f32s(tail), others);
                simd.partial_store_f32s(tail, new);
                sums.take(simd, 0, [before, change]);
            }
            all += sums.total(simd);
        }
        all
    }
}

/// A pass over rows that stay as they are.
struct Measure<'a, P, const N: usize> {
    pass: P,
    inputs: [&'a [f32]; N],
}

impl<P: Look<N>, const N: usize> WithSimd for Measure<'_, P, N> {
    type Output = Squares;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Squares {
        let mut all = Squares::default();
        let len = self.inputs[0].len();
        for start in (0..len).step_by(RUN) {
            let inputs = parts(self.inputs, start, RUN.min(len - start));
            let mut sums = Sums::zero(simd);
            let count = inputs[0].len() / S::F32_LANES;
            let (whole, tails) = split::<S, N>(inputs, count);
            for at in 0..count {
                sums.take(simd, at, self.pass.vector(simd, at_place(simd, whole, at)));
            }
            if !tails[0].is_empty() {
                sums.take(simd, 0, self.pass.vector(simd, partial(simd, tails)));
            }
            all += sums.total(simd);
        }
        all
    }
}

/// The same part of each.
#[inline(always)]
fn parts<const N: usize>(mut all: [&[f32]; N], start: usize, len: usize) -> [&[f32]; N] {
    for part in &mut all {
        *part = &part[start..start + len];
    }
    all
}

/// The first `count` vectors of each, and the elements after them.
#[inline(always)]
fn split<S: Simd, const N: usize>(all: [&[f32]; N], count: usize) -> ([&[S::f32s]; N], [&[f32]; N]) {
    let (mut whole, mut tails): ([&[S::f32s]; N], _) = ([&[]; N], all);
    for (whole, tail) in whole.iter_mut().zip(&mut tails) {
        let (first, rest) = tail.split_at(count * S::F32_LANES);
        *whole = &S::as_simd_f32s(first).0[..count];
        *tail = rest;
    }
    (whole, tails)
}

/// Vector `at` of each.
#[inline(always)]
fn at_place<S: Simd, const N: usize>(simd: S, all: [&[S::f32s]; N], at: usize) -> [S::f32s; N] {
    let mut vectors = [simd.splat_f32s(0.0); N];
    for (vector, all) in vectors.iter_mut().zip(all) {
        *vector = all[at];
    }
    vectors
}

/// Less than a vector of each; the other lanes are zero.
#[inline(always)]
fn partial<S: Simd, const N: usize>(simd: S, all: [&[f32]; N]) -> [S::f32s; N] {
    let mut vectors = [simd.splat_f32s(0.0); N];
    for (vector, all) in vectors.iter_mut().zip(all) {
        *vector = simd.partial_load_f32s(all);
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
            .collect()
    }

    fn close(ours: f64, exact: f64) -> bool {
        (ours - exact).abs() <= 1e-4 * exact + 1e-12
    }

    /// What a pass made of `before`, against the rule for each element and the sums of squares in f64.
    fn check(before: &[f32], old: &[f32], after: &[f32], sums: Squares, added: &[f32], rule: impl Fn(usize) -> f32) {
        assert!(after.iter().enumerate().all(|(i, v)| v.to_bits() == rule(i).to_bits()));
        let exact = |values: &[f32]| values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        assert!(close(sums.before, exact(old)) && close(sums.added, exact(added)), "{sums:?} of {}", before.len());
    }

    proptest! {
        #[test]
        fn passes_equal_their_rules_and_measure_them(n in 0usize..9000, seed: u32, factor in -2f32..2.0) {
            let (v, a, b) = (noise(n, seed), noise(n, seed ^ 0x5555), noise(n, seed ^ 0xaaaa));
            let minus = |x: &[f32], y: &[f32]| -> Vec<f32> { x.iter().zip(y).map(|(x, y)| x - y).collect() };

            let mut x = v.clone();
            let sums = add(&mut x, &a);
            check(&v, &v, &x, sums, &a, |i| v[i] + a[i]);

            let mut x = v.clone();
            let sums = add_scaled_products(&mut x, &a, &b, factor);
            let delta: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b * factor).collect();
            check(&v, &v, &x, sums, &delta, |i| v[i] + delta[i]);

            let mut x = v.clone();
            let sums = scale(&mut x, factor);
            check(&v, &v, &x, sums, &minus(&x, &v), |i| v[i] * factor);

            let mut x = v.clone();
            let sums = multiply(&mut x, &a);
            check(&v, &v, &x, sums, &minus(&x, &v), |i| v[i] * a[i]);

            let mut x = v.clone();
            let sums = modulate(&mut x, &a);
            let delta: Vec<f32> = v.iter().zip(&a).map(|(v, a)| v * a).collect();
            check(&v, &v, &x, sums, &delta, |i| v[i] + delta[i]);

            let mut x = v.clone();
            let sums = scale_since(&mut x, &b, factor);
            check(&v, &b, &x, sums, &minus(&x, &b), |i| v[i] * factor);

            check(&v, &v, &a, compare(&v, &a), &minus(&a, &v), |i| a[i]);
            prop_assert!(close(squares(&v), v.iter().map(|v| f64::from(*v).powi(2)).sum()));
        }
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
            let mut delta = vec![0.1; 5003];
            delta[5001] = bad;
            assert!(!add(&mut vec![1.0; 5003], &delta).finite());
        }
    }
}
