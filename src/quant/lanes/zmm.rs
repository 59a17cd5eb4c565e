//! Sixteen lanes in the 512-bit registers of AVX-512.
//!
//! Two operations a cycle on sixteen lanes do a third more than three on eight, so the searches run on these.
#![allow(unsafe_code)]

use super::Vector;
use super::avx2::{methods, operator};
use super::avx512::{Avx512, bit_mask};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Not, Sub};

/// The wide registers; the token of AVX-512 proves that the CPU has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zmm(());

impl Zmm {
    /// The wide registers of a CPU with the token's features.
    #[inline(always)]
    pub(super) fn of(_: Avx512) -> Zmm {
        Zmm(())
    }
}

/// Sixteen f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32(__m512);
/// Sixteen i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct I32(__m512i);
/// Sixteen truth values: the bits of a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(__mmask16);

operator!(F32: Add add _mm512_add_ps; F32: Sub sub _mm512_sub_ps; F32: Mul mul _mm512_mul_ps; F32: Div div _mm512_div_ps;
    I32: Add add _mm512_add_epi32; I32: Sub sub _mm512_sub_epi32;
    I32: BitAnd bitand _mm512_and_si512; I32: BitOr bitor _mm512_or_si512; I32: BitXor bitxor _mm512_xor_si512;);

bit_mask!(Mask);

/// Two vectors of eight as one.
#[inline(always)]
pub(super) fn join(_: Zmm, halves: [__m256; 2]) -> F32 {
    // SAFETY: the token proves that the CPU has the features.
    F32(unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(halves[0]), halves[1]) })
}

/// The first eight and the others.
#[inline(always)]
pub(super) fn split(v: F32) -> [__m256; 2] {
    // SAFETY: a value of this type exists only on a CPU with the token's features.
    unsafe { [_mm512_castps512_ps256(v.0), _mm512_extractf32x8_ps::<1>(v.0)] }
}

/// The smallest of each eight, in all of them.
#[inline(always)]
pub(super) fn least_of_halves(v: F32) -> F32 {
    // SAFETY: a value of this type exists only on a CPU with the token's features.
    unsafe {
        let v = _mm512_min_ps(v.0, _mm512_shuffle_f32x4::<0xb1>(v.0, v.0));
        let v = _mm512_min_ps(v, _mm512_permute_ps::<0x4e>(v));
        F32(_mm512_min_ps(v, _mm512_permute_ps::<0xb1>(v)))
    }
}

/// Entry `index & 15`.
#[inline(always)]
pub(super) fn lookup(table: F32, index: I32) -> F32 {
    // SAFETY: a value of these types exists only on a CPU with the token's features.
    F32(unsafe { _mm512_permutexvar_ps(index.0, table.0) })
}

/// Every lane of eight twice, side by side.
#[inline(always)]
pub(super) fn twice(_: Zmm, v: __m256) -> F32 {
    // SAFETY: the token proves that the CPU has the features.
    unsafe {
        let places = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        F32(_mm512_permutexvar_ps(places, _mm512_castps256_ps512(v)))
    }
}

/// Two numbers in turns.
#[inline(always)]
pub(super) fn in_copies(_: Zmm, v: &[f32; 2]) -> F32 {
    // SAFETY: the token proves that the CPU has the features; the load is of the whole array.
    F32(unsafe { _mm512_castpd_ps(_mm512_set1_pd(v.as_ptr().cast::<f64>().read_unaligned())) })
}

/// The lanes of even place, and those of odd place.
#[inline(always)]
pub(super) fn copies(v: F32) -> [__m256; 2] {
    // SAFETY: a value of this type exists only on a CPU with the token's features.
    unsafe {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
        let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
        [
            _mm512_castps512_ps256(_mm512_permutexvar_ps(even, v.0)),
            _mm512_castps512_ps256(_mm512_permutexvar_ps(odd, v.0)),
        ]
    }
}

impl Vector for Zmm {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    const WIDTH: usize = 16;
    const HAS_IDLE_UNITS: bool = true;

    methods! {
        fn splat(v: f32) -> F32 = F32(_mm512_set1_ps(v));
        fn abs(v: F32) -> F32 = F32(_mm512_abs_ps(v.0));
        fn sqrt(v: F32) -> F32 = F32(_mm512_sqrt_ps(v.0));
        fn min(a: F32, b: F32) -> F32 = F32(_mm512_min_ps(a.0, b.0));
        fn max(a: F32, b: F32) -> F32 = F32(_mm512_max_ps(a.0, b.0));
        fn lt(a: F32, b: F32) -> Mask = Mask(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0));
        fn eq(a: F32, b: F32) -> Mask = Mask(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a.0, b.0));
        fn select(mask: Mask, yes: F32, no: F32) -> F32 = F32(_mm512_mask_blend_ps(mask.0, no.0, yes.0));
        fn splat_i(v: i32) -> I32 = I32(_mm512_set1_epi32(v));
        fn truncate(v: F32) -> I32 = I32(_mm512_cvttps_epi32(v.0));
        fn to_f32(v: I32) -> F32 = F32(_mm512_cvtepi32_ps(v.0));
        fn to_bits(v: F32) -> I32 = I32(_mm512_castps_si512(v.0));
        fn from_bits(v: I32) -> F32 = F32(_mm512_castsi512_ps(v.0));
        fn min_i(a: I32, b: I32) -> I32 = I32(_mm512_min_epi32(a.0, b.0));
        fn max_i(a: I32, b: I32) -> I32 = I32(_mm512_max_epi32(a.0, b.0));
        fn lt_i(a: I32, b: I32) -> Mask = Mask(_mm512_cmplt_epi32_mask(a.0, b.0));
        fn eq_i(a: I32, b: I32) -> Mask = Mask(_mm512_cmpeq_epi32_mask(a.0, b.0));
        fn select_i(mask: Mask, yes: I32, no: I32) -> I32 = I32(_mm512_mask_blend_epi32(mask.0, no.0, yes.0));
    }

    #[inline(always)]
    fn shl<const N: i32>(self, v: I32) -> I32 {
        // The shift by a constant wants an unsigned one; the compiler finds it all the same.
        // SAFETY: the token proves that the CPU has the features.
        I32(unsafe { _mm512_sllv_epi32(v.0, _mm512_set1_epi32(N)) })
    }

    #[inline(always)]
    fn shr<const N: i32>(self, v: I32) -> I32 {
        // SAFETY: the token proves that the CPU has the features.
        I32(unsafe { _mm512_srlv_epi32(v.0, _mm512_set1_epi32(N)) })
    }

    #[inline(always)]
    fn bits(self, mask: Mask) -> u32 {
        u32::from(mask.0)
    }
}
