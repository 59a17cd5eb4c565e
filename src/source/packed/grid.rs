//! The common case of packed weights: each row's codes lie together, and a scale serves a block of the matrix.
//!
//! `w[r][c] = round((code - zero) * scale[r / block rows][c / block columns])`, computed in f32 and rounded once
//! to the type that the library decodes to. Products of an eight-bit integer or an eight-bit float with a 16-bit
//! scale are exact in f32, so that this equals the libraries that compute in 16 bits.

use std::ops::Range;

use safetensors::Dtype;

use super::fields::{Layout, PairTable, decode_fields, decode_pairs, word};
use super::{Shelf, SourceError, Stored};
use crate::quant::GgmlType;
use crate::recipe::{RawFormat, RawScales, ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;

/// Bytes of codes that are read at a time.
const STEP: u64 = 128 << 10;

/// How a row's codes are stored.
pub(super) enum Codes {
    /// One stored element per code: int8 or an eight-bit float.
    Elements(Stored),
    /// Two codes per byte.
    Pairs(Stored, &'static PairTable),
    /// Fields in 32-bit words, minus an offset.
    Fields { bytes: Stored, bits: u32, layout: Layout, offset: i32 },
}

/// Where zero points are, laid out as the scales.
pub(super) enum Zeros {
    /// One element each; subtracted from the code.
    Elements(Stored),
    /// One element each; added to the product.
    Added(Stored),
    /// Fields along a row of scales, `words` 32-bit words per row.
    Fields { bytes: Stored, bits: u32, words: u64, offset: i32 },
    /// Fields along a column: field r of column g belongs to row r. `columns` words per row of words.
    Columns { bytes: Stored, bits: u32, layout: Layout, columns: u64, offset: i32 },
}

/// What is done to a scale before it is used.
pub(super) enum Adjust {
    /// Nothing.
    Keep,
    /// Rounded to a type first.
    Round(GgmlType),
    /// Multiplied by the matrix's own factor.
    Times(Stored),
    /// Divided by the matrix's own factor.
    DividedBy(Stored),
}

/// Scales and how they cover a matrix of `rows` rows.
pub(super) struct Scales {
    values: Stored,
    /// Rows of a matrix, and rows and columns of scales for it.
    rows: u64,
    scale_rows: u64,
    scale_cols: u64,
    /// Rows and columns that one scale serves.
    block: (u64, u64),
    /// Whether columns of the stored tensor are rows here.
    turned: bool,
    adjust: Adjust,
}

impl Scales {
    /// Fits the scales to a weight: one for all, one per row, blocks of `block`, or what the two shapes say.
    /// Scales of stacks of matrices have the leading dimensions of the stack.
    pub(super) fn fit(
        shelf: &Shelf,
        of: &str,
        weight: &Shape,
        values: Stored,
        block: Option<(u64, u64)>,
    ) -> Result<Self, SourceError> {
        let (rows, cols) = (matrix_rows(weight), weight.row_len());
        let matrices = weight.rows().checked_div(rows).unwrap_or(1);
        let dims = values.shape().dims().to_vec();
        let one = |scale_rows, scale_cols, block| Scales {
            values: values.clone(),
            rows,
            scale_rows,
            scale_cols,
            block,
            turned: false,
            adjust: Adjust::Keep,
        };
        let elements = values.shape().elements();
        if elements == 1 && matrices == 1 || (matrices > 1 && elements == matrices) {
            return Ok(one(1, 1, (rows.max(1), cols.max(1))));
        }
        if elements == 1 {
            return Ok(one(1, 1, (weight.rows().max(1), cols.max(1))).whole(weight.rows()));
        }
        if elements == weight.rows() && (dims.len() == 1 || dims.last() == Some(&1) || block.is_none() && cols == 1) {
            return Ok(one(rows, 1, (1, cols.max(1))));
        }
        if let &[ref lead @ .., scale_rows, scale_cols] = &dims[..]
            && lead.iter().product::<u64>() == matrices
            && scale_rows > 0
            && scale_cols > 0
        {
            if let Some((bm, bn)) = block.filter(|b| b.0 > 0 && b.1 > 0)
                && scale_rows == rows.div_ceil(bm)
                && scale_cols == cols.div_ceil(bn)
            {
                return Ok(one(scale_rows, scale_cols, (bm, bn)));
            }
            if rows.is_multiple_of(scale_rows) && cols.is_multiple_of(scale_cols) {
                return Ok(one(scale_rows, scale_cols, (rows / scale_rows, cols / scale_cols)));
            }
        }
        let blocks = block.map_or_else(String::new, |(m, n)| format!(" in blocks of {m} x {n}"));
        Err(shelf
            .wrong(of, format!("{} has shape {}, which does not fit {weight}{blocks}", values.name(), values.shape())))
    }

    /// One scale for a stack as a whole.
    fn whole(mut self, rows: u64) -> Self {
        self.rows = rows;
        self
    }

    /// Scales whose columns are padded: `cols` stored columns, the first ones used, blocks of `bn`.
    pub(super) fn padded(values: Stored, rows: u64, cols: u64, bn: u64) -> Self {
        Scales { values, rows, scale_rows: rows, scale_cols: cols, block: (1, bn), turned: false, adjust: Adjust::Keep }
    }

    /// Scales stored as `[groups, rows]`.
    pub(super) fn turned(values: Stored, rows: u64, groups: u64, bn: u64) -> Self {
        Scales {
            values,
            rows,
            scale_rows: rows,
            scale_cols: groups,
            block: (1, bn),
            turned: true,
            adjust: Adjust::Keep,
        }
    }

    /// The same scales, adjusted before use.
    pub(super) fn adjusted(mut self, adjust: Adjust) -> Self {
        self.adjust = adjust;
        self
    }

    /// Number of stored scales per row of scales.
    pub(super) fn columns(&self) -> u64 {
        self.scale_cols
    }

    /// Row of scales that serves row `g` of all matrices.
    fn row(&self, g: u64) -> u64 {
        g / self.rows * self.scale_rows + g % self.rows / self.block.0
    }

    fn read(
        &self,
        tensor: &Stored,
        rows: &Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let cols = self.scale_cols;
        if !self.turned {
            return match tensor.dtype() {
                // Scales of one byte are exponents: UE8M0, whatever type the file gives them.
                Dtype::U8 => {
                    let mut bytes = scratch.take_bytes(out.len());
                    let read = tensor.read_elements(rows.start * cols..rows.end * cols, &mut bytes);
                    out.iter_mut().zip(&bytes).for_each(|(x, &b)| *x = element::e8m0(b));
                    scratch.give_bytes(bytes);
                    read
                }
                _ => tensor.read_floats(rows.start * cols..rows.end * cols, out, scratch),
            };
        }
        let count = (rows.end - rows.start) as usize;
        let mut window = scratch.take_floats(out.len());
        let read = tensor.read_window(0..cols, rows.clone(), &mut window, scratch);
        for (g, line) in window.chunks_exact(count).enumerate() {
            line.iter().enumerate().for_each(|(r, &s)| out[r * cols as usize + g] = s);
        }
        scratch.give_floats(window);
        read
    }

    fn adjust(&self, rows: &Range<u64>, scales: &mut [f32]) -> Result<(), ReadError> {
        let (factors, divide) = match &self.adjust {
            Adjust::Keep => return Ok(()),
            Adjust::Round(precision) => {
                element::round_all(*precision, scales);
                return Ok(());
            }
            Adjust::Times(f) => (f.read_all_floats()?, false),
            Adjust::DividedBy(f) => (f.read_all_floats()?, true),
        };
        for (row, line) in rows.clone().zip(scales.chunks_exact_mut(self.scale_cols as usize)) {
            let matrix = (row / self.scale_rows) as usize;
            let factor = if factors.len() == 1 { factors[0] } else { factors.get(matrix).copied().unwrap_or(f32::NAN) };
            line.iter_mut().for_each(|s| if divide { *s /= factor } else { *s *= factor });
        }
        Ok(())
    }
}

/// Rows of one matrix of a stack.
fn matrix_rows(shape: &Shape) -> u64 {
    match shape.dims() {
        [.., rows, _] => *rows,
        _ => shape.rows(),
    }
}

/// A packed matrix, or a stack of them.
pub(super) struct Grid {
    pub(super) shape: Shape,
    pub(super) codes: Codes,
    pub(super) scales: Scales,
    pub(super) zeros: Option<Zeros>,
    /// Group of each column, where columns were sorted before they were grouped (act-order).
    pub(super) groups: Option<Stored>,
    /// A last factor, applied after the scale.
    pub(super) last: Option<f32>,
    /// The type that values are rounded to.
    pub(super) precision: GgmlType,
}

impl Grid {
    /// Codes and scales, nothing else.
    pub(super) fn new(shape: Shape, codes: Codes, scales: Scales, precision: GgmlType) -> Self {
        Grid { shape, codes, scales, zeros: None, groups: None, last: None, precision }
    }

    fn stored(&self) -> &Stored {
        match &self.codes {
            Codes::Elements(s) | Codes::Pairs(s, _) | Codes::Fields { bytes: s, .. } => s,
        }
    }

    /// Codes of `rows` as floats.
    fn read_codes(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let cols = self.shape.row_len();
        let (bytes, row_bytes) = match &self.codes {
            Codes::Elements(s) => return s.read_floats(rows.start * cols..rows.end * cols, out, scratch),
            Codes::Pairs(s, _) => (s, cols / 2),
            Codes::Fields { bytes, bits, layout, .. } => (bytes, layout.words(*bits, cols) * 4),
        };
        let step = (STEP / row_bytes.max(1)).max(1);
        let mut buffer = scratch.take_bytes((step.min(rows.end - rows.start) * row_bytes) as usize);
        let mut result = Ok(());
        let mut row = rows.start;
        for out in out.chunks_mut((step * cols) as usize) {
            let count = out.len() as u64 / cols;
            let buffer = &mut buffer[..(count * row_bytes) as usize];
            result = bytes.read_elements(row * row_bytes..(row + count) * row_bytes, buffer);
            if result.is_err() {
                break;
            }
            match &self.codes {
                Codes::Pairs(_, table) => decode_pairs(table, buffer, out),
                Codes::Fields { bits, layout, offset, .. } => {
                    for (line, out) in buffer.chunks_exact(row_bytes as usize).zip(out.chunks_exact_mut(cols as usize))
                    {
                        decode_fields(*layout, *bits, *offset, line, out);
                    }
                }
                Codes::Elements(_) => {}
            }
            row += count;
        }
        scratch.give_bytes(buffer);
        result
    }

    /// Zero points of `rows` of scales (`matrix_rows` are the rows of the matrix that they serve).
    fn read_zeros(
        &self,
        zeros: &Zeros,
        rows: &Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let cols = self.scales.scale_cols;
        match zeros {
            Zeros::Elements(t) | Zeros::Added(t) if t.dtype() != Dtype::U8 => self.scales.read(t, rows, out, scratch),
            Zeros::Elements(t) | Zeros::Added(t) => t.read_floats(rows.start * cols..rows.end * cols, out, scratch),
            Zeros::Fields { bytes, bits, words, offset } => {
                let mut buffer = scratch.take_bytes(((rows.end - rows.start) * words * 4) as usize);
                let read = bytes.read_elements(rows.start * words * 4..rows.end * words * 4, &mut buffer);
                for (line, out) in buffer.chunks_exact((*words * 4) as usize).zip(out.chunks_exact_mut(cols as usize)) {
                    decode_fields(Layout::PerWord, *bits, *offset, line, out);
                }
                scratch.give_bytes(buffer);
                read
            }
            Zeros::Columns { bytes, bits, layout, columns, offset } => {
                let per = u64::from(32 / *bits);
                let (first, end) = match layout {
                    Layout::PerWord => (rows.start / per, (rows.end - 1) / per + 1),
                    Layout::Dense => (rows.start * u64::from(*bits) / 32, (rows.end * u64::from(*bits)).div_ceil(32)),
                };
                let mut buffer = scratch.take_bytes(((end - first) * columns * 4) as usize);
                let read = bytes.read_elements(first * columns * 4..end * columns * 4, &mut buffer);
                for (r, out) in rows.clone().zip(out.chunks_exact_mut(cols as usize)) {
                    for (g, z) in out.iter_mut().enumerate() {
                        let at = |k: u64| word(&buffer, (k - first) * columns + g as u64);
                        *z = (layout.field(*bits, r, at) as i32 - offset) as f32;
                    }
                }
                scratch.give_bytes(buffer);
                read
            }
        }
    }

    /// The rows of scales that serve `rows`, as they are used. Give the buffer back.
    fn read_scales(&self, rows: &Range<u64>, scratch: &mut Scratch) -> Result<(Range<u64>, Vec<f32>), ReadError> {
        let s = &self.scales;
        let span = s.row(rows.start)..s.row(rows.end - 1) + 1;
        let mut scales = scratch.take_floats(((span.end - span.start) * s.scale_cols) as usize);
        s.read(&s.values, &span, &mut scales, scratch)?;
        s.adjust(&span, &mut scales)?;
        Ok((span, scales))
    }

    /// Turns codes into weights, a row at a time.
    fn scale(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let s = &self.scales;
        let width = s.scale_cols as usize;
        let (span, scales) = self.read_scales(&rows, scratch)?;
        let len = scales.len();
        let mut zeros = scratch.take_floats(if self.zeros.is_some() { len } else { 0 });
        if let Some(z) = &self.zeros {
            self.read_zeros(z, &span, &mut zeros, scratch)?;
        }
        let groups = self.groups.as_ref().map(Stored::read_all_bytes).transpose()?;
        let cols = self.shape.row_len() as usize;
        let added = matches!(self.zeros, Some(Zeros::Added(_)));
        let block = s.block.1 as usize;
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let at = (s.row(row) - span.start) as usize * width;
            let scales = &scales[at..at + width];
            let zeros = if self.zeros.is_some() { &zeros[at..at + width] } else { &[][..] };
            if let Some(groups) = &groups {
                for (c, x) in out.iter_mut().enumerate() {
                    let g = word(groups, c as u64) as usize;
                    let (Some(scale), zero) = (scales.get(g), zeros.get(g).copied().unwrap_or(0.0)) else {
                        return Err(ReadError::new(self.describe(), format!("column {c} is in group {g} of {width}")));
                    };
                    *x = (*x - zero) * scale;
                }
                continue;
            }
            if block == 1 {
                out.iter_mut().zip(scales).for_each(|(x, s)| *x *= s);
                continue;
            }
            for (g, (out, &scale)) in out.chunks_mut(block).zip(scales).enumerate() {
                match zeros.get(g) {
                    None => out.iter_mut().for_each(|x| *x *= scale),
                    Some(zero) if added => out.iter_mut().for_each(|x| *x = *x * scale + zero),
                    Some(zero) => out.iter_mut().for_each(|x| *x = (*x - zero) * scale),
                }
            }
        }
        scratch.give_floats(scales);
        scratch.give_floats(zeros);
        Ok(())
    }
}

impl RowSource for Grid {
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
        self.read_codes(rows.clone(), out, scratch)?;
        self.scale(rows, out, scratch)?;
        if let Some(last) = self.last {
            out.iter_mut().for_each(|x| *x *= last);
        }
        element::round_all(self.precision, out);
        Ok(())
    }

    fn raw(&self) -> Option<RawFormat> {
        let (Codes::Elements(stored), None, None) = (&self.codes, &self.zeros, &self.groups) else { return None };
        let codes = stored.raw()?.codes;
        let scales = RawScales { group: self.scales.block.1, factor: self.last.unwrap_or(1.0), round: self.precision };
        let format = RawFormat { codes, scales: Some(scales) };
        // All columns must have a scale: those without one stay as they are, which a device does not know.
        (format.scales_per_row(self.shape.row_len()) <= self.scales.scale_cols).then_some(format)
    }

    fn read_raw_rows(
        &self,
        rows: Range<u64>,
        codes: &mut [u8],
        scales: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        if rows.is_empty() {
            return Ok(());
        }
        let cols = self.shape.row_len();
        self.stored().read_elements(rows.start * cols..rows.end * cols, codes)?;
        let (span, read) = self.read_scales(&rows, scratch)?;
        let per_row = cols.div_ceil(self.scales.block.1) as usize;
        for (row, out) in rows.zip(scales.chunks_exact_mut(per_row)) {
            let at = ((self.scales.row(row) - span.start) * self.scales.scale_cols) as usize;
            out.copy_from_slice(&read[at..at + per_row]);
        }
        scratch.give_floats(read);
        Ok(())
    }

    fn describe(&self) -> String {
        self.stored().describe()
    }
}
