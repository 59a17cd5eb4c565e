//! The families' rules: which files make the vocabulary, and what a family adds to it.

use super::error::{Result, TokenizerError};
use super::files::{self, TokenizerFiles};
use super::json::{ModelType, TokenizerJson};
use super::proto::ModelProto;
use super::special::{Sources, Special, Specials, USUAL};
use super::spm::AddedRule;
use super::tekken::Tekken;
use super::template::ChatTemplates;
use super::vocabulary::{TokenType, Vocabulary};
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
    /// SentencePiece with the configuration's add_prefix_space (Ernie, Pangu).
    PrefixedSpm,
    /// SentencePiece's merges with BPE's algorithm (Gemma 4).
    Gemma4,
}

/// What a family adds to its kind of vocabulary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VocabExtras {
    /// Roles by the text of an added token, for those that the files leave open.
    pub roles: &'static [(Special, &'static str)],
    /// Added tokens that are control tokens, whatever their file says.
    pub control: &'static [&'static str],
    /// `tokenizer.ggml.add_bos_token`, whatever the files say.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`, whatever the files say.
    pub add_space_prefix: Option<bool>,
}

impl VocabKind {
    /// Every rule.
    pub const ALL: [Self; 14] = [
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
        Self::PrefixedSpm,
        Self::Gemma4,
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
    build.extras(&mut tokenizer, &options.extras);
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
            return self.spm_of_model(&proto, json.as_ref().map(|j| &j.json));
        }
        let Some(file) = json else { return self.without_json() };
        match file.json.model_type()? {
            ModelType::Bpe if self.kind == VocabKind::Gemma4 => self.gemma4(&file.json),
            ModelType::Bpe if self.reads_as_spm(&file.json)? => self.spm_of_json(&file.json),
            ModelType::Bpe => {
                let pre = self.pre_tokenizer(&file)?;
                self.bpe(&file.json, pre)
            }
            ModelType::WordPiece => self.wordpiece(&file),
            ModelType::Unigram => {
                let mut normalizer = ugm::Normalizer::of_json(&file.json)?;
                if let (VocabKind::XlmRoberta, Some(flag)) = (self.kind, self.cleans_up()) {
                    normalizer.remove_extra_whitespaces = flag;
                }
                self.unigram(ugm::from_json(&file.json)?, normalizer, Some(&file.json))
            }
            other => Err(TokenizerError::Unsupported {
                path: file.json.path.clone(),
                what: format!("a {other:?} model"),
                remedy: "convert its tokenizer to BPE",
            }),
        }
    }

    /// Whether tokenizer.json's BPE is SentencePiece's; ModernBERT takes the same file for BPE with its own splitting.
    fn reads_as_spm(&self, json: &TokenizerJson) -> Result<bool> {
        Ok(self.override_name.is_none() && self.kind != VocabKind::ModernBert && json.is_sentencepiece_bpe()?)
    }

    /// Folders of old: no tokenizer.json, but what it is made of.
    fn without_json(&self) -> Result<Tokenizer> {
        let config = &self.beside.tokenizer_config;
        if let Some(path) = self.files.own("tekken.json") {
            return self.tekken(&Tekken::read(&path)?);
        }
        if let Some(path) = self.files.own("sentencepiece.bpe.model") {
            let proto = ModelProto::read(&path)?;
            let rows = self.config["vocab_size"].as_u64().unwrap_or(0);
            return self.unigram(ugm::realigned(&proto, rows), ugm::Normalizer::of_model(&proto), None);
        }
        if let Some(path) = self.files.own("vocab.json") {
            let named = self.override_name.is_some();
            let (json, pre) = bpe::from_vocab_json(&path, self.files, config, named)?;
            return self.bpe(&json, self.override_name.clone().unwrap_or_else(|| pre.to_owned()));
        }
        if let Some(path) = self.files.own("vocab.txt") {
            let json = wordpiece::from_vocab_txt(&path, config)?;
            return self.wordpiece(&JsonFile { json, bytes: Vec::new() });
        }
        Err(match self.files.own("tiktoken.model") {
            Some(path) => TokenizerError::Unsupported {
                path,
                what: "a vocabulary whose special tokens are in the model's source code".into(),
                remedy: "save it with transformers as tokenizer.json first",
            },
            None => self.files.not_found(&files::VOCABULARY_FILES),
        })
    }

    /// Mistral's own format; it says nothing of what encoding adds, so that bos is added as its library does.
    fn tekken(&self, tekken: &Tekken) -> Result<Tokenizer> {
        let form = Form { scores: true, checked_ids: false, marked_gaps: false };
        let mut tokenizer = self.tokenizer("gpt2", Some("tekken".into()), tekken.vocabulary()?, None, form)?;
        tokenizer.merges = tekken.merges()?;
        for (role, id) in tekken.roles() {
            tokenizer.specials.claim(role, id);
        }
        tokenizer.trailing.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(true));
        tokenizer.trailing.set("tokenizer.ggml.add_eos_token", GgufValue::Bool(false));
        Ok(tokenizer)
    }

    /// Gemma 4: every score is the same, since the merges decide; some control tokens are shown to chat parsers.
    fn gemma4(&self, json: &TokenizerJson) -> Result<Tokenizer> {
        const VISIBLE: [&str; 7] = [
            "<|channel>",
            "<channel|>",
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_response>",
            "<tool_response|>",
            "<|\"|>",
        ];
        let mut vocabulary = spm::from_json(json, AddedRule::Verbatim)?;
        for token in vocabulary.iter_mut() {
            token.score = -1000.0;
            if VISIBLE.iter().any(|t| token.text == t.as_bytes()) {
                token.kind = TokenType::UserDefined;
            }
        }
        let form = Form { scores: true, checked_ids: false, marked_gaps: false };
        let mut tokenizer = self.tokenizer("gemma4", None, vocabulary, Some(json), form)?;
        tokenizer.merges = bpe::merges(json, self.files)?;
        Ok(tokenizer)
    }

    /// The tokenizer.model that this family reads, if it is there.
    fn sentencepiece(&self, json: Option<&JsonFile>) -> Result<Option<ModelProto>> {
        let prefers_json = match self.kind {
            VocabKind::Bpe
            | VocabKind::WordPiece
            | VocabKind::Roberta
            | VocabKind::ModernBert
            | VocabKind::EuroBert
            | VocabKind::Gemma4 => true,
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

    fn spm_of_model(&self, proto: &ModelProto, json: Option<&TokenizerJson>) -> Result<Tokenizer> {
        if self.kind == VocabKind::T5 && proto.is_unigram() {
            let vocabulary = ugm::from_model(proto, self.files, json)?;
            return self.unigram(vocabulary, ugm::Normalizer::of_model(proto), json);
        }
        let rule = self.added_rule();
        let vocabulary = spm::from_model(proto, self.files, json, &self.beside.tokenizer_config, rule)?;
        self.spm(vocabulary, json)
    }

    fn spm_of_json(&self, json: &TokenizerJson) -> Result<Tokenizer> {
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

    fn wordpiece(&self, file: &JsonFile) -> Result<Tokenizer> {
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

    /// What the converter takes for XLM-RoBERTa's `remove_extra_whitespaces`.
    fn cleans_up(&self) -> Option<bool> {
        self.beside.tokenizer_config["clean_up_tokenization_spaces"].as_bool()
    }

    /// Rows of BERT's token-type embedding.
    fn token_types(&self) -> u32 {
        self.config["type_vocab_size"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
    }

    fn pre_tokenizer(&self, file: &JsonFile) -> Result<String> {
        if let Some(name) = &self.override_name {
            return Ok(name.clone());
        }
        let model_type = self.config["model_type"].as_str().unwrap_or_default();
        let config = &self.beside.tokenizer_config;
        pre::recognise(&file.json, &pre::Context { model_type, config, bytes: &file.bytes })
    }

    fn bpe(&self, json: &TokenizerJson, pre: String) -> Result<Tokenizer> {
        let config = &self.beside.tokenizer_config;
        // Splitting at spaces alone is a model of its own in the runtime.
        let model = if pre == "whitespace" { "whitespace" } else { "gpt2" };
        let added = bpe::added_tokens(json, config, self.config["vocab_size"].as_u64())?;
        let form = Form { scores: false, checked_ids: false, marked_gaps: false };
        let vocabulary = bpe::vocabulary(json, &added)?;
        let mut tokenizer = self.tokenizer(model, Some(pre), vocabulary, Some(json), form)?;
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
            VocabKind::PrefixedSpm => {
                if let Some(flag) = self.beside.tokenizer_config["add_prefix_space"].as_bool() {
                    tokenizer.trailing.set(ADD_SPACE_PREFIX, GgufValue::Bool(flag));
                }
            }
            VocabKind::Gemma4 => {
                tokenizer.trailing.set(ADD_SPACE_PREFIX, GgufValue::Bool(false));
                tokenizer.trailing.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(true));
            }
            _ => {}
        }
    }

    fn extras(&self, tokenizer: &mut Tokenizer, extras: &VocabExtras) {
        for (role, text) in extras.roles {
            if let Some(id) = tokenizer.vocabulary.find(text) {
                tokenizer.specials.claim(*role, id);
            }
        }
        for text in extras.control {
            if let Some(token) = tokenizer.vocabulary.find(text).and_then(|id| tokenizer.vocabulary.get_mut(id)) {
                token.kind = TokenType::Control;
            }
        }
        for (key, flag) in
            [("tokenizer.ggml.add_bos_token", extras.add_bos), (ADD_SPACE_PREFIX, extras.add_space_prefix)]
        {
            if let Some(flag) = flag {
                tokenizer.trailing.set(key, GgufValue::Bool(flag));
            }
        }
    }
}

const TOKEN_TYPE_COUNT: &str = "tokenizer.ggml.token_type_count";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
