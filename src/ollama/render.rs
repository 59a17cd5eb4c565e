//! How Ollama runs a TEMPLATE: its data, its folding of messages, its two modes.
//!
//! Facts from Ollama's `template/template.go`: consecutive messages of one role (tools' results excepted) are
//! joined first; a template that mentions `.Messages` is executed once, an older one once per exchange and cut
//! behind its `.Response` at the end.

use super::chat::{Conversation, Message, Role};
use super::go::{Arg, Branch, GoError, Kind, Node, Pipe, Template, Value};
use super::python::Date;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// A Go TEMPLATE as Ollama holds it.
#[derive(Clone, Debug)]
pub struct OllamaTemplate {
    template: Template,
    takes_messages: bool,
}

impl OllamaTemplate {
    /// Parses a TEMPLATE; one that prints neither messages nor a response gets `{{ .Response }}` appended.
    ///
    /// # Errors
    /// [`GoError::Parse`] where Ollama refuses it.
    pub fn parse(source: &str) -> Result<Self, GoError> {
        let mut template = Template::parse(source)?;
        let identifiers = template.identifiers();
        let takes_messages = identifiers.contains("messages");
        if !takes_messages && !identifiers.contains("response") {
            template.root.push(Node::Action(Pipe {
                commands: vec![vec![Arg::Field(vec!["Response".into()])]],
                ..Pipe::default()
            }));
        }
        Ok(Self { template, takes_messages })
    }

    /// The prompt that Ollama makes of a conversation.
    ///
    /// # Errors
    /// [`GoError::Exec`] where Go's execution fails.
    pub fn render(&self, conversation: &Conversation, today: Date) -> Result<String, GoError> {
        let (system, messages) = collate(&conversation.messages);
        if !self.takes_messages {
            return self.render_exchanges(&messages, conversation, today);
        }
        let mut data = circumstances(conversation);
        data.insert("System".into(), system.into());
        let messages = messages.iter().map(message).collect();
        data.insert("Messages".into(), Value::list(Kind::plain("[]*template.templateMessage"), messages));
        data.insert("Tools".into(), tools(&conversation.tools));
        data.insert("Response".into(), "".into());
        self.template.execute(&Value::map(Kind::ANY_MAP, data), today)
    }

    /// The older mode: one execution per exchange of system, prompt and response.
    fn render_exchanges(
        &self,
        messages: &[Message],
        conversation: &Conversation,
        today: Date,
    ) -> Result<String, GoError> {
        let (mut system, mut prompt, mut response) = (String::new(), String::new(), String::new());
        let mut out = String::new();
        let run = |template: &Template, system: &str, prompt: &str, response: &str| {
            let mut data = circumstances(conversation);
            data.insert("System".into(), system.into());
            data.insert("Prompt".into(), prompt.into());
            data.insert("Response".into(), response.into());
            template.execute(&Value::map(Kind::ANY_MAP, data), today)
        };
        for m in messages {
            let flush = match m.role {
                Role::System => !prompt.is_empty() || !response.is_empty(),
                Role::User => !response.is_empty(),
                _ => false,
            };
            if flush {
                out += &run(&self.template, &system, &prompt, &response)?;
                (system, prompt, response) = Default::default();
            }
            match m.role {
                Role::System => system.clone_from(&m.content),
                Role::User => prompt.clone_from(&m.content),
                Role::Assistant => response.clone_from(&m.content),
                Role::Tool => {}
            }
        }
        let mut last = self.template.clone();
        let mut cut = false;
        cut_after_response(&mut last.root, &mut cut)?;
        out += &run(&last, &system, &prompt, &response)?;
        Ok(out)
    }
}

/// Removes everything behind the first action that mentions `.Response` (Ollama's `deleteNode`).
fn cut_after_response(nodes: &mut Vec<Node>, cut: &mut bool) -> Result<(), GoError> {
    fn mentions(pipe: &Pipe) -> bool {
        pipe.commands.iter().flatten().any(|arg| match arg {
            Arg::Field(names) => names.iter().any(|n| n == "Response"),
            Arg::Pipe(inner) => mentions(inner),
            _ => false,
        })
    }
    fn inside(branch: &mut Branch, cut: &mut bool) -> Result<(), GoError> {
        cut_after_response(&mut branch.list, cut)?;
        match &mut branch.otherwise {
            // Ollama converts a deleted else list without a check and panics there.
            Some(_) if *cut => Err(GoError::exec(".Response inside an if that has an else")),
            Some(list) => cut_after_response(list, cut),
            None => Ok(()),
        }
    }
    let mut keep = 0;
    for node in nodes.iter_mut() {
        if *cut {
            break;
        }
        keep += 1;
        match node {
            Node::Action(pipe) => *cut = mentions(pipe),
            Node::If(b) | Node::Range(b) | Node::With(b) => inside(b, cut)?,
            _ => {}
        }
    }
    nodes.truncate(keep);
    Ok(())
}

fn circumstances(conversation: &Conversation) -> BTreeMap<String, Value> {
    [
        ("Think".to_owned(), Value::Bool(conversation.think == Some(true))),
        ("ThinkLevel".to_owned(), "".into()),
        ("IsThinkSet".to_owned(), Value::Bool(conversation.think.is_some())),
    ]
    .into()
}

/// Joins what Ollama joins; returns all system texts and the messages.
fn collate(messages: &[Message]) -> (String, Vec<Message>) {
    let system: Vec<&str> = messages.iter().filter(|m| m.role == Role::System).map(|m| m.content.as_str()).collect();
    let mut out: Vec<Message> = Vec::new();
    for m in messages {
        match out.last_mut() {
            Some(last) if last.role == m.role && m.role != Role::Tool => {
                last.content.push_str("\n\n");
                last.content.push_str(&m.content);
            }
            _ => out.push(m.clone()),
        }
    }
    (system.join("\n\n"), out)
}

fn message(m: &Message) -> Value {
    let text = |t: &Option<String>| Value::from(t.as_deref().unwrap_or_default());
    let calls = m
        .tool_calls
        .iter()
        .enumerate()
        .map(|(n, call)| {
            let arguments = call.arguments.iter().map(|(k, v)| (k.clone(), v.into())).collect();
            let function = Value::record(
                Kind::plain("template.templateToolCallFunction"),
                vec![
                    ("Index", "Index", false, Value::Int(i64::try_from(n).unwrap_or(0))),
                    ("Name", "Name", false, call.name.as_str().into()),
                    ("Arguments", "Arguments", false, Value::map(Kind::json("template.templateArgs"), arguments)),
                ],
            );
            Value::record(
                Kind::plain("template.templateToolCall"),
                vec![("ID", "ID", false, call.id.as_str().into()), ("Function", "Function", false, function)],
            )
        })
        .collect();
    Value::record(
        Kind::plain("*template.templateMessage"),
        vec![
            ("Role", "Role", false, m.role.as_str().into()),
            ("Content", "Content", false, m.content.as_str().into()),
            ("Thinking", "Thinking", false, text(&m.thinking)),
            ("Images", "Images", false, Value::list(Kind::plain("[]api.ImageData"), Vec::new())),
            ("ToolCalls", "ToolCalls", false, Value::list(Kind::plain("[]template.templateToolCall"), calls)),
            ("ToolName", "ToolName", false, text(&m.tool_name)),
            ("ToolCallID", "ToolCallID", false, text(&m.tool_call_id)),
        ],
    )
}

fn tools(list: &[Json]) -> Value {
    Value::list(Kind::json("template.templateTools"), list.iter().map(tool).collect())
}

fn text_of(v: Option<&Json>) -> Value {
    v.and_then(Json::as_str).unwrap_or_default().into()
}

fn any_of(v: Option<&Json>) -> Value {
    v.map_or(Value::Nil, Value::from)
}

fn strings(v: Option<&Json>) -> Value {
    let items = v.and_then(Json::as_array).map(|a| a.iter().map(Value::from).collect());
    Value::list(Kind::STRINGS, items.unwrap_or_default())
}

/// A tool as `convertToolsForTemplate` makes it: keys that Ollama's types lack are lost.
fn tool(t: &Json) -> Value {
    let function = &t["function"];
    let parameters = &function["parameters"];
    let properties = parameters["properties"]
        .as_object()
        .map(|p| p.iter().map(|(k, v)| (k.clone(), property(v))).collect())
        .unwrap_or_default();
    let parameters = Value::record(
        Kind::plain("template.templateToolFunctionParameters"),
        vec![
            ("Type", "type", false, text_of(parameters.get("type"))),
            ("Defs", "$defs", true, any_of(parameters.get("$defs"))),
            ("Items", "items", true, any_of(parameters.get("items"))),
            ("Required", "required", true, strings(parameters.get("required"))),
            ("Properties", "properties", false, Value::map(Kind::json("template.templateProperties"), properties)),
        ],
    );
    let function = Value::record(
        Kind::plain("template.templateToolFunction"),
        vec![
            ("Name", "name", false, text_of(function.get("name"))),
            ("Description", "description", false, text_of(function.get("description"))),
            ("Parameters", "parameters", false, parameters),
        ],
    );
    Value::record(
        Kind::json("template.templateTool"),
        vec![
            ("Type", "type", false, text_of(t.get("type"))),
            ("Items", "items", true, any_of(t.get("items"))),
            ("Function", "function", false, function),
        ],
    )
}

fn property(p: &Json) -> Value {
    let types = match p.get("type") {
        Some(Json::Array(a)) => a.iter().map(Value::from).collect(),
        Some(one) => vec![one.into()],
        None => Vec::new(),
    };
    let type_kind = Kind { name: "api.PropertyType", prints_json: false, unwraps_single: true };
    let variants = p.get("anyOf").and_then(Json::as_array).map(|a| a.iter().map(property).collect());
    let nested = p.get("properties").and_then(Json::as_object).map_or(Value::Nil, |o| {
        // A pointer to an ordered map: JSON can print it, `range` cannot see into it.
        Value::map(Kind::plain("*api.ToolPropertiesMap"), o.iter().map(|(k, v)| (k.clone(), property(v))).collect())
    });
    let enumeration = p.get("enum").and_then(Json::as_array).map(|a| a.iter().map(Value::from).collect());
    Value::record(
        Kind::plain("api.ToolProperty"),
        vec![
            ("AnyOf", "anyOf", true, Value::list(Kind::plain("[]api.ToolProperty"), variants.unwrap_or_default())),
            ("Type", "type", true, Value::list(type_kind, types)),
            ("Items", "items", true, any_of(p.get("items"))),
            ("Description", "description", true, text_of(p.get("description"))),
            ("Enum", "enum", true, Value::list(Kind::ANY_LIST, enumeration.unwrap_or_default())),
            ("Properties", "properties", true, nested),
            ("Required", "required", true, strings(p.get("required"))),
        ],
    )
}
