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
use super::lanes::{Kernel, LANES, Lanes, Vector, WIDE, wide_columns, wide_square};
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
struct Rounded<const S: usize> {
    d: f32,
    dmin: f32,
    scales: [u8; S],
    mins: [u8; S],
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
fn put_q2_scales(r: &Rounded<16>, y: &mut [u8; 84]) -> [(f32, f32); 16] {
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
fn plain_nibbles(scales: &[f32; 16], mins: &[f32; 16]) -> Rounded<16> {
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
fn put_head(r: &Rounded<8>, nmax: i32, head: &mut [u8]) -> [(f32, f32); 8] {
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
fn plain_scales(scales: &[f32; 8], mins: &[f32; 8]) -> Rounded<8> {
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

/// What the search finds for the sub-blocks of a super-block.
#[derive(Clone, Copy)]
struct Searched<const S: usize> {
    scales: [f32; S],
    mins: [f32; S],
    sums: [f32; S],
    /// The codes are those of iscale·(x − low).
    iscales: [f32; S],
    lows: [f32; S],
    /// Bit j: sub-block j has no range.
    flat: u32,
    /// Only the reference knows.
    unsound: bool,
}

impl<const S: usize> Searched<S> {
    const NOTHING: Self = Searched {
        scales: [0.0; S],
        mins: [0.0; S],
        sums: [0.0; S],
        iscales: [0.0; S],
        lows: [0.0; S],
        flat: 0,
        unsound: false,
    };

    /// Of sixteen sub-blocks, to the super-blocks that have them.
    #[inline(always)]
    fn store<L: Lanes>(l: L, found: &Affine<L::Wide>, to: &mut [Self]) {
        let (scales, mins) = (l.store_wide(found.scale), l.store_wide(found.minus_min));
        let (sums, iscales, lows) = (l.store_wide(found.sum_w), l.store_wide(found.iscale), l.store_wide(found.low));
        let (flat, unsound) = (l.wide().bits(found.flat), l.wide().bits(found.unsafe_lanes));
        for (i, to) in to.iter_mut().enumerate() {
            to.scales.copy_from_slice(&scales[S * i..S * i + S]);
            to.mins.copy_from_slice(&mins[S * i..S * i + S]);
            to.sums.copy_from_slice(&sums[S * i..S * i + S]);
            to.iscales.copy_from_slice(&iscales[S * i..S * i + S]);
            to.lows.copy_from_slice(&lows[S * i..S * i + S]);
            to.flat = flat >> (S * i);
            to.unsound = unsound >> (S * i) & ((1 << S) - 1) != 0;
        }
    }

    /// The codes of the search for sub-block `j`, which a scale of zero leaves standing.
    #[inline(always)]
    fn codes(&self, j: usize, nmax: i32, x: &[f32], codes: &mut [u8]) {
        for (c, v) in codes.iter_mut().zip(x) {
            let code = nearest_int(self.iscales[j] * (v - self.lows[j])).clamp(0, nmax) as u8;
            *c = if self.flat >> j & 1 == 1 { 0 } else { code };
        }
    }
}

/// [`Rounded::weighted`] of sixteen super-blocks, one per lane.
#[inline(always)]
fn weighted_together<L: Lanes, const S: usize>(l: L, top: i32, s: &[Searched<S>; WIDE]) -> [Rounded<S>; WIDE] {
    let wide = l.wide();
    let sums = wide_columns(l, s.each_ref().map(|s| &s.sums));
    let (d, scales) = lane_search::make_qp_quants(wide, top, &wide_columns(l, s.each_ref().map(|s| &s.scales)), &sums);
    let (dmin, mins) = lane_search::make_qp_quants(wide, top, &wide_columns(l, s.each_ref().map(|s| &s.mins)), &sums);
    let (d, dmin) = (l.store_wide(d), l.store_wide(dmin));
    let mut rounded = [const { Rounded { d: 0.0, dmin: 0.0, scales: [0; S], mins: [0; S] } }; WIDE];
    for (k, r) in rounded.iter_mut().enumerate() {
        (r.d, r.dmin) = (d[k], dmin[k]);
    }
    for j in 0..S {
        for (r, code) in rounded.iter_mut().zip(l.store_wide(scales[j])) {
            r.scales[j] = code as u8;
        }
        for (r, code) in rounded.iter_mut().zip(l.store_wide(mins[j])) {
            r.mins[j] = code as u8;
        }
    }
    rounded
}

/// The kernel of Q4_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q4_K {}

impl Kernel for Q4_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK_K>().0;
        let outs = out.as_chunks_mut::<144>().0;
        for (k, (xs, ys)) in blocks.chunks(WIDE).zip(outs.chunks_mut(WIDE)).enumerate() {
            let importance = rows.imatrix.map(|im| Columns { imatrix: im, first: WIDE * k });
            sixteen_super_blocks(l, xs, importance, Q4_K_SEARCH, ys, q4_k, put_q4_codes);
        }
    }
}

/// The kernel of Q5_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q5_K {}

impl Kernel for Q5_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK_K>().0;
        let outs = out.as_chunks_mut::<176>().0;
        for (k, (xs, ys)) in blocks.chunks(WIDE).zip(outs.chunks_mut(WIDE)).enumerate() {
            let importance = rows.imatrix.map(|im| Columns { imatrix: im, first: WIDE * k });
            sixteen_super_blocks(l, xs, importance, Q5_K_SEARCH, ys, q5_k, put_q5_codes);
        }
    }
}

/// The weights of a sequence of super-blocks.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    /// One per column of the rows.
    pub(super) imatrix: &'a [f32],
    /// The number of the first super-block in the rows.
    pub(super) first: usize,
}

impl<'a> Columns<'a> {
    /// Those of super-block `k` of the sequence.
    #[inline(always)]
    pub(super) fn of(self, k: usize) -> &'a [f32] {
        &self.imatrix[(self.first + k) * QK_K % self.imatrix.len()..][..QK_K]
    }
}

/// [`eight_sub_blocks`] of up to sixteen super-blocks: two at a time, a sub-block per lane, then the scales of all,
/// a super-block per lane.
#[inline(always)]
fn sixteen_super_blocks<L: Lanes, const BYTES: usize>(
    l: L,
    xs: &[[f32; QK_K]],
    importance: Option<Columns<'_>>,
    search: AffineSearch,
    ys: &mut [[u8; BYTES]],
    reference: impl Fn(&[f32], Option<&[f32]>, &mut [u8]),
    put_codes: impl Fn(&[u8; QK_K], &mut [u8; BYTES]),
) {
    let nmax = search.nmax;
    let mut searched = [Searched::<8>::NOTHING; WIDE];
    if <L::Wide as Vector>::HAS_IDLE_UNITS {
        search_pairs::<L, 2>(l, xs, importance, search, &mut searched);
    } else {
        search_pairs::<L, 1>(l, xs, importance, search, &mut searched);
    }
    let weighted = if importance.is_some() { Some(weighted_together(l, 63, &searched)) } else { None };
    for (k, ((x, y), s)) in xs.iter().zip(ys).zip(&searched).enumerate() {
        if s.unsound {
            reference(x, importance.map(|im| im.of(k)), y);
            continue;
        }
        let units = match &weighted {
            Some(rounded) => put_head(&rounded[k], nmax, &mut y[..16]),
            None => put_head(&plain_scales(&s.scales, &s.mins), nmax, &mut y[..16]),
        };
        let mut codes = [0u8; QK_K];
        for (j, (x, codes)) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0).enumerate() {
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
                s.codes(j, nmax, x, codes);
            }
        }
        put_codes(&codes, y);
    }
}

/// The search of up to sixteen super-blocks of eight sub-blocks, `B` pairs at a time.
#[inline(always)]
fn search_pairs<L: Lanes, const B: usize>(
    l: L,
    xs: &[[f32; QK_K]],
    importance: Option<Columns<'_>>,
    search: AffineSearch,
    searched: &mut [Searched<8>; WIDE],
) {
    let wide = l.wide();
    let squares = if importance.is_some() { sums_of_squares(l, xs) } else { [0.0; WIDE] };
    let search = if importance.is_some() { AffineSearch::weighted(search.nmax) } else { search };
    for first in (0..xs.len()).step_by(2 * B) {
        let mut numbers = [[0; 2]; B];
        let (mut columns, mut weights) = ([[wide.splat(0.0); 32]; B], [[wide.splat(0.0); 32]; B]);
        for b in 0..B {
            // After the last one the last again.
            numbers[b] = [first + 2 * b, first + 2 * b + 1].map(|k| k.min(xs.len() - 1));
            let [k, other] = numbers[b];
            columns[b] = sub_block_columns(l, [&xs[k], &xs[other]]);
            weights[b] = columns[b];
            if let Some(im) = importance {
                let sigma2 = l.join([l.splat(2.0 * squares[k] / 256.0), l.splat(2.0 * squares[other] / 256.0)]);
                weigh(wide, &mut weights[b], &sub_block_columns(l, [im.of(k), im.of(other)]), sigma2);
                continue;
            }
            let mut sum = wide.splat(0.0);
            for v in &columns[b] {
                sum = sum + *v * *v;
            }
            let average = wide.sqrt(sum / wide.splat(32.0));
            for v in &mut weights[b] {
                *v = average + wide.abs(*v);
            }
        }
        let found = lane_search::make_qkx_quants(wide, search, &columns, &weights);
        for (found, [k, other]) in found.iter().zip(numbers) {
            Searched::store(l, found, &mut searched[k..=other]);
        }
    }
}

/// [`recode`] of eight elements.
#[inline(always)]
fn final_code<L: Lanes>(l: L, x: &[f32; LANES], d: L::F32, min: L::F32, nmax: i32) -> L::I32 {
    let code = l.nearest_int((l.load(x) + min) / d);
    l.max_i(l.min_i(code, l.splat_i(nmax)), l.splat_i(0))
}

/// Vector i holds element i of sixteen sub-blocks of `N`, eight in each half.
#[inline(always)]
pub(super) fn sub_block_columns<L: Lanes, const N: usize>(l: L, halves: [&[f32]; 2]) -> [<L::Wide as Vector>::F32; N] {
    let subs = halves.map(|half| half.as_chunks::<N>().0);
    let mut rows = [&subs[0][0]; WIDE];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &subs[i / LANES][i % LANES];
    }
    wide_columns(l, rows)
}

/// The sums of squares of up to sixteen super-blocks, each in the order of its elements.
#[inline(always)]
pub(super) fn sums_of_squares<L: Lanes>(l: L, xs: &[[f32; QK_K]]) -> [f32; WIDE] {
    // After the last one the last again.
    let mut rows = [&xs[0]; WIDE];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &xs[i.min(xs.len() - 1)];
    }
    let mut sum = l.wide().splat(0.0);
    for at in (0..QK_K).step_by(LANES) {
        for v in wide_square(l, rows, at) {
            sum = sum + v * v;
        }
    }
    l.store_wide(sum)
}

/// Turns columns of elements into columns of weights: importance·√(sigma2 + x²).
#[inline(always)]
pub(super) fn weigh<V: Vector, const N: usize>(v: V, x: &mut [V::F32; N], importance: &[V::F32; N], sigma2: V::F32) {
    for (x, q) in x.iter_mut().zip(importance) {
        *x = *q * v.sqrt(sigma2 + *x * *x);
    }
}

/// The kernel of Q2_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q2_K {}

impl Kernel for Q2_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<QK_K>().0;
        let outs = out.as_chunks_mut::<84>().0;
        for (k, (xs, ys)) in blocks.chunks(WIDE).zip(outs.chunks_mut(WIDE)).enumerate() {
            sixteen_q2_k(l, xs, rows.imatrix.map(|im| Columns { imatrix: im, first: WIDE * k }), ys);
        }
    }
}

/// Up to sixteen super-blocks of Q2_K: their sub-blocks one super-block after the other, then the scales of all, a
/// super-block per lane.
#[inline(always)]
fn sixteen_q2_k<L: Lanes>(l: L, xs: &[[f32; QK_K]], importance: Option<Columns<'_>>, ys: &mut [[u8; 84]]) {
    let mut searched = [Searched::<16>::NOTHING; WIDE];
    if <L::Wide as Vector>::HAS_IDLE_UNITS {
        search_q2_k::<L, 2>(l, xs, importance, &mut searched);
    } else {
        search_q2_k::<L, 1>(l, xs, importance, &mut searched);
    }
    let weighted = if importance.is_some() { Some(weighted_together(l, 15, &searched)) } else { None };
    for (k, ((x, y), s)) in xs.iter().zip(ys).zip(&searched).enumerate() {
        if s.unsound {
            q2_k(x, importance.map(|im| im.of(k)), y);
            continue;
        }
        let units = match &weighted {
            Some(rounded) => put_q2_scales(&rounded[k], y),
            None => put_q2_scales(&plain_nibbles(&s.scales, &s.mins), y),
        };
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
                    s.codes(2 * j + i, 3, &x[16 * i..16 * i + 16], &mut codes[16 * i..16 * i + 16]);
                }
            }
        }
        put_crumbs(&codes, &mut y[16..80]);
    }
}

/// The search of up to sixteen super-blocks of sixteen sub-blocks, `B` super-blocks at a time.
#[inline(always)]
fn search_q2_k<L: Lanes, const B: usize>(
    l: L,
    xs: &[[f32; QK_K]],
    importance: Option<Columns<'_>>,
    searched: &mut [Searched<16>; WIDE],
) {
    let wide = l.wide();
    let squares = if importance.is_some() { sums_of_squares(l, xs) } else { [0.0; WIDE] };
    for first in (0..xs.len()).step_by(B) {
        let mut numbers = [0; B];
        let (mut columns, mut weights) = ([[wide.splat(0.0); 16]; B], [[wide.splat(0.0); 16]; B]);
        for b in 0..B {
            // After the last one the last again.
            numbers[b] = (first + b).min(xs.len() - 1);
            let x = &xs[numbers[b]];
            columns[b] = sub_block_columns(l, [&x[..128], &x[128..]]);
            weights[b] = columns[b];
            match importance {
                Some(im) => {
                    let (first, last) = im.of(numbers[b]).split_at(128);
                    let sigma2 = wide.splat(squares[numbers[b]] / 256.0);
                    weigh(wide, &mut weights[b], &sub_block_columns(l, [first, last]), sigma2);
                }
                None => {
                    for v in &mut weights[b] {
                        *v = wide.abs(*v);
                    }
                }
            }
        }
        // Two calls, so that each knows how it judges.
        let found = match importance {
            Some(_) => lane_search::make_qkx_quants(wide, AffineSearch::weighted(3), &columns, &weights),
            None => lane_search::make_qkx_quants(wide, Q2_K_SEARCH, &columns, &weights),
        };
        for (found, k) in found.iter().zip(numbers) {
            Searched::store(l, found, &mut searched[k..=k]);
        }
    }
}
