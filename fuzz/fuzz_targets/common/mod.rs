//! Readers take paths: the bytes of a case as files.
#![allow(dead_code)] // each target uses some of it

use std::path::{Path, PathBuf};

use to_gguf::recipe::Scratch;
use to_gguf::source::TensorSet;

/// Elements of a tensor that are read at most: a view may repeat a few bytes without end.
const MAX_ELEMENTS: u64 = 1 << 16;

/// A place in memory for this process.
fn place(name: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    folder.join(format!("to-gguf-fuzz-{}{name}", std::process::id()))
}

/// A file of this process, overwritten by every case.
pub struct File(PathBuf);

impl File {
    /// The file with these contents; `ending` is that of its name.
    pub fn with(data: &[u8], ending: &str) -> File {
        let path = place(ending);
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

/// A folder of this process, emptied by every case.
pub struct Folder(PathBuf);

impl Folder {
    /// The folder with these files.
    pub fn with(files: &[(&str, &[u8])]) -> Folder {
        let path = place("");
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        for (name, contents) in files {
            std::fs::write(path.join(name), contents).expect("a temporary file can be written");
        }
        Folder(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads the first rows of every tensor; errors are answers, too.
pub fn read_all(tensors: &TensorSet) {
    let mut scratch = Scratch::default();
    for (_, recipe) in tensors.iter() {
        let row = recipe.shape().row_len();
        if row > MAX_ELEMENTS {
            continue;
        }
        let rows = recipe.shape().rows().min(MAX_ELEMENTS / row.max(1));
        let _ = recipe.rows(0..rows, &mut vec![0.0; (rows * row) as usize], &mut scratch);
    }
}
