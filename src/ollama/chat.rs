//! Conversations: what is given to a chat template, in either language.

use super::python::{JsonStyle, json_dumps};
use serde_json::{Map, Value as Json, json};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The word that both template languages use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// A call of a tool by the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// The identifier that the result refers to.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, by name.
    pub arguments: Map<String, Json>,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text.
    pub content: String,
    /// What the model thought before it answered.
    pub thinking: Option<String>,
    /// Calls that the model made.
    pub tool_calls: Vec<ToolCall>,
    /// For a tool's result: which tool.
    pub tool_name: Option<String>,
    /// For a tool's result: which call.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message that is only text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            thinking: None,
            tool_calls: Vec::new(),
            tool_name: None,
            tool_call_id: None,
        }
    }
}

/// A conversation and the circumstances of its rendering.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Conversation {
    /// The messages in order.
    pub messages: Vec<Message>,
    /// The tools on offer, in the form of OpenAI's API.
    pub tools: Vec<Json>,
    /// The user's choice whether the model thinks; `None`: not chosen.
    pub think: Option<bool>,
}

impl Conversation {
    /// Whether the model continues a last message of its own instead of starting one.
    pub fn continues(&self) -> bool {
        self.messages.last().is_some_and(|m| m.role == Role::Assistant)
    }
}

/// How a template wants to be given its conversation; found out by trying.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Dialect {
    /// Contents are lists of parts, not strings.
    pub content_parts: bool,
    /// Arguments of calls are JSON text, as Python writes it, not objects.
    pub arguments_as_text: bool,
    /// The message key that holds the thinking.
    pub thinking_key: Option<String>,
    /// The variable that switches thinking on and off.
    pub think_switch: Option<String>,
}

impl Dialect {
    /// The `messages` value of the Jinja template.
    pub fn messages(&self, conversation: &Conversation) -> Json {
        let content = |text: &str| {
            if self.content_parts { json!([{"type": "text", "text": text}]) } else { json!(text) }
        };
        conversation
            .messages
            .iter()
            .map(|m| {
                let mut out = Map::new();
                out.insert("role".into(), json!(m.role.as_str()));
                if m.role == Role::Tool {
                    if let Some(name) = &m.tool_name {
                        out.insert("name".into(), json!(name));
                    }
                    if let Some(id) = &m.tool_call_id {
                        out.insert("tool_call_id".into(), json!(id));
                    }
                }
                out.insert("content".into(), content(&m.content));
                if let (Some(key), Some(text)) = (&self.thinking_key, &m.thinking) {
                    out.insert(key.clone(), json!(text));
                }
                if !m.tool_calls.is_empty() {
                    let calls: Vec<Json> = m
                        .tool_calls
                        .iter()
                        .map(|c| {
                            let arguments = if self.arguments_as_text {
                                let value = minijinja::Value::from_serialize(&c.arguments);
                                json!(json_dumps(&value, &JsonStyle::default()))
                            } else {
                                Json::Object(c.arguments.clone())
                            };
                            json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": arguments}})
                        })
                        .collect();
                    out.insert("tool_calls".into(), Json::Array(calls));
                }
                Json::Object(out)
            })
            .collect()
    }
}
