//! Unigram vocabularies (`t5`): SentencePiece's probabilistic model, with its character map.
//!
//! Sources: a unigram tokenizer.model (or spiece.model), whose normalizer gives the flags and the map; or a
//! tokenizer.json, where the same facts are spread over normalizer and pre-tokenizer.

use super::error::Result;
use super::files::TokenizerFiles;
use super::json::{TokenizerJson, stages};
use super::proto::ModelProto;
use super::spm;
use super::vocabulary::{Token, TokenType, Vocabulary};
use crate::gguf::{Array, Metadata, Value as GgufValue};
use base64::Engine as _;

/// What a unigram model does to a text before it looks for pieces.
#[derive(Debug, Default)]
pub(super) struct Normalizer {
    pub(super) add_space_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    /// SentencePiece's compiled map of characters; empty for none.
    pub(super) charsmap: Vec<u8>,
}

impl Normalizer {
    /// As tokenizer.model says it.
    pub(super) fn of_model(proto: &ModelProto) -> Self {
        let spec = proto.normalizer_spec.clone().unwrap_or_default();
        Self {
            add_space_prefix: spec.add_dummy_prefix.unwrap_or(true),
            remove_extra_whitespaces: spec.remove_extra_whitespaces.unwrap_or(true),
            charsmap: spec.precompiled_charsmap.unwrap_or_default(),
        }
    }

    /// As tokenizer.json says it.
    ///
    /// # Errors
    /// A character map that is not base64.
    pub(super) fn of_json(json: &TokenizerJson) -> Result<Self> {
        let normalizers: Vec<_> = stages(&json.normalizer, "normalizers").collect();
        let map = normalizers.iter().find_map(|s| s["precompiled_charsmap"].as_str());
        let charsmap = base64::engine::general_purpose::STANDARD.decode(map.unwrap_or_default());
        let charsmap = charsmap
            .map_err(|e| json.wrong("normalizer.precompiled_charsmap", format!("not base64 ({e})"), "base64"))?;
        // Runs of spaces are one space: SentencePiece's converter writes that as a replacement.
        let collapses = normalizers.iter().any(|s| s["type"] == "Replace" && s["pattern"]["Regex"] == " {2,}");
        let splits = stages(&json.pre_tokenizer, "pretokenizers").any(|s| s["type"] == "WhitespaceSplit");
        Ok(Self {
            add_space_prefix: spm::prepends_space(json),
            remove_extra_whitespaces: collapses || splits,
            charsmap,
        })
    }

    /// The keys between the types and the special ids. `token_types`: BERT's `token_type_count`.
    pub(super) fn write(self, token_types: Option<u32>, metadata: &mut Metadata) {
        metadata.set("tokenizer.ggml.add_space_prefix", GgufValue::Bool(self.add_space_prefix));
        if let Some(count) = token_types {
            metadata.set("tokenizer.ggml.token_type_count", GgufValue::U32(count));
        }
        metadata.set("tokenizer.ggml.remove_extra_whitespaces", GgufValue::Bool(self.remove_extra_whitespaces));
        if !self.charsmap.is_empty() {
            metadata.set("tokenizer.ggml.precompiled_charsmap", GgufValue::Array(Array::U8(self.charsmap)));
        }
    }
}

/// The vocabulary of a unigram tokenizer.model and added_tokens.json.
pub(super) fn from_model(
    proto: &ModelProto,
    files: &TokenizerFiles,
    json: Option<&TokenizerJson>,
) -> Result<Vocabulary> {
    let mut vocabulary = spm::pieces(proto);
    for (text, id) in spm::added_tokens_json(files)? {
        vocabulary.set(id, Token::new(text, -1000.0, TokenType::UserDefined));
    }
    // What only tokenizer.json lists (T5's sentinels are such) would be a gap otherwise.
    for token in json.into_iter().flat_map(|j| &j.added_tokens) {
        if vocabulary.get(token.id).is_none() {
            let kind = if token.special { TokenType::Control } else { TokenType::UserDefined };
            vocabulary.set(token.id, Token::new(token.content.as_str(), -1000.0, kind));
        }
    }
    Ok(vocabulary)
}

/// XLM-RoBERTa's sentencepiece.bpe.model in the order that transformers gives it: four special tokens, then the
/// pieces from the third on, one place later. `rows`: the embedding's, whose last is the mask.
pub(super) fn realigned(proto: &ModelProto, rows: u64) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    for (id, text) in ["<s>", "<pad>", "</s>", "<unk>"].into_iter().enumerate() {
        let kind = if text == "<unk>" { TokenType::Unknown } else { TokenType::Control };
        vocabulary.set(id as u32, Token::new(text, 0.0, kind));
    }
    let pieces = spm::pieces(proto);
    for (id, token) in pieces.iter().filter(|(id, _)| *id >= 3) {
        vocabulary.set(id + 1, token.clone());
    }
    // The converter names the gaps before it moves the pieces.
    let rows = u32::try_from(rows).unwrap_or(u32::MAX).min(super::json::ID_LIMIT);
    for id in vocabulary.len() as u32..rows {
        vocabulary.set(id, Token::new(format!("[PAD{}]", id - 1), -10000.0, TokenType::Unused));
    }
    vocabulary
}

/// The vocabulary of a tokenizer.json with a Unigram model: special tokens are control tokens, other added ones
/// user-defined.
pub(super) fn from_json(json: &TokenizerJson) -> Result<Vocabulary> {
    let model = &json.model;
    let mut vocabulary = Vocabulary::default();
    for ((piece, id), score) in model.vocab.pieces.iter().zip(&model.vocab.scores) {
        let kind = if model.unk_id == Some(*id) {
            TokenType::Unknown
        } else if model.byte_fallback && spm::is_byte(piece) {
            TokenType::Byte
        } else {
            TokenType::Normal
        };
        vocabulary.set(*id, Token::new(piece.as_str(), *score as f32, kind));
    }
    for token in &json.added_tokens {
        let kind = if token.special { TokenType::Control } else { TokenType::UserDefined };
        match vocabulary.get_mut(token.id) {
            Some(known) if known.kind == TokenType::Unknown => {}
            Some(known) if known.text == token.content => known.kind = kind,
            Some(known) => {
                let first = known.text.to_string();
                return Err(super::TokenizerError::DuplicateId {
                    path: json.path.clone(),
                    id: token.id,
                    first,
                    second: token.content.clone(),
                });
            }
            None => vocabulary.set(token.id, Token::new(token.content.as_str(), 0.0, kind)),
        }
    }
    Ok(vocabulary)
}

#[cfg(test)]
mod tests {
    use super::super::proto::Piece;
    use super::*;

    #[test]
    fn realigned_pieces_follow_four_special_tokens() {
        let piece = |text: &str| Piece { text: text.into(), score: -1.0, kind: None };
        let pieces = ["<unk>", "<s>", "</s>", "▁a", "b"].map(piece).to_vec();
        let proto = ModelProto { pieces, trainer_spec: None, normalizer_spec: None };
        let vocabulary = realigned(&proto, 8);
        let texts: Vec<String> = vocabulary.iter().map(|(_, t)| t.text.to_string()).collect();
        assert_eq!(texts, ["<s>", "<pad>", "</s>", "<unk>", "▁a", "b", "[PAD5]", "[PAD6]"]);
    }

    #[test]
    fn a_damaged_character_map_is_named() {
        let json = r#"{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"},
            "model": {"type": "Unigram", "vocab": [["a", 0.0]]}}"#;
        let json = TokenizerJson::from_slice("tokenizer.json".as_ref(), json.as_bytes()).unwrap();
        let message = Normalizer::of_json(&json).unwrap_err().to_string();
        assert!(message.contains("precompiled_charsmap") && message.contains("base64"), "{message}");
    }
}
