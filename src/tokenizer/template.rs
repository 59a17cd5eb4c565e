//! Chat templates, wherever a model folder keeps them.
//!
//! Precedence (the converter's): `chat_template` of tokenizer_config.json, a text or a list of named texts;
//! then chat_template.jinja, with additional_chat_templates/*.jinja beside it; then chat_template.json.

use super::error::{Result, TokenizerError};
use super::files::{self, TokenizerFiles};
use crate::gguf::{Metadata, Value as GgufValue};
use serde_json::Value;
use std::path::Path;

/// The chat templates of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The template that is used unless another is asked for.
    pub default: Option<String>,
    /// Others by name, in file order.
    pub named: Vec<(String, String)>,
}

impl ChatTemplates {
    /// Finds the templates in the first of the folders that has any.
    pub(super) fn read(files: &TokenizerFiles) -> Result<Self> {
        for folder in files.folders() {
            let found = Self::read_folder(folder)?;
            if found != Self::default() {
                return Ok(found);
            }
        }
        Ok(Self::default())
    }

    fn read_folder(folder: &Path) -> Result<Self> {
        let config = folder.join("tokenizer_config.json");
        let jinja = folder.join("chat_template.jinja");
        if config.is_file() {
            let found = Self::from_value(&files::read_object(&config)?["chat_template"], &config)?;
            // Some releases only point at the file beside, which no engine outside transformers resolves.
            let points = found.default.as_deref().is_some_and(|t| t.contains("include 'chat_template.jinja'"));
            if found != Self::default() && !(points && jinja.is_file()) {
                return Ok(found);
            }
        }
        if jinja.is_file() {
            let mut found = Self { default: Some(files::read_text(&jinja)?), named: Vec::new() };
            for path in additional(&folder.join("additional_chat_templates"))? {
                let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                found.add(&name, files::read_text(&path)?);
            }
            return Ok(found);
        }
        let json = folder.join("chat_template.json");
        if json.is_file() {
            return Self::from_value(&files::read_object(&json)?["chat_template"], &json);
        }
        Ok(Self::default())
    }

    fn from_value(value: &Value, path: &Path) -> Result<Self> {
        let wrong = |field: String, found: &Value, expected| TokenizerError::Field {
            path: path.to_owned(),
            field,
            found: files::kind(found).into(),
            expected,
        };
        let mut found = Self::default();
        match value {
            Value::Null => {}
            Value::String(text) => found.default = Some(text.clone()),
            Value::Array(list) => {
                for (i, choice) in list.iter().enumerate() {
                    let name = choice["name"].as_str();
                    let text = choice["template"].as_str();
                    let (Some(name), Some(text)) = (name, text) else {
                        return Err(wrong(format!("chat_template[{i}]"), choice, "a name and a template"));
                    };
                    found.add(name, text.to_owned());
                }
            }
            other => return Err(wrong("chat_template".into(), other, "a text or a list of named texts")),
        }
        Ok(found)
    }

    /// Names keep letters and digits; the rest becomes `_`, since the name becomes a part of a key.
    fn add(&mut self, name: &str, text: String) {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        match name.as_str() {
            "" => {}
            "default" => self.default = Some(text),
            _ => match self.named.iter_mut().find(|(n, _)| *n == name) {
                Some(entry) => entry.1 = text,
                None => self.named.push((name, text)),
            },
        }
    }

    pub(super) fn write(&self, metadata: &mut Metadata) {
        for (name, text) in &self.named {
            metadata.set(format!("tokenizer.chat_template.{name}"), GgufValue::string(text.as_str()));
        }
        if !self.named.is_empty() {
            let names = self.named.iter().map(|(name, _)| name.as_str());
            metadata.set("tokenizer.chat_templates", GgufValue::strings(names));
        }
        if let Some(text) = &self.default {
            metadata.set("tokenizer.chat_template", GgufValue::string(text.as_str()));
        }
    }
}

fn additional(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let fail = |source| TokenizerError::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "jinja") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
