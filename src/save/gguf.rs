//! A GGUF file as a sink of rows.

use std::ops::Range;
use std::sync::Arc;

use super::AtomicFile;
use crate::device::Encoding;
use crate::gguf::Layout;
use crate::quant::GgmlType;
use crate::stream::{Rows, Sink, SinkError, Want};

/// One tensor of a GGUF sink.
#[derive(Clone, Debug)]
pub struct GgufTarget {
    /// The stream whose rows it takes.
    pub stream: usize,
    /// The type it is encoded in.
    pub ty: GgmlType,
    /// Importance of the columns, `row_len` values for each matrix of a stack.
    pub importance: Option<Arc<[f32]>>,
}

/// Writes encoded rows at the places of a [`Layout`].
pub struct GgufSink<'a> {
    file: &'a AtomicFile,
    targets: Vec<Option<Target>>,
}

struct Target {
    ty: GgmlType,
    importance: Option<Arc<[f32]>>,
    offset: u64,
    row_bytes: u64,
}

impl<'a> GgufSink<'a> {
    /// A sink into `file`, whose tensor number i is `targets[i]`, of `rows[i]` rows. Writes the header and the
    /// padding, so that only rows are missing.
    pub fn new(
        file: &'a AtomicFile,
        layout: &Layout,
        targets: &[GgufTarget],
        rows: &[u64],
        streams: usize,
    ) -> Result<Self, SinkError> {
        let mut by_stream: Vec<Option<Target>> = (0..streams).map(|_| None).collect();
        let write = |bytes: &[u8], at: u64| file.write_at(bytes, at).map_err(|cause| sink_error(file, cause));
        write(layout.header(), 0)?;
        let ends = (1..targets.len()).map(|i| layout.place(i).0).chain([layout.file_size()]);
        for (i, ((target, &rows), next)) in targets.iter().zip(rows).zip(ends).enumerate() {
            let (offset, bytes) = layout.place(i);
            write(&vec![0; (next - offset - bytes) as usize], offset + bytes)?;
            by_stream[target.stream] = Some(Target {
                ty: target.ty,
                importance: target.importance.clone(),
                offset,
                row_bytes: bytes / rows.max(1),
            });
        }
        Ok(GgufSink { file, targets: by_stream })
    }
}

impl Sink for GgufSink<'_> {
    fn wants(&self, tensor: usize) -> Want<'_> {
        match &self.targets[tensor] {
            Some(t) => Want::Encoded(Encoding { ty: t.ty, importance: t.importance.as_deref() }),
            None => Want::Nothing,
        }
    }

    fn put(&self, tensor: usize, rows: Range<u64>, data: Rows<'_>) -> Result<(), SinkError> {
        let (Some(target), Rows::Encoded(bytes)) = (&self.targets[tensor], data) else { return Ok(()) };
        self.file
            .write_at(bytes, target.offset + rows.start * target.row_bytes)
            .map_err(|cause| sink_error(self.file, cause))
    }
}

fn sink_error(file: &AtomicFile, cause: std::io::Error) -> SinkError {
    SinkError { path: file.target().display().to_string(), cause }
}
