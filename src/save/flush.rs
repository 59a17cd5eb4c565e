//! Flushes a file while more of it is made, so that little is left to wait for at its end.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Bytes after which another flush starts.
const EVERY: u64 = 32 << 20;

/// The flushes of one file, at most one of them under way.
#[derive(Debug, Default)]
pub(super) struct EarlyFlush(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes that were written when the last flush began.
    begun_at: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl State {
    /// What the last flush met. The system tells it once, and so not at the file's end again.
    fn outcome(&mut self) -> io::Result<()> {
        match self.running.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(io::Error::other("the flush was cut off")),
        }
    }
}

impl EarlyFlush {
    /// Starts a flush if it is time and none is under way, so many bytes being written in all. Never waits.
    ///
    /// # Errors
    /// What an earlier flush met.
    pub(super) fn written(&self, file: &Arc<File>, bytes: u64) -> io::Result<()> {
        let Ok(mut state) = self.0.try_lock() else { return Ok(()) };
        if bytes < state.begun_at + EVERY || state.running.as_ref().is_some_and(|r| !r.is_finished()) {
            return Ok(());
        }
        state.outcome()?;
        state.begun_at = bytes;
        let file = Arc::clone(file);
        // Where no thread can be had, the last flush does it all.
        state.running = std::thread::Builder::new().name("flush".to_owned()).spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Waits for the flush that is under way.
    ///
    /// # Errors
    /// What it met.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(|p| p.into_inner()).outcome()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_flush_that_fails_is_told_once() {
        // A pipe cannot be flushed.
        let (_reader, writer) = io::pipe().unwrap();
        let file = Arc::new(File::from(OwnedFd::from(writer)));
        let flush = EarlyFlush::default();
        flush.written(&file, EVERY - 1).unwrap();
        flush.finish().unwrap();
        flush.written(&file, EVERY).unwrap();
        flush.finish().unwrap_err();
        flush.finish().unwrap();
        flush.written(&file, 2 * EVERY).unwrap();
        while !flush.0.lock().unwrap().running.as_ref().unwrap().is_finished() {
            std::thread::yield_now();
        }
        flush.written(&file, 2 * EVERY + 1).unwrap();
        flush.written(&file, 3 * EVERY).unwrap_err();
    }
}
