//! Byte-level BPE: tokens and merges of tokenizer.json as `gpt2` vocabularies keep them.
//!
//! Rule (`get_vocab_base` in llama.cpp's converter): every id below the embedding's size has a token; an added
//! token is a control token if it is special or looks so, else user-defined; one that is matched before
//! normalization is stored as the decoder renders it, since the runtime matches it in plain text.

use super::error::{Result, TokenizerError};
use super::files::{self, TokenizerFiles};
use super::json::{AddedToken, ID_LIMIT, TokenizerJson};
use super::special::content;
use super::vocabulary::{Token, TokenType, Vocabulary, added, looks_special};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tokenizers::{Decoder, DecoderWrapper};

/// The vocabulary of a tokenizer.json whose pieces are stored as they are (BPE, WordPiece).
pub(super) fn vocabulary(json: &TokenizerJson, added_tokens: &[AddedToken]) -> Result<Vocabulary> {
    let mut vocabulary = Vocabulary::default();
    json.ids()?;
    for (piece, id) in &json.model.vocab.pieces {
        vocabulary.set(*id, Token::new(piece.as_str(), 0.0, TokenType::Normal));
    }
    let decoder = decoder(json);
    for token in added_tokens {
        let text = match &decoder {
            Some(decoder) if !token.normalized => render(decoder, &token.content),
            _ => token.content.clone(),
        };
        vocabulary.set(token.id, added(&text, token.special, 0.0));
    }
    Ok(vocabulary)
}

/// The added tokens as transformers ends up with: tokenizer.json's, then those that only
/// tokenizer_config.json lists, then the named special tokens that are nowhere else.
///
/// `vocab_size`: the embedding's rows where known; tokens that only a configuration names do not grow a
/// vocabulary beyond them.
pub(super) fn added_tokens(json: &TokenizerJson, config: &Value, vocab_size: Option<u64>) -> Result<Vec<AddedToken>> {
    let ids = json.ids()?;
    let mut by_id: HashMap<u32, String> =
        json.model.vocab.pieces.iter().map(|(piece, id)| (*id, piece.clone())).collect();
    let mut texts: HashSet<String> = HashSet::new();
    let mut all: Vec<AddedToken> = Vec::with_capacity(json.added_tokens.len());
    for token in &json.added_tokens {
        let id = ids.get(token.content.as_str()).copied().unwrap_or(token.id);
        if let Some(first) = by_id.insert(id, token.content.clone()).filter(|first| *first != token.content) {
            let (path, second) = (json.path.clone(), token.content.clone());
            return Err(TokenizerError::DuplicateId { path, id, first, second });
        }
        if texts.insert(token.content.clone()) {
            all.push(AddedToken { id, ..token.clone() });
        }
    }
    let named = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].map(|n| &config[format!("{n}_token")]);
    let mut claims: Vec<(Option<u32>, String, bool, bool)> = decoder_entries(config)
        .map(|(id, entry)| {
            let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
            (Some(id), content(entry).unwrap_or_default().to_owned(), flag("special"), flag("normalized"))
        })
        .collect();
    claims.sort_by_key(|c| c.0);
    let more = ["extra_special_tokens", "additional_special_tokens"].map(|n| &config[n]);
    let more = more.iter().flat_map(|v| match v {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    });
    let special = named.into_iter().chain(more).filter_map(|v| Some((None, content(v)?.to_owned(), true, false)));
    claims.extend(special);
    for (wish, text, special, normalized) in claims {
        if text.is_empty() || !texts.insert(text.clone()) {
            continue;
        }
        let next = all.iter().map(|t| t.id + 1).chain([ids.len() as u32]).max().unwrap_or(0);
        let free = wish.filter(|id| *id < ID_LIMIT && !by_id.contains_key(id));
        let id = ids.get(text.as_str()).copied().or(free).unwrap_or(next);
        let fits = vocab_size.is_none_or(|rows| u64::from(id) < rows);
        if fits && id < ID_LIMIT && by_id.get(&id).is_none_or(|t| *t == text) {
            by_id.insert(id, text.clone());
            all.push(AddedToken { id, content: text, normalized, special });
        }
    }
    Ok(all)
}

/// `added_tokens_decoder` of tokenizer_config.json: ids and their entries.
pub(super) fn decoder_entries(config: &Value) -> impl Iterator<Item = (u32, &Value)> {
    let entries = config["added_tokens_decoder"].as_object().into_iter().flatten();
    entries.filter_map(|(id, entry)| Some((id.parse().ok()?, entry)))
}

/// The merges as lines of `left right`; a space inside a piece is written `Ġ`, as the converter does.
///
/// # Errors
/// A merge whose parts or product the vocabulary lacks.
pub(super) fn merges(json: &TokenizerJson, files: &TokenizerFiles) -> Result<Vec<String>> {
    let ids = json.ids()?;
    let from_file;
    let pairs = if json.model.merges.0.is_empty() {
        from_file = files.own("merges.txt").map(|p| files::read_text(&p)).transpose()?.map(|t| parse_merges(&t));
        from_file.as_deref().unwrap_or_default()
    } else {
        &json.model.merges.0
    };
    let mut product = String::new();
    let mut lines = Vec::with_capacity(pairs.len());
    for (index, (a, b)) in pairs.iter().enumerate() {
        product.clear();
        product.push_str(a);
        product.push_str(b);
        if let Some(token) = [a, b, &product].into_iter().find(|t| !ids.contains_key(t.as_str())) {
            return Err(TokenizerError::MergeOutOfVocabulary {
                path: json.path.clone(),
                index,
                merge: format!("{a} {b}"),
                token: token.clone(),
            });
        }
        lines.push(format!("{} {}", a.replace(' ', "\u{120}"), b.replace(' ', "\u{120}")));
    }
    Ok(lines)
}

/// A tokenizer.json for a folder that has vocab.json and merges.txt alone, and the name of its class's
/// pre-tokenizer, which no file but the class's own source holds.
///
/// # Errors
/// A class whose pre-tokenizer is not known here; `named` says that the user gave one.
pub(super) fn from_vocab_json(
    path: &Path,
    files: &TokenizerFiles,
    config: &Value,
    named: bool,
) -> Result<(TokenizerJson, &'static str)> {
    let class = config["tokenizer_class"].as_str().unwrap_or("GPT2Tokenizer");
    let (pre, post_processor) = match class.trim_end_matches("Fast") {
        "GPT2Tokenizer" | "CodeGenTokenizer" => ("gpt-2", Value::Null),
        "Qwen2Tokenizer" => ("qwen2", Value::Null),
        "RobertaTokenizer" => ("roberta-bpe", json!({"type": "RobertaProcessing", "cls": ["<s>"], "sep": ["</s>"]})),
        _ if named => ("default", Value::Null),
        _ => {
            let (path, key) = (path.to_owned(), format!("tokenizer_class {class}"));
            return Err(TokenizerError::UnknownPreTokenizer { path, key, regexes: Vec::new() });
        }
    };
    let vocab = files::read_object(path)?;
    let merges = files.own("merges.txt").map(|p| files::read_text(&p)).transpose()?.unwrap_or_default();
    let merges: Vec<[String; 2]> = parse_merges(&merges).into_iter().map(|(a, b)| [a, b]).collect();
    let mut added: Vec<Value> = super::spm::added_tokens_json(files)?
        .into_iter()
        .filter(|(text, _)| vocab.get(text).is_none())
        .map(|(text, id)| json!({"id": id, "content": text, "special": looks_special(&text)}))
        .collect();
    // The named special tokens are added tokens wherever their ids come from.
    for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
        let text = content(&config[format!("{name}_token")]);
        if let Some((text, id)) = text.and_then(|t| Some((t, vocab.get(t)?))) {
            added.push(json!({"id": id, "content": text, "special": true}));
        }
    }
    let value = json!({
        "added_tokens": added,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Ok((TokenizerJson::from_slice(path, value.to_string().as_bytes())?, pre))
}

/// merges.txt: a comment line, then a pair a line.
pub(super) fn parse_merges(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().enumerate().filter(|(i, line)| *i > 0 || !line.starts_with('#'));
    lines
        .filter_map(|(_, line)| {
            let mut parts = line.split_whitespace();
            let pair = (parts.next()?.to_owned(), parts.next()?.to_owned());
            parts.next().is_none().then_some(pair)
        })
        .collect()
}

fn decoder(json: &TokenizerJson) -> Option<DecoderWrapper> {
    if json.decoder.is_null() {
        return None;
    }
    serde_json::from_value(json.decoder.clone()).ok()
}

/// A token as the decoder shows it alone.
fn render(decoder: &DecoderWrapper, text: &str) -> String {
    decoder.decode(vec![text.to_owned()]).unwrap_or_else(|_| text.to_owned())
}
