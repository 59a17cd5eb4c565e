//! Vocabularies: what a model folder's tokenizer files become in a GGUF file.
//!
//! ```text
//! tokenizer.json, tokenizer.model, …  ─► Vocabulary (text, score, type per id)
//! tokenizer_config.json, config.json  ─► special ids, add_bos/add_eos/add_sep
//! chat_template.*                     ─► templates          ─► Tokenizer::metadata(rows)
//! ```
//!
//! [`Tokenizer::load`] reads the files of one vocabulary; [`VocabKind`] is the family's rule for which of them
//! count. [`Tokenizer::metadata`] gives the `tokenizer.*` keys in the order and types of llama.cpp's converter.

mod bpe;
mod error;
mod files;
mod json;
mod kind;
mod pre;
mod proto;
mod saved;
mod special;
mod spm;
mod tekken;
mod template;
mod ugm;
mod vocabulary;
mod wordpiece;

pub use error::TokenizerError;
pub use files::TokenizerFiles;
pub use kind::{VocabExtras, VocabKind};
pub use pre::{names as pre_tokenizer_names, same_behaviour};
pub use saved::{SavedFile, saved_files};
pub use special::Special;
pub use template::ChatTemplates;
pub use vocabulary::{Token, TokenType, Vocabulary};

use crate::gguf::{Metadata, Value};
use error::Result;

/// What the caller knows besides the files.
#[derive(Clone, Debug, Default)]
pub struct TokenizerOptions {
    /// `--pre-tokenizer`: the name to use instead of recognising one.
    pub pre_tokenizer: Option<String>,
    /// The family's rule.
    pub kind: VocabKind,
    /// What the family adds to it.
    pub extras: VocabExtras,
}

/// A model's tokenizer, ready for a GGUF file.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`: llama, gpt2, bert, t5, ….
    model: &'static str,
    /// `tokenizer.ggml.pre`, where the kind has one.
    pre: Option<String>,
    vocabulary: Vocabulary,
    merges: Vec<String>,
    /// Keys before `tokenizer.ggml.model`, between the types and the merges, and after everything else.
    leading: Metadata,
    inner: Metadata,
    trailing: Metadata,
    specials: special::Specials,
    templates: ChatTemplates,
    form: Form,
}

/// What a kind of vocabulary writes.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Scores are a part of it.
    scores: bool,
    /// Special ids beyond the vocabulary are left out, as the converter does for all but BPE.
    checked_ids: bool,
    /// Gaps carry the word mark that every piece of BERT's vocabularies carries.
    marked_gaps: bool,
}

/// How a vocabulary and an embedding compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VocabFit {
    /// One row per id.
    Exact,
    /// More rows than ids: the rest becomes `[PADi]`.
    Padded {
        /// Ids in use.
        tokens: u64,
        /// Rows of the embedding.
        rows: u64,
    },
    /// More ids than rows: tokens that the model has no embedding for.
    Excess {
        /// Ids in use.
        tokens: u64,
        /// Rows of the embedding.
        rows: u64,
        /// The tokens without a row, by id.
        without_row: Vec<String>,
    },
}

impl Tokenizer {
    /// Reads a tokenizer. `config` is the model's config.json.
    ///
    /// # Errors
    /// No vocabulary file; a file that cannot be read or is damaged; an unknown pre-tokenizer.
    pub fn load(files: &TokenizerFiles, config: &serde_json::Value, options: &TokenizerOptions) -> Result<Self> {
        kind::load(files, config, options)
    }

    /// The keys `tokenizer.*` for a model with `rows` embedding rows, in the converter's order.
    ///
    /// Ids without a token become `[PADi]`; tokens beyond the rows are left out, see [`Self::fit`].
    pub fn metadata(&self, rows: u64) -> Metadata {
        let rows = usize::try_from(rows).unwrap_or(usize::MAX).min(json::ID_LIMIT as usize);
        let limit = if self.form.checked_ids { rows as u32 } else { u32::MAX };
        let mut metadata = self.leading.clone();
        metadata.set("tokenizer.ggml.model", Value::string(self.model));
        if let Some(pre) = &self.pre {
            metadata.set("tokenizer.ggml.pre", Value::string(pre.as_str()));
        }
        let mark = if self.form.marked_gaps { "\u{2581}" } else { "" };
        self.vocabulary.write(rows, self.form.scores, |i| format!("{mark}[PAD{i}]"), &mut metadata);
        metadata.extend(self.inner.clone());
        if !self.merges.is_empty() {
            metadata.set("tokenizer.ggml.merges", Value::strings(self.merges.iter().map(String::as_str)));
        }
        self.specials.write_ids(limit, &mut metadata);
        self.templates.write(&mut metadata);
        self.specials.write_normalizer(&mut metadata);
        metadata.extend(self.trailing.clone());
        metadata
    }

    /// `tokenizer.ggml.model`: llama, gpt2, bert or t5.
    pub fn model(&self) -> &'static str {
        self.model
    }

    /// `tokenizer.ggml.pre`, where the kind has one.
    pub fn pre(&self) -> Option<&str> {
        self.pre.as_deref()
    }

    /// The tokens by id.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The merges of a BPE vocabulary, `left right`.
    pub fn merges(&self) -> &[String] {
        &self.merges
    }

    /// The id that a role has, where the files give it one.
    pub fn special(&self, role: Special) -> Option<u32> {
        let set = role.key().and_then(|key| self.trailing.get(key)).and_then(Value::as_u64);
        set.and_then(|id| u32::try_from(id).ok()).or_else(|| self.specials.id(role, u32::MAX))
    }

    /// The text of a role's token.
    pub fn special_text(&self, role: Special) -> Option<String> {
        self.special(role).and_then(|id| self.text(id))
    }

    /// Whether the files say that a role's token is added to every text (`bos`, `eos`, `sep`).
    pub fn adds(&self, role: Special) -> Option<bool> {
        let key = role.add_key()?;
        let set = self.trailing.get(key).and_then(Value::as_bool);
        set.or(self.specials.adds(role)).or(self.leading.get(key).and_then(Value::as_bool))
    }

    /// The chat templates.
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.templates
    }

    /// The tokens that end an answer: every eos of config.json and generation_config.json, and the eos, eot
    /// and eom of the tokenizer; ids in that order, each once, with their texts.
    pub fn ends(&self) -> Vec<(u32, String)> {
        let roles = [Special::Eos, Special::Eot, Special::Eom].into_iter().filter_map(|r| self.special(r));
        let mut ends: Vec<(u32, String)> = Vec::new();
        for id in roles.chain(self.specials.ends.iter().copied()) {
            if let Some(text) = self.text(id).filter(|_| ends.iter().all(|(seen, _)| *seen != id)) {
                ends.push((id, text));
            }
        }
        ends
    }

    /// The added tokens: ids, texts, and whether each is a control token.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, String, bool)> + '_ {
        self.vocabulary.iter().filter_map(|(id, t)| match t.kind {
            TokenType::Control => Some((id, t.text.to_string(), true)),
            TokenType::UserDefined => Some((id, t.text.to_string(), false)),
            _ => None,
        })
    }

    /// How the vocabulary fits an embedding of `rows` rows.
    pub fn fit(&self, rows: u64) -> VocabFit {
        let tokens = self.vocabulary.len() as u64;
        match tokens.cmp(&rows) {
            std::cmp::Ordering::Equal => VocabFit::Exact,
            std::cmp::Ordering::Less => VocabFit::Padded { tokens, rows },
            std::cmp::Ordering::Greater => {
                let beyond = self.vocabulary.iter().filter(|(id, _)| u64::from(*id) >= rows);
                VocabFit::Excess { tokens, rows, without_row: beyond.map(|(_, t)| t.text.to_string()).collect() }
            }
        }
    }

    fn text(&self, id: u32) -> Option<String> {
        self.vocabulary.get(id).map(|t| t.text.to_string())
    }
}
