//! How Ollama takes an answer apart: which of it is thinking, which are calls of tools.
//!
//! Without a `PARSER`, Ollama reads two things off the TEMPLATE: the text behind an `if .ToolCalls`, at which calls
//! begin (`tools.parseTag`), and the texts around a `.Thinking` among the messages (`thinking.InferTags`). Behind the
//! first it looks for a tool's name and a JSON object. This module reads a TEMPLATE the same way, finds out from the
//! model's own [answers](super::answers) what should be read there, and tries it on them. Where the TEMPLATE does not
//! say it by itself, [`Signposts`] are put in front of it: conditions that never hold and that print nothing.

use super::answers::{Answer, answers, tools};
use super::builtin::{self, Builtin};
use super::chat::ToolCall;
use super::go::{Arg, Node, Pipe, Template};
use super::infer::Abilities;
use super::jinja::ChatTemplate;
use super::stops::common_prefix;
use serde_json::{Map, Value as Json};
use std::sync::LazyLock;

/// What Ollama must look for in a model's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signposts {
    /// The text at which calls begin; `{` for an answer that is nothing but JSON.
    pub call: Option<String>,
    /// The texts around thinking.
    pub thinking: Option<(String, String)>,
    /// The built-in parser that reads the calls, if they are not JSON behind a text.
    pub parser: Option<&'static str>,
    /// The model calls tools in a form that Ollama does not read.
    pub unread: bool,
}

impl Signposts {
    /// Finds them in a model's answers. Calls are only looked at if `with_tools`.
    pub fn find(template: &ChatTemplate, abilities: &Abilities, with_tools: bool) -> Self {
        let answers: Vec<(usize, Answer)> =
            answers(template, abilities).into_iter().enumerate().filter_map(|(n, a)| Some((n, a?))).collect();
        let thinking = answers.iter().find_map(|(_, a)| thinking_tags(a)).filter(|(open, close)| {
            let mut thought = answers.iter().filter(|(_, a)| a.message.thinking.is_some());
            thought.all(|(_, a)| reads_thinking(a, open, close))
        });
        let mut found = Self { thinking, ..Self::default() };
        let closing = found.thinking.as_ref().map(|(_, close)| close.as_str());
        let (mut calls, mut others) = (Vec::new(), Vec::new());
        for (_, Answer { message, text, .. }) in &answers {
            let text = behind_thinking(text, closing);
            match message.tool_calls.as_slice() {
                [] => others.push(text),
                wanted => calls.push((text, meant(wanted))),
            }
        }
        if !with_tools || calls.is_empty() {
            return found;
        }
        let tag = call_tag(&calls.iter().map(|(text, _)| *text).collect::<Vec<_>>());
        let read = calls.iter().all(|(text, wanted)| read_calls(&tag, text).as_ref() == Some(wanted));
        if read && others.iter().all(|text| read_calls(&tag, text).is_none()) {
            found.call = Some(tag);
        } else {
            found.parser = builtin_parser(&answers);
            found.unread = found.parser.is_none();
        }
        found
    }

    /// The TEMPLATE with what it lacks in front.
    pub fn put_before(&self, template: &str) -> String {
        let Ok(parsed) = Template::parse(template) else {
            return template.to_owned();
        };
        let mut out = String::new();
        if let Some(tag) = self.call.as_ref().filter(|tag| call_tag_of(&parsed) != **tag) {
            let text = if tag == "{" { "" } else { tag };
            out += &format!("{{{{- if .ToolCalls }}}}{text}{{{{ end }}}}\n");
        }
        let tags = thinking_tags_of(&parsed);
        if let Some((open, close)) = self.thinking.as_ref().filter(|wanted| tags.as_ref() != Some(wanted)) {
            out += &format!(
                "{{{{- range .Messages }}}}{{{{ if and .Thinking false }}}}{open}{{{{ .Thinking }}}}{close}{{{{ end }}}}{{{{ end }}}}\n"
            );
        }
        if out.is_empty() {
            return template.to_owned();
        }
        let note =
            "{{- /* Nothing is printed here: by these texts Ollama finds calls and thinking in an answer. */}}\n";
        // Text that comes first must not get a line break in front.
        if !template.trim_start().starts_with("{{-") {
            out.pop();
        }
        format!("{note}{out}{template}")
    }
}

/// The text at which Ollama looks for calls (`tools.parseTag`).
pub fn call_tag_of(template: &Template) -> String {
    let text = find_calls(&template.root).and_then(first_text).unwrap_or_default();
    let text = text.replace("\r\n", "\n");
    let tag = text.split('{').next().unwrap_or_default().trim();
    if tag.is_empty() { "{".to_owned() } else { tag.to_owned() }
}

/// The body of the first `if` that names `.ToolCalls` itself, in reading order.
fn find_calls(nodes: &[Node]) -> Option<&[Node]> {
    nodes.iter().find_map(|node| match node {
        Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
            let names = |arg: &Arg| matches!(arg, Arg::Field(names) if names.iter().any(|n| n == "ToolCalls"));
            if matches!(node, Node::If(_)) && branch.pipe.commands.iter().flatten().any(names) {
                return Some(branch.list.as_slice());
            }
            find_calls(&branch.list).or_else(|| find_calls(branch.otherwise.as_deref()?))
        }
        _ => None,
    })
}

/// The first text that is not blank, unless an action comes first.
fn first_text(nodes: &[Node]) -> Option<&str> {
    for node in nodes {
        match node {
            Node::Text(text) if text.trim().is_empty() => {}
            Node::Text(text) => return Some(text),
            Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
                return first_text(&branch.list).or_else(|| first_text(branch.otherwise.as_deref()?));
            }
            Node::Action(_) => return None,
            Node::Call { .. } | Node::Break | Node::Continue => {}
        }
    }
    None
}

/// The texts that Ollama takes for the ends of thinking (`thinking.InferTags`); `None` if one is empty.
pub fn thinking_tags_of(template: &Template) -> Option<(String, String)> {
    let (mut open, mut close) = (String::new(), String::new());
    visit(&template.root, false, &mut |list: &[Node]| {
        if let Some(Node::Text(text)) = list.first() {
            open = text.trim().to_owned();
        }
        if let Some(Node::Text(text)) = list.last() {
            close = text.trim().to_owned();
        }
    });
    (!open.is_empty() && !close.is_empty()).then_some((open, close))
}

/// Calls `found` with the list around each `.Thinking` within a `range` over `.Messages`.
fn visit(list: &[Node], messages: bool, found: &mut impl FnMut(&[Node])) {
    for node in list {
        let (pipe, branch) = match node {
            Node::Action(pipe) => (Some(pipe), None),
            Node::Call { data, .. } => (data.as_ref(), None),
            Node::If(branch) | Node::Range(branch) | Node::With(branch) => (Some(&branch.pipe), Some(branch)),
            Node::Text(_) | Node::Break | Node::Continue => (None, None),
        };
        let messages = match node {
            Node::Range(branch) => mentions(&branch.pipe, "Messages"),
            _ => messages,
        };
        if messages && pipe.is_some_and(|pipe| mentions(pipe, "Thinking")) {
            found(list);
        }
        if let Some(branch) = branch {
            visit(&branch.list, messages, found);
            visit(branch.otherwise.as_deref().unwrap_or_default(), messages, found);
        }
    }
}

/// Whether a pipeline names a field that begins so.
fn mentions(pipe: &Pipe, name: &str) -> bool {
    pipe.commands.iter().flatten().any(|arg| match arg {
        Arg::Field(names) => names.first().is_some_and(|n| n == name),
        Arg::Pipe(inner) => mentions(inner, name),
        _ => false,
    })
}

/// The texts around the thinking of an answer that has content behind it. The first may end the prompt.
fn thinking_tags(answer: &Answer) -> Option<(String, String)> {
    static LAST_TAG: LazyLock<Option<regex::Regex>> =
        LazyLock::new(|| regex::Regex::new(r"(?:<[^<>\s]+>|\[[A-Za-z_]+\])$").ok());
    let thought = answer.message.thinking.as_deref()?;
    if answer.message.content.is_empty() || !answer.message.tool_calls.is_empty() {
        return None;
    }
    let (before, rest) = answer.text.split_once(thought)?;
    let close = rest.split_once(answer.message.content.as_str())?.0.trim();
    let open = match before.trim() {
        "" => LAST_TAG.as_ref()?.find(answer.prompt.trim_end())?.as_str(),
        before => before,
    };
    (!close.is_empty() && !open.contains("{{") && !close.contains("{{")).then(|| (open.to_owned(), close.to_owned()))
}

/// Whether Ollama splits an answer with thinking rightly (`thinking.Parser`).
fn reads_thinking(answer: &Answer, open: &str, close: &str) -> bool {
    let begun = answer.prompt.trim().ends_with(open);
    let text = answer.text.trim_start();
    let Some(text) = text.strip_prefix(open).or_else(|| begun.then_some(text)) else {
        return false;
    };
    let Some((thought, content)) = text.split_once(close) else {
        return false;
    };
    Some(thought.trim()) == answer.message.thinking.as_deref()
        && content.trim_start().starts_with(&answer.message.content)
}

fn behind_thinking<'t>(text: &'t str, close: Option<&str>) -> &'t str {
    match close.and_then(|close| text.split_once(close)) {
        Some((_, rest)) => rest.trim_start(),
        None => text,
    }
}

/// What all calls begin with, up to the first blank or brace.
fn call_tag(texts: &[&str]) -> String {
    let first = texts.first().copied().unwrap_or_default();
    let common = texts.iter().fold(first, |common, text| common_prefix(common, text)).trim_start();
    let tag = common.split(|c: char| c.is_whitespace() || c == '{').next().unwrap_or_default();
    if tag.is_empty() || tag.contains("}}") { "{".to_owned() } else { tag.to_owned() }
}

/// A call as Ollama returns it.
type Read = (String, Map<String, Json>);

fn meant(calls: &[ToolCall]) -> Vec<Read> {
    calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect()
}

/// The calls that Ollama finds in a whole answer (`tools.Parser`); `None`: the answer stays what it is.
fn read_calls(tag: &str, text: &str) -> Option<Vec<Read>> {
    let at = text.find(tag)?;
    if matches!(tag, "{" | "[") && !text[..at].trim().is_empty() {
        return None;
    }
    let tools = tools();
    let names: Vec<&str> = tools.iter().filter_map(|t| t["function"]["name"].as_str()).collect();
    let (mut rest, mut calls) = (&text[at..], Vec::new());
    // The name that comes first, the longest of those; then the first object that can be its arguments.
    while let Some((from, name)) = names
        .iter()
        .filter_map(|name| Some((rest.find(name)?, *name)))
        .min_by_key(|(at, name)| (*at, std::cmp::Reverse(name.len())))
    {
        let Some((arguments, end)) = find_arguments(name, rest) else { break };
        calls.push((name.to_owned(), arguments));
        rest = &rest[end.max(from + name.len())..];
    }
    (!calls.is_empty()).then_some(calls)
}

/// The first JSON object that holds or is the arguments of a tool, and where it ends (`findArguments`).
fn find_arguments(name: &str, text: &str) -> Option<(Map<String, Json>, usize)> {
    let (mut depth, mut start) = (0_i32, None);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.bytes().enumerate() {
        match c {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' => {
                if depth == 0 {
                    start = Some(at);
                }
                depth += 1;
            }
            b'}' => {
                depth = (depth - 1).max(0);
                let Some(from) = start.filter(|_| depth == 0) else { continue };
                match serde_json::from_str::<Map<String, Json>>(&text[from..=at]) {
                    Ok(object) => {
                        let end = at + 1;
                        return match arguments_in(name, &object) {
                            Found::Arguments(arguments) => Some((arguments, end)),
                            Found::Nothing => Some((object, end)),
                            Found::NoArguments => None,
                        };
                    }
                    Err(_) => start = None,
                }
            }
            _ => {}
        }
    }
    None
}

/// What an object says about a tool's arguments.
enum Found {
    Arguments(Map<String, Json>),
    /// It has a name, and no arguments.
    NoArguments,
    Nothing,
}

fn arguments_in(name: &str, object: &Map<String, Json>) -> Found {
    let get = |key: &str| match object.get(key)? {
        Json::Object(map) => Some(map.clone()),
        Json::String(text) => serde_json::from_str(text).ok(),
        _ => None,
    };
    if object.contains_key("name") {
        return get("arguments").or_else(|| get("parameters")).map_or(Found::NoArguments, Found::Arguments);
    }
    if let Some(arguments) = get(name) {
        return Found::Arguments(arguments);
    }
    let inner = object.values().flat_map(|value| match value {
        Json::Array(list) => list.iter().collect(),
        other => vec![other],
    });
    for object in inner.filter_map(Json::as_object) {
        match arguments_in(name, object) {
            Found::Nothing => {}
            found => return found,
        }
    }
    Found::Nothing
}

/// A text of [`super::answers::samples`] and the built-in parsers that read it rightly.
#[derive(serde::Deserialize)]
struct Recorded {
    sample: usize,
    text: String,
    parsers: Vec<String>,
}

/// What Ollama's parsers made of answers (`tests/oracle/ollama_parsers.go`).
static RECORDED: LazyLock<Vec<Recorded>> =
    LazyLock::new(|| serde_json::from_str(include_str!("parsers.json")).unwrap_or_default());

/// The built-in parser that was seen to read every one of these answers; of several, the one of the oldest release.
fn builtin_parser(answers: &[(usize, Answer)]) -> Option<&'static str> {
    let reads = |name: &str, (sample, answer): &(usize, Answer)| {
        RECORDED.iter().any(|r| r.sample == *sample && r.text == answer.text && r.parsers.iter().any(|p| p == name))
    };
    builtin::parsers()
        .filter(|(name, _)| answers.iter().all(|answer| reads(name, answer)))
        .min_by_key(|(_, since)| *since)
        .map(|(name, _)| name)
}

/// The release that a parser needs, as a Modelfile's `REQUIRES`.
pub(super) fn release_of(parser: &str) -> Option<String> {
    let [major, minor, patch] = Builtin::Parser.since(parser)?;
    Some(format!("{major}.{minor}.{patch}"))
}
