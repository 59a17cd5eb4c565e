//! GPTQ (AutoGPTQ, GPTQModel, auto-round): 2, 3, 4 or 8 bits, with or without activation order.
//!
//! The file holds the transposed matrix: `qweight` is `[in * bits / 32, out]` words, a column of words being the
//! stream of one output row's codes, least significant bits first. `qzeros` `[groups, out * bits / 32]` likewise
//! along the rows, `scales` `[groups, out]`, `g_idx` `[in]` the group of each column (i32, or i64).
//!
//! `w = round_to_scale_type(scale * (code - zero))`, exactly GPTQModel's `dequantize_weight`. Format `gptq` stores
//! `zero - 1`: its writer subtracted a constant from whole words, so that it is added to whole words here (a zero
//! point of 0 borrows from its neighbour); AutoGPTQ's readers add per field. `gptq_v2` stores the zero point.
//!
//! A chunk of rows lies in a strip of columns of the file.

use std::ops::Range;

use safetensors::Dtype;

use super::fields::{Layout, TURNED, decode_words, turn, word};
use super::rounded::Rounded;
use super::strips::{Strip, Strips};
use super::{Shelf, SourceError, awq, type_of};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::stored::Stored;

/// How stored zero points become zero points.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ZeroRule {
    /// As stored.
    Plain,
    /// One more, carried over the whole word.
    AddToWord,
    /// One more in each field by itself.
    AddToField,
}

/// Unpacks every `qweight`.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    let format = shelf.text("checkpoint_format").or_else(|| shelf.text("format")).unwrap_or("gptq").to_string();
    let marlin = shelf.config.get("is_marlin_format").and_then(|v| v.as_bool()) == Some(true);
    let quantizer = shelf.config.pointer("/meta/quantizer");
    let quantizer = quantizer.map(|q| q.as_array().and_then(|a| a.first()).unwrap_or(q));
    let auto_gptq = quantizer.and_then(|q| q.as_str()).is_some_and(|q| q.starts_with("auto_gptq"));
    if marlin {
        return Err(shelf.unsupported("the weights are in the order of the Marlin GPU kernel"));
    }
    let rule = match format.as_str() {
        "gptq" if auto_gptq => ZeroRule::AddToField,
        "gptq" => ZeroRule::AddToWord,
        "gptq_v2" => ZeroRule::Plain,
        other => return Err(shelf.unsupported(format!("checkpoint_format {other} is not read"))),
    };
    for module in shelf.bases(".qweight") {
        unpack_module(shelf, &module, rule)?;
    }
    Ok(())
}

/// auto-round writes the layout of GPTQ or of AWQ; `packing_format` tells.
pub(super) fn unpack_auto_round(shelf: &mut Shelf) -> Result<(), SourceError> {
    let packing = shelf.text("packing_format").unwrap_or("auto_round:auto_gptq").to_string();
    match packing.rsplit(':').next().unwrap_or_default() {
        "auto_gptq" | "gptq" => {
            for module in shelf.bases(".qweight") {
                unpack_module(shelf, &module, ZeroRule::AddToWord)?;
            }
            Ok(())
        }
        "auto_awq" | "awq" => awq::unpack(shelf),
        _ => Err(shelf.unsupported(format!("packing_format {packing} is not read"))),
    }
}

fn unpack_module(shelf: &mut Shelf, module: &str, rule: ZeroRule) -> Result<(), SourceError> {
    let qweight = shelf.need(&format!("{module}.qweight"), module)?;
    let qzeros = shelf.need(&format!("{module}.qzeros"), module)?;
    let scales = shelf.need(&format!("{module}.scales"), module)?;
    let g_idx = shelf.take(&format!("{module}.g_idx"));
    shelf.check_dtype(module, &qweight, &[Dtype::I32])?;
    shelf.check_dtype(module, &qzeros, &[Dtype::I32])?;
    let (&[words, out], &[groups, zero_words], &[scale_groups, scale_out]) =
        (qweight.shape().dims(), qzeros.shape().dims(), scales.shape().dims())
    else {
        return Err(shelf.wrong(module, "qweight, qzeros and scales are not all matrices"));
    };
    let bits = (zero_words * 32).checked_div(out).unwrap_or(0) as u32;
    if !matches!(bits, 2 | 3 | 4 | 8) || zero_words * 32 != out * u64::from(bits) {
        let shape = qzeros.shape();
        return Err(
            shelf.wrong(module, format!("qzeros of shape {shape} do not hold 2, 3, 4 or 8 bits for {out} rows"))
        );
    }
    // Widths of single modules stand in tables of patterns.
    let varied = ["dynamic", "extra_config"].iter().any(|k| shelf.config.get(*k).is_some_and(|v| !v.is_null()));
    if let Some(told) = shelf.number("bits").filter(|b| *b != u64::from(bits) && !varied) {
        return Err(
            shelf.wrong(module, format!("the configuration says {told} bits, but qzeros hold {bits} for {out} rows"))
        );
    }
    let inputs = words * 32 / u64::from(bits);
    if (scale_groups, scale_out) != (groups, out) || groups == 0 || inputs == 0 {
        return Err(shelf.wrong(module, format!("scales of shape {} need [{groups}, {out}]", scales.shape())));
    }
    let group = match g_idx {
        Some(g_idx) => {
            shelf.check_shape(module, &g_idx, &[inputs])?;
            shelf.check_dtype(module, &g_idx, &[Dtype::I32, Dtype::I64])?;
            Group::Index(g_idx)
        }
        None if groups > 1 && shelf.config.get("desc_act").and_then(|v| v.as_bool()) == Some(true) => {
            return Err(shelf.wrong(
                module,
                "its g_idx is missing, without which columns in activation order (desc_act) have no group",
            ));
        }
        None => Group::Every(match shelf.number("group_size") {
            Some(size) if size > 0 && inputs.div_ceil(size) == groups => size,
            _ => inputs.div_ceil(groups),
        }),
    };
    let shape = shelf.shape(module, [out, inputs])?;
    let precision = type_of(&scales);
    let qweight = Strips::new(qweight, shelf.strips.clone());
    let source = Gptq { shape, bits, rule, qweight, qzeros, scales, group, groups };
    shelf.append(&format!("{module}.weight"), Rounded::new(source, precision))
}

/// Columns that are decoded in one step.
const SPAN: usize = 256;

/// Rows that are decoded in one step: a cache line of each line of the file.
const BESIDE: usize = 16;

/// Columns of a group, where a stored index only says that columns are in their order: files without activation order
/// have one, too.
fn even_groups(index: &Option<Vec<u8>>, inputs: usize) -> Option<usize> {
    let index = index.as_ref()?;
    let size = (0..inputs).find(|&c| word(index, c as u64) != 0).unwrap_or(inputs);
    (size > 0 && (0..inputs).all(|c| word(index, c as u64) as usize == c / size)).then_some(size)
}

/// Groups of columns as words of 32 bits, which files hold; GPTQModel's modules in memory hold 64.
fn read_index(g_idx: &Stored) -> Result<Vec<u8>, ReadError> {
    let bytes = g_idx.read_all_bytes()?;
    if g_idx.dtype() != Dtype::I64 {
        return Ok(bytes);
    }
    let groups = bytes.as_chunks::<8>().0.iter().map(|g| i64::from_le_bytes(*g));
    let narrow = groups.enumerate().map(|(c, group)| match i32::try_from(group) {
        Ok(group) => Ok(group.to_le_bytes()),
        Err(_) => Err(ReadError::new(g_idx.describe(), format!("puts column {c} in group {group}: no such group"))),
    });
    Ok(narrow.collect::<Result<Vec<_>, _>>()?.into_flattened())
}

/// Which group a column is in.
enum Group {
    /// As many columns each.
    Every(u64),
    /// By a stored index.
    Index(Stored),
}

struct Gptq {
    shape: Shape,
    bits: u32,
    rule: ZeroRule,
    qweight: Strips,
    qzeros: Stored,
    scales: Stored,
    group: Group,
    groups: u64,
}

impl Gptq {
    /// Zero points of `rows`: `[groups, rows]`.
    fn read_zeros(&self, rows: &Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let bits = u64::from(self.bits);
        let words = rows.start * bits / 32..(rows.end * bits).div_ceil(32);
        let width = ((words.end - words.start) * 4) as usize;
        let mut bytes = scratch.take_bytes(self.groups as usize * width);
        self.qzeros.read_window_bytes(0..self.groups, words.clone(), &mut bytes)?;
        let mask = (1u32 << self.bits) - 1;
        let ones = match self.bits {
            2 => 0x5555_5555,
            4 => 0x1111_1111,
            _ => 0x0101_0101,
        };
        let whole = self.rule == ZeroRule::AddToWord && self.bits != 3;
        let each = u32::from(self.rule != ZeroRule::Plain && !whole);
        let count = (rows.end - rows.start) as usize;
        for (line, out) in bytes.chunks_exact(width).zip(out.chunks_exact_mut(count)) {
            let at = |k: u64| word(line, k - words.start).wrapping_add(if whole { ones } else { 0 });
            for (r, z) in rows.clone().zip(out) {
                *z = (Layout::Dense.field(self.bits, r, at).wrapping_add(each) & mask) as f32;
            }
        }
        scratch.give_bytes(bytes);
        Ok(())
    }
}

/// Rows that are all in one strip, on their way to floats.
struct Decoding<'a> {
    source: &'a Gptq,
    strip: &'a Strip,
    rows: Range<u64>,
    /// Columns of a group, where groups are columns that follow one another and fill whole words.
    size: Option<usize>,
    /// The stored group of each column.
    index: Option<&'a [u8]>,
    /// `[groups, rows]`
    zeros: &'a [f32],
    /// `[groups, rows]`
    scales: &'a [f32],
    /// Room for `TURNED` columns of all rows.
    columns: &'a mut [f32],
    /// `[rows, inputs]`
    out: &'a mut [f32],
}

impl pulp::WithSimd for Decoding<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        match self.size {
            Some(size) => self.by_rows(size),
            None => self.by_columns(),
        }
    }
}

impl Decoding<'_> {
    /// Row by row, in groups of `group` columns.
    #[inline(always)]
    fn by_rows(self, group: usize) {
        let Decoding { source, strip, rows, zeros, scales, out, .. } = self;
        let (bits, inputs) = (source.bits as usize, source.shape.row_len() as usize);
        let count = (rows.end - rows.start) as usize;
        let mut room = [0; BESIDE * SPAN / 4];
        for (beside, out) in out.chunks_mut(BESIDE * inputs).enumerate() {
            let first_row = beside * BESIDE;
            for (g, start) in (0..inputs).step_by(group).enumerate() {
                let end = (start + group).min(inputs);
                for first in (start..end).step_by(SPAN) {
                    let width = SPAN.min(end - first);
                    let height = (width * bits).div_ceil(32);
                    let words = &mut room[..out.len() / inputs * height];
                    strip.columns(first * bits / 32, rows.start + first_row as u64, height, words);
                    for (r, (words, out)) in words.chunks_exact(height).zip(out.chunks_exact_mut(inputs)).enumerate() {
                        let at = g * count + first_row + r;
                        let (scale, zero) = (scales[at], zeros[at]);
                        let out = &mut out[first..first + width];
                        decode_words(source.bits, 0, words.iter().copied(), out);
                        for x in out {
                            *x = scale * (*x - zero);
                        }
                    }
                }
            }
        }
    }

    /// Column by column, each in any group.
    #[inline(always)]
    fn by_columns(self) {
        let Decoding { source, strip, rows, index, zeros, scales, columns, out, .. } = self;
        let count = (rows.end - rows.start) as usize;
        let inputs = source.shape.row_len() as usize;
        for first in (0..inputs).step_by(TURNED) {
            let width = TURNED.min(inputs - first);
            for (c, column) in (first..first + width).zip(columns.chunks_exact_mut(count)) {
                source.unpack_column(strip, rows.start, c, column);
                let at = source.group(index, c) * count;
                for ((x, scale), zero) in column.iter_mut().zip(&scales[at..]).zip(&zeros[at..]) {
                    *x = scale * (*x - zero);
                }
            }
            turn(&columns[..width * count], count, first, inputs, out);
        }
    }
}

impl Gptq {
    /// The group of column `c`.
    fn group(&self, index: Option<&[u8]>, c: usize) -> usize {
        match (index, &self.group) {
            (Some(index), _) => word(index, c as u64) as usize,
            (None, Group::Every(size)) => c / *size as usize,
            (None, Group::Index(_)) => usize::MAX,
        }
    }

    /// Codes of column `c` of the rows from `row` on.
    #[inline(always)]
    fn unpack_column(&self, strip: &Strip, row: u64, c: usize, out: &mut [f32]) {
        let at = c * self.bits as usize;
        let (line, shift) = (at / 32, (at % 32) as u32);
        let mask = (1u32 << self.bits) - 1;
        let mut lines = strip.lines(line, row);
        let (Some(low), high) = (lines.next(), lines.next()) else { return };
        match high.filter(|_| shift + self.bits > 32) {
            None => {
                for (x, w) in out.iter_mut().zip(low) {
                    *x = (u32::from_le_bytes(*w) >> shift & mask) as i32 as f32;
                }
            }
            Some(high) => {
                for ((x, w), h) in out.iter_mut().zip(low).zip(high) {
                    let low = u32::from_le_bytes(*w) >> shift;
                    *x = ((low | u32::from_le_bytes(*h) << (32 - shift)) & mask) as i32 as f32;
                }
            }
        }
    }
}

impl RowSource for Gptq {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::F32
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        if out.is_empty() {
            return Ok(());
        }
        let inputs = self.shape.row_len() as usize;
        let index = match &self.group {
            Group::Index(g_idx) => Some(read_index(g_idx)?),
            Group::Every(_) => None,
        };
        let group = |c: usize| self.group(index.as_deref(), c);
        if let Some(c) = (0..inputs).find(|&c| group(c) >= self.groups as usize) {
            let cause = format!("g_idx puts column {c} in group {} of {}", group(c) as i32, self.groups);
            return Err(ReadError::new(self.describe(), cause));
        }
        // Columns that follow one another within words that they fill.
        let unit = if 32 % self.bits == 0 { u64::from(32 / self.bits) } else { 32 };
        let size = match self.group {
            Group::Every(size) if size.is_multiple_of(unit) => Some(size as usize),
            _ => even_groups(&index, inputs).filter(|size| (*size as u64).is_multiple_of(unit)),
        };
        let mut out = out;
        let mut start = rows.start;
        while start < rows.end {
            let strip = self.qweight.of(start)?;
            let rows = start..rows.end.min(strip.end());
            start = rows.end;
            let count = (rows.end - rows.start) as usize;
            let (part, rest) = out.split_at_mut(count * inputs);
            out = rest;
            let len = self.groups as usize * count;
            let (mut scales, mut zeros) = (scratch.take_floats(len), scratch.take_floats(len));
            self.scales.read_window(0..self.groups, rows.clone(), &mut scales, scratch)?;
            self.read_zeros(&rows, &mut zeros, scratch)?;
            let mut columns = scratch.take_floats(TURNED * count);
            pulp::Arch::new().dispatch(Decoding {
                source: self,
                strip: &strip,
                rows,
                size,
                index: index.as_deref(),
                zeros: &zeros,
                scales: &scales,
                columns: &mut columns,
                out: part,
            });
            scratch.give_floats(columns);
            scratch.give_floats(scales);
            scratch.give_floats(zeros);
        }
        Ok(())
    }

    fn describe(&self) -> String {
        self.qweight.describe()
    }
}
