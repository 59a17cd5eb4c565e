//! Output files that appear whole or not at all.
//!
//! Each is written under a temporary name beside its target, with an advisory lock held, and renamed only when
//! every byte is there and flushed. A killed run leaves only temporary names, whose locks died with it: the
//! next run into the folder removes those ([`sweep`]).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};

use super::flush::EarlyFlush;

/// How temporary names begin; the rest is the final name and the process number.
const PREFIX: &str = ".to-gguf-partial-";

/// Writing an output failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The target exists and may not be replaced.
    #[error("{path}: already exists; use --force to replace it, or -o to write elsewhere")]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// There is too little room for what is to be written.
    #[error("{folder}: {needed} bytes are needed but {free} are free; free some space, or use -o to write elsewhere")]
    DiskFull {
        /// Where the files were to go.
        folder: PathBuf,
        /// Bytes of all files.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
    },
    /// Fewer or more bytes were written than planned: a defect of the program.
    #[error("{path}: {written} of {planned} bytes were written; please report this")]
    Incomplete {
        /// The target.
        path: PathBuf,
        /// Bytes written.
        written: u64,
        /// Bytes planned.
        planned: u64,
    },
    /// The system refused.
    #[error("{path}: cannot {action}: {cause}; check that the folder exists and may be written to")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

impl OutputError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> OutputError {
        let path = path.to_owned();
        move |cause| OutputError::Io { path, action, cause }
    }
}

/// A file of known size that gets its final name only when it is whole. Dropped before, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    file: Arc<File>,
    planned: u64,
    written: AtomicU64,
    flush: EarlyFlush,
    committed: bool,
}

impl AtomicFile {
    /// Creates the temporary file and reserves its bytes.
    pub fn create(target: &Path, planned: u64) -> Result<Self, OutputError> {
        let folder = folder_of(target);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!("{PREFIX}{name}-{}", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(OutputError::io(&temporary, "create"))?;
        let this = AtomicFile {
            target: target.to_owned(),
            temporary,
            file: Arc::new(file),
            planned,
            written: AtomicU64::new(0),
            flush: EarlyFlush::default(),
            committed: false,
        };
        flock(&*this.file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| OutputError::io(&this.temporary, "lock")(e.into()))?;
        if planned > 0 {
            match fallocate(&*this.file, FallocateFlags::empty(), 0, planned) {
                Ok(()) => {}
                // Not every file system can reserve; the size is then set without a promise.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    this.file.set_len(planned).map_err(OutputError::io(&this.temporary, "set the size"))?;
                }
                Err(e) => return Err(OutputError::io(&this.target, "reserve space")(e.into())),
            }
        }
        Ok(this)
    }

    /// The final name.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes bytes at a position; from any thread, each byte once. Their way to the disk begins before the file is whole.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let before = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.flush.written(&self.file, before + bytes.len() as u64)
    }

    /// Checks that every planned byte was written, and flushes them to the disk.
    fn finish(&self) -> Result<(), OutputError> {
        let written = self.written.load(Ordering::Relaxed);
        if written != self.planned {
            return Err(OutputError::Incomplete { path: self.target.clone(), written, planned: self.planned });
        }
        let flushed = self.flush.finish().and_then(|()| self.file.sync_all());
        flushed.map_err(OutputError::io(&self.target, "flush"))
    }

    fn rename(&mut self) -> Result<(), OutputError> {
        std::fs::rename(&self.temporary, &self.target).map_err(OutputError::io(&self.target, "rename into place"))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a failure here; the next run sweeps.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// The files of one run, which get their names together at the end.
#[derive(Debug, Default)]
pub struct OutputSet {
    files: Vec<AtomicFile>,
    replaced: Vec<PathBuf>,
    made_folders: Vec<PathBuf>,
}

impl OutputSet {
    /// Checks that nothing is in the way (unless `force`) and that the disk has room, makes the folder, removes
    /// what killed runs left, and creates every file with its planned size.
    pub fn create(files: &[(PathBuf, u64)], force: bool) -> Result<Self, OutputError> {
        if let Some((path, _)) = files.iter().find(|(path, _)| !force && path.symlink_metadata().is_ok()) {
            return Err(OutputError::Exists { path: path.clone() });
        }
        let mut folders: Vec<PathBuf> = files.iter().map(|(p, _)| folder_of(p)).collect();
        folders.sort();
        folders.dedup();
        let mut set = OutputSet::default();
        for folder in &folders {
            if !folder.exists() {
                std::fs::create_dir_all(folder).map_err(OutputError::io(folder, "create the folder"))?;
                set.made_folders.push(folder.clone());
            }
            sweep(folder);
            let needed = files.iter().filter(|(p, _)| folder_of(p) == *folder).map(|(_, n)| n).sum();
            let stats = statvfs(folder).map_err(|e| OutputError::io(folder, "ask for free space")(e.into()))?;
            let free = stats.f_bavail.saturating_mul(stats.f_frsize);
            if needed > free {
                return Err(OutputError::DiskFull { folder: folder.clone(), needed, free });
            }
        }
        for (path, size) in files {
            set.files.push(AtomicFile::create(path, *size)?);
        }
        Ok(set)
    }

    /// File number `i`, in the order given.
    pub fn file(&self, i: usize) -> &AtomicFile {
        &self.files[i]
    }

    /// Files that these take the place of, whatever their names: they go when these have theirs.
    pub fn replace(&mut self, others: Vec<PathBuf>) {
        self.replaced = others;
    }

    /// Flushes every file, then renames them all.
    pub fn commit(mut self) -> Result<(), OutputError> {
        self.files.iter().try_for_each(AtomicFile::finish)?;
        let mut folders: Vec<PathBuf> = self.files.iter().map(|f| folder_of(&f.target)).collect();
        self.files.iter_mut().try_for_each(AtomicFile::rename)?;
        for path in &self.replaced {
            if !self.files.iter().any(|f| f.target == *path) {
                std::fs::remove_file(path).map_err(OutputError::io(path, "remove"))?;
            }
        }
        folders.sort();
        folders.dedup();
        for folder in folders {
            // A folder that cannot be flushed does not undo the renames.
            let _ = File::open(&folder).and_then(|f| f.sync_all());
        }
        Ok(())
    }
}

impl Drop for OutputSet {
    fn drop(&mut self) {
        self.files.clear();
        for folder in &self.made_folders {
            // Only an empty folder goes: after a commit this fails, as it should.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Removes temporary files in `folder` that no running process holds.
pub fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // A lock that can be taken belongs to nobody: the run that held it is gone.
        if let Ok(file) = File::open(entry.path())
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_set_appears_at_commit_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let files = [(dir.path().join("a"), 3), (dir.path().join("b"), 0)];
        let set = OutputSet::create(&files, false).unwrap();
        set.file(0).write_at(b"xyz", 0).unwrap();
        assert!(names(dir.path()).iter().all(|n| n.starts_with(PREFIX)));
        set.commit().unwrap();
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"xyz");
    }

    #[test]
    fn an_incomplete_file_never_gets_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let set = OutputSet::create(&[(dir.path().join("a"), 3)], false).unwrap();
        set.file(0).write_at(b"xy", 0).unwrap();
        assert!(matches!(set.commit(), Err(OutputError::Incomplete { written: 2, planned: 3, .. })));
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_what_a_running_one_holds_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{PREFIX}old-1")), b"left").unwrap();
        let held = OutputSet::create(&[(dir.path().join("a"), 1)], false).unwrap();
        assert_eq!(names(dir.path()).len(), 1, "the left one is gone");
        sweep(dir.path());
        assert_eq!(names(dir.path()).len(), 1, "the held one stays");
        drop(held);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn an_existing_target_is_refused_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"mine").unwrap();
        assert!(matches!(OutputSet::create(&[(path.clone(), 1)], false), Err(OutputError::Exists { .. })));
        assert!(OutputSet::create(&[(path, 1)], true).is_ok());
    }

    #[test]
    fn a_full_disk_is_seen_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let files = [(dir.path().join("a"), u64::MAX / 2)];
        assert!(matches!(OutputSet::create(&files, false), Err(OutputError::DiskFull { .. })));
        assert!(names(dir.path()).is_empty());
    }
}
