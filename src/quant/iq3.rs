//! IQ3_XXS and IQ3_S: four magnitudes at a time are a point of a grid, with a sign each.
//!
//! ```text
//! IQ3_XXS, 256 weights in 98 bytes:   d f16 | 64 points | 8 x u32 (4 x 7 signs, scale in 4 bits)
//! IQ3_S,   256 weights in 110 bytes:  d f16 | 64 points, low 8 bits | high bits, 8 B | 32 x 8 signs | 8 scales, 4 bits
//! ```
//!
//! The search is that of [`grid_search`](super::grid_search) (`quantize_row_iq3_xxs_impl`, `quantize_row_iq3_s_impl`).

use super::codebook::{self, Codebook};
use super::grid_search::{Again, Coded, GridType, Plain, Rule, Start, largest_scale, scale_levels};
use super::iq2::{even_signs, put_point};
use super::plain::{f16_at, put_f16};

/// IQ3_XXS.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ3_XXS {}

impl GridType<4, 32> for IQ3_XXS {
    const BYTES: usize = 98;
    const RULE: Rule = Rule {
        sigma: 2.0,
        plain: Plain::Square,
        even_signs: true,
        least: 1e-8,
        start: Start::Largest,
        top: 15.0,
        half_tries: 15,
        step: 0.2,
        again: Again::OffGrid,
    };

    fn grid() -> &'static Codebook<4> {
        codebook::iq3_xxs()
    }

    fn write(found: &[Coded], block: &mut [u8]) {
        let max_scale = largest_scale(found);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(d * 1.0125, block);
        let levels: [u8; 8] = scale_levels(found, d);
        for (ib, (sub, level)) in found.iter().zip(levels).enumerate() {
            for (byte, point) in block[2 + 8 * ib..].iter_mut().zip(&sub.points) {
                *byte = *point as u8;
            }
            let signs = sub.signs.iter().rev().fold(0, |all, &s| all << 7 | u32::from(s));
            block[66 + 4 * ib..][..4].copy_from_slice(&(signs | u32::from(level) << 28).to_le_bytes());
        }
    }
}

/// IQ3_S.
///
/// As in ggml, a sub-block of zeros takes no place among the points' low bits and the signs: what follows moves up,
/// away from its scale and its high bits. The file must be the same, so this is repeated here.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ3_S {}

impl GridType<4, 32> for IQ3_S {
    const BYTES: usize = 110;
    const RULE: Rule = Rule {
        sigma: 2.0,
        plain: Plain::Square,
        even_signs: false,
        // The smallest number there is: ggml asks for zero itself.
        least: f32::from_bits(1),
        start: Start::Largest,
        top: 15.0,
        half_tries: 9,
        step: 0.2,
        again: Again::AllIfOffGrid,
    };

    fn grid() -> &'static Codebook<4> {
        codebook::iq3_s()
    }

    fn write(found: &[Coded], block: &mut [u8]) {
        for (place, (ib, sub)) in found.iter().enumerate().filter(|(_, sub)| sub.present).enumerate() {
            for (k, point) in sub.points.iter().enumerate() {
                block[2 + 8 * place + k] = *point as u8;
                block[66 + ib] |= ((point >> 8) as u8) << k;
            }
            block[74 + 4 * place..][..4].copy_from_slice(&sub.signs);
        }
        let max_scale = largest_scale(found);
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(d * 1.033, block);
        let levels: [u8; 8] = scale_levels(found, d);
        for (byte, pair) in block[106..].iter_mut().zip(levels.chunks_exact(2)) {
            *byte = pair[0] | pair[1] << 4;
        }
    }
}

/// Decodes IQ3_XXS (ggml's `dequantize_row_iq3_xxs`).
pub(super) fn dequantize_iq3_xxs(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq3_xxs();
    for (block, out) in blocks.chunks_exact(98).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (ib, out) in out.chunks_exact_mut(32).enumerate() {
            let at = 66 + 4 * ib;
            let signs = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
            let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
            for (k, out) in out.chunks_exact_mut(4).enumerate() {
                let signs = even_signs((signs >> (7 * (k / 2))) as u8) >> (4 * (k % 2));
                put_point(out, grid, block[2 + 8 * ib + k] as usize, scale, signs);
            }
        }
    }
}

/// Decodes IQ3_S (ggml's `dequantize_row_iq3_s`).
pub(super) fn dequantize_iq3_s(blocks: &[u8], out: &mut [f32]) {
    let grid = codebook::iq3_s();
    for (block, out) in blocks.chunks_exact(110).zip(out.chunks_exact_mut(256)) {
        let d = f16_at(block);
        for (ib, out) in out.chunks_exact_mut(32).enumerate() {
            let level = block[106 + ib / 2] >> (4 * (ib % 2)) & 15;
            let scale = d * f32::from(1 + 2 * level);
            for (k, out) in out.chunks_exact_mut(4).enumerate() {
                let point = usize::from(block[2 + 8 * ib + k]) | usize::from(block[66 + ib] >> k & 1) << 8;
                put_point(out, grid, point, scale, block[74 + 4 * ib + k / 2] >> (4 * (k % 2)));
            }
        }
    }
}
