//! Probe conversations: every shape that a chat takes, with contents that can be found again in the output.

use crate::ollama::chat::{Conversation, Message, Role, ToolCall};
use serde_json::{Value as Json, json};

/// Blanks put before every content of a padded probe, to see who trims what. More line breaks than a template
/// prints itself come first, so that it shows if only these are trimmed.
pub(super) const PAD_LEFT: &str = "\n\n\n\n\n \t\n";
/// What is left of them when line breaks are trimmed.
pub(super) const PAD_LEFT_INNER: &str = " \t\n";
/// Blanks put behind every content of a padded probe.
pub(super) const PAD_RIGHT: &str = "\n\t \n\n\n\n\n";
/// What is left of them when line breaks are trimmed.
pub(super) const PAD_RIGHT_INNER: &str = "\n\t ";

/// A conversation to observe a template with.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// What is rendered.
    pub conversation: Conversation,
    /// Whether the contents are padded with blanks.
    pub padded: bool,
}

/// Which kinds of conversation are in the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Scope {
    /// A system prompt in front.
    pub system: bool,
    /// System messages in the middle.
    pub later_system: bool,
    /// Answers with thinking, and the switch.
    pub thinking: bool,
    /// Tools, calls and results.
    pub tools: bool,
}

/// The sentinel content of message `i`.
pub(super) fn content_sentinel(role: Role, i: usize, later: bool) -> String {
    let letter = match role {
        Role::System if later => 'M',
        Role::System => 'S',
        Role::User => 'U',
        Role::Assistant => 'A',
        Role::Tool => 'T',
    };
    format!("Qz{letter}{i}Xq")
}

/// Shapes as words, one per message: U user, A answer, H thinking (then A), C call(s) with a count, T result,
/// M later system. `HA` is one message, as is `AC`.
const PLAIN: &[&str] = &["U", "U A U", "U A U A U", "U A U A U A U", "U A", "U A U A", "U A U A U A"];
const LATER: &[&str] = &["U A M U", "U A M U A U", "U A U A M U", "U A M U A M U"];
const CALLS: &[&str] = &[
    "U C1 T",
    "U C1 T A U",
    "U C1 T A",
    "U C1 T C1 T",
    "U C1 T C1 T A U",
    "U C2 T T",
    "U C2 T T A U",
    "U C2 T T C1 T",
    "U AC1 T",
    "U AC1 T A U",
    "U AC2 T T",
    "U AC1 T AC1 T",
    "U A U C1 T",
    "U A U C1 T A U",
    "U A U C2 T T A U",
    "U C1 T A U C1 T",
    "U C1 T A U C1 T A U",
    "U C3 T T T A U",
    "U C1 T A U A U",
];
const THOUGHTS: &[&str] = &[
    "U HA U",
    "U HA U A U",
    "U A U HA U",
    "U HA U HA U",
    "U HA U HA U HA U",
    "U HA",
    "U HA U HA",
    "U A U HA",
    "U HA U A",
];
const THOUGHT_CALLS: &[&str] = &[
    "U HC1 T",
    "U HC1 T A U",
    "U HC1 T HA U",
    "U HAC1 T",
    "U HAC1 T HA U",
    "U HC2 T T",
    "U HC2 T T HA U",
    "U HC1 T HC1 T",
    "U HC1 T HC1 T HA U HA U",
    "U HA U HC1 T",
    "U HA U HC1 T HA U",
    "U C1 T HA U",
    "U HC1 T HA U HC1 T",
    "U HC1 T HA",
    "U HAC2 T T HA U A U",
];

/// The tools that are on offer in probes: strings that can be found, in every place a schema has.
pub(super) fn tools(count: usize) -> Vec<Json> {
    (0..count)
        .map(|n| {
            let mut properties = serde_json::Map::new();
            let kinds: &[(&str, &str)] = match n {
                0 => &[("a", "string"), ("b", "integer")],
                1 => &[("a", "boolean")],
                _ => &[("a", "number"), ("b", "string"), ("c", "string")],
            };
            for (k, kind) in kinds {
                properties.insert(format!("qzp{n}{k}"), json!({"type": kind, "description": format!("QzP{n}{k}Xq")}));
            }
            let required: Vec<String> = kinds.iter().take(1 + n / 2).map(|(k, _)| format!("qzp{n}{k}")).collect();
            json!({"type": "function", "function": {
                "name": format!("qztn{n}x"),
                "description": format!("QzD{n}Xq"),
                "parameters": {"type": "object", "properties": properties, "required": required},
            }})
        })
        .collect()
}

/// Builds the conversation of a shape.
fn conversation(shape: &str, system: bool, tools: Vec<Json>, think: Option<bool>, padded: bool) -> Conversation {
    let pad = |text: String| {
        if padded { format!("{PAD_LEFT}{text}{PAD_RIGHT}") } else { text }
    };
    let mut messages = Vec::new();
    if system {
        messages.push(Message::new(Role::System, pad(content_sentinel(Role::System, 0, false))));
    }
    let mut calls = 0;
    let mut answered = 0;
    for word in shape.split(' ') {
        let i = messages.len();
        let first = word.chars().next().unwrap_or('U');
        let role = match first {
            'U' => Role::User,
            'M' => Role::System,
            'T' => Role::Tool,
            _ => Role::Assistant,
        };
        let mut message = Message::new(role, "");
        if role != Role::Assistant || word.contains('A') {
            message.content = pad(content_sentinel(role, i, true));
        }
        if word.contains('H') {
            message.thinking = Some(pad(format!("QzH{i}Xq")));
        }
        if let Some((_, count)) = word.split_once('C') {
            for _ in 0..count.parse().unwrap_or(1) {
                message.tool_calls.push(call(calls));
                calls += 1;
            }
        }
        if role == Role::Tool {
            message.tool_name = Some(format!("qzfc{answered}x"));
            message.tool_call_id = Some(format!("qzid{answered:05}"));
            answered += 1;
        }
        messages.push(message);
    }
    Conversation { messages, tools, think }
}

/// The `n`th call of a conversation: one to three arguments, strings and numbers.
fn call(n: usize) -> ToolCall {
    let text = |k: char| json!(format!("QzV{n}{k}Xq"));
    let number = |k: usize| json!(83_000_019 + 10_000 * n + 100 * k);
    let arguments = match n % 3 {
        0 => vec![("qzka", text('a')), ("qzkb", text('b')), ("qzkc", number(2))],
        1 => vec![("qzka", number(0)), ("qzkb", text('b'))],
        _ => vec![("qzka", text('a'))],
    };
    ToolCall {
        id: format!("qzid{n:05}"),
        name: format!("qzfc{n}x"),
        arguments: arguments.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    }
}

/// Every probe of a scope. `switch`: whether the template has a variable that switches thinking.
pub(super) fn probes(scope: Scope, switch: bool) -> Vec<Probe> {
    let mut out = Vec::new();
    let mut add = |shapes: &[&str], tool_counts: &[usize], thinks: &[Option<bool>]| {
        for shape in shapes {
            for system in [false, true] {
                if system && !scope.system {
                    continue;
                }
                for &count in tool_counts {
                    for &think in thinks {
                        let short = shape.split(' ').count() + usize::from(system) <= 5;
                        for padded in [false, true] {
                            if padded && (!short || count > 2) {
                                continue;
                            }
                            out.push(Probe {
                                conversation: conversation(shape, system, tools(count), think, padded),
                                padded,
                            });
                        }
                    }
                }
            }
        }
    };
    let thinks: &[Option<bool>] = if scope.thinking && switch { &[None, Some(true), Some(false)] } else { &[None] };
    let counts: &[usize] = if scope.tools { &[0, 1, 2, 3] } else { &[0] };
    let with_tools: &[usize] = if scope.tools { &[0, 2] } else { &[0] };
    add(PLAIN, counts, thinks);
    if scope.later_system {
        add(LATER, with_tools, thinks);
    }
    if scope.thinking {
        add(THOUGHTS, with_tools, thinks);
    }
    if scope.tools {
        add(CALLS, with_tools, thinks);
    }
    if scope.tools && scope.thinking {
        add(THOUGHT_CALLS, with_tools, thinks);
    }
    out
}

/// One probe of a shape, for finding out what a template can do.
pub(super) fn single(shape: &str, system: bool, tool_count: usize, think: Option<bool>) -> Conversation {
    conversation(shape, system, tools(tool_count), think, false)
}

/// A conversation with one call of two tools on offer, with these arguments.
pub(super) fn with_arguments(arguments: &[(&str, Json)]) -> Conversation {
    let mut out = single("U C1 T", false, 2, None);
    for call in out.messages.iter_mut().flat_map(|m| &mut m.tool_calls) {
        call.arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    }
    out
}
