//! What a GGUF file says about its chat: everything that a Modelfile needs, read from the file alone.

use super::modelfile::{ChatInput, ModelfileInput};
use crate::gguf::{Array, GgufFile, Value};
use serde_json::Value as Json;
use std::path::Path;

/// Token types of `tokenizer.ggml.token_type` (`llama_token_type`).
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

impl ChatInput {
    /// Reads the chat template and its tokens from a GGUF.
    pub fn of_gguf(gguf: &GgufFile) -> Self {
        let metadata = gguf.metadata();
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
        let tokens: &[bstr::BString] = match metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(Array::String(tokens))) => tokens,
            _ => &[],
        };
        let types: Vec<i32> = match metadata.get("tokenizer.ggml.token_type") {
            Some(Value::Array(Array::I32(types))) => types.clone(),
            Some(Value::Array(Array::U32(types))) => types.iter().map(|t| i32::try_from(*t).unwrap_or(0)).collect(),
            _ => Vec::new(),
        };
        let token = |id: u64| usize::try_from(id).ok().and_then(|id| tokens.get(id)).map(ToString::to_string);
        let named = |key: &str| metadata.get(key).and_then(Value::as_u64).and_then(token);
        let of_type = |wanted: &[i32]| {
            tokens
                .iter()
                .zip(&types)
                .filter(|(_, t)| wanted.contains(t))
                .map(|(token, _)| token.to_string())
                .collect::<Vec<_>>()
        };
        let mut eos_tokens: Vec<String> = Vec::new();
        if let Some(Value::Array(list)) = metadata.get("tokenizer.ggml.eos_token_ids") {
            let ids: Vec<u64> = match list {
                Array::I32(ids) => ids.iter().filter_map(|i| u64::try_from(*i).ok()).collect(),
                Array::U32(ids) => ids.iter().map(|i| u64::from(*i)).collect(),
                _ => Vec::new(),
            };
            eos_tokens.extend(ids.into_iter().filter_map(token));
        }
        for key in ["eos", "eot", "eom"] {
            eos_tokens.extend(named(&format!("tokenizer.ggml.{key}_token_id")));
        }
        let mut seen = Vec::new();
        eos_tokens.retain(|t| {
            !seen.contains(t) && {
                seen.push(t.clone());
                true
            }
        });
        // llama.cpp's default where the key is missing: SentencePiece vocabularies get a BOS, others do not.
        let sentencepiece = text("tokenizer.ggml.model").is_some_and(|m| m == "llama");
        let add_bos = metadata
            .get("tokenizer.ggml.add_bos_token")
            .and_then(Value::as_bool)
            .unwrap_or(sentencepiece || text("tokenizer.ggml.pre").is_some_and(|p| p.starts_with("llama")));
        Self {
            template: text("tokenizer.chat_template"),
            bos_token: named("tokenizer.ggml.bos_token_id"),
            eos_token: named("tokenizer.ggml.eos_token_id"),
            add_bos: Some(add_bos),
            special_tokens: of_type(&[CONTROL]),
            added_tokens: of_type(&[CONTROL, USER_DEFINED]),
            eos_tokens,
        }
    }
}

impl ModelfileInput {
    /// Everything that a GGUF says by itself.
    pub fn of_gguf(gguf: &GgufFile, path: &Path) -> Self {
        let metadata = gguf.metadata();
        let architecture = metadata.get("general.architecture").and_then(Value::as_str).map(str::to_owned);
        let context_length =
            architecture.as_ref().and_then(|a| metadata.get(&format!("{a}.context_length"))).and_then(Value::as_u64);
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        Self {
            from: name.into_iter().collect(),
            chat: ChatInput::of_gguf(gguf),
            context_length,
            architecture,
            ..Self::default()
        }
    }
}

/// A tokenizer file that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// Not readable.
    #[error("{path}: {source}; name a model folder, a .gguf file or a .jinja file")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not JSON.
    #[error("{path}: {source}; the file is damaged, fetch it again")]
    Json {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A GGUF that could not be read.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
}

impl ChatInput {
    /// Reads the chat template and its tokens from a model folder, a GGUF file or a Jinja file.
    ///
    /// # Errors
    /// [`FactsError`] for files that are there and cannot be read.
    pub fn of_path(path: &Path) -> Result<Self, FactsError> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::of_gguf(&GgufFile::open(path)?));
        }
        let template =
            std::fs::read_to_string(path).map_err(|source| FactsError::Io { path: path.to_owned(), source })?;
        Ok(Self {
            template: Some(template),
            bos_token: Some("<s>".into()),
            eos_token: Some("</s>".into()),
            ..Self::default()
        })
    }

    /// transformers' places: chat_template.jinja, chat_template.json, tokenizer_config.json; tokens from there
    /// and from tokenizer.json.
    fn of_folder(folder: &Path) -> Result<Self, FactsError> {
        let text = |name: &str| match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FactsError::Io { path: folder.join(name), source }),
        };
        let json = |name: &str| -> Result<Json, FactsError> {
            text(name)?.map_or(Ok(Json::Null), |t| {
                serde_json::from_str(&t).map_err(|source| FactsError::Json { path: folder.join(name), source })
            })
        };
        let config = json("tokenizer_config.json")?;
        let tokenizer = json("tokenizer.json")?;
        let template = match text("chat_template.jinja")? {
            Some(template) => Some(template),
            None => named_template(&json("chat_template.json")?["chat_template"])
                .or_else(|| named_template(&config["chat_template"])),
        };
        let token = |key: &str| {
            let value = &config[key];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        };
        let added: Vec<&Json> = tokenizer["added_tokens"].as_array().map(|a| a.iter().collect()).unwrap_or_default();
        let contents = |special: bool| -> Vec<String> {
            added
                .iter()
                .filter(|t| !special || t["special"] == true)
                .filter_map(|t| t["content"].as_str().map(str::to_owned))
                .collect()
        };
        let bos_token = token("bos_token");
        let by_processor = bos_token.as_ref().is_some_and(|bos| {
            // A TemplateProcessing names the tokens that it puts in front.
            tokenizer["post_processor"].to_string().contains(&Json::from(bos.as_str()).to_string())
        });
        let mut eos_tokens: Vec<String> = Vec::new();
        for file in ["generation_config.json", "config.json"] {
            let ids = &json(file)?["eos_token_id"];
            let ids: Vec<u64> = match ids {
                Json::Array(list) => list.iter().filter_map(Json::as_u64).collect(),
                one => one.as_u64().into_iter().collect(),
            };
            for id in ids {
                let found = added.iter().find(|t| t["id"].as_u64() == Some(id)).and_then(|t| t["content"].as_str());
                if let Some(text) = found.filter(|t| !eos_tokens.iter().any(|e| e == t)) {
                    eos_tokens.push(text.to_owned());
                }
            }
        }
        Ok(Self {
            template,
            add_bos: Some(config["add_bos_token"].as_bool().unwrap_or(by_processor)),
            bos_token,
            eos_token: token("eos_token"),
            special_tokens: contents(true),
            added_tokens: contents(false),
            eos_tokens,
        })
    }
}

/// A template, or the one called `default` in a list of named ones.
fn named_template(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Array(list) => {
            let named = |name: &str| list.iter().find(|t| t["name"] == name);
            let chosen = named("default").or_else(|| list.first())?;
            chosen["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}
