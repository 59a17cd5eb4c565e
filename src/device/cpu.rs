//! The CPU: recipes evaluated and blocks quantized by the calling thread.

use std::ops::Range;

use super::{Device, DeviceError, Encoding, Worker};
use crate::quant::quantize_rows;
use crate::recipe::{Recipe, Scratch};

/// The CPU as a device; its lanes are chosen in [`crate::quant`].
pub struct Cpu;

impl Device for Cpu {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn worker(&self) -> Result<Box<dyn Worker + '_>, DeviceError> {
        Ok(Box::new(CpuWorker::default()))
    }
}

/// A worker of the [`Cpu`].
#[derive(Default)]
pub(super) struct CpuWorker {
    values: Vec<f32>,
    scratch: Scratch,
}

impl Worker for CpuWorker {
    fn rows(
        &mut self,
        recipe: &Recipe,
        rows: Range<u64>,
        encodings: &[Encoding<'_>],
        outputs: &mut [Vec<u8>],
        values: Option<&mut Vec<f32>>,
    ) -> Result<(), DeviceError> {
        let shape = recipe.shape();
        let (row_len, count) = (shape.row_len(), rows.end - rows.start);
        let evaluated = values.unwrap_or(&mut self.values);
        let native = recipe.native();
        if encodings.iter().any(|e| native != Some(e.ty)) || encodings.is_empty() {
            evaluated.resize((count * row_len) as usize, 0.0);
            recipe.rows(rows.clone(), evaluated, &mut self.scratch)?;
        }
        let per_matrix = shape.dims().iter().rev().nth(1).copied().unwrap_or(1).max(1);
        for (encoding, out) in encodings.iter().zip(outputs) {
            let row_bytes = encoding.row_bytes(row_len)?;
            out.resize((count * row_bytes) as usize, 0);
            if native == Some(encoding.ty) {
                recipe.native_rows(rows.clone(), out, &mut self.scratch)?;
                continue;
            }
            // Importance belongs to a matrix of a stack, so rows are encoded matrix by matrix.
            let mut row = rows.start;
            while row < rows.end {
                let (matrix, end) = match encoding.importance {
                    Some(_) => (row / per_matrix, (row / per_matrix + 1) * per_matrix),
                    None => (0, rows.end),
                };
                let end = end.min(rows.end);
                let importance =
                    encoding.importance.map(|w| &w[(matrix * row_len) as usize..((matrix + 1) * row_len) as usize]);
                let part =
                    |per_row: u64| ((row - rows.start) * per_row) as usize..((end - rows.start) * per_row) as usize;
                quantize_rows(
                    encoding.ty,
                    &evaluated[part(row_len)],
                    row_len as usize,
                    importance,
                    &mut out[part(row_bytes)],
                )
                .map_err(|e| e.from_row(row as usize))?;
                row = end;
            }
        }
        Ok(())
    }
}
