//! BitNet: ternary weights, four far-apart rows to a row of bytes.
//!
//! `t = ((byte[r % R][c] >> 2 (r / R)) & 3) - 1` with `R = rows / 4`; `w = t / weight_scale` for `bitlinear`,
//! `t * weight_scale` for `autobitlinear` packed offline. Equals transformers' `unpack_weights`; the quotient is
//! taken in f32, as llama.cpp's converter takes it.

use std::ops::Range;

use safetensors::Dtype;

use super::{Shelf, SourceError, type_of};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::stored::Stored;

/// Unpacks every weight of bytes that has a scale.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    let divide = match shelf.text("linear_class").unwrap_or("bitlinear") {
        "bitlinear" => true,
        "autobitlinear" => false,
        other => return Err(shelf.unsupported(format!("linear_class {other} is not known"))),
    };
    for module in shelf.bases(".weight_scale") {
        let name = format!("{module}.weight");
        let scale = shelf.need(&format!("{name}_scale"), &name)?;
        let codes = shelf.need(&name, &name)?;
        shelf.check_dtype(&name, &codes, &[Dtype::U8])?;
        if scale.shape().elements() != 1 {
            return Err(shelf.wrong(&name, format!("weight_scale has shape {}, needs [1]", scale.shape())));
        }
        let &[quarter, cols] = codes.shape().dims() else {
            return Err(shelf.wrong(&name, format!("has shape {}, needs a matrix", codes.shape())));
        };
        let shape = shelf.shape(&name, [quarter.saturating_mul(4), cols])?;
        let precision = type_of(&scale);
        let weight = Ternary { shape, precision, codes, scale, divide };
        if divide {
            // The quotient is not a number of the scale's type.
            shelf.put_rounded(&name, &name, weight, GgmlType::F32)?;
        } else {
            shelf.put(&name, &name, weight)?;
        }
    }
    Ok(())
}

struct Ternary {
    shape: Shape,
    precision: GgmlType,
    codes: Stored,
    scale: Stored,
    divide: bool,
}

impl RowSource for Ternary {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        if self.divide { GgmlType::F32 } else { self.precision }
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let scale = self.scale.read_all_floats()?.first().copied().unwrap_or(f32::NAN);
        let values = [-1.0f32, 0.0, 1.0, 2.0].map(|t| if self.divide { t / scale } else { t * scale });
        let (quarter, cols) = (self.shape.rows() / 4, self.shape.row_len());
        let mut line = scratch.take_bytes(cols as usize);
        for (r, out) in rows.zip(out.chunks_exact_mut(cols.max(1) as usize)) {
            let (at, shift) = (r % quarter, 2 * (r / quarter));
            self.codes.read_elements(at * cols..(at + 1) * cols, &mut line)?;
            out.iter_mut().zip(&line).for_each(|(x, &b)| *x = values[usize::from(b >> shift & 3)]);
        }
        scratch.give_bytes(line);
        Ok(())
    }

    fn describe(&self) -> String {
        self.codes.describe()
    }
}
