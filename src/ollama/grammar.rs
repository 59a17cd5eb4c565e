//! Reading a Modelfile as Ollama does, and what `create` is then asked to do.
//!
//! The grammar is that of Ollama's `parser.ParseFile`: a command word, blanks, a value that may be quoted once or
//! three times. Characters that Go calls unprintable are dropped, line breaks inside quotes are kept.

use super::go::is_print;
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};

/// A Modelfile that Ollama would refuse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrammarError {
    /// A command that does not exist.
    #[error(
        "Modelfile line {line}: {word:?} is no command; use FROM, TEMPLATE, SYSTEM, PARAMETER, MESSAGE, ADAPTER, LICENSE, RENDERER, PARSER, REQUIRES or DRAFT"
    )]
    Command {
        /// Line, from 1.
        line: usize,
        /// The word.
        word: String,
    },
    /// A message by nobody.
    #[error("Modelfile line {line}: {role:?} is no role; use system, user or assistant")]
    Role {
        /// Line, from 1.
        line: usize,
        /// The word.
        role: String,
    },
    /// A command without its value, or a quote that is not closed.
    #[error("Modelfile line {line}: unexpected end behind {text:?}; complete the command or close its quotes")]
    End {
        /// Line, from 1.
        line: usize,
        /// What stood there.
        text: String,
    },
    /// A version that is none.
    #[error("Modelfile: REQUIRES {version:?} is no version; give one such as 0.14.0")]
    Requires {
        /// What is written.
        version: String,
    },
    /// No model.
    #[error("Modelfile: no FROM line; name the model with FROM")]
    NoFrom,
    /// A parameter that Ollama does not have.
    #[error("Modelfile: unknown parameter {name:?}; remove the line or correct the name")]
    Parameter {
        /// Its name.
        name: String,
    },
    /// A parameter whose value is of the wrong type.
    #[error("Modelfile: parameter {name} cannot be {value:?}; give {expected}")]
    ParameterValue {
        /// Its name.
        name: String,
        /// What is written.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// A command as Ollama's parser returns it: lower-case name (`model` for FROM, the parameter's own name for
/// PARAMETER) and value; a message's value begins with `role: `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The name.
    pub name: String,
    /// The value.
    pub args: String,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Nil,
    Name,
    Value,
    Parameter,
    Message,
    Comment,
}

const COMMANDS: [&str; 11] = [
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
];

/// The text of a Modelfile: UTF-8, or UTF-16 where a byte order mark says so, as Ollama reads it.
pub fn decode(bytes: &[u8]) -> String {
    let units = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => units(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => units(rest, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Parses a Modelfile.
///
/// # Errors
/// [`GrammarError`] where Ollama's parser refuses it.
pub fn parse(text: &str) -> Result<Vec<Parsed>, GrammarError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out: Vec<Parsed> = Vec::new();
    let (mut state, mut line) = (State::Nil, 1);
    let (mut buffer, mut name, mut role) = (String::new(), String::new(), String::new());
    let is_space = |c: char| c == ' ' || c == '\t';
    let is_newline = |c: char| c == '\r' || c == '\n';
    let mut finish = |name: &str, role: &mut String, value: &str| {
        let args = if role.is_empty() { value.to_owned() } else { format!("{}: {value}", std::mem::take(role)) };
        out.push(Parsed { name: name.to_owned(), args });
    };
    for c in text.chars() {
        if is_newline(c) {
            line += 1;
        }
        let unexpected = |buffer: &str| GrammarError::End { line, text: buffer.to_owned() };
        // The state that the character leads to, and what of it is kept.
        let (mut next, kept) = match state {
            State::Nil if c == '#' => (State::Comment, None),
            State::Nil if is_space(c) || is_newline(c) => (State::Nil, None),
            State::Nil => (State::Name, Some(c)),
            State::Name if c.is_ascii_alphabetic() => (State::Name, Some(c)),
            State::Name if is_space(c) => (State::Value, None),
            State::Name => {
                return Err(GrammarError::Command { line, word: format!("{buffer}{c}") });
            }
            State::Value if is_newline(c) || is_space(c) => (State::Nil, Some(c)),
            State::Value => (State::Value, Some(c)),
            State::Parameter if c.is_ascii_alphanumeric() || c == '_' => (State::Parameter, Some(c)),
            State::Message if c.is_ascii_alphabetic() => (State::Message, Some(c)),
            State::Parameter | State::Message if is_space(c) => (State::Value, None),
            State::Parameter | State::Message => return Err(unexpected(&buffer)),
            State::Comment if is_newline(c) => (State::Nil, None),
            State::Comment => (State::Comment, None),
        };
        if next != state {
            match state {
                State::Name => {
                    let word = buffer.to_ascii_lowercase();
                    if !COMMANDS.contains(&word.as_str()) {
                        return Err(GrammarError::Command { line, word: buffer });
                    }
                    match word.as_str() {
                        "from" => name = "model".into(),
                        "parameter" => next = State::Parameter,
                        "message" => {
                            next = State::Message;
                            name = word;
                        }
                        _ => name = word,
                    }
                }
                State::Parameter => name.clone_from(&buffer),
                State::Message => {
                    if !["system", "user", "assistant"].contains(&buffer.as_str()) {
                        return Err(GrammarError::Role { line, role: buffer });
                    }
                    role.clone_from(&buffer);
                }
                State::Value => match unquote(buffer.trim()) {
                    // A value ends at a line break outside of quotes; blanks belong to it.
                    Some(value) if !is_space(c) => finish(&name, &mut role, value),
                    _ => {
                        buffer.push(c);
                        continue;
                    }
                },
                State::Comment | State::Nil => {}
            }
            buffer.clear();
            state = next;
        }
        if let Some(c) = kept.filter(|c| is_print(*c)) {
            buffer.push(c);
        }
    }
    let unexpected = || GrammarError::End { line, text: buffer.clone() };
    match state {
        State::Comment | State::Nil => {}
        State::Value => {
            let value = unquote(buffer.trim()).ok_or_else(unexpected)?;
            finish(&name, &mut role, value);
        }
        _ => return Err(unexpected()),
    }
    if out.iter().any(|c| c.name == "model") { Ok(out) } else { Err(GrammarError::NoFrom) }
}

/// The text inside of quotes; `None` while they are not closed.
fn unquote(text: &str) -> Option<&str> {
    if text.starts_with("\"\"\"") {
        return (text.len() >= 6 && text.ends_with("\"\"\"")).then(|| &text[3..text.len() - 3]);
    }
    if text.starts_with('"') {
        return (text.len() >= 2 && text.ends_with('"')).then(|| &text[1..text.len() - 1]);
    }
    Some(text)
}

/// What `ollama create` makes of a Modelfile (`Modelfile.CreateRequest`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Creation {
    /// Files that FROM names.
    pub files: Vec<PathBuf>,
    /// A model of the store that FROM names.
    pub from: Option<String>,
    /// Files that ADAPTER names.
    pub adapters: Vec<PathBuf>,
    /// The Go template.
    pub template: Option<String>,
    /// The system prompt.
    pub system: Option<String>,
    /// Licences.
    pub licenses: Vec<String>,
    /// Parameters with their types.
    pub parameters: Map<String, Json>,
    /// Example messages: role, content.
    pub messages: Vec<(String, String)>,
    /// A built-in renderer.
    pub renderer: Option<String>,
    /// A built-in parser.
    pub parser: Option<String>,
    /// The least version of Ollama.
    pub requires: Option<String>,
}

const FLOATS: [&str; 8] =
    ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty", "tfs_z"];
const INTEGERS: [&str; 11] = [
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "draft_num_predict",
];
/// Parameters that Ollama once had and now skips.
const DEPRECATED: [&str; 9] = [
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
];

impl Creation {
    /// Interprets the commands of a Modelfile that lies in `folder`.
    ///
    /// # Errors
    /// [`GrammarError::Parameter`] and [`GrammarError::ParameterValue`].
    pub fn new(commands: &[Parsed], folder: &Path) -> Result<Self, GrammarError> {
        let mut out = Self::default();
        for Parsed { name, args } in commands {
            let path = || {
                let path = match args.strip_prefix("~/") {
                    Some(rest) => home().join(rest),
                    None => PathBuf::from(args),
                };
                folder.join(path)
            };
            match name.as_str() {
                "model" => {
                    let file = path();
                    if file.exists()
                        || args.starts_with(['.', '/', '~'])
                        || args.to_ascii_lowercase().ends_with(".gguf")
                    {
                        out.files.push(file);
                    } else {
                        out.from = Some(args.clone());
                    }
                }
                "adapter" => out.adapters.push(path()),
                "template" => out.template = Some(args.clone()),
                "system" => out.system = Some(args.clone()),
                "license" => out.licenses.push(args.clone()),
                "renderer" => out.renderer = Some(args.clone()),
                "parser" => out.parser = Some(args.clone()),
                "requires" => {
                    let version = args.strip_prefix('v').unwrap_or(args);
                    if !is_version(version) {
                        return Err(GrammarError::Requires { version: args.clone() });
                    }
                    out.requires = Some(version.to_owned());
                }
                "message" => {
                    let (role, content) = args.split_once(": ").unwrap_or((args, ""));
                    out.messages.push((role.to_owned(), content.to_owned()));
                }
                "draft" => {}
                parameter => out.parameter(parameter, args)?,
            }
        }
        Ok(out)
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), GrammarError> {
        let wrong =
            |expected| GrammarError::ParameterValue { name: name.to_owned(), value: value.to_owned(), expected };
        let typed = if name == "stop" {
            let list = self.parameters.entry("stop").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(json!(value));
            }
            return Ok(());
        } else if FLOATS.contains(&name) {
            let float: f32 = value.parse().map_err(|_| wrong("a number"))?;
            // The shortest digits of the 32-bit value, as Go's encoder writes a float32.
            let shortest: f64 = float.to_string().parse().unwrap_or(f64::from(float));
            json!(shortest)
        } else if INTEGERS.contains(&name) {
            json!(value.parse::<i64>().map_err(|_| wrong("an integer"))?)
        } else if name == "use_mmap" {
            json!(value.parse::<bool>().map_err(|_| wrong("true or false"))?)
        } else if DEPRECATED.contains(&name) {
            return Ok(());
        } else {
            return Err(GrammarError::Parameter { name: name.to_owned() });
        };
        self.parameters.entry(name).or_insert(typed);
        Ok(())
    }
}

/// Whether a text is a semantic version, whose minor and patch numbers may be left out (Go's `semver.IsValid`).
fn is_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(r, b)| (r, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
    let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let numbers: Vec<&str> = core.split('.').collect();
    let number = |p: &&str| digits(p) && (*p == "0" || !p.starts_with('0'));
    let word = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let whole = numbers.len() == 3 || pre.is_none() && build.is_none();
    (1..=3).contains(&numbers.len())
        && whole
        && numbers.iter().all(number)
        && pre.is_none_or(|p| p.split('.').all(|part| word(part) && (!digits(part) || number(&part))))
        && build.is_none_or(|b| b.split('.').all(word))
}

/// The user's home folder; the current one where there is none.
pub(crate) fn home() -> PathBuf {
    std::env::home_dir().unwrap_or_else(|| PathBuf::from("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|c| (c.name, c.args)).collect()
    }

    fn own(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    #[test]
    fn values_are_quoted_or_not() {
        for (text, expected) in [
            ("FROM \"A  B  \"", own(&[("model", "A  B  ")])),
            ("FROM     A B    ", own(&[("model", "A B")])),
            ("from x\nparameter temp 1 ", own(&[("model", "x"), ("temp", "1")])),
            ("# c\nFROM x # not a comment\n", own(&[("model", "x # not a comment")])),
            ("FROM x\nSYSTEM \"\"\"\na \"b\"\n\"\"\"\n", own(&[("model", "x"), ("system", "\na \"b\"\n")])),
            ("FROM x\nSYSTEM \"\"\"\"quoted\" end\"\"\"", own(&[("model", "x"), ("system", "\"quoted\" end")])),
            ("FROM x\nSYSTEM \"\"\n", own(&[("model", "x"), ("system", "")])),
            ("FROM x\nMESSAGE user Hi: there\n", own(&[("model", "x"), ("message", "user: Hi: there")])),
            ("FROM x\r\nTEMPLATE \"\"\"a\u{200b}b\r\nc\"\"\"\r\n", own(&[("model", "x"), ("template", "ab\r\nc")])),
            ("\u{feff}FROM x", own(&[("model", "x")])),
        ] {
            assert_eq!(parsed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn refusals_say_where() {
        assert_eq!(parse(""), Err(GrammarError::NoFrom));
        assert!(matches!(parse("FROM x\nNONSENSE a b\n"), Err(GrammarError::Command { line: 2, .. })));
        assert!(matches!(parse("FROM x\nMESSAGE cat meow\n"), Err(GrammarError::Role { line: 2, .. })));
        assert!(matches!(parse("FROM x\nPARAMETER temp\n"), Err(GrammarError::End { .. })));
        assert!(matches!(parse("FROM x\nSYSTEM \"\"\"open\n"), Err(GrammarError::End { .. })));
        assert!(matches!(parse("FROM x\nMESSAGE system"), Err(GrammarError::End { .. })));
    }

    #[test]
    fn versions_are_semantic() {
        for good in ["0.14.0", "1", "1.2", "0.33.0-rc2", "1.0.0+build.01"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "x", "1.2.3.4", "01.2.3", "1.2-rc1", "1.0.0-", "1.0.0-01", "latest"] {
            assert!(!is_version(bad), "{bad}");
        }
        let requires = |v: &str| Creation::new(&parse(&format!("FROM x\nREQUIRES {v}\n")).unwrap(), Path::new("/"));
        assert_eq!(requires("v0.14.0").unwrap().requires.as_deref(), Some("0.14.0"));
        assert!(requires("soon").is_err());
    }

    #[test]
    fn parameters_have_types() {
        let commands =
            parse("FROM x\nPARAMETER temperature 0.6\nPARAMETER top_k 40\nPARAMETER stop a\nPARAMETER stop \"b c\"\n")
                .unwrap();
        let creation = Creation::new(&commands, Path::new("/nowhere")).unwrap();
        assert_eq!(creation.from.as_deref(), Some("x"));
        assert_eq!(
            Json::Object(creation.parameters).to_string(),
            r#"{"temperature":0.6,"top_k":40,"stop":["a","b c"]}"#
        );
        let commands = parse("FROM x\nPARAMETER warmth 3\n").unwrap();
        assert!(Creation::new(&commands, Path::new("/")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "[ -~\n\täß日本]{1,60}", stop in "[!-~]{1,20}( [!-~]{1,5})?\n?") {
            use crate::ollama::{Command, Modelfile};
            proptest::prop_assume!(!text.contains("\"\"\"") && !stop.contains("\"\"\""));
            let file = Modelfile {
                commands: vec![
                    Command::From("x".into()),
                    Command::System(text.clone()),
                    Command::Parameter("stop".into(), stop.clone()),
                    Command::Message("user".into(), text.clone()),
                ],
                notes: Vec::new(),
            };
            let expected = own(&[("model", "x"), ("system", &text), ("stop", &stop), ("message", &format!("user: {text}"))]);
            proptest::prop_assert_eq!(parsed(&file.render()), expected);
        }
    }
}
