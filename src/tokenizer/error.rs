//! What can be wrong with a tokenizer, each with its file and the facts.

use std::path::PathBuf;

/// Why a vocabulary could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// No folder holds a vocabulary file.
    #[error(
        "no tokenizer in {folders}: none of {looked_for} is there; copy the base model's tokenizer files into the model folder"
    )]
    NotFound {
        /// The folders that were searched, in order.
        folders: String,
        /// The file names that would have served.
        looked_for: String,
    },
    /// A file could not be read.
    #[error("{}: cannot be read: {source}; check the file and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is larger than any tokenizer file can be.
    #[error("{}: {size} bytes, more than the {limit} that a tokenizer file may have; check that it is the right file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file is not the JSON that its name promises.
    #[error("{}: {source}; download or save the tokenizer again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A tokenizer.model is not a SentencePiece model.
    #[error("{}: not a SentencePiece model: {reason}; download the file again (a Git LFS pointer is a common cause)", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A value is missing or not of the kind that the format asks for.
    #[error("{}: {field} is {found}, expected {expected}; download or save the tokenizer again", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The value's place in the file.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// Two tokens claim one id.
    #[error("{}: id {id} belongs to both {first:?} and {second:?}; a vocabulary needs one token per id: save the tokenizer again", path.display())]
    DuplicateId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u32,
        /// The token that has it.
        first: String,
        /// The token that wants it.
        second: String,
    },
    /// A merge names a token that the vocabulary lacks.
    #[error("{}: merge {index} ({merge:?}) needs the token {token:?}, which the vocabulary lacks; save the tokenizer again", path.display())]
    MergeOutOfVocabulary {
        /// The file.
        path: PathBuf,
        /// Position in the list of merges, from 0.
        index: usize,
        /// The merge.
        merge: String,
        /// The missing token.
        token: String,
    },
    /// The structure of the pre-tokenizer is none that the runtime implements.
    #[error(
        "{}: unknown pre-tokenizer [{key}]{}; if its splitting equals one that llama.cpp implements, name it with --pre-tokenizer NAME (llama-bpe, qwen2, gpt-2, …)",
        path.display(),
        regexes.iter().map(|r| format!(", regex {r}")).collect::<String>()
    )]
    UnknownPreTokenizer {
        /// The file.
        path: PathBuf,
        /// The stages in normal form.
        key: String,
        /// The texts of the regexes that the table lacks.
        regexes: Vec<String>,
    },
    /// `--pre-tokenizer` names nothing that the runtime knows.
    #[error("--pre-tokenizer {name}: llama.cpp knows no such pre-tokenizer; use one of {}", known.join(", "))]
    UnknownPreName {
        /// The name given.
        name: String,
        /// All names, in order.
        known: Vec<&'static str>,
    },
    /// A tokenizer of a kind that no GGUF vocabulary can express.
    #[error("{}: {what} cannot be expressed in a GGUF vocabulary; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Results of this room.
pub(super) type Result<T> = std::result::Result<T, TokenizerError>;
