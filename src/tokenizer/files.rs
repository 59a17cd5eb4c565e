//! Where a tokenizer's files are: several folders, the first that holds a vocabulary wins.
//!
//! A fine-tune's own tokenizer beats its base's: `TokenizerFiles` takes the folders in order of priority,
//! the adapter's first. The vocabulary comes from one folder, so that its parts belong together; what goes with
//! any vocabulary (configuration, chat template) comes from the first folder that has it.

use super::error::{Result, TokenizerError};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Names that hold a vocabulary, any of which makes a folder the tokenizer's.
pub(super) const VOCABULARY_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "tiktoken.model",
];

/// No tokenizer file of any published model comes near this size.
const LIMIT: u64 = 512 << 20;

/// The folders that may hold a tokenizer, in order of priority.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    folders: Vec<PathBuf>,
    home: Option<usize>,
}

impl TokenizerFiles {
    /// Folders in order of priority: an adapter's before its base's.
    pub fn new<P: Into<PathBuf>>(folders: impl IntoIterator<Item = P>) -> Self {
        let folders: Vec<PathBuf> = folders.into_iter().map(Into::into).collect();
        let home = folders.iter().position(|d| VOCABULARY_FILES.iter().any(|f| d.join(f).is_file()));
        Self { folders, home }
    }

    /// The folder that the vocabulary comes from, where there is one.
    pub fn home(&self) -> Option<&Path> {
        self.home.map(|i| self.folders[i].as_path())
    }

    /// The folder whose tokenizer.model goes with the vocabulary: its own, or one of lower priority where a fine-tune was
    /// saved without it.
    pub fn model_folder(&self) -> Option<&Path> {
        let own = self.home.unwrap_or(self.folders.len());
        self.folders[own..].iter().map(PathBuf::as_path).find(|d| d.join("tokenizer.model").is_file())
    }

    /// A file of the vocabulary: from the tokenizer's own folder only.
    pub(super) fn own(&self, name: &str) -> Option<PathBuf> {
        self.home().map(|d| d.join(name)).filter(|p| p.is_file())
    }

    /// A file that goes with any vocabulary: from the first folder that has it.
    pub(super) fn any(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|d| d.join(name)).find(|p| p.is_file())
    }

    /// The same file in the folders of lower priority than the tokenizer's own.
    pub(super) fn inherited(&self, name: &str) -> Option<PathBuf> {
        let from = self.home.map_or(0, |i| i + 1);
        self.folders[from..].iter().map(|d| d.join(name)).find(|p| p.is_file())
    }

    /// Every folder, in order of priority.
    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The error for folders without a vocabulary.
    pub(super) fn not_found(&self, looked_for: &[&str]) -> TokenizerError {
        TokenizerError::NotFound {
            folders: self.folders.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", "),
            looked_for: looked_for.join(", "),
        }
    }
}

/// A whole file, within the limit.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |source| TokenizerError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > LIMIT {
        return Err(TokenizerError::TooLarge { path: path.to_owned(), size, limit: LIMIT });
    }
    std::fs::read(path).map_err(fail)
}

/// A file as text. A byte order mark is not part of it.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read(path)?).map_err(|e| TokenizerError::Field {
        path: path.to_owned(),
        field: format!("byte {}", e.utf8_error().valid_up_to()),
        found: "not UTF-8".into(),
        expected: "text",
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// A file as a JSON object.
pub(super) fn read_object(path: &Path) -> Result<Value> {
    let value: Value = parse(path, &read(path)?)?;
    if !value.is_object() {
        return Err(TokenizerError::Field {
            path: path.to_owned(),
            field: "the top level".into(),
            found: kind(&value).into(),
            expected: "an object",
        });
    }
    Ok(value)
}

/// Bytes as a JSON value of a type.
pub(super) fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json { path: path.to_owned(), source })
}

/// The JSON kind of a value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_file_comes_from_the_vocabularys_folder_or_a_later_one() {
        let folders: [tempfile::TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [first, second, third] = &folders;
        let files = || TokenizerFiles::new(folders.iter().map(|d| d.path()));
        assert_eq!(files().model_folder(), None);
        std::fs::write(second.path().join("tokenizer.json"), "{}").unwrap();
        assert_eq!(files().model_folder(), None);
        std::fs::write(third.path().join("tokenizer.model"), "").unwrap();
        assert_eq!((files().home(), files().model_folder()), (Some(second.path()), Some(third.path())));
        std::fs::write(second.path().join("tokenizer.model"), "").unwrap();
        assert_eq!(files().model_folder(), Some(second.path()));
        std::fs::write(first.path().join("vocab.json"), "{}").unwrap();
        assert_eq!((files().home(), files().model_folder()), (Some(first.path()), Some(second.path())));
    }
}
