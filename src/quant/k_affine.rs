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

use super::Rows;
use super::lane_search::{self, Affine};
use super::lanes::{Kernel, LANES, Lanes};
use super::plain::{f16_at, put_f16};
use super::search::{AffineSearch, make_qkx_quants, make_qp_quants, nearest_int, sum_of_squares};

/// Elements of a super-block.
const QK_K: usize = 256;

const Q4_K_SEARCH: AffineSearch = AffineSearch { nmax: 15, rmin: -1.0, rdelta: 0.1, steps: 20, use_mad: false };
const Q5_K_SEARCH: AffineSearch = AffineSearch { nmax: 31, rmin: -0.5, rdelta: 0.1, steps: 15, use_mad: false };
const Q2_K_SEARCH: AffineSearch = AffineSearch { nmax: 3, rmin: -0.5, rdelta: 0.1, steps: 15, use_mad: true };

/// `quantize_row_q4_K_ref` and `quantize_row_q4_K_impl`.
pub(super) fn q4_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<144>().0).enumerate() {
        let codes = eight_sub_blocks(x, imatrix.map(|im| &im[i * QK_K..]), Q4_K_SEARCH, &mut y[..16]);
        put_q4_codes(&codes, y);
    }
}

#[inline(always)]
fn put_q4_codes(codes: &[u8; QK_K], y: &mut [u8; 144]) {
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
fn put_q5_codes(codes: &[u8; QK_K], y: &mut [u8; 176]) {
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
        let units = put_q2_scales(&scales, &mins, importance.is_some().then_some(&sums), y);
        for (j, (d, min)) in units.into_iter().enumerate() {
            recode(&x[16 * j..16 * j + 16], d, min, 3, &mut codes[16 * j..]);
        }
        put_crumbs(&codes, &mut y[16..80]);
    }
}

/// Rounds the scales and minima of sixteen sub-blocks and writes all but the codes. Returns them as a reader
/// will see them.
fn put_q2_scales(scales: &[f32; 16], mins: &[f32; 16], sums: Option<&[f32; 16]>, y: &mut [u8; 84]) -> [(f32, f32); 16] {
    let (mut ls, mut lm) = ([0u8; 16], [0u8; 16]);
    let (d, dmin) = match sums {
        Some(sums) => (make_qp_quants(15, scales, &mut ls, sums), make_qp_quants(15, mins, &mut lm, sums)),
        None => (round_nibbles(scales, &mut ls), round_nibbles(mins, &mut lm)),
    };
    let d = put_f16(d, &mut y[80..]);
    let dmin = put_f16(dmin, &mut y[82..]);
    let mut units = [(0.0, 0.0); 16];
    for (j, unit) in units.iter_mut().enumerate() {
        y[j] = ls[j] | lm[j] << 4;
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
    let units = put_head(&scales, &mins, importance.is_some().then_some(&sums), s.nmax, head);
    for (j, (d, min)) in units.into_iter().enumerate() {
        recode(&x[32 * j..32 * j + 32], d, min, s.nmax, &mut codes[32 * j..]);
    }
    codes
}

/// Rounds the scales and minima of eight sub-blocks and writes the first 16 bytes. Returns them as a reader
/// will see them.
fn put_head(
    scales: &[f32; 8],
    mins: &[f32; 8],
    sums: Option<&[f32; 8]>,
    nmax: i32,
    head: &mut [u8],
) -> [(f32, f32); 8] {
    let (mut ls, mut lm) = ([0u8; 8], [0u8; 8]);
    let (d, dmin);
    if let Some(sums) = sums {
        d = make_qp_quants(63, scales, &mut ls, sums);
        dmin = make_qp_quants(63, mins, &mut lm, sums);
        if nmax == 31 {
            // Codes of scales below zero have wrapped; Q5_K limits them, Q4_K does not.
            ls = ls.map(|l| l.min(63));
            lm = lm.map(|l| l.min(63));
        }
    } else {
        d = round_scales(63, scales, &mut ls);
        dmin = round_scales(63, mins, &mut lm);
    }
    let d = put_f16(d, head);
    let dmin = put_f16(dmin, &mut head[2..]);
    pack_k4(&ls, &lm, &mut head[4..]);
    let mut units = [(0.0, 0.0); 8];
    for (j, unit) in units.iter_mut().enumerate() {
        // Unpacked again: of a scale beyond six bits some are lost.
        let (scale, min) = scale_min_k4(j, &head[4..]);
        *unit = (d * f32::from(scale), dmin * f32::from(min));
    }
    units
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

/// The kernel of Q4_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q4_K {}

impl Kernel for Q4_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        pairs_of_super_blocks(l, rows, out, Q4_K_SEARCH, q4_k, put_q4_codes);
    }
}

/// The kernel of Q5_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q5_K {}

impl Kernel for Q5_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        pairs_of_super_blocks(l, rows, out, Q5_K_SEARCH, q5_k, put_q5_codes);
    }
}

/// [`eight_sub_blocks`] of two super-blocks at a time, a sub-block per lane.
#[inline(always)]
fn pairs_of_super_blocks<L: Lanes, const BYTES: usize>(
    l: L,
    rows: Rows<'_>,
    out: &mut [u8],
    search: AffineSearch,
    reference: impl Fn(&[f32], Option<&[f32]>, &mut [u8]),
    put_codes: impl Fn(&[u8; QK_K], &mut [u8; BYTES]),
) {
    let blocks = rows.values.as_chunks::<QK_K>().0;
    let outs = out.as_chunks_mut::<BYTES>().0;
    let nmax = search.nmax;
    for (k, (xs, ys)) in blocks.chunks(2).zip(outs.chunks_mut(2)).enumerate() {
        // A last one without a partner is searched twice.
        let xs = [&xs[0], &xs[xs.len() - 1]];
        let columns = [to_columns::<L, 32>(l, xs[0]), to_columns::<L, 32>(l, xs[1])];
        let mut weights = columns;
        let importance = match rows.imatrix {
            Some(im) => Some([column_slice(im, 2 * k), column_slice(im, 2 * k + 1)]),
            None => None,
        };
        let found = match importance {
            Some(importance) => {
                let sums = two_sums_of_squares(xs);
                for b in 0..2 {
                    weigh(l, &mut weights[b], importance[b], 2.0 * sums[b] / 256.0);
                }
                lane_search::make_qkx_quants(l, AffineSearch::weighted(nmax), &columns, &weights)
            }
            None => {
                for w in &mut weights {
                    let mut sum = l.splat(0.0);
                    for v in w.iter() {
                        sum = sum + *v * *v;
                    }
                    let average = l.sqrt(sum / l.splat(32.0));
                    for v in w.iter_mut() {
                        *v = average + l.abs(*v);
                    }
                }
                lane_search::make_qkx_quants(l, search, &columns, &weights)
            }
        };
        for (b, y) in ys.iter_mut().enumerate() {
            let found = &found[b];
            if l.any(found.unsafe_lanes) {
                reference(xs[b], importance.map(|im| im[b]), y);
                continue;
            }
            let sums = l.store(found.sum_w);
            let (scales, mins) = (l.store(found.scale), l.store(found.minus_min));
            let units = put_head(&scales, &mins, importance.is_some().then_some(&sums), nmax, &mut y[..16]);
            let mut codes = [0u8; QK_K];
            for (j, (x, codes)) in xs[b].as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
                let (d, min) = units[j];
                if d != 0.0 {
                    let (d, min) = (l.splat(d), l.splat(min));
                    let v = x.as_chunks::<LANES>().0;
                    *codes = l.store_u8x32([
                        final_code(l, &v[0], d, min, nmax),
                        final_code(l, &v[1], d, min, nmax),
                        final_code(l, &v[2], d, min, nmax),
                        final_code(l, &v[3], d, min, nmax),
                    ]);
                } else {
                    searched_codes(l, found, j, nmax, x, codes);
                }
            }
            put_codes(&codes, y);
        }
    }
}

/// [`recode`] of eight elements.
#[inline(always)]
fn final_code<L: Lanes>(l: L, x: &[f32; LANES], d: L::F32, min: L::F32, nmax: i32) -> L::I32 {
    let code = l.nearest_int((l.load(x) + min) / d);
    l.max_i(l.min_i(code, l.splat_i(nmax)), l.splat_i(0))
}

/// The codes of the search for sub-block `j`, which a scale of zero leaves standing.
#[inline(always)]
fn searched_codes<L: Lanes>(l: L, found: &Affine<L>, j: usize, nmax: i32, x: &[f32], codes: &mut [u8]) {
    let (iscale, low) = (l.store(found.iscale)[j], l.store(found.low)[j]);
    if l.bits(found.flat) >> j & 1 == 0 {
        for (c, v) in codes.iter_mut().zip(x) {
            *c = nearest_int(iscale * (v - low)).clamp(0, nmax) as u8;
        }
    }
}

/// Vector i holds element i of eight sub-blocks of `N`.
#[inline(always)]
pub(super) fn to_columns<L: Lanes, const N: usize>(l: L, x: &[f32]) -> [L::F32; N] {
    let mut columns = [l.splat(0.0); N];
    for (c, eight) in columns.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut square = [l.splat(0.0); LANES];
        for (r, v) in square.iter_mut().enumerate() {
            *v = l.load_at(&x[r * N + c * LANES..]);
        }
        *eight = l.transpose(square);
    }
    columns
}

/// The weights of the columns of super-block `k` in a sequence of rows.
#[inline(always)]
pub(super) fn column_slice(imatrix: &[f32], k: usize) -> &[f32] {
    &imatrix[k * QK_K % imatrix.len()..][..QK_K]
}

/// The sums of squares of two super-blocks: two chains of additions side by side.
#[inline(always)]
pub(super) fn two_sums_of_squares(x: [&[f32; QK_K]; 2]) -> [f32; 2] {
    let mut sums = [0.0; 2];
    for (a, b) in x[0].iter().zip(x[1]) {
        sums[0] += a * a;
        sums[1] += b * b;
    }
    sums
}

/// Turns columns of elements into columns of weights: importance·√(sigma2 + x²).
#[inline(always)]
pub(super) fn weigh<L: Lanes, const N: usize>(l: L, x: &mut [L::F32; N], importance: &[f32], sigma2: f32) {
    let sigma2 = l.splat(sigma2);
    for (v, q) in x.iter_mut().zip(to_columns::<L, N>(l, importance)) {
        *v = q * l.sqrt(sigma2 + *v * *v);
    }
}

/// The kernel of Q2_K: the sixteen sub-blocks of a super-block as two groups of eight.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q2_K {}

impl Kernel for Q2_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK_K>().0;
        for (k, (x, y)) in blocks.iter().zip(out.as_chunks_mut::<84>().0).enumerate() {
            let columns = [to_columns::<L, 16>(l, &x[..128]), to_columns::<L, 16>(l, &x[128..])];
            let mut weights = columns;
            let importance = rows.imatrix.map(|im| column_slice(im, k));
            let found = match importance {
                Some(importance) => {
                    let sigma2 = sum_of_squares(x) / 256.0;
                    weigh(l, &mut weights[0], importance, sigma2);
                    weigh(l, &mut weights[1], &importance[128..], sigma2);
                    lane_search::make_qkx_quants(l, AffineSearch::weighted(3), &columns, &weights)
                }
                None => {
                    for v in weights.iter_mut().flatten() {
                        *v = l.abs(*v);
                    }
                    lane_search::make_qkx_quants(l, Q2_K_SEARCH, &columns, &weights)
                }
            };
            if l.any(found[0].unsafe_lanes | found[1].unsafe_lanes) {
                q2_k(x, importance, y);
                continue;
            }
            let (mut scales, mut mins, mut sums) = ([0.0; 16], [0.0; 16], [0.0; 16]);
            for b in 0..2 {
                scales[8 * b..8 * b + 8].copy_from_slice(&l.store(found[b].scale));
                mins[8 * b..8 * b + 8].copy_from_slice(&l.store(found[b].minus_min));
                sums[8 * b..8 * b + 8].copy_from_slice(&l.store(found[b].sum_w));
            }
            let units = put_q2_scales(&scales, &mins, importance.is_some().then_some(&sums), y);
            let mut codes = [0u8; QK_K];
            for (j, (x, codes)) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
                let [first, second] = [units[2 * j], units[2 * j + 1]];
                let v = x.as_chunks::<LANES>().0;
                *codes = l.store_u8x32([
                    final_code(l, &v[0], l.splat(first.0), l.splat(first.1), 3),
                    final_code(l, &v[1], l.splat(first.0), l.splat(first.1), 3),
                    final_code(l, &v[2], l.splat(second.0), l.splat(second.1), 3),
                    final_code(l, &v[3], l.splat(second.0), l.splat(second.1), 3),
                ]);
                for (i, unit) in [first, second].into_iter().enumerate() {
                    if unit.0 == 0.0 {
                        let codes = &mut codes[16 * i..16 * i + 16];
                        codes.fill(0);
                        searched_codes(l, &found[j / 4], (2 * j + i) % 8, 3, &x[16 * i..16 * i + 16], codes);
                    }
                }
            }
            put_crumbs(&codes, &mut y[16..80]);
        }
    }
}
