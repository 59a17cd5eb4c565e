//! MXFP4 as in gpt-oss: experts in E2M1 with a shared exponent per 32 elements.
//!
//! `P_blocks` is u8 `[experts, rows, columns / 32, 16]`, `P_scales` u8 `[experts, rows, columns / 32]`. Byte `b` of a
//! block holds elements `2b` (low nibble) and `2b + 1`; `w = E2M1[nibble] * 2^(scale - 127)`, exact in bf16 and equal
//! to transformers' `_convert_moe_packed_tensors`. A 16-bit copy of the model stores the transpose, so that the
//! tensor appears as `P` of `[experts, columns, rows]`.
//!
//! ggml's MXFP4 block is the scale byte, then 16 bytes of which byte `j` holds elements `j` and `j + 16`: the rows
//! can be repacked without loss.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::fields::{decode_pairs, e2m1_pairs};
use super::{Shelf, SourceError};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;
use crate::source::stored::Stored;

/// Elements of a block.
const BLOCK: u64 = 32;

/// Unpacks every `_blocks`.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for name in shelf.bases("_blocks") {
        let place = format!("{name}_blocks");
        let blocks = shelf.need(&place, &name)?;
        let scales = shelf.need(&format!("{name}_scales"), &name)?;
        shelf.check_dtype(&name, &blocks, &[Dtype::U8])?;
        shelf.check_dtype(&name, &scales, &[Dtype::U8, Dtype::F8_E8M0])?;
        let [lead @ .., rows, groups, 16] = blocks.shape().dims() else {
            return Err(shelf.wrong(&name, format!("blocks of shape {} do not end in 16 bytes", blocks.shape())));
        };
        let dims = |last: u64| lead.iter().copied().chain([*rows, last]).collect::<Vec<u64>>();
        shelf.check_shape(&name, &scales, &dims(*groups))?;
        let shape = shelf.shape(&name, dims(groups.saturating_mul(BLOCK)))?;
        let (Some(bytes), Some(exponents)) = (blocks.as_bytes(), scales.as_bytes()) else {
            return Err(shelf.wrong(&name, "is a strided view"));
        };
        let source = Recipe::source(Arc::new(Mxfp4 { shape, blocks: bytes, scales: exponents }));
        let recipe = source.transposed().map_err(|e| shelf.wrong(&name, e.to_string()))?;
        shelf.put_recipe(&place, &name, recipe)?;
    }
    Ok(())
}

struct Mxfp4 {
    shape: Shape,
    blocks: Stored,
    scales: Stored,
}

impl Mxfp4 {
    fn blocks(&self, rows: &Range<u64>) -> Range<u64> {
        let per = self.shape.row_len() / BLOCK;
        rows.start * per..rows.end * per
    }
}

impl RowSource for Mxfp4 {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::BF16
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let blocks = self.blocks(&rows);
        let mut scales = scratch.take_bytes((blocks.end - blocks.start) as usize);
        let mut bytes = scratch.take_bytes(scales.len() * 16);
        self.scales.read_elements(blocks.clone(), &mut scales)?;
        self.blocks.read_elements(blocks.start * 16..blocks.end * 16, &mut bytes)?;
        decode_pairs(e2m1_pairs(), &bytes, out);
        for (part, &b) in out.chunks_exact_mut(BLOCK as usize).zip(&scales) {
            let scale = element::e8m0(b);
            part.iter_mut().for_each(|x| *x *= scale);
        }
        scratch.give_bytes(scales);
        scratch.give_bytes(bytes);
        Ok(())
    }

    fn native(&self) -> Option<GgmlType> {
        Some(GgmlType::MXFP4)
    }

    fn read_native_rows(&self, rows: Range<u64>, out: &mut [u8], scratch: &mut Scratch) -> Result<(), ReadError> {
        let blocks = self.blocks(&rows);
        let mut scales = scratch.take_bytes((blocks.end - blocks.start) as usize);
        let mut bytes = scratch.take_bytes(scales.len() * 16);
        self.scales.read_elements(blocks.clone(), &mut scales)?;
        self.blocks.read_elements(blocks.start * 16..blocks.end * 16, &mut bytes)?;
        for ((block, codes), &scale) in out.chunks_exact_mut(17).zip(bytes.chunks_exact(16)).zip(&scales) {
            block[0] = scale;
            let nibble = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
            for (j, b) in block[1..].iter_mut().enumerate() {
                *b = nibble(j) | nibble(j + 16) << 4;
            }
        }
        scratch.give_bytes(scales);
        scratch.give_bytes(bytes);
        Ok(())
    }

    fn describe(&self) -> String {
        self.blocks.describe()
    }
}
