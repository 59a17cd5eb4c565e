//! The families' rules: which files make the vocabulary, and what a family adds to it.

use super::error::{Result, TokenizerError};
use super::files::{self, TokenizerFiles};
use super::json::{ModelType, TokenizerJson};
use super::proto::ModelProto;
use super::special::{Sources, Special, Specials, USUAL};
use super::spm::AddedRule;
use super::template::ChatTemplates;
use super::vocabulary::Vocabulary;
use super::{Form, Tokenizer, TokenizerOptions, bpe, pre, spm, ugm, wordpiece};
use crate::gguf::{Metadata, Value as GgufValue};
use serde_json::Value;

/// How a family of models stores its vocabulary (the `set_vocab` of its class in llama.cpp's converter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VocabKind {
    /// tokenizer.model where there is one, else what tokenizer.json is (Qwen2, DeepSeek, …).
    #[default]
    SpmOrBpe,
    /// tokenizer.json; tokenizer.model only without it (GPT-2, GPT-NeoX, Falcon, Mamba, …).
    Bpe,
    /// As `SpmOrBpe`, with the keys of Llama, CodeLlama and small Granite models.
    Llama,
    /// SentencePiece, with CodeGemma's end of turn.
    Gemma,
    /// SentencePiece without a leading space (Gemma 2, Gemma 3, Gemma 3n).
    Gemma2,
    /// SentencePiece with Phi-3's rule for added tokens; Phi-4 is BPE.
    Phi3,
    /// WordPiece (BERT).
    WordPiece,
    /// BPE for the encoders of BERT's family (RoBERTa, Jina).
    Roberta,
    /// Unigram for the encoders of BERT's family (XLM-RoBERTa).
    XlmRoberta,
    /// BPE that adds bos, eos and sep (ModernBERT).
    ModernBert,
    /// BPE that adds nothing (EuroBERT).
    EuroBert,
    /// Unigram, or SentencePiece BPE (T5).
    T5,
}

impl VocabKind {
    /// Every rule.
    pub const ALL: [Self; 12] = [
        Self::SpmOrBpe,
        Self::Bpe,
        Self::Llama,
        Self::Gemma,
        Self::Gemma2,
        Self::Phi3,
        Self::WordPiece,
        Self::Roberta,
        Self::XlmRoberta,
        Self::ModernBert,
        Self::EuroBert,
        Self::T5,
    ];
}

/// The files beside the vocabulary.
struct Beside {
    tokenizer_config: Value,
    special_tokens_map: Value,
    generation_config: Value,
}

pub(super) fn load(files: &TokenizerFiles, config: &Value, options: &TokenizerOptions) -> Result<Tokenizer> {
    let override_name = options.pre_tokenizer.as_deref().map(pre::named).transpose()?;
    let object = |name: &str| files.any(name).map_or(Ok(Value::Null), |p| files::read_object(&p));
    let beside = Beside {
        tokenizer_config: object("tokenizer_config.json")?,
        special_tokens_map: object("special_tokens_map.json")?,
        generation_config: object("generation_config.json")?,
    };
    let build = Build { files, config, kind: options.kind, beside, override_name };
    let mut tokenizer = build.vocabulary()?;
    build.family(&mut tokenizer);
    Ok(tokenizer)
}

struct Build<'a> {
    files: &'a TokenizerFiles,
    config: &'a Value,
    kind: VocabKind,
    beside: Beside,
    override_name: Option<String>,
}

/// tokenizer.json, parsed, and its bytes for those who parse it again.
struct JsonFile {
    json: TokenizerJson,
    bytes: Vec<u8>,
}

impl Build<'_> {
    fn vocabulary(&self) -> Result<Tokenizer> {
        let json = self.files.own("tokenizer.json").map(|path| {
            let bytes = files::read(&path)?;
            TokenizerJson::from_slice(&path, &bytes).map(|json| JsonFile { json, bytes })
        });
        let json = json.transpose()?;
        if let Some(proto) = self.sentencepiece(json.as_ref())? {
            return self.from_model(&proto, json.as_ref().map(|j| &j.json));
        }
        let file = match (json, self.files.own("vocab.txt")) {
            (Some(file), _) => file,
            (None, Some(path)) => {
                let json = wordpiece::from_vocab_txt(&path, &self.beside.tokenizer_config)?;
                JsonFile { json, bytes: Vec::new() }
            }
            (None, None) => return Err(self.files.not_found(&files::VOCABULARY_FILES)),
        };
        match file.json.model_type()? {
            ModelType::Bpe if file.json.is_sentencepiece_bpe()? && self.override_name.is_none() => {
                self.from_sentencepiece_json(&file.json)
            }
            ModelType::Bpe => self.from_bpe(&file),
            ModelType::WordPiece => self.from_wordpiece(&file),
            ModelType::Unigram => {
                let normalizer = ugm::Normalizer::of_json(&file.json)?;
                self.unigram(ugm::from_json(&file.json)?, normalizer, Some(&file.json))
            }
            other => Err(TokenizerError::Unsupported {
                path: file.json.path.clone(),
                what: format!("a {other:?} model"),
                remedy: "convert its tokenizer to BPE",
            }),
        }
    }

    /// The tokenizer.model that this family reads, if it is there.
    fn sentencepiece(&self, json: Option<&JsonFile>) -> Result<Option<ModelProto>> {
        let prefers_json = match self.kind {
            VocabKind::Bpe
            | VocabKind::WordPiece
            | VocabKind::Roberta
            | VocabKind::ModernBert
            | VocabKind::EuroBert => true,
            VocabKind::Phi3 => self.beside.tokenizer_config["tokenizer_class"] == "GPT2Tokenizer",
            _ => false,
        };
        if prefers_json && json.is_some() {
            return Ok(None);
        }
        let names = ["tokenizer.model", "spiece.model"];
        if let Some(path) = names.into_iter().find_map(|name| self.files.own(name)) {
            return ModelProto::read(&path).map(Some);
        }
        // An adapter that was saved with tokenizer.json alone keeps the scores of its base's tokenizer.model.
        let (Some(path), Some(file)) = (self.files.inherited("tokenizer.model"), json) else { return Ok(None) };
        if !file.json.is_sentencepiece_bpe()? {
            return Ok(None);
        }
        let proto = ModelProto::read(&path)?;
        Ok(Some(proto).filter(|p| spm::same_pieces(p, &file.json)))
    }

    fn from_model(&self, proto: &ModelProto, json: Option<&TokenizerJson>) -> Result<Tokenizer> {
        if self.kind == VocabKind::T5 && proto.is_unigram() {
            let vocabulary = ugm::from_model(proto, self.files, json)?;
            return self.unigram(vocabulary, ugm::Normalizer::of_model(proto), json);
        }
        let rule = self.added_rule();
        let vocabulary = spm::from_model(proto, self.files, json, &self.beside.tokenizer_config, rule)?;
        self.spm(vocabulary, json)
    }

    fn from_sentencepiece_json(&self, json: &TokenizerJson) -> Result<Tokenizer> {
        let mut tokenizer = self.spm(spm::from_json(json, self.added_rule())?, Some(json))?;
        if !spm::prepends_space(json) {
            tokenizer.leading.set(ADD_SPACE_PREFIX, GgufValue::Bool(false));
        }
        Ok(tokenizer)
    }

    fn spm(&self, vocabulary: Vocabulary, json: Option<&TokenizerJson>) -> Result<Tokenizer> {
        let form = Form { scores: true, checked_ids: true, marked_gaps: false };
        self.tokenizer("llama", Some("default".into()), vocabulary, json, form)
    }

    fn unigram(
        &self,
        vocabulary: Vocabulary,
        normalizer: ugm::Normalizer,
        json: Option<&TokenizerJson>,
    ) -> Result<Tokenizer> {
        let form = Form { scores: true, checked_ids: true, marked_gaps: false };
        let mut tokenizer = self.tokenizer("t5", Some("default".into()), vocabulary, json, form)?;
        let token_types = (self.kind == VocabKind::XlmRoberta).then(|| self.token_types());
        normalizer.write(token_types, &mut tokenizer.inner);
        Ok(tokenizer)
    }

    fn from_wordpiece(&self, file: &JsonFile) -> Result<Tokenizer> {
        let config = &self.beside.tokenizer_config;
        let pre = match &self.override_name {
            Some(name) => name.clone(),
            None => pre::for_wordpiece(&pre::Context { model_type: "", config, bytes: &file.bytes }),
        };
        let added = bpe::added_tokens(&file.json, config, self.config["vocab_size"].as_u64())?;
        let mut vocabulary = bpe::vocabulary(&file.json, &added)?;
        wordpiece::mark_words(&mut vocabulary);
        let form = Form { scores: false, checked_ids: true, marked_gaps: true };
        let mut tokenizer = self.tokenizer("bert", Some(pre), vocabulary, Some(&file.json), form)?;
        tokenizer.leading.set(TOKEN_TYPE_COUNT, GgufValue::U32(self.token_types()));
        Ok(tokenizer)
    }

    /// Rows of BERT's token-type embedding.
    fn token_types(&self) -> u32 {
        self.config["type_vocab_size"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
    }

    fn from_bpe(&self, file: &JsonFile) -> Result<Tokenizer> {
        let json = &file.json;
        let config = &self.beside.tokenizer_config;
        let pre = match &self.override_name {
            Some(name) => name.clone(),
            None => {
                let model_type = self.config["model_type"].as_str().unwrap_or_default();
                pre::recognise(json, &pre::Context { model_type, config, bytes: &file.bytes })?
            }
        };
        let added = bpe::added_tokens(json, config, self.config["vocab_size"].as_u64())?;
        let form = Form { scores: false, checked_ids: false, marked_gaps: false };
        let vocabulary = bpe::vocabulary(json, &added)?;
        let mut tokenizer = self.tokenizer("gpt2", Some(pre), vocabulary, Some(json), form)?;
        tokenizer.merges = bpe::merges(json, self.files)?;
        Ok(tokenizer)
    }

    fn added_rule(&self) -> AddedRule {
        if self.kind == VocabKind::Phi3 { AddedRule::Verbatim } else { AddedRule::Usual }
    }

    fn tokenizer(
        &self,
        model: &'static str,
        pre: Option<String>,
        vocabulary: Vocabulary,
        json: Option<&TokenizerJson>,
        form: Form,
    ) -> Result<Tokenizer> {
        let sources = Sources {
            json,
            tokenizer_config: &self.beside.tokenizer_config,
            special_tokens_map: &self.beside.special_tokens_map,
            config: self.config,
            generation_config: &self.beside.generation_config,
        };
        Ok(Tokenizer {
            model,
            pre,
            vocabulary,
            merges: Vec::new(),
            leading: Metadata::new(),
            inner: Metadata::new(),
            trailing: Metadata::new(),
            specials: Specials::read(&sources, &USUAL),
            templates: ChatTemplates::read(self.files)?,
            form,
        })
    }

    /// What a family writes besides.
    fn family(&self, tokenizer: &mut Tokenizer) {
        let vocab_size = self.config["vocab_size"].as_u64();
        match self.kind {
            VocabKind::Llama => {
                if let Some(flag) = self.beside.tokenizer_config["add_prefix_space"].as_bool() {
                    tokenizer.leading.set(ADD_SPACE_PREFIX, GgufValue::Bool(flag));
                }
                if vocab_size == Some(32016) {
                    // CodeLlama: <EOT>, which its files do not name.
                    tokenizer.trailing.set("tokenizer.ggml.eot_token_id", GgufValue::U32(32010));
                }
                if vocab_size == Some(49152) {
                    // Small Granite models: the tokenizer's files would add a bos that they were not trained with.
                    tokenizer.trailing.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(false));
                }
            }
            VocabKind::Gemma => {
                tokenizer.trailing.set("tokenizer.ggml.eot_token_id", GgufValue::U32(107));
                tokenizer.trailing.set(ADD_SPACE_PREFIX, GgufValue::Bool(false));
            }
            VocabKind::Gemma2 if tokenizer.model == "llama" => {
                tokenizer.trailing.set(ADD_SPACE_PREFIX, GgufValue::Bool(false));
            }
            VocabKind::Roberta => {
                tokenizer.trailing.set(TOKEN_TYPE_COUNT, GgufValue::U32(self.token_types()));
            }
            VocabKind::ModernBert => {
                for key in [Special::Bos, Special::Eos, Special::Sep].into_iter().filter_map(Special::add_key) {
                    tokenizer.leading.set(key, GgufValue::Bool(true));
                }
            }
            VocabKind::EuroBert => {
                tokenizer.leading.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(false));
            }
            _ => {}
        }
    }
}

const TOKEN_TYPE_COUNT: &str = "tokenizer.ggml.token_type_count";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
