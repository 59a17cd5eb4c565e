//! The corners of C arithmetic that quantized bytes depend on.

use half::f16;

/// ggml's `nearest_int`: half-even rounding by adding 1.5 * 2^23 and keeping 23 bits, so that it wraps outside
/// of +-2^22 instead of saturating.
pub(super) fn nearest_int(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// C's `MAX(a, b)`: `b` when either is NaN.
pub(super) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The two bytes of `v` as f16, rounded to nearest even.
pub(super) fn f16_bytes(v: f32) -> [u8; 2] {
    f16::from_f32(v).to_le_bytes()
}

/// The f16 in the first two bytes of `block`.
pub(super) fn f16_at(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

/// Sum of squares, one after the other.
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v)
}
