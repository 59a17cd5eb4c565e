//! The pre-tokenizer's name, recognised from the structure of tokenizer.json.
//!
//! llama.cpp's runtime splits text by regexes that it looks up under a name (`llm_tokenizer_bpe` in
//! `llama-vocab.cpp`). Its converter finds that name by hashing the ids of a check text, which fails for every
//! changed vocabulary. Here the stages of `pre_tokenizer` are written in a normal form, the *key*, which a
//! table maps to the names of that structure:
//!
//! ```text
//! {Sequence: [Split(Isolated, "(?i:'s|'t…"), ByteLevel(use_regex false)]}   →   S(L3) BL-   →   llama-bpe, smaug-bpe, dbrx, …
//! ```
//!
//! Names under one key differ in flags at most, and the rest of the file decides between them; the converter's
//! hash serves as a second witness there and nowhere else. An unknown key is an error: a similar regex would
//! give a model that almost works.

use super::error::{Result, TokenizerError};
use super::json::{TokenizerJson, stages};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::sync::LazyLock;

/// quant-tables/pretokenizers.json.
#[derive(Deserialize)]
struct Table {
    check_text: String,
    regexes: IndexMap<String, String>,
    structures: IndexMap<String, Vec<String>>,
    groups: Vec<Vec<String>>,
    ignored: Vec<String>,
    fingerprints: IndexMap<String, String>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let text = include_str!("../../quant-tables/pretokenizers.json");
    serde_json::from_str(text).expect("the table in quant-tables is valid; a test parses it")
});

/// The names that `tokenizer.ggml.pre` may have in a vocabulary that the runtime splits by regex.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = TABLE.groups.iter().flatten().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Whether the runtime treats two names alike: same regexes and flags.
pub fn same_behaviour(a: &str, b: &str) -> bool {
    a == b || TABLE.groups.iter().any(|g| g.iter().any(|n| n == a) && g.iter().any(|n| n == b))
}

/// A name given by the user, checked.
pub(super) fn named(name: &str) -> Result<String> {
    let known = names();
    if known.contains(&name) || TABLE.ignored.iter().any(|n| n == name) {
        return Ok(name.to_owned());
    }
    Err(TokenizerError::UnknownPreName { name: name.to_owned(), known })
}

/// What besides the structure decides between names of one structure.
pub(super) struct Context<'a> {
    /// `model_type` of config.json.
    pub(super) model_type: &'a str,
    /// tokenizer_config.json.
    pub(super) config: &'a Value,
    /// The bytes of tokenizer.json.
    pub(super) bytes: &'a [u8],
}

/// The name for a tokenizer.json.
///
/// # Errors
/// An unknown structure, with its key and the regexes that the table lacks.
pub(super) fn recognise(json: &TokenizerJson, context: &Context) -> Result<String> {
    let (key, unknown) = key(&json.pre_tokenizer);
    let Some(names) = TABLE.structures.get(&key) else {
        return Err(TokenizerError::UnknownPreTokenizer { path: json.path.clone(), key, regexes: unknown });
    };
    if let [only] = names.as_slice() {
        return Ok(only.clone());
    }
    // A probe that cannot run is no evidence; the structure has already said all that splitting depends on.
    if let Some(name) = fingerprint(context).and_then(|f| TABLE.fingerprints.get(&f)).filter(|n| names.contains(n)) {
        return Ok(name.clone());
    }
    Ok(tie_break(&key, json, context).unwrap_or(names[0].as_str()).to_owned())
}

/// The name that goes with a WordPiece vocabulary. The runtime ignores it, so that the converter's own answer
/// for a known vocabulary is as good as any.
pub(super) fn for_wordpiece(context: &Context) -> String {
    let known = fingerprint(context).and_then(|f| TABLE.fingerprints.get(&f)).cloned();
    known.unwrap_or_else(|| "bert-bge".into())
}

/// The stages in normal form, and the regexes that the table does not name.
pub(super) fn key(pre_tokenizer: &Value) -> (String, Vec<String>) {
    let mut unknown = Vec::new();
    let tokens: Vec<String> = stages(pre_tokenizer, "pretokenizers").map(|s| token(s, &mut unknown)).collect();
    (if tokens.is_empty() { "none".into() } else { tokens.join(" ") }, unknown)
}

fn token(stage: &Value, unknown: &mut Vec<String>) -> String {
    let flag = |name: &str, default: bool| stage[name].as_bool().unwrap_or(default);
    match stage["type"].as_str().unwrap_or("?") {
        // The library's default for both flags is true, and gpt2's own file leaves use_regex out.
        "ByteLevel" => format!(
            "BL{}{}",
            if flag("use_regex", true) { "+" } else { "-" },
            if flag("add_prefix_space", true) { "p" } else { "" }
        ),
        "Digits" => if flag("individual_digits", false) { "D1" } else { "D" }.into(),
        "Punctuation" => format!("P:{}", stage["behavior"].as_str().unwrap_or("Isolated")),
        "Split" => split(stage, unknown),
        other => other.to_owned(),
    }
}

fn split(stage: &Value, unknown: &mut Vec<String>) -> String {
    let behavior = stage["behavior"].as_str().unwrap_or("?");
    let invert = stage["invert"].as_bool().unwrap_or(false);
    // Keeping only the matches is the same as isolating them where the pattern matches every character,
    // as all known ones do.
    let mode = match (behavior, invert) {
        ("Isolated", _) | ("Removed", true) => String::new(),
        (other, false) => format!("/{other}"),
        (other, true) => format!("/{other}/inverted"),
    };
    if let Some(regex) = stage["pattern"]["Regex"].as_str() {
        let regex = unify(regex);
        if let Some((name, _)) = TABLE.regexes.iter().find(|(_, r)| **r == regex) {
            return format!("S({name}){mode}");
        }
        unknown.push(regex.clone());
        return format!("S({regex}){mode}");
    }
    format!("S(str:{}){mode}", stage["pattern"]["String"].as_str().unwrap_or("?"))
}

/// One spelling for CR, LF, TAB and `\uXXXX`; nothing else is touched.
fn unify(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut rest = regex;
    while let Some(c) = rest.chars().next() {
        let escape =
            rest.strip_prefix("\\u").and_then(|r| r.get(..4)).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if let Some(c) = escape.and_then(char::from_u32) {
            out.push(c);
            rest = &rest[6..];
            continue;
        }
        match c {
            '\r' => out.push_str("\\r"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Decides between names of one structure by what else the files say.
fn tie_break(key: &str, json: &TokenizerJson, context: &Context) -> Option<&'static str> {
    let has = |text: &str| json.added_tokens.iter().any(|t| t.content == text);
    let in_vocabulary = |text: &str| has(text) || json.model.vocab.pieces.iter().any(|(p, _)| p == text);
    let nfc = || stages(&json.normalizer, "normalizers").any(|s| s["type"] == "NFC");
    let post = |name: &str| stages(&json.post_processor, "processors").any(|s| s["type"] == name);
    Some(match key {
        "S(L3) BL-" => {
            if has("[gMASK]") && has("<sop>") {
                if json.model.ignore_merges { "glm4" } else { "chatglm-bpe" }
            } else if has("<|endofprompt|>") && in_vocabulary("<|fim_prefix|>") {
                "dbrx"
            } else if has("<|begin_of_text|>") && has("<|eot_id|>") {
                if begins_with_special(json, context) { "llama-bpe" } else { "smaug-bpe" }
            } else if json.model.ignore_merges {
                "llama-bpe"
            } else {
                "dbrx"
            }
        }
        "BL+" if post("RobertaProcessing") => {
            let plain = stages(&json.normalizer, "normalizers").next().is_none();
            if plain { "roberta-bpe" } else { "jina-v2-code" }
        }
        "BL+" if nfc() && has("<|padding|>") => "olmo",
        "BL+" => "gpt-2",
        "D1 BL+" if nfc() => "command-r",
        "D1 BL+" if has("<|im_start|>") => "smollm",
        "D1 BL+" if context.model_type == "refact" => "refact",
        "D1 BL+" => "starcoder",
        "S(Q2) BL-" if context.model_type.starts_with("stablelm") => "stablelm2",
        "S(Q2) BL-" => "qwen2",
        "S(O200) BL-" => match context.model_type {
            "modernbert" => "granite-embed-multi-97m",
            t if t.starts_with("llama4") => "llama4",
            _ => "gpt-4o",
        },
        "S(N13) S(KANA) S(DS3) BL-" => "deepseek-v3",
        "S(str: )/MergedWithPrevious" if context.model_type == "modernbert" => "granite-embed-multi-311m",
        "S(str: )/MergedWithPrevious" => "gemma4",
        _ => return None,
    })
}

/// Whether encoding puts a special token before the text.
fn begins_with_special(json: &TokenizerJson, context: &Context) -> bool {
    if let Some(add) = context.config["add_bos_token"].as_bool() {
        return add;
    }
    stages(&json.post_processor, "processors")
        .filter(|s| s["type"] == "TemplateProcessing")
        .any(|s| s["single"].as_array().into_iter().flatten().any(|piece| piece.get("SpecialToken").is_some()))
}

/// sha256 of the check text's ids as the converter writes them: `str` of a Python list.
fn fingerprint(context: &Context) -> Option<String> {
    let tokenizer = tokenizers::Tokenizer::from_bytes(context.bytes).ok()?;
    // transformers replaces the post-processor where tokenizer_config says what to add.
    let flag = |name: &str| context.config[name].as_bool();
    let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
    let replaced = bos.is_some() || eos.is_some();
    let encoding = tokenizer.encode(TABLE.check_text.as_str(), !replaced).ok()?;
    let special = |name: &str| {
        let entry = &context.config[name];
        tokenizer.token_to_id(entry.as_str().or_else(|| entry["content"].as_str())?)
    };
    let first = bos.unwrap_or(false).then(|| special("bos_token")).flatten();
    let last = eos.unwrap_or(false).then(|| special("eos_token")).flatten();
    let mut text = String::from("[");
    for (i, id) in first.iter().chain(encoding.get_ids()).chain(last.iter()).enumerate() {
        let _ = write!(text, "{}{id}", if i == 0 { "" } else { ", " });
    }
    text.push(']');
    Some(Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, b| {
        let _ = write!(hex, "{b:02x}");
        hex
    }))
}
