//! Weight files, opened once and read by position.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::SourceError;

/// An open file of weights. Threads share it: reads name their position and move no cursor.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl WeightFile {
    /// Opens a file that should hold weights, and refuses what is recognisably something else.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|e| SourceError::io(path, e))?;
        let meta = file.metadata().map_err(|e| SourceError::io(path, e))?;
        if meta.is_dir() {
            return Err(SourceError::io(path, io::ErrorKind::IsADirectory.into()));
        }
        let this = WeightFile { path: path.to_path_buf(), file, len: meta.len() };
        let mut start = [0u8; 64];
        let start = &mut start[..this.len.min(64) as usize];
        this.read_at(0, start).map_err(|e| SourceError::io(path, e))?;
        match imposter(start) {
            Some((found, remedy)) => Err(SourceError::NotWeights { path: path.to_path_buf(), found, remedy }),
            None => Ok(this),
        }
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `out` from byte `offset` on.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset);
        #[cfg(windows)]
        {
            use std::os::windows::fs::FileExt;
            let (mut out, mut offset) = (out, offset);
            while !out.is_empty() {
                match self.file.seek_read(out, offset) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => {
                        out = &mut out[n..];
                        offset += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        }
    }
}

/// What commonly lies where weights should: recognised by the first bytes, with the remedy.
fn imposter(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const AGAIN: &str = "download the file again";
    if start.is_empty() {
        return Some(("empty", AGAIN));
    }
    if start.starts_with(b"version https://git-lfs") {
        return Some(("a Git LFS pointer", "fetch the file itself with `git lfs pull` in the model's repository"));
    }
    let text = start.trim_ascii_start();
    let begins = |tag: &[u8]| text.len() >= tag.len() && text[..tag.len()].eq_ignore_ascii_case(tag);
    if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") {
        return Some(("a web page (HTML)", "download the file itself, with access to the repository if it is gated"));
    }
    let words: [&[u8]; 4] = [b"Entry not found", b"Invalid ", b"Access to model", b"Repository not found"];
    if words.iter().any(|w| begins(w)) {
        return Some(("an error message", "download the file itself, with access to the repository if it is gated"));
    }
    None
}
