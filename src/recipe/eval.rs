//! Evaluation: rows i..j of a recipe as f32, in memory proportional to the rows asked for.

use std::ops::Range;

use half::f16;

use super::{Node, ReadError, Recipe, RowMap, Scratch};
use crate::quant::GgmlType;

/// Elements that one step of a cropped read may hold: whole rows are read in pieces of about this size.
const CROP_STEP: u64 = 1 << 18;

/// Mapped rows are read in one piece when that piece is at most this many times as long as the rows wanted.
pub(super) const SPAN_FACTOR: u64 = 2;

impl Recipe {
    /// Rows `rows` of the result into `out`, which holds exactly `rows.len() * row_len` elements.
    pub fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        debug_assert_eq!((rows.end - rows.start) * self.shape.row_len(), out.len() as u64);
        if out.is_empty() {
            return Ok(());
        }
        let cols = self.shape.row_len();
        match &*self.node {
            Node::Source(tensor) => tensor.read_rows(rows, out, scratch),
            Node::Merge { base, deltas } => {
                base.rows(rows.clone(), out, scratch)?;
                deltas.iter().try_for_each(|d| d.apply(base, rows.clone(), out, scratch))
            }
            Node::Rows { input, map } => mapped(map, rows, cols, out, scratch, |r, out, s| input.rows(r, out, s)),
            Node::Concat { parts, starts } => {
                across(parts, starts, rows, cols, out, |part, r, out| part.rows(r, out, scratch))
            }
            Node::Transpose(input) => transposed(input, rows, 0..cols, out, scratch),
            Node::Map { input, op } => {
                input.rows(rows, out, scratch)?;
                self.map_elements(*op, out);
                Ok(())
            }
            Node::Columns { input, start } => input.window(rows, *start..start + cols, out, scratch),
            Node::Reshape(input) => reshaped(input, rows.start * cols..rows.end * cols, out, scratch),
            Node::Constant(values) => {
                out.copy_from_slice(&values[(rows.start * cols) as usize..(rows.end * cols) as usize]);
                Ok(())
            }
        }
    }

    /// The block type whose stored bytes the rows are, where they can be copied as they are.
    pub fn native(&self) -> Option<GgmlType> {
        match &*self.node {
            Node::Source(tensor) => tensor.native(),
            Node::Rows { input, .. } => input.native(),
            Node::Concat { parts, .. } => {
                let first = parts.first()?.native()?;
                parts.iter().all(|p| p.native() == Some(first)).then_some(first)
            }
            Node::Reshape(input) if input.shape.row_len() == self.shape.row_len() => input.native(),
            _ => None,
        }
    }

    /// Copies the stored blocks of rows `rows` into `out`. Call it only where [`Recipe::native`] names a type.
    pub fn native_rows(&self, rows: Range<u64>, out: &mut [u8], scratch: &mut Scratch) -> Result<(), ReadError> {
        if out.is_empty() {
            return Ok(());
        }
        let row_bytes = out.len() as u64 / (rows.end - rows.start);
        match &*self.node {
            Node::Source(tensor) => tensor.read_native_rows(rows, out, scratch),
            Node::Rows { input, map } => rows.zip(out.chunks_exact_mut(row_bytes as usize)).try_for_each(|(i, out)| {
                let source = map.source(i);
                input.native_rows(source..source + 1, out, scratch)
            }),
            Node::Concat { parts, starts } => {
                across(parts, starts, rows, row_bytes, out, |part, r, out| part.native_rows(r, out, scratch))
            }
            Node::Reshape(input) => input.native_rows(rows, out, scratch),
            _ => Err(ReadError::new(format!("{self:?}"), "has no native blocks")),
        }
    }

    /// Columns `cols` of rows `rows`, row-major: what a transposed reader needs.
    fn window(
        &self,
        rows: Range<u64>,
        cols: Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let width = cols.end - cols.start;
        if cols == (0..self.shape.row_len()) {
            return self.rows(rows, out, scratch);
        }
        match &*self.node {
            Node::Source(tensor) => tensor.read_window(rows, cols, out, scratch),
            Node::Rows { input, map } => {
                mapped(map, rows, width, out, scratch, |r, out, s| input.window(r, cols.clone(), out, s))
            }
            Node::Concat { parts, starts } => {
                across(parts, starts, rows, width, out, |part, r, out| part.window(r, cols.clone(), out, scratch))
            }
            Node::Transpose(input) => transposed(input, rows, cols, out, scratch),
            Node::Map { input, op } => {
                input.window(rows, cols, out, scratch)?;
                self.map_elements(*op, out);
                Ok(())
            }
            Node::Columns { input, start } => input.window(rows, start + cols.start..start + cols.end, out, scratch),
            Node::Merge { .. } | Node::Reshape(_) | Node::Constant(_) => {
                crop(self.shape.row_len(), rows, cols, out, scratch, |r, out, s| self.rows(r, out, s))
            }
        }
    }

    fn map_elements(&self, op: super::Elementwise, values: &mut [f32]) {
        if self.precision == GgmlType::F16 {
            values.iter_mut().for_each(|x| *x = f16::from_f32(op.apply(*x)).to_f32());
        } else {
            values.iter_mut().for_each(|x| *x = op.apply(*x));
        }
    }
}

/// Reads whole rows of `row_len` elements a few at a time and keeps the columns `cols`.
pub(super) fn crop(
    row_len: u64,
    rows: Range<u64>,
    cols: Range<u64>,
    out: &mut [f32],
    scratch: &mut Scratch,
    mut read: impl FnMut(Range<u64>, &mut [f32], &mut Scratch) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let width = (cols.end - cols.start) as usize;
    if width == 0 {
        return Ok(());
    }
    let step = (CROP_STEP / row_len.max(1)).max(1);
    let mut buffer = scratch.take_floats((step.min(rows.end - rows.start) * row_len) as usize);
    let mut start = rows.start;
    let mut target = out.chunks_exact_mut(width);
    while start < rows.end {
        let end = (start + step).min(rows.end);
        let piece = &mut buffer[..((end - start) * row_len) as usize];
        read(start..end, piece, scratch)?;
        for (row, out) in piece.chunks_exact(row_len as usize).zip(&mut target) {
            out.copy_from_slice(&row[cols.start as usize..cols.end as usize]);
        }
        start = end;
    }
    scratch.give_floats(buffer);
    Ok(())
}

/// Rows chosen by `map`. Where they lie close together, as within a rotary head, the span is read once and
/// picked from; otherwise every run of consecutive rows is read on its own.
fn mapped(
    map: &RowMap,
    rows: Range<u64>,
    width: u64,
    out: &mut [f32],
    scratch: &mut Scratch,
    mut read: impl FnMut(Range<u64>, &mut [f32], &mut Scratch) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let count = rows.end - rows.start;
    let sources = || (rows.start..rows.end).map(|i| map.source(i));
    let width = width as usize;
    if let RowMap::Stride { step: 1, start } = map {
        return read(start + rows.start..start + rows.end, out, scratch);
    }
    let (low, high) = sources().fold((u64::MAX, 0), |(l, h), i| (l.min(i), h.max(i)));
    if high - low < SPAN_FACTOR * count {
        let mut span = scratch.take_floats((high - low + 1) as usize * width);
        read(low..high + 1, &mut span, scratch)?;
        for (source, out) in sources().zip(out.chunks_exact_mut(width)) {
            let at = (source - low) as usize * width;
            out.copy_from_slice(&span[at..at + width]);
        }
        scratch.give_floats(span);
        return Ok(());
    }
    let mut i = rows.start;
    while i < rows.end {
        let first = map.source(i);
        let mut run = 1;
        while i + run < rows.end && map.source(i + run) == first + run {
            run += 1;
        }
        let at = (i - rows.start) as usize * width;
        read(first..first + run, &mut out[at..at + run as usize * width], scratch)?;
        i += run;
    }
    Ok(())
}

/// Splits a range of rows over the parts of a concatenation.
fn across<T>(
    parts: &[Recipe],
    starts: &[u64],
    rows: Range<u64>,
    width: u64,
    out: &mut [T],
    mut read: impl FnMut(&Recipe, Range<u64>, &mut [T]) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let first = starts.partition_point(|&s| s <= rows.start).saturating_sub(1);
    let mut at = 0;
    for (part, &start) in parts.iter().zip(starts).skip(first) {
        if start >= rows.end {
            break;
        }
        let (from, to) = (rows.start.max(start), rows.end.min(start + part.shape.rows()));
        if from < to {
            let len = ((to - from) * width) as usize;
            read(part, from - start..to - start, &mut out[at..at + len])?;
            at += len;
        }
    }
    Ok(())
}

/// Columns `cols` of rows `rows` of the transposed `input`: windows of the input, turned. The rows of a stack
/// of matrices are those of its first matrix, then of the next.
fn transposed(
    input: &Recipe,
    rows: Range<u64>,
    cols: Range<u64>,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), ReadError> {
    let dims = input.shape.dims();
    let (height, width) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    let taken = (cols.end - cols.start) as usize;
    let mut at = 0;
    let mut row = rows.start;
    while row < rows.end {
        let (matrix, first) = (row / width, row % width);
        let count = (width - first).min(rows.end - row);
        let mut window = scratch.take_floats(count as usize * taken);
        let base = matrix * height;
        input.window(base + cols.start..base + cols.end, first..first + count, &mut window, scratch)?;
        for (i, out) in out[at..at + count as usize * taken].chunks_exact_mut(taken).enumerate() {
            for (out, source) in out.iter_mut().zip(window[i..].iter().step_by(count as usize)) {
                *out = *source;
            }
        }
        scratch.give_floats(window);
        at += count as usize * taken;
        row += count;
    }
    Ok(())
}

/// Elements `elements` of `input` in row-major order.
fn reshaped(input: &Recipe, elements: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
    let len = input.shape.row_len();
    let (first, last) = (elements.start / len, elements.end.div_ceil(len));
    if first * len == elements.start && last * len == elements.end {
        return input.rows(first..last, out, scratch);
    }
    let mut buffer = scratch.take_floats(((last - first) * len) as usize);
    input.rows(first..last, &mut buffer, scratch)?;
    let at = (elements.start - first * len) as usize;
    out.copy_from_slice(&buffer[at..at + out.len()]);
    scratch.give_floats(buffer);
    Ok(())
}
