//! Eight lanes in the 256-bit registers of AVX2 (with F16C, which every AVX2 CPU has but Rust asks for).
//!
//! Values of these types come only from a token, and a token only from [`Avx2::detect`]: that is what each
//! SAFETY line means by "the token".
#![allow(unsafe_code)]

use super::pair::{self, Pair};
use super::{Kernel, LANES, Lanes, Rows, Vector};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Not, Sub};

/// Proof that the CPU has AVX2 and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, if the CPU has both.
    pub(crate) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Avx2(()))
    }
}

/// Enters a kernel with the features switched on for all that is inlined below.
pub(super) fn run<K: Kernel>(token: Avx2, rows: Rows<'_>, out: &mut [u8]) {
    #[target_feature(enable = "avx2,f16c")]
    fn enter<K: Kernel>(token: Avx2, rows: Rows<'_>, out: &mut [u8]) {
        K::rows(token, rows, out);
    }
    // SAFETY: the token proves that the CPU has the features.
    unsafe { enter::<K>(token, rows, out) }
}

/// Eight f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F32(pub(super) __m256);
/// Eight i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct I32(pub(super) __m256i);
/// Eight truth values: sign bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(__m256);

macro_rules! operator {
    ($($lane:ident: $op:ident $method:ident $intrinsic:ident;)*) => {$(
        impl $op for $lane {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: a value of this type exists only on a CPU with the token's features.
                $lane(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operator!(F32: Add add _mm256_add_ps; F32: Sub sub _mm256_sub_ps; F32: Mul mul _mm256_mul_ps; F32: Div div _mm256_div_ps;
    I32: Add add _mm256_add_epi32; I32: Sub sub _mm256_sub_epi32;
    I32: BitAnd bitand _mm256_and_si256; I32: BitOr bitor _mm256_or_si256; I32: BitXor bitxor _mm256_xor_si256;
    Mask: BitAnd bitand _mm256_and_ps; Mask: BitOr bitor _mm256_or_ps;);

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        // SAFETY: a value of this type exists only on a CPU with the token's features.
        Mask(unsafe { _mm256_xor_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) })
    }
}

macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: the token proves that the CPU has the features; loads and stores are of whole arrays.
            unsafe { $body }
        }
    )*};
}
pub(super) use {methods, operator};

impl Vector for Avx2 {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    const WIDTH: usize = LANES;

    methods! {
        fn splat(v: f32) -> F32 = F32(_mm256_set1_ps(v));
        fn abs(v: F32) -> F32 = F32(_mm256_and_ps(v.0, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff))));
        fn sqrt(v: F32) -> F32 = F32(_mm256_sqrt_ps(v.0));
        fn min(a: F32, b: F32) -> F32 = F32(_mm256_min_ps(a.0, b.0));
        fn max(a: F32, b: F32) -> F32 = F32(_mm256_max_ps(a.0, b.0));
        fn lt(a: F32, b: F32) -> Mask = Mask(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0));
        fn eq(a: F32, b: F32) -> Mask = Mask(_mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0));
        fn select(mask: Mask, yes: F32, no: F32) -> F32 = F32(_mm256_blendv_ps(no.0, yes.0, mask.0));
        fn splat_i(v: i32) -> I32 = I32(_mm256_set1_epi32(v));
        fn truncate(v: F32) -> I32 = I32(_mm256_cvttps_epi32(v.0));
        fn to_f32(v: I32) -> F32 = F32(_mm256_cvtepi32_ps(v.0));
        fn to_bits(v: F32) -> I32 = I32(_mm256_castps_si256(v.0));
        fn from_bits(v: I32) -> F32 = F32(_mm256_castsi256_ps(v.0));
        fn min_i(a: I32, b: I32) -> I32 = I32(_mm256_min_epi32(a.0, b.0));
        fn max_i(a: I32, b: I32) -> I32 = I32(_mm256_max_epi32(a.0, b.0));
        fn lt_i(a: I32, b: I32) -> Mask = Mask(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.0, a.0)));
        fn eq_i(a: I32, b: I32) -> Mask = Mask(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.0, b.0)));
        fn select_i(mask: Mask, yes: I32, no: I32) -> I32 =
            I32(_mm256_blendv_epi8(no.0, yes.0, _mm256_castps_si256(mask.0)));
        fn nearest(v: F32) -> F32 = F32(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v.0));
        fn bits(mask: Mask) -> u32 = _mm256_movemask_ps(mask.0) as u32;
    }

    #[inline(always)]
    fn shl<const N: i32>(self, v: I32) -> I32 {
        // SAFETY: the token.
        I32(unsafe { _mm256_slli_epi32::<N>(v.0) })
    }

    #[inline(always)]
    fn shr<const N: i32>(self, v: I32) -> I32 {
        // SAFETY: the token.
        I32(unsafe { _mm256_srli_epi32::<N>(v.0) })
    }
}

impl Lanes for Avx2 {
    const FAST_BITS: bool = true;

    type Wide = Pair<Avx2>;

    pair::joined!();

    methods! {
        fn load(v: &[f32; LANES]) -> F32 = F32(_mm256_loadu_ps(v.as_ptr()));
        fn f16_bits(v: F32) -> I32 =
            I32(_mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0)));
        fn load_i(v: &[i32; LANES]) -> I32 = I32(_mm256_loadu_si256(v.as_ptr().cast()));
        fn load_u8(v: &[u8; LANES]) -> I32 = I32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(v.as_ptr().cast())));
        fn lookup(table: F32, index: I32) -> F32 = F32(_mm256_permutevar8x32_ps(table.0, index.0));
        fn lookup_16(table: [F32; 2], index: I32) -> F32 = F32(_mm256_blendv_ps(
            _mm256_permutevar8x32_ps(table[0].0, index.0),
            _mm256_permutevar8x32_ps(table[1].0, index.0),
            _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index.0))
        ));
        fn lookup_i(table: I32, index: I32) -> I32 = I32(_mm256_permutevar8x32_epi32(table.0, index.0));
        fn ones(mask: Mask) -> I32 = I32(_mm256_castps_si256(mask.0));
    }

    #[inline(always)]
    fn store(self, v: F32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the token; eight f32 fit the array.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v.0) };
        out
    }

    #[inline(always)]
    fn store_i(self, v: I32) -> [i32; LANES] {
        let mut out = [0; LANES];
        // SAFETY: the token; eight i32 fit the array.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v.0) };
        out
    }

    #[inline(always)]
    fn store_u8(self, v: I32) -> [u8; LANES] {
        let mut out = [0; LANES];
        // SAFETY: the token; eight bytes fit the array.
        unsafe {
            let low = _mm256_shuffle_epi8(v.0, _mm256_set1_epi64x(0x8080_8080_0c08_0400_u64 as i64));
            let (a, b) = (_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_unpacklo_epi32(a, b));
        }
        out
    }

    #[inline(always)]
    fn store_u8x32(self, v: [I32; 4]) -> [u8; 32] {
        let mut out = [0; 32];
        // SAFETY: the token; 32 bytes fit the array.
        unsafe {
            let low = _mm256_set1_epi32(0xff);
            let v = [
                _mm256_and_si256(v[0].0, low),
                _mm256_and_si256(v[1].0, low),
                _mm256_and_si256(v[2].0, low),
                _mm256_and_si256(v[3].0, low),
            ];
            // Packing interleaves the halves of the registers: groups of four come as 0, 4, 1, 5 …
            let bytes = _mm256_packus_epi16(_mm256_packus_epi32(v[0], v[1]), _mm256_packus_epi32(v[2], v[3]));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn f16_value(self, v: I32) -> F32 {
        // SAFETY: the token.
        unsafe {
            let (a, b) = (_mm256_castsi256_si128(v.0), _mm256_extracti128_si256::<1>(v.0));
            F32(_mm256_cvtph_ps(_mm_packus_epi32(a, b)))
        }
    }

    #[inline(always)]
    fn transpose(self, r: [F32; LANES]) -> [F32; LANES] {
        // SAFETY: the token.
        unsafe {
            // Pairs, then quadruples, then the halves of the registers.
            let (a0, a1) = (_mm256_unpacklo_ps(r[0].0, r[1].0), _mm256_unpackhi_ps(r[0].0, r[1].0));
            let (a2, a3) = (_mm256_unpacklo_ps(r[2].0, r[3].0), _mm256_unpackhi_ps(r[2].0, r[3].0));
            let (a4, a5) = (_mm256_unpacklo_ps(r[4].0, r[5].0), _mm256_unpackhi_ps(r[4].0, r[5].0));
            let (a6, a7) = (_mm256_unpacklo_ps(r[6].0, r[7].0), _mm256_unpackhi_ps(r[6].0, r[7].0));
            let (b0, b1) = (_mm256_shuffle_ps::<0x44>(a0, a2), _mm256_shuffle_ps::<0xee>(a0, a2));
            let (b2, b3) = (_mm256_shuffle_ps::<0x44>(a1, a3), _mm256_shuffle_ps::<0xee>(a1, a3));
            let (b4, b5) = (_mm256_shuffle_ps::<0x44>(a4, a6), _mm256_shuffle_ps::<0xee>(a4, a6));
            let (b6, b7) = (_mm256_shuffle_ps::<0x44>(a5, a7), _mm256_shuffle_ps::<0xee>(a5, a7));
            [
                F32(_mm256_permute2f128_ps::<0x20>(b0, b4)),
                F32(_mm256_permute2f128_ps::<0x20>(b1, b5)),
                F32(_mm256_permute2f128_ps::<0x20>(b2, b6)),
                F32(_mm256_permute2f128_ps::<0x20>(b3, b7)),
                F32(_mm256_permute2f128_ps::<0x31>(b0, b4)),
                F32(_mm256_permute2f128_ps::<0x31>(b1, b5)),
                F32(_mm256_permute2f128_ps::<0x31>(b2, b6)),
                F32(_mm256_permute2f128_ps::<0x31>(b3, b7)),
            ]
        }
    }
}
