//! How a model answers: the text between a prompt and the stop, as the template writes it into the history.
//!
//! A model was trained on what its template prints, so that is what it will write; Ollama has to recognise the
//! calls and the thinking in it.

use super::chat::{Conversation, Message, Role, ToolCall};
use super::infer::Abilities;
use super::jinja::ChatTemplate;
use super::proof::sample_tools;
use super::stops::{self, SpecialTokens};
use serde_json::json;

/// An answer, and the text that the model writes to give it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What is meant.
    pub message: Message,
    /// The user's choice whether the model thinks.
    pub think: Option<bool>,
    /// The prompt that it follows, from the last line break but two on: thinking may begin there.
    pub prompt: String,
    /// The text, without the stop.
    pub text: String,
}

/// The messages whose texts are looked at: an answer, then calls of [`tools`], some with text or thinking in front.
pub fn samples(thinking: bool) -> Vec<Message> {
    let call = |name: &str, arguments: serde_json::Value, id: usize| ToolCall {
        id: format!("call0000{id}"),
        name: name.into(),
        arguments: arguments.as_object().cloned().unwrap_or_default(),
    };
    let answer = |thought: Option<&str>, content: &str, calls: Vec<ToolCall>| Message {
        thinking: thought.map(str::to_owned),
        tool_calls: calls,
        ..Message::new(Role::Assistant, content)
    };
    let weather = || call("get_weather", json!({"city": "Paris", "unit": "celsius"}), 1);
    let add = || call("add", json!({"a": 2, "b": 40}), 2);
    let search = || call("search", json!({"limit": 5, "query": "the \"best\" book <free>"}), 3);
    let mut out = vec![
        answer(None, "It is sunny in Paris.", vec![]),
        answer(None, "", vec![weather()]),
        answer(None, "", vec![add()]),
        answer(None, "", vec![search()]),
        answer(None, "", vec![weather(), add()]),
    ];
    if thinking {
        out.extend([
            answer(Some("Paris is in France."), "It is sunny in Paris.", vec![]),
            answer(Some("I have to look."), "", vec![weather()]),
            answer(Some("I have to look."), "", vec![add(), search()]),
        ]);
    }
    out
}

/// The tools that [`samples`] call, and one more.
pub fn tools() -> Vec<serde_json::Value> {
    sample_tools(4)
}

/// The texts of the [`samples`] that a template shows; `None` in the place of one that cannot be told from its
/// surroundings: where the history is not written as the answer was, lacks a part of it, or a stop cannot be found.
pub fn answers(template: &ChatTemplate, abilities: &Abilities) -> Vec<Option<Answer>> {
    let thinking = abilities.scope.thinking;
    let think = abilities.dialect.think_switch.as_ref().map(|_| thinking);
    let stops = stops::from_template(template, &abilities.dialect, &SpecialTokens::default());
    let question = Message::new(Role::User, "What about Paris?");
    let render = |messages: Vec<Message>| {
        let conversation = Conversation { messages, tools: tools(), think };
        template.render_whole(&conversation, &abilities.dialect).ok()
    };
    let prompt = render(vec![question.clone()]);
    let one = |message: Message| {
        let prompt = prompt.as_deref()?;
        let mut messages = vec![question.clone(), message.clone()];
        messages.extend(message.tool_calls.iter().map(|call| Message {
            tool_name: Some(call.name.clone()),
            tool_call_id: Some(call.id.clone()),
            ..Message::new(Role::Tool, "It is done.")
        }));
        let whole = render(messages)?;
        let text = whole.strip_prefix(prompt)?;
        let end = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
        let text = &text[..end.or_else(|| message.tool_calls.is_empty().then_some(text.len()))?];
        let mut parts = message.tool_calls.iter().map(|call| &call.name).chain(&message.thinking);
        if !parts.all(|part| text.contains(part.as_str())) {
            return None;
        }
        let lines = prompt.rmatch_indices('\n').nth(2).map_or(0, |(at, _)| at + 1);
        Some(Answer { think, prompt: prompt[lines..].to_owned(), text: text.to_owned(), message })
    };
    samples(thinking).into_iter().map(one).collect()
}
