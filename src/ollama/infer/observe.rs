//! From a rendered probe to what it says: the elements that are visible, and the text between them.

use super::calls::{CallForm, call_parts};
use super::learn::{Facts, facts};
use super::part::{Counter, Kind, Part, Side, Trim};
use super::probe::{PAD_LEFT, PAD_LEFT_INNER, PAD_RIGHT, PAD_RIGHT_INNER, Probe};
use super::schema::ToolProgram;
use super::tokens::{Token, Unexplained, tokens, unexplained};
use super::tools::fold_tools;
use crate::ollama::chat::{Conversation, Role};
use crate::ollama::jinja::{Hooked, JsonView};

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
    /// Where a call stands among all.
    pub(super) counts: Counts,
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
    /// How many calls and results came before the element behind, in the conversation.
    pub(super) counts: Counts,
}

/// The place of a call or a result among all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Calls before it.
    pub(super) calls: usize,
    /// Calls of the same message before it.
    pub(super) calls_of_message: usize,
    /// Results before it.
    pub(super) results: usize,
}

impl Counts {
    /// What a counter shows here.
    pub(super) fn value(&self, counter: Counter) -> usize {
        match counter {
            Counter::Calls(from) => self.calls + from,
            Counter::CallsOfMessage(from) => self.calls_of_message + from,
            Counter::Results(from) => self.results + from,
        }
    }
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
    /// Whether of several calls of a message only the first is shown; `None` where no message has several.
    pub(super) first_call_only: Option<bool>,
    /// What the names and identifiers in front of results can be.
    pub(super) references: References,
}

/// What a call is to the result that names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct References {
    /// The call that the result answers.
    pub(super) own: bool,
    /// The first call of the last message with calls.
    pub(super) first_of_last: bool,
}

impl Default for References {
    fn default() -> Self {
        Self { own: true, first_of_last: true }
    }
}

impl Observation {
    /// The facts at a message.
    pub(super) fn facts_of(&self, message: usize) -> Facts {
        self.facts.get(message).copied().unwrap_or_default()
    }
}

/// Explains the output of a probe.
pub(super) fn observe(
    probe: &Probe,
    text: &str,
    (hooks, view): (&[Hooked], JsonView),
    form: &CallForm,
    program: Option<&ToolProgram>,
) -> Result<Observation, Unexplained> {
    let conversation = &probe.conversation;
    let mut list = tokens(text, hooks, view, conversation)?;
    if let Some(program) = program {
        list = program.prepare(list);
    }
    let mut out = Observation::default();
    let mut gap: Vec<Part> = Vec::new();
    let mut before = Kind::Start;
    let call_owner: Vec<usize> =
        conversation.messages.iter().enumerate().flat_map(|(i, m)| m.tool_calls.iter().map(move |_| i)).collect();
    let mut at = 0;
    let mut last_place = (0, 0); // message and place in it; elements must come in the conversation's order
    let mut gaps = Vec::new();
    let counts = |message: usize, call: usize| Counts {
        calls: call,
        calls_of_message: call_owner[..call].iter().filter(|m| **m == message).count(),
        results: conversation.messages[..message].iter().filter(|m| m.role == Role::Tool).count(),
    };
    let mut next_call = 0; // the first that is not printed yet
    let mut finish_gap = |gap: &mut Vec<Part>, before: &mut Kind, behind: Kind, message: usize, call: usize| {
        let parts = fold_tools(std::mem::take(gap))?;
        let counts = counts(message, call);
        gaps.push(Gap { before: *before, behind, facts: facts(conversation, message), parts, counts });
        *before = behind;
        Ok::<(), Unexplained>(())
    };
    let mut seen: Vec<Seen> = Vec::new();
    let mut pending_results: Vec<usize> = Vec::new();
    let mut system_trim = None;
    let mut ending = String::new(); // text that belongs to what came before
    while at < list.len() {
        let token = &list[at];
        if let Some(program) = program
            && matches!(token, Token::Tool(..) | Token::Property(..))
        {
            let (used, text) = program.extent(&list[at..], &conversation.tools)?;
            gap.push(Part::ToolBlock);
            ending = text;
            at += used;
            continue;
        }
        let pads = pad_state(&list, at, probe.padded);
        match token {
            Token::Property(..) => return unexplained("the schema of tools is written field by field"),
            Token::Lit(text) => {
                let Some(mut text) = text.strip_prefix(&*std::mem::take(&mut ending)) else {
                    return unexplained("the text behind tools or arguments varies");
                };
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
                    out.references.check(&mut pending_results, conversation, message)?;
                }
                finish_gap(&mut gap, &mut before, kind, message, next_call)?;
                seen.push(Seen {
                    kind,
                    message,
                    trim: pads.map(|(left, right)| Trim { left, right, json }),
                    call: Vec::new(),
                    counts: Counts::default(),
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
                if n < next_call {
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
                // Calls that are left out: later ones of messages of which the first is printed.
                if (next_call..n).any(|left| left == 0 || call_owner[left] != call_owner[left - 1]) {
                    return unexplained("calls are printed out of order");
                }
                let message = call_owner.get(n).copied().unwrap_or(0);
                if (message, 2 + n) <= last_place {
                    return unexplained("a call is printed before the text of its message");
                }
                last_place = (message, 2 + n);
                let call = call_parts(&list[at..], n, form, conversation)?;
                finish_gap(&mut gap, &mut before, Kind::Call, message, n)?;
                seen.push(Seen { kind: Kind::Call, message, trim: None, call: call.parts, counts: counts(message, n) });
                next_call = n + 1;
                ending = call.closing;
                at += call.used;
                continue;
            }
        }
        at += 1;
    }
    if !pending_results.is_empty() {
        return unexplained("a result's call is named where no result follows");
    }
    finish_gap(&mut gap, &mut before, Kind::End, conversation.messages.len(), next_call)?;
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
                    if shown > 0 && m.tool_calls.len() > 1 {
                        let only_first = shown == 1;
                        if !only_first && shown < m.tool_calls.len() || out.first_call_only == Some(!only_first) {
                            return unexplained("only some calls of a message are printed");
                        }
                        out.first_call_only = Some(only_first);
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

impl References {
    /// Checks the references to calls that stand in front of a result.
    fn check(
        &mut self,
        pending: &mut Vec<usize>,
        conversation: &Conversation,
        message: usize,
    ) -> Result<(), Unexplained> {
        let before = &conversation.messages[..message];
        let own = before.iter().filter(|m| m.role == Role::Tool).count();
        let last = before.iter().rposition(|m| !m.tool_calls.is_empty()).unwrap_or(0);
        let first_of_last: usize = before[..last].iter().map(|m| m.tool_calls.len()).sum();
        for n in pending.drain(..) {
            self.own &= n == own;
            self.first_of_last &= n == first_of_last;
        }
        if self.own || self.first_of_last { Ok(()) } else { unexplained("a result names another call than its own") }
    }
}
