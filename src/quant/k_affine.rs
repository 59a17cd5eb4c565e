//! Super-blocks of 256 with a scale and a minimum per sub-block: Q2_K, Q4_K, Q5_K.
//!
//! ```text
//! Q4_K  d: f16 | dmin: f16 | 12 bytes: 8 × (6-bit scale, 6-bit minimum) | 128 bytes of codes
//!       x = d·scale·code − dmin·minimum, eight sub-blocks of 32; of each 64 elements the first half
//!       lies in the low, the second in the high four bits
//! ```
//! Per sub-block: weigh the elements, search scale and minimum (`make_qkx_quants`). Per super-block: round the
//! scales and minima to the few bits that they get, then compute the codes again from what a reader will see,
//! except where the rounded scale is zero: there the codes of the search stay.

use super::plain::{f16_at, put_f16};
use super::search::{AffineSearch, make_qkx_quants, make_qp_quants, nearest_int, sum_of_squares};

/// Elements of a super-block.
const QK_K: usize = 256;

const Q4_K: AffineSearch = AffineSearch { nmax: 15, rmin: -1.0, rdelta: 0.1, steps: 20, use_mad: false };
/// The search with an importance matrix, whatever the type.
const fn weighted(nmax: i32) -> AffineSearch {
    AffineSearch { nmax, rmin: -0.9, rdelta: 0.05, steps: 36, use_mad: false }
}

/// `quantize_row_q4_K_ref` and `quantize_row_q4_K_impl`.
pub(super) fn q4_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<144>().0).enumerate() {
        let codes = eight_sub_blocks(x, imatrix.map(|im| &im[i * QK_K..]), Q4_K, &mut y[..16]);
        for (pair, q) in codes.as_chunks::<64>().0.iter().zip(y[16..].as_chunks_mut::<32>().0) {
            for l in 0..32 {
                q[l] = pair[l] | pair[l + 32] << 4;
            }
        }
    }
}

/// What Q4_K and Q5_K share: the 16 bytes of scales, and the codes.
fn eight_sub_blocks(x: &[f32; QK_K], importance: Option<&[f32]>, s: AffineSearch, head: &mut [u8]) -> [u8; QK_K] {
    let mut codes = [0u8; QK_K];
    let (mut scales, mut mins) = ([0.0f32; 8], [0.0f32; 8]);
    let (mut ls, mut lm) = ([0u8; 8], [0u8; 8]);
    let mut weights = [0.0f32; 32];
    let (d, dmin);
    if let Some(importance) = importance {
        let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
        let mut sums = [0.0f32; 8];
        for (j, sub) in x.as_chunks::<32>().0.iter().enumerate() {
            for l in 0..32 {
                weights[l] = importance[32 * j + l] * (sigma2 + sub[l] * sub[l]).sqrt();
            }
            sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
            (scales[j], mins[j]) = make_qkx_quants(weighted(s.nmax), sub, &weights, &mut codes[32 * j..32 * j + 32]);
        }
        d = make_qp_quants(63, &scales, &mut ls, &sums);
        dmin = make_qp_quants(63, &mins, &mut lm, &sums);
    } else {
        for (j, sub) in x.as_chunks::<32>().0.iter().enumerate() {
            let average = (sum_of_squares(sub) / 32.0).sqrt();
            for l in 0..32 {
                weights[l] = average + sub[l].abs();
            }
            (scales[j], mins[j]) = make_qkx_quants(s, sub, &weights, &mut codes[32 * j..32 * j + 32]);
        }
        d = round_scales(63, &scales, &mut ls);
        dmin = round_scales(63, &mins, &mut lm);
    }
    let d = put_f16(d, head);
    let dmin = put_f16(dmin, &mut head[2..]);
    pack_k4(&ls, &lm, &mut head[4..]);
    for j in 0..8 {
        // As a reader sees them: of a scale beyond six bits some are lost.
        let (scale, min) = scale_min_k4(j, &head[4..]);
        recode(&x[32 * j..32 * j + 32], d * f32::from(scale), dmin * f32::from(min), s.nmax, &mut codes[32 * j..]);
    }
    codes
}

/// Rounds scales to 0..=top of the largest; returns the unit.
fn round_scales(top: i32, scales: &[f32], codes: &mut [u8]) -> f32 {
    let max = scales.iter().fold(0.0f32, |m, &v| if v > m { v } else { m });
    let inverse = if max > 0.0 { top as f32 / max } else { 0.0 };
    for (c, v) in codes.iter_mut().zip(scales) {
        *c = (nearest_int(inverse * v) as u8).min(top as u8);
    }
    max / top as f32
}

/// Codes from the scale and minimum that a reader will see; a zero scale leaves them.
#[inline(always)]
fn recode(x: &[f32], d: f32, min: f32, nmax: i32, codes: &mut [u8]) {
    if d != 0.0 {
        for (c, v) in codes.iter_mut().zip(x) {
            *c = nearest_int((v + min) / d).clamp(0, nmax) as u8;
        }
    }
}

/// Eight 6-bit scales and minima in 12 bytes.
fn pack_k4(ls: &[u8; 8], lm: &[u8; 8], out: &mut [u8]) {
    for j in 0..4 {
        out[j] = ls[j];
        out[j + 4] = lm[j];
    }
    for j in 4..8 {
        out[j + 4] = ls[j] & 15 | (lm[j] & 15) << 4;
        out[j - 4] |= ls[j] >> 4 << 6;
        out[j] |= lm[j] >> 4 << 6;
    }
}

/// `get_scale_min_k4`: scale and minimum of sub-block `j`.
#[inline(always)]
fn scale_min_k4(j: usize, q: &[u8]) -> (u8, u8) {
    if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4)
    }
}

pub(super) fn dequantize_q4_k(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<144>().0.iter().zip(out.as_chunks_mut::<QK_K>().0) {
        let (d, min) = (f16_at(b), f16_at(&b[2..]));
        for j in 0..8 {
            let (sc, m) = scale_min_k4(j, &b[4..16]);
            let (d, min) = (d * f32::from(sc), min * f32::from(m));
            let q = &b[16 + j / 2 * 32..][..32];
            for (v, q) in y[32 * j..32 * j + 32].iter_mut().zip(q) {
                *v = d * f32::from(q >> (j % 2 * 4) & 15) - min;
            }
        }
    }
}
