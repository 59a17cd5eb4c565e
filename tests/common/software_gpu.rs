//! The program on the software driver.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::common::{Run, fixture, names, to_gguf_with};
use super::host_gpu;

/// The software driver; says on stderr that a test is skipped where it cannot be compiled.
fn driver() -> Option<&'static str> {
    let library = host_gpu::library().map(|p| p.to_str().expect("a path that is text"));
    if library.is_none() {
        eprintln!("SKIPPED: no C++ compiler (c++, or set CXX): the software driver for --device cuda is not built");
    }
    library
}

/// A folder, a driver, and what is converted in it.
pub struct Bench {
    driver: &'static str,
    folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Option<Bench> {
        Some(Bench { driver: driver()?, folder: tempfile::tempdir().unwrap() })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the program with the software driver and these settings of it.
    pub fn run(&self, args: &[&str], settings: &[(&str, &str)]) -> Run {
        let driver = [("TO_GGUF_CUDA_DRIVER", self.driver)];
        to_gguf_with(self.path(), args, driver.iter().chain(settings).copied())
    }

    /// Converts into the folder `out`; the run has to succeed.
    pub fn convert(&self, model: &str, out: &str, args: &[&str], settings: &[(&str, &str)]) -> Run {
        let run = self.try_to_convert(model, out, args, settings);
        assert_eq!(run.code, 0, "{args:?} {settings:?}: {}", run.stderr);
        assert!(!run.stderr.contains("software driver:"), "{}", run.stderr);
        run
    }

    pub fn try_to_convert(&self, model: &str, out: &str, args: &[&str], settings: &[(&str, &str)]) -> Run {
        // A model of the test's own, or one of the fixtures.
        let own = self.path().join(model);
        let model = if own.exists() { own } else { fixture(model) };
        let base = [model.to_str().unwrap(), "--force", "--no-modelfile", "-q", "-o", out];
        self.run(&[&base, args].concat(), settings)
    }

    /// Asserts that two folders hold the same GGUFs.
    pub fn assert_same(&self, a: &str, b: &str) {
        let ggufs = |folder: &str| -> Vec<String> {
            names(&self.path().join(folder)).into_iter().filter(|n| n.ends_with(".gguf")).collect()
        };
        let files = ggufs(a);
        assert!(!files.is_empty());
        assert_eq!(files, ggufs(b));
        for file in files {
            let read = |folder: &str| std::fs::read(self.path().join(folder).join(&file)).unwrap();
            assert!(read(a) == read(b), "{file} differs between {a} and {b}");
        }
    }

    /// Where the driver is to leave its counts.
    pub fn log(&self) -> PathBuf {
        self.path().join("calls")
    }

    /// How often each call was made, and each kernel ran.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        let text = std::fs::read_to_string(self.log()).unwrap();
        text.lines().filter_map(|l| l.rsplit_once(' ')).map(|(k, n)| (k.to_owned(), n.parse().unwrap())).collect()
    }
}
