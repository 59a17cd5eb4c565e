//! AQLM: sums of codebook vectors.
//!
//! `codes` `[out / og, in / ig, n]` are signed but mean unsigned numbers, `codebooks` `[n, size, og, ig]`,
//! `scales` `[out / og, 1, 1, 1]`; `w[o og + a][j ig + b] = f16(f16(sum over n of codebook[code][a][b]) * scale[o])`.
//! Equals `aqlm.utils._dequantize_weight` for one and two codebooks; more than two sum in another order there, and
//! are refused. The codebooks (1 MiB at most for the published sizes) are read once per chunk of rows.

use std::ops::Range;

use safetensors::Dtype;

use super::{Shelf, SourceError, type_of};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;
use crate::source::stored::Stored;

/// The largest codebooks that are held: 2 codebooks of 2^16 vectors of 32 elements.
const MAX_CODEBOOK: u64 = 1 << 22;

/// Unpacks every `codes`.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for module in shelf.bases(".codes") {
        let place = format!("{module}.codes");
        let codes = shelf.need(&place, &module)?;
        let books = shelf.need(&format!("{module}.codebooks"), &module)?;
        let scales = shelf.need(&format!("{module}.scales"), &module)?;
        shelf.check_dtype(&module, &codes, &[Dtype::I8, Dtype::U8, Dtype::I16])?;
        let (&[outs, ins, count], &[n, size, og, ig]) = (codes.shape().dims(), books.shape().dims()) else {
            return Err(shelf
                .wrong(&module, format!("codes {} or codebooks {} have another rank", codes.shape(), books.shape())));
        };
        if n != count || n == 0 || size == 0 || scales.shape().elements() != outs {
            let (c, b, s) = (codes.shape(), books.shape(), scales.shape());
            return Err(shelf.wrong(&module, format!("codes {c}, codebooks {b} and scales {s} do not fit each other")));
        }
        if n > 2 || books.shape().elements() > MAX_CODEBOOK {
            return Err(
                shelf.wrong(&module, format!("codebooks of shape {} are not read, only one or two", books.shape()))
            );
        }
        let shape = shelf.shape(&module, [outs.saturating_mul(og), ins.saturating_mul(ig)])?;
        let precision = type_of(&books);
        shelf.put(&place, &format!("{module}.weight"), Aqlm { shape, precision, codes, books, scales })?;
    }
    Ok(())
}

struct Aqlm {
    shape: Shape,
    precision: GgmlType,
    codes: Stored,
    books: Stored,
    scales: Stored,
}

impl RowSource for Aqlm {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.precision
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let &[n, size, og, ig] = self.books.shape().dims() else { return Ok(()) };
        let cols = self.shape.row_len();
        let (ins, mask) = (cols / ig, size - 1);
        let mut books = scratch.take_floats(self.books.shape().elements() as usize);
        self.books.read_floats(0..self.books.shape().elements(), &mut books, scratch)?;
        let width = self.codes.width() as usize;
        let mut line = scratch.take_bytes((ins * n) as usize * width);
        for (r, out) in rows.zip(out.chunks_exact_mut(cols as usize)) {
            let (o, a) = (r / og, r % og);
            self.codes.read_elements(o * ins * n..(o + 1) * ins * n, &mut line)?;
            let mut scale = [0.0];
            self.scales.read_floats(o..o + 1, &mut scale, scratch)?;
            let groups = line.chunks_exact(width * n as usize).zip(out.chunks_exact_mut(ig as usize));
            for (codes, part) in groups {
                part.fill(0.0);
                for (book, code) in (0..n).zip(codes.chunks_exact(width)) {
                    let code = code.iter().rev().fold(0u64, |c, &b| c << 8 | u64::from(b)) & mask;
                    let at = (((book * size + code) * og + a) * ig) as usize;
                    part.iter_mut().zip(&books[at..at + ig as usize]).for_each(|(x, y)| *x += y);
                }
            }
            element::round_all(self.precision, out);
            out.iter_mut().for_each(|x| *x *= scale[0]);
            element::round_all(self.precision, out);
        }
        scratch.give_floats(books);
        scratch.give_bytes(line);
        Ok(())
    }

    fn describe(&self) -> String {
        self.codes.describe()
    }
}
