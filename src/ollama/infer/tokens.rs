//! From a rendered text to tokens: what of the conversation stands where, and the template's own text around it.

use super::part::{PropertyPart, ToolPart};
use crate::ollama::chat::Conversation;
use crate::ollama::jinja::{HOOK_END, HOOK_START, Hooked, JsonView};
use crate::ollama::python::{JsonStyle, json_dumps, json_dumps_at};
use serde_json::Value as Json;
use std::sync::LazyLock;

/// Raw tokens of an output.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Lit(String),
    /// The content of a message, with its role letter.
    Content(char, usize, bool),
    Thinking(usize, bool),
    CallName(usize),
    CallId(usize),
    Arguments(usize, JsonStyle, usize),
    Key(usize),
    Value(usize, usize, Option<JsonStyle>),
    Tools(JsonStyle, usize),
    Tool(usize, ToolPart, JsonStyle, usize),
    /// A part of a tool's property: the tool, the property, the part.
    Property(usize, usize, PropertyPart),
    Date(String),
}

/// Why an output could not be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unexplained(pub String);

pub(super) fn unexplained<T>(why: impl Into<String>) -> Result<T, Unexplained> {
    Err(Unexplained(why.into()))
}

static SENTINEL: LazyLock<Option<regex::Regex>> = LazyLock::new(|| {
    regex::Regex::new(
        r"Qz(?P<role>[USATMH])(?P<n>\d+)Xq|QzV(?P<vcall>\d+)(?P<vkey>[a-c])Xq|83(?P<ncall>\d\d)(?P<nkey>\d\d)19|qzfc(?P<name>\d+)x|qzid(?P<id>\d{5})|qzk(?P<key>[a-c])|qztn(?P<tool>\d+)x|QzD(?P<desc>\d+)Xq|QzP(?P<ptool>\d+)(?P<pdesc>[a-z])Xq|qzp(?P<ntool>\d+)(?P<pname>[a-z])|QzE(?P<etool>\d+)(?P<ekey>[a-z])(?P<evalue>\d)Xq|\x02(?P<hook>\d+)\x03",
    )
    .ok()
});

/// The tokens of an observed text. Where a template printed JSON through a hook, what is known of the conversation is
/// found in the hooked value, or, if the text has the JSON itself, in the text.
pub(super) fn tokens(
    text: &str,
    hooks: &[Hooked],
    view: JsonView,
    conversation: &Conversation,
) -> Result<Vec<Token>, Unexplained> {
    if view == JsonView::Mark {
        return marked_tokens(text, hooks, &[], conversation);
    }
    let known = known_texts(hooks, conversation);
    let mut marked = String::new();
    let mut rest = text;
    'text: while let Some(c) = rest.chars().next() {
        for (n, (json, _)) in known.iter().enumerate() {
            if let Some(behind) = rest.strip_prefix(json.as_str()) {
                marked.push_str(&format!("{HOOK_START}{}{HOOK_END}", hooks.len() + n));
                rest = behind;
                continue 'text;
            }
        }
        marked.push(c);
        rest = &rest[c.len_utf8()..];
    }
    let tokens: Vec<Token> = known.into_iter().map(|(_, token)| token).collect();
    marked_tokens(&marked, hooks, &tokens, conversation)
}

/// Deepest indentation at which known JSON is looked for.
const DEEPEST: usize = 4;

/// What of the conversation can stand in a text as JSON, in the styles that the template used, longest first.
fn known_texts(hooks: &[Hooked], conversation: &Conversation) -> Vec<(String, Token)> {
    let mut styles = vec![JsonStyle::default()];
    for hook in hooks {
        if let Hooked::Json { style, .. } = hook
            && !styles.contains(style)
        {
            styles.push(style.clone());
        }
    }
    let mut out: Vec<(String, Token)> = Vec::new();
    for style in &styles {
        for level in 0..=if style.indent.is_some() { DEEPEST } else { 0 } {
            let mut add = |value: &Json, token: Token| {
                let value = minijinja::Value::from_serialize(value);
                out.push((json_dumps_at(&value, style, level), token));
            };
            if !conversation.tools.is_empty() {
                add(&Json::from(conversation.tools.clone()), Token::Tools(style.clone(), level));
            }
            for (n, tool) in conversation.tools.iter().enumerate() {
                let function = &tool["function"];
                for (part, value) in [
                    (ToolPart::Whole, tool),
                    (ToolPart::Function, function),
                    (ToolPart::Parameters, &function["parameters"]),
                    (ToolPart::QuotedDescription, &function["description"]),
                ] {
                    add(value, Token::Tool(n, part, style.clone(), level));
                }
            }
            for (n, call) in conversation.messages.iter().flat_map(|m| &m.tool_calls).enumerate() {
                add(&Json::Object(call.arguments.clone()), Token::Arguments(n, style.clone(), level));
            }
        }
    }
    out.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    out.dedup_by(|a, b| a.0 == b.0);
    out
}

/// The tokens of a text with marks: numbers below that of the hooks are theirs, the others those of `known`.
fn marked_tokens(
    text: &str,
    hooks: &[Hooked],
    known: &[Token],
    conversation: &Conversation,
) -> Result<Vec<Token>, Unexplained> {
    let Some(re) = SENTINEL.as_ref() else {
        return unexplained("no pattern");
    };
    let mut out = Vec::new();
    let mut at = 0;
    for found in re.captures_iter(text) {
        let Some(whole) = found.get(0) else { continue };
        if whole.start() > at {
            push_literal(&mut out, &text[at..whole.start()]);
        }
        at = whole.end();
        let number = |name: &str| found.name(name).and_then(|m| m.as_str().parse::<usize>().ok());
        let letter = |name: &str| found.name(name).and_then(|m| m.as_str().chars().next());
        let key = |c: char| (c as usize) - ('a' as usize);
        let token = if let (Some(role), Some(n)) = (letter("role"), number("n")) {
            if role == 'H' { Token::Thinking(n, false) } else { Token::Content(role, n, false) }
        } else if let (Some(n), Some(k)) = (number("vcall"), letter("vkey")) {
            Token::Value(n, key(k), None)
        } else if let (Some(n), Some(k)) = (number("ncall"), number("nkey")) {
            Token::Value(n, k, Some(JsonStyle::default()))
        } else if let Some(n) = number("name") {
            Token::CallName(n)
        } else if let Some(n) = number("id") {
            Token::CallId(n)
        } else if let Some(k) = letter("key") {
            Token::Key(key(k))
        } else if let Some(n) = number("tool") {
            Token::Tool(n, ToolPart::Name, JsonStyle::default(), 0)
        } else if let Some(n) = number("desc") {
            Token::Tool(n, ToolPart::Description, JsonStyle::default(), 0)
        } else if let Some(n) = number("hook") {
            match hooks.get(n) {
                Some(Hooked::Date { format }) => out.push(Token::Date(format.clone())),
                Some(Hooked::Json { value, style }) => {
                    let plain = json_dumps(value, &JsonStyle::default());
                    let Ok(json) = serde_json::from_str::<Json>(&plain) else {
                        return unexplained("a value that is no JSON");
                    };
                    describe(&mut out, &json, style, 0, conversation);
                }
                None => match n.checked_sub(hooks.len()).and_then(|n| known.get(n)) {
                    Some(token) => out.push(token.clone()),
                    None => return unexplained("a mark that stands for nothing"),
                },
            }
            continue;
        } else if let (Some(n), Some(k)) = (number("ptool"), letter("pdesc")) {
            Token::Property(n, key(k), PropertyPart::Description)
        } else if let (Some(n), Some(k)) = (number("ntool"), letter("pname")) {
            Token::Property(n, key(k), PropertyPart::Name)
        } else if let (Some(n), Some(k), Some(value)) = (number("etool"), letter("ekey"), number("evalue")) {
            Token::Property(n, key(k), PropertyPart::EnumValue(value, false))
        } else {
            return unexplained("a sentinel that stands for nothing");
        };
        out.push(token);
    }
    if at < text.len() {
        push_literal(&mut out, &text[at..]);
    }
    Ok(out)
}

fn push_literal(out: &mut Vec<Token>, text: &str) {
    if text.is_empty() {
        return;
    }
    if let Some(Token::Lit(last)) = out.last_mut() {
        last.push_str(text);
    } else {
        out.push(Token::Lit(text.to_owned()));
    }
}

/// Writes a JSON value as known pieces of the conversation and the text around them.
fn describe(out: &mut Vec<Token>, value: &Json, style: &JsonStyle, level: usize, conversation: &Conversation) {
    if let Some(token) = known(value, style, level, conversation) {
        out.push(token);
        return;
    }
    let newline = |out: &mut Vec<Token>, level: usize| {
        if let Some(indent) = &style.indent {
            push_literal(out, &format!("\n{}", indent.repeat(level)));
        }
    };
    match value {
        Json::String(s) if quoted_schema_text(s).is_some() => out.extend(quoted_schema_text(s)),
        Json::String(s) => {
            let inner = s.trim();
            let token = SENTINEL
                .as_ref()
                .and_then(|re| re.captures(inner))
                .filter(|c| c.get(0).is_some_and(|m| m.as_str() == inner))
                .and_then(|c| {
                    let n: usize = c.name("n")?.as_str().parse().ok()?;
                    match c.name("role")?.as_str().chars().next()? {
                        'H' => Some(Token::Thinking(n, true)),
                        role => Some(Token::Content(role, n, true)),
                    }
                });
            match token {
                Some(token) if inner.len() == s.len() => out.push(token),
                Some(token) => {
                    // A padded content as JSON: pads stand inside the quotes; told apart by their escapes.
                    push_literal(out, &s[..s.len() - s.trim_start().len()]);
                    out.push(token);
                    push_literal(out, &s[s.trim_end().len()..]);
                }
                None => {
                    // A name, an identifier or a text of the template's own: quoted, and searched for sentinels.
                    let quoted = json_dumps(&minijinja::Value::from(s.as_str()), style);
                    match marked_tokens(&quoted, &[], &[], conversation) {
                        Ok(list) => {
                            for token in list {
                                match token {
                                    Token::Lit(text) => push_literal(out, &text),
                                    other => out.push(other),
                                }
                            }
                        }
                        Err(_) => push_literal(out, &quoted),
                    }
                }
            }
        }
        Json::Array(items) if !items.is_empty() => {
            push_literal(out, "[");
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    push_literal(out, &style.item_separator);
                }
                newline(out, level + 1);
                describe(out, item, style, level + 1, conversation);
            }
            newline(out, level);
            push_literal(out, "]");
        }
        Json::Object(map) if !map.is_empty() => {
            push_literal(out, "{");
            let mut items: Vec<_> = map.iter().collect();
            if style.sort_keys {
                items.sort_by_key(|(key, _)| *key);
            }
            for (n, (key, item)) in items.into_iter().enumerate() {
                if n > 0 {
                    push_literal(out, &style.item_separator);
                }
                newline(out, level + 1);
                let key = json_dumps(&minijinja::Value::from(key.as_str()), style);
                push_literal(out, &key);
                push_literal(out, &style.key_separator);
                describe(out, item, style, level + 1, conversation);
            }
            newline(out, level);
            push_literal(out, "}");
        }
        other => {
            let text = json_dumps(&minijinja::Value::from_serialize(other), style);
            push_literal(out, &text);
        }
    }
}

/// A description or an allowed value that is printed as a JSON string.
fn quoted_schema_text(text: &str) -> Option<Token> {
    let found = SENTINEL.as_ref()?.captures(text).filter(|c| c.get(0).is_some_and(|m| m.as_str() == text))?;
    let number = |name: &str| found.name(name).and_then(|m| m.as_str().parse::<usize>().ok());
    let key = |name: &str| found.name(name).and_then(|m| m.as_str().bytes().next()).map(|b| usize::from(b - b'a'));
    if let Some(n) = number("desc") {
        return Some(Token::Tool(n, ToolPart::QuotedDescription, JsonStyle::default(), 0));
    }
    if let (Some(n), Some(k)) = (number("ptool"), key("pdesc")) {
        return Some(Token::Property(n, k, PropertyPart::QuotedDescription));
    }
    let (n, k, value) = (number("etool")?, key("ekey")?, number("evalue")?);
    Some(Token::Property(n, k, PropertyPart::EnumValue(value, true)))
}

/// The piece of the conversation that a JSON value is, if it is one.
fn known(value: &Json, style: &JsonStyle, level: usize, conversation: &Conversation) -> Option<Token> {
    let style = || style.clone();
    match value {
        Json::Array(items) if !items.is_empty() && *items == conversation.tools => Some(Token::Tools(style(), level)),
        Json::Object(_) => {
            for (n, tool) in conversation.tools.iter().enumerate() {
                let function = &tool["function"];
                let parameters = &function["parameters"];
                for (part, object) in [
                    (ToolPart::Whole, tool),
                    (ToolPart::Function, function),
                    (ToolPart::Parameters, parameters),
                    (ToolPart::Properties, &parameters["properties"]),
                ] {
                    if value == object {
                        return Some(Token::Tool(n, part, style(), level));
                    }
                }
                for (k, property) in parameters["properties"].as_object().into_iter().flatten().map(|p| p.1).enumerate()
                {
                    if value == property {
                        return Some(Token::Property(n, k, PropertyPart::Whole(style(), level)));
                    }
                    // Whose items these are shows from what stands before: items of two properties may be equal.
                    if *value == property["items"] {
                        return Some(Token::Property(n, k, PropertyPart::Items(style(), level)));
                    }
                }
            }
            let calls = conversation.messages.iter().flat_map(|m| &m.tool_calls);
            for (n, call) in calls.enumerate() {
                if value.as_object() == Some(&call.arguments) {
                    return Some(Token::Arguments(n, style(), level));
                }
            }
            None
        }
        Json::Array(_) => {
            for (n, tool) in conversation.tools.iter().enumerate() {
                let parameters = &tool["function"]["parameters"];
                if parameters["required"] == *value {
                    return Some(Token::Tool(n, ToolPart::Required, style(), level));
                }
                for (k, property) in parameters["properties"].as_object().into_iter().flatten().map(|p| p.1).enumerate()
                {
                    if property["enum"] == *value {
                        return Some(Token::Property(n, k, PropertyPart::Enum(style(), level)));
                    }
                }
            }
            None
        }
        Json::String(_) | Json::Number(_) => {
            let calls = conversation.messages.iter().flat_map(|m| &m.tool_calls);
            for (n, call) in calls.enumerate() {
                for (key, argument) in &call.arguments {
                    if argument == value {
                        let k = key.bytes().last().map_or(0, |b| usize::from(b.saturating_sub(b'a')));
                        return Some(Token::Value(n, k, Some(style())));
                    }
                }
            }
            None
        }
        _ => None,
    }
}
