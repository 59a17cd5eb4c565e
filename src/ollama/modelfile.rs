//! The Modelfile that stands beside a GGUF: what it says, and how it is written.

use super::chat::Dialect;
use super::jinja::ChatTemplate;
use super::stops::{self, SpecialTokens};
use serde_json::Value as Json;
use std::fmt;

/// The chat template of a model and what it refers to.
#[derive(Clone, Debug, Default)]
pub struct ChatInput {
    /// The Jinja text, if the model has one.
    pub template: Option<String>,
    /// Text of the beginning-of-sequence token.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// Whether the runner puts the BOS token in front by itself (`tokenizer.ggml.add_bos_token`); `None`:
    /// not said.
    pub add_bos: Option<bool>,
    /// Texts of the tokens flagged special.
    pub special_tokens: Vec<String>,
    /// Texts of all added tokens, special or not.
    pub added_tokens: Vec<String>,
    /// Texts of every token in the `eos_token_id` lists of config.json and generation_config.json.
    pub eos_tokens: Vec<String>,
}

/// All that a Modelfile is made from.
#[derive(Clone, Debug, Default)]
pub struct ModelfileInput {
    /// What `FROM` names: the GGUF's file name and those of projectors; for an adapter, its base.
    pub from: Vec<String>,
    /// The adapter's file name, for adapter-only output.
    pub adapter: Option<String>,
    /// The chat template and its tokens.
    pub chat: ChatInput,
    /// generation_config.json.
    pub generation_config: Option<Json>,
    /// The longest context that the model was made for, in tokens.
    pub context_length: Option<u64>,
    /// `general.architecture` of the GGUF.
    pub architecture: Option<String>,
    /// Texts of the licence files.
    pub licenses: Vec<String>,
    /// A system prompt that the user wants.
    pub system: Option<String>,
    /// Example messages, role and text.
    pub messages: Vec<(super::chat::Role, String)>,
}

/// One line, or one multi-line value, of a Modelfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `FROM path-or-name`
    From(String),
    /// `ADAPTER path`
    Adapter(String),
    /// `TEMPLATE text`
    Template(String),
    /// `SYSTEM text`
    System(String),
    /// `PARAMETER name value`
    Parameter(String, String),
    /// `MESSAGE role text`
    Message(String, String),
    /// `LICENSE text`
    License(String),
    /// A comment; one line per line.
    Comment(String),
    /// Another command (`RENDERER`, `PARSER`, `REQUIRES`, `DRAFT`) and its argument.
    Other(&'static str, String),
}

/// A Modelfile, and what a person should know about it.
#[derive(Clone, Debug, Default)]
pub struct Modelfile {
    /// The commands in order.
    pub commands: Vec<Command>,
    /// Remarks for the report: what was not reproduced, and why.
    pub notes: Vec<String>,
}

impl Modelfile {
    /// Works out everything that Ollama must be told about a model.
    pub fn build(input: &ModelfileInput) -> Self {
        let mut file = Self::default();
        file.commands.extend(input.from.iter().cloned().map(Command::From));
        file.commands.extend(input.adapter.clone().map(Command::Adapter));
        let mut stop = Vec::new();
        if let Some(source) = &input.chat.template {
            match ChatTemplate::new(source, input.chat.bos_token.as_deref(), input.chat.eos_token.as_deref()) {
                Ok(template) => {
                    let tokens = SpecialTokens {
                        special: input.chat.special_tokens.clone(),
                        added: input.chat.added_tokens.clone(),
                    };
                    stop = stops::from_template(&template, &Dialect::default(), &tokens);
                }
                Err(error) => file.notes.push(error.to_string()),
            }
        }
        for token in input.chat.eos_tokens.iter().chain(&input.chat.eos_token) {
            if !stop.contains(token) {
                stop.push(token.clone());
            }
        }
        for token in stop {
            file.commands.push(Command::Parameter("stop".into(), token));
        }
        file
    }

    /// The text of the Modelfile.
    pub fn render(&self) -> String {
        self.to_string()
    }
}

/// Quotes a value so that Ollama's parser reads back the same text.
fn quote(text: &str, always: bool) -> String {
    let plain = !text.is_empty() && !text.contains(['\n', '\r', '"']) && text.trim() == text && !always;
    if plain {
        text.to_owned()
    } else if text.contains(['"', '\n', '\r']) {
        format!("\"\"\"{text}\"\"\"")
    } else {
        format!("\"{text}\"")
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::From(path) if path.contains(['/', '\\', ':']) || path.starts_with('.') => {
                write!(f, "FROM {path}")
            }
            // A bare name could be a model of the library; `./` makes it the file beside the Modelfile.
            Command::From(path) if path.to_ascii_lowercase().ends_with(".gguf") => write!(f, "FROM ./{path}"),
            Command::From(name) => write!(f, "FROM {name}"),
            Command::Adapter(path) if path.contains(['/', '\\']) => write!(f, "ADAPTER {path}"),
            Command::Adapter(path) => write!(f, "ADAPTER ./{path}"),
            Command::Template(text) => write!(f, "TEMPLATE \"\"\"{text}\"\"\""),
            Command::System(text) => write!(f, "SYSTEM {}", quote(text, true)),
            Command::License(text) => write!(f, "LICENSE {}", quote(text, true)),
            Command::Parameter(name, value) => write!(f, "PARAMETER {name} {}", quote(value, name == "stop")),
            Command::Message(role, text) => write!(f, "MESSAGE {role} {}", quote(text, true)),
            Command::Other(name, value) => write!(f, "{name} {}", quote(value, false)),
            Command::Comment(text) => {
                for (n, line) in text.lines().enumerate() {
                    if n > 0 {
                        writeln!(f)?;
                    }
                    write!(f, "# {line}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Modelfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in &self.commands {
            writeln!(f, "{command}")?;
        }
        Ok(())
    }
}
