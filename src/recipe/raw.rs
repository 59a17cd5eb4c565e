//! Rows as they lie in a file, for a device that decodes and merges them by itself.
//!
//! Most tensors of a model are a stored matrix, with low-rank changes and perhaps other rows in front: their
//! bytes can go to a device as they are, which is half or a quarter of what their values would take. What is
//! neither is evaluated here, and its values are sent.

use std::ops::Range;

use super::eval::SPAN_FACTOR;
use super::{Delta, Elementwise, LowRank, Magnitudes, Node, ReadError, Recipe, RowMap, RowSource, Scratch};
use crate::quant::GgmlType;

/// How stored rows become values: codes, and scales that multiply them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RawFormat {
    /// What the elements are.
    pub codes: RawCodes,
    /// What they are multiplied by, if anything.
    pub scales: Option<RawScales>,
}

/// Elements of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RawCodes {
    /// Little-endian f32.
    F32,
    /// Little-endian f16.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Signed bytes.
    I8,
    /// Eight-bit floats, E4M3FN.
    E4M3,
    /// Eight-bit floats, E5M2.
    E5M2,
    /// Two codes in a byte, the even element in the high nibble: indices of these values.
    FourBit(&'static [f32; 16]),
}

/// Scales along rows: `value = round(code * scale * factor)`, each product rounded to f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RawScales {
    /// Columns that share a scale; the last group of a row may be shorter.
    pub group: u64,
    /// A last factor.
    pub factor: f32,
    /// What the value is rounded to: F16, BF16, or F32 for no rounding.
    pub round: GgmlType,
}

impl RawFormat {
    /// Plain elements.
    pub const fn plain(codes: RawCodes) -> Self {
        RawFormat { codes, scales: None }
    }

    /// The same with values rounded to a type; `None` where decoding has no such step, or already rounds.
    pub fn rounded(self, to: Option<GgmlType>) -> Option<Self> {
        let Some(round) = to else { return Some(self) };
        let scales = self.scales.filter(|s| s.round == GgmlType::F32)?;
        Some(RawFormat { scales: Some(RawScales { round, ..scales }), ..self })
    }

    /// Bytes of the codes of a row; rows of four-bit codes have an even length.
    pub fn row_bytes(&self, row_len: u64) -> u64 {
        match self.codes {
            RawCodes::F32 => row_len * 4,
            RawCodes::F16 | RawCodes::BF16 => row_len * 2,
            RawCodes::I8 | RawCodes::E4M3 | RawCodes::E5M2 => row_len,
            RawCodes::FourBit(_) => row_len / 2,
        }
    }

    /// Scales of a row.
    pub fn scales_per_row(&self, row_len: u64) -> u64 {
        self.scales.map_or(0, |s| row_len.div_ceil(s.group))
    }
}

/// A part of a recipe that a device can evaluate: a stored tensor, rows of it, low-rank changes.
pub struct RawRows<'a> {
    source: &'a dyn RowSource,
    format: RawFormat,
    /// Choices of rows, the outermost first.
    maps: Vec<&'a RowMap>,
    /// How many of them stand in front of the merge: the factor B goes through these only.
    outer: usize,
    deltas: Vec<(&'a dyn Delta, &'a dyn LowRank)>,
}

impl<'a> RawRows<'a> {
    /// How the source's bytes decode.
    pub fn format(&self) -> RawFormat {
        self.format
    }

    /// The changes, in order: each with its factors.
    pub fn deltas(&self) -> &[(&'a dyn Delta, &'a dyn LowRank)] {
        &self.deltas
    }

    /// Reads the codes and scales of rows `rows`, row after row.
    pub fn read(
        &self,
        rows: Range<u64>,
        codes: &mut [u8],
        scales: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let count = (rows.end - rows.start) as usize;
        let (row_bytes, row_scales) = (codes.len() / count.max(1), scales.len() / count.max(1));
        gather(&self.maps, rows, |piece| match piece {
            Piece::Straight { at, from } => {
                let n = (from.end - from.start) as usize;
                let codes = &mut codes[at * row_bytes..(at + n) * row_bytes];
                self.source.read_raw_rows(from, codes, &mut scales[at * row_scales..(at + n) * row_scales], scratch)
            }
            Piece::Picked { span, picks } => {
                let n = (span.end - span.start) as usize;
                let (mut all, mut all_scales) =
                    (scratch.take_bytes(n * row_bytes), scratch.take_floats(n * row_scales));
                let read = self.source.read_raw_rows(span, &mut all, &mut all_scales, scratch);
                for (at, pick) in picks.enumerate() {
                    codes[at * row_bytes..][..row_bytes].copy_from_slice(&all[pick * row_bytes..][..row_bytes]);
                    scales[at * row_scales..][..row_scales]
                        .copy_from_slice(&all_scales[pick * row_scales..][..row_scales]);
                }
                scratch.give_bytes(all);
                scratch.give_floats(all_scales);
                read
            }
        })
    }

    /// Reads the rows of B that belong to rows `rows`.
    pub fn read_b(
        &self,
        factors: &dyn LowRank,
        rows: Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.gather_floats(rows, factors.rank(), out, scratch, |r, out, s| factors.read_b(r, out, s))
    }

    /// Reads the magnitudes that belong to rows `rows`.
    pub fn read_magnitudes(
        &self,
        magnitudes: &dyn Magnitudes,
        rows: Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.gather_floats(rows, 1, out, scratch, |r, out, s| magnitudes.read(r, out, s))
    }

    /// Reads `width` floats for each row, where they are known for the rows of the merged tensor.
    fn gather_floats(
        &self,
        rows: Range<u64>,
        width: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
        mut read: impl FnMut(Range<u64>, &mut [f32], &mut Scratch) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        gather(&self.maps[..self.outer], rows, |piece| match piece {
            Piece::Straight { at, from } => {
                let n = (from.end - from.start) as usize;
                read(from, &mut out[at * width..(at + n) * width], scratch)
            }
            Piece::Picked { span, picks } => {
                let mut all = scratch.take_floats((span.end - span.start) as usize * width);
                let result = read(span, &mut all, scratch);
                for (at, pick) in picks.enumerate() {
                    out[at * width..][..width].copy_from_slice(&all[pick * width..][..width]);
                }
                scratch.give_floats(all);
                result
            }
        })
    }
}

/// Rows to be read.
enum Piece<P> {
    /// Rows `from` of the input go to place `at` of the output.
    Straight { at: usize, from: Range<u64> },
    /// Of the rows of the span, these make up the whole output.
    Picked { span: Range<u64>, picks: P },
}

/// Finds out which input rows the rows `rows` are: a span to pick from where they lie close together, as within
/// a rotary head, and otherwise each run of consecutive rows.
fn gather<'m>(
    maps: &'m [&'m RowMap],
    rows: Range<u64>,
    mut read: impl FnMut(Piece<Box<dyn Iterator<Item = usize> + 'm>>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let count = rows.end - rows.start;
    if count == 0 {
        return Ok(());
    }
    let source = move |i: u64| maps.iter().fold(i, |i, map| map.source(i));
    let run_from = |i: u64| {
        let first = source(i);
        (i + 1..rows.end).zip(first + 1..).take_while(|&(j, next)| source(j) == next).count() as u64 + 1
    };
    let first_run = run_from(rows.start);
    let (low, high) = rows.clone().map(source).fold((u64::MAX, 0), |(l, h), i| (l.min(i), h.max(i)));
    if first_run < count && high - low < SPAN_FACTOR * count {
        let picks = rows.map(move |i| (source(i) - low) as usize);
        return read(Piece::Picked { span: low..high + 1, picks: Box::new(picks) });
    }
    let mut i = rows.start;
    while i < rows.end {
        let (from, run) = (source(i), run_from(i));
        read(Piece::Straight { at: (i - rows.start) as usize, from: from..from + run })?;
        i += run;
    }
    Ok(())
}

impl Recipe {
    /// Cuts rows `rows` where another part of a concatenation begins; each piece with the form in which a device
    /// can evaluate it, if there is one. That form counts rows in the part, from `shift` fewer.
    pub fn raw_parts(&self, rows: Range<u64>) -> Vec<RawPart<'_>> {
        let mut parts = Vec::new();
        self.collect_raw(rows, 0, &mut parts);
        parts
    }

    fn collect_raw<'a>(&'a self, rows: Range<u64>, shift: u64, out: &mut Vec<RawPart<'a>>) {
        if let Node::Concat { parts, starts } = &*self.node {
            for (part, &start) in parts.iter().zip(starts) {
                let (from, to) = (rows.start.max(start), rows.end.min(start + part.shape.rows()));
                if from < to {
                    part.collect_raw(from - start..to - start, shift + start, out);
                }
            }
            return;
        }
        out.push(RawPart { recipe: self, rows, shift, form: self.raw_form() });
    }

    fn raw_form(&self) -> Option<RawRows<'_>> {
        let (mut at, mut maps, mut merge, mut round) = (self, Vec::new(), None, None);
        loop {
            match &*at.node {
                Node::Source(source) => {
                    let format = source.raw()?.rounded(round)?;
                    let (outer, deltas) = merge.unwrap_or((maps.len(), Vec::new()));
                    return Some(RawRows { source: &**source, format, maps, outer, deltas });
                }
                Node::Rows { input, map } => {
                    maps.push(map);
                    at = input;
                }
                // The same rows under another shape, as those of a stack.
                Node::Reshape(input) if input.shape.row_len() == at.shape.row_len() => at = input,
                // Rounding is the last step of decoding, where nothing is merged in between.
                Node::Map { input, op: Elementwise::Round(to) } if round.is_none() => {
                    round = Some(*to);
                    at = input;
                }
                Node::Merge { base, deltas } if merge.is_none() && round.is_none() => {
                    let low_rank: Option<Vec<_>> = deltas.iter().map(|d| Some((&**d, d.low_rank()?))).collect();
                    merge = Some((maps.len(), low_rank?));
                    at = base;
                }
                _ => return None,
            }
        }
    }
}

/// Rows of one part of a concatenation, or of a recipe that is none.
pub struct RawPart<'a> {
    /// The part.
    pub recipe: &'a Recipe,
    /// Its rows.
    pub rows: Range<u64>,
    /// How many rows of the whole stand before its row 0.
    pub shift: u64,
    /// How a device can evaluate it.
    pub form: Option<RawRows<'a>>,
}
