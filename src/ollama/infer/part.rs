//! The vocabulary of what is inferred: the kinds of elements, and the pieces of the text between them.

use crate::ollama::python::JsonStyle;

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
    /// The function's description as a JSON string.
    QuotedDescription,
    /// The function's description as Python's `repr`.
    ReprDescription,
    /// The function's parameters.
    Parameters,
    /// The parameters' properties.
    Properties,
    /// The names that are required.
    Required,
}

/// Which of a property's parts is printed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PropertyPart {
    /// Its name.
    Name,
    /// Its description.
    Description,
    /// Its description as a JSON string.
    QuotedDescription,
    /// Its description as Python's `repr`.
    ReprDescription,
    /// The whole object, at this depth of indentation.
    Whole(JsonStyle, usize),
    /// The type of an array's items.
    Items(JsonStyle, usize),
    /// The allowed values as a JSON list.
    Enum(JsonStyle, usize),
    /// One of the allowed values, by its number, as a JSON string or not.
    EnumValue(usize, bool),
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
    /// All tools, written field by field.
    ToolBlock,
    /// Inside a loop over tools: a part of the tool.
    Tool(ToolPart, JsonStyle, usize),
    /// The answered call's name.
    ResultName,
    /// The answered call's identifier.
    ResultId,
    /// The name of the first call of the last message with calls.
    FirstCallName,
    /// A number that counts calls or results.
    Number(Counter),
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
    /// Inside a loop over arguments: the value, printed as the template prints values of its type.
    Printed(ValueForms),
}

/// How values other than texts and numbers are printed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ValueForms {
    /// Lists: JSON in a style, or `None` for Python's `repr`.
    pub(super) list: Option<JsonStyle>,
    /// Dictionaries: JSON in a style, or `None` for Python's `repr`.
    pub(super) map: Option<JsonStyle>,
    /// Booleans are printed as Python does, `True`.
    pub(super) python_bool: bool,
    /// The null value is printed as Python does, `None`.
    pub(super) python_null: bool,
}

/// What a printed number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Counter {
    /// Calls of the conversation, from 0 or from 1.
    Calls(usize),
    /// Calls of the message, from 0 or from 1.
    CallsOfMessage(usize),
    /// Results of the conversation, from 0 or from 1.
    Results(usize),
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
