//! IQ2_XXS, IQ2_XS and IQ2_S: eight magnitudes at a time are a point of a grid, with a sign each.
//!
//! ```text
//! IQ2_XXS, 256 weights in 66 bytes:  d f16 | 8 x (4 points, 8 bits each | 4 x 7 signs and a scale, 4 bits)
//! IQ2_XS,  256 weights in 74 bytes:  d f16 | 32 x u16 (point, 9 bits | 7 signs) | 16 scales, 4 bits each
//! IQ2_S,   256 weights in 82 bytes:  d f16 | 32 points, low 8 bits | 32 x 8 signs | high 2 bits | 16 scales, 4 bits
//! ```
//!
//! Seven signs stand for eight: their number is made even. The search is that of [`grid_search`](super::grid_search)
//! (`quantize_row_iq2_xxs_impl`, `quantize_row_iq2_xs_impl`, `quantize_row_iq2_s_impl`).

use super::codebook::{self, Codebook};
use super::grid_search::{Again, Coded, GridType, Plain, Rule, Start, largest_scale, scale_levels};
use super::plain::{f16_at, put_f16};

/// IQ2_XXS. ggml demands an imatrix here; without one, every weight counts as 1.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ2_XXS {}

impl GridType<8, 32> for IQ2_XXS {
    const BYTES: usize = 66;
    const RULE: Rule = Rule {
        sigma: 1.0,
        plain: Plain::Ones,
        even_signs: true,
        least: 1e-15,
        start: Start::Fit,
        top: 5.0,
        half_tries: 6,
        step: 0.1,
        again: Again::All,
    };

    fn grid() -> &'static Codebook<8> {
        codebook::iq2_xxs()
    }

    fn write(found: &[Coded], block: &mut [u8]) {
        let max_scale = largest_scale(found);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(d, block);
        let levels: [u8; 8] = scale_levels(found, d);
        for ((sub, q), level) in found.iter().zip(block[2..].chunks_exact_mut(8)).zip(levels) {
            let signs = sub.signs.iter().rev().fold(0, |all, &s| all << 7 | u32::from(s));
            for (byte, point) in q.iter_mut().zip(&sub.points[..4]) {
                *byte = *point as u8;
            }
            q[4..].copy_from_slice(&(signs | u32::from(level) << 28).to_le_bytes());
        }
    }
}

/// IQ2_XS. ggml demands an imatrix here; without one, every weight counts as 1.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ2_XS {}

impl GridType<8, 16> for IQ2_XS {
    const BYTES: usize = 74;
    const RULE: Rule = Rule {
        sigma: 1.0,
        plain: Plain::Ones,
        even_signs: true,
        least: 1e-15,
        start: Start::Largest,
        top: 5.0,
        half_tries: 9,
        step: 0.1,
        again: Again::OffGrid,
    };

    fn grid() -> &'static Codebook<8> {
        codebook::iq2_xs()
    }

    fn write(found: &[Coded], block: &mut [u8]) {
        let max_scale = largest_scale(found);
        if max_scale == 0.0 {
            return;
        }
        for (sub, q) in found.iter().zip(block[2..66].chunks_exact_mut(4)) {
            for (k, q) in q.chunks_exact_mut(2).enumerate() {
                q.copy_from_slice(&(sub.points[k] | u16::from(sub.signs[k]) << 9).to_le_bytes());
            }
        }
        let d = max_scale / 31.0;
        put_f16(d, block);
        pack_nibbles(&scale_levels(found, d), &mut block[66..]);
    }
}

fn pack_nibbles(levels: &[u8; 16], bytes: &mut [u8]) {
    for (byte, pair) in bytes.iter_mut().zip(levels.chunks_exact(2)) {
        *byte = pair[0] | pair[1] << 4;
    }
}

/// IQ2_S.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ2_S {}

impl GridType<8, 16> for IQ2_S {
    const BYTES: usize = 82;
    const RULE: Rule = Rule {
        sigma: 2.0,
        plain: Plain::QuarterAndSquare,
        even_signs: false,
        least: 1e-8,
        start: Start::Largest,
        top: 5.0,
        half_tries: 9,
        step: 0.1,
        again: Again::OffGrid,
    };

    fn grid() -> &'static Codebook<8> {
        codebook::iq2_s()
    }

    fn write(found: &[Coded], block: &mut [u8]) {
        for (ib, sub) in found.iter().enumerate() {
            for k in 0..2 {
                let at = 2 * ib + k;
                block[2 + at] = sub.points[k] as u8;
                block[34 + at] = sub.signs[k];
                block[66 + at / 4] |= ((sub.points[k] >> 8) as u8) << (2 * (at % 4));
            }
        }
        let max_scale = largest_scale(found);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(d * 0.9875, block);
        pack_nibbles(&scale_levels(found, d), &mut block[74..]);
    }
}

/// Seven signs with the eighth that makes their number even (`ksigns_iq2xs`).
pub(super) fn even_signs(signs: u8) -> u8 {
    signs & 127 | ((signs & 127).count_ones() as u8 & 1) << 7
}

/// Writes `scale` times the values of a point, with signs.
pub(super) fn put_point<const D: usize>(out: &mut [f32], grid: &Codebook<D>, point: usize, scale: f32, signs: u8) {
    for (i, (out, value)) in out.iter_mut().zip(grid.values(point)).enumerate() {
        *out = scale * value * if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
    }
}

/// Decodes IQ2_XXS (ggml's `dequantize_row_iq2_xxs`).
pub(super) fn dequantize_iq2_xxs(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq2_xxs();
    for (block, out) in blocks.chunks_exact(66).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (q, out) in block[2..].chunks_exact(8).zip(out.chunks_exact_mut(32)) {
            let signs = u32::from_le_bytes([q[4], q[5], q[6], q[7]]);
            let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
            for (k, out) in out.chunks_exact_mut(8).enumerate() {
                put_point(out, grid, q[k] as usize, scale, even_signs((signs >> (7 * k)) as u8));
            }
        }
    }
}

/// Decodes IQ2_XS (ggml's `dequantize_row_iq2_xs`).
pub(super) fn dequantize_iq2_xs(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq2_xs();
    for (block, out) in blocks.chunks_exact(74).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (k, (q, out)) in block[2..66].chunks_exact(2).zip(out.chunks_exact_mut(8)).enumerate() {
            let q = u16::from_le_bytes([q[0], q[1]]);
            let level = block[66 + k / 4] >> (4 * (k / 2 % 2)) & 15;
            let scale = d * (0.5 + f32::from(level)) * 0.25;
            put_point(out, grid, q as usize & 511, scale, even_signs((q >> 9) as u8));
        }
    }
}

/// Decodes IQ2_S (ggml's `dequantize_row_iq2_s`).
pub(super) fn dequantize_iq2_s(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq2_s();
    for (block, out) in blocks.chunks_exact(82).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let level = block[74 + k / 4] >> (4 * (k / 2 % 2)) & 15;
            let scale = d * (0.5 + f32::from(level)) * 0.25;
            let high = usize::from(block[66 + k / 4] >> (2 * (k % 4)) & 3);
            put_point(out, grid, block[2 + k] as usize | high << 8, scale, block[34 + k]);
        }
    }
}
