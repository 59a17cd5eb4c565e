//! IQ4_NL and IQ4_XS: 4-bit codes of a fixed, uneven set of 16 values.
//!
//! ```text
//! IQ4_NL, 32 weights in 18 bytes:    d f16 | codes 16 B: weight j in the low nibble of byte j, j + 16 in the high
//! IQ4_XS, 256 weights in 136 bytes:  d f16 | 2 high bits of 8 scales, u16 | 4 low bits of 8 scales, 4 B | 8 x codes
//! ```
//!
//! The search (`quantize_row_iq4_nl_impl`) is the same for both, per 32 weights:
//!
//! ```text
//! importance: x^2, or imatrix * sqrt(2 * mean square + x^2)
//! try the scale that puts the largest magnitude on code 0, then those that put it on -134/-127 .. -120/-127 of that;
//! each try takes the nearest code of every weight, then the least-squares scale for these codes
//! keep the scale with the largest sumqx^2 / sumq2; the codes are found again with it
//! ```
//!
//! Bytes depend on the order of both sums, on the first of equal tries winning, and on IQ4_XS dividing by the
//! unrounded `d`.

use super::codebook::iq4_values;
use super::numeric::{f16_at, f16_bytes, nearest_int, sum_of_squares};

const TRIES: i32 = 7;
/// `GROUP_MAX_EPS`: a sub-block without a larger magnitude is all zero.
const EPSILON: f32 = 1e-15;

/// `best_index_int8`: the code whose value is nearest to `v`; the upper one of two, 15 for NaN.
fn nearest_code(values: &[f32; 16], v: f32) -> usize {
    if v <= values[0] {
        return 0;
    }
    if v >= values[15] {
        return 15;
    }
    let upper = 1 + values[1..15].partition_point(|&value| !(v < value));
    if v - values[upper - 1] < values[upper] - v { upper - 1 } else { upper }
}

fn values() -> [f32; 16] {
    iq4_values().map(f32::from)
}

/// The scale of 32 weights; `None` when they count as zero.
fn search_scale(x: &[f32], importance: &[f32; 32], values: &[f32; 16]) -> Option<f32> {
    let (amax, max) = x.iter().fold((0.0, 0.0), |(amax, max), &v| if v.abs() > amax { (v.abs(), v) } else { (amax, max) });
    if amax < EPSILON {
        return None;
    }
    let sums = |inverse: f32| {
        x.iter().zip(importance).fold((0.0, 0.0), |(sumqx, sumq2), (&v, &w)| {
            let q = values[nearest_code(values, inverse * v)];
            (sumqx + w * q * v, sumq2 + w * q * q)
        })
    };
    let (sumqx, sumq2) = sums(1.0 / (-max / values[0]));
    let mut d = if sumq2 > 0.0 { sumqx / sumq2 } else { 0.0 };
    let mut best = d * sumqx;
    for itry in -TRIES..=TRIES {
        let (sumqx, sumq2) = sums((itry as f32 + values[0]) / max);
        if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
            d = sumqx / sumq2;
            best = d * sumqx;
        }
    }
    Some(d)
}

fn importance(x: &[f32], weights: Option<&[f32]>, sigma2: f32) -> [f32; 32] {
    match weights {
        Some(w) => std::array::from_fn(|i| w[i] * (sigma2 + x[i] * x[i]).sqrt()),
        None => std::array::from_fn(|i| x[i] * x[i]),
    }
}

/// 32 codes in 16 bytes.
fn pack(codes: &mut [u8], x: &[f32], inverse: f32, values: &[f32; 16]) {
    for (j, byte) in codes.iter_mut().enumerate() {
        let (low, high) = (nearest_code(values, inverse * x[j]), nearest_code(values, inverse * x[j + 16]));
        *byte = (low | high << 4) as u8;
    }
}

fn inverse_or_zero(v: f32) -> f32 {
    if v != 0.0 { 1.0 / v } else { 0.0 }
}

/// Encodes a row as IQ4_NL (ggml's `quantize_iq4_nl`).
pub(super) fn quantize_row_iq4_nl(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let values = values();
    for (i, (x, block)) in row.chunks_exact(32).zip(out.chunks_exact_mut(18)).enumerate() {
        let sigma2 = sum_of_squares(x) * (2.0 / 32.0);
        let importance = importance(x, weights.map(|w| &w[32 * i..][..32]), sigma2);
        let d = search_scale(x, &importance, &values).unwrap_or(0.0);
        block[..2].copy_from_slice(&f16_bytes(d));
        pack(&mut block[2..], x, inverse_or_zero(d), &values);
    }
}

/// Encodes a row as IQ4_XS (ggml's `quantize_iq4_xs`).
pub(super) fn quantize_row_iq4_xs(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let values = values();
    for (i, (x, block)) in row.chunks_exact(256).zip(out.chunks_exact_mut(136)).enumerate() {
        let sigma2 = sum_of_squares(x) * (2.0 / 256.0);
        let scales: [f32; 8] = std::array::from_fn(|ib| {
            let xb = &x[32 * ib..][..32];
            let importance = importance(xb, weights.map(|w| &w[256 * i + 32 * ib..][..32]), sigma2);
            search_scale(xb, &importance, &values).unwrap_or(0.0)
        });
        finish_iq4_xs(block, &scales, |ib, inverse, codes| pack(codes, &x[32 * ib..][..32], inverse, &values));
    }
}

/// Writes an IQ4_XS block from the scales of its sub-blocks; `pack(ib, 1 / scale, codes)` encodes one of them.
fn finish_iq4_xs(block: &mut [u8], scales: &[f32; 8], mut pack: impl FnMut(usize, f32, &mut [u8])) {
    let max_scale = scales.iter().fold(0.0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    let d = -max_scale / 32.0;
    let id = inverse_or_zero(d);
    let (head, codes) = block.split_at_mut(8);
    head.fill(0);
    head[..2].copy_from_slice(&f16_bytes(d));
    for (ib, codes) in codes.chunks_exact_mut(16).enumerate() {
        let l = nearest_int(id * scales[ib]).clamp(-32, 31);
        pack(ib, inverse_or_zero(d * l as f32), codes);
        let l = (l + 32) as u8;
        head[2 + ib / 4] |= (l >> 4) << (2 * (ib % 4));
        head[4 + ib / 2] |= (l & 15) << (4 * (ib % 2));
    }
}

fn unpack(codes: &[u8], scale: f32, values: &[f32; 16], out: &mut [f32]) {
    for (j, &byte) in codes.iter().enumerate() {
        out[j] = scale * values[byte as usize & 15];
        out[j + 16] = scale * values[byte as usize >> 4];
    }
}

/// Decodes IQ4_NL (ggml's `dequantize_row_iq4_nl`).
pub(super) fn dequantize_row_iq4_nl(blocks: &[u8], out: &mut [f32]) {
    let values = values();
    for (block, out) in blocks.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
        unpack(&block[2..], f16_at(block), &values, out);
    }
}

/// Decodes IQ4_XS (ggml's `dequantize_row_iq4_xs`).
pub(super) fn dequantize_row_iq4_xs(blocks: &[u8], out: &mut [f32]) {
    let values = values();
    for (block, out) in blocks.chunks_exact(136).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (ib, (codes, out)) in block[8..].chunks_exact(16).zip(out.chunks_exact_mut(32)).enumerate() {
            let low = block[4 + ib / 2] >> (4 * (ib % 2)) & 15;
            let high = block[2 + ib / 4] >> (2 * (ib % 4)) & 3;
            unpack(codes, d * (i32::from(low | high << 4) - 32) as f32, &values, out);
        }
    }
}
