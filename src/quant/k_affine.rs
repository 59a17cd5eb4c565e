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
//! except where the rounded scale is zero: there the codes of the search stay. This is the reference; lanes do the same
//! in [`k_affine_lanes`](super::k_affine_lanes).

use super::plain::{f16_at, put_f16};
use super::search::{AffineSearch, make_qkx_quants, make_qp_quants, nearest_int, sum_of_squares};

/// Elements of a super-block.
pub(super) const QK_K: usize = 256;

pub(super) const Q4_K_SEARCH: AffineSearch =
    AffineSearch { nmax: 15, rmin: -1.0, rdelta: 0.1, steps: 20, use_mad: false };
pub(super) const Q5_K_SEARCH: AffineSearch =
    AffineSearch { nmax: 31, rmin: -0.5, rdelta: 0.1, steps: 15, use_mad: false };
pub(super) const Q2_K_SEARCH: AffineSearch =
    AffineSearch { nmax: 3, rmin: -0.5, rdelta: 0.1, steps: 15, use_mad: true };

/// `quantize_row_q4_K_ref` and `quantize_row_q4_K_impl`.
pub(super) fn q4_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<144>().0).enumerate() {
        let codes = eight_sub_blocks(x, imatrix.map(|im| &im[i * QK_K..]), Q4_K_SEARCH, &mut y[..16]);
        put_q4_codes(&codes, y);
    }
}

#[inline(always)]
pub(super) fn put_q4_codes(codes: &[u8; QK_K], y: &mut [u8; 144]) {
    for (pair, q) in codes.as_chunks::<64>().0.iter().zip(y[16..].as_chunks_mut::<32>().0) {
        for l in 0..32 {
            q[l] = pair[l] | pair[l + 32] << 4;
        }
    }
}

/// `quantize_row_q5_K_ref` and `quantize_row_q5_K_impl`.
pub(super) fn q5_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<176>().0).enumerate() {
        let codes = eight_sub_blocks(x, imatrix.map(|im| &im[i * QK_K..]), Q5_K_SEARCH, &mut y[..16]);
        put_q5_codes(&codes, y);
    }
}

#[inline(always)]
pub(super) fn put_q5_codes(codes: &[u8; QK_K], y: &mut [u8; 176]) {
    let (high, low) = y[16..].split_at_mut(32);
    high.fill(0);
    for (k, sub) in codes.as_chunks::<32>().0.iter().enumerate() {
        for l in 0..32 {
            high[l] |= (sub[l] >> 4) << k;
        }
    }
    for (pair, q) in codes.as_chunks::<64>().0.iter().zip(low.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            q[l] = pair[l] & 15 | pair[l + 32] << 4;
        }
    }
}

/// `quantize_row_q2_K_ref` and `quantize_row_q2_K_impl`.
pub(super) fn q2_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<84>().0).enumerate() {
        let mut codes = [0u8; QK_K];
        let (mut scales, mut mins, mut sums) = ([0.0f32; 16], [0.0f32; 16], [0.0f32; 16]);
        let mut weights = [0.0f32; 16];
        let importance = imatrix.map(|im| &im[i * QK_K..]);
        let sigma2 = sum_of_squares(x) / 256.0;
        for (j, sub) in x.as_chunks::<16>().0.iter().enumerate() {
            for l in 0..16 {
                weights[l] = match importance {
                    Some(importance) => importance[16 * j + l] * (sigma2 + sub[l] * sub[l]).sqrt(),
                    None => sub[l].abs(),
                };
            }
            sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
            let search = if importance.is_some() { AffineSearch::weighted(3) } else { Q2_K_SEARCH };
            (scales[j], mins[j]) = make_qkx_quants(search, sub, &weights, &mut codes[16 * j..16 * j + 16]);
        }
        let rounded = match importance {
            Some(_) => Rounded::weighted(15, &scales, &mins, &sums),
            None => plain_nibbles(&scales, &mins),
        };
        let units = put_q2_scales(&rounded, y);
        for (j, (d, min)) in units.into_iter().enumerate() {
            recode(&x[16 * j..16 * j + 16], d, min, 3, &mut codes[16 * j..]);
        }
        put_crumbs(&codes, &mut y[16..80]);
    }
}

/// The scales and minima of a super-block, rounded to integers, and the units that they count.
pub(super) struct Rounded<const S: usize> {
    pub(super) d: f32,
    pub(super) dmin: f32,
    pub(super) scales: [u8; S],
    pub(super) mins: [u8; S],
}

impl<const S: usize> Rounded<S> {
    /// Rounded to 0..=top by the search that the sums of the weights guide.
    fn weighted(top: i32, scales: &[f32; S], mins: &[f32; S], sums: &[f32; S]) -> Self {
        let mut r = Rounded { d: 0.0, dmin: 0.0, scales: [0; S], mins: [0; S] };
        r.d = make_qp_quants(top, scales, &mut r.scales, sums);
        r.dmin = make_qp_quants(top, mins, &mut r.mins, sums);
        r
    }
}

/// Writes all but the codes. Returns the scales and minima as a reader will see them.
pub(super) fn put_q2_scales(r: &Rounded<16>, y: &mut [u8; 84]) -> [(f32, f32); 16] {
    let d = put_f16(r.d, &mut y[80..]);
    let dmin = put_f16(r.dmin, &mut y[82..]);
    let mut units = [(0.0, 0.0); 16];
    for (j, unit) in units.iter_mut().enumerate() {
        y[j] = r.scales[j] | r.mins[j] << 4;
        *unit = (d * f32::from(y[j] & 15), dmin * f32::from(y[j] >> 4));
    }
    units
}

/// Two bits of each code: of each 128, four quarters side by side.
#[inline(always)]
pub(super) fn put_crumbs(codes: &[u8; QK_K], out: &mut [u8]) {
    for (half, q) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            q[l] = half[l] | half[l + 32] << 2 | half[l + 64] << 4 | half[l + 96] << 6;
        }
    }
}

/// Scales and minima each rounded to 0..=15 of their largest.
pub(super) fn plain_nibbles(scales: &[f32; 16], mins: &[f32; 16]) -> Rounded<16> {
    let mut r = Rounded { d: 0.0, dmin: 0.0, scales: [0; 16], mins: [0; 16] };
    r.d = round_nibbles(scales, &mut r.scales);
    r.dmin = round_nibbles(mins, &mut r.mins);
    r
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
    let (mut scales, mut mins, mut sums) = ([0.0f32; 8], [0.0f32; 8], [0.0f32; 8]);
    let mut weights = [0.0f32; 32];
    let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
    for (j, sub) in x.as_chunks::<32>().0.iter().enumerate() {
        let average = (sum_of_squares(sub) / 32.0).sqrt();
        for l in 0..32 {
            weights[l] = match importance {
                Some(importance) => importance[32 * j + l] * (sigma2 + sub[l] * sub[l]).sqrt(),
                None => average + sub[l].abs(),
            };
        }
        sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
        let search = if importance.is_some() { AffineSearch::weighted(s.nmax) } else { s };
        (scales[j], mins[j]) = make_qkx_quants(search, sub, &weights, &mut codes[32 * j..32 * j + 32]);
    }
    let rounded = match importance {
        Some(_) => Rounded::weighted(63, &scales, &mins, &sums),
        None => plain_scales(&scales, &mins),
    };
    let units = put_head(&rounded, s.nmax, head);
    for (j, (d, min)) in units.into_iter().enumerate() {
        recode(&x[32 * j..32 * j + 32], d, min, s.nmax, &mut codes[32 * j..]);
    }
    codes
}

/// Writes the first 16 bytes. Returns the scales and minima as a reader will see them.
pub(super) fn put_head(r: &Rounded<8>, nmax: i32, head: &mut [u8]) -> [(f32, f32); 8] {
    let (mut ls, mut lm) = (r.scales, r.mins);
    if nmax == 31 {
        // Codes of scales below zero have wrapped; Q5_K limits them, Q4_K does not.
        ls = ls.map(|l| l.min(63));
        lm = lm.map(|l| l.min(63));
    }
    let d = put_f16(r.d, head);
    let dmin = put_f16(r.dmin, &mut head[2..]);
    pack_k4(&ls, &lm, &mut head[4..]);
    let mut units = [(0.0, 0.0); 8];
    for (j, unit) in units.iter_mut().enumerate() {
        // Unpacked again: of a scale beyond six bits some are lost.
        let (scale, min) = scale_min_k4(j, &head[4..]);
        *unit = (d * f32::from(scale), dmin * f32::from(min));
    }
    units
}

/// Scales and minima each rounded to 0..=63 of their largest.
pub(super) fn plain_scales(scales: &[f32; 8], mins: &[f32; 8]) -> Rounded<8> {
    let mut r = Rounded { d: 0.0, dmin: 0.0, scales: [0; 8], mins: [0; 8] };
    r.d = round_scales(63, scales, &mut r.scales);
    r.dmin = round_scales(63, mins, &mut r.mins);
    r
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
