//! Super-blocks of 256 with a scale and a minimum per sub-block: Q2_K, Q4_K, Q5_K.
//!
//! ```text
//! Q2_K  16 bytes: scale | minimum << 4 | 64 bytes of codes | d: f16 | dmin: f16
//!       x = d·scale·code − dmin·minimum, sixteen sub-blocks of 16; of each 128 elements the four
//!       quarters lie in the bits 0, 2, 4, 6 of 32 bytes
//! Q4_K  d: f16 | dmin: f16 | 12 bytes: 8 × (6-bit scale, 6-bit minimum) | 128 bytes of codes
//!       x = d·scale·code − dmin·minimum, eight sub-blocks of 32; of each 64 elements the first half
//!       lies in the low, the second in the high four bits
//! Q5_K  as Q4_K, with 32 bytes before the codes: bit k of byte l is the fifth bit of element 32·k + l
//! ```
//! Per sub-block: weigh the elements, search scale and minimum (`make_qkx_quants`). Per super-block: round the
//! scales and minima to the few bits that they get, then compute the codes again from what a reader will see,
//! except where the rounded scale is zero: there the codes of the search stay.

use super::plain::{f16_at, put_f16};
use super::search::{AffineSearch, make_qkx_quants, make_qp_quants, nearest_int, sum_of_squares};

/// Elements of a super-block.
const QK_K: usize = 256;

const Q4_K: AffineSearch = AffineSearch { nmax: 15, rmin: -1.0, rdelta: 0.1, steps: 20, use_mad: false };
const Q5_K: AffineSearch = AffineSearch { nmax: 31, rmin: -0.5, rdelta: 0.1, steps: 15, use_mad: false };
const Q2_K: AffineSearch = AffineSearch { nmax: 3, rmin: -0.5, rdelta: 0.1, steps: 15, use_mad: true };

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

/// `quantize_row_q5_K_ref` and `quantize_row_q5_K_impl`.
pub(super) fn q5_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<176>().0).enumerate() {
        let codes = eight_sub_blocks(x, imatrix.map(|im| &im[i * QK_K..]), Q5_K, &mut y[..16]);
        let (high, low) = y[16..].split_at_mut(32);
        for (l, bits) in high.iter_mut().enumerate() {
            *bits = (0..8).fold(0, |bits, k| bits | (codes[32 * k + l] >> 4 & 1) << k);
        }
        for (pair, q) in codes.as_chunks::<64>().0.iter().zip(low.as_chunks_mut::<32>().0) {
            for l in 0..32 {
                q[l] = pair[l] & 15 | pair[l + 32] << 4;
            }
        }
    }
}

/// `quantize_row_q2_K_ref` and `quantize_row_q2_K_impl`.
pub(super) fn q2_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<84>().0).enumerate() {
        let mut codes = [0u8; QK_K];
        let (mut scales, mut mins) = ([0.0f32; 16], [0.0f32; 16]);
        let (mut ls, mut lm) = ([0u8; 16], [0u8; 16]);
        let mut weights = [0.0f32; 16];
        let (d, dmin);
        if let Some(importance) = imatrix.map(|im| &im[i * QK_K..]) {
            let sigma2 = sum_of_squares(x) / 256.0;
            let mut sums = [0.0f32; 16];
            for (j, sub) in x.as_chunks::<16>().0.iter().enumerate() {
                for l in 0..16 {
                    weights[l] = importance[16 * j + l] * (sigma2 + sub[l] * sub[l]).sqrt();
                }
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                let codes = &mut codes[16 * j..16 * j + 16];
                (scales[j], mins[j]) = make_qkx_quants(AffineSearch::weighted(3), sub, &weights, codes);
            }
            d = make_qp_quants(15, &scales, &mut ls, &sums);
            dmin = make_qp_quants(15, &mins, &mut lm, &sums);
        } else {
            for (j, sub) in x.as_chunks::<16>().0.iter().enumerate() {
                let weights = sub.map(f32::abs);
                (scales[j], mins[j]) = make_qkx_quants(Q2_K, sub, &weights, &mut codes[16 * j..16 * j + 16]);
            }
            d = round_nibbles(&scales, &mut ls);
            dmin = round_nibbles(&mins, &mut lm);
        }
        let d = put_f16(d, &mut y[80..]);
        let dmin = put_f16(dmin, &mut y[82..]);
        for j in 0..16 {
            y[j] = ls[j] | lm[j] << 4;
            let (scale, min) = (f32::from(y[j] & 15), f32::from(y[j] >> 4));
            recode(&x[16 * j..16 * j + 16], d * scale, dmin * min, 3, &mut codes[16 * j..]);
        }
        put_crumbs(&codes, &mut y[16..80]);
    }
}

/// Two bits of each code: of each 128, four quarters side by side.
pub(super) fn put_crumbs(codes: &[u8; QK_K], out: &mut [u8]) {
    for (half, q) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            q[l] = half[l] | half[l + 32] << 2 | half[l + 64] << 4 | half[l + 96] << 6;
        }
    }
}

/// Rounds scales to 0..=15 of the largest, without a limit; returns the unit.
fn round_nibbles(scales: &[f32; 16], codes: &mut [u8; 16]) -> f32 {
    let max = scales.iter().fold(0.0f32, |m, &v| if v > m { v } else { m });
    if max > 0.0 {
        let inverse = 15.0 / max;
        for (c, v) in codes.iter_mut().zip(scales) {
            *c = nearest_int(inverse * v) as u8;
        }
        max / 15.0
    } else {
        0.0
    }
}

pub(super) fn dequantize_q2_k(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<84>().0.iter().zip(out.as_chunks_mut::<QK_K>().0) {
        let (d, min) = (f16_at(&b[80..]), f16_at(&b[82..]));
        for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (d, min) = (d * f32::from(b[j] & 15), min * f32::from(b[j] >> 4));
            let q = &b[16 + j / 8 * 32 + j % 2 * 16..][..16];
            for (v, q) in y.iter_mut().zip(q) {
                *v = d * f32::from(q >> (j / 2 % 4 * 2) & 3) - min;
            }
        }
    }
}

pub(super) fn dequantize_q5_k(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<176>().0.iter().zip(out.as_chunks_mut::<QK_K>().0) {
        let (d, min) = (f16_at(b), f16_at(&b[2..]));
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (sc, m) = scale_min_k4(j, &b[4..16]);
            let (d, min) = (d * f32::from(sc), min * f32::from(m));
            let q = &b[48 + j / 2 * 32..][..32];
            for ((v, q), high) in y.iter_mut().zip(q).zip(&b[16..48]) {
                *v = d * f32::from((q >> (j % 2 * 4) & 15) + ((high >> j & 1) << 4)) - min;
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
            (scales[j], mins[j]) =
                make_qkx_quants(AffineSearch::weighted(s.nmax), sub, &weights, &mut codes[32 * j..32 * j + 32]);
        }
        d = make_qp_quants(63, &scales, &mut ls, &sums);
        dmin = make_qp_quants(63, &mins, &mut lm, &sums);
        if s.nmax == 31 {
            // Codes of scales below zero have wrapped; Q5_K limits them, Q4_K does not.
            ls = ls.map(|l| l.min(63));
            lm = lm.map(|l| l.min(63));
        }
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
    out[..4].copy_from_slice(&ls[..4]);
    out[4..8].copy_from_slice(&lm[..4]);
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
