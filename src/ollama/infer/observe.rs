//! From a rendered probe to what it says: the elements that are visible, and the text between them.

use super::learn::{Facts, facts};
use super::probe::{PAD_LEFT, PAD_LEFT_INNER, PAD_RIGHT, PAD_RIGHT_INNER, Probe};
use crate::ollama::chat::{Conversation, Role};
use crate::ollama::jinja::Hooked;
use crate::ollama::python::{JsonStyle, json_dumps};
use serde_json::Value as Json;
use std::sync::LazyLock;

/// The kinds of elements that a prompt is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Before everything.
    Start,
    /// A user's message.
    User,
    /// The thinking of an answer.
    Thinking,
    /// The text of an answer.
    Answer,
    /// One call of an answer.
    Call,
    /// A tool's result.
    Result,
    /// A system message that is not the first.
    Later,
    /// Behind everything.
    End,
}

/// Which of a tool's parts is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ToolPart {
    /// The whole object.
    Whole,
    /// Its `function`.
    Function,
    /// The function's name.
    Name,
    /// The function's description.
    Description,
    /// The function's parameters.
    Parameters,
    /// The parameters' properties.
    Properties,
    /// The names that are required.
    Required,
}

/// A piece of the text between elements, or of a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    /// Text.
    Lit(String),
    /// The system prompt: trimmed left, trimmed right, as JSON text.
    System(Trim),
    /// Today's date in a `strftime` format.
    Date(String),
    /// All tools as one JSON value, at this depth of indentation.
    Tools(JsonStyle, usize),
    /// Tools one by one, with the text between two of them.
    ToolLoop(Vec<Part>, String),
    /// Inside a loop over tools: a part of the tool.
    Tool(ToolPart, JsonStyle, usize),
    /// The answered call's name.
    ResultName,
    /// The answered call's identifier.
    ResultId,
    /// Inside a call: its name.
    CallName,
    /// Inside a call: its identifier.
    CallId,
    /// Inside a call: its arguments as JSON.
    Arguments(JsonStyle, usize),
    /// Inside a call: its arguments one by one: what is written for a text, what for another value, and between two.
    ArgumentLoop(Vec<Part>, Vec<Part>, String),
    /// Inside a loop over arguments: the key.
    Key,
    /// Inside a loop over arguments: the value, as text or as JSON.
    Value(Option<JsonStyle>),
}

/// What is trimmed on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) enum Side {
    /// Nothing.
    #[default]
    Keep,
    /// Line breaks.
    Lines,
    /// All blanks.
    Blanks,
}

/// How a content is printed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Trim {
    /// What is dropped on the left.
    pub(super) left: Side,
    /// What is dropped on the right.
    pub(super) right: Side,
    /// Printed as a JSON string.
    pub(super) json: bool,
}

/// An element that was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Its kind.
    pub(super) kind: Kind,
    /// The message it belongs to.
    pub(super) message: usize,
    /// How its content is printed; `None` where the probe cannot tell.
    pub(super) trim: Option<Trim>,
    /// What is printed for a call.
    pub(super) call: Vec<Part>,
}

/// The text between two neighbouring elements.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    /// The element before.
    pub(super) before: Kind,
    /// The element behind.
    pub(super) behind: Kind,
    /// Facts at the element behind.
    pub(super) facts: Facts,
    /// The text.
    pub(super) parts: Vec<Part>,
}

/// All that one probe shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Observation {
    /// The visible elements in order.
    pub(super) seen: Vec<Seen>,
    /// The gaps, one more than elements.
    pub(super) gaps: Vec<Gap>,
    /// For every element that could have been visible: its kind, the facts, whether it was.
    pub(super) visible: Vec<(Kind, Facts, bool)>,
    /// How the system prompt is printed, if the probe can tell.
    pub(super) system_trim: Option<Trim>,
    /// Facts at every message.
    pub(super) facts: Vec<Facts>,
}

impl Observation {
    /// The facts at a message.
    pub(super) fn facts_of(&self, message: usize) -> Facts {
        self.facts.get(message).copied().unwrap_or_default()
    }
}

/// Raw tokens of an output.
#[derive(Clone, Debug, PartialEq)]
enum Token {
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
    Date(String),
}

/// Why an output could not be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unexplained(pub String);

fn unexplained<T>(why: impl Into<String>) -> Result<T, Unexplained> {
    Err(Unexplained(why.into()))
}

static SENTINEL: LazyLock<Option<regex::Regex>> = LazyLock::new(|| {
    regex::Regex::new(
        r"Qz(?P<role>[USATMH])(?P<n>\d+)Xq|QzV(?P<vcall>\d+)(?P<vkey>[a-c])Xq|83(?P<ncall>\d\d)(?P<nkey>\d\d)19|qzfc(?P<name>\d+)x|qzid(?P<id>\d{5})|qzk(?P<key>[a-c])|qztn(?P<tool>\d+)x|QzD(?P<desc>\d+)Xq|QzP\d+[a-c]Xq|qzp\d+[a-c]|\x02(?P<hook>\d+)\x03",
    )
    .ok()
});

fn tokens(text: &str, hooks: &[Hooked], conversation: &Conversation) -> Result<Vec<Token>, Unexplained> {
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
                None => return unexplained("a mark that stands for nothing"),
            }
            continue;
        } else {
            return unexplained("the schema of tools is written field by field");
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
                    match tokens(&quoted, &[], conversation) {
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
            }
            let calls = conversation.messages.iter().flat_map(|m| &m.tool_calls);
            for (n, call) in calls.enumerate() {
                if value.as_object() == Some(&call.arguments) {
                    return Some(Token::Arguments(n, style(), level));
                }
            }
            None
        }
        Json::Array(_) => conversation
            .tools
            .iter()
            .position(|t| &t["function"]["parameters"]["required"] == value)
            .map(|n| Token::Tool(n, ToolPart::Required, style(), level)),
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

/// What stays the same for a template: whether its calls print their identifiers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallForm {
    /// The name belongs to the call.
    pub(super) name: bool,
    /// The identifier belongs to the call.
    pub(super) id: bool,
}

impl CallForm {
    /// Looks at a probe with two calls in one message.
    pub(super) fn discover(text: &str, hooks: &[Hooked], conversation: &Conversation) -> Self {
        let list = tokens(text, hooks, conversation).unwrap_or_default();
        let second =
            list.iter().position(|t| matches!(t, Token::Arguments(1, ..) | Token::Value(1, ..))).unwrap_or(list.len());
        Self { name: list[..second].contains(&Token::CallName(0)), id: list[..second].contains(&Token::CallId(0)) }
    }
}

/// Explains the output of a probe.
pub(super) fn observe(probe: &Probe, text: &str, hooks: &[Hooked], form: CallForm) -> Result<Observation, Unexplained> {
    let conversation = &probe.conversation;
    let list = tokens(text, hooks, conversation)?;
    let mut out = Observation::default();
    let mut gap: Vec<Part> = Vec::new();
    let mut before = Kind::Start;
    let call_owner: Vec<usize> =
        conversation.messages.iter().enumerate().flat_map(|(i, m)| m.tool_calls.iter().map(move |_| i)).collect();
    let mut at = 0;
    let mut last_place = (0, 0); // message and place in it; elements must come in the conversation's order
    let mut gaps = Vec::new();
    let mut finish_gap = |gap: &mut Vec<Part>, before: &mut Kind, behind: Kind, message: usize| {
        let parts = fold_tools(std::mem::take(gap))?;
        gaps.push(Gap { before: *before, behind, facts: facts(conversation, message), parts });
        *before = behind;
        Ok::<(), Unexplained>(())
    };
    let mut seen: Vec<Seen> = Vec::new();
    let mut pending_results: Vec<usize> = Vec::new();
    let mut system_trim = None;
    while at < list.len() {
        let token = &list[at];
        let pads = pad_state(&list, at, probe.padded);
        match token {
            Token::Lit(text) => {
                let mut text = text.as_str();
                if probe.padded {
                    // Pads belong to the contents beside them.
                    if at > 0 && is_content(&list[at - 1]) {
                        text = without_pad(text, PAD_RIGHT, PAD_RIGHT_INNER, str::strip_prefix);
                    }
                    if list.get(at + 1).is_some_and(is_content) {
                        text = without_pad(text, PAD_LEFT, PAD_LEFT_INNER, str::strip_suffix);
                    }
                    if text.contains(PAD_LEFT_INNER) || text.contains(PAD_RIGHT_INNER) || text.contains("\n\n\n\n\n") {
                        return unexplained("a content is changed at its edges");
                    }
                }
                if !text.is_empty() {
                    gap.push(Part::Lit(text.to_owned()));
                }
            }
            Token::Date(format) => gap.push(Part::Date(format.clone())),
            Token::Tools(style, level) => gap.push(Part::Tools(style.clone(), *level)),
            Token::Tool(n, part, style, level) => {
                // Marked with the tool's number until the loop is recognised.
                gap.push(Part::ToolLoop(vec![Part::Tool(*part, style.clone(), *level)], format!("\u{1}{n}")));
            }
            Token::Content('S', 0, json) => {
                system_trim = pads.map(|(left, right)| Trim { left, right, json: *json });
                // How it is trimmed is filled in once padded probes have told.
                gap.push(Part::System(Trim::default()));
            }
            Token::Content(..) | Token::Thinking(..) => {
                let (kind, message, json, place) = match token {
                    Token::Thinking(n, json) => (Kind::Thinking, *n, *json, 0),
                    Token::Content('U', n, json) => (Kind::User, *n, *json, 1),
                    Token::Content('A', n, json) => (Kind::Answer, *n, *json, 1),
                    Token::Content('T', n, json) => (Kind::Result, *n, *json, 1),
                    Token::Content(_, n, json) => (Kind::Later, *n, *json, 1),
                    _ => (Kind::Later, 0, false, 1),
                };
                if !seen.is_empty() && (message, place) <= last_place {
                    return unexplained("a message is printed twice or out of order");
                }
                last_place = (message, place);
                if kind == Kind::Result {
                    resolve_results(&mut pending_results, conversation, message)?;
                }
                finish_gap(&mut gap, &mut before, kind, message)?;
                seen.push(Seen {
                    kind,
                    message,
                    trim: pads.map(|(left, right)| Trim { left, right, json }),
                    call: Vec::new(),
                });
            }
            Token::CallName(_) | Token::CallId(_) | Token::Arguments(..) | Token::Key(_) | Token::Value(..) => {
                let number = match token {
                    Token::CallName(n) | Token::CallId(n) | Token::Arguments(n, ..) | Token::Value(n, ..) => Some(*n),
                    _ => list[at..].iter().find_map(|t| match t {
                        Token::Value(n, ..) => Some(*n),
                        _ => None,
                    }),
                };
                let Some(n) = number else {
                    return unexplained("an argument's name stands alone");
                };
                let done = seen.iter().filter(|s| s.kind == Kind::Call).count();
                if n < done {
                    // A reference to an earlier call: it belongs to the result that follows.
                    gap.push(match token {
                        Token::CallName(_) => Part::ResultName,
                        Token::CallId(_) => Part::ResultId,
                        _ => return unexplained("an argument is printed twice"),
                    });
                    pending_results.push(n);
                    at += 1;
                    continue;
                }
                if n > done {
                    return unexplained("calls are printed out of order");
                }
                let message = call_owner.get(n).copied().unwrap_or(0);
                if (message, 2 + n) <= last_place {
                    return unexplained("a call is printed before the text of its message");
                }
                last_place = (message, 2 + n);
                let (parts, used) = call_parts(&list[at..], n, form, conversation)?;
                finish_gap(&mut gap, &mut before, Kind::Call, message)?;
                seen.push(Seen { kind: Kind::Call, message, trim: None, call: parts });
                at += used;
                continue;
            }
        }
        at += 1;
    }
    if !pending_results.is_empty() {
        return unexplained("a result's call is named where no result follows");
    }
    finish_gap(&mut gap, &mut before, Kind::End, conversation.messages.len())?;
    out.gaps = gaps;
    for (i, m) in conversation.messages.iter().enumerate() {
        let here = |kind: Kind| seen.iter().any(|s| s.kind == kind && s.message == i);
        let f = facts(conversation, i);
        if m.thinking.is_some() {
            out.visible.push((Kind::Thinking, f, here(Kind::Thinking)));
        }
        match m.role {
            Role::User => out.visible.push((Kind::User, f, here(Kind::User))),
            Role::Tool => out.visible.push((Kind::Result, f, here(Kind::Result))),
            Role::System if i > 0 => out.visible.push((Kind::Later, f, here(Kind::Later))),
            Role::System => {}
            Role::Assistant => {
                if !m.content.is_empty() {
                    out.visible.push((Kind::Answer, f, here(Kind::Answer)));
                }
                let shown = seen.iter().filter(|s| s.kind == Kind::Call && s.message == i).count();
                if !m.tool_calls.is_empty() {
                    if shown != 0 && shown != m.tool_calls.len() {
                        return unexplained("only some calls of a message are printed");
                    }
                    out.visible.push((Kind::Call, f, shown > 0));
                }
            }
        }
    }
    out.seen = seen;
    out.system_trim = system_trim;
    out.facts = (0..conversation.messages.len()).map(|i| facts(conversation, i)).collect();
    Ok(out)
}

fn is_content(token: &Token) -> bool {
    matches!(token, Token::Content(..) | Token::Thinking(..))
}

fn without_pad<'t>(
    text: &'t str,
    whole: &'t str,
    inner: &'t str,
    strip: fn(&'t str, &'t str) -> Option<&'t str>,
) -> &'t str {
    strip(text, whole).or_else(|| strip(text, inner)).unwrap_or(text)
}

/// What the content at a place lost of its pads (left, right); `None` if the probe has none.
fn pad_state(list: &[Token], at: usize, padded: bool) -> Option<(Side, Side)> {
    if !padded {
        return None;
    }
    let side = |token: Option<&Token>, whole: fn(&str) -> bool, inner: fn(&str) -> bool| match token {
        Some(Token::Lit(t)) if whole(t) => Side::Keep,
        Some(Token::Lit(t)) if inner(t) => Side::Lines,
        _ => Side::Blanks,
    };
    let left = at.checked_sub(1).and_then(|b| list.get(b));
    Some((
        side(left, |t| t.ends_with(PAD_LEFT), |t| t.ends_with(PAD_LEFT_INNER)),
        side(list.get(at + 1), |t| t.starts_with(PAD_RIGHT), |t| t.starts_with(PAD_RIGHT_INNER)),
    ))
}

/// Checks that references to calls in front of a result mean the call that it answers.
fn resolve_results(pending: &mut Vec<usize>, conversation: &Conversation, message: usize) -> Result<(), Unexplained> {
    let nth = conversation.messages[..message].iter().filter(|m| m.role == Role::Tool).count();
    if pending.drain(..).any(|n| n != nth) {
        return unexplained("a result names another call than its own");
    }
    Ok(())
}

/// The parts of call `n`, from its first token on, and how many tokens they are.
fn call_parts(
    list: &[Token],
    n: usize,
    form: CallForm,
    conversation: &Conversation,
) -> Result<(Vec<Part>, usize), Unexplained> {
    let Some(call) = conversation.messages.iter().flat_map(|m| &m.tool_calls).nth(n) else {
        return unexplained("a call that nobody made");
    };
    // The call ends with the last of its own tokens: arguments, and the name or identifier if they are part of it.
    let mut end = 0;
    let (mut names, mut ids) = (0, 0);
    for (i, token) in list.iter().enumerate() {
        match token {
            Token::CallName(m) if *m == n && form.name && names == 0 => {
                names = 1;
                end = i + 1;
            }
            Token::CallId(m) if *m == n && form.id && ids == 0 => {
                ids = 1;
                end = i + 1;
            }
            Token::Arguments(m, ..) | Token::Value(m, ..) if *m == n => end = i + 1,
            Token::Lit(_) | Token::Key(_) => {}
            _ => break,
        }
    }
    let own = &list[..end];
    let mut parts = Vec::new();
    let mut at = 0;
    while at < own.len() {
        match &own[at] {
            Token::Lit(text) => parts.push(Part::Lit(text.clone())),
            Token::CallName(_) => parts.push(Part::CallName),
            Token::CallId(_) => parts.push(Part::CallId),
            Token::Arguments(_, style, level) => parts.push(Part::Arguments(style.clone(), *level)),
            Token::Key(_) | Token::Value(..) => {
                let last = own.iter().rposition(|t| matches!(t, Token::Key(_) | Token::Value(..))).unwrap_or(at);
                parts.push(argument_loop(&own[at..=last], call)?);
                at = last;
            }
            _ => return unexplained("something foreign inside a call"),
        }
        at += 1;
    }
    Ok((parts, end))
}

/// Recognises arguments that are written one by one.
fn argument_loop(list: &[Token], call: &crate::ollama::chat::ToolCall) -> Result<Part, Unexplained> {
    let count = call.arguments.len();
    let mut bodies: Vec<(Vec<Part>, bool)> = Vec::new();
    let mut separators: Vec<String> = Vec::new();
    let mut at = 0;
    for (n, (_, value)) in call.arguments.iter().enumerate() {
        if n > 0 {
            match list.get(at) {
                Some(Token::Lit(text)) => separators.push(text.clone()),
                _ => return unexplained("arguments without text between them"),
            }
            at += 1;
        }
        let mut body = Vec::new();
        let end = list[at..].iter().position(|t| matches!(t, Token::Value(..))).map(|p| at + p);
        let Some(end) = end else {
            return unexplained("arguments without their values");
        };
        for token in &list[at..=end] {
            body.push(match token {
                Token::Key(k)
                    if *k == n
                        || call.arguments.keys().position(|key| key.ends_with((b'a' + *k as u8) as char))
                            == Some(n) =>
                {
                    Part::Key
                }
                Token::Value(_, _, style) => Part::Value(style.clone()),
                Token::Lit(text) => Part::Lit(text.clone()),
                _ => return unexplained("arguments in another order"),
            });
        }
        at = end + 1;
        bodies.push((body, value.is_string()));
    }
    if count == 0 || at != list.len() {
        return unexplained("arguments that are not written one by one");
    }
    // What follows a text value directly, like a closing quote, belongs to it: moved out of the separator.
    let separator = separators.first().cloned().unwrap_or_default();
    if bodies.iter().any(|(b, _)| !b.contains(&Part::Key)) {
        return unexplained("arguments without their names");
    }
    let find = |text: bool| bodies.iter().find(|(_, is_text)| *is_text == text).map(|(b, _)| b.clone());
    if bodies.iter().any(|(b, text)| find(*text).as_ref() != Some(b)) || separators.iter().any(|s| *s != separator) {
        return unexplained("arguments that are not all written alike");
    }
    Ok(Part::ArgumentLoop(find(true).unwrap_or_default(), find(false).unwrap_or_default(), separator))
}

/// Folds the marked parts of single tools into one loop, and joins literals.
fn fold_tools(parts: Vec<Part>) -> Result<Vec<Part>, Unexplained> {
    let number = |p: &Part| match p {
        Part::ToolLoop(_, mark) => mark.strip_prefix('\u{1}').and_then(|n| n.parse::<usize>().ok()),
        _ => None,
    };
    let marked: Vec<(usize, usize)> = parts.iter().enumerate().filter_map(|(i, p)| Some((i, number(p)?))).collect();
    let (Some(first), Some(last)) = (marked.first(), marked.last()) else {
        return Ok(join(parts));
    };
    let count = marked.iter().map(|m| m.1).max().unwrap_or(0) + 1;
    let mut bodies = Vec::new();
    let mut separators: Vec<String> = Vec::new();
    let mut previous_end: Option<usize> = None;
    for tool in 0..count {
        let own: Vec<usize> = marked.iter().filter(|m| m.1 == tool).map(|m| m.0).collect();
        let (Some(&from), Some(&to)) = (own.first(), own.last()) else {
            return unexplained("a tool is left out");
        };
        if let Some(end) = previous_end {
            if from <= end {
                return unexplained("tools are printed more than once");
            }
            match join(parts[end + 1..from].to_vec()).as_slice() {
                [] => separators.push(String::new()),
                [Part::Lit(text)] => separators.push(text.clone()),
                _ => return unexplained("something else between two tools"),
            }
        }
        previous_end = Some(to);
        let body: Vec<Part> = parts[from..=to]
            .iter()
            .map(|p| match p {
                Part::ToolLoop(inner, _) => inner[0].clone(),
                other => other.clone(),
            })
            .collect();
        bodies.push(join(body));
    }
    if bodies.iter().any(|b| *b != bodies[0]) || separators.iter().any(|s| *s != separators[0]) {
        return unexplained("tools are not all printed alike");
    }
    let body = bodies.swap_remove(0);
    // With a single tool the text between two cannot be seen; it is filled in from other probes.
    let separator = separators.first().cloned().unwrap_or_else(|| "\u{1}".into());
    let mut out: Vec<Part> = parts[..first.0].to_vec();
    out.push(Part::ToolLoop(body, separator));
    out.extend_from_slice(&parts[last.0 + 1..]);
    Ok(join(out))
}

/// Joins neighbouring literals.
pub(super) fn join(parts: Vec<Part>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in parts {
        match (out.last_mut(), part) {
            (_, Part::Lit(text)) if text.is_empty() => {}
            (Some(Part::Lit(last)), Part::Lit(text)) => last.push_str(&text),
            (_, part) => out.push(part),
        }
    }
    out
}
