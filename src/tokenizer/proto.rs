//! `tokenizer.model`: the protocol buffer that SentencePiece writes (`sentencepiece_model.proto`).
//!
//! Only the fields that a GGUF vocabulary needs; others are skipped by the decoder.

use super::error::{Result, TokenizerError};
use super::files;
use super::json::ID_LIMIT;
use super::vocabulary::TokenType;
use prost::Message;
use std::path::Path;

/// A SentencePiece model.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer_spec: Option<NormalizerSpec>,
}

/// One piece.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Piece {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) text: Vec<u8>,
    #[prost(float, tag = "2")]
    pub(super) score: f32,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

/// How the model was trained.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerSpec {
    /// 1 unigram (also when absent), 2 BPE, 3 word, 4 char.
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
}

/// How text is normalized.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    pub(super) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(super) remove_extra_whitespaces: Option<bool>,
}

impl ModelProto {
    /// Reads a model file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        let wrong = |reason: String| TokenizerError::SentencePiece { path: path.to_owned(), reason };
        let proto = Self::decode(bytes.as_slice()).map_err(|e| wrong(e.to_string()))?;
        if proto.pieces.is_empty() {
            return Err(wrong("it holds no pieces".into()));
        }
        if proto.pieces.len() >= ID_LIMIT as usize {
            return Err(wrong(format!("{} pieces", proto.pieces.len())));
        }
        Ok(proto)
    }

    /// Whether this is a unigram model rather than BPE.
    pub(super) fn is_unigram(&self) -> bool {
        self.trainer_spec.as_ref().and_then(|s| s.model_type).unwrap_or(1) == 1
    }
}

impl Piece {
    /// The piece's type as the converter sees it: a user-defined piece is a normal one there.
    pub(super) fn token_type(&self) -> TokenType {
        match self.kind {
            Some(2) => TokenType::Unknown,
            Some(3) => TokenType::Control,
            Some(5) => TokenType::Unused,
            Some(6) => TokenType::Byte,
            _ => TokenType::Normal,
        }
    }
}
