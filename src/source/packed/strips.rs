//! Matrices whose columns are the rows of a weight (GPTQ, AWQ), read a strip of columns at a time.
//!
//! A few rows of the weight are a few words of every line of the file, and a system call for each line costs more than
//! decoding what it brings. Rows are asked for in chunks that follow one another, by several threads: a strip serves the
//! next chunks too. The last few strips of a model are kept; whoever needs one that is being read waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::recipe::ReadError;
use crate::source::stored::Stored;

/// Bytes of a strip.
const STRIP: u64 = 2 << 20;

/// Strips that are kept: more than the chunks of all threads lie in.
const KEPT: usize = 4;

/// Strips that several matrices share the room of.
#[derive(Default)]
pub(super) struct Store(Mutex<VecDeque<(Key, Arc<Slot>)>>);

/// A strip once it is read.
type Slot = Mutex<Option<Arc<Strip>>>;

/// The place of the matrix, and its strip.
type Key = (usize, u64, u64);

/// Consecutive columns of all lines.
pub(super) struct Strip {
    /// The first column, and the number of columns.
    first: u64,
    width: usize,
    bytes: Vec<u8>,
}

impl Strip {
    /// The column after the last.
    pub(super) fn end(&self) -> u64 {
        self.first + self.width as u64
    }

    /// The words of each line from line `line` and column `column` on.
    #[inline(always)]
    pub(super) fn lines(&self, line: usize, column: u64) -> impl Iterator<Item = &[[u8; 4]]> {
        let (words, _) = self.bytes.as_chunks::<4>();
        words[line * self.width..].chunks_exact(self.width).map(move |l| &l[(column - self.first) as usize..])
    }

    /// The words of columns from `column` on, `height` of each from line `line` on, column by column: as many columns as
    /// there is room for. Words that lie beside each other in a line are fetched at once: lines lie so far apart that
    /// each fetch waits for memory.
    #[inline(always)]
    pub(super) fn columns(&self, line: usize, column: u64, height: usize, room: &mut [u32]) {
        for (i, line) in self.lines(line, column).take(height).enumerate() {
            for (to, word) in room.chunks_exact_mut(height).zip(line) {
                to[i] = u32::from_le_bytes(*word);
            }
        }
    }
}

/// A matrix of 32-bit words.
pub(super) struct Strips {
    matrix: Stored,
    lines: u64,
    columns: u64,
    /// Columns of a strip.
    per: u64,
    store: Arc<Store>,
}

impl Strips {
    /// The matrix `[lines, columns]`, neither 0, of 32-bit words.
    pub(super) fn new(matrix: Stored, store: Arc<Store>) -> Self {
        let (lines, columns) = (matrix.shape().rows(), matrix.shape().row_len());
        let per = (STRIP / (4 * lines)).clamp(1, columns);
        Strips { matrix, lines, columns, per, store }
    }

    /// The strip that column `column` is in.
    pub(super) fn of(&self, column: u64) -> Result<Arc<Strip>, ReadError> {
        let number = column / self.per;
        let (file, offset, _) = self.matrix.place();
        let slot = self.store.slot((file, offset, number));
        let mut strip = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(strip) = &*strip {
            return Ok(strip.clone());
        }
        let first = number * self.per;
        let end = (first + self.per).min(self.columns);
        let width = (end - first) as usize;
        let mut bytes = vec![0; self.lines as usize * width * 4];
        self.matrix.read_window_bytes(0..self.lines, first..end, &mut bytes)?;
        Ok(strip.insert(Arc::new(Strip { first, width, bytes })).clone())
    }

    /// What to call the matrix in messages.
    pub(super) fn describe(&self) -> String {
        crate::recipe::RowSource::describe(&self.matrix)
    }
}

impl Store {
    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slot)) = kept.iter().find(|(k, _)| *k == key) {
            return slot.clone();
        }
        if kept.len() == KEPT {
            kept.pop_front();
        }
        let slot = Arc::new(Slot::default());
        kept.push_back((key, slot.clone()));
        slot
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::shape::Shape;
    use crate::source::file::WeightFile;

    #[test]
    fn strips_hold_the_columns_of_every_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let (lines, columns) = (70_000u32, 20u32);
        let bytes: Vec<u8> = (0..lines * columns).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, bytes).unwrap();
        let file = Arc::new(WeightFile::open(&path).unwrap());
        let shape = Shape::matrix(lines.into(), columns.into());
        let matrix = Stored::new(file, "w".into(), Dtype::I32, shape, 0, None);
        let strips = Strips::new(matrix, Arc::default());
        assert_eq!(strips.per, 7);
        for column in [0, 6, 7, 19, 0] {
            let strip = strips.of(column).unwrap();
            assert!(strip.end() > column && strip.end() <= columns.into());
            let beside = (strip.end() - column).min(2) as usize;
            let mut words = [0; 6];
            strip.columns(40_000, column, 3, &mut words[..3 * beside]);
            for (i, words) in words[..3 * beside].chunks(3).enumerate() {
                let wanted = [40_000, 40_001, 40_002].map(|line| line * columns + column as u32 + i as u32);
                assert_eq!(words, wanted);
            }
        }
        assert!(Arc::ptr_eq(&strips.of(1).unwrap(), &strips.of(5).unwrap()));
        assert!(strips.store.0.lock().unwrap().len() <= KEPT);
    }
}
