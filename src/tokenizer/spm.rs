//! SentencePiece vocabularies (`llama`): from tokenizer.model, or from tokenizer.json where that is all there is.
//!
//! With tokenizer.model the result is what llama.cpp's converter makes (`_create_vocab_sentencepiece`): pieces,
//! scores and types as they are, then added_tokens.json, then `added_tokens_decoder` over them.
//!
//! transformers 5 saves tokenizer.json alone. Its merges hold the order that the scores stood for, so the
//! score of a piece is minus the index of the first merge that makes it: the runtime then joins the same
//! pairs in the same order. (The converter writes -1000 for every piece there, which garbles most texts.)

use super::bpe::decoder_entries;
use super::error::{Result, TokenizerError};
use super::files::{self, TokenizerFiles};
use super::json::{ID_LIMIT, TokenizerJson, stages};
use super::proto::ModelProto;
use super::special::content;
use super::vocabulary::{Token, TokenType, Vocabulary, added};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Score of an added token.
const ADDED_SCORE: f32 = -1000.0;

/// How a family treats added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddedRule {
    /// Control if special or special-looking, else user-defined with `▁` turned into spaces.
    Usual,
    /// Control if special, else user-defined, both verbatim; tokenizer.json's list comes last (Phi-3).
    Verbatim,
}

impl AddedRule {
    fn token(self, text: &str, special: bool) -> Token {
        match self {
            Self::Usual => added(text, special, ADDED_SCORE),
            Self::Verbatim if special => Token::new(text, ADDED_SCORE, TokenType::Control),
            Self::Verbatim => Token::new(text, ADDED_SCORE, TokenType::UserDefined),
        }
    }
}

/// The vocabulary of a tokenizer.model, with the added tokens of the files beside it.
pub(super) fn from_model(
    proto: &ModelProto,
    files: &TokenizerFiles,
    json: Option<&TokenizerJson>,
    config: &Value,
    rule: AddedRule,
) -> Result<Vocabulary> {
    let mut vocabulary = pieces(proto);
    for (text, id) in added_tokens_json(files)? {
        vocabulary.set(id, Token::new(text, ADDED_SCORE, TokenType::UserDefined));
    }
    for (id, entry) in decoder_entries(config).filter(|(id, _)| *id < ID_LIMIT) {
        if let Some(text) = content(entry) {
            vocabulary.set(id, rule.token(text, entry["special"].as_bool().unwrap_or(false)));
        }
    }
    // A fine-tune saved by transformers 5 lists its own tokens in tokenizer.json only.
    for token in json.into_iter().flat_map(|j| &j.added_tokens) {
        if rule == AddedRule::Verbatim || vocabulary.get(token.id).is_none() {
            vocabulary.set(token.id, rule.token(&token.content, token.special));
        }
    }
    Ok(vocabulary)
}

/// The pieces of a tokenizer.model as they are.
pub(super) fn pieces(proto: &ModelProto) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    for (id, piece) in proto.pieces.iter().enumerate() {
        vocabulary.set(id as u32, Token::new(piece.text.clone(), piece.score, piece.token_type()));
    }
    vocabulary
}

/// Whether a tokenizer.json holds the pieces of a tokenizer.model under the same ids.
pub(super) fn same_pieces(proto: &ModelProto, json: &TokenizerJson) -> bool {
    let model = json.model.vocab.pieces.iter().map(|(text, id)| (text, *id));
    let added = json.added_tokens.iter().map(|t| (&t.content, t.id));
    let mut matched = 0;
    for (text, id) in model.chain(added) {
        match proto.pieces.get(id as usize) {
            Some(piece) if piece.text == text.as_bytes() => matched += 1,
            // A token put over a reserved piece is the fine-tune's right.
            Some(_) | None => {}
        }
    }
    // Reserved pieces may be renamed and added tokens counted twice, but not one piece in a hundred differs.
    matched * 100 >= proto.pieces.len() * 99
}

/// added_tokens.json: texts and ids, in file order.
pub(super) fn added_tokens_json(files: &TokenizerFiles) -> Result<Vec<(String, u32)>> {
    let Some(path) = files.own("added_tokens.json") else { return Ok(Vec::new()) };
    let Value::Object(entries) = files::read_object(&path)? else { return Ok(Vec::new()) };
    entries
        .into_iter()
        .map(|(text, id)| match id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < ID_LIMIT) {
            Some(id) => Ok((text, id)),
            None => Err(wrong(&path, format!("the id of {text:?}"), id.to_string(), "an id below 16777216")),
        })
        .collect()
}

fn wrong(path: &Path, field: String, found: String, expected: &'static str) -> TokenizerError {
    TokenizerError::Field { path: path.to_owned(), field, found, expected }
}

/// The vocabulary of a SentencePiece BPE model that only tokenizer.json describes.
pub(super) fn from_json(json: &TokenizerJson, rule: AddedRule) -> Result<Vocabulary> {
    let ids = json.ids()?;
    let merges = &json.model.merges.0;
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(ids.len());
    for (index, (a, b)) in merges.iter().enumerate() {
        let product = format!("{a}{b}");
        if let Some(token) = [a, b, &product].into_iter().find(|t| !ids.contains_key(t.as_str())) {
            let (path, merge, token) = (json.path.clone(), format!("{a} {b}"), token.clone());
            return Err(TokenizerError::MergeOutOfVocabulary { path, index, merge, token });
        }
        rank.entry(product).or_insert(index);
    }
    let mut vocabulary = Vocabulary::default();
    for (piece, id) in &json.model.vocab.pieces {
        let kind = if json.model.unk_token.as_ref() == Some(piece) {
            TokenType::Unknown
        } else if is_byte(piece) {
            TokenType::Byte
        } else {
            TokenType::Normal
        };
        // What no merge makes is found as a single character, a byte or an added token; a score below all
        // others keeps the runtime from joining two pieces into it.
        let score = match (rank.get(piece), kind) {
            (Some(index), _) => 0.0 - *index as f32,
            (None, TokenType::Normal) => 0.0 - merges.len() as f32,
            (None, _) => 0.0,
        };
        vocabulary.set(*id, Token::new(piece.as_str(), score, kind));
    }
    for token in &json.added_tokens {
        let id = ids.get(token.content.as_str()).copied().unwrap_or(token.id);
        if let Some(first) = vocabulary.get(id).filter(|t| t.text != token.content) {
            let (path, first, second) = (json.path.clone(), first.text.to_string(), token.content.clone());
            return Err(TokenizerError::DuplicateId { path, id, first, second });
        }
        vocabulary.set(id, rule.token(&token.content, token.special));
    }
    Ok(vocabulary)
}

/// Whether the text begins with a space that the tokenizer puts there, as tokenizer.json says it:
/// `Prepend` in the normalizer, or `Metaspace`.
pub(super) fn prepends_space(json: &TokenizerJson) -> bool {
    let prepend = stages(&json.normalizer, "normalizers").any(|s| s["type"] == "Prepend");
    let metaspace = stages(&json.pre_tokenizer, "pretokenizers").find(|s| s["type"] == "Metaspace");
    prepend
        || metaspace.is_some_and(|s| match s["prepend_scheme"].as_str() {
            Some(scheme) => scheme != "never",
            None => s["add_prefix_space"].as_bool().unwrap_or(true),
        })
}

/// Whether a piece stands for one byte: `<0xNN>`.
pub(super) fn is_byte(piece: &str) -> bool {
    let hex = piece.strip_prefix("<0x").and_then(|p| p.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::super::proto::Piece;
    use super::*;
    use prost::Message as _;
    use serde_json::json;

    fn model(texts: &[&str]) -> ModelProto {
        let kind = |t: &str| Some(if t == "<unk>" { 2 } else { 1 });
        let pieces = texts.iter().enumerate();
        let pieces =
            pieces.map(|(i, t)| Piece { text: (*t).into(), score: -(i as f32), kind: kind(t) }).collect::<Vec<_>>();
        ModelProto { pieces, trainer_spec: None, normalizer_spec: None }
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
        dir
    }

    #[test]
    fn added_tokens_lie_over_the_pieces() {
        let proto = model(&["<unk>", "a", "<unused>"]);
        let dir = folder(&[
            ("tokenizer.model", proto.encode_to_vec()),
            ("added_tokens.json", br#"{"<x>": 3, "<|y|>": 5}"#.to_vec()),
        ]);
        let files = TokenizerFiles::new([dir.path()]);
        let decoder = json!({"0": {"content": "<unk>", "special": true}, "2": {"content": "\u{2581}z"}});
        let config = json!({ "added_tokens_decoder": decoder });
        let read = ModelProto::read(&dir.path().join("tokenizer.model")).unwrap();
        let vocabulary = from_model(&read, &files, None, &config, AddedRule::Usual).unwrap();
        let token = |id| vocabulary.get(id).map(|t| (t.text.to_string(), t.score, t.kind));
        assert_eq!(token(0), Some(("<unk>".into(), -1000.0, TokenType::Control)));
        assert_eq!(token(1), Some(("a".into(), -1.0, TokenType::Normal)));
        assert_eq!(token(2), Some((" z".into(), -1000.0, TokenType::UserDefined)));
        assert_eq!(token(3), Some(("<x>".into(), -1000.0, TokenType::UserDefined)));
        assert_eq!((token(4), vocabulary.len()), (None, 6));
    }

    #[test]
    fn an_enormous_added_id_is_refused() {
        let dir = folder(&[
            ("tokenizer.model", model(&["a"]).encode_to_vec()),
            ("added_tokens.json", br#"{"<x>": 99999999999}"#.to_vec()),
        ]);
        let message = added_tokens_json(&TokenizerFiles::new([dir.path()])).unwrap_err().to_string();
        assert!(message.contains("added_tokens.json") && message.contains("<x>"), "{message}");
    }

    #[test]
    fn a_model_belongs_to_a_tokenizer_json_with_its_pieces() {
        let vocab = json!({"<unk>": 0, "a": 1, "b": 2});
        let json = json!({"model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []}});
        let json = TokenizerJson::from_slice("tokenizer.json".as_ref(), json.to_string().as_bytes()).unwrap();
        assert!(same_pieces(&model(&["<unk>", "a", "b"]), &json));
        assert!(!same_pieces(&model(&["<unk>", "b", "a"]), &json));
    }
}
