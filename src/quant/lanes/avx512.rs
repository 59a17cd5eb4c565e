//! Eight lanes in the 256-bit registers of AVX2, with the masks and the thirty-two registers of AVX-512.
//!
//! A truth value is a bit in a mask register, so a selection is one operation where AVX2 needs three, and a
//! search keeps more of its columns out of memory. What has no better form is AVX2's own, which the token holds.
#![allow(unsafe_code)]

use super::avx2::{self, Avx2, methods};
use super::zmm::{self, Zmm};
use super::{Kernel, LANES, Lanes, Rows, Vector};
use std::arch::x86_64::*;
use std::ops::{BitAnd, BitOr, Not};

/// Proof that the CPU has AVX2, F16C and the parts F, VL, DQ and BW of AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    /// The token, if the CPU has them all.
    pub(crate) fn detect() -> Option<Avx512> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw");
        Avx2::detect().filter(|_| has_all).map(Avx512)
    }

    /// The token of the smaller instruction set.
    pub(super) fn avx2(self) -> Avx2 {
        self.0
    }
}

/// Enters a kernel with the features switched on for all that is inlined below.
pub(super) fn run<K: Kernel>(token: Avx512, rows: Rows<'_>, out: &mut [u8]) {
    #[target_feature(enable = "avx2,f16c,avx512f,avx512vl,avx512dq,avx512bw")]
    fn enter<K: Kernel>(token: Avx512, rows: Rows<'_>, out: &mut [u8]) {
        K::rows(token, rows, out);
    }
    // SAFETY: the token proves that the CPU has the features.
    unsafe { enter::<K>(token, rows, out) }
}

/// Eight truth values: the bits of a byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(__mmask8);

macro_rules! bit_mask {
    ($mask:ident) => {
        impl BitAnd for $mask {
            type Output = Self;
            #[inline(always)]
            fn bitand(self, other: Self) -> Self {
                $mask(self.0 & other.0)
            }
        }

        impl BitOr for $mask {
            type Output = Self;
            #[inline(always)]
            fn bitor(self, other: Self) -> Self {
                $mask(self.0 | other.0)
            }
        }

        impl Not for $mask {
            type Output = Self;
            #[inline(always)]
            fn not(self) -> Self {
                $mask(!self.0)
            }
        }
    };
}
bit_mask!(Mask);
pub(super) use bit_mask;

macro_rules! as_avx2 {
    ($(fn $name:ident$(<const $n:ident: i32>)?($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        #[inline(always)]
        fn $name$(<const $n: i32>)?(self, $($arg: $ty),*) -> $out {
            self.0.$name$(::<$n>)?($($arg),*)
        }
    )*};
}

impl Vector for Avx512 {
    type F32 = avx2::F32;
    type I32 = avx2::I32;
    type Mask = Mask;

    const WIDTH: usize = LANES;

    methods! {
        fn lt(a: Self::F32, b: Self::F32) -> Mask = Mask(_mm256_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0));
        fn eq(a: Self::F32, b: Self::F32) -> Mask = Mask(_mm256_cmp_ps_mask::<_CMP_EQ_OQ>(a.0, b.0));
        fn select(mask: Mask, yes: Self::F32, no: Self::F32) -> Self::F32 =
            avx2::F32(_mm256_mask_blend_ps(mask.0, no.0, yes.0));
        fn lt_i(a: Self::I32, b: Self::I32) -> Mask = Mask(_mm256_cmplt_epi32_mask(a.0, b.0));
        fn eq_i(a: Self::I32, b: Self::I32) -> Mask = Mask(_mm256_cmpeq_epi32_mask(a.0, b.0));
        fn select_i(mask: Mask, yes: Self::I32, no: Self::I32) -> Self::I32 =
            avx2::I32(_mm256_mask_blend_epi32(mask.0, no.0, yes.0));
    }

    #[inline(always)]
    fn bits(self, mask: Mask) -> u32 {
        u32::from(mask.0)
    }

    as_avx2! {
        fn splat(v: f32) -> Self::F32;
        fn abs(v: Self::F32) -> Self::F32;
        fn sqrt(v: Self::F32) -> Self::F32;
        fn min(a: Self::F32, b: Self::F32) -> Self::F32;
        fn max(a: Self::F32, b: Self::F32) -> Self::F32;
        fn splat_i(v: i32) -> Self::I32;
        fn truncate(v: Self::F32) -> Self::I32;
        fn to_f32(v: Self::I32) -> Self::F32;
        fn to_bits(v: Self::F32) -> Self::I32;
        fn from_bits(v: Self::I32) -> Self::F32;
        fn min_i(a: Self::I32, b: Self::I32) -> Self::I32;
        fn max_i(a: Self::I32, b: Self::I32) -> Self::I32;
        fn shl<const N: i32>(v: Self::I32) -> Self::I32;
        fn shr<const N: i32>(v: Self::I32) -> Self::I32;
    }
}

impl Lanes for Avx512 {
    const FAST_BITS: bool = true;

    type Wide = Zmm;

    #[inline(always)]
    fn wide(self) -> Zmm {
        Zmm::of(self)
    }

    #[inline(always)]
    fn join(self, halves: [Self::F32; 2]) -> zmm::F32 {
        zmm::join(self.wide(), [halves[0].0, halves[1].0])
    }

    #[inline(always)]
    fn split(self, v: zmm::F32) -> [Self::F32; 2] {
        zmm::split(v).map(avx2::F32)
    }

    #[inline(always)]
    fn least_of_halves(self, v: zmm::F32) -> zmm::F32 {
        zmm::least_of_halves(v)
    }

    #[inline(always)]
    fn lookup_halves(self, table: zmm::F32, index: zmm::I32) -> zmm::F32 {
        zmm::lookup(table, index)
    }

    #[inline(always)]
    fn twice(self, v: Self::F32) -> zmm::F32 {
        zmm::twice(self.wide(), v.0)
    }

    #[inline(always)]
    fn in_copies(self, v: &[f32; 2]) -> zmm::F32 {
        zmm::in_copies(self.wide(), v)
    }

    #[inline(always)]
    fn copies(self, v: zmm::F32) -> [Self::F32; 2] {
        zmm::copies(v).map(avx2::F32)
    }

    #[inline(always)]
    fn lookup_16(self, table: [Self::F32; 2], index: Self::I32) -> Self::F32 {
        // SAFETY: the token proves that the CPU has the features.
        avx2::F32(unsafe { _mm256_permutex2var_ps(table[0].0, index.0, table[1].0) })
    }

    #[inline(always)]
    fn ones(self, mask: Mask) -> Self::I32 {
        // SAFETY: the token proves that the CPU has the features.
        avx2::I32(unsafe { _mm256_movm_epi32(mask.0) })
    }

    as_avx2! {
        fn load(v: &[f32; LANES]) -> Self::F32;
        fn store(v: Self::F32) -> [f32; LANES];
        fn transpose(rows: [Self::F32; LANES]) -> [Self::F32; LANES];
        fn f16_bits(v: Self::F32) -> Self::I32;
        fn f16_value(v: Self::I32) -> Self::F32;
        fn load_i(v: &[i32; LANES]) -> Self::I32;
        fn store_i(v: Self::I32) -> [i32; LANES];
        fn load_u8(v: &[u8; LANES]) -> Self::I32;
        fn store_u8(v: Self::I32) -> [u8; LANES];
        fn store_u8x32(v: [Self::I32; 4]) -> [u8; 32];
        fn lookup(table: Self::F32, index: Self::I32) -> Self::F32;
        fn lookup_i(table: Self::I32, index: Self::I32) -> Self::I32;
    }
}
