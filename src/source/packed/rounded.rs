//! Formats that llama.cpp's converter reads too: it keeps the f32 product where the library rounds to 16 bits.
//!
//! The program merges and measures on the library's values, and writes the converter's where its file is promised.

use std::ops::Range;
use std::sync::Arc;

use crate::quant::GgmlType;
use crate::recipe::{RawFormat, ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;

/// A packed tensor as its library decodes it, beside what the converter decodes.
pub(super) struct Rounded {
    /// What the library rounds, in f32.
    library: Arc<dyn RowSource>,
    converter: Arc<dyn RowSource>,
    precision: GgmlType,
}

impl Rounded {
    /// A tensor that the library rounds to `precision` and the converter does not.
    pub(super) fn new(exact: impl RowSource + 'static, precision: GgmlType) -> Self {
        let exact: Arc<dyn RowSource> = Arc::new(exact);
        Rounded { library: exact.clone(), converter: exact, precision }
    }

    /// A tensor that the two compute in different ways.
    pub(super) fn beside(
        library: impl RowSource + 'static,
        converter: impl RowSource + 'static,
        precision: GgmlType,
    ) -> Self {
        Rounded { library: Arc::new(library), converter: Arc::new(converter), precision }
    }
}

impl RowSource for Rounded {
    fn shape(&self) -> &Shape {
        self.library.shape()
    }

    fn precision(&self) -> GgmlType {
        self.precision
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.library.read_rows(rows, out, scratch)?;
        element::round_all(self.precision, out);
        Ok(())
    }

    fn read_window(
        &self,
        rows: Range<u64>,
        cols: Range<u64>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.library.read_window(rows, cols, out, scratch)?;
        element::round_all(self.precision, out);
        Ok(())
    }

    fn as_converted(&self) -> Option<Arc<dyn RowSource>> {
        Some(self.converter.clone())
    }

    fn raw(&self) -> Option<RawFormat> {
        self.library.raw()?.rounded(Some(self.precision))
    }

    fn read_raw_rows(
        &self,
        rows: Range<u64>,
        codes: &mut [u8],
        scales: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.library.read_raw_rows(rows, codes, scales, scratch)
    }

    fn describe(&self) -> String {
        self.library.describe()
    }
}
