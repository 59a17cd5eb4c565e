//! Eight or sixteen independent blocks at a time, each lane in the scalar order of operations.
//!
//! A kernel is written once over [`Lanes`], its searches over any [`Vector`], and compiled for each instruction set;
//! a value of such a type proves that the CPU has it, so every method is safe. A kernel implements [`Kernel`] on an
//! empty type, and [`run`] enters it: that function's `target_feature` covers everything below, because everything
//! below is `inline(always)`. (Closures cannot be: kernels use none.)
//!
//! No operation fuses, reassociates or flushes denormals to zero, so none can slip into a quantizer.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pair;
mod portable;
#[cfg(target_arch = "x86_64")]
mod zmm;

use super::Rows;
use std::fmt::Debug;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Not, Sub};

pub(crate) use portable::Portable;

/// Lanes in a vector.
pub(crate) const LANES: usize = 8;

/// Lanes in a vector for searches ([`Lanes::Wide`]).
pub(crate) const WIDE: usize = 2 * LANES;

/// Arithmetic on vectors of f32 and i32, lane by lane: all that a search needs, whatever the width.
#[allow(dead_code)] // a vocabulary, complete rather than minimal
#[allow(clippy::wrong_self_convention)] // `self` is the token of the instruction set
pub(crate) trait Vector: Copy + Debug + 'static {
    /// Lanes of f32. The operators round to nearest even, each on its own.
    type F32: Copy
        + Add<Output = Self::F32>
        + Sub<Output = Self::F32>
        + Mul<Output = Self::F32>
        + Div<Output = Self::F32>;
    /// Lanes of i32. The operators wrap.
    type I32: Copy
        + Add<Output = Self::I32>
        + Sub<Output = Self::I32>
        + BitAnd<Output = Self::I32>
        + BitOr<Output = Self::I32>
        + BitXor<Output = Self::I32>;
    /// A truth value per lane.
    type Mask: Copy + BitAnd<Output = Self::Mask> + BitOr<Output = Self::Mask> + Not<Output = Self::Mask>;

    /// How many lanes.
    const WIDTH: usize;

    /// Whether a search in which everything waits for the sum before keeps only some of the units busy, so that two
    /// vectors in turns take less time than one after the other.
    const HAS_IDLE_UNITS: bool = false;

    /// The same number in every lane.
    fn splat(self, v: f32) -> Self::F32;
    /// Clears the sign, also of NaN.
    fn abs(self, v: Self::F32) -> Self::F32;
    /// The correctly rounded square root.
    fn sqrt(self, v: Self::F32) -> Self::F32;
    /// `a < b ? a : b`: of equals and with a NaN, `b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b`: of equals and with a NaN, `b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a < b`; false with a NaN.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a == b`; false with a NaN.
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `mask ? yes : no`, lane by lane.
    fn select(self, mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;

    /// The same integer in every lane.
    fn splat_i(self, v: i32) -> Self::I32;
    /// Truncates towards zero; out of range and NaN give −2³¹ (`cvttps2dq`).
    fn truncate(self, v: Self::F32) -> Self::I32;
    /// The nearest f32.
    fn to_f32(self, v: Self::I32) -> Self::F32;
    /// The bits of the floats.
    fn to_bits(self, v: Self::F32) -> Self::I32;
    /// The floats of the bits.
    fn from_bits(self, v: Self::I32) -> Self::F32;
    /// The smaller integer.
    fn min_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The larger integer.
    fn max_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `a < b`.
    fn lt_i(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    /// `a == b`.
    fn eq_i(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    /// `mask ? yes : no`, lane by lane.
    fn select_i(self, mask: Self::Mask, yes: Self::I32, no: Self::I32) -> Self::I32;

    /// Shifts left by `N` bits.
    fn shl<const N: i32>(self, v: Self::I32) -> Self::I32;
    /// Shifts right by `N` bits; zeros come in.
    fn shr<const N: i32>(self, v: Self::I32) -> Self::I32;

    /// Bit `i` is lane `i`.
    fn bits(self, mask: Self::Mask) -> u32;

    /// `nearest_int` as a float, for |v| ≤ 2²². The sign of a zero is not specified.
    #[inline(always)]
    fn nearest(self, v: Self::F32) -> Self::F32 {
        let magic = self.splat(12_582_912.0);
        (v + magic) - magic
    }

    /// `nearest_int` itself, wrapping and all.
    #[inline(always)]
    fn nearest_int(self, v: Self::F32) -> Self::I32 {
        let bits = self.to_bits(v + self.splat(12_582_912.0));
        (bits & self.splat_i(0x007f_ffff)) - self.splat_i(0x0040_0000)
    }

    /// `roundf` then a cast to int: halves away from zero, out of range −2³¹.
    #[inline(always)]
    fn round_int(self, v: Self::F32) -> Self::I32 {
        // The largest f32 below one half, with the sign of v: adding a full half would round 0.49999997 up.
        let half = self.to_bits(self.splat(0.499_999_97)) | (self.to_bits(v) & self.splat_i(i32::MIN));
        self.truncate(v + self.from_bits(half))
    }

    /// The larger of a number and `low`, but not above `high`.
    #[inline(always)]
    fn clamp(self, v: Self::F32, low: Self::F32, high: Self::F32) -> Self::F32 {
        self.max(self.min(v, high), low)
    }

    /// Whether any lane is true.
    #[inline(always)]
    fn any(self, mask: Self::Mask) -> bool {
        self.bits(mask) != 0
    }

    /// Whether every lane is true.
    #[inline(always)]
    fn all(self, mask: Self::Mask) -> bool {
        self.bits(mask) == (1 << Self::WIDTH) - 1
    }
}

/// Eight lanes of f32 and i32 on one instruction set, which also go to and from memory and trade places.
#[allow(dead_code)] // a vocabulary, complete rather than minimal
#[allow(clippy::wrong_self_convention)] // `self` is the token of the instruction set
pub(crate) trait Lanes: Vector {
    /// Whether comparisons become bits in an instruction or two. Searches that branch on such bits gain nothing
    /// otherwise and stay with the reference.
    const FAST_BITS: bool;

    /// Sixteen lanes, for searches that only compute: a wide register, or two of eight side by side.
    type Wide: Vector;

    /// The token of the sixteen lanes.
    fn wide(self) -> Self::Wide;
    /// Two vectors as one of sixteen.
    fn join(self, halves: [Self::F32; 2]) -> <Self::Wide as Vector>::F32;
    /// The vectors that [`Lanes::join`] joined.
    fn split(self, v: <Self::Wide as Vector>::F32) -> [Self::F32; 2];

    /// The smallest lane of each half, in all lanes of the half; without meaning if one is a NaN.
    fn least_of_halves(self, v: <Self::Wide as Vector>::F32) -> <Self::Wide as Vector>::F32;
    /// Entry `index & 7` of the half that the lane is in. Bit 3 of the index must be set in the second half alone.
    fn lookup_halves(
        self,
        table: <Self::Wide as Vector>::F32,
        index: <Self::Wide as Vector>::I32,
    ) -> <Self::Wide as Vector>::F32;

    /// Every lane in two copies, the first and the second, in whatever places.
    fn twice(self, v: Self::F32) -> <Self::Wide as Vector>::F32;
    /// The first number in the first copies of all lanes, the second in the second copies.
    fn in_copies(self, v: &[f32; 2]) -> <Self::Wide as Vector>::F32;
    /// The first copies and the second copies.
    fn copies(self, v: <Self::Wide as Vector>::F32) -> [Self::F32; 2];

    /// Eight numbers from memory.
    fn load(self, v: &[f32; LANES]) -> Self::F32;
    /// The lanes as an array.
    fn store(self, v: Self::F32) -> [f32; LANES];
    /// Rows become columns.
    fn transpose(self, rows: [Self::F32; LANES]) -> [Self::F32; LANES];
    /// f16 bits in the low halves: nearest even, a NaN stays a NaN.
    fn f16_bits(self, v: Self::F32) -> Self::I32;
    /// The value of the f16 bits in the low halves.
    fn f16_value(self, v: Self::I32) -> Self::F32;

    /// Eight integers from memory.
    fn load_i(self, v: &[i32; LANES]) -> Self::I32;
    /// The lanes as an array.
    fn store_i(self, v: Self::I32) -> [i32; LANES];
    /// Eight bytes from memory, each 0..=255.
    fn load_u8(self, v: &[u8; LANES]) -> Self::I32;
    /// The low byte of each lane.
    fn store_u8(self, v: Self::I32) -> [u8; LANES];
    /// The low bytes of four vectors.
    fn store_u8x32(self, v: [Self::I32; 4]) -> [u8; 32];
    /// Entry `index & 7` of a table of eight.
    fn lookup(self, table: Self::F32, index: Self::I32) -> Self::F32;
    /// Entry `index & 15` of a table of sixteen.
    fn lookup_16(self, table: [Self::F32; 2], index: Self::I32) -> Self::F32;
    /// Entry `index & 7` of a table of eight.
    fn lookup_i(self, table: Self::I32, index: Self::I32) -> Self::I32;

    /// −1 where true, 0 elsewhere.
    fn ones(self, mask: Self::Mask) -> Self::I32;

    /// Eight numbers from the start of a slice.
    ///
    /// # Panics
    /// If the slice is shorter.
    #[inline(always)]
    fn load_at(self, v: &[f32]) -> Self::F32 {
        match v.first_chunk::<LANES>() {
            Some(v) => self.load(v),
            None => panic!("a vector takes eight elements, not {}", v.len()),
        }
    }

    /// Sixteen numbers from the start of a slice.
    ///
    /// # Panics
    /// If the slice is shorter.
    #[inline(always)]
    fn load_wide_at(self, v: &[f32]) -> <Self::Wide as Vector>::F32 {
        match v.first_chunk::<WIDE>() {
            Some(v) => self.load_wide(v),
            None => panic!("a wide vector takes sixteen elements, not {}", v.len()),
        }
    }

    /// Eight integers from the start of a slice.
    ///
    /// # Panics
    /// If the slice is shorter.
    #[inline(always)]
    fn load_i_at(self, v: &[i32]) -> Self::I32 {
        match v.first_chunk::<LANES>() {
            Some(v) => self.load_i(v),
            None => panic!("a vector takes eight elements, not {}", v.len()),
        }
    }

    /// Sixteen numbers from memory.
    #[inline(always)]
    fn load_wide(self, v: &[f32; WIDE]) -> <Self::Wide as Vector>::F32 {
        self.join([self.load_at(&v[..LANES]), self.load_at(&v[LANES..])])
    }

    /// The sixteen lanes as an array.
    #[inline(always)]
    fn store_wide(self, v: <Self::Wide as Vector>::F32) -> [f32; WIDE] {
        let [first, second] = self.split(v);
        let mut out = [0.0; WIDE];
        out[..LANES].copy_from_slice(&self.store(first));
        out[LANES..].copy_from_slice(&self.store(second));
        out
    }

    /// The smallest lane, in every lane; without meaning if one is a NaN.
    #[inline(always)]
    fn least(self, v: Self::F32) -> Self::F32 {
        let v = self.min(v, self.lookup(v, self.load_i(&[4, 5, 6, 7, 0, 1, 2, 3])));
        let v = self.min(v, self.lookup(v, self.load_i(&[2, 3, 0, 1, 6, 7, 4, 5])));
        self.min(v, self.lookup(v, self.load_i(&[1, 0, 3, 2, 5, 4, 7, 6])))
    }
}

/// Eight rows of `N` numbers (a multiple of eight) as `N` columns of eight.
#[inline(always)]
pub(crate) fn columns<L: Lanes, const N: usize>(l: L, rows: &[[f32; N]; LANES]) -> [L::F32; N] {
    let mut all = [l.splat(0.0); N];
    for at in (0..N).step_by(LANES) {
        let mut square = [l.splat(0.0); LANES];
        for (to, row) in square.iter_mut().zip(rows) {
            *to = l.load_at(&row[at..]);
        }
        all[at..at + LANES].copy_from_slice(&l.transpose(square));
    }
    all
}

/// Sixteen rows of `N` numbers (a multiple of eight) as `N` columns of sixteen.
#[inline(always)]
pub(crate) fn wide_columns<L: Lanes, const N: usize>(l: L, rows: [&[f32; N]; WIDE]) -> [<L::Wide as Vector>::F32; N] {
    let mut all = [l.wide().splat(0.0); N];
    for at in (0..N).step_by(LANES) {
        for (to, both) in all[at..at + LANES].iter_mut().zip(wide_square(l, rows, at)) {
            *to = both;
        }
    }
    all
}

/// The columns `at..at + 8` of [`wide_columns`].
#[inline(always)]
pub(crate) fn wide_square<L: Lanes, const N: usize>(
    l: L,
    rows: [&[f32; N]; WIDE],
    at: usize,
) -> [<L::Wide as Vector>::F32; LANES] {
    let mut squares = [[l.splat(0.0); LANES]; 2];
    for (i, row) in rows.into_iter().enumerate() {
        squares[i / LANES][i % LANES] = l.load_at(&row[at..]);
    }
    let (first, second) = (l.transpose(squares[0]), l.transpose(squares[1]));
    let mut all = [l.wide().splat(0.0); LANES];
    for (i, to) in all.iter_mut().enumerate() {
        *to = l.join([first[i], second[i]]);
    }
    all
}

/// A quantizer over lanes, implemented on an empty type.
pub(crate) trait Kernel {
    /// Whether it is faster with AVX-512's masks and wide registers. If not, it runs on AVX2 where there are both:
    /// kernels that count with [`Lanes::ones`] or keep [`Vector::bits`] would pay for each mask's way out.
    const AVX512: bool = true;

    /// Encodes whole rows. Must be `inline(always)`, and so must all that it calls.
    fn rows<L: Lanes>(lanes: L, rows: Rows<'_>, out: &mut [u8]);
}

/// An instruction set that this CPU has: the only way to get one is to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Isa {
    /// Arrays that the compiler vectorises for its baseline: on every CPU.
    pub const PORTABLE: Isa = Isa(Set::Portable);

    /// Every instruction set of this CPU, best last.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Avx2::detect().map(|token| Isa(Set::Avx2(token))));
            all.extend(avx512::Avx512::detect().map(|token| Isa(Set::Avx512(token))));
        }
        all
    }

    /// The fastest instruction set of this CPU.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(token) = avx512::Avx512::detect() {
                return Isa(Set::Avx512(token));
            }
            if let Some(token) = avx2::Avx2::detect() {
                return Isa(Set::Avx2(token));
            }
        }
        Isa::PORTABLE
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
        }
    }
}

/// Runs a kernel on an instruction set.
pub(crate) fn run<K: Kernel>(isa: Isa, rows: Rows<'_>, out: &mut [u8]) {
    match isa.0 {
        Set::Portable => K::rows(Portable, rows, out),
        #[cfg(target_arch = "x86_64")]
        Set::Avx2(token) => avx2::run::<K>(token, rows, out),
        #[cfg(target_arch = "x86_64")]
        Set::Avx512(token) if K::AVX512 => avx512::run::<K>(token, rows, out),
        #[cfg(target_arch = "x86_64")]
        Set::Avx512(token) => avx2::run::<K>(token.avx2(), rows, out),
    }
}

#[cfg(test)]
mod tests;
