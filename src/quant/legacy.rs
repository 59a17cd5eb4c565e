//! Blocks with one scale, or a scale and a minimum: the types before the K-quants.
//!
//! ```text
//! Q4_0  d: f16 | 16 bytes, byte j = code j | code j+16 << 4            x = d·(code − 8)
//! Q8_0  d: f16 | 32 × i8                                               x = d·code
//! ```
//! Without an importance matrix the scale follows from the extreme elements; with one it is searched.

use super::Rows;
use super::lanes::{Kernel, LANES, Lanes};
use super::plain::{f16_at, put_f16};
use super::search::{make_qx_quants, signed_max, sum_of_squares, truncate_int};

/// Elements of a block.
const QK: usize = 32;

/// `quantize_row_q4_0_ref` and `quantize_row_q4_0_impl`.
pub(super) fn q4_0(row: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let mut codes = [0u8; QK];
    let sigma2 = if imatrix.is_some() { sum_of_squares(row) / row.len() as f32 } else { 0.0 };
    for (i, (x, y)) in row.as_chunks::<QK>().0.iter().zip(out.as_chunks_mut::<18>().0).enumerate() {
        match imatrix {
            None => {
                let d = signed_max(x).0 / -8.0;
                let id = if d != 0.0 { 1.0 / d } else { 0.0 };
                put_f16(d, y);
                for (c, v) in codes.iter_mut().zip(x) {
                    *c = low_byte(v * id + 8.5, 15);
                }
            }
            Some(im) => {
                let weights = row_weights(x, &im[i * QK..], sigma2);
                let d = make_qx_quants(8, x, &mut codes, Some(&weights));
                put_f16(d, y);
            }
        }
        for j in 0..16 {
            y[2 + j] = codes[j] | codes[j + 16] << 4;
        }
    }
}

/// `(uint8_t) MIN(top, (int8_t) v)`.
#[inline(always)]
fn low_byte(v: f32, top: i8) -> u8 {
    (truncate_int(v) as i8).min(top) as u8
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
