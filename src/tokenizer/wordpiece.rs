//! BERT's vocabularies (`bert`): WordPiece as the runtime wants it, words marked instead of continuations.
//!
//! `word` becomes `▁word` and `##piece` becomes `piece`; control tokens stay as they are
//! (`BertModel.set_vocab` in llama.cpp's converter).

use super::error::Result;
use super::files;
use super::json::TokenizerJson;
use super::vocabulary::{TokenType, Vocabulary};
use serde_json::{Value, json};
use std::path::Path;

/// Moves the mark from the continuations to the words.
pub(super) fn mark_words(vocabulary: &mut Vocabulary) {
    for token in vocabulary.iter_mut().filter(|t| t.kind != TokenType::Control) {
        token.text = match token.text.strip_prefix(b"##") {
            Some(rest) => rest.into(),
            None => [MARK.as_bytes(), &token.text].concat().into(),
        };
    }
}

/// The mark of a word's beginning.
pub(super) const MARK: &str = "\u{2581}";

/// A tokenizer.json for a folder that has vocab.txt alone, as transformers' BERT class builds it.
pub(super) fn from_vocab_txt(path: &Path, config: &Value) -> Result<TokenizerJson> {
    let text = files::read_text(path)?;
    let vocab: serde_json::Map<String, Value> =
        text.lines().enumerate().map(|(id, piece)| (piece.trim_end_matches('\r').to_owned(), json!(id))).collect();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].into_iter().filter_map(|t| {
        let id = vocab.get(t)?;
        Some(json!({"id": id, "content": t, "normalized": false, "special": true}))
    });
    let piece = |id: &str, special: bool| match special {
        true => json!({"SpecialToken": {"id": id, "type_id": 0}}),
        false => json!({"Sequence": {"id": id, "type_id": 0}}),
    };
    let (cls, sep) = (piece("[CLS]", true), piece("[SEP]", true));
    let (a, b) = (piece("A", false), piece("B", false));
    let value = json!({
        "added_tokens": special.collect::<Vec<_>>(),
        "normalizer": {
            "type": "BertNormalizer",
            "lowercase": config["do_lower_case"].as_bool().unwrap_or(true),
            "strip_accents": config["strip_accents"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [cls, a, sep], "pair": [cls, a, sep, b, sep]},
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"},
    });
    TokenizerJson::from_slice(path, value.to_string().as_bytes())
}
