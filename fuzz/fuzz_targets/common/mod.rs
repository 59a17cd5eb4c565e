//! Readers take paths: the bytes of a case as a file.

use std::path::{Path, PathBuf};

/// A file of this process, overwritten by every case.
pub struct File(PathBuf);

impl File {
    /// The file with these contents.
    pub fn with(data: &[u8]) -> File {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let path = folder.join(format!("to-gguf-fuzz-{}", std::process::id()));
        std::fs::write(&path, data).expect("a temporary file can be written");
        File(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
