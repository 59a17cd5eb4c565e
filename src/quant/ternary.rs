//! TQ1_0 and TQ2_0: every weight is -1, 0 or 1 times the block's largest magnitude.
//!
//! ```text
//! TQ1_0, 256 weights in 54 bytes:  32 bytes of 5 trits | 16 bytes of 5 trits | 4 bytes of 4 trits | d f16
//! TQ2_0, 256 weights in 66 bytes:  2 x 32 bytes of 4 two-bit codes | d f16
//! ```
//!
//! A byte of trits is a fraction of 256, so that a decoder gets the next trit by multiplying with 3
//! (`quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`). Importance plays no part.

use super::plain::{f16_at, put_f16};
use super::search::c_max;

/// The parts of a TQ1_0 block: first byte, bytes, weights per byte, first weight.
const TQ1_PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];

/// The largest magnitude and its inverse, 0 for a block of zeros.
fn scale(x: &[f32]) -> (f32, f32) {
    let d = x.iter().fold(0.0, |amax, v| c_max(amax, v.abs()));
    (d, if d != 0.0 { 1.0 / d } else { 0.0 })
}

/// `lroundf(v) + 1` for |v| <= 1; an infinite or NaN quotient counts as 0, as C's conversions make it.
fn trit(v: f32) -> u8 {
    if v.is_infinite() {
        return 1;
    }
    1 + u8::from(v >= 0.5) - u8::from(v <= -0.5)
}

/// Encodes a row as TQ1_0.
pub(super) fn tq1_0(row: &[f32], _weights: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(256).zip(out.chunks_exact_mut(54)) {
        let (d, id) = scale(x);
        for (first, bytes, trits, weight) in TQ1_PARTS {
            for m in 0..bytes {
                let value = (0..5).fold(0, |q, n| {
                    let digit = if n < trits { trit(x[weight + m + n * bytes] * id) } else { 0 };
                    3 * q + u32::from(digit)
                });
                block[first + m] = (value * 256).div_ceil(243) as u8;
            }
        }
        put_f16(d, &mut block[52..]);
    }
}

/// Encodes a row as TQ2_0.
pub(super) fn tq2_0(row: &[f32], _weights: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(256).zip(out.chunks_exact_mut(66)) {
        let (d, id) = scale(x);
        for (half, codes) in x.chunks_exact(128).zip(block.chunks_exact_mut(32)) {
            for (m, code) in codes.iter_mut().enumerate() {
                *code = (0..4).fold(0, |q, n| q | trit(half[m + 32 * n] * id) << (2 * n));
            }
        }
        put_f16(d, &mut block[64..]);
    }
}

/// Decodes TQ1_0 (ggml's `dequantize_row_tq1_0`).
pub(super) fn dequantize_tq1_0(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks.chunks_exact(54).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(&block[52..]);
        for (first, bytes, trits, weight) in TQ1_PARTS {
            for m in 0..bytes {
                let mut fraction = block[first + m];
                for n in 0..trits {
                    out[weight + m + n * bytes] = (i32::from((u16::from(fraction) * 3) >> 8) - 1) as f32 * d;
                    fraction = fraction.wrapping_mul(3);
                }
            }
        }
    }
}

/// Decodes TQ2_0 (ggml's `dequantize_row_tq2_0`).
pub(super) fn dequantize_tq2_0(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks.chunks_exact(66).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(&block[64..]);
        for (codes, out) in block[..64].chunks_exact(32).zip(out.chunks_exact_mut(128)) {
            for (i, v) in out.iter_mut().enumerate() {
                *v = (i32::from(codes[i % 32] >> (2 * (i / 32)) & 3) - 1) as f32 * d;
            }
        }
    }
}
