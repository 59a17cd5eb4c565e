//! Tokens by id: text, score and type, with the gaps filled as llama.cpp's converter fills them.

use crate::gguf::{Array, Metadata, Value};
use bstr::BString;

/// A token's type, with the number that GGUF stores (`llama_token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum TokenType {
    /// An ordinary piece.
    Normal = 1,
    /// What stands for text that no piece covers.
    Unknown = 2,
    /// A token with a meaning of its own, which never shows as text.
    Control = 3,
    /// An added token that is text.
    UserDefined = 4,
    /// A row of the embedding that no text produces.
    Unused = 5,
    /// A single byte, written `<0xNN>`.
    Byte = 6,
}

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The text; not always UTF-8.
    pub text: BString,
    /// What decides between pieces; read for SentencePiece vocabularies only.
    pub score: f32,
    /// Its type.
    pub kind: TokenType,
}

impl Token {
    pub(super) fn new(text: impl Into<Vec<u8>>, score: f32, kind: TokenType) -> Self {
        Self { text: BString::new(text.into()), score, kind }
    }
}

/// Tokens by id. Ids without a token are gaps.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    tokens: Vec<Option<Token>>,
}

impl Vocabulary {
    /// Puts a token under an id, replacing what is there. Ids are checked where files are read.
    pub(super) fn set(&mut self, id: u32, token: Token) {
        let index = id as usize;
        if index >= self.tokens.len() {
            self.tokens.resize(index + 1, None);
        }
        self.tokens[index] = Some(token);
    }

    /// The token under an id.
    pub fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Token> {
        self.tokens.get_mut(id as usize)?.as_mut()
    }

    /// The number of ids in use: the largest id plus one, gaps included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Ids and tokens, gaps left out.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Token)> {
        self.tokens.iter().enumerate().filter_map(|(id, t)| Some((id as u32, t.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Token> {
        self.tokens.iter_mut().flatten()
    }

    /// The id of a text, the lowest where several have it.
    pub fn find(&self, text: &str) -> Option<u32> {
        self.iter().find(|(_, t)| t.text == text).map(|(id, _)| id)
    }

    /// The tokens, scores and types of exactly `size` ids: gaps become `[PADi]`, what lies beyond is left out.
    pub(super) fn write(&self, size: usize, scores: bool, gap: impl Fn(usize) -> String, metadata: &mut Metadata) {
        let all = (0..size).map(|i| match self.tokens.get(i).and_then(Option::as_ref) {
            Some(t) => (t.text.clone(), t.score, t.kind as i32),
            None => (BString::from(gap(i)), GAP_SCORE, TokenType::Unused as i32),
        });
        let (mut texts, mut values, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for (text, score, kind) in all {
            texts.push(text);
            values.push(score);
            kinds.push(kind);
        }
        metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(texts)));
        if scores {
            metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(values)));
        }
        metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    }
}

/// The converter's score for a gap.
const GAP_SCORE: f32 = -10000.0;

/// Whether an added token is a control token by its looks, though its file does not call it special
/// (`does_token_look_special` in llama.cpp's converter).
pub(super) fn looks_special(text: &str) -> bool {
    let within = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<\u{ff5c}", "\u{ff5c}>")
        || within("<unused", ">")
}

/// Type and text of an added token: control tokens keep their text, user-defined ones have spaces for `▁`.
pub(super) fn added(text: &str, special: bool, score: f32) -> Token {
    if special || looks_special(text) {
        Token::new(text, score, TokenType::Control)
    } else {
        Token::new(text.replace('\u{2581}', " "), score, TokenType::UserDefined)
    }
}
