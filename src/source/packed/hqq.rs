//! HQQ: 1 to 8 bits, groups along either axis of a reshaped matrix.
//!
//! The matrix is reshaped to `[n / g, g]` (axis 1) or `[g, n / g]` (axis 0), and its rows are cut into as many bands
//! as codes fit a byte (an i32 for 3 bits): element `(row, column)` is in word `(row % R, column)`, the first band
//! in the highest bits. `w = round(round(q - zero) * scale)` in the compute type: `HQQLinear.dequantize`, exactly.

use std::ops::Range;

use safetensors::Dtype;

use super::{Shelf, SourceError, type_named};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;
use crate::source::stored::Stored;

/// What HQQ writes beside the weights and the decoder does not need.
const IGNORED: [&str; 7] = [
    ".unpack_view_dtype",
    ".offload_meta",
    ".channel_wise",
    ".optimize",
    ".round_zero",
    ".encoded_state_dict",
    ".stores_quant_config",
];

/// Names of packings: bits of a code, codes per word, bytes of a word.
const PACKINGS: [(&str, u32, u64, u64); 5] =
    [("8bit_u8", 8, 1, 1), ("4bit_u8", 4, 2, 1), ("2bit_u8", 2, 4, 1), ("1bit_u8", 1, 8, 1), ("3bit_32", 3, 10, 4)];

/// Unpacks every `W_q`.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for module in shelf.bases(".W_q") {
        unpack_module(shelf, &module)?;
    }
    shelf.drop_ending(&IGNORED);
    Ok(())
}

fn unpack_module(shelf: &mut Shelf, module: &str) -> Result<(), SourceError> {
    let place = format!("{module}.W_q");
    let codes = shelf.need(&place, module)?;
    let scale = shelf.need(&format!("{module}.scale"), module)?;
    let zero = shelf.need(&format!("{module}.zero"), module)?;
    let shape_of = shelf.need(&format!("{module}.shape"), module)?;
    let bits = shelf.need(&format!("{module}.nbits"), module)?;
    let packing = shelf.need(&format!("{module}.packing"), module)?;
    let axis = shelf.need(&format!("{module}.axis"), module)?;
    let group = shelf.take(&format!("{module}.group_size"));
    shelf.take(&format!("{module}.view_as_float"));
    for nested in ["quant_scale", "quant_zero"] {
        if let Some(flag) = shelf.take(&format!("{module}.{nested}"))
            && small(shelf, module, &flag)?.first().is_some_and(|&f| f != 0.0)
        {
            return Err(
                shelf.wrong(module, format!("its {nested} is set: scales that are packed themselves are not read"))
            );
        }
    }
    let dims: Vec<u64> = small(shelf, module, &shape_of)?.iter().map(|&d| d as u64).collect();
    let shape = shelf.shape(module, dims)?;
    small(shelf, module, &bits)?;
    let packing = text(shelf, module, &packing)?;
    let Some(&(_, width, per, bytes)) = PACKINGS.iter().find(|p| p.0 == packing) else {
        return Err(shelf.wrong(module, format!("packing {packing} is not known")));
    };
    let axis = small(shelf, module, &axis)?.first().copied().unwrap_or(1.0) as u64;
    let precision = match shelf.take(&format!("{module}.compute_dtype")) {
        Some(name) => type_named(&text(shelf, module, &name)?),
        None => None,
    };
    let precision = precision.unwrap_or_else(|| super::type_of(&scale));
    let n = shape.elements();
    let groups = scale.shape().elements();
    if groups == 0 || zero.shape().elements() != groups || axis > 1 || n % groups != 0 {
        let (s, z) = (scale.shape(), zero.shape());
        return Err(shelf.wrong(module, format!("scales {s} and zeros {z} do not fit a weight {shape} on axis {axis}")));
    }
    if let Some(size) = group
        && let Some(&size) = small(shelf, module, &size)?.first()
        && size >= 1.0
        && (n / groups) as f32 != size
    {
        return Err(shelf.wrong(module, format!("{groups} scales do not fit groups of {size} in {shape}")));
    }
    // Columns and rows of the reshaped matrix, and rows of words.
    let columns = if axis == 1 { n / groups } else { groups };
    let band = (n / columns).div_ceil(per);
    let Some(codes) = codes.as_bytes().filter(|c| c.size_bytes() == band * columns * bytes) else {
        let (given, needed) = (codes.size_bytes(), band * columns * bytes);
        return Err(shelf.wrong(module, format!("{packing} of {shape} needs {needed} bytes, {given} are there")));
    };
    let source = Hqq { shape, precision, codes, scale, zero, width, per, bytes, columns, band, by_row: axis == 1 };
    shelf.put(&place, &format!("{module}.weight"), source)
}

fn small(shelf: &Shelf, module: &str, tensor: &Stored) -> Result<Vec<f32>, SourceError> {
    if tensor.shape().elements() > 16 {
        return Err(shelf.wrong(module, format!("{} has shape {}", tensor.name(), tensor.shape())));
    }
    shelf.read(module, tensor.read_all_floats())
}

fn text(shelf: &Shelf, module: &str, tensor: &Stored) -> Result<String, SourceError> {
    if tensor.size_bytes() > 256 || tensor.dtype() != Dtype::U8 {
        return Err(shelf.wrong(module, format!("{} is no short text", tensor.name())));
    }
    let bytes = shelf.read(module, tensor.read_all_bytes())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Hqq {
    shape: Shape,
    precision: GgmlType,
    codes: Stored,
    scale: Stored,
    zero: Stored,
    width: u32,
    per: u64,
    bytes: u64,
    columns: u64,
    band: u64,
    by_row: bool,
}

/// Elements that are read in one step.
const STEP: u64 = 1 << 16;

impl Hqq {
    /// The elements from `at` on, whose fields are at `shift` of the words of `line`. Zero points and scales begin with
    /// group `group`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn decode(&self, line: &[u8], shift: u32, at: u64, group: u64, zeros: &[f32], scales: &[f32], out: &mut [f32]) {
        let mask = (1u32 << self.width) - 1;
        if self.bytes == 1 {
            out.iter_mut().zip(line).for_each(|(x, &b)| *x = (u32::from(b) >> shift & mask) as i32 as f32);
        } else {
            for (x, word) in out.iter_mut().zip(line.chunks_exact(self.bytes as usize)) {
                let word = word.iter().rev().fold(0u32, |w, &b| w << 8 | u32::from(b));
                *x = (word >> shift & mask) as f32;
            }
        }
        let (mut at, mut rest) = (at, out);
        while !rest.is_empty() {
            let (row, column) = (at / self.columns, (at % self.columns) as usize);
            let run = (self.columns as usize - column).min(rest.len());
            let (out, behind) = rest.split_at_mut(run);
            if self.by_row {
                let g = (row - group) as usize;
                out.iter_mut().for_each(|x| *x -= zeros[g]);
                element::round_all(self.precision, out);
                out.iter_mut().for_each(|x| *x *= scales[g]);
            } else {
                let span = column..column + run;
                out.iter_mut().zip(&zeros[span.clone()]).for_each(|(x, z)| *x -= z);
                element::round_all(self.precision, out);
                out.iter_mut().zip(&scales[span]).for_each(|(x, s)| *x *= s);
            }
            element::round_all(self.precision, out);
            at += run as u64;
            rest = behind;
        }
    }
}

impl RowSource for Hqq {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.precision
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        if out.is_empty() {
            return Ok(());
        }
        let len = self.shape.row_len();
        let (start, end) = (rows.start * len, rows.end * len);
        let groups = if self.by_row { start / self.columns..(end - 1) / self.columns + 1 } else { 0..self.columns };
        let count = (groups.end - groups.start) as usize;
        let (mut scales, mut zeros) = (scratch.take_floats(count), scratch.take_floats(count));
        self.scale.read_floats(groups.clone(), &mut scales, scratch)?;
        self.zero.read_floats(groups.clone(), &mut zeros, scratch)?;
        let mut line = scratch.take_bytes((STEP.min(end - start) * self.bytes) as usize);
        let mut at = start;
        while at < end {
            // A run within one band of the reshaped matrix: words that follow one another, one shift.
            let band = at / (self.columns * self.band);
            let first = at - band * self.columns * self.band;
            let run = (self.columns * self.band - first).min(end - at).min(STEP);
            let shift = self.width * (self.per - 1 - band) as u32;
            let line = &mut line[..(run * self.bytes) as usize];
            self.codes.read_elements(first * self.bytes..(first + run) * self.bytes, line)?;
            let part = &mut out[(at - start) as usize..(at - start + run) as usize];
            pulp::Arch::new().dispatch(|| self.decode(line, shift, at, groups.start, &zeros, &scales, part));
            at += run;
        }
        scratch.give_bytes(line);
        scratch.give_floats(scales);
        scratch.give_floats(zeros);
        Ok(())
    }

    fn describe(&self) -> String {
        self.codes.describe()
    }
}
