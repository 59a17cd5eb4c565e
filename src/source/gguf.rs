//! A GGUF file as a model: its keys as they are, and its tensors as recipes.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::TensorSet;
use crate::gguf::{GgufError, GgufFile, GgufTensor, Metadata};
use crate::quant::{GgmlType, SourceTensor, dequantize_rows, first_bad_block};
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;

/// Bytes read and decoded in one step: small enough to stay in a core's second-level cache.
const STEP: u64 = 128 << 10;

/// An open GGUF model, split files included.
#[derive(Clone, Debug)]
pub struct GgufModel {
    file: Arc<GgufFile>,
}

impl GgufModel {
    /// Opens a file, or the first of several parts; only headers are read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        Ok(GgufModel { file: Arc::new(GgufFile::open(path)?) })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// Its keys.
    pub fn metadata(&self) -> &Metadata {
        self.file.metadata()
    }

    /// Its tensors in file order under their GGUF names: what [`crate::quant::QuantPlan::new`] decides about.
    pub fn source_tensors(&self) -> Vec<SourceTensor<'_>> {
        self.file
            .tensors()
            .iter()
            .map(|t| SourceTensor { name: &t.name, shape: &t.shape, kind: t.kind, part: t.part })
            .collect()
    }

    /// Its tensors as recipes, in file order. Blocks are decoded where values are asked for, and copied as they are
    /// where the output has the same type.
    pub fn tensors(&self) -> TensorSet {
        let recipe = |(index, t): (usize, &GgufTensor)| {
            let rows = GgufRows { file: Arc::clone(&self.file), index };
            (t.name.clone(), Recipe::source(Arc::new(rows)))
        };
        self.file.tensors().iter().enumerate().map(recipe).collect()
    }
}

/// One tensor of an open file.
#[derive(Clone, Debug)]
struct GgufRows {
    file: Arc<GgufFile>,
    index: usize,
}

impl GgufRows {
    fn tensor(&self) -> &GgufTensor {
        &self.file.tensors()[self.index]
    }

    fn read(&self, rows: Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
        let t = self.tensor();
        self.file.read_rows(t, rows, out).map_err(|e| match e {
            GgufError::Io { source, .. } => ReadError::io(self.describe(), source),
            other => ReadError::new(self.describe(), other.to_string()),
        })?;
        // llama-quantize refuses damaged data as well, also where it copies.
        match first_bad_block(t.kind, out) {
            None => Ok(()),
            Some(block) => Err(ReadError::new(
                self.describe(),
                format!("holds an infinite or undefined number (block {block} of those read); use an intact file"),
            )),
        }
    }
}

impl RowSource for GgufRows {
    fn shape(&self) -> &Shape {
        &self.tensor().shape
    }

    fn precision(&self) -> GgmlType {
        match self.tensor().kind {
            plain @ (GgmlType::F16 | GgmlType::BF16) => plain,
            _ => GgmlType::F32,
        }
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let t = self.tensor();
        let row_len = t.shape.row_len() as usize;
        if out.is_empty() {
            return Ok(());
        }
        let row_bytes = t.bytes / t.shape.rows();
        let per = (STEP / row_bytes).max(1).min(rows.end.saturating_sub(rows.start));
        let mut bytes = scratch.take_bytes((per * row_bytes) as usize);
        let mut at = rows.start;
        let mut result = Ok(());
        for out in out.chunks_mut(per as usize * row_len) {
            let n = (out.len() / row_len) as u64;
            let bytes = &mut bytes[..(n * row_bytes) as usize];
            result = self.read(at..at + n, bytes).and_then(|()| {
                dequantize_rows(t.kind, bytes, row_len, out).map_err(|e| ReadError::new(self.describe(), e.to_string()))
            });
            if result.is_err() {
                break;
            }
            at += n;
        }
        scratch.give_bytes(bytes);
        result
    }

    fn native(&self) -> Option<GgmlType> {
        Some(self.tensor().kind)
    }

    fn read_native_rows(&self, rows: Range<u64>, out: &mut [u8], _scratch: &mut Scratch) -> Result<(), ReadError> {
        self.read(rows, out)
    }

    fn describe(&self) -> String {
        let t = self.tensor();
        format!("{}: tensor '{}'", self.file.parts()[t.part].path.display(), t.name)
    }
}
