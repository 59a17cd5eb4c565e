//! Tensors as they lie in a file: plain elements at a computable place, the leaves under every format.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::element;
use super::file::WeightFile;
use crate::quant::GgmlType;
use crate::recipe::{RawCodes, RawFormat, ReadError, RowSource, Scratch};
use crate::shape::Shape;

/// Bytes read and decoded in one step: small enough to stay in a core's second-level cache.
const STEP: usize = 128 << 10;

/// Whole rows shorter than this are read even when only some columns are wanted: a system call costs more
/// than copying them.
const SHORT_ROW: u64 = 4 << 10;

/// A tensor of plain elements in a file, row-major unless it has strides.
#[derive(Clone, Debug)]
pub struct Stored {
    file: Arc<WeightFile>,
    name: String,
    dtype: Dtype,
    shape: Shape,
    offset: u64,
    strides: Option<Vec<u64>>,
}

impl Stored {
    /// The tensor `name` of `shape` at byte `offset`. The caller has checked that the file holds all of it, and
    /// that elements are whole bytes.
    pub(super) fn new(
        file: Arc<WeightFile>,
        name: String,
        dtype: Dtype,
        shape: Shape,
        offset: u64,
        strides: Option<Vec<u64>>,
    ) -> Self {
        let strides = strides.filter(|s| !is_contiguous(&shape, s));
        Stored { file, name, dtype, shape, offset, strides }
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The file it lies in.
    pub fn file(&self) -> &Arc<WeightFile> {
        &self.file
    }

    /// The place of the data: two tensors with the same place are aliases.
    pub(super) fn place(&self) -> (usize, u64, Option<&[u64]>) {
        (Arc::as_ptr(&self.file) as usize, self.offset, self.strides.as_deref())
    }

    /// Bytes of one element.
    pub fn width(&self) -> u64 {
        self.dtype.bitsize() as u64 / 8
    }

    /// Bytes of the tensor's elements.
    pub fn size_bytes(&self) -> u64 {
        self.shape.elements() * self.width()
    }

    /// Whether elements lie one after another in row-major order.
    pub fn is_contiguous(&self) -> bool {
        self.strides.is_none()
    }

    /// Reads the bytes of `elements`, counted in row-major order, as they are.
    pub fn read_elements(&self, elements: Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
        let width = self.width();
        debug_assert_eq!((elements.end - elements.start) * width, out.len() as u64);
        if elements.end > self.shape.elements() || elements.start > elements.end {
            return Err(ReadError::new(
                self.describe(),
                format!("has no elements {}..{}", elements.start, elements.end),
            ));
        }
        match &self.strides {
            None => self.read_bytes(self.offset + elements.start * width, out),
            Some(strides) => self.read_strided(strides, elements, out),
        }
    }

    fn read_bytes(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.file.read_at(offset, out).map_err(|e| ReadError::io(self.describe(), e))
    }

    /// Element `i`'s distance from the first, in elements.
    fn position(&self, strides: &[u64], mut i: u64) -> u64 {
        let mut at = 0;
        for (&dim, &stride) in self.shape.dims().iter().zip(strides).rev() {
            at += i % dim * stride;
            i /= dim;
        }
        at
    }

    /// A view of larger storage: runs of equal spacing within a row are read as a span and picked from; a
    /// transposed matrix is read column by column.
    fn read_strided(&self, strides: &[u64], elements: Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
        let width = self.width() as usize;
        let row = self.shape.row_len();
        let step = strides.last().copied().unwrap_or(1);
        let whole_rows = elements.start.is_multiple_of(row) && elements.end.is_multiple_of(row);
        let (first, rows) = (elements.start / row, (elements.end - elements.start) / row);
        let height = if strides.len() == 2 { self.shape.dims()[0] } else { 0 };
        if whole_rows && strides.len() == 2 && strides[0] == 1 && step > 1 && rows > 1 && first + rows <= height {
            let mut column = vec![0u8; rows as usize * width];
            for c in 0..row {
                self.read_bytes(self.offset + (first + c * step) * width as u64, &mut column)?;
                for (r, element) in column.chunks_exact(width).enumerate() {
                    let at = (r * row as usize + c as usize) * width;
                    out[at..at + width].copy_from_slice(element);
                }
            }
            return Ok(());
        }
        let mut span = Vec::new();
        let mut at = elements.start;
        let mut filled = 0;
        while at < elements.end {
            let run = (row - at % row).min(elements.end - at).min((STEP / width) as u64);
            let place = self.offset + self.position(strides, at) * width as u64;
            let target = &mut out[filled..filled + run as usize * width];
            match step {
                1 => self.read_bytes(place, target)?,
                0 => {
                    self.read_bytes(place, &mut target[..width])?;
                    let (one, rest) = target.split_at_mut(width);
                    rest.chunks_exact_mut(width).for_each(|x| x.copy_from_slice(one));
                }
                _ if step <= 16 => {
                    span.resize(((run - 1) * step + 1) as usize * width, 0);
                    self.read_bytes(place, &mut span)?;
                    for (x, y) in target.chunks_exact_mut(width).zip(span.chunks(width * step as usize)) {
                        x.copy_from_slice(&y[..width]);
                    }
                }
                _ => {
                    for (i, x) in target.chunks_exact_mut(width).enumerate() {
                        self.read_bytes(place + i as u64 * step * width as u64, x)?;
                    }
                }
            }
            filled += run as usize * width;
            at += run;
        }
        Ok(())
    }

    /// Reads and decodes `elements`, counted in row-major order.
    pub fn read_floats(&self, elements: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        if self.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            return self.read_elements(elements, bytemuck::cast_slice_mut(out));
        }
        let width = self.width();
        let per = STEP as u64 / width;
        let mut bytes = scratch.take_bytes((per.min(out.len() as u64) * width) as usize);
        let mut result = Ok(());
        for (i, out) in out.chunks_mut(per as usize).enumerate() {
            let first = elements.start + i as u64 * per;
            let bytes = &mut bytes[..out.len() * width as usize];
            result = self.read_elements(first..first + out.len() as u64, bytes);
            if result.is_err() {
                break;
            }
            element::decode(self.dtype, bytes, out);
        }
        scratch.give_bytes(bytes);
        result
    }

    /// The same bytes as a vector of `U8`; `None` for a strided view.
    pub(super) fn as_bytes(&self) -> Option<Stored> {
        let (file, name) = (self.file.clone(), self.name.clone());
        let shape = Shape::vector(self.size_bytes());
        self.is_contiguous().then(|| Stored::new(file, name, Dtype::U8, shape, self.offset, None))
    }

    /// Reads the bytes of columns `cols` of rows `rows` as they are.
    pub(super) fn read_window_bytes(
        &self,
        rows: Range<u64>,
        cols: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let taken = ((cols.end - cols.start) * self.width()) as usize;
        if taken == 0 {
            return Ok(());
        }
        let len = self.shape.row_len();
        if cols == (0..len) {
            return self.read_elements(rows.start * len..rows.end * len, out);
        }
        out.chunks_exact_mut(taken)
            .zip(rows)
            .try_for_each(|(x, r)| self.read_elements(r * len + cols.start..r * len + cols.end, x))
    }

    /// All elements decoded: for tensors known to be small.
    pub fn read_all_floats(&self) -> Result<Vec<f32>, ReadError> {
        let mut out = vec![0.0; self.shape.elements() as usize];
        self.read_floats(0..self.shape.elements(), &mut out, &mut Scratch::default())?;
        Ok(out)
    }

    /// All bytes: for tensors known to be small.
    pub fn read_all_bytes(&self) -> Result<Vec<u8>, ReadError> {
        let mut out = vec![0; self.size_bytes() as usize];
        self.read_elements(0..self.shape.elements(), &mut out)?;
        Ok(out)
    }
}

impl RowSource for Stored {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        element::precision(self.dtype)
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let len = self.shape.row_len();
        self.read_floats(rows.start * len..rows.end * len, out, scratch)
    }

    fn read_window(
        &self,
        rows: Range<u64>,
        cols: Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let len = self.shape.row_len();
        let taken = (cols.end - cols.start) as usize;
        if taken == 0 || rows.is_empty() {
            return Ok(());
        }
        let row_bytes = len * self.width();
        let width = self.width() as usize;
        let per_step = if row_bytes <= SHORT_ROW { STEP as u64 / row_bytes } else { (STEP / width / taken) as u64 };
        let per_step = per_step.max(1);
        let mut whole = scratch.take_bytes(if row_bytes <= SHORT_ROW { (per_step * row_bytes) as usize } else { 0 });
        let mut bytes = scratch.take_bytes((per_step.min(rows.end - rows.start) as usize) * taken * width);
        let mut result = Ok(());
        let mut row = rows.start;
        for out in out.chunks_mut(per_step as usize * taken) {
            let count = (out.len() / taken) as u64;
            let bytes = &mut bytes[..out.len() * width];
            result = if row_bytes <= SHORT_ROW {
                let whole = &mut whole[..(count * row_bytes) as usize];
                let read = self.read_elements(row * len..(row + count) * len, whole);
                for (x, y) in bytes.chunks_exact_mut(taken * width).zip(whole.chunks_exact(row_bytes as usize)) {
                    x.copy_from_slice(&y[cols.start as usize * width..cols.end as usize * width]);
                }
                read
            } else {
                bytes
                    .chunks_exact_mut(taken * width)
                    .zip(row..)
                    .try_for_each(|(x, r)| self.read_elements(r * len + cols.start..r * len + cols.end, x))
            };
            if result.is_err() {
                break;
            }
            element::decode(self.dtype, bytes, out);
            row += count;
        }
        scratch.give_bytes(whole);
        scratch.give_bytes(bytes);
        result
    }

    fn raw(&self) -> Option<RawFormat> {
        let codes = match self.dtype {
            Dtype::F32 => RawCodes::F32,
            Dtype::F16 => RawCodes::F16,
            Dtype::BF16 => RawCodes::BF16,
            Dtype::I8 => RawCodes::I8,
            Dtype::F8_E4M3 => RawCodes::E4M3,
            Dtype::F8_E5M2 => RawCodes::E5M2,
            _ => return None,
        };
        Some(RawFormat::plain(codes))
    }

    fn read_raw_rows(
        &self,
        rows: Range<u64>,
        codes: &mut [u8],
        _scales: &mut [f32],
        _scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let len = self.shape.row_len();
        self.read_elements(rows.start * len..rows.end * len, codes)
    }

    fn describe(&self) -> String {
        format!("{}: {}", self.file.path().display(), self.name)
    }
}

/// Whether strides (in elements) are those of a row-major tensor; dimensions of 1 may have any.
fn is_contiguous(shape: &Shape, strides: &[u64]) -> bool {
    if shape.elements() == 0 {
        return true;
    }
    let mut next = 1;
    shape.dims().iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == next;
        next *= dim;
        fits
    })
}
