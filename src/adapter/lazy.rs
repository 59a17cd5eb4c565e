//! Values that are computed when the first row needs them.

use std::collections::VecDeque;
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

/// How many [`Recent`] values of all tensors are kept. Tensors stream by one after another, a few at a time, so
/// the values of those at hand are enough: memory does not grow with the model.
const KEPT: usize = 8;

/// The values that were used last, whatever their type; the list is all that keeps them alive.
static RECENT: Mutex<VecDeque<(u64, Arc<dyn std::any::Any + Send + Sync>)>> = Mutex::new(VecDeque::new());

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A value of some size that is computed when it is needed, and forgotten when values of other tensors have been
/// needed since. Computing it again gives the same value.
pub(super) struct Recent<T> {
    id: u64,
    value: Mutex<Weak<T>>,
}

impl<T: Send + Sync + 'static> Recent<T> {
    /// No value yet.
    pub(super) fn new() -> Self {
        Recent { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), value: Mutex::new(Weak::new()) }
    }

    /// The value. `compute` must not wait for other threads, since they may wait for it.
    pub(super) fn get(&self, compute: impl FnOnce() -> Result<T, ReadError>) -> Result<Arc<T>, ReadError> {
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
                if recent.len() > KEPT {
                    recent.pop_front();
                }
            }
        }
        Ok(value)
    }
}

impl<T> Drop for Recent<T> {
    fn drop(&mut self) {
        RECENT.lock().unwrap_or_else(|e| e.into_inner()).retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_used_last_is_kept() {
        let all: Vec<Recent<usize>> = (0..2 * KEPT).map(|_| Recent::new()).collect();
        for (i, r) in all.iter().enumerate() {
            assert_eq!(*r.get(|| Ok(i)).unwrap(), i);
            assert_eq!(*r.get(|| Ok(100)).unwrap(), i, "it is not computed twice in a row");
        }
        assert_eq!(*all[0].get(|| Ok(7)).unwrap(), 7, "it was forgotten");
    }
}
