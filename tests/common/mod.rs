//! Running the program, and small things that several test files need.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A finished run.
pub struct Run {
    /// Exit status.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The one line that a failure prints.
    pub fn error_line(&self) -> &str {
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one error line in: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        errors[0]
    }
}

/// A folder or file of `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn command<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_to-gguf"));
    command.args(args).current_dir(folder).env("HF_HUB_CACHE", folder.join("no-cache")).stdin(Stdio::null());
    command
}

/// Runs the program in a folder and waits for it.
pub fn to_gguf<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Run {
    to_gguf_with(folder, args, [])
}

/// Runs the program with more in its environment.
pub fn to_gguf_with<'e, S: AsRef<OsStr>>(
    folder: &Path,
    args: impl IntoIterator<Item = S>,
    environment: impl IntoIterator<Item = (&'e str, &'e str)>,
) -> Run {
    let output = command(folder, args).envs(environment).output().expect("the program starts");
    Run {
        code: output.status.code().expect("no signal ends it"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Starts the program in a folder.
pub fn spawn<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Child {
    command(folder, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

/// Names in a folder, sorted; none where there is no folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}
