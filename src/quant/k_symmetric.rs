//! Super-blocks of 256 with a signed scale per sub-block of 16: Q3_K, Q6_K.
//!
//! ```text
//! Q3_K  32 bytes: bit k of byte l is the third bit of element 32·k + l | 64 bytes of two low bits, as Q2_K
//!       | 12 bytes: 16 × 6-bit scale + 32 | d: f16
//!       x = d·(scale − 32)·(code − 4)
//! Q6_K  128 bytes of four low bits | 64 bytes of two high bits | 16 × i8 scale | d: f16
//!       x = d·scale·(code − 32); of each 128 elements the quarters 0 and 2 share the first 32 low bytes,
//!       1 and 3 the next 32, and the high bits of all four share 32 bytes
//! ```
//! Per sub-block: search a scale (`make_qx_quants`, or `make_q3_quants` for Q3_K without an importance matrix).
//! Per super-block: round the scales, then compute the codes again from what a reader will see, except where
//! the rounded scale is zero: there the codes of the search stay.

use super::Rows;
use super::k_affine::put_crumbs;
use super::k_affine_lanes::{Columns, sub_block_columns, sums_of_squares, weigh};
use super::lane_search;
use super::lanes::{Kernel, LANES, Lanes, Vector, WIDE, wide_columns};
use super::plain::{f16_at, put_f16};
use super::search::{GROUP_MAX_EPS, make_q3_quants, make_qx_quants, nearest_int, signed_max, sum_of_squares};

/// Elements of a super-block.
const QK_K: usize = 256;

/// `quantize_row_q3_K_ref` and `quantize_row_q3_K_impl`.
pub(super) fn q3_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<110>().0).enumerate() {
        let mut codes = [0u8; QK_K];
        let mut scales = [0.0f32; 16];
        // Six bits each, 32 too large.
        let mut ls = [0u8; 16];
        let d;
        if let Some(importance) = imatrix.map(|im| &im[i * QK_K..]) {
            let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
            let mut weights = [0.0f32; 16];
            let mut sums = [0.0f32; 16];
            for (j, sub) in x.as_chunks::<16>().0.iter().enumerate() {
                for l in 0..16 {
                    weights[l] = importance[16 * j + l] * (sigma2 + sub[l] * sub[l]).sqrt();
                }
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                scales[j] = make_qx_quants(4, sub, &mut codes[16 * j..16 * j + 16], Some(&weights));
            }
            d = make_qx_quants(32, &scales, &mut ls, Some(&sums));
        } else {
            for (j, sub) in x.as_chunks::<16>().0.iter().enumerate() {
                scales[j] = make_q3_quants(4, sub, &mut codes[16 * j..16 * j + 16]);
            }
            d = q3_scales(&scales, &mut ls);
        }
        for (j, d) in put_q3_scales(d, &ls, y).into_iter().enumerate() {
            recode(&x[16 * j..16 * j + 16], d, 4, &mut codes[16 * j..]);
        }
        put_q3_codes(&codes, y);
    }
}

/// Writes the unit and the scales. Returns the scales as a reader will see them.
#[inline(always)]
fn put_q3_scales(d: f32, ls: &[u8; 16], y: &mut [u8; 110]) -> [f32; 16] {
    let d = put_f16(d, &mut y[108..]);
    pack_q3(ls, &mut y[96..108]);
    // The scales of a block of zeros are zero bits, which a reader takes for −32.
    let mut scales = [0.0; 16];
    for (scale, l) in scales.iter_mut().zip(ls) {
        *scale = d * (i32::from(*l) - 32) as f32;
    }
    scales
}

#[inline(always)]
fn put_q3_codes(codes: &[u8; QK_K], y: &mut [u8; 110]) {
    let mut low = *codes;
    y[..32].fill(0);
    for (k, sub) in low.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for l in 0..32 {
            y[l] |= (sub[l] >> 2) << k;
            sub[l] &= 3;
        }
    }
    put_crumbs(&low, &mut y[32..96]);
}

/// Rounds scales so that the largest is −32, plus 32; returns the unit. Zeros stay zero bits.
fn q3_scales(scales: &[f32; 16], ls: &mut [u8; 16]) -> f32 {
    let max = signed_max(scales).0;
    if max == 0.0 {
        return 0.0;
    }
    let iscale = -32.0 / max;
    for (l, v) in ls.iter_mut().zip(scales) {
        // Through a signed byte, as there.
        *l = ((nearest_int(iscale * v) as i8).clamp(-32, 31) + 32) as u8;
    }
    1.0 / iscale
}

/// Sixteen 6-bit scales in 12 bytes: low nibbles, then the two high bits of scale j in byte 8 + j % 4.
fn pack_q3(ls: &[u8; 16], out: &mut [u8]) {
    for j in 0..8 {
        out[j] = ls[j] & 15 | ls[j + 8] << 4;
    }
    for j in 0..4 {
        out[8 + j] = (0..4).fold(0, |bits, k| bits | ls[j + 4 * k] >> 4 << (2 * k));
    }
}

#[inline(always)]
fn unpack_q3(j: usize, q: &[u8]) -> u8 {
    let low = if j < 8 { q[j] & 15 } else { q[j - 8] >> 4 };
    low | (q[8 + j % 4] >> (j / 4 * 2) & 3) << 4
}

/// Codes −nmax..nmax, stored as 0..2·nmax, from the scale that a reader will see; a zero scale leaves them.
#[inline(always)]
fn recode(x: &[f32], d: f32, nmax: i32, codes: &mut [u8]) {
    if d != 0.0 {
        for (c, v) in codes.iter_mut().zip(x) {
            *c = (nearest_int(v / d).clamp(-nmax, nmax - 1) + nmax) as u8;
        }
    }
}

pub(super) fn dequantize_q3_k(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<110>().0.iter().zip(out.as_chunks_mut::<QK_K>().0) {
        let d = f16_at(&b[108..]);
        for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = d * (i32::from(unpack_q3(j, &b[96..108])) - 32) as f32;
            let q = &b[32 + j / 8 * 32 + j % 2 * 16..][..16];
            for ((v, q), high) in y.iter_mut().zip(q).zip(&b[j % 2 * 16..]) {
                let code = q >> (j / 2 % 4 * 2) & 3 | (high >> (j / 2) & 1) << 2;
                *v = d * (i32::from(code) - 4) as f32;
            }
        }
    }
}

/// `quantize_row_q6_K_ref` and `quantize_row_q6_K_impl`.
pub(super) fn q6_k(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, y)) in row.as_chunks::<QK_K>().0.iter().zip(out.as_chunks_mut::<210>().0).enumerate() {
        let mut codes = [0u8; QK_K];
        let mut scales = [0.0f32; 16];
        for (j, sub) in x.as_chunks::<16>().0.iter().enumerate() {
            let importance = imatrix.map(|im| &im[i * QK_K + 16 * j..][..16]);
            scales[j] = make_qx_quants(32, sub, &mut codes[16 * j..16 * j + 16], importance);
        }
        if let Some(units) = put_q6_scales(&scales, y) {
            for (j, d) in units.into_iter().enumerate() {
                recode(&x[16 * j..16 * j + 16], d, 32, &mut codes[16 * j..]);
            }
            pack_q6(&codes, y);
        }
    }
}

/// Writes the unit and the scales, or zeros if there are none. Returns the scales as a reader will see them.
#[inline(always)]
fn put_q6_scales(scales: &[f32; 16], y: &mut [u8; 210]) -> Option<[f32; 16]> {
    let (max, amax) = signed_max(scales);
    if amax < GROUP_MAX_EPS {
        y.fill(0);
        return None;
    }
    let iscale = -128.0 / max;
    let d = put_f16(1.0 / iscale, &mut y[208..]);
    let mut units = [0.0; 16];
    for j in 0..16 {
        let scale = nearest_int(iscale * scales[j]).min(127) as i8;
        y[192 + j] = scale as u8;
        units[j] = d * f32::from(scale);
    }
    Some(units)
}

/// Four low bits and two high bits of each code.
#[inline(always)]
fn pack_q6(codes: &[u8; QK_K], y: &mut [u8; 210]) {
    for (n, half) in codes.as_chunks::<128>().0.iter().enumerate() {
        for l in 0..32 {
            let q = [half[l], half[l + 32], half[l + 64], half[l + 96]];
            y[64 * n + l] = q[0] & 15 | q[2] << 4;
            y[64 * n + l + 32] = q[1] & 15 | q[3] << 4;
            y[128 + 32 * n + l] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
        }
    }
}

pub(super) fn dequantize_q6_k(blocks: &[u8], out: &mut [f32]) {
    for (b, y) in blocks.as_chunks::<210>().0.iter().zip(out.as_chunks_mut::<QK_K>().0) {
        let d = f16_at(&b[208..]);
        for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = d * f32::from(b[192 + j] as i8);
            let (half, quarter) = (j / 8, j / 2 % 4);
            let low = &b[64 * half + quarter % 2 * 32 + j % 2 * 16..][..16];
            let high = &b[128 + 32 * half + j % 2 * 16..][..16];
            for ((v, low), high) in y.iter_mut().zip(low).zip(high) {
                let code = low >> (quarter / 2 * 4) & 15 | (high >> (2 * quarter) & 3) << 4;
                *v = d * (i32::from(code) - 32) as f32;
            }
        }
    }
}

/// The kernel of Q6_K: the sixteen sub-blocks of a super-block in the lanes.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q6_K {}

impl Kernel for Q6_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK_K>().0;
        for (k, (x, y)) in blocks.iter().zip(out.as_chunks_mut::<210>().0).enumerate() {
            let columns = sub_block_columns::<L, 16>(l, [&x[..128], &x[128..]]);
            let mut weights = columns;
            match rows.imatrix {
                Some(im) => {
                    let (first, last) = Columns { imatrix: im, first: 0 }.of(k).split_at(128);
                    weights = sub_block_columns(l, [first, last]);
                }
                None => {
                    for w in &mut weights {
                        *w = *w * *w;
                    }
                }
            }
            let [found] = lane_search::make_qx_quants(l.wide(), 32, &[columns], &[weights]);
            let Some(units) = put_q6_scales(&l.store_wide(found.scale), y) else { continue };
            let mut codes = [0u8; QK_K];
            final_codes(l, x, 32, &units, &mut codes);
            let (iscales, flat) = (l.store_wide(found.iscale), l.wide().bits(found.flat));
            for (j, d) in units.into_iter().enumerate() {
                if d == 0.0 {
                    let codes = &mut codes[16 * j..16 * j + 16];
                    searched_codes(iscales[j], flat >> j & 1 == 1, 32, &x[16 * j..16 * j + 16], codes);
                }
            }
            pack_q6(&codes, y);
        }
    }
}

/// The kernel of Q3_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q3_K {}

impl Kernel for Q3_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK_K>().0;
        let outs = out.as_chunks_mut::<110>().0;
        match rows.imatrix {
            Some(im) => {
                for (k, (xs, ys)) in blocks.chunks(WIDE).zip(outs.chunks_mut(WIDE)).enumerate() {
                    weighted_q3_k(l, xs, Columns { imatrix: im, first: WIDE * k }, ys);
                }
            }
            None => {
                for (xs, ys) in blocks.chunks(Q3_BATCH).zip(outs.chunks_mut(Q3_BATCH)) {
                    plain_q3_k(l, xs, ys);
                }
            }
        }
    }
}

/// Super-blocks of Q3_K whose unsettled sub-blocks are collected to fill vectors.
const Q3_BATCH: usize = 64;

/// Without an importance matrix: a first search of every sub-block, and longer ones of those that need them.
#[inline(always)]
fn plain_q3_k<L: Lanes>(l: L, xs: &[[f32; QK_K]], ys: &mut [[u8; 110]]) {
    let subs = xs.as_flattened().as_chunks::<16>().0;
    let mut scales = [[0.0; 16]; Q3_BATCH];
    let mut unsettled = Unsettled { subs: [0; 16 * Q3_BATCH], len: 0 };
    for (k, x) in xs.iter().enumerate() {
        let columns = sub_block_columns(l, [&x[..128], &x[128..]]);
        let [found] = lane_search::make_q3_quants::<_, 16, 1, 0>(l.wide(), 4, &[columns]);
        scales[k] = l.store_wide(found.scale);
        let mut bits = l.wide().bits(found.unsettled);
        while bits != 0 {
            unsettled.push(16 * k + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
    refine::<L, 2, 1>(l, subs, &mut unsettled, scales.as_flattened_mut());
    refine::<L, 2, { lane_search::MOST_PASSES }>(l, subs, &mut unsettled, scales.as_flattened_mut());
    for ((x, scales), y) in xs.iter().zip(&scales).zip(ys) {
        let mut ls = [0u8; 16];
        let d = q3_scales(scales, &mut ls);
        let units = put_q3_scales(d, &ls, y);
        let mut codes = [0u8; QK_K];
        final_codes(l, x, 4, &units, &mut codes);
        for (j, d) in units.into_iter().enumerate() {
            if d == 0.0 {
                // The codes of the search stand, and the reference has them.
                make_q3_quants(4, &x[16 * j..16 * j + 16], &mut codes[16 * j..16 * j + 16]);
            }
        }
        put_q3_codes(&codes, y);
    }
}

/// Numbers of sub-blocks whose search goes on.
struct Unsettled {
    subs: [u16; 16 * Q3_BATCH],
    len: usize,
}

impl Unsettled {
    #[inline(always)]
    fn push(&mut self, sub: usize) {
        self.subs[self.len] = sub as u16;
        self.len += 1;
    }
}

/// Searches unsettled sub-blocks with up to `PASSES` passes, `B` vectors at a time, and leaves the ones that have
/// not settled then.
#[inline(always)]
fn refine<L: Lanes, const B: usize, const PASSES: usize>(
    l: L,
    subs: &[[f32; 16]],
    unsettled: &mut Unsettled,
    scales: &mut [f32],
) {
    let len = std::mem::take(&mut unsettled.len);
    for first in (0..len).step_by(WIDE * B) {
        // After the last one the last again.
        let mut numbers = [[0; WIDE]; B];
        let mut columns = [[l.wide().splat(0.0); 16]; B];
        for (b, (numbers, columns)) in numbers.iter_mut().zip(&mut columns).enumerate() {
            let mut rows = [&subs[0]; WIDE];
            for (i, (number, row)) in numbers.iter_mut().zip(&mut rows).enumerate() {
                *number = usize::from(unsettled.subs[(first + WIDE * b + i).min(len - 1)]);
                *row = &subs[*number];
            }
            *columns = wide_columns(l, rows);
        }
        let found = lane_search::make_q3_quants::<_, 16, B, PASSES>(l.wide(), 4, &columns);
        for (b, (numbers, found)) in numbers.iter().zip(found).enumerate() {
            let bits = l.wide().bits(found.unsettled);
            for (i, (&number, scale)) in numbers.iter().zip(l.store_wide(found.scale)).enumerate() {
                scales[number] = scale;
                if bits >> i & 1 == 1 && first + WIDE * b + i < len {
                    unsettled.push(number);
                }
            }
        }
    }
}

/// Up to sixteen super-blocks: their sub-blocks one super-block after the other, then the scales of all, a
/// super-block per lane.
#[inline(always)]
fn weighted_q3_k<L: Lanes>(l: L, xs: &[[f32; QK_K]], importance: Columns<'_>, ys: &mut [[u8; 110]]) {
    let wide = l.wide();
    let (mut scales, mut sums, mut iscales) = ([[0.0; 16]; WIDE], [[0.0; 16]; WIDE], [[0.0; 16]; WIDE]);
    let (mut flat, mut unsound) = ([0; WIDE], [false; WIDE]);
    let squares = sums_of_squares(l, xs);
    for (k, x) in xs.iter().enumerate() {
        let columns = sub_block_columns::<L, 16>(l, [&x[..128], &x[128..]]);
        let mut weights = columns;
        let (first, last) = importance.of(k).split_at(128);
        let sigma2 = wide.splat(2.0 * squares[k] / 256.0);
        weigh(wide, &mut weights, &sub_block_columns(l, [first, last]), sigma2);
        let mut sum = wide.splat(0.0);
        for w in &weights {
            sum = sum + *w;
        }
        let [found] = lane_search::make_qx_quants(wide, 4, &[columns], &[weights]);
        // A scale that is no number is nothing for the lanes of the next search.
        unsound[k] = !wide.all(wide.lt(wide.abs(found.scale), wide.splat(f32::INFINITY)));
        (scales[k], sums[k]) = (l.store_wide(found.scale), l.store_wide(sum));
        (iscales[k], flat[k]) = (l.store_wide(found.iscale), wide.bits(found.flat));
    }
    let (columns, weights) = (wide_columns(l, scales.each_ref()), wide_columns(l, sums.each_ref()));
    let [found] = lane_search::make_qx_quants(wide, 32, &[columns], &[weights]);
    let (ds, top_iscales, top_flat) = (l.store_wide(found.scale), l.store_wide(found.iscale), wide.bits(found.flat));
    for (k, (x, y)) in xs.iter().zip(ys).enumerate() {
        if unsound[k] {
            q3_k(x, Some(importance.of(k)), y);
            continue;
        }
        let mut ls = [0u8; 16];
        searched_codes(top_iscales[k], top_flat >> k & 1 == 1, 32, &scales[k], &mut ls);
        let units = put_q3_scales(ds[k], &ls, y);
        let mut codes = [0u8; QK_K];
        final_codes(l, x, 4, &units, &mut codes);
        for (j, d) in units.into_iter().enumerate() {
            if d == 0.0 {
                let codes = &mut codes[16 * j..16 * j + 16];
                searched_codes(iscales[k][j], flat[k] >> j & 1 == 1, 4, &x[16 * j..16 * j + 16], codes);
            }
        }
        put_q3_codes(&codes, y);
    }
}

/// [`recode`] of a super-block; sub-blocks with a scale of zero come out as anything.
#[inline(always)]
fn final_codes<L: Lanes>(l: L, x: &[f32; QK_K], nmax: i32, units: &[f32; 16], codes: &mut [u8; QK_K]) {
    for (j, (x, codes)) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
        let v = x.as_chunks::<LANES>().0;
        let (first, second) = (l.splat(units[2 * j]), l.splat(units[2 * j + 1]));
        *codes = l.store_u8x32([
            final_code(l, &v[0], first, nmax),
            final_code(l, &v[1], first, nmax),
            final_code(l, &v[2], second, nmax),
            final_code(l, &v[3], second, nmax),
        ]);
    }
}

#[inline(always)]
fn final_code<L: Lanes>(l: L, x: &[f32; LANES], d: L::F32, nmax: i32) -> L::I32 {
    let code = l.nearest_int(l.load(x) / d);
    l.max_i(l.min_i(code, l.splat_i(nmax - 1)), l.splat_i(-nmax)) + l.splat_i(nmax)
}

/// The codes of the search for one sub-block, which a scale of zero leaves standing.
#[inline(always)]
fn searched_codes(iscale: f32, flat: bool, nmax: i32, x: &[f32], codes: &mut [u8]) {
    for (c, v) in codes.iter_mut().zip(x) {
        *c = if flat { 0 } else { (nearest_int(iscale * v).clamp(-nmax, nmax - 1) + nmax) as u8 };
    }
}
