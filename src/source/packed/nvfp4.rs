//! NVFP4: E2M1 pairs, an E4M3 scale per 16 elements, and one f32 factor for the matrix.
//!
//! Decoded as their libraries do it, `w = round(E2M1[q] * f32(scale * factor))`. llama.cpp's converter does not
//! decode them (`ModelBase._nvfp4_pack`): it moves the bits into ggml's NVFP4 blocks, which have no factor, and puts
//! that beside them. A block of 64 is the scales of its four groups without their signs, then 8 bytes per group of
//! which byte `j` holds elements `j` and `j + 8`.

use std::ops::Range;
use std::sync::Arc;

use super::grid::Grid;
use crate::quant::{GgmlType, dequantize_rows};
use crate::recipe::{BlockFactors, ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::stored::Stored;

/// Elements that share a scale.
const GROUP: u64 = 16;

/// Elements and bytes of a block.
const BLOCK: u64 = 64;
const BLOCK_BYTES: usize = 36;

/// A packed matrix as its library decodes it, and as ggml's blocks where its rows are whole ones.
pub(super) struct Nvfp4 {
    values: Grid,
    blocks: Option<Arc<Blocks>>,
    factors: BlockFactors,
}

impl Nvfp4 {
    /// A matrix whose bytes are `codes`, with scales `[rows, columns / 16]`. Stacks of matrices and those with more than
    /// one factor have no blocks: llama.cpp has no place for their factors.
    pub(super) fn new(values: Grid, codes: Stored, scales: Stored, factors: Option<BlockFactors>) -> Self {
        let shape = values.shape().clone();
        let whole = shape.ndim() == 2 && shape.row_len().is_multiple_of(BLOCK) && shape.row_len() > 0;
        let fits = whole && scales.width() == 1 && scales.shape().dims() == [shape.rows(), shape.row_len() / GROUP];
        let (blocks, factors) = match factors.filter(|_| fits) {
            Some(factors) => (Some(Arc::new(Blocks { shape, codes, scales })), factors),
            None => (None, BlockFactors { weight: 1.0, input: 1.0, wide_inputs: false }),
        };
        Nvfp4 { values, blocks, factors }
    }
}

impl RowSource for Nvfp4 {
    fn shape(&self) -> &Shape {
        self.values.shape()
    }

    fn precision(&self) -> GgmlType {
        self.values.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.values.read_rows(rows, out, scratch)
    }

    fn factored(&self) -> Option<(Arc<dyn RowSource>, BlockFactors)> {
        let blocks = self.blocks.clone()?;
        Some((blocks, self.factors))
    }

    fn describe(&self) -> String {
        self.values.describe()
    }
}

/// The matrix without its factor.
struct Blocks {
    shape: Shape,
    codes: Stored,
    scales: Stored,
}

impl RowSource for Blocks {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::BF16
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let row_len = self.shape.row_len();
        let mut blocks = scratch.take_bytes(out.len() / BLOCK as usize * BLOCK_BYTES);
        let read = self.read_native_rows(rows, &mut blocks, scratch).and_then(|()| {
            dequantize_rows(GgmlType::NVFP4, &blocks, row_len as usize, out)
                .map_err(|e| ReadError::new(self.describe(), e.to_string()))
        });
        scratch.give_bytes(blocks);
        read
    }

    fn native(&self) -> Option<GgmlType> {
        Some(GgmlType::NVFP4)
    }

    fn read_native_rows(&self, rows: Range<u64>, out: &mut [u8], scratch: &mut Scratch) -> Result<(), ReadError> {
        let row_len = self.shape.row_len();
        let elements = rows.start * row_len..rows.end * row_len;
        let count = elements.end - elements.start;
        let mut scales = scratch.take_bytes((count / GROUP) as usize);
        let mut codes = scratch.take_bytes((count / 2) as usize);
        self.scales.read_elements(elements.start / GROUP..elements.end / GROUP, &mut scales)?;
        self.codes.read_elements(elements.start / 2..elements.end / 2, &mut codes)?;
        let groups = scales.as_chunks::<4>().0.iter().zip(codes.as_chunks::<32>().0);
        for (block, (scales, codes)) in out.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().zip(groups) {
            let (head, packed) = block.split_at_mut(4);
            head.iter_mut().zip(scales).for_each(|(x, scale)| *x = scale & 0x7f);
            for (packed, codes) in packed.as_chunks_mut::<8>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
                let (low, high) = codes.split_at(4);
                for (j, (a, b)) in low.iter().zip(high).enumerate() {
                    packed[2 * j] = a & 15 | b << 4;
                    packed[2 * j + 1] = a >> 4 | b & 0xf0;
                }
            }
        }
        scratch.give_bytes(scales);
        scratch.give_bytes(codes);
        Ok(())
    }

    fn describe(&self) -> String {
        self.codes.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::WeightFile;
    use crate::source::packed::fields::e2m1_pairs;
    use crate::source::packed::grid::{Adjust, Codes, Scales};
    use safetensors::Dtype;

    /// Blocks and their factor give what the library decodes, since one factor of a product can be left for last where
    /// it is a power of two.
    #[test]
    fn blocks_times_their_factor_are_the_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let mut bytes: Vec<u8> = (0..3 * 64u32).map(|i| (i * 37 % 251) as u8).collect();
        bytes.extend((0..3 * 8u32).map(|i| 0x20 + (i * 11 % 64) as u8));
        bytes.extend(0.25f32.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let file = Arc::new(WeightFile::open(&path).unwrap());
        let stored = |dtype, dims: &[u64], at| {
            Stored::new(file.clone(), "w".into(), dtype, Shape::new(dims.to_vec()).unwrap(), at, None)
        };
        let (codes, scales) = (stored(Dtype::U8, &[3, 64], 0), stored(Dtype::F8_E4M3, &[3, 8], 192));
        let factor = stored(Dtype::F32, &[1], 216);
        let grid = Grid::new(
            Shape::matrix(3, 128),
            Codes::Pairs(codes.clone(), e2m1_pairs()),
            Scales::padded(scales.clone(), 3, 8, 16).adjusted(Adjust::Times(factor)),
            GgmlType::BF16,
        );
        let factors = BlockFactors { weight: 0.25, input: 1.0, wide_inputs: false };
        let whole = Nvfp4::new(grid, codes, scales, Some(factors));
        let (blocks, given) = whole.factored().unwrap();
        assert_eq!(given, factors);
        let mut scratch = Scratch::default();
        let (mut values, mut bare) = (vec![0.0; 2 * 128], vec![0.0; 2 * 128]);
        whole.read_rows(1..3, &mut values, &mut scratch).unwrap();
        blocks.read_rows(1..3, &mut bare, &mut scratch).unwrap();
        assert!(values.iter().any(|&x| x != 0.0));
        assert!(values.iter().zip(&bare).all(|(v, b)| *v == b * 0.25), "{values:?}\n{bare:?}");
    }
}
