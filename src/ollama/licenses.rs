//! The licence files of a model folder.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How names of licence files begin, in the order in which they are written.
const NAMES: [&str; 6] = ["license", "licence", "unlicense", "copying", "notice", "use_policy"];
/// How they end.
const ENDINGS: [&str; 5] = ["", "txt", "md", "rst", "text"];
/// No licence is longer; what is, is another file of that name.
const LONGEST: u64 = 1 << 20;

/// The texts of the licence files in folders, the first folder's first, each text once.
pub fn licenses(folders: &[&Path]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for folder in folders {
        for path in files(folder) {
            let mut text = String::new();
            let read = fs::File::open(&path).and_then(|f| f.take(LONGEST + 1).read_to_string(&mut text));
            let text = text.trim_start_matches('\u{feff}');
            // An unreadable or foreign file is no reason to fail: the model's own folder still has it.
            if read.is_ok() && text.len() as u64 <= LONGEST && !out.iter().any(|known| known == text) {
                out.push(text.to_owned());
            }
        }
    }
    out
}

/// The licence files of a folder: `LICENSE`, `LICENSE.txt`, `LICENSE-MIT`, `NOTICE` and so on.
fn files(folder: &Path) -> Vec<PathBuf> {
    let rank = |path: &Path| -> Option<usize> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (stem, ending) = name.rsplit_once('.').unwrap_or((&name, ""));
        let ours =
            |base: &str| stem.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']));
        let at = NAMES.iter().position(|base| ours(base))?;
        ENDINGS.contains(&ending).then_some(at)
    };
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.is_file())
        .filter_map(|path| Some((rank(&path)?, path)))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_files_are_found_in_order_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let base = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("NOTICE", "notice"),
            ("LICENSE.txt", "licence"),
            ("LICENSE-MIT", "mit"),
            ("license.py", "no licence"),
            ("licensed.md", "no licence"),
            ("COPYING.md", "copying"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(base.path().join("LICENSE"), "licence").unwrap();
        fs::write(base.path().join("USE_POLICY.md"), "policy").unwrap();
        fs::write(base.path().join("COPYING"), [0xff, 0xfe, 0x00]).unwrap();
        assert_eq!(licenses(&[folder.path(), base.path()]), ["mit", "licence", "copying", "notice", "policy"]);
        assert_eq!(licenses(&[Path::new("/nonexistent")]), Vec::<String>::new());
    }
}
