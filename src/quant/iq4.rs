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
#![allow(clippy::neg_cmp_op_on_partial_ord)] // NaN goes the other way

use super::Rows;
use super::codebook::iq4_values;
use super::lanes::{Kernel, LANES, Lanes, columns};
use super::plain::{f16_at, put_f16};
use super::search::{GROUP_MAX_EPS, nearest_int, signed_max, sum_of_squares};
use std::sync::OnceLock;

const TRIES: i32 = 7;

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
    let (max, amax) = signed_max(x);
    if amax < GROUP_MAX_EPS {
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
pub(super) fn iq4_nl(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let values = values();
    for (i, (x, block)) in row.chunks_exact(32).zip(out.chunks_exact_mut(18)).enumerate() {
        let sigma2 = sum_of_squares(x) * (2.0 / 32.0);
        let importance = importance(x, weights.map(|w| &w[32 * i..][..32]), sigma2);
        let d = search_scale(x, &importance, &values).unwrap_or(0.0);
        put_f16(d, block);
        pack(&mut block[2..], x, inverse_or_zero(d), &values);
    }
}

/// Encodes a row as IQ4_XS (ggml's `quantize_iq4_xs`).
pub(super) fn iq4_xs(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let values = values();
    for (i, (x, block)) in row.chunks_exact(256).zip(out.chunks_exact_mut(136)).enumerate() {
        let sigma2 = sum_of_squares(x) * (2.0 / 256.0);
        let scales: [f32; 8] = std::array::from_fn(|ib| {
            let xb = &x[32 * ib..][..32];
            let importance = importance(xb, weights.map(|w| &w[256 * i + 32 * ib..][..32]), sigma2);
            search_scale(xb, &importance, &values).unwrap_or(0.0)
        });
        let inverse = put_scales(block, &scales);
        for (ib, codes) in block[8..].chunks_exact_mut(16).enumerate() {
            pack(codes, &x[32 * ib..][..32], inverse[ib], &values);
        }
    }
}

/// Writes the scales of an IQ4_XS block and returns what to multiply each sub-block with to get its codes.
fn put_scales(block: &mut [u8], scales: &[f32; 8]) -> [f32; 8] {
    let max_scale = scales.iter().fold(0.0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    let d = -max_scale / 32.0;
    let id = inverse_or_zero(d);
    let head = &mut block[..8];
    head.fill(0);
    put_f16(d, head);
    let mut inverse = [0.0; 8];
    for (ib, inverse) in inverse.iter_mut().enumerate() {
        let l = nearest_int(id * scales[ib]).clamp(-32, 31);
        *inverse = inverse_or_zero(d * l as f32);
        let l = (l + 32) as u8;
        head[2 + ib / 4] |= (l >> 4) << (2 * (ib % 4));
        head[4 + ib / 2] |= (l & 15) << (4 * (ib % 2));
    }
    inverse
}

/// Where each code begins: the least number whose nearest code is `k`, found by bisection, so that comparing with it
/// gives exactly what [`nearest_code`] gives.
fn first_of_each_code() -> &'static [f32; 16] {
    static FIRST: OnceLock<[f32; 16]> = OnceLock::new();
    FIRST.get_or_init(|| {
        let values = values();
        // Floats in ascending order of `i32`s.
        let float = |n: i32| f32::from_bits(if n < 0 { !n as u32 | 1 << 31 } else { n as u32 });
        std::array::from_fn(|code| {
            let (mut below, mut first) = (i32::MIN + (1 << 23), i32::MAX - (1 << 23));
            while i64::from(first) - i64::from(below) > 1 {
                let middle = ((i64::from(below) + i64::from(first)) >> 1) as i32;
                *if nearest_code(&values, float(middle)) >= code { &mut first } else { &mut below } = middle;
            }
            float(first)
        })
    })
}

/// Nearest codes by a search over thresholds, four levels deep, as lookups.
#[derive(Clone, Copy)]
struct Codes<L: Lanes> {
    /// Codes 4, 8 and 12 begin here.
    quarters: [L::F32; 3],
    /// Where code 4 k + 2 begins, at entry (k - 3) & 7.
    eighths: L::F32,
    /// Where code 2 k + 1 begins, at entry (k - 7) & 7.
    odd_begins: L::F32,
    /// The values of codes 2 k and 2 k + 1, at the same entry.
    even: L::F32,
    odd: L::F32,
}

impl<L: Lanes> Codes<L> {
    #[inline(always)]
    fn new(l: L) -> Self {
        let (first, values) = (first_of_each_code(), values());
        let (mut eighths, mut odd_begins, mut even, mut odd) = ([0.0; 8], [0.0; 8], [0.0; 8], [0.0; 8]);
        for k in 0..8 {
            eighths[(k + 5) & 7] = first[(4 * k + 2) & 15];
            odd_begins[(k + 1) & 7] = first[2 * k + 1];
            even[(k + 1) & 7] = values[2 * k];
            odd[(k + 1) & 7] = values[2 * k + 1];
        }
        Codes {
            quarters: [l.splat(first[4]), l.splat(first[8]), l.splat(first[12])],
            eighths: l.load(&eighths),
            odd_begins: l.load(&odd_begins),
            even: l.load(&even),
            odd: l.load(&odd),
        }
    }

    /// Half the code of `v` minus 7, and whether the code is even. NaN passes every threshold.
    #[inline(always)]
    fn find(&self, l: L, v: L::F32) -> (L::I32, L::Mask) {
        let [a, b, c] = self.quarters;
        let quarter = l.ones(l.lt(v, a)) + l.ones(l.lt(v, b)) + l.ones(l.lt(v, c));
        let half = quarter + quarter + l.ones(l.lt(v, l.lookup(self.eighths, quarter)));
        (half, l.lt(v, l.lookup(self.odd_begins, half)))
    }

    #[inline(always)]
    fn value(&self, l: L, v: L::F32) -> L::F32 {
        let (half, is_even) = self.find(l, v);
        l.select(is_even, l.lookup(self.even, half), l.lookup(self.odd, half))
    }

    #[inline(always)]
    fn code(&self, l: L, v: L::F32) -> L::I32 {
        let (half, is_even) = self.find(l, v);
        half + half + l.ones(is_even) + l.splat_i(15)
    }

    /// `sumqx` and `sumq2` of eight sub-blocks.
    #[inline(always)]
    fn sums(&self, l: L, x: &[L::F32; 32], importance: &[L::F32; 32], inverse: L::F32) -> (L::F32, L::F32) {
        let (mut sumqx, mut sumq2) = (l.splat(0.0), l.splat(0.0));
        for (&v, &w) in x.iter().zip(importance) {
            let q = self.value(l, inverse * v);
            let wq = w * q;
            sumqx = sumqx + wq * v;
            sumq2 = sumq2 + wq * q;
        }
        (sumqx, sumq2)
    }

    /// [`search_scale`] of eight sub-blocks; 0 for those that count as zero.
    #[inline(always)]
    fn search_scale(&self, l: L, x: &[L::F32; 32], importance: &[L::F32; 32]) -> L::F32 {
        let zero = l.splat(0.0);
        let (mut amax, mut max) = (zero, zero);
        for &v in x {
            let larger = l.lt(amax, l.abs(v));
            amax = l.select(larger, l.abs(v), amax);
            max = l.select(larger, v, max);
        }
        let lowest = values()[0];
        let plain = l.splat(1.0) / (max * l.splat(-1.0) / l.splat(lowest));
        let (sumqx, sumq2) = self.sums(l, x, importance, plain);
        let mut d = l.select(l.lt(zero, sumq2), sumqx / sumq2, zero);
        let mut best = d * sumqx;
        for itry in -TRIES..=TRIES {
            let (sumqx, sumq2) = self.sums(l, x, importance, l.splat(itry as f32 + lowest) / max);
            let better = l.lt(zero, sumq2) & l.lt(best * sumq2, sumqx * sumqx);
            d = l.select(better, sumqx / sumq2, d);
            best = l.select(better, d * sumqx, best);
        }
        l.select(l.lt(amax, l.splat(GROUP_MAX_EPS)), zero, d)
    }

    /// The code bytes of eight sub-blocks under these inverse scales.
    #[inline(always)]
    fn pack(&self, l: L, x: &[L::F32; 32], inverse: L::F32) -> [[u8; 16]; LANES] {
        let mut bytes = [[0; 16]; LANES];
        for word in 0..4 {
            let mut codes = l.splat_i(0);
            for j in (4 * word..4 * word + 4).rev() {
                let both = self.code(l, inverse * x[j]) | l.shl::<4>(self.code(l, inverse * x[j + 16]));
                codes = l.shl::<8>(codes) | both;
            }
            for (bytes, codes) in bytes.iter_mut().zip(l.store_i(codes)) {
                bytes[4 * word..][..4].copy_from_slice(&codes.to_le_bytes());
            }
        }
        bytes
    }
}

/// Importance of eight sub-blocks.
#[inline(always)]
fn importances<L: Lanes>(l: L, x: &[L::F32; 32], weights: Option<&[L::F32; 32]>, sigma2: L::F32) -> [L::F32; 32] {
    let mut importance = [l.splat(0.0); 32];
    for (i, (to, &v)) in importance.iter_mut().zip(x).enumerate() {
        *to = match weights {
            Some(w) => w[i] * l.sqrt(sigma2 + v * v),
            None => v * v,
        };
    }
    importance
}

/// Eight blocks at a time, one in each lane.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ4_NL {}

impl Kernel for IQ4_NL {
    const AVX512: bool = false;

    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let codes = Codes::new(l);
        let zero = l.splat(0.0);
        let (blocks, rest) = rows.values.as_chunks::<32>().0.as_chunks::<LANES>();
        let (outs, rest_out) = out.as_chunks_mut::<18>().0.as_chunks_mut::<LANES>();
        for (i, (blocks, outs)) in blocks.iter().zip(outs).enumerate() {
            let x = columns(l, blocks);
            let importance = match rows.imatrix {
                Some(weights) => {
                    let mut sum = zero;
                    for &v in &x {
                        sum = sum + v * v;
                    }
                    let mut of_blocks = [[0.0; 32]; LANES];
                    for (b, of_block) in of_blocks.iter_mut().enumerate() {
                        of_block.copy_from_slice(&weights[(8 * i + b) * 32 % rows.row_len..][..32]);
                    }
                    importances(l, &x, Some(&columns(l, &of_blocks)), sum * l.splat(2.0 / 32.0))
                }
                None => importances(l, &x, None, zero),
            };
            let d = codes.search_scale(l, &x, &importance);
            let inverse = l.select(l.eq(d, zero), zero, l.splat(1.0) / d);
            let bytes = codes.pack(l, &x, inverse);
            for ((out, bytes), d) in outs.iter_mut().zip(&bytes).zip(l.store(d)) {
                put_f16(d, out);
                out[2..].copy_from_slice(bytes);
            }
        }
        // Fewer than eight blocks are left: each knows its column.
        let done = rows.values.len() - rest.as_flattened().len();
        for (b, (x, out)) in rest.iter().zip(rest_out).enumerate() {
            iq4_nl(x, rows.imatrix.map(|w| &w[(done + 32 * b) % rows.row_len..][..32]), out);
        }
    }
}

/// The eight sub-blocks of a block at a time, one in each lane.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ4_XS {}

impl Kernel for IQ4_XS {
    const AVX512: bool = false;

    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let codes = Codes::new(l);
        for (i, (values, out)) in rows.values.as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<136>().0).enumerate()
        {
            let x = columns(l, sub_blocks(values));
            let importance = match rows.imatrix {
                Some(weights) => {
                    let sigma2 = sum_of_squares(values) * (2.0 / 256.0);
                    let weights = weights[256 * i % rows.row_len..].first_chunk().expect("a weight per column");
                    importances(l, &x, Some(&columns(l, sub_blocks(weights))), l.splat(sigma2))
                }
                None => importances(l, &x, None, l.splat(0.0)),
            };
            let scales = l.store(codes.search_scale(l, &x, &importance));
            let inverse = put_scales(out, &scales);
            out[8..].copy_from_slice(codes.pack(l, &x, l.load(&inverse)).as_flattened());
        }
    }
}

/// The sub-blocks of a block of 256.
#[inline(always)]
fn sub_blocks(block: &[f32; 256]) -> &[[f32; 32]; LANES] {
    block.as_chunks().0.first_chunk().expect("eight times 32 is 256")
}

fn unpack(codes: &[u8], scale: f32, values: &[f32; 16], out: &mut [f32]) {
    for (j, &byte) in codes.iter().enumerate() {
        out[j] = scale * values[byte as usize & 15];
        out[j + 16] = scale * values[byte as usize >> 4];
    }
}

/// Decodes IQ4_NL (ggml's `dequantize_row_iq4_nl`).
pub(super) fn dequantize_iq4_nl(blocks: &[u8], out: &mut [f32]) {
    let values = values();
    for (block, out) in blocks.chunks_exact(18).zip(out.chunks_exact_mut(32)) {
        unpack(&block[2..], f16_at(block), &values, out);
    }
}

/// Decodes IQ4_XS (ggml's `dequantize_row_iq4_xs`).
pub(super) fn dequantize_iq4_xs(blocks: &[u8], out: &mut [f32]) {
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
