//! bitsandbytes: what QLoRA users have on disk. NF4, FP4 (nested or not) and LLM.int8.
//!
//! Four bits: `X.weight` holds `ceil(n / 2)` bytes, the high nibble is the even element of the flattened matrix;
//! blocks of `blocksize` elements share a scale `absmax`, which may be quantized itself (nested). The tensor
//! `X.weight.quant_state.bitsandbytes__nf4` is JSON with the shape and the type to decode to:
//!
//! ```text
//! absmax[b] = f32(nested_map[code[b]] * nested_absmax[b / 256]) + nested_offset
//! w[i]      = round_to_dtype(f32(map[nibble i] * absmax[i / blocksize]))
//! ```
//!
//! Eight bits: `w = f32(f32(q * SCB[row]) * (1 / 127))`, all in f32. Dividing by 127 gives other bits.
//! Both equal `bitsandbytes.functional.dequantize_4bit` and `int8_vectorwise_dequant` exactly.

use std::ops::Range;
use std::sync::LazyLock;

use safetensors::Dtype;
use serde_json::Value;

use super::fields::{PairTable, decode_pairs, high_first};
use super::grid::{Codes, Grid, Scales};
use super::{Shelf, type_named};
use crate::quant::GgmlType;
use crate::recipe::{RawCodes, RawFormat, RawScales, ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::folder::StoredTensors;
use crate::source::stored::Stored;
use crate::source::{SourceError, element};

/// `bitsandbytes.functional.get_4bit_type("nf4")`
pub(crate) static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// FP4: these over 12.
static FP4: [f32; 16] = {
    let mut values = FP4_TWELFTHS;
    let mut i = 0;
    while i < 16 {
        values[i] /= 12.0;
        i += 1;
    }
    values
};

const FP4_TWELFTHS: [f32; 16] =
    [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, -0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0];

const STATE: &str = ".quant_state.bitsandbytes__";

/// Elements that are decoded in one step.
const STEP: u64 = 1 << 16;

/// Blocks that share a second-level scale.
const NESTED_BLOCK: u64 = 256;

fn nf4() -> &'static PairTable {
    static TABLE: LazyLock<PairTable> = LazyLock::new(|| high_first(&NF4));
    &TABLE
}

fn fp4() -> &'static PairTable {
    static TABLE: LazyLock<PairTable> = LazyLock::new(|| high_first(&FP4));
    &TABLE
}

/// Whether a model without a `quantization_config` holds these tensors.
pub(super) fn is_present(stored: &StoredTensors) -> bool {
    stored.keys().any(|n| n.contains(STATE))
}

/// Unpacks both forms.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for kind in ["nf4", "fp4"] {
        for weight in shelf.bases(&format!("{STATE}{kind}")) {
            unpack_4bit(shelf, &weight, kind)?;
        }
    }
    for module in shelf.bases(".SCB") {
        unpack_8bit(shelf, &module)?;
    }
    shelf.drop_ending(&[".weight_format"]);
    for ending in [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
        if let Some(weight) = shelf.bases(ending).first() {
            return Err(shelf.wrong(weight, format!("its {STATE}nf4 (or fp4) is missing").replacen(" .", " ", 1)));
        }
    }
    let bytes = |t: &Stored| matches!(t.dtype(), Dtype::U8 | Dtype::I8);
    for module in shelf.bases(".weight") {
        let name = format!("{module}.weight");
        if shelf.peek(&name).is_some_and(bytes) {
            let part = if shelf.peek(&name).is_some_and(|t| t.dtype() == Dtype::I8) { "SCB" } else { "quant_state" };
            return Err(shelf.wrong(&name, format!("holds codes, but its {part} is missing")));
        }
    }
    Ok(())
}

fn unpack_8bit(shelf: &mut Shelf, module: &str) -> Result<(), SourceError> {
    let name = format!("{module}.weight");
    let scales = shelf.need(&format!("{module}.SCB"), &name)?;
    let codes = shelf.need(&name, &name)?;
    shelf.check_dtype(&name, &codes, &[Dtype::I8])?;
    shelf.check_dtype(&name, &scales, &[Dtype::F32])?;
    if let Some(format) = shelf.take(&format!("{name}_format"))
        && shelf.read(&name, format.read_all_floats())?.first().is_some_and(|&f| f != 0.0)
    {
        return Err(shelf.wrong(&name, "is tiled for a GPU (weight_format is not row-major)"));
    }
    let shape = shelf.shape(&name, codes.shape().dims())?;
    shelf.check_shape(&name, &scales, &[shape.rows()])?;
    let scales = Scales::fit(shelf, &name, &shape, scales, Some((1, shape.row_len())))?;
    let mut grid = Grid::new(shape, Codes::Elements(codes), scales, GgmlType::F32);
    grid.last = Some(0.007_874_016);
    shelf.put(&name, &name, grid)
}

fn unpack_4bit(shelf: &mut Shelf, name: &str, kind: &str) -> Result<(), SourceError> {
    let state = shelf.need(&format!("{name}{STATE}{kind}"), name)?;
    if state.size_bytes() > 1 << 16 {
        return Err(shelf.wrong(name, format!("its quant_state has {} bytes", state.size_bytes())));
    }
    let text = shelf.read(name, state.read_all_bytes())?;
    let state: Value = serde_json::from_slice(&text)
        .map_err(|e| shelf.wrong(name, format!("its quant_state is not valid JSON: {e}")))?;
    let dims: Option<Vec<u64>> =
        state.get("shape").and_then(Value::as_array).and_then(|d| d.iter().map(Value::as_u64).collect());
    let block = state.get("blocksize").and_then(Value::as_u64).filter(|b| *b > 0);
    let precision = state.get("dtype").and_then(Value::as_str).and_then(type_named);
    let (Some(dims), Some(block), Some(precision)) = (dims, block, precision) else {
        return Err(shelf.wrong(name, "its quant_state lacks shape, blocksize or a known dtype"));
    };
    let Some(shape) = Shape::new(dims) else { return Err(shelf.wrong(name, "its shape is too large")) };
    let (count, blocks) = (shape.elements(), shape.elements().div_ceil(block));
    let codes = shelf.need(name, name)?;
    let Some(codes) = codes.as_bytes().filter(|c| c.size_bytes() == count.div_ceil(2)) else {
        let held = codes.size_bytes();
        let needed = count.div_ceil(2);
        return Err(shelf.wrong(name, format!("shape {shape} needs {needed} bytes of codes, {held} are there")));
    };
    let absmax = shelf.need(&format!("{name}.absmax"), name)?;
    shelf.check_shape(name, &absmax, &[blocks])?;
    // The library uses its own table, which equals this one.
    if let Some(map) = shelf.take(&format!("{name}.quant_map")) {
        shelf.check_shape(name, &map, &[16])?;
    }
    let nested = if absmax.dtype() == Dtype::U8 {
        let scales = shelf.need(&format!("{name}.nested_absmax"), name)?;
        let map = shelf.need(&format!("{name}.nested_quant_map"), name)?;
        let nested_block = state.get("nested_blocksize").and_then(Value::as_u64).unwrap_or(NESTED_BLOCK);
        if nested_block == 0 {
            return Err(shelf.wrong(name, "its nested_blocksize is 0"));
        }
        shelf.check_shape(name, &scales, &[blocks.div_ceil(nested_block)])?;
        shelf.check_shape(name, &map, &[256])?;
        let Some(offset) = state.get("nested_offset").and_then(Value::as_f64) else {
            return Err(shelf.wrong(name, "its quant_state lacks nested_offset"));
        };
        Some(Nested { scales, map, block: nested_block, offset: offset as f32 })
    } else {
        shelf.check_dtype(name, &absmax, &[Dtype::F32])?;
        None
    };
    let (values, table) = if kind == "nf4" { (&NF4, nf4()) } else { (&FP4, fp4()) };
    shelf.put(name, name, FourBit { shape, precision, codes, values, table, block, absmax, nested })
}

/// Second-level scales.
struct Nested {
    scales: Stored,
    map: Stored,
    block: u64,
    offset: f32,
}

/// A matrix in NF4 or FP4.
struct FourBit {
    shape: Shape,
    precision: GgmlType,
    codes: Stored,
    /// The values of the codes, and of two in a byte.
    values: &'static [f32; 16],
    table: &'static PairTable,
    block: u64,
    absmax: Stored,
    nested: Option<Nested>,
}

impl FourBit {
    fn read_absmax(&self, blocks: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.absmax.read_floats(blocks.clone(), out, scratch)?;
        let Some(nested) = &self.nested else { return Ok(()) };
        let map = nested.map.read_all_floats()?;
        let (first, end) = (blocks.start / nested.block, (blocks.end - 1) / nested.block + 1);
        let mut scales = scratch.take_floats((end - first) as usize);
        nested.scales.read_floats(first..end, &mut scales, scratch)?;
        for (b, x) in blocks.zip(out) {
            *x = map[*x as usize & 255] * scales[(b / nested.block - first) as usize] + nested.offset;
        }
        scratch.give_floats(scales);
        Ok(())
    }

    fn decode(&self, elements: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let bytes = elements.start / 2..elements.end.div_ceil(2);
        let mut codes = scratch.take_bytes((bytes.end - bytes.start) as usize);
        self.codes.read_elements(bytes, &mut codes)?;
        let blocks = elements.start / self.block..(elements.end - 1) / self.block + 1;
        let mut absmax = scratch.take_floats((blocks.end - blocks.start) as usize);
        self.read_absmax(blocks.clone(), &mut absmax, scratch)?;
        let block = self.block as usize;
        if elements.start.is_multiple_of(self.block) && block.is_multiple_of(2) && out.len().is_multiple_of(2) {
            // Whole bytes in whole blocks: one block at a time stays in the first cache.
            pulp::Arch::new().dispatch(|| {
                for ((part, codes), &scale) in out.chunks_mut(block).zip(codes.chunks(block / 2)).zip(&absmax) {
                    decode_pairs(self.table, codes, part);
                    part.iter_mut().for_each(|x| *x *= scale);
                    element::round_all(self.precision, part);
                }
            });
        } else {
            self.decode_unaligned(&elements, &codes, &absmax, out);
        }
        scratch.give_bytes(codes);
        scratch.give_floats(absmax);
        Ok(())
    }

    /// A row may begin or end in the middle of a byte or of a block.
    fn decode_unaligned(&self, elements: &Range<u64>, codes: &[u8], absmax: &[f32], out: &mut [f32]) {
        let odd = (elements.start % 2) as usize;
        let (head, rest) = out.split_at_mut(odd);
        if let (Some(x), Some(&b)) = (head.first_mut(), codes.first()) {
            *x = self.table[b as usize][1];
        }
        decode_pairs(self.table, &codes[odd..], rest);
        if let ([.., x], [.., b]) = (rest, codes)
            && elements.end % 2 == 1
        {
            *x = self.table[*b as usize][0];
        }
        let first = ((self.block - elements.start % self.block) as usize).min(out.len());
        let (head, rest) = out.split_at_mut(first);
        head.iter_mut().for_each(|x| *x *= absmax[0]);
        for (part, &scale) in rest.chunks_mut(self.block as usize).zip(&absmax[1..]) {
            part.iter_mut().for_each(|x| *x *= scale);
        }
        element::round_all(self.precision, out);
    }
}

impl RowSource for FourBit {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.precision
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let start = rows.start * self.shape.row_len();
        for (i, out) in out.chunks_mut(STEP as usize).enumerate() {
            let first = start + i as u64 * STEP;
            self.decode(first..first + out.len() as u64, out, scratch)?;
        }
        Ok(())
    }

    fn raw(&self) -> Option<RawFormat> {
        // Rows of whole bytes and whole blocks only: then any rows can be taken out.
        let cols = self.shape.row_len();
        let scales = RawScales { group: self.block, factor: 1.0, round: self.precision };
        let whole = cols.is_multiple_of(self.block) && cols.is_multiple_of(2);
        whole.then_some(RawFormat { codes: RawCodes::FourBit(self.values), scales: Some(scales) })
    }

    fn read_raw_rows(
        &self,
        rows: Range<u64>,
        codes: &mut [u8],
        scales: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let cols = self.shape.row_len();
        self.codes.read_elements(rows.start * cols / 2..rows.end * cols / 2, codes)?;
        let blocks = cols / self.block;
        self.read_absmax(rows.start * blocks..rows.end * blocks, scales, scratch)
    }

    fn describe(&self) -> String {
        self.codes.describe()
    }
}
