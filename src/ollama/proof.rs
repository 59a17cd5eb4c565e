//! The proof: a TEMPLATE and the Jinja it stands for, on conversations that neither inference nor its author saw.

use super::chat::{Conversation, Message, Role, ToolCall};
use super::go::GoError;
use super::infer::{Abilities, Scope, candidates};
use super::jinja::ChatTemplate;
use super::python::Date;
use super::recognise::Signposts;
use super::render::OllamaTemplate;
use serde_json::{Value as Json, json};

/// The day on which proofs are held: one whose month and day have a leading zero.
pub const PROOF_DATE: Date = Date { year: 2026, month: 3, day: 7 };

/// A conversation on which the two differ.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The conversation.
    pub conversation: Conversation,
    /// What the Jinja prints, without a BOS that the runner adds.
    pub expected: String,
    /// What the TEMPLATE prints, or why it failed.
    pub got: Result<String, GoError>,
}

/// What a proof found.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// Conversations that the Jinja accepts.
    pub judged: usize,
    /// The first that differs.
    pub mismatch: Option<Box<Mismatch>>,
}

/// A TEMPLATE that was proven, and for what.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The Go template.
    pub template: String,
    /// The conversations for which it is exact.
    pub scope: Scope,
    /// How many held-out conversations agreed.
    pub judged: usize,
    /// What Ollama looks for in answers; the template says it.
    pub signposts: Signposts,
}

/// The result of a translation.
#[derive(Clone, Debug, Default)]
pub struct Translation {
    /// What the template can do.
    pub abilities: Abilities,
    /// The proven TEMPLATE of the widest scope, if there is one.
    pub proven: Option<Proven>,
    /// Why wider scopes were not reached, widest first.
    pub obstacles: Vec<(Scope, String)>,
}

/// Translates a Jinja template, giving up one ability after the other until a proof succeeds.
///
/// # Errors
/// The template's own words if it does not take the plainest conversation.
pub fn translate(template: &ChatTemplate, add_bos: bool) -> Result<Translation, super::jinja::JinjaError> {
    template.set_date(PROOF_DATE);
    let abilities = Abilities::discover(template, add_bos)?;
    let mut out = Translation { abilities: abilities.clone(), ..Translation::default() };
    let widest = abilities.scope;
    let mut scopes: Vec<Scope> = Vec::new();
    for (tools, thinking, later_system) in [
        (true, true, true),
        (true, true, false),
        (true, false, false),
        (false, true, true),
        (false, true, false),
        (false, false, true),
        (false, false, false),
    ] {
        let scope = Scope {
            system: widest.system,
            later_system: widest.later_system && later_system,
            thinking: widest.thinking && thinking,
            tools: widest.tools && tools,
        };
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    for scope in scopes {
        match translate_for(template, &abilities, scope) {
            Ok(proven) => {
                out.proven = Some(proven);
                break;
            }
            Err(why) => out.obstacles.push((scope, why)),
        }
    }
    Ok(out)
}

/// Translates a Jinja template for the conversations of one scope.
///
/// # Errors
/// Why there is no TEMPLATE that is proven, in words for the report.
pub fn translate_for(template: &ChatTemplate, abilities: &Abilities, scope: Scope) -> Result<Proven, String> {
    let mut obstacle = None;
    let signposts = Signposts::find(template, abilities, scope.tools);
    for candidate in candidates(template, abilities, scope) {
        let why = match candidate.map(|candidate| signposts.put_before(&candidate)) {
            Ok(candidate) => match prove(template, abilities, &candidate, scope) {
                Ok(Proof { judged: 0, .. }) => "no conversation to judge".into(),
                Ok(Proof { mismatch: Some(mismatch), .. }) => describe(&mismatch),
                Ok(proof) => return Ok(Proven { template: candidate, scope, judged: proof.judged, signposts }),
                Err(error) => error.to_string(),
            },
            Err(why) => why,
        };
        obstacle.get_or_insert(why);
    }
    Err(obstacle.unwrap_or_default())
}

/// A mismatch in one line.
pub fn describe(mismatch: &Mismatch) -> String {
    let roles: Vec<&str> = mismatch.conversation.messages.iter().map(|m| m.role.as_str()).collect();
    let got = match &mismatch.got {
        Ok(text) => text,
        Err(error) => return format!("on {}: {error}", roles.join(", ")),
    };
    let at = super::stops::common_prefix(&mismatch.expected, got).len();
    let clip = |s: &str| -> String { s.get(at..).unwrap_or_default().chars().take(40).collect() };
    format!("on {}: {:?} should follow, not {:?}", roles.join(", "), clip(&mismatch.expected), clip(got))
}

/// Compares a TEMPLATE with the Jinja on every held-out conversation of a scope.
///
/// # Errors
/// If Ollama would refuse the TEMPLATE.
pub fn prove(template: &ChatTemplate, abilities: &Abilities, candidate: &str, scope: Scope) -> Result<Proof, GoError> {
    let go = OllamaTemplate::parse(candidate)?;
    let mut proof = Proof::default();
    for conversation in held_out(scope, abilities.dialect.think_switch.is_some()) {
        let Ok(text) = template.render(&conversation, &abilities.dialect) else {
            continue;
        };
        proof.judged += 1;
        let expected = abilities.expected(template, &text);
        let got = go.render(&conversation, PROOF_DATE);
        if got.as_deref() != Ok(expected) {
            proof.mismatch = Some(Box::new(Mismatch { expected: expected.to_owned(), conversation, got }));
            break;
        }
    }
    Ok(proof)
}

/// Contents as people write them, some with blanks around, quotes, braces, other scripts.
const TEXTS: &[&str] = &[
    "What is the capital of France?",
    "  two blanks in front",
    "a line break behind\n",
    "\n\nSeveral\n\nlines, \"quotes\" and {{ braces }} {% too %}\n",
    "Ünïcödé, 日本語, emoji 🙂 and <b>markup</b> & more",
    "1. one\n2. two\n\t- nested\n",
    "x",
    " \t mixed blanks \n\t",
    "def f(x):\n    return {\"a\": [x, None]}\n",
    "It's a 'quoted' \\ backslash",
];

fn text(n: usize) -> String {
    TEXTS[n % TEXTS.len()].to_owned()
}

pub(super) fn sample_tools(count: usize) -> Vec<Json> {
    let all = [
        json!({"type": "function", "function": {"name": "get_weather", "description": "Tells the weather at a place.",
            "parameters": {"type": "object", "properties": {
                "city": {"type": "string", "description": "The \"city\", e.g. Paris"},
                "unit": {"type": "string", "description": "Unit of temperature", "enum": ["celsius", "fahrenheit"]}},
                "required": ["city"]}}}),
        json!({"type": "function", "function": {"name": "add", "description": "Adds two numbers.",
            "parameters": {"type": "object", "properties": {
                "a": {"type": "integer", "description": "First summand"},
                "b": {"type": "integer", "description": "Second summand"}},
                "required": ["a", "b"]}}}),
        json!({"type": "function", "function": {"name": "plan_trip", "description": "Plans a trip.",
            "parameters": {"type": "object", "properties": {
                "budget": {"type": "number", "description": "Most that it may cost"},
                "by_train": {"type": "boolean", "description": "Whether to go by train."},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Days of the month"}}}}}),
        json!({"type": "function", "function": {"name": "search", "description": "Looks up the user's query & lists <results>.",
            "parameters": {"type": "object", "properties": {
                "limit": {"type": "integer", "description": "How many"},
                "query": {"type": "string", "description": "What to look for"},
                "tags": {"type": "array", "items": {"type": "string"}, "description": "Tags"}},
                "required": ["query"]}}}),
    ];
    all.into_iter().take(count).collect()
}

fn sample_call(n: usize) -> ToolCall {
    let arguments = match n % 5 {
        0 => json!({"city": "Paris", "unit": "celsius"}),
        1 => json!({"a": 2, "b": 40}),
        2 => json!({"limit": 5, "query": "Rust \"book\" <free> & it's more", "tags": ["a", "b"]}),
        3 => json!({"city": "L'Aquila"}),
        _ => json!({"city": "São Paulo", "options": {"days": 2.5, "hours": [6, 18], "sky": true, "wind": null}}),
    };
    ToolCall {
        id: format!("call0000{}", n % 10),
        name: ["get_weather", "add", "search", "get_weather", "get_weather"][n % 5].into(),
        arguments: arguments.as_object().cloned().unwrap_or_default(),
    }
}

const PLAIN: &[&str] = &["U", "UaU", "UaUaU", "UaUaUaUaU", "Ua", "UaUa", "UaUaUaUaUa"];
const LATER: &[&str] = &["UaMU", "UaUaMUaU", "UaMUaMU"];
const THOUGHTS: &[&str] = &["UhU", "UhUaUhU", "Uh", "UhUh", "UaUhUaU", "UhUhUhUhU", "UhUa"];
const CALLS: &[&str] = &[
    "UcT",
    "UcTaU",
    "UcTcTaU",
    "UdTT",
    "UdTTaU",
    "UbTaU",
    "UbT",
    "UaUcTaUdTTaU",
    "UcTa",
    "UcTaUcT",
    "UcTcTcTaU",
    "UaUaUcTaU",
];
const THOUGHT_CALLS: &[&str] =
    &["UgTaU", "UgT", "UgThU", "UgTgT", "UgThUhU", "UhUgT", "UeTTh", "UgTgThU", "UfThU", "UcThU"];

/// The held-out conversations of a scope. Letters: U user, a answer, h answer with thinking, M later system, c call,
/// d two calls, b text and call, g thinking and call, e thinking and two calls, f all three, T result.
pub fn held_out(scope: Scope, switch: bool) -> Vec<Conversation> {
    let mut shapes: Vec<(&str, bool)> = Vec::new();
    let mut add = |list: &[&'static str], calls: bool| shapes.extend(list.iter().map(|s| (*s, calls)));
    add(PLAIN, false);
    if scope.later_system {
        add(LATER, false);
    }
    if scope.thinking {
        add(THOUGHTS, false);
    }
    if scope.tools {
        add(CALLS, true);
        if scope.thinking {
            add(THOUGHT_CALLS, true);
        }
    }
    let thinks: &[Option<bool>] = if scope.thinking && switch { &[None, Some(true), Some(false)] } else { &[None] };
    let mut out = Vec::new();
    let mut seed = 0;
    for (shape, calls) in shapes {
        for system in [false, true] {
            if system && !scope.system {
                continue;
            }
            for &think in thinks {
                let counts: &[usize] = match (scope.tools, calls) {
                    (true, true) => &[1, 4],
                    (true, false) => &[0, 1, 2, 3, 4],
                    _ => &[0],
                };
                for &count in counts {
                    seed += 1;
                    out.push(sample(shape, system, think, count, seed));
                }
            }
        }
    }
    out
}

fn sample(shape: &str, system: bool, think: Option<bool>, tools: usize, seed: usize) -> Conversation {
    let mut n = seed * 7;
    let mut next = || {
        n += 3;
        text(n)
    };
    let mut messages = Vec::new();
    if system {
        messages.push(Message::new(Role::System, next()));
    }
    let (mut calls, mut pending) = (seed, Vec::new());
    for letter in shape.chars() {
        let role = match letter {
            'U' => Role::User,
            'M' => Role::System,
            'T' => Role::Tool,
            _ => Role::Assistant,
        };
        let silent = matches!(letter, 'c' | 'd' | 'g' | 'e');
        let mut message = Message::new(role, if silent { String::new() } else { next() });
        if matches!(letter, 'h' | 'g' | 'e' | 'f') {
            message.thinking = Some(next());
        }
        let count = match letter {
            'c' | 'b' | 'g' | 'f' => 1,
            'd' | 'e' => 2,
            _ => 0,
        };
        for _ in 0..count {
            let call = sample_call(calls);
            calls += 1;
            pending.push((call.name.clone(), call.id.clone()));
            message.tool_calls.push(call);
        }
        if role == Role::Tool && !pending.is_empty() {
            let (name, id) = pending.remove(0);
            message.tool_name = Some(name);
            message.tool_call_id = Some(id);
        }
        messages.push(message);
    }
    // A prompt that ends with an answer is continued: its last blanks would be part of what is written next.
    if let Some(last) = messages.last_mut().filter(|m| m.role == Role::Assistant) {
        last.content = last.content.trim_end().to_owned();
    }
    Conversation { messages, tools: sample_tools(tools), think }
}
