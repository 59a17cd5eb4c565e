//! Recognising how a call is written.

use super::part::Part;
use super::tokens::{Token, Unexplained, tokens, unexplained};
use crate::ollama::chat::{Conversation, ToolCall};
use crate::ollama::jinja::Hooked;

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

/// The parts of call `n`, from its first token on, and how many tokens they are.
pub(super) fn call_parts(
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
fn argument_loop(list: &[Token], call: &ToolCall) -> Result<Part, Unexplained> {
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
