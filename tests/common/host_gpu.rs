//! The CUDA kernels and the software driver, compiled for the host when a test asks for them.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const OPTIONS: [&str; 8] = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fno-fast-math",
    "-Wno-unknown-pragmas",
    "-fPIC",
    "-shared",
    "-pthread",
];

/// The library of both, if there is a C++ compiler (`CXX`, else `c++`).
pub fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
            let missing = cfg!(windows) || Command::new(&compiler).arg("--version").output().is_err();
            (!missing).then(|| compile(&compiler))
        })
        .as_deref()
}

/// Compiles the library, once for each state of the sources.
fn compile(compiler: &str) -> PathBuf {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut hash = DefaultHasher::new();
    (compiler, OPTIONS).hash(&mut hash);
    for folder in [&cuda, &cuda.join("host")] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .expect("the folder of the kernels")
            .map(|e| e.expect("an entry").path())
            .filter(|p| p.extension().is_some_and(|e| ["cu", "h", "cpp"].iter().any(|x| e == *x)))
            .collect();
        files.sort();
        for file in files {
            std::fs::read(&file).expect("a source of the kernels").hash(&mut hash);
        }
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("libsoftware-gpu-{:016x}.so", hash.finish()));
    if !library.exists() {
        let unfinished = folder.join(format!("libsoftware-gpu-{}.tmp", std::process::id()));
        let output = Command::new(compiler)
            .args(OPTIONS)
            .args(["host/kernels.cpp", "host/driver.cpp"].map(|f| cuda.join(f)))
            .arg("-o")
            .arg(&unfinished)
            .output()
            .expect("the compiler starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&unfinished, &library).expect("a finished library");
    }
    library
}
