//! IQ3_XXS and IQ3_S: four magnitudes at a time are a point of a grid, with a sign each.
//!
//! ```text
//! IQ3_XXS, 256 weights in 98 bytes:   d f16 | 64 points | 8 x u32 (4 x 7 signs, scale in 4 bits)
//! IQ3_S,   256 weights in 110 bytes:  d f16 | 64 points, low 8 bits | high bits, 8 B | 32 x 8 signs | 8 scales, 4 bits
//! ```
//!
//! The search is that of [`grid_search`](super::grid_search) (`quantize_row_iq3_xxs_impl`, `quantize_row_iq3_s_impl`).
#![allow(clippy::needless_range_loop)] // one index into several arrays

use super::codebook::{self, Codebook};
use super::grid_search::{Again, GridType, Rule, Search, SubBlock, importance, scale_levels};
use super::iq2::{even_signs, put_point};
use super::plain::{f16_at, put_f16};
use super::search::{c_max, sum_of_squares};

/// IQ3_XXS.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ3_XXS {}

impl GridType<4> for IQ3_XXS {
    const BYTES: usize = 98;
    const RULE: Rule = Rule { top: 15.0, half_tries: 15, step: 0.2, again: Again::OffGrid };

    fn grid() -> &'static Codebook<4> {
        codebook::iq3_xxs()
    }

    #[inline(always)]
    fn encode<S: Search>(search: &mut S, x: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
        let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
        let mut scales = [0.0; 8];
        block.fill(0);
        for (ib, x) in x.chunks_exact(32).enumerate() {
            let weights = weights.map(|w| &w[32 * ib..][..32]);
            let mut sub = SubBlock::<32>::new(x, importance(x, weights, sigma2, |v| v * v), true);
            let max = sub.max();
            if max < 1e-8 {
                continue;
            }
            let (scale, points) = search.search(&sub, max, max / 15.0);
            scales[ib] = sub.settle(scale, 127);
            for (byte, point) in block[2 + 8 * ib..].iter_mut().zip(&points) {
                *byte = *point as u8;
            }
            let signs = sub.signs.iter().rev().fold(0, |all, &s| all << 7 | u32::from(s));
            block[66 + 4 * ib..][..4].copy_from_slice(&signs.to_le_bytes());
        }
        let max_scale = scales.iter().fold(0.0, |m, &s| c_max(m, s));
        if max_scale == 0.0 {
            block[2..].fill(0);
            return;
        }
        let d = max_scale / 31.0;
        put_f16(d * 1.0125, block);
        for (ib, l) in scale_levels(&scales, d).iter().enumerate() {
            block[66 + 4 * ib + 3] |= l << 4;
        }
    }
}

/// IQ3_S.
///
/// As in ggml, a sub-block of zeros takes no place among the points' low bits and the signs: what follows moves up,
/// away from its scale and its high bits. The file must be the same, so this is repeated here.
#[allow(non_camel_case_types)] // ggml's name
pub(super) enum IQ3_S {}

impl GridType<4> for IQ3_S {
    const BYTES: usize = 110;
    const RULE: Rule = Rule { top: 15.0, half_tries: 9, step: 0.2, again: Again::AllIfOffGrid };

    fn grid() -> &'static Codebook<4> {
        codebook::iq3_s()
    }

    #[inline(always)]
    fn encode<S: Search>(search: &mut S, x: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
        let sigma2 = 2.0 * sum_of_squares(x) / 256.0;
        let mut scales = [0.0; 8];
        block.fill(0);
        let mut place = 0;
        for (ib, x) in x.chunks_exact(32).enumerate() {
            let weights = weights.map(|w| &w[32 * ib..][..32]);
            let mut sub = SubBlock::<32>::new(x, importance(x, weights, sigma2, |v| v * v), false);
            let max = sub.max();
            if max == 0.0 {
                continue;
            }
            let (scale, points) = search.search(&sub, max, max / 15.0);
            scales[ib] = sub.settle(scale, 255);
            for (k, point) in points.iter().enumerate() {
                block[2 + 8 * place + k] = *point as u8;
                block[66 + ib] |= ((point >> 8) as u8) << k;
            }
            block[74 + 4 * place..][..4].copy_from_slice(&sub.signs);
            place += 1;
        }
        let max_scale = scales.iter().fold(0.0, |m, &s| c_max(m, s));
        if max_scale == 0.0 {
            return;
        }
        let d = max_scale / 31.0;
        put_f16(d * 1.033, block);
        for (byte, pair) in block[106..].iter_mut().zip(scale_levels(&scales, d).chunks_exact(2)) {
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
