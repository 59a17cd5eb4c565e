//! MXFP4 and NVFP4: E2M1 numbers under a shared scale.
//!
//! ```text
//! MXFP4, 32 weights in 17 bytes:  scale E8M0 | codes 16 B: weight j in the low nibble of byte j, j + 16 in the high
//! NVFP4, 64 weights in 36 bytes:  4 scales UE4M3 | 4 x codes of 16 weights in 8 B, nibbles as above
//! ```
//!
//! The scale follows from the largest magnitude; a code is the nearest value, the first of two in the table's order
//! (`quantize_row_mxfp4_ref`, `quantize_row_nvfp4_ref`). Table values are twice those of E2M1, so a scale is halved.
//! Importance plays no part.
#![allow(clippy::neg_cmp_op_on_partial_ord)] // NaN goes the other way

use super::Rows;
use super::codebook::{fp4_values, mxfp4_exponent};
use super::lanes::{Kernel, LANES, Lanes};

/// `best_index_mxfp4`: the first code whose value times `scale` is nearest to `v`.
fn nearest_code(values: &[f32; 16], v: f32, scale: f32) -> u8 {
    let (mut best, mut least) = (0, (values[0] * scale - v).abs());
    for (i, value) in values.iter().enumerate().skip(1) {
        let error = (value * scale - v).abs();
        if error < least {
            (best, least) = (i as u8, error);
        }
    }
    best
}

fn values() -> [f32; 16] {
    fp4_values().map(f32::from)
}

fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |amax, v| if amax < v.abs() { v.abs() } else { amax })
}

/// `ggml_e8m0_to_fp32_half`: 2^(e - 128).
fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// `ggml_ue4m3_to_fp32`: half of the number, 0 for NaN's code; the top bit is part of the exponent's field and ignored.
fn ue4m3_half(code: u8) -> f32 {
    if code == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let number =
        if exponent == 0 { mantissa * 2f32.powi(-9) } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    number * 0.5
}

/// `ggml_fp32_to_ue4m3`: halves round up, not to even; 0 for what is not positive, 448 for all that rounds to 256 or more.
fn to_ue4m3(v: f32) -> u8 {
    if !(v > 0.0) {
        return 0;
    }
    let bits = v.min(448.0).to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return ((v * 512.0 + 0.5) as u8).min(7);
    }
    // A mantissa that rounds up to 8 carries into the exponent.
    let code = ((exponent as u32) << 3 | bits >> 20 & 7) + (bits >> 19 & 1);
    if code >= 0x78 { 0x7e } else { code as u8 }
}

fn pack(codes: &mut [u8], x: &[f32], scale: f32, values: &[f32; 16]) {
    let (low, high) = x.split_at(codes.len());
    for ((code, &a), &b) in codes.iter_mut().zip(low).zip(high) {
        *code = nearest_code(values, a, scale) | nearest_code(values, b, scale) << 4;
    }
}

fn unpack(codes: &[u8], scale: f32, values: &[f32; 16], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(codes.len());
    for ((&code, a), b) in codes.iter().zip(low).zip(high) {
        *a = values[code as usize & 15] * scale;
        *b = values[code as usize >> 4] * scale;
    }
}

/// Encodes a row as MXFP4.
pub(super) fn mxfp4(row: &[f32], _weights: Option<&[f32]>, out: &mut [u8]) {
    let values = values();
    for (x, block) in row.chunks_exact(32).zip(out.chunks_exact_mut(17)) {
        block[0] = mxfp4_exponent(largest_magnitude(x));
        let scale = e8m0_half(block[0]);
        pack(&mut block[1..], x, scale, &values);
    }
}

/// Halfway between neighbouring magnitudes, in units of the scale: a weight above is nearer to the larger one.
const HALFWAY: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];

/// Eight weights at a time, compared with what lies halfway between two values. That is exact while the scale, a power
/// of two, and its multiples are normal; other blocks go through the reference.
pub(super) enum MXFP4 {}

impl Kernel for MXFP4 {
    const AVX512: bool = false;

    #[inline(always)]
    fn rows<L: Lanes>(l: L, rows: Rows<'_>, out: &mut [u8]) {
        let blocks = rows.values.as_chunks::<32>().0;
        for (x, block) in blocks.iter().zip(out.as_chunks_mut::<17>().0) {
            let mut largest = l.splat(0.0);
            for v in x.as_chunks::<LANES>().0 {
                largest = l.max(largest, l.abs(l.load(v)));
            }
            let mut amax = 0.0f32;
            for m in l.store(largest) {
                amax = amax.max(m);
            }
            if !(amax > 1e-30 && amax < 1e37) {
                mxfp4(x, None, block);
                continue;
            }
            block[0] = mxfp4_exponent(amax);
            let scale = e8m0_half(block[0]);
            let mut codes = [l.splat_i(0); 4];
            for (code, v) in codes.iter_mut().zip(x.as_chunks::<LANES>().0) {
                let v = l.load(v);
                let magnitude = l.abs(v);
                // Each halfway point passed counts −1.
                let mut passed = l.splat_i(0);
                for halfway in HALFWAY {
                    passed = passed + l.ones(l.lt(l.splat(halfway * scale), magnitude));
                }
                let negative = l.lt(v, l.splat(0.0)) & l.lt(l.splat(HALFWAY[0] * scale), magnitude);
                *code = (l.splat_i(0) - passed) | (l.ones(negative) & l.splat_i(8));
            }
            let (low, high) = (codes[0] | l.shl::<4>(codes[2]), codes[1] | l.shl::<4>(codes[3]));
            block[1..9].copy_from_slice(&l.store_u8(low));
            block[9..].copy_from_slice(&l.store_u8(high));
        }
    }
}

/// Encodes a row as NVFP4.
pub(super) fn nvfp4(row: &[f32], _weights: Option<&[f32]>, out: &mut [u8]) {
    let values = values();
    for (x, block) in row.chunks_exact(64).zip(out.chunks_exact_mut(36)) {
        let (scales, codes) = block.split_at_mut(4);
        for ((x, scale), codes) in x.chunks_exact(16).zip(scales).zip(codes.chunks_exact_mut(8)) {
            *scale = to_ue4m3(largest_magnitude(x) / 6.0);
            pack(codes, x, ue4m3_half(*scale), &values);
        }
    }
}

/// Whether the exponent of an MXFP4 block is a number (`validate_e_e8m0`).
pub(super) fn mxfp4_is_sound(block: &[u8]) -> bool {
    block[0] != 0xff
}

/// Decodes MXFP4 (ggml's `dequantize_row_mxfp4`).
pub(super) fn dequantize_mxfp4(blocks: &[u8], out: &mut [f32]) {
    let values = values();
    for (block, out) in blocks.chunks_exact(17).zip(out.chunks_exact_mut(32)) {
        unpack(&block[1..], e8m0_half(block[0]), &values, out);
    }
}

/// Decodes NVFP4 (ggml's `dequantize_row_nvfp4`).
pub(super) fn dequantize_nvfp4(blocks: &[u8], out: &mut [f32]) {
    let values = values();
    for (block, out) in blocks.chunks_exact(36).zip(out.chunks_exact_mut(64)) {
        let (scales, codes) = block.split_at(4);
        for ((&scale, codes), out) in scales.iter().zip(codes.chunks_exact(8)).zip(out.chunks_exact_mut(16)) {
            unpack(codes, ue4m3_half(scale), &values, out);
        }
    }
}
