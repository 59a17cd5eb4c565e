//! The Modelfile that stands beside a GGUF: what it says, and how it is written.

use super::chat::{Conversation, Dialect, Message, Role};
use super::infer::{Abilities, Scope};
use super::jinja::{ChatTemplate, Hooked, JsonView};
use super::proof::translate;
use super::recognise::{self, Signposts};
use super::stops::{self, SpecialTokens};
use serde_json::Value as Json;
use std::fmt;
use std::path::PathBuf;

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
    pub messages: Vec<(Role, String)>,
}

/// What the user wants a Modelfile to say beyond what the model says by itself.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The system prompt.
    pub system: Option<String>,
    /// Example messages, role and text.
    pub messages: Vec<(Role, String)>,
    /// GGUF files of projectors, for models that see or hear.
    pub projectors: Vec<PathBuf>,
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

/// The longest context that is asked for without being asked to: more costs memory that few have.
const USUAL_CONTEXT: u64 = 8192;
/// The first Ollama that runs a GGUF's own Jinja template.
const RUNS_JINJA: &str = "0.32.0";

impl Modelfile {
    /// Works out everything that Ollama must be told about a model.
    pub fn build(input: &ModelfileInput) -> Self {
        let mut file = Self::default();
        file.commands.extend(input.from.iter().cloned().map(Command::From));
        file.commands.extend(input.adapter.clone().map(Command::Adapter));
        let mut stop = Vec::new();
        let mut default_system = None;
        match &input.chat.template {
            Some(source) if !source.trim().is_empty() => {
                match ChatTemplate::new(source, input.chat.bos_token.as_deref(), input.chat.eos_token.as_deref()) {
                    Ok(template) => {
                        let chat = file.add_template(&template, input);
                        stop = chat.stops;
                        default_system = chat.system;
                    }
                    Err(error) => file.without_template(&error.to_string()),
                }
            }
            _ => file.notes.push("the model has no chat template: Ollama will complete text, not chat".into()),
        }
        if let Some(system) = input.system.clone().or(default_system) {
            file.add_text(Command::System, system, "the system prompt");
        }
        for token in input.chat.eos_tokens.iter().chain(&input.chat.eos_token) {
            if !token.is_empty() && !stop.contains(token) {
                stop.push(token.clone());
            }
        }
        for token in stop {
            file.commands.push(Command::Parameter("stop".into(), token));
        }
        file.add_parameters(input);
        for (role, text) in &input.messages {
            let role = role.as_str().to_owned();
            file.add_text(|text| Command::Message(role, text), text.clone(), "a message");
        }
        for license in &input.licenses {
            file.add_text(Command::License, license.clone(), "the licence");
        }
        file
    }

    /// Translates the chat template, proves the translation, and writes it if the proof succeeded.
    fn add_template(&mut self, template: &ChatTemplate, input: &ModelfileInput) -> ChatFacts {
        let chat = &input.chat;
        let tokens = SpecialTokens { special: chat.special_tokens.clone(), added: chat.added_tokens.clone() };
        let add_bos = chat.add_bos.unwrap_or(true);
        let translation = match translate(template, add_bos) {
            Ok(translation) => translation,
            Err(error) => {
                self.without_template(&error.to_string());
                return ChatFacts { stops: stops::from_template(template, &Dialect::default(), &tokens), system: None };
            }
        };
        let abilities = &translation.abilities;
        let facts = ChatFacts {
            stops: stops::from_template(template, &abilities.dialect, &tokens),
            system: default_system(template, abilities),
        };
        if add_bos && chat.add_bos.is_some() && template.bos_token().is_some() && !abilities.strips_bos {
            self.notes.push(
                "the tokenizer puts a BOS token in front, the chat template does not: Ollama's prompts begin with it, as \
                 llama.cpp's do"
                    .into(),
            );
        }
        match &translation.proven {
            Some(proven) => {
                self.commands.push(Command::Comment(format!(
                    "Translated from the model's chat template; equal to it on {} held-out conversations\nwith {}.",
                    proven.judged,
                    words(proven.scope).join(", "),
                )));
                let missing: Vec<&str> =
                    words(abilities.scope).into_iter().filter(|w| !words(proven.scope).contains(w)).collect();
                if !missing.is_empty() {
                    let why = translation.obstacles.first().map_or("", |(_, why)| why.as_str());
                    let text = format!(
                        "Not reproduced: {} ({why}). Ollama {RUNS_JINJA} and later take those\nfrom the chat template inside the GGUF.",
                        missing.join(", ")
                    );
                    self.notes.push(format!("TEMPLATE: {}", text.replace('\n', " ")));
                    self.commands.push(Command::Comment(text));
                }
                self.commands.push(Command::Template(proven.template.clone()));
                // For this architecture Ollama looks for these two and takes its harmony parser by itself.
                let harmony = ["<|start|>", "<|end|>"].iter().all(|text| proven.template.contains(text));
                if !(harmony && input.architecture.as_deref() == Some("gpt-oss")) {
                    self.add_parser(&proven.signposts);
                }
            }
            None => {
                let why = translation.obstacles.last().map_or("no conversation to judge", |(_, why)| why.as_str());
                self.without_template(why);
            }
        }
        facts
    }

    /// Names the built-in parser that reads the model's calls, or says that there is none.
    fn add_parser(&mut self, signposts: &Signposts) {
        if let Some(parser) = signposts.parser {
            self.commands.push(Command::Comment(format!(
                "The model does not call tools in JSON: Ollama's parser {parser} was seen to read such answers."
            )));
            self.commands.push(Command::Other("PARSER", parser.into()));
            self.commands.extend(recognise::release_of(parser).map(|release| Command::Other("REQUIRES", release)));
        }
        if signposts.unread {
            let text = format!(
                "Ollama does not read this model's calls of tools from its answers and returns them as text. Without\nthe TEMPLATE, Ollama {RUNS_JINJA} and later read them as llama.cpp does."
            );
            self.notes.push(text.replace('\n', " "));
            self.commands.push(Command::Comment(text));
        }
    }

    /// Says that there is no TEMPLATE, and what follows from that.
    fn without_template(&mut self, why: &str) {
        let why = why.replace(['\n', '\r'], " ");
        self.commands.push(Command::Comment(format!(
            "No TEMPLATE: the chat template was not reproduced ({why}).\nOllama {RUNS_JINJA} and later use the one inside the GGUF; older ones cannot run this model as a chat."
        )));
        self.commands.push(Command::Other("REQUIRES", RUNS_JINJA.into()));
        self.notes.push(format!(
            "no TEMPLATE was written: the chat template was not reproduced ({why}); Ollama {RUNS_JINJA} and later use the one inside the GGUF"
        ));
    }

    /// Adds a text, unless a Modelfile cannot hold it.
    fn add_text(&mut self, command: impl FnOnce(String) -> Command, text: String, what: &str) {
        if text.contains("\"\"\"") {
            self.notes.push(format!("{what} is left out: it contains \"\"\", which ends a value in a Modelfile"));
        } else if !text.trim().is_empty() {
            self.commands.push(command(text));
        }
    }

    /// Sampling parameters and the context length.
    fn add_parameters(&mut self, input: &ModelfileInput) {
        let empty = Json::Null;
        let config = input.generation_config.as_ref().unwrap_or(&empty);
        if config.get("do_sample").and_then(Json::as_bool) == Some(false) {
            self.commands.push(Command::Parameter("temperature".into(), "0".into()));
        } else {
            for (key, name) in [
                ("temperature", "temperature"),
                ("top_p", "top_p"),
                ("top_k", "top_k"),
                ("min_p", "min_p"),
                ("typical_p", "typical_p"),
            ] {
                if let Some(value) = config.get(key).filter(|v| v.is_number()) {
                    self.commands.push(Command::Parameter(name.into(), value.to_string()));
                }
            }
        }
        for (key, name) in [
            ("repetition_penalty", "repeat_penalty"),
            ("presence_penalty", "presence_penalty"),
            ("frequency_penalty", "frequency_penalty"),
        ] {
            if let Some(value) = config.get(key).filter(|v| v.is_number()) {
                self.commands.push(Command::Parameter(name.into(), value.to_string()));
            }
        }
        if let Some(length) = input.context_length.filter(|l| *l > 0) {
            if length > USUAL_CONTEXT {
                self.commands.push(Command::Comment(format!(
                    "The model was made for contexts of {length} tokens; longer ones need more memory."
                )));
            }
            let length = length.min(USUAL_CONTEXT);
            self.commands.push(Command::Parameter("num_ctx".into(), length.to_string()));
        }
    }

    /// The text of the Modelfile.
    pub fn render(&self) -> String {
        self.to_string()
    }

    /// The TEMPLATE, if one was written.
    pub fn template(&self) -> Option<&str> {
        self.commands.iter().find_map(|c| match c {
            Command::Template(text) => Some(text.as_str()),
            _ => None,
        })
    }
}

/// What a chat template says about itself.
struct ChatFacts {
    stops: Vec<String>,
    system: Option<String>,
}

/// A scope in words.
pub fn words(scope: Scope) -> Vec<&'static str> {
    let mut out = vec!["plain turns"];
    for (on, word) in [
        (scope.system, "a system prompt"),
        (scope.later_system, "later system messages"),
        (scope.thinking, "thinking"),
        (scope.tools, "tools"),
    ] {
        if on {
            out.push(word);
        }
    }
    out
}

/// The system prompt that a template writes by itself: the text which, given as one, changes nothing.
fn default_system(template: &ChatTemplate, abilities: &Abilities) -> Option<String> {
    if !abilities.scope.system {
        return None;
    }
    const MARK: &str = "QzS0Xq";
    let dialect = &abilities.dialect;
    let with = |system: Option<&str>, turns: usize, think: Option<bool>| {
        let mut messages: Vec<Message> = system.map(|s| Message::new(Role::System, s)).into_iter().collect();
        for n in 0..turns {
            messages.push(Message::new(Role::User, format!("QzU{n}Xq")));
            messages.push(Message::new(Role::Assistant, format!("QzA{n}Xq")));
        }
        messages.push(Message::new(Role::User, "QzU9Xq"));
        Conversation { messages, think, ..Conversation::default() }
    };
    let marked = template.render(&with(Some(MARK), 0, None), dialect).ok()?;
    let (plain, hooks) = template.observe(&with(None, 0, None), dialect, JsonView::Mark).ok()?;
    if hooks.iter().any(|h| matches!(h, Hooked::Date { .. })) {
        return None;
    }
    let (before, behind) = marked.split_once(MARK)?;
    let found = plain.strip_prefix(before)?.strip_suffix(behind)?;
    // A lone `{placeholder}` was meant to be filled in, not said.
    let placeholder = found.starts_with('{') && found.ends_with('}') && !found.contains(' ');
    if found.trim().is_empty() || found.contains("QzU") || placeholder {
        return None;
    }
    let same = [(0, None), (1, None), (2, None), (1, Some(true)), (1, Some(false))].iter().all(|(turns, think)| {
        let given = template.render(&with(Some(found), *turns, *think), dialect).ok();
        given.is_some() && given == template.render(&with(None, *turns, *think), dialect).ok()
    });
    same.then(|| found.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3() -> ModelfileInput {
        ModelfileInput {
            from: vec!["model-Q4_K_M.gguf".into()],
            chat: ChatInput {
                template: Some(
                    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
                        .into(),
                ),
                bos_token: Some("<|begin_of_text|>".into()),
                eos_token: Some("<|eot_id|>".into()),
                add_bos: Some(true),
                special_tokens: ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
                    .map(str::to_owned)
                    .to_vec(),
                eos_tokens: vec!["<|eot_id|>".into(), "<|end_of_text|>".into()],
                ..ChatInput::default()
            },
            generation_config: serde_json::from_str(r#"{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [4, 1]}"#).ok(),
            context_length: Some(512),
            ..ModelfileInput::default()
        }
    }

    #[test]
    fn a_llama3_model_gets_its_template_and_stops() {
        let file = Modelfile::build(&llama3());
        let text = file.render();
        assert!(text.starts_with("FROM ./model-Q4_K_M.gguf\n"), "{text}");
        assert!(text.contains("PARAMETER stop \"<|eot_id|>\"\nPARAMETER stop \"<|end_of_text|>\"\n"), "{text}");
        assert!(text.contains("PARAMETER temperature 0.6\nPARAMETER top_p 0.9\nPARAMETER num_ctx 512\n"), "{text}");
        let template = file.template().expect("a proven TEMPLATE");
        assert!(template.contains("<|start_header_id|>user<|end_header_id|>"), "{template}");
        assert!(!template.contains("<|begin_of_text|>"), "BOS twice: {template}");
        assert!(file.notes.is_empty(), "{:?}", file.notes);
    }

    #[test]
    fn bos_stays_in_the_template_if_nobody_else_adds_it() {
        let mut input = llama3();
        input.chat.add_bos = Some(false);
        let file = Modelfile::build(&input);
        assert!(file.template().is_some_and(|t| t.contains("<|begin_of_text|>")));
    }

    #[test]
    fn what_is_not_reproduced_is_not_written() {
        let mut input = llama3();
        // The length of the content decides: no fact that Go could test.
        input.chat.template = Some(
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.content | length is even %}!{% endif %}{% endfor %}".into(),
        );
        let file = Modelfile::build(&input);
        assert_eq!(file.template(), None);
        assert!(file.render().contains("REQUIRES 0.32.0"));
        assert!(file.notes.iter().any(|n| n.contains("no TEMPLATE was written")), "{:?}", file.notes);
    }

    #[test]
    fn a_default_system_prompt_is_found() {
        let mut input = llama3();
        input.chat.template = Some(
            "{% if messages[0].role != 'system' %}<|system|>You help.<|end|>{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}".into(),
        );
        let file = Modelfile::build(&input);
        assert!(file.commands.contains(&Command::System("You help.".into())), "{}", file.render());
    }
}
