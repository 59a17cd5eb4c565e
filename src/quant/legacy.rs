//! Blocks with one scale, or a scale and a minimum: the types before the K-quants.
//!
//! ```text
//! Q1_0  d: f16 | 128 bits, the lowest first                            x = ±d
//! Q2_0  d: f16 | 64 × 2 bits, the lowest first                         x = d·(code − 1)
//! Q4_0  d: f16 | 16 bytes, byte j = code j | code j+16 << 4            x = d·(code − 8)
//! Q4_1  d: f16 | m: f16 | codes as Q4_0                                x = d·code + m
//! Q5_0  d: f16 | u32 of fifth bits, code j in bit j | codes as Q4_0    x = d·(code − 16)
//! Q5_1  d: f16 | m: f16 | u32 of fifth bits | codes as Q4_0            x = d·code + m
//! Q8_0  d: f16 | 32 × i8                                               x = d·code
//! ```
//! Without an importance matrix the scale follows from the extreme elements; with one it is searched.

use super::Rows;
use super::k_affine_lanes::weigh;
use super::lane_search::{self, affine_code, symmetric_code};
use super::lanes::{Kernel, LANES, Lanes, Vector, WIDE, wide_columns};
use super::plain::{f16_at, put_f16};
use super::search::{AffineSearch, make_qkx_quants, make_qx_quants, signed_max, sum_of_squares, truncate_int};

/// Elements of a block.
const QK: usize = 32;

/// `quantize_row_q4_0_ref` and `quantize_row_q4_0_impl`.
pub(super) fn q4_0(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let sigma2 = row_sigma2(row, imatrix);
    for (i, (x, y)) in row.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<18>().0).enumerate() {
        let codes = symmetric(8, x, imatrix.map(|im| &im[i * QK..]), sigma2, y);
        put_nibbles(&codes, &mut y[2..]);
    }
}

/// `quantize_row_q5_0_ref` and `quantize_row_q5_0_impl`.
pub(super) fn q5_0(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let sigma2 = row_sigma2(row, imatrix);
    for (i, (x, y)) in row.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<22>().0).enumerate() {
        let codes = symmetric(16, x, imatrix.map(|im| &im[i * QK..]), sigma2, y);
        put_fifth_bits(&codes, &mut y[2..6]);
        put_nibbles(&codes, &mut y[6..]);
    }
}

/// `quantize_row_q4_1_ref` and `quantize_row_q4_1_impl`.
pub(super) fn q4_1(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let sigma2 = row_sigma2(row, imatrix);
    for (i, (x, y)) in row.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<20>().0).enumerate() {
        let codes = affine(15, x, imatrix.map(|im| &im[i * QK..]), sigma2, y);
        put_nibbles(&codes, &mut y[4..]);
    }
}

/// `quantize_row_q5_1_ref` and `quantize_row_q5_1_impl`.
pub(super) fn q5_1(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let sigma2 = row_sigma2(row, imatrix);
    for (i, (x, y)) in row.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<24>().0).enumerate() {
        let codes = affine(31, x, imatrix.map(|im| &im[i * QK..]), sigma2, y);
        put_fifth_bits(&codes, &mut y[4..8]);
        put_nibbles(&codes, &mut y[8..]);
    }
}

/// The mean square of the whole row, which smooths the weights; unused without an importance matrix.
fn row_sigma2(row: &[f32], imatrix: Option<&[f32]>) -> f32 {
    if imatrix.is_some() { sum_of_squares(row) / row.len() as f32 } else { 0.0 }
}

/// The codes 0..2·nmax of a block of Q4_0 or Q5_0, and its scale into the first bytes of `y`.
fn symmetric(nmax: i32, x: &[f32; QK], importance: Option<&[f32]>, sigma2: f32, y: &mut [u8]) -> [u8; QK] {
    let mut codes = [0u8; QK];
    if let Some(importance) = importance {
        let weights = row_weights(x, importance, sigma2);
        put_f16(make_qx_quants(nmax, x, &mut codes, Some(&weights)), y);
        return codes;
    }
    let d = signed_max(x).0 / -nmax as f32;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    put_f16(d, y);
    for (c, v) in codes.iter_mut().zip(x) {
        // Through a signed byte, as there.
        let code = truncate_int(v * id + (nmax as f32 + 0.5)) as i8;
        *c = code.min(2 * nmax as i8 - 1) as u8;
    }
    codes
}

/// The codes 0..=nmax of a block of Q4_1 or Q5_1, and its scale and minimum into the first bytes of `y`.
fn affine(nmax: i32, x: &[f32; QK], importance: Option<&[f32]>, sigma2: f32, y: &mut [u8]) -> [u8; QK] {
    let mut codes = [0u8; QK];
    if let Some(importance) = importance {
        let weights = row_weights(x, importance, sigma2);
        let (d, minus_min) = make_qkx_quants(AffineSearch::weighted(nmax), x, &weights, &mut codes);
        put_f16(d, y);
        put_f16(-minus_min, &mut y[2..]);
        return codes;
    }
    let min = x.iter().fold(f32::MAX, |m, &v| if v < m { v } else { m });
    let max = x.iter().fold(f32::MIN, |m, &v| if v > m { v } else { m });
    let d = (max - min) / nmax as f32;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    put_f16(d, y);
    put_f16(min, &mut y[2..]);
    for (c, v) in codes.iter_mut().zip(x) {
        let code = truncate_int((v - min) * id + 0.5);
        // Q4_1 goes through a signed byte and is limited; Q5_1 is neither.
        *c = if nmax == 15 { (code as i8).min(15) as u8 } else { code as u8 };
    }
    codes
}

/// The weight of each element of a block: importance times a smoothed magnitude.
#[inline(always)]
fn row_weights(x: &[f32; QK], importance: &[f32], sigma2: f32) -> [f32; QK] {
    let mut weights = [0.0; QK];
    for ((w, v), q) in weights.iter_mut().zip(x).zip(importance) {
        *w = q * (sigma2 + v * v).sqrt();
    }
    weights
}

/// The four low bits of each code.
#[inline(always)]
fn put_nibbles(codes: &[u8; QK], out: &mut [u8]) {
    for j in 0..16 {
        out[j] = codes[j] & 15 | codes[j + 16] << 4;
    }
}

/// The fifth bits.
#[inline(always)]
fn put_fifth_bits(codes: &[u8; QK], out: &mut [u8]) {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (j, c)| bits | u32::from(c >> 4 & 1) << j);
    out.copy_from_slice(&bits.to_le_bytes());
}

/// Codes 0..16, or 0..32 where a word of fifth bits comes before the nibbles.
#[inline(always)]
fn get_codes(fifth_bits: Option<&[u8]>, nibbles: &[u8]) -> [i32; QK] {
    let mut codes = [0; QK];
    for j in 0..16 {
        codes[j] = i32::from(nibbles[j] & 15);
        codes[j + 16] = i32::from(nibbles[j] >> 4);
    }
    if let Some(&[a, b, c, d]) = fifth_bits {
        let bits = u32::from_le_bytes([a, b, c, d]);
        for (j, code) in codes.iter_mut().enumerate() {
            *code |= ((bits >> j & 1) << 4) as i32;
        }
    }
    codes
}

pub(super) fn dequantize_q4_1(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<QK>().0) {
        let (d, m) = (f16_at(b), f16_at(&b[2..]));
        for (v, c) in y.iter_mut().zip(get_codes(None, &b[4..])) {
            *v = c as f32 * d + m;
        }
    }
}

pub(super) fn dequantize_q5_0(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<22>().0.iter().zip(out.as_chunks_mut::<QK>().0) {
        let d = f16_at(b);
        for (v, c) in y.iter_mut().zip(get_codes(Some(&b[2..6]), &b[6..])) {
            *v = (c - 16) as f32 * d;
        }
    }
}

pub(super) fn dequantize_q5_1(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<24>().0.iter().zip(out.as_chunks_mut::<QK>().0) {
        let (d, m) = (f16_at(b), f16_at(&b[2..]));
        for (v, c) in y.iter_mut().zip(get_codes(Some(&b[4..8]), &b[8..])) {
            *v = c as f32 * d + m;
        }
    }
}

/// `quantize_row_q1_0_ref`: signs, and the mean magnitude.
pub(super) fn q1_0(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (x, y) in row.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<18>().0) {
        put_f16(x.iter().fold(0.0f32, |sum, v| sum + v.abs()) / 128.0, y);
        for (q, x) in y[2..].iter_mut().zip(x.as_chunks::<8>().0) {
            *q = x.iter().enumerate().fold(0, |bits, (j, v)| bits | u8::from(*v >= 0.0) << j);
        }
    }
}

pub(super) fn dequantize_q1_0(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<128>().0) {
        let d = f16_at(b);
        for (j, v) in y.iter_mut().enumerate() {
            *v = if b[2 + j / 8] >> (j % 8) & 1 != 0 { d } else { -d };
        }
    }
}

/// `quantize_row_q2_0_ref`: codes −1, 0, 1 (and 2, which no element reaches) of the largest magnitude.
pub(super) fn q2_0(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (x, y) in row.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<18>().0) {
        let d = signed_max(x).1;
        let id = if d > 0.0 { 1.0 / d } else { 0.0 };
        put_f16(d, y);
        for (q, x) in y[2..].iter_mut().zip(x.as_chunks::<4>().0) {
            *q = 0;
            for (j, v) in x.iter().enumerate() {
                let code = truncate_int((v * id).round()).wrapping_add(1).clamp(0, 3);
                *q |= (code as u8) << (2 * j);
            }
        }
    }
}

pub(super) fn dequantize_q2_0(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        let d = f16_at(b);
        for (j, v) in y.iter_mut().enumerate() {
            *v = (i32::from(b[2 + j / 4] >> (j % 4 * 2) & 3) - 1) as f32 * d;
        }
    }
}

pub(super) fn dequantize_q4_0(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<QK>().0) {
        let d = f16_at(b);
        for j in 0..16 {
            y[j] = (i32::from(b[2 + j] & 15) - 8) as f32 * d;
            y[j + 16] = (i32::from(b[2 + j] >> 4) - 8) as f32 * d;
        }
    }
}

/// `quantize_row_q8_0_ref`. `roundf` rounds halves away from zero.
pub(super) fn q8_0(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (x, y) in row.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<34>().0) {
        let amax = x.iter().fold(0.0f32, |m, v| if m > v.abs() { m } else { v.abs() });
        let d = amax / 127.0;
        let id = if d != 0.0 { 1.0 / d } else { 0.0 };
        put_f16(d, y);
        for (c, v) in y[2..].iter_mut().zip(x) {
            *c = truncate_int((v * id).round()) as u8;
        }
    }
}

/// Eight blocks at a time: their largest elements and scales in lanes, then each block's codes.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q8_0 {}

impl Kernel for Q8_0 {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK>().0.as_chunks::<LANES>();
        let outs = out.as_chunks_mut::<34>().0.as_chunks_mut::<LANES>();
        for (xs, ys) in blocks.0.iter().zip(outs.0) {
            let mut largest = [l.splat(0.0); LANES];
            for (m, x) in largest.iter_mut().zip(xs) {
                for v in x.as_chunks::<LANES>().0 {
                    *m = l.max(*m, l.abs(l.load(v)));
                }
            }
            let d = max_over(l, l.transpose(largest)) / l.splat(127.0);
            let zero = l.splat(0.0);
            let ids = l.store(l.select(l.eq(d, zero), zero, l.splat(1.0) / d));
            let ds = l.store_i(l.f16_bits(d));
            for i in 0..LANES {
                let id = l.splat(ids[i]);
                let mut codes = [l.splat_i(0); 4];
                for (c, v) in codes.iter_mut().zip(xs[i].as_chunks::<LANES>().0) {
                    *c = l.round_int(l.load(v) * id);
                }
                ys[i][..2].copy_from_slice(&(ds[i] as u16).to_le_bytes());
                ys[i][2..].copy_from_slice(&l.store_u8x32(codes));
            }
        }
        q8_0(blocks.1.as_flattened(), None, outs.1.as_flattened_mut());
    }
}

/// The largest of eight vectors, lane by lane.
#[inline(always)]
fn max_over<L: Lanes>(l: L, v: [L::F32; LANES]) -> L::F32 {
    l.max(l.max(l.max(v[0], v[1]), l.max(v[2], v[3])), l.max(l.max(v[4], v[5]), l.max(v[6], v[7])))
}

pub(super) fn dequantize_q8_0(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<QK>().0) {
        let d = f16_at(b);
        for (v, c) in y.iter_mut().zip(&b[2..]) {
            *v = f32::from(*c as i8) * d;
        }
    }
}

/// The kernels of the four types with 32 nibbles.
pub(super) struct Nibbles<const NMAX: i32, const MIN: bool, const BYTES: usize>;
/// The kernel of Q4_0.
#[allow(non_camel_case_types)] // ggml's name
pub(super) type Q4_0 = Nibbles<8, false, 18>;
/// The kernel of Q5_0.
#[allow(non_camel_case_types)] // ggml's name
pub(super) type Q5_0 = Nibbles<16, false, 22>;
/// The kernel of Q4_1.
#[allow(non_camel_case_types)] // ggml's name
pub(super) type Q4_1 = Nibbles<15, true, 20>;
/// The kernel of Q5_1.
#[allow(non_camel_case_types)] // ggml's name
pub(super) type Q5_1 = Nibbles<31, true, 24>;

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Kernel for Nibbles<NMAX, MIN, BYTES> {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        match rows.imatrix {
            Some(im) => Self::weighted(l, rows, im, out),
            None => Self::plain(l, rows.values, out),
        }
    }
}

impl<const NMAX: i32, const MIN: bool, const BYTES: usize> Nibbles<NMAX, MIN, BYTES> {
    /// Eight blocks at a time: their extremes and scales in lanes, then each block's codes.
    #[inline(always)]
    fn plain<L: Lanes>(l: L, values: &[f32], out: &mut [u8]) {
        let (blocks, rest) = values.as_chunks::<QK>().0.as_chunks::<LANES>();
        let (outs, rest_out) = out.as_chunks_mut::<BYTES>().0.as_chunks_mut::<LANES>();
        let zero = l.splat(0.0);
        for (xs, ys) in blocks.iter().zip(outs) {
            let (mut largest, mut smallest) = ([zero; LANES], [zero; LANES]);
            for (b, x) in xs.iter().enumerate() {
                let v = x.as_chunks::<LANES>().0;
                let v = [l.load(&v[0]), l.load(&v[1]), l.load(&v[2]), l.load(&v[3])];
                largest[b] = l.max(l.max(v[0], v[1]), l.max(v[2], v[3]));
                smallest[b] = l.min(l.min(v[0], v[1]), l.min(v[2], v[3]));
            }
            let max = max_over(l, l.transpose(largest));
            let min = min_over(l, l.transpose(smallest));
            // Which of two equal extremes came first is the reference's business: it decides signs.
            let (d, doubtful) = if MIN {
                ((max - min) / l.splat(NMAX as f32), l.eq(min, zero))
            } else {
                let minus_min = zero - min;
                (l.select(l.lt(minus_min, max), max, min) / l.splat(-NMAX as f32), l.eq(minus_min, max))
            };
            let ids = l.store(l.select(l.eq(d, zero), zero, l.splat(1.0) / d));
            let (ds, ms) = (l.store_i(l.f16_bits(d)), l.store_i(l.f16_bits(min)));
            let mins = l.store(min);
            let doubtful = l.bits(doubtful);
            for b in 0..LANES {
                let (y, id) = (&mut ys[b], l.splat(ids[b]));
                if doubtful >> b & 1 == 1 {
                    Self::reference(&xs[b], None, 0.0, y);
                    continue;
                }
                let mut codes = [l.splat_i(0); 4];
                for (c, v) in codes.iter_mut().zip(xs[b].as_chunks::<LANES>().0) {
                    *c = if MIN {
                        l.truncate((l.load(v) - l.splat(mins[b])) * id + l.splat(0.5))
                    } else {
                        l.truncate(l.load(v) * id + l.splat(NMAX as f32 + 0.5))
                    };
                    if NMAX != 31 {
                        let top = if MIN { NMAX } else { 2 * NMAX - 1 };
                        *c = l.min_i(*c, l.splat_i(top));
                    }
                }
                y[..2].copy_from_slice(&(ds[b] as u16).to_le_bytes());
                if MIN {
                    y[2..4].copy_from_slice(&(ms[b] as u16).to_le_bytes());
                }
                Self::put_codes(l, codes, y);
            }
        }
        for (x, y) in rest.iter().zip(rest_out) {
            Self::reference(x, None, 0.0, y);
        }
    }

    /// Sixteen blocks at a time, one per lane.
    #[inline(always)]
    fn weighted<L: Lanes>(l: L, rows: Rows<'_>, imatrix: &[f32], out: &mut [u8]) {
        let wide = l.wide();
        let per_row = rows.row_len / QK;
        let sigma2 = rows_sigma2(l, rows);
        let blocks = rows.values.as_chunks::<QK>().0;
        let importance = imatrix.as_chunks::<QK>().0;
        let outs = out.as_chunks_mut::<BYTES>().0;
        for (group, ys) in outs.chunks_mut(WIDE).enumerate() {
            let mut sigma = [0.0; WIDE];
            let (mut xs, mut im) = ([&blocks[0]; WIDE], [&importance[0]; WIDE]);
            for i in 0..WIDE {
                // Beyond the last block the last again.
                let k = (WIDE * group + i).min(blocks.len() - 1);
                (xs[i], im[i], sigma[i]) = (&blocks[k], &importance[k % per_row], sigma2[k / per_row]);
            }
            let columns = wide_columns(l, xs);
            let mut weights = columns;
            weigh(wide, &mut weights, &wide_columns(l, im), l.load_wide(&sigma));
            let nmax = l.splat(NMAX as f32);
            let (scales, iscales, flat);
            let (mut minus_mins, mut lows, mut unsafe_lanes) = ([0.0; WIDE], [0.0; WIDE], 0);
            if MIN {
                let search = AffineSearch::weighted(NMAX);
                let [found] = lane_search::make_qkx_quants(wide, search, &[columns], &[weights]);
                (scales, iscales, flat) = (found.scale, found.iscale, found.flat);
                minus_mins = l.store_wide(found.minus_min);
                lows = l.store_wide(found.low);
                unsafe_lanes = wide.bits(found.unsafe_lanes);
            } else {
                let [found] = lane_search::make_qx_quants(wide, NMAX, &[columns], &[weights]);
                (scales, iscales, flat) = (found.scale, found.iscale, found.flat);
            }
            let (scales, iscales, flat) = (l.store_wide(scales), l.store_wide(iscales), wide.bits(flat));
            for (i, y) in ys.iter_mut().enumerate() {
                let k = WIDE * group + i;
                if unsafe_lanes >> i & 1 == 1 {
                    Self::reference(&blocks[k], Some(&importance[k % per_row]), sigma2[k / per_row], y);
                    continue;
                }
                let mut codes = [l.splat_i(0); 4];
                if flat >> i & 1 == 0 {
                    let (iscale, low) = (l.splat(iscales[i]), l.splat(lows[i]));
                    for (c, v) in codes.iter_mut().zip(blocks[k].as_chunks::<LANES>().0) {
                        let v = l.load(v);
                        *c = l.truncate(if MIN {
                            affine_code(l, v, iscale, low, nmax)
                        } else {
                            symmetric_code(l, v, iscale, l.splat(-NMAX as f32), l.splat((NMAX - 1) as f32)) + nmax
                        });
                    }
                }
                put_f16(scales[i], y);
                if MIN {
                    put_f16(-minus_mins[i], &mut y[2..]);
                }
                Self::put_codes(l, codes, y);
            }
        }
    }

    /// Writes what comes after scale and minimum.
    #[inline(always)]
    fn put_codes<L: Lanes>(l: L, codes: [L::I32; 4], y: &mut [u8; BYTES]) {
        let head = if MIN { 4 } else { 2 };
        let mut nibbles = head;
        if NMAX == 16 || NMAX == 31 {
            let mut fifth = [0; 4];
            for (bits, c) in fifth.iter_mut().zip(codes) {
                *bits = l.bits(l.lt_i(l.splat_i(15), c)) as u8;
            }
            y[head..head + 4].copy_from_slice(&fifth);
            nibbles += 4;
        }
        put_nibbles(&l.store_u8x32(codes), &mut y[nibbles..]);
    }

    /// One block by the reference.
    fn reference(x: &[f32; QK], importance: Option<&[f32; QK]>, sigma2: f32, y: &mut [u8; BYTES]) {
        let importance = importance.map(|im| &im[..]);
        let codes =
            if MIN { affine(NMAX, x, importance, sigma2, y) } else { symmetric(NMAX, x, importance, sigma2, y) };
        let mut at = if MIN { 4 } else { 2 };
        if NMAX == 16 || NMAX == 31 {
            put_fifth_bits(&codes, &mut y[at..at + 4]);
            at += 4;
        }
        put_nibbles(&codes, &mut y[at..]);
    }
}

/// The mean square of each row, eight rows in the lanes.
#[inline(always)]
fn rows_sigma2<L: Lanes>(l: L, rows: Rows<'_>) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.values.len() / rows.row_len + LANES);
    for eight in rows.values.chunks(LANES * rows.row_len) {
        let mut xs = [eight; LANES];
        for (i, x) in xs.iter_mut().enumerate() {
            let row = i.min(eight.len() / rows.row_len - 1);
            *x = &eight[row * rows.row_len..][..rows.row_len];
        }
        let mut sum = l.splat(0.0);
        for c in (0..rows.row_len).step_by(LANES) {
            let mut square = [l.splat(0.0); LANES];
            for (v, x) in square.iter_mut().zip(xs) {
                *v = l.load_at(&x[c..]);
            }
            for v in l.transpose(square) {
                sum = sum + v * v;
            }
        }
        out.extend(l.store(sum / l.splat(rows.row_len as f32)));
    }
    out
}

/// The smallest of eight vectors, lane by lane.
#[inline(always)]
fn min_over<L: Lanes>(l: L, v: [L::F32; LANES]) -> L::F32 {
    l.min(l.min(l.min(v[0], v[1]), l.min(v[2], v[3])), l.min(l.min(v[4], v[5]), l.min(v[6], v[7])))
}

/// The kernel of Q1_0: eight blocks at a time, their sums in lanes.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q1_0 {}

impl Kernel for Q1_0 {
    const AVX512: bool = false;

    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let (blocks, rest) = rows.values.as_chunks::<128>().0.as_chunks::<LANES>();
        let (outs, rest_out) = out.as_chunks_mut::<18>().0.as_chunks_mut::<LANES>();
        for (xs, ys) in blocks.iter().zip(outs) {
            let mut sum = l.splat(0.0);
            for c in (0..128).step_by(LANES) {
                let mut square = [l.splat(0.0); LANES];
                for (b, v) in square.iter_mut().enumerate() {
                    *v = l.load_at(&xs[b][c..]);
                    ys[b][2 + c / LANES] = l.bits(!l.lt(*v, l.splat(0.0))) as u8;
                }
                for v in l.transpose(square) {
                    sum = sum + l.abs(v);
                }
            }
            let ds = l.store_i(l.f16_bits(sum / l.splat(128.0)));
            for (y, d) in ys.iter_mut().zip(ds) {
                y[..2].copy_from_slice(&(d as u16).to_le_bytes());
            }
        }
        q1_0(rest.as_flattened(), None, rest_out.as_flattened_mut());
    }
}

/// The kernel of Q2_0: eight blocks at a time, their scales in lanes.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q2_0 {}

impl Kernel for Q2_0 {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let (blocks, rest) = rows.values.as_chunks::<64>().0.as_chunks::<LANES>();
        let (outs, rest_out) = out.as_chunks_mut::<18>().0.as_chunks_mut::<LANES>();
        let zero = l.splat(0.0);
        for (xs, ys) in blocks.iter().zip(outs) {
            let mut largest = [zero; LANES];
            for (m, x) in largest.iter_mut().zip(xs) {
                for v in x.as_chunks::<LANES>().0 {
                    *m = l.max(*m, l.abs(l.load(v)));
                }
            }
            let d = max_over(l, l.transpose(largest));
            let ids = l.store(l.select(l.lt(zero, d), l.splat(1.0) / d, zero));
            let ds = l.store_i(l.f16_bits(d));
            for b in 0..LANES {
                let (y, id) = (&mut ys[b], l.splat(ids[b]));
                y[..2].copy_from_slice(&(ds[b] as u16).to_le_bytes());
                for (x, q) in xs[b].as_chunks::<32>().0.iter().zip(y[2..].as_chunks_mut::<8>().0) {
                    let mut codes = [l.splat_i(0); 4];
                    for (c, v) in codes.iter_mut().zip(x.as_chunks::<LANES>().0) {
                        let code = l.round_int(l.load(v) * id) + l.splat_i(1);
                        *c = l.max_i(l.min_i(code, l.splat_i(3)), l.splat_i(0));
                    }
                    let bytes = l.store_u8x32(codes);
                    for (q, four) in q.iter_mut().zip(bytes.as_chunks::<4>().0) {
                        let word = u32::from_le_bytes(*four);
                        *q = (word | word >> 6 | word >> 12 | word >> 18) as u8;
                    }
                }
            }
        }
        q2_0(rest.as_flattened(), None, rest_out.as_flattened_mut());
    }
}
