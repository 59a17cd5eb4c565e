//! Templates that write the tools' schema field by field: as types of TypeScript or Python, as XML, in words.
//!
//! What such a template prints is a list of elements (the tool's name, its description, and in loops over its
//! properties their names, descriptions and allowed values) with text behind each. The elements are found by
//! their sentinels; the text behind one depends on [facts](SchemaFeature) about the property and the tool (its type,
//! whether it is required, whether it is the last), and the rules are learned from tools that vary in all of them.

mod emit;
mod parse;
mod probe;
mod rules;

use super::learn::{Facts, Question};
use super::part::{PropertyPart, ToolPart};
use super::tokens::{Token, Unexplained};
use crate::ollama::chat::{Conversation, Dialect};
use crate::ollama::jinja::{ChatTemplate, JsonView};
use crate::ollama::python::JsonStyle;
pub(super) use emit::TOOL_BLOCK;
use parse::{Layout, Shown, text_after};
use rules::Rule;
use serde_json::Value as Json;

/// A fact about a property, or its tool, that a Go template can test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum SchemaFeature {
    /// The tool is the last on offer.
    LastTool,
    /// The tool requires one property at least.
    AnyRequired,
    /// The property is the tool's last.
    LastProperty,
    /// The property is required.
    Required,
    /// Only some values are allowed.
    HasEnum,
    /// The type is `string`.
    IsString,
    /// The type is `integer`.
    IsInteger,
    /// The type is `number`.
    IsNumber,
    /// The type is `boolean`.
    IsBoolean,
    /// The type is `array`.
    IsArray,
    /// The items of the array are of type `string`.
    StringItems,
    /// The items of the array are of type `integer`.
    IntegerItems,
    /// The items of the array are of type `number`.
    NumberItems,
    /// The items of the array are of type `boolean`.
    BooleanItems,
    /// The description ends with a full stop.
    FullStop,
}

impl Question for SchemaFeature {
    const ALL: &'static [Self] = &[
        Self::LastTool,
        Self::LastProperty,
        Self::AnyRequired,
        Self::Required,
        Self::HasEnum,
        Self::IsString,
        Self::IsArray,
        Self::IsInteger,
        Self::IsNumber,
        Self::IsBoolean,
        Self::StringItems,
        Self::IntegerItems,
        Self::NumberItems,
        Self::BooleanItems,
        Self::FullStop,
    ];

    fn bit(self) -> Facts {
        1 << self as u8
    }
}

/// The types of properties, and of the items of arrays, that the rules know.
pub(super) const TYPES: [(&str, SchemaFeature, SchemaFeature); 4] = [
    ("string", SchemaFeature::IsString, SchemaFeature::StringItems),
    ("integer", SchemaFeature::IsInteger, SchemaFeature::IntegerItems),
    ("number", SchemaFeature::IsNumber, SchemaFeature::NumberItems),
    ("boolean", SchemaFeature::IsBoolean, SchemaFeature::BooleanItems),
];

/// Something of a tool, or of one of its properties, that is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// A part of the tool.
    Tool(ToolPart, JsonStyle, usize),
    /// The names of the required properties, with this between two.
    Required(String),
    /// A part of a property.
    Property(PropertyPart),
    /// The allowed values of a property, as JSON strings or not, with this between two.
    EnumValues(bool, String),
}

/// An element with the rule for the text behind it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    element: Element,
    /// Where it is printed: everywhere, or only where this feature holds.
    only_if: Option<SchemaFeature>,
    behind: Rule,
}

/// A step in the writing of a tool.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// An element of the tool.
    Element(Written),
    /// The elements of each property in turn.
    Loop(Vec<Written>),
}

/// How the tools on offer are written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ToolProgram {
    steps: Vec<Step>,
    /// Whether the description of a tool, and that of a property, is printed by Python's `repr`.
    python: [bool; 2],
}

impl ToolProgram {
    /// Learns how a template writes tools; `None` if it does not write them field by field.
    ///
    /// # Errors
    /// What of it has no rule.
    pub(super) fn learn(
        template: &ChatTemplate,
        dialect: &Dialect,
        view: JsonView,
    ) -> Result<Option<Self>, Unexplained> {
        let with = |tools: Vec<Json>| Conversation { tools, ..super::probe::single("U", false, 0, None) };
        // Python's `repr` shows itself by its quotes around a text that has one.
        let [bare, quoted] = [probe::references().swap_remove(0), probe::apostrophes()]
            .map(|tools| template.render(&with(tools), dialect).unwrap_or_default());
        let repr = |plain: &str, with_one: &str| {
            bare.contains(&format!("'{plain}'")) && quoted.contains(&format!("\"{with_one}\""))
        };
        let python = [repr("QzD0Xq", "QzD0'Xq"), repr("QzP0aXq", "QzP0'aXq")];
        let tokens = |tools: Vec<Json>| -> Option<Result<Shown, Unexplained>> {
            let conversation = with(tools);
            // What the Jinja refuses is outside of the domain.
            let (text, hooks) = template.observe(&conversation, dialect, view).ok()?;
            let list = super::tokens::tokens(&text, &hooks, view, &conversation);
            Some(list.map(|list| (parse::with_repr(list, python), conversation.tools)))
        };
        let mut references = Vec::new();
        for tools in probe::references() {
            references.extend(tokens(tools).transpose()?);
        }
        if !references.iter().flat_map(|(tokens, _)| tokens).any(|t| matches!(t, Token::Property(..))) {
            return Ok(None);
        }
        let layout = Layout::discover(&references)?;
        let mut shown = references;
        for tools in probe::variations() {
            shown.extend(tokens(tools).transpose()?);
        }
        layout.rules(&shown).map(|steps| Some(Self { steps, python }))
    }

    /// The tokens of a text as the program sees them.
    pub(super) fn prepare(&self, list: Vec<Token>) -> Vec<Token> {
        parse::with_repr(list, self.python)
    }

    /// How many tokens of a list that begins with the first of a tool belong to the tools, and the text behind the
    /// last of them that still does.
    pub(super) fn extent(&self, list: &[Token], tools: &[Json]) -> Result<(usize, String), Unexplained> {
        let is_schema = |t: &Token| matches!(t, Token::Tool(..) | Token::Property(..));
        let end = list.iter().position(|t| !is_schema(t) && !matches!(t, Token::Lit(_))).unwrap_or(list.len());
        let used = list[..end].iter().rposition(is_schema).map_or(0, |last| last + 1);
        let Some(last) = self.steps.last() else {
            return Ok((used, String::new()));
        };
        Ok((used, text_after(last, tools)))
    }
}
