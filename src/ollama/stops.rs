//! Which tokens end an assistant's turn, found in what the template renders.

use super::chat::{Conversation, Dialect, Message, Role, ToolCall};
use super::jinja::ChatTemplate;
use serde_json::json;
use std::sync::LazyLock;

/// The tokens that a tokenizer treats as one piece, longest match first.
#[derive(Clone, Debug, Default)]
pub struct SpecialTokens {
    /// Texts of tokens flagged special.
    pub special: Vec<String>,
    /// Texts of all added tokens, special or not.
    pub added: Vec<String>,
}

static LOOKS_SPECIAL: LazyLock<Option<regex::Regex>> = LazyLock::new(|| {
    regex::Regex::new(
        r"<[|｜][^<>]{1,60}[|｜]>|</s>|<(?:end|start)_of_turn>|<eo[sdth]_?[a-z]*>|<\|?[A-Za-z_]+\|?>|<[a-z]+:[a-z]+>",
    )
    .ok()
});

impl SpecialTokens {
    /// The special tokens in a text, in order. Without a tokenizer, what looks like one counts.
    fn find(&self, text: &str) -> Vec<String> {
        if self.special.is_empty() {
            return LOOKS_SPECIAL
                .as_ref()
                .map(|re| re.find_iter(text).map(|m| m.as_str().to_owned()).collect())
                .unwrap_or_default();
        }
        let mut found = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            // Added tokens take part so that a longer ordinary one hides a special one inside it.
            let longest = self
                .special
                .iter()
                .chain(&self.added)
                .filter(|t| !t.is_empty() && rest.starts_with(t.as_str()))
                .max_by_key(|t| t.len());
            match longest {
                Some(token) => {
                    if self.special.contains(token) {
                        found.push(token.clone());
                    }
                    rest = &rest[token.len()..];
                }
                None => rest = &rest[c.len_utf8()..],
            }
        }
        found
    }
}

const USER: &str = "QzU0Xq";
const ASSISTANT: &str = "QzA1Xq";
const USER2: &str = "QzU2Xq";

/// The texts at which generation must stop, most important first, as the template shows them: what follows an
/// assistant's content in the history and at the end, and what follows a tool call.
pub fn from_template(template: &ChatTemplate, dialect: &Dialect, tokens: &SpecialTokens) -> Vec<String> {
    let mut stops: Vec<String> = Vec::new();
    let mut add = |stop: Option<String>| {
        if let Some(stop) = stop.filter(|s| !s.trim().is_empty() && Some(s.as_str()) != template.bos_token())
            && !stops.contains(&stop)
        {
            stops.push(stop);
        }
    };
    let turns =
        [Message::new(Role::User, USER), Message::new(Role::Assistant, ASSISTANT), Message::new(Role::User, USER2)];
    let conversation = |messages: &[Message]| Conversation { messages: messages.to_vec(), ..Conversation::default() };
    if let Ok(text) = template.render_whole(&conversation(&turns), dialect) {
        let between =
            text.split_once(ASSISTANT).and_then(|(_, rest)| rest.split_once(USER2)).map(|(between, _)| between);
        let opening = text.split_once(USER).map(|(opening, _)| opening).unwrap_or_default();
        if let Some(between) = between {
            let header = common_suffix(between, opening);
            let ending = &between[..between.len() - header.len()];
            let bos = template.bos_token();
            let in_ending = tokens.find(ending).into_iter().rfind(|t| Some(t.as_str()) != bos);
            let next = || tokens.find(between).into_iter().find(|t| Some(t.as_str()) != bos);
            match in_ending.or_else(next) {
                Some(token) => add(Some(token)),
                // A format of plain text: the next speaker's heading is the end.
                None => add(Some(between.trim_end().to_owned())),
            }
        }
    }
    if let Ok(text) = template.render_whole(&conversation(&turns[..2]), dialect)
        && let Some((_, rest)) = text.rsplit_once(ASSISTANT)
    {
        add(tokens.find(rest).into_iter().next_back());
    }
    let mut call = Message::new(Role::Assistant, "");
    call.tool_calls = vec![ToolCall {
        id: "qzid00000".into(),
        name: "qzfc0x".into(),
        arguments: [("qka".to_owned(), json!("QzV0aXq"))].into_iter().collect(),
    }];
    let mut result = Message::new(Role::Tool, "QzT2Xq");
    result.tool_name = Some("qzfc0x".into());
    result.tool_call_id = Some("qzid00000".into());
    let with_call = [turns[0].clone(), call, result];
    let mut with_tools = conversation(&with_call);
    with_tools.tools = vec![json!({"type": "function", "function": {"name": "qzfc0x", "description": "d",
        "parameters": {"type": "object", "properties": {"qka": {"type": "string", "description": "e"}}, "required": ["qka"]}}})];
    if let Ok(text) = template.render_whole(&with_tools, dialect)
        && let Some((before, _)) = text.split_once("QzT2Xq")
        && let Some((_, between)) = before.rsplit_once("QzV0aXq")
    {
        let found = tokens.find(between);
        // A section that closes is no end; the ends already known are.
        if !found.iter().any(|t| stops.contains(t)) {
            let inside = ["tool_call", "tool_response", "function", "arg_", "parameter"];
            let closes = |t: &String| before.matches(t.as_str()).count() > 1 || inside.iter().any(|w| t.contains(w));
            let end = found.into_iter().find(|t| !closes(t));
            if let Some(end) = end.filter(|e| !stops.contains(e)) {
                stops.push(end);
            }
        }
    }
    stops
}

/// The longest text that both end with.
pub fn common_suffix<'a>(a: &'a str, b: &str) -> &'a str {
    let mut length = 0;
    for (x, y) in a.chars().rev().zip(b.chars().rev()) {
        if x != y {
            break;
        }
        length += x.len_utf8();
    }
    &a[a.len() - length..]
}

/// The longest text that both begin with.
pub fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let mut length = 0;
    for (x, y) in a.chars().zip(b.chars()) {
        if x != y {
            break;
        }
        length += x.len_utf8();
    }
    &a[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(source: &str, special: &[&str]) -> Vec<String> {
        let t = ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap();
        let tokens = SpecialTokens { special: special.iter().map(|s| (*s).to_owned()).collect(), added: Vec::new() };
        from_template(&t, &Dialect::default(), &tokens)
    }

    #[test]
    fn the_turns_end_is_the_stop() {
        let chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
        assert_eq!(stops(chatml, &["<|im_start|>", "<|im_end|>"]), ["<|im_end|>"]);
        assert_eq!(stops(chatml, &[]), ["<|im_end|>"]);
    }

    #[test]
    fn an_open_end_stops_at_the_next_speaker() {
        let glm = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}";
        assert_eq!(stops(glm, &["<|user|>", "<|assistant|>", "<|tool|>"])[0], "<|user|>");
        let plain =
            "{% for m in messages %}{{ '\n\nUser: ' if m.role == 'user' else '\n\nBot: ' }}{{ m.content }}{% endfor %}";
        assert_eq!(stops(plain, &["<s>"])[0], "\n\nUser:");
    }

    #[test]
    fn the_last_of_several_closing_tokens_ends_the_turn() {
        let cohere =
            "{% for m in messages %}<|S|>{{ m.role }}<|B|>{{ m.content }}<|END_RESPONSE|><|END_TURN|>{% endfor %}";
        let tokens = ["<|S|>", "<|B|>", "<|END_RESPONSE|>", "<|END_TURN|>"];
        assert_eq!(stops(cohere, &tokens), ["<|END_TURN|>"]);
    }
}
