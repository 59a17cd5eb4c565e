//! Sixteen lanes as two vectors of eight: the second's operations hide in the waits of the first.

use super::Vector;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Not, Sub};

/// Two vectors of an instruction set side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair<V>(pub(super) V);

/// The first lanes and the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Two<T>(pub(super) [T; 2]);

macro_rules! operator {
    ($($op:ident $method:ident;)*) => {$(
        impl<T: Copy + $op<Output = T>> $op for Two<T> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Two([self.0[0].$method(other.0[0]), self.0[1].$method(other.0[1])])
            }
        }
    )*};
}
operator!(Add add; Sub sub; Mul mul; Div div; BitAnd bitand; BitOr bitor; BitXor bitxor;);

impl<T: Copy + Not<Output = T>> Not for Two<T> {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Two([!self.0[0], !self.0[1]])
    }
}

macro_rules! halves {
    ($(fn $name:ident($($arg:ident: $ty:ident),*) -> $out:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::$ty),*) -> Self::$out {
            Two([self.0.$name($($arg.0[0]),*), self.0.$name($($arg.0[1]),*)])
        }
    )*};
}

impl<V: Vector> Vector for Pair<V> {
    type F32 = Two<V::F32>;
    type I32 = Two<V::I32>;
    type Mask = Two<V::Mask>;

    const WIDTH: usize = 2 * V::WIDTH;

    halves! {
        fn abs(v: F32) -> F32;
        fn sqrt(v: F32) -> F32;
        fn min(a: F32, b: F32) -> F32;
        fn max(a: F32, b: F32) -> F32;
        fn lt(a: F32, b: F32) -> Mask;
        fn eq(a: F32, b: F32) -> Mask;
        fn select(mask: Mask, yes: F32, no: F32) -> F32;
        fn truncate(v: F32) -> I32;
        fn to_f32(v: I32) -> F32;
        fn to_bits(v: F32) -> I32;
        fn from_bits(v: I32) -> F32;
        fn min_i(a: I32, b: I32) -> I32;
        fn max_i(a: I32, b: I32) -> I32;
        fn lt_i(a: I32, b: I32) -> Mask;
        fn eq_i(a: I32, b: I32) -> Mask;
        fn select_i(mask: Mask, yes: I32, no: I32) -> I32;
        fn nearest(v: F32) -> F32;
        fn nearest_int(v: F32) -> I32;
    }

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        Two([self.0.splat(v); 2])
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> Self::I32 {
        Two([self.0.splat_i(v); 2])
    }

    #[inline(always)]
    fn shl<const N: i32>(self, v: Self::I32) -> Self::I32 {
        Two([self.0.shl::<N>(v.0[0]), self.0.shl::<N>(v.0[1])])
    }

    #[inline(always)]
    fn shr<const N: i32>(self, v: Self::I32) -> Self::I32 {
        Two([self.0.shr::<N>(v.0[0]), self.0.shr::<N>(v.0[1])])
    }

    #[inline(always)]
    fn bits(self, mask: Self::Mask) -> u32 {
        self.0.bits(mask.0[0]) | self.0.bits(mask.0[1]) << V::WIDTH
    }

    #[inline(always)]
    fn any(self, mask: Self::Mask) -> bool {
        self.0.any(mask.0[0] | mask.0[1])
    }
}

/// The methods of `Lanes` for a type whose sixteen lanes are a [`Pair`] of its own.
macro_rules! joined {
    () => {
        #[inline(always)]
        fn wide(self) -> Self::Wide {
            pair::Pair(self)
        }

        #[inline(always)]
        fn join(self, halves: [Self::F32; 2]) -> <Self::Wide as Vector>::F32 {
            pair::Two(halves)
        }

        #[inline(always)]
        fn split(self, v: <Self::Wide as Vector>::F32) -> [Self::F32; 2] {
            v.0
        }

        #[inline(always)]
        fn least_of_halves(self, v: <Self::Wide as Vector>::F32) -> <Self::Wide as Vector>::F32 {
            pair::Two([self.least(v.0[0]), self.least(v.0[1])])
        }

        #[inline(always)]
        fn lookup_halves(
            self,
            table: <Self::Wide as Vector>::F32,
            index: <Self::Wide as Vector>::I32,
        ) -> <Self::Wide as Vector>::F32 {
            pair::Two([self.lookup(table.0[0], index.0[0]), self.lookup(table.0[1], index.0[1])])
        }

        #[inline(always)]
        fn twice(self, v: Self::F32) -> <Self::Wide as Vector>::F32 {
            pair::Two([v; 2])
        }

        #[inline(always)]
        fn in_copies(self, v: &[f32; 2]) -> <Self::Wide as Vector>::F32 {
            pair::Two([self.splat(v[0]), self.splat(v[1])])
        }

        #[inline(always)]
        fn copies(self, v: <Self::Wide as Vector>::F32) -> [Self::F32; 2] {
            v.0
        }
    };
}
pub(super) use joined;
