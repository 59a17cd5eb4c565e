//! Values that are computed when the first row needs them, and kept.

use std::sync::{Arc, Mutex};

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
