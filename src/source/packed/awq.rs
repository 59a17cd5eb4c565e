//! AWQ in four bits, in its three layouts.
//!
//! `gemm` (the usual one) is transposed: `qweight` `[in, out / 8]`, `qzeros` `[in / g, out / 8]`, `scales`
//! `[in / g, out]`; nibble slots 0..8 of a word hold columns 0, 2, 4, 6, 1, 3, 5, 7 of their eight. `gemv` is
//! row-major, in order, its scales padded. `gemv_fast` interleaves four rows and stores `-scale * zero`.
//!
//! `w = f16(scale * (code - zero))`: exactly `dequantize_gemm` of autoawq, and its gemv form. For gemv_fast the
//! library adds `f32(code * scale) + zeros` and rounds once.

use std::ops::Range;

use safetensors::Dtype;

use super::fields::{Layout, word};
use super::grid::{Codes, Grid, Scales, Zeros};
use super::strips::{Strip, Strips};
use super::{Shelf, SourceError, type_of};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;
use crate::source::stored::Stored;

/// Shift of column `c % 8` within its word, in nibbles.
const SLOT: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Unpacks every `qweight`.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    let version = shelf.text("version").or_else(|| shelf.text("format")).unwrap_or("gemm").to_lowercase();
    let bits = shelf.number("bits").or_else(|| shelf.number("w_bit")).unwrap_or(4);
    if bits != 4 {
        return Err(shelf.unsupported(format!("{bits} bits are not read, only 4")));
    }
    if let Some(name) = shelf.bases(".act.scales").first() {
        return Err(shelf.wrong(name, "its activation is scaled (act.scales), which no other format holds"));
    }
    let group = shelf.number("group_size").or_else(|| shelf.number("q_group_size")).filter(|g| *g > 0);
    for module in shelf.bases(".qweight") {
        let qweight = shelf.need(&format!("{module}.qweight"), &module)?;
        let qzeros = shelf.need(&format!("{module}.qzeros"), &module)?;
        let scales = shelf.need(&format!("{module}.scales"), &module)?;
        shelf.take(&format!("{module}.g_idx"));
        let parts = Parts { qweight, qzeros, scales };
        match version.as_str() {
            "gemm" | "exllama" | "auto_round:auto_awq" => unpack_gemm(shelf, &module, parts)?,
            "gemv" => unpack_gemv(shelf, &module, parts, group)?,
            "gemv_fast" => unpack_fast(shelf, &module, parts, group)?,
            other => return Err(shelf.unsupported(format!("version {other} is not read"))),
        }
    }
    Ok(())
}

struct Parts {
    qweight: Stored,
    qzeros: Stored,
    scales: Stored,
}

impl Parts {
    fn dims(&self, shelf: &Shelf, module: &str) -> Result<[[u64; 2]; 3], SourceError> {
        let of = |t: &Stored| <[u64; 2]>::try_from(t.shape().dims()).ok();
        match (of(&self.qweight), of(&self.qzeros), of(&self.scales)) {
            (Some(w), Some(z), Some(s)) if w.iter().chain(&z).chain(&s).all(|&d| d > 0) => Ok([w, z, s]),
            _ => Err(shelf.wrong(module, "qweight, qzeros and scales are not all matrices")),
        }
    }

    fn misfit(&self, shelf: &Shelf, module: &str) -> SourceError {
        let (w, z, s) = (self.qweight.shape(), self.qzeros.shape(), self.scales.shape());
        shelf.wrong(module, format!("qweight {w}, qzeros {z} and scales {s} do not fit each other"))
    }
}

fn unpack_gemm(shelf: &mut Shelf, module: &str, parts: Parts) -> Result<(), SourceError> {
    let [[inputs, words], [groups, zero_words], [scale_groups, out]] = parts.dims(shelf, module)?;
    shelf.check_dtype(module, &parts.qweight, &[Dtype::I32])?;
    shelf.check_dtype(module, &parts.qzeros, &[Dtype::I32])?;
    if words * 8 != out || zero_words != words || scale_groups != groups || inputs % groups != 0 {
        return Err(parts.misfit(shelf, module));
    }
    let shape = shelf.shape(module, [out, inputs])?;
    let precision = type_of(&parts.scales);
    let codes = format!("{module}.qweight");
    let Parts { qweight, qzeros, scales } = parts;
    let qweight = Strips::new(qweight, shelf.strips.clone());
    let gemm = Gemm { shape, precision, qweight, qzeros, scales, group: inputs / groups };
    shelf.put(&codes, &format!("{module}.weight"), gemm)
}

fn unpack_gemv(shelf: &mut Shelf, module: &str, parts: Parts, group: Option<u64>) -> Result<(), SourceError> {
    let [[out, words], [zero_rows, zero_words], [scale_rows, scale_cols]] = parts.dims(shelf, module)?;
    let inputs = words * 8;
    let group = group.unwrap_or(inputs);
    if zero_rows != out || scale_rows != out || scale_cols != zero_words * 8 || scale_cols * group < inputs {
        return Err(parts.misfit(shelf, module));
    }
    let (Some(bytes), Some(zeros)) = (parts.qweight.as_bytes(), parts.qzeros.as_bytes()) else {
        return Err(parts.misfit(shelf, module));
    };
    shelf.check_dtype(module, &parts.qweight, &[Dtype::I32])?;
    shelf.check_dtype(module, &parts.qzeros, &[Dtype::I32])?;
    let shape = shelf.shape(module, [out, inputs])?;
    let precision = type_of(&parts.scales);
    let scales = Scales::padded(parts.scales, out, scale_cols, group);
    let codes = Codes::Fields { bytes, bits: 4, layout: Layout::PerWord, offset: 0 };
    let mut grid = Grid::new(shape, codes, scales, precision);
    grid.zeros = Some(Zeros::Fields { bytes: zeros, bits: 4, words: zero_words, offset: 0 });
    shelf.put(&format!("{module}.qweight"), &format!("{module}.weight"), grid)
}

fn unpack_fast(shelf: &mut Shelf, module: &str, parts: Parts, group: Option<u64>) -> Result<(), SourceError> {
    let [[quads, inputs], [zero_rows, zero_out], [scale_rows, scale_out]] = parts.dims(shelf, module)?;
    let out = quads * 4;
    let group = group.unwrap_or(inputs);
    let fits = zero_out == out && scale_out == out && zero_rows == scale_rows && scale_rows * group >= inputs;
    if !fits || inputs % 64 != 0 {
        return Err(parts.misfit(shelf, module));
    }
    shelf.check_dtype(module, &parts.qweight, &[Dtype::I16])?;
    let shape = shelf.shape(module, [out, inputs])?;
    let precision = type_of(&parts.scales);
    shelf.put(&format!("{module}.qweight"), &format!("{module}.weight"), Fast { shape, precision, parts, group })
}

/// The transposed layout.
struct Gemm {
    shape: Shape,
    precision: GgmlType,
    qweight: Strips,
    qzeros: Stored,
    scales: Stored,
    group: u64,
}

/// Columns that are decoded in one step.
const SPAN: usize = 256;

/// Columns of words that are decoded in one step, eight rows each.
const BESIDE: usize = 8;

/// Rows that are all in one strip, on their way to floats.
struct Decoding<'a> {
    source: &'a Gemm,
    strip: &'a Strip,
    rows: Range<u64>,
    /// `[groups, rows]`
    zeros: &'a [f32],
    /// `[groups, rows]`
    scales: &'a [f32],
    /// `[rows, inputs]`
    out: &'a mut [f32],
}

impl pulp::WithSimd for Decoding<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Decoding { source, strip, rows, zeros, scales, out } = self;
        let (inputs, group) = (source.shape.row_len() as usize, source.group as usize);
        let count = (rows.end - rows.start) as usize;
        let mut room = [0; BESIDE * SPAN];
        let columns = rows.start / 8..rows.end.div_ceil(8);
        for column in columns.clone().step_by(BESIDE) {
            let beside = BESIDE.min((columns.end - column) as usize);
            for start in (0..inputs).step_by(group) {
                let (scales, zeros) =
                    (&scales[start / group * count..][..count], &zeros[start / group * count..][..count]);
                for first in (start..start + group).step_by(SPAN) {
                    let width = SPAN.min(start + group - first);
                    let words = &mut room[..beside * width];
                    strip.columns(first, column, width, words);
                    for (row, (k, slot)) in (column * 8..).zip((0..beside).flat_map(|k| SLOT.map(|slot| (k, slot)))) {
                        if !rows.contains(&row) {
                            continue;
                        }
                        let row = (row - rows.start) as usize;
                        let (scale, zero, shift) = (scales[row], zeros[row], 4 * slot);
                        let out = &mut out[row * inputs + first..][..width];
                        for (x, word) in out.iter_mut().zip(&words[k * width..]) {
                            *x = scale * ((word >> shift & 15) as i32 as f32 - zero);
                        }
                        element::round_all(source.precision, out);
                    }
                }
            }
        }
    }
}

impl RowSource for Gemm {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.precision
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let inputs = self.shape.row_len();
        let groups = inputs / self.group;
        let mut out = out;
        let mut start = rows.start;
        while start < rows.end {
            let strip = self.qweight.of(start / 8)?;
            let rows = start..rows.end.min(strip.end() * 8);
            start = rows.end;
            let count = (rows.end - rows.start) as usize;
            let (part, rest) = out.split_at_mut(count * inputs as usize);
            out = rest;
            let words = rows.start / 8..rows.end.div_ceil(8);
            let width = (words.end - words.start) as usize;
            let mut packed = scratch.take_bytes(groups as usize * width * 4);
            let mut scales = scratch.take_floats(groups as usize * count);
            let mut zeros = scratch.take_floats(groups as usize * count);
            self.qzeros.read_window_bytes(0..groups, words.clone(), &mut packed)?;
            self.scales.read_window(0..groups, rows.clone(), &mut scales, scratch)?;
            for (line, zeros) in packed.chunks_exact(width * 4).zip(zeros.chunks_exact_mut(count)) {
                for (row, zero) in rows.clone().zip(zeros) {
                    let word = word(line, row / 8 - words.start);
                    *zero = (word >> (4 * SLOT[(row % 8) as usize]) & 15) as f32;
                }
            }
            pulp::Arch::new().dispatch(Decoding {
                source: self,
                strip: &strip,
                rows,
                zeros: &zeros,
                scales: &scales,
                out: part,
            });
            scratch.give_bytes(packed);
            scratch.give_floats(scales);
            scratch.give_floats(zeros);
        }
        Ok(())
    }

    fn describe(&self) -> String {
        self.qweight.describe()
    }
}

/// Four interleaved rows per row of 16-bit words.
struct Fast {
    shape: Shape,
    precision: GgmlType,
    parts: Parts,
    group: u64,
}

impl RowSource for Fast {
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
        let inputs = self.shape.row_len();
        let groups = inputs.div_ceil(self.group);
        let count = (rows.end - rows.start) as usize;
        let len = groups as usize * count;
        let (mut scales, mut zeros) = (scratch.take_floats(len), scratch.take_floats(len));
        self.parts.scales.read_window(0..groups, rows.clone(), &mut scales, scratch)?;
        self.parts.qzeros.read_window(0..groups, rows.clone(), &mut zeros, scratch)?;
        let mut line = scratch.take_bytes(inputs as usize * 2);
        let mut loaded = None;
        for (i, (r, out)) in rows.zip(out.chunks_exact_mut(inputs as usize)).enumerate() {
            if loaded != Some(r / 4) {
                self.parts.qweight.read_elements(r / 4 * inputs..(r / 4 + 1) * inputs, &mut line)?;
                loaded = Some(r / 4);
            }
            for (c, x) in (0..inputs).zip(out) {
                let t = c % 32;
                let p1 = 8 * (t % 8 / 2) + 2 * (t / 8) + t % 2;
                let u = p1 % 8;
                let p = c / 32 * 32 + (p1 - u) + 4 * (u % 2) + u / 2;
                let slot = 64 * (r % 4) + p % 64;
                let at = ((64 * (p / 64) + slot / 4) * 2) as usize;
                let code = u16::from_le_bytes([line[at], line[at + 1]]) >> (4 * (slot % 4)) & 15;
                let g = (c / self.group) as usize * count + i;
                *x = f32::from(code) * scales[g] + zeros[g];
            }
        }
        scratch.give_bytes(line);
        scratch.give_floats(scales);
        scratch.give_floats(zeros);
        element::round_all(self.precision, out);
        Ok(())
    }

    fn describe(&self) -> String {
        self.parts.qweight.describe()
    }
}
