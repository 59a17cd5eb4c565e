//! tokenizer.json: the parts that a GGUF vocabulary is made of.
//!
//! Layout: the `tokenizers` library's serialization. The vocabulary and the merges are read straight into
//! compact lists, since a generic JSON tree of them would be many times their size.

use super::error::{Result, TokenizerError};
use super::files;
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Ids at or above this are damage, not vocabulary.
pub(super) const ID_LIMIT: u32 = 1 << 24;

/// A tokenizer.json.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: Model,
    #[serde(skip)]
    pub(super) path: PathBuf,
}

/// A token that is matched before the model sees the text.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

/// The model: its vocabulary and how pieces combine.
#[derive(Debug, Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type", default)]
    type_name: Option<String>,
    pub(super) vocab: Vocab,
    #[serde(default)]
    pub(super) merges: Merges,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) unk_id: Option<u32>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) byte_fallback: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) ignore_merges: bool,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// Which algorithm a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelType {
    /// Byte-pair encoding: byte-level, or SentencePiece's in disguise.
    Bpe,
    /// BERT's longest match.
    WordPiece,
    /// SentencePiece's unigram model.
    Unigram,
    /// Whole words.
    WordLevel,
}

/// Pieces with their ids, in file order; for Unigram the id is the position and each has a score.
#[derive(Debug, Default)]
pub(super) struct Vocab {
    pub(super) pieces: Vec<(String, u32)>,
    pub(super) scores: Vec<f64>,
}

/// Pairs of pieces in the order of their rank.
#[derive(Debug, Default)]
pub(super) struct Merges(pub(super) Vec<(String, String)>);

impl TokenizerJson {
    /// Parses and checks the bytes of a tokenizer.json.
    pub(super) fn from_slice(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut json: Self = files::parse(path, bytes)?;
        json.path = path.to_owned();
        let too_large = json.model.vocab.pieces.iter().map(|(piece, id)| (piece, *id));
        let too_large = too_large.chain(json.added_tokens.iter().map(|t| (&t.content, t.id)));
        if let Some((piece, id)) = too_large.into_iter().find(|(_, id)| *id >= ID_LIMIT) {
            return Err(json.wrong(format!("the id of {piece:?}"), id.to_string(), "an id below 16777216"));
        }
        Ok(json)
    }

    /// An error about one of this file's values.
    pub(super) fn wrong(
        &self,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: &'static str,
    ) -> TokenizerError {
        TokenizerError::Field { path: self.path.clone(), field: field.into(), found: found.into(), expected }
    }

    /// The model's algorithm; files of old library versions leave the name out.
    pub(super) fn model_type(&self) -> Result<ModelType> {
        match self.model.type_name.as_deref() {
            Some("BPE") => Ok(ModelType::Bpe),
            Some("WordPiece") => Ok(ModelType::WordPiece),
            Some("Unigram") => Ok(ModelType::Unigram),
            Some("WordLevel") => Ok(ModelType::WordLevel),
            Some(other) => Err(self.wrong("model.type", format!("{other:?}"), "BPE, WordPiece, Unigram or WordLevel")),
            None if !self.model.vocab.scores.is_empty() => Ok(ModelType::Unigram),
            None if !self.model.merges.0.is_empty() => Ok(ModelType::Bpe),
            None if self.model.continuing_subword_prefix.is_some() => Ok(ModelType::WordPiece),
            None => Err(self.wrong("model.type", "missing", "BPE, WordPiece or Unigram")),
        }
    }

    /// Whether any stage, in splitting or in decoding, works on byte letters.
    pub(super) fn is_byte_level(&self) -> bool {
        stages(&self.pre_tokenizer, "pretokenizers")
            .chain(stages(&self.decoder, "decoders"))
            .any(|s| s["type"] == "ByteLevel")
    }

    /// Whether this is a SentencePiece BPE model in the library's clothes: byte fallback, no byte letters.
    pub(super) fn is_sentencepiece_bpe(&self) -> Result<bool> {
        Ok(self.model_type()? == ModelType::Bpe && self.model.byte_fallback && !self.is_byte_level())
    }

    /// Piece to id, without the added tokens.
    pub(super) fn ids(&self) -> Result<HashMap<&str, u32>> {
        let mut ids = HashMap::with_capacity(self.model.vocab.pieces.len());
        let mut taken: HashMap<u32, &str> = HashMap::with_capacity(self.model.vocab.pieces.len());
        for (piece, id) in &self.model.vocab.pieces {
            if let Some(first) = taken.insert(*id, piece).filter(|first| first != piece) {
                return Err(TokenizerError::DuplicateId {
                    path: self.path.clone(),
                    id: *id,
                    first: first.into(),
                    second: piece.clone(),
                });
            }
            ids.insert(piece.as_str(), *id);
        }
        Ok(ids)
    }
}

/// The stages of a pre-tokenizer, normalizer, post-processor or decoder: nested sequences opened, in order.
pub(super) fn stages<'a>(value: &'a Value, list: &'static str) -> Box<dyn Iterator<Item = &'a Value> + 'a> {
    match value.get(list).and_then(Value::as_array) {
        Some(inner) if value["type"] == "Sequence" => Box::new(inner.iter().flat_map(move |s| stages(s, list))),
        _ if value.is_null() => Box::new(std::iter::empty()),
        _ => Box::new(std::iter::once(value)),
    }
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    d: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a vocabulary: pieces with ids, or a list of pieces with scores")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocab, A::Error> {
                let mut vocab = Vocab::default();
                while let Some(entry) = map.next_entry::<String, u32>()? {
                    vocab.pieces.push(entry);
                }
                Ok(vocab)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Vocab, A::Error> {
                let mut vocab = Vocab::default();
                while let Some((piece, score)) = seq.next_element::<(String, f64)>()? {
                    let id = u32::try_from(vocab.pieces.len()).unwrap_or(u32::MAX);
                    vocab.pieces.push((piece, id));
                    vocab.scores.push(score);
                }
                Ok(vocab)
            }
        }
        d.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a merge is neither \"a b\" nor [\"a\", \"b\"]")]
        enum Merge {
            Text(String),
            Pair(String, String),
        }
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Merges;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_unit<E>(self) -> std::result::Result<Merges, E> {
                Ok(Merges::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Merges, A::Error> {
                let mut merges = Vec::new();
                while let Some(merge) = seq.next_element::<Merge>()? {
                    merges.push(match merge {
                        Merge::Pair(a, b) => (a, b),
                        Merge::Text(text) => match text.split_once(' ') {
                            Some((a, b)) if !b.contains(' ') => (a.to_owned(), b.to_owned()),
                            _ => {
                                let why = format!("merge {} ({text:?}) is not two pieces and one space", merges.len());
                                return Err(serde::de::Error::custom(why));
                            }
                        },
                    });
                }
                Ok(Merges(merges))
            }
        }
        d.deserialize_any(V)
    }
}
