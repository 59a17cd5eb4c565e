//! Lanes as arrays: plain Rust that the compiler vectorises for the baseline of its target (SSE2, NEON).

use super::pair::{self, Pair};
use super::{LANES, Lanes, Vector};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Not, Sub};

/// The instruction set that every CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

/// Eight lanes in an array.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array<T>([T; LANES]);

// Without loops, which the compiler would only have to unroll again, and that takes it minutes.

#[inline(always)]
fn map<T: Copy, U>(Array(a): Array<T>, f: impl Fn(T) -> U) -> Array<U> {
    Array([f(a[0]), f(a[1]), f(a[2]), f(a[3]), f(a[4]), f(a[5]), f(a[6]), f(a[7])])
}

#[inline(always)]
fn zip<T: Copy, U: Copy, V>(Array(a): Array<T>, Array(b): Array<U>, f: impl Fn(T, U) -> V) -> Array<V> {
    Array([
        f(a[0], b[0]),
        f(a[1], b[1]),
        f(a[2], b[2]),
        f(a[3], b[3]),
        f(a[4], b[4]),
        f(a[5], b[5]),
        f(a[6], b[6]),
        f(a[7], b[7]),
    ])
}

macro_rules! operator {
    ($lane:ty: $($op:ident $method:ident $f:expr;)*) => {$(
        impl $op for Array<$lane> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                zip(self, other, $f)
            }
        }
    )*};
}
operator!(f32: Add add |a, b| a + b; Sub sub |a, b| a - b; Mul mul |a, b| a * b; Div div |a, b| a / b;);
operator!(i32: Add add |a: i32, b| a.wrapping_add(b); Sub sub |a: i32, b| a.wrapping_sub(b);
    BitAnd bitand |a, b| a & b; BitOr bitor |a, b| a | b; BitXor bitxor |a, b| a ^ b;);

/// Truth values as all-zero and all-one words, which select without branches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(Array<i32>);

impl BitAnd for Mask {
    type Output = Self;
    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Mask(self.0 & other.0)
    }
}

impl BitOr for Mask {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Mask(self.0 | other.0)
    }
}

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Mask(map(self.0, |v| !v))
    }
}

#[inline(always)]
fn column(r: [Array<f32>; LANES], i: usize) -> Array<f32> {
    Array([r[0].0[i], r[1].0[i], r[2].0[i], r[3].0[i], r[4].0[i], r[5].0[i], r[6].0[i], r[7].0[i]])
}

#[inline(always)]
fn truth(v: bool) -> i32 {
    -i32::from(v)
}

impl Vector for Portable {
    type F32 = Array<f32>;
    type I32 = Array<i32>;
    type Mask = Mask;

    const WIDTH: usize = LANES;

    #[inline(always)]
    fn splat(self, v: f32) -> Array<f32> {
        Array([v; LANES])
    }
    #[inline(always)]
    fn abs(self, v: Array<f32>) -> Array<f32> {
        map(v, f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, v: Array<f32>) -> Array<f32> {
        map(v, f32::sqrt)
    }
    #[inline(always)]
    fn min(self, a: Array<f32>, b: Array<f32>) -> Array<f32> {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Array<f32>, b: Array<f32>) -> Array<f32> {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn lt(self, a: Array<f32>, b: Array<f32>) -> Mask {
        Mask(zip(a, b, |a, b| truth(a < b)))
    }
    #[inline(always)]
    fn eq(self, a: Array<f32>, b: Array<f32>) -> Mask {
        Mask(zip(a, b, |a, b| truth(a == b)))
    }
    #[inline(always)]
    fn select(self, mask: Mask, yes: Array<f32>, no: Array<f32>) -> Array<f32> {
        self.from_bits(self.select_i(mask, self.to_bits(yes), self.to_bits(no)))
    }
    #[inline(always)]
    fn splat_i(self, v: i32) -> Array<i32> {
        Array([v; LANES])
    }
    #[inline(always)]
    fn truncate(self, v: Array<f32>) -> Array<i32> {
        map(v, super::super::search::truncate_int)
    }
    #[inline(always)]
    fn to_f32(self, v: Array<i32>) -> Array<f32> {
        map(v, |v| v as f32)
    }
    #[inline(always)]
    fn to_bits(self, v: Array<f32>) -> Array<i32> {
        map(v, |v| v.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(self, v: Array<i32>) -> Array<f32> {
        map(v, |v| f32::from_bits(v as u32))
    }
    #[inline(always)]
    fn min_i(self, a: Array<i32>, b: Array<i32>) -> Array<i32> {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max_i(self, a: Array<i32>, b: Array<i32>) -> Array<i32> {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn lt_i(self, a: Array<i32>, b: Array<i32>) -> Mask {
        Mask(zip(a, b, |a, b| truth(a < b)))
    }
    #[inline(always)]
    fn eq_i(self, a: Array<i32>, b: Array<i32>) -> Mask {
        Mask(zip(a, b, |a, b| truth(a == b)))
    }
    #[inline(always)]
    fn select_i(self, mask: Mask, yes: Array<i32>, no: Array<i32>) -> Array<i32> {
        no ^ ((yes ^ no) & mask.0)
    }
    #[inline(always)]
    fn bits(self, mask: Mask) -> u32 {
        let Array(b) = zip(mask.0, Array([1, 2, 4, 8, 16, 32, 64, 128]), |v, bit| v as u32 & bit);
        b[0] | b[1] | b[2] | b[3] | b[4] | b[5] | b[6] | b[7]
    }
    #[inline(always)]
    fn shl<const N: i32>(self, v: Array<i32>) -> Array<i32> {
        map(v, |v| v << N)
    }
    #[inline(always)]
    fn shr<const N: i32>(self, v: Array<i32>) -> Array<i32> {
        map(v, |v| (v as u32 >> N) as i32)
    }
}

impl Lanes for Portable {
    const FAST_BITS: bool = false;

    type Wide = Pair<Portable>;

    pair::joined!();

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> Array<f32> {
        Array(*v)
    }
    #[inline(always)]
    fn store(self, v: Array<f32>) -> [f32; LANES] {
        v.0
    }
    #[inline(always)]
    fn transpose(self, rows: [Array<f32>; LANES]) -> [Array<f32>; LANES] {
        [
            column(rows, 0),
            column(rows, 1),
            column(rows, 2),
            column(rows, 3),
            column(rows, 4),
            column(rows, 5),
            column(rows, 6),
            column(rows, 7),
        ]
    }
    #[inline(always)]
    fn f16_bits(self, v: Array<f32>) -> Array<i32> {
        map(v, |v| i32::from(half::f16::from_f32(v).to_bits()))
    }
    #[inline(always)]
    fn f16_value(self, v: Array<i32>) -> Array<f32> {
        map(v, |v| half::f16::from_bits(v as u16).to_f32())
    }
    #[inline(always)]
    fn load_i(self, v: &[i32; LANES]) -> Array<i32> {
        Array(*v)
    }
    #[inline(always)]
    fn store_i(self, v: Array<i32>) -> [i32; LANES] {
        v.0
    }
    #[inline(always)]
    fn load_u8(self, v: &[u8; LANES]) -> Array<i32> {
        map(Array(*v), i32::from)
    }
    #[inline(always)]
    fn store_u8(self, v: Array<i32>) -> [u8; LANES] {
        map(v, |v| v as u8).0
    }
    #[inline(always)]
    fn store_u8x32(self, v: [Array<i32>; 4]) -> [u8; 32] {
        let mut out = [0; 32];
        let (bytes, _) = out.as_chunks_mut::<LANES>();
        (bytes[0], bytes[1]) = (self.store_u8(v[0]), self.store_u8(v[1]));
        (bytes[2], bytes[3]) = (self.store_u8(v[2]), self.store_u8(v[3]));
        out
    }
    #[inline(always)]
    fn lookup(self, table: Array<f32>, index: Array<i32>) -> Array<f32> {
        map(index, |i| table.0[(i & 7) as usize])
    }
    #[inline(always)]
    fn lookup_16(self, table: [Array<f32>; 2], index: Array<i32>) -> Array<f32> {
        map(index, |i| table[(i >> 3 & 1) as usize].0[(i & 7) as usize])
    }
    #[inline(always)]
    fn lookup_i(self, table: Array<i32>, index: Array<i32>) -> Array<i32> {
        map(index, |i| table.0[(i & 7) as usize])
    }
    #[inline(always)]
    fn ones(self, mask: Mask) -> Array<i32> {
        mask.0
    }
}
