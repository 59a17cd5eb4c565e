//! Recognising how a call is written.

use super::part::{Part, ValueForms};
use super::probe::{single, with_arguments};
use super::tokens::{Token, Unexplained, tokens, unexplained};
use crate::ollama::chat::{Conversation, Dialect, ToolCall};
use crate::ollama::jinja::{ChatTemplate, JsonView};
use crate::ollama::python::{JsonStyle, json_dumps, to_str};
use crate::ollama::stops::{common_prefix, common_suffix};
use serde_json::{Map, Value as Json, json};

/// What stays the same for all calls of a template.
#[derive(Clone, Debug, Default)]
pub(super) struct CallForm {
    /// The name belongs to the call.
    name: bool,
    /// The identifier belongs to the call.
    id: bool,
    /// Where arguments are written one by one: what stands behind a text, and behind another value.
    closings: [Vec<Part>; 2],
    /// How values other than texts and numbers are printed.
    forms: Option<ValueForms>,
}

impl CallForm {
    /// Looks at probes with calls.
    pub(super) fn discover(template: &ChatTemplate, dialect: &Dialect, view: JsonView) -> Self {
        let mut form = Self { name: true, ..Self::default() };
        let look = |conversation: &Conversation| {
            let (text, hooks) = template.observe(conversation, dialect, view).ok()?;
            tokens(&text, &hooks, view, conversation).ok()
        };
        // In a message with two calls, what stands before the second's arguments may be the first's.
        for shape in ["U C2 T T", "U C1 T"] {
            if let Some(list) = look(&single(shape, false, 2, None)) {
                let second = list.iter().position(|t| matches!(t, Token::Arguments(1, ..) | Token::Value(1, ..)));
                let first = &list[..second.unwrap_or(list.len())];
                form.name = first.contains(&Token::CallName(0));
                form.id = first.contains(&Token::CallId(0));
                break;
            }
        }
        let behind = |value: Json| {
            let list = look(&with_arguments(&[("qzka", value), ("qzkb", json!("QzV0bXq"))]))?;
            behind_first_value(&list)
        };
        if let (Some(text), Some(other)) = (behind(json!("QzV0aXq")), behind(json!(83_000_019))) {
            form.closings = closings(text, other);
        }
        form.forms = value_forms(template, dialect);
        form
    }
}

/// What is printed between the value of the first argument and the name of the second.
fn behind_first_value(list: &[Token]) -> Option<Vec<Part>> {
    let value = list.iter().position(|t| matches!(t, Token::Value(0, 0, _)))?;
    let mut parts = Vec::new();
    for token in &list[value + 1..] {
        parts.push(match token {
            Token::Lit(text) => Part::Lit(text.clone()),
            Token::Key(0) => Part::Key,
            Token::Key(1) => return Some(parts),
            _ => return None,
        });
    }
    None
}

/// Of what stands behind a text and behind another value, the end that both share is what separates arguments; the
/// rest closes the value.
fn closings(text: Vec<Part>, other: Vec<Part>) -> [Vec<Part>; 2] {
    let last = |parts: &[Part]| match parts.last() {
        Some(Part::Lit(text)) => text.clone(),
        _ => String::new(),
    };
    let (a, b) = (last(&text), last(&other));
    let shared = common_suffix(&a, &b).len();
    let closing = |mut parts: Vec<Part>| {
        if let Some(Part::Lit(text)) = parts.last_mut() {
            text.truncate(text.len() - shared);
        }
        parts.retain(|p| !matches!(p, Part::Lit(t) if t.is_empty()));
        parts
    };
    [closing(text), closing(other)]
}

/// How a template prints values of the types that the other probes lack; `None` if it does not print them in any of
/// the known ways.
fn value_forms(template: &ChatTemplate, dialect: &Dialect) -> Option<ValueForms> {
    let text = |value: Json| template.render(&with_arguments(&[("qzka", value)]), dialect).ok();
    let (list, map) = (json!(["QzWa", "QzWb"]), json!({"QzWa": "QzWb", "QzWc": ["QzWd"]}));
    let form = |value: &Json| -> Option<Option<JsonStyle>> {
        let text = text(value.clone())?;
        let value = minijinja::Value::from_serialize(value);
        let compact = JsonStyle { item_separator: ",".into(), key_separator: ":".into(), ..JsonStyle::default() };
        let style = [JsonStyle::default(), compact].into_iter().find(|s| text.contains(&json_dumps(&value, s)));
        match style {
            Some(style) => Some(Some(style)),
            None => text.contains(&to_str(&value)).then_some(None),
        }
    };
    let (yes, no, null) = (text(json!(true))?, text(json!(false))?, text(Json::Null));
    let at = common_prefix(&yes, &no).len();
    Some(ValueForms {
        list: form(&list)?,
        map: form(&map)?,
        python_bool: yes[at..].starts_with('T'),
        python_null: null.is_some_and(|text| text.get(at..).is_some_and(|t| t.starts_with('N'))),
    })
}

/// A call as it was printed.
pub(super) struct SeenCall {
    /// What it consists of.
    pub(super) parts: Vec<Part>,
    /// How many tokens those are.
    pub(super) used: usize,
    /// Text at the beginning of the next token that still belongs to it.
    pub(super) closing: String,
}

/// The parts of call `n`, from its first token on.
pub(super) fn call_parts(
    list: &[Token],
    n: usize,
    form: &CallForm,
    conversation: &Conversation,
) -> Result<SeenCall, Unexplained> {
    let Some(call) = conversation.messages.iter().flat_map(|m| &m.tool_calls).nth(n) else {
        return unexplained("a call that nobody made");
    };
    // The call ends with the last of its own tokens: arguments, and the name or identifier if they are part of it.
    let mut end = 0;
    let (mut names, mut ids) = (0, 0);
    let mut open = false; // between the first and the last of arguments written one by one
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
            Token::Arguments(m, ..) | Token::Value(m, ..) if *m == n => {
                end = i + 1;
                open = true;
            }
            Token::Key(_) if open && form.closings[0].contains(&Part::Key) => end = i + 1,
            Token::Lit(_) | Token::Key(_) => {}
            _ => break,
        }
    }
    let own = &list[..end];
    let mut parts = Vec::new();
    let mut closing = String::new();
    let mut at = 0;
    while at < own.len() {
        match &own[at] {
            Token::Lit(text) => parts.push(Part::Lit(text.clone())),
            Token::CallName(_) => parts.push(Part::CallName),
            Token::CallId(_) => parts.push(Part::CallId),
            Token::Arguments(_, style, level) => parts.push(Part::Arguments(style.clone(), *level)),
            Token::Key(_) | Token::Value(..) => {
                let last = own.iter().rposition(|t| matches!(t, Token::Key(_) | Token::Value(..))).unwrap_or(at);
                let (part, rest) = argument_loop(&own[at..=last], call, form)?;
                parts.push(part);
                at = last;
                closing = rest;
            }
            _ => return unexplained("something foreign inside a call"),
        }
        at += 1;
    }
    // What closes the last argument stands in the text behind it, inside of the call or not.
    let mut behind_loop = parts.iter().position(|p| matches!(p, Part::ArgumentLoop(..))).map_or(0, |p| p + 1);
    if behind_loop == 0 {
        behind_loop = parts.len();
    }
    if let Some(Part::Lit(text)) = parts.get_mut(behind_loop) {
        match text.strip_prefix(closing.as_str()) {
            Some(rest) => *text = rest.to_owned(),
            None => return unexplained("the last argument is closed in another way"),
        }
        closing.clear();
    }
    Ok(SeenCall { parts, used: end, closing })
}

/// The name of the `n`th argument's key among those of a call.
fn is_key(k: usize, n: usize, arguments: &Map<String, Json>) -> bool {
    k == n || arguments.keys().position(|key| key.ends_with((b'a' + k as u8) as char)) == Some(n)
}

/// Recognises arguments that are written one by one; also returns the text that closes the last of them.
fn argument_loop(list: &[Token], call: &ToolCall, form: &CallForm) -> Result<(Part, String), Unexplained> {
    let count = call.arguments.len();
    let mut bodies: Vec<(Vec<Part>, bool)> = Vec::new();
    let mut separators: Vec<String> = Vec::new();
    let mut at = 0;
    let mut rest = String::new();
    for (n, value) in call.arguments.values().enumerate() {
        let end = list[at..].iter().position(|t| matches!(t, Token::Value(..))).map(|p| at + p);
        let Some(end) = end else {
            return unexplained("arguments without their values");
        };
        let mut body = Vec::new();
        for token in &list[at..=end] {
            body.push(match token {
                Token::Key(k) if is_key(*k, n, &call.arguments) => Part::Key,
                Token::Value(_, _, None) => Part::Value(None),
                Token::Value(_, _, Some(style)) => match &form.forms {
                    Some(forms) if *style == JsonStyle::default() => Part::Printed(forms.clone()),
                    _ => Part::Value(Some(style.clone())),
                },
                Token::Lit(text) => Part::Lit(text.clone()),
                _ => return unexplained("arguments in another order"),
            });
        }
        at = end + 1;
        let closing = &form.closings[usize::from(!value.is_string())];
        let mut text: Option<String> = None; // of the literal at hand, what is not used yet
        for part in closing {
            match (part, list.get(at)) {
                (Part::Lit(close), Some(Token::Lit(found))) => match found.strip_prefix(close.as_str()) {
                    Some(behind) => {
                        if behind.is_empty() {
                            at += 1;
                        } else {
                            text = Some(behind.to_owned());
                        }
                    }
                    None => return unexplained("arguments that are not all closed alike"),
                },
                // The text that closes the last argument stands behind the call's last token.
                (Part::Lit(close), None) => rest.clone_from(close),
                (Part::Key, Some(Token::Key(k))) if is_key(*k, n, &call.arguments) => at += 1,
                _ => return unexplained("arguments that are not all closed alike"),
            }
        }
        body.extend(closing.iter().cloned());
        if n + 1 < count {
            let found = match list.get(at) {
                Some(Token::Lit(text)) => text.clone(),
                _ => String::new(),
            };
            let separator = text.unwrap_or(found);
            at += usize::from(!separator.is_empty());
            separators.push(separator);
        }
        bodies.push((body, value.is_string()));
    }
    if count == 0 || at != list.len() {
        return unexplained("arguments that are not written one by one");
    }
    let separator = separators.first().cloned().unwrap_or_default();
    if bodies.iter().any(|(b, _)| !b.contains(&Part::Key)) {
        return unexplained("arguments without their names");
    }
    let find = |text: bool| bodies.iter().find(|(_, is_text)| *is_text == text).map(|(b, _)| b.clone());
    if bodies.iter().any(|(b, text)| find(*text).as_ref() != Some(b)) || separators.iter().any(|s| *s != separator) {
        return unexplained("arguments that are not all written alike");
    }
    Ok((Part::ArgumentLoop(find(true).unwrap_or_default(), find(false).unwrap_or_default(), separator), rest))
}
