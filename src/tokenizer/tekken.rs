//! tekken.json: Mistral's own format for byte-level vocabularies.
//!
//! ```text
//! ids:  0 .. special      the special tokens, `<SPECIAL_i>` where none is named
//!       special .. size   the ranked byte strings, written in GPT-2's byte letters
//! ```
//!
//! The file has no merges: a token is made from every pair of known parts, in the order of the parts' ranks
//! (`extract_vocab_merges_from_model` in gguf-py).

use super::error::{Result, TokenizerError};
use super::files;
use super::json::ID_LIMIT;
use super::special::Special;
use super::vocabulary::{Token, TokenType, Vocabulary};
use base64::Engine as _;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A tekken.json, checked.
pub(super) struct Tekken {
    path: PathBuf,
    special: Vec<String>,
    /// Byte strings by rank.
    ranked: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
struct File {
    config: Config,
    vocab: Vec<Ranked>,
    #[serde(default)]
    special_tokens: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Config {
    default_vocab_size: u32,
    default_num_special_tokens: u32,
}

#[derive(Deserialize)]
struct Ranked {
    rank: usize,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Named {
    rank: usize,
    token_str: String,
}

/// The special tokens of files that do not list theirs, by rank.
const UNLISTED: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

impl Tekken {
    /// Reads and checks a tekken.json.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file: File = files::parse(path, &files::read(path)?)?;
        let wrong = |field: String, found: String, expected| TokenizerError::Field {
            path: path.to_owned(),
            field,
            found,
            expected,
        };
        let Config { default_vocab_size: size, default_num_special_tokens: count } = file.config;
        if size >= ID_LIMIT || count > size {
            let found = format!("{size} with {count} special tokens");
            return Err(wrong("config.default_vocab_size".into(), found, "a size below 16777216"));
        }
        let mut special: Vec<String> = (0..count).map(|i| format!("<SPECIAL_{i}>")).collect();
        let listed: Vec<(usize, String)> = match file.special_tokens {
            Some(list) => list.into_iter().map(|t| (t.rank, t.token_str)).collect(),
            None => UNLISTED.iter().enumerate().map(|(rank, t)| (rank, (*t).to_owned())).collect(),
        };
        for (rank, text) in listed {
            if let Some(slot) = special.get_mut(rank) {
                *slot = text;
            }
        }
        let mut ranked = Vec::new();
        for entry in file.vocab.into_iter().take((size - count) as usize) {
            if entry.rank != ranked.len() {
                let field = format!("vocab[{}].rank", ranked.len());
                return Err(wrong(field, entry.rank.to_string(), "the ranks in order from 0"));
            }
            let bytes = base64::engine::general_purpose::STANDARD.decode(&entry.token_bytes);
            let field = format!("vocab[{}].token_bytes", ranked.len());
            ranked.push(bytes.map_err(|e| wrong(field, format!("{:?} ({e})", entry.token_bytes), "base64"))?);
        }
        Ok(Self { path: path.to_owned(), special, ranked })
    }

    /// The tokens: control tokens, then byte strings.
    pub(super) fn vocabulary(&self) -> Result<Vocabulary> {
        let mut vocabulary = Vocabulary::default();
        let letters = byte_letters();
        let special = self.special.iter().map(|t| Token::new(t.as_str(), 0.0, TokenType::Control));
        let ranked = self.ranked.iter().map(|b| Token::new(letters.write(b), 0.0, TokenType::Normal));
        for (id, token) in special.chain(ranked).enumerate() {
            vocabulary.set(id as u32, token);
        }
        Ok(vocabulary)
    }

    /// Every pair of known parts that makes a token, tokens by rank, pairs by the ranks of their parts.
    pub(super) fn merges(&self) -> Result<Vec<String>> {
        let rank: HashMap<&[u8], usize> = self.ranked.iter().enumerate().map(|(i, b)| (b.as_slice(), i)).collect();
        let letters = byte_letters();
        let mut merges = Vec::new();
        for (index, token) in self.ranked.iter().enumerate().skip(256) {
            let cuts = (1..token.len()).map(|at| token.split_at(at));
            let mut pairs: Vec<_> = cuts.filter_map(|(l, r)| Some(((*rank.get(l)?, *rank.get(r)?), l, r))).collect();
            if pairs.is_empty() {
                return Err(TokenizerError::MergeOutOfVocabulary {
                    path: self.path.clone(),
                    index: index - 256,
                    merge: letters.write(token),
                    token: letters.write(&token[token.len().saturating_sub(1)..]),
                });
            }
            pairs.sort_by_key(|(ranks, _, _)| *ranks);
            merges.extend(pairs.into_iter().map(|(_, l, r)| format!("{} {}", letters.write(l), letters.write(r))));
        }
        Ok(merges)
    }

    /// The roles of the special tokens.
    pub(super) fn roles(&self) -> Vec<(Special, u32)> {
        let find = |text: &str| self.special.iter().position(|t| t == text).map(|i| i as u32);
        let eos = find("</s>");
        let roles = [
            (Special::Bos, find("<s>")),
            (Special::Eos, eos),
            (Special::Unk, find("<unk>")),
            (Special::Pad, find("<pad>").or(eos)),
        ];
        roles.into_iter().filter_map(|(role, id)| Some((role, id?))).collect()
    }
}

/// GPT-2's letters: printable bytes stand for themselves, the others for the characters from U+0100 on.
struct ByteLetters([char; 256]);

fn byte_letters() -> ByteLetters {
    let mut next = 0x100;
    ByteLetters(std::array::from_fn(|byte| match byte as u8 {
        b @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(b),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\u{fffd}')
        }
    }))
}

impl ByteLetters {
    fn write(&self, bytes: &[u8]) -> String {
        bytes.iter().map(|b| self.0[*b as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tokens: &[&[u8]]) -> (tempfile::TempDir, PathBuf) {
        let bytes = (0..=255u8).map(|b| vec![b]).chain(tokens.iter().map(|t| t.to_vec()));
        let vocab: Vec<_> = bytes
            .enumerate()
            .map(|(rank, b)| {
                serde_json::json!({"rank": rank, "token_bytes": base64::engine::general_purpose::STANDARD.encode(b)})
            })
            .collect();
        let size = vocab.len() + 12;
        let config = serde_json::json!({"default_vocab_size": size, "default_num_special_tokens": 12});
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tekken.json");
        std::fs::write(&path, serde_json::json!({"config": config, "vocab": vocab}).to_string()).unwrap();
        (dir, path)
    }

    #[test]
    fn tokens_follow_the_special_ones_and_merges_every_split() {
        let (_dir, path) = file(&[b"ab", b"bc", b"abc", b" a"]);
        let tekken = Tekken::read(&path).unwrap();
        let vocabulary = tekken.vocabulary().unwrap();
        assert_eq!(vocabulary.len(), 12 + 256 + 4);
        assert_eq!(vocabulary.get(1).unwrap().text, "<s>");
        assert_eq!(vocabulary.get(12 + 256 + 3).unwrap().text, "\u{120}a");
        assert_eq!(tekken.merges().unwrap(), ["a b", "b c", "a bc", "ab c", "\u{120} a"]);
        assert_eq!(tekken.roles(), [(Special::Bos, 1), (Special::Eos, 2), (Special::Unk, 0), (Special::Pad, 11)]);
    }

    #[test]
    fn a_token_without_parts_is_named() {
        let (_dir, path) = file(&[b"abc"]);
        let message = Tekken::read(&path).unwrap().merges().unwrap_err().to_string();
        assert!(message.contains("abc") && message.contains("tekken.json"), "{message}");
    }
}
