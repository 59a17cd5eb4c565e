//! Values that are computed when the first row needs them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::recipe::ReadError;

/// A value computed once. Threads that need it meanwhile wait; a failure is not kept, the next one tries again.
pub(super) struct Lazy<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Lazy(Mutex::new(None))
    }
}

impl<T> Lazy<T> {
    /// The value. `compute` must not wait for other threads, since they may wait for it.
    pub(super) fn get(&self, compute: impl FnOnce() -> Result<T, ReadError>) -> Result<Arc<T>, ReadError> {
        let mut value = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(value) = &*value {
            return Ok(value.clone());
        }
        let computed = Arc::new(compute()?);
        *value = Some(computed.clone());
        Ok(computed)
    }
}

/// Bytes of [`Recent`] values of all tensors that are kept; the last one is, whatever its size. Tensors stream by
/// one after another, a few at a time, so the values of those at hand are enough: memory does not grow with the
/// model.
const KEPT: usize = 64 << 20;

/// The values that were used last; the list is all that keeps them alive.
static RECENT: Mutex<VecDeque<(u64, Arc<Vec<f32>>)>> = Mutex::new(VecDeque::new());

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Numbers that are computed when they are needed, and forgotten when those of other tensors have been needed
/// since. Computing them again gives the same.
pub(super) struct Recent {
    id: u64,
    value: Mutex<Weak<Vec<f32>>>,
}

impl Default for Recent {
    fn default() -> Self {
        Self::new()
    }
}

impl Recent {
    /// No value yet.
    pub(super) fn new() -> Self {
        Recent { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), value: Mutex::new(Weak::new()) }
    }

    /// The numbers. `compute` must not wait for other threads, since they may wait for it.
    pub(super) fn get(
        &self,
        compute: impl FnOnce() -> Result<Vec<f32>, ReadError>,
    ) -> Result<Arc<Vec<f32>>, ReadError> {
        let mut slot = self.value.lock().unwrap_or_else(|e| e.into_inner());
        let value = match slot.upgrade() {
            Some(value) => value,
            None => {
                let value = Arc::new(compute()?);
                *slot = Arc::downgrade(&value);
                value
            }
        };
        let mut recent = RECENT.lock().unwrap_or_else(|e| e.into_inner());
        match recent.iter().position(|(id, _)| *id == self.id) {
            Some(at) => {
                if let Some(entry) = recent.remove(at) {
                    recent.push_back(entry);
                }
            }
            None => {
                recent.push_back((self.id, value.clone()));
                let mut bytes: usize = recent.iter().map(|(_, v)| v.len() * 4).sum();
                while bytes > KEPT && recent.len() > 1 {
                    bytes -= recent.pop_front().map_or(0, |(_, v)| v.len() * 4);
                }
            }
        }
        Ok(value)
    }

    /// Copies `rows`, of `cols` numbers each, of a matrix that is computed as a whole.
    pub(super) fn copy_rows(
        &self,
        rows: Range<u64>,
        cols: u64,
        out: &mut [f32],
        compute: impl FnOnce() -> Result<Vec<f32>, ReadError>,
    ) -> Result<(), ReadError> {
        let values = self.get(compute)?;
        out.copy_from_slice(&values[(rows.start * cols) as usize..(rows.end * cols) as usize]);
        Ok(())
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        RECENT.lock().unwrap_or_else(|e| e.into_inner()).retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_used_last_is_kept() {
        let quarter = KEPT / 4 / 4;
        let all: Vec<Recent> = (0..8).map(|_| Recent::new()).collect();
        for (i, r) in all.iter().enumerate() {
            assert_eq!(r.get(|| Ok(vec![i as f32; quarter])).unwrap()[0], i as f32);
            assert_eq!(r.get(|| Ok(vec![100.0])).unwrap()[0], i as f32, "it is not computed twice in a row");
        }
        assert_eq!(all[0].get(|| Ok(vec![7.0])).unwrap()[0], 7.0, "it was forgotten");
    }
}
