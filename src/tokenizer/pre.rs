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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn tokenizer(pre_tokenizer: &Value, rest: Value) -> TokenizerJson {
        let mut json = json!({"pre_tokenizer": pre_tokenizer, "model": {"type": "BPE", "vocab": {}, "merges": []}});
        for (key, value) in rest.as_object().into_iter().flatten() {
            json[key] = value.clone();
        }
        TokenizerJson::from_slice(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap()
    }

    fn pick(pre_tokenizer: &Value, rest: Value, model_type: &str) -> Result<String> {
        let json = tokenizer(pre_tokenizer, rest);
        recognise(&json, &Context { model_type, config: &Value::Null, bytes: b"" })
    }

    fn published() -> Vec<(Vec<String>, Value, Value)> {
        let rows: Vec<Value> = serde_json::from_str(include_str!("../../fixtures/pre-tokenizers.json")).unwrap();
        let names = |row: &Value| serde_json::from_value(row["names"].clone()).unwrap();
        rows.iter().map(|r| (names(r), r["pre_tokenizer"].clone(), r["normalizer"].clone())).collect()
    }

    #[test]
    fn the_table_holds_91_names_that_the_runtime_knows() {
        assert_eq!(names().len(), 91);
        assert!(TABLE.fingerprints.values().all(|n| names().contains(&n.as_str()) || TABLE.ignored.contains(n)));
        assert!(
            TABLE.structures.values().flatten().all(|n| names().contains(&n.as_str()) || TABLE.ignored.contains(n))
        );
    }

    #[test]
    fn every_published_structure_is_found_under_its_name() {
        for (names, pre_tokenizer, _) in published() {
            let (key, unknown) = key(&pre_tokenizer);
            let found = TABLE.structures.get(&key).unwrap_or_else(|| panic!("{names:?}: {key} {unknown:?}"));
            assert!(names.iter().all(|n| found.contains(n)), "{names:?} under {key}: {found:?}");
        }
    }

    /// What the files of a name say besides their structure.
    fn hints(name: &str) -> (Value, &'static str) {
        let added = |texts: &[&str], ignore_merges: bool| {
            let tokens = texts.iter().enumerate().map(|(i, t)| json!({"id": i, "content": t, "special": true}));
            json!({
                "added_tokens": tokens.collect::<Vec<_>>(),
                "model": {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": ignore_merges},
                "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "pair": []},
            })
        };
        match name {
            "llama-bpe" | "llama3" | "llama-v3" => (added(&["<|begin_of_text|>", "<|eot_id|>"], true), ""),
            "smaug-bpe" => {
                let mut files = added(&["<|begin_of_text|>", "<|eot_id|>"], true);
                files["post_processor"] = json!({"type": "ByteLevel"});
                (files, "")
            }
            "dbrx" => (added(&["<|fim_prefix|>", "<|endofprompt|>"], false), ""),
            "glm4" => (added(&["[gMASK]", "<sop>"], true), ""),
            "chatglm-bpe" => (added(&["[gMASK]", "<sop>"], false), ""),
            "jina-v5-nano" | "lfm2" | "midm-2.0" | "pixtral" => (added(&[], true), ""),
            "refact" => (Value::Null, "refact"),
            "smollm" => (added(&["<|im_start|>"], false), ""),
            "stablelm2" => (Value::Null, "stablelm"),
            "granite-embed-multi-97m" | "granite-embed-multi-311m" => (Value::Null, "modernbert"),
            "llama4" => (Value::Null, "llama4_text"),
            "roberta-bpe" => (json!({"post_processor": {"type": "RobertaProcessing"}}), ""),
            "jina-v2-code" => {
                (json!({"post_processor": {"type": "RobertaProcessing"}, "normalizer": {"type": "Lowercase"}}), "")
            }
            _ => (Value::Null, ""),
        }
    }

    #[test]
    fn every_published_structure_is_given_its_behaviour() {
        // The runtime's flags that no file shows: clean_spaces (detokenizing only), and the repository's name.
        let only_by_name = ["gigachat", "granite-docling", "trillion", "megrez", "poro-chat", "chameleon"];
        let mut checked = 0;
        for (names, pre_tokenizer, normalizer) in published() {
            for name in names.iter().filter(|n| !only_by_name.contains(&n.as_str())) {
                let (mut rest, model_type) = hints(name);
                if !normalizer.is_null() {
                    rest = if rest.is_null() { json!({}) } else { rest };
                    rest["normalizer"] = normalizer.clone();
                }
                let picked = pick(&pre_tokenizer, rest, model_type).unwrap();
                let wordpiece = TABLE.ignored.iter().any(|n| n == name);
                assert!(wordpiece || same_behaviour(&picked, name), "{name}: picked {picked}");
                checked += 1;
            }
        }
        assert!(checked >= 80, "{checked}");
    }

    #[test]
    fn escapes_and_characters_are_one_regex() {
        let split = |regex: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
            ]})
        };
        let escaped = TABLE.regexes["SEED"].as_str();
        let raw = escaped.replace("\\r", "\r").replace("\\n", "\n");
        assert_ne!(raw, escaped);
        assert_eq!(key(&split(&raw)), key(&split(escaped)));
        assert_eq!(unify("[\\u4e00-\\u9FFF]\\u12"), "[\u{4e00}-\u{9fff}]\\u12");
    }

    #[test]
    fn an_unknown_structure_is_refused_with_its_regex() {
        let stages = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
        ]});
        let message = pick(&stages, Value::Null, "").unwrap_err().to_string();
        assert!(message.contains("[a-z]+") && message.contains("--pre-tokenizer"), "{message}");
        // A regex stored as a string never matches: the file is not the one that it looks like.
        let string = json!({"type": "Split", "pattern": {"String": TABLE.regexes["L3"]}, "behavior": "Isolated"});
        assert!(pick(&string, Value::Null, "").is_err());
        assert!(pick(&Value::Null, Value::Null, "").unwrap_err().to_string().contains("[none]"));
    }

    #[test]
    fn the_order_of_the_stages_counts() {
        let digits = json!({"type": "Digits", "individual_digits": true});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        let nested =
            json!({"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [digits, bytes]}]});
        assert_eq!(pick(&nested, Value::Null, "").unwrap(), "starcoder");
        assert!(pick(&json!({"type": "Sequence", "pretokenizers": [bytes, digits]}), Value::Null, "").is_err());
    }

    #[test]
    fn a_given_name_is_checked() {
        assert_eq!(named("qwen2").unwrap(), "qwen2");
        let message = named("qwen9").unwrap_err().to_string();
        assert!(message.contains("qwen9") && message.contains("qwen2"), "{message}");
    }
}
