//! Q2_K, Q4_K and Q5_K over lanes: the reference in [`k_affine`](super::k_affine), sixteen super-blocks together.
//!
//! The searches have a sub-block per lane, the second search of the scales a super-block per lane. What both share with
//! the signed types of [`k_symmetric`](super::k_symmetric), columns and their weights, is here too.

use super::Rows;
use super::k_affine::{
    Q2_K_SEARCH, Q4_K_SEARCH, Q5_K_SEARCH, QK_K, Rounded, plain_nibbles, plain_scales, put_crumbs, put_head,
    put_q2_scales, put_q4_codes, put_q5_codes, q2_k, q4_k, q5_k,
};
use super::lane_search::{self, Affine};
use super::lanes::{Kernel, LANES, Lanes, Vector, WIDE, wide_columns, wide_square};
use super::search::{AffineSearch, nearest_int};

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
        all_super_blocks::<L, 144>(l, rows, Q4_K_SEARCH, out, q4_k, put_q4_codes);
    }
}

/// The kernel of Q5_K.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum Q5_K {}

impl Kernel for Q5_K {
    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        all_super_blocks::<L, 176>(l, rows, Q5_K_SEARCH, out, q5_k, put_q5_codes);
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

/// Rows of a type with eight sub-blocks, in blocks of `BYTES`.
#[inline(always)]
fn all_super_blocks<L: Lanes, const BYTES: usize>(
    l: L,
    rows: Rows<'_>,
    search: AffineSearch,
    out: &mut [u8],
    reference: impl Fn(&[f32], Option<&[f32]>, &mut [u8]) + Copy,
    put_codes: impl Fn(&[u8; QK_K], &mut [u8; BYTES]) + Copy,
) {
    let blocks = rows.values.as_chunks::<QK_K>().0;
    let outs = out.as_chunks_mut::<BYTES>().0;
    for (k, (xs, ys)) in blocks.chunks(WIDE).zip(outs.chunks_mut(WIDE)).enumerate() {
        let importance = rows.imatrix.map(|im| Columns { imatrix: im, first: WIDE * k });
        sixteen_super_blocks(l, xs, importance, search, ys, reference, put_codes);
    }
}

/// Up to sixteen super-blocks of eight sub-blocks: two at a time, a sub-block per lane, then the scales of all, a
/// super-block per lane.
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

/// The code of eight elements from the scale and minimum that a reader will see.
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
