//! Writing the tools: a named template that is given `.Tools`.

use super::rules::{ITEMS, Rule, TYPE};
use super::{Element, SchemaFeature, Step, ToolProgram, Written};
use crate::ollama::infer::defines::Defines;
use crate::ollama::infer::go_text::{GoText, quoted};
use crate::ollama::infer::learn::Tree;
use crate::ollama::infer::part::PropertyPart;
use crate::ollama::stops::{common_prefix, common_suffix};

/// Name of the template that writes all tools.
pub(in crate::ollama::infer) const TOOL_BLOCK: &str = "toolBlock";

/// The condition that tests a feature.
fn condition(feature: SchemaFeature) -> &'static str {
    match feature {
        SchemaFeature::LastTool => "eq (len (slice $ $t)) 1",
        SchemaFeature::AnyRequired => "$parameters.Required",
        SchemaFeature::LastProperty => "eq (len $count) (len $parameters.Properties)",
        SchemaFeature::Required => "$required",
        SchemaFeature::HasEnum => "$property.Enum",
        SchemaFeature::IsString => "eq $type \"string\"",
        SchemaFeature::IsInteger => "eq $type \"integer\"",
        SchemaFeature::IsNumber => "eq $type \"number\"",
        SchemaFeature::IsBoolean => "eq $type \"boolean\"",
        SchemaFeature::IsArray => "eq $type \"array\"",
        SchemaFeature::StringItems => "eq $items \"string\"",
        SchemaFeature::IntegerItems => "eq $items \"integer\"",
        SchemaFeature::NumberItems => "eq $items \"number\"",
        SchemaFeature::BooleanItems => "eq $items \"boolean\"",
        SchemaFeature::FullStop => "$fullStop",
    }
}

impl ToolProgram {
    /// Writes the template's definition.
    pub(in crate::ollama::infer) fn write(&self, out: &mut GoText, defines: &mut Defines) {
        out.control(&format!("define {}", quoted(TOOL_BLOCK)));
        out.control("range $t, $tool := .");
        out.control("$parameters := $tool.Function.Parameters");
        for step in &self.steps {
            match step {
                Step::Element(written) => self::written(out, defines, written),
                Step::Loop(elements) => self::properties(out, defines, elements),
            }
        }
        out.control("end");
        out.control("end");
    }
}

/// A loop over the properties of a tool.
fn properties(out: &mut GoText, defines: &mut Defines, elements: &[Written]) {
    let asked: Vec<SchemaFeature> = elements
        .iter()
        .flat_map(|w| w.only_if.into_iter().chain(w.behind.trees.iter().flat_map(Tree::features)))
        .collect();
    let mentions = |mark: char| {
        elements.iter().flat_map(|w| &w.behind.trees).flat_map(|t| t.leaves()).any(|text| text.contains(mark))
    };
    let any = |list: &[SchemaFeature]| asked.iter().any(|f| list.contains(f));
    let counts = any(&[SchemaFeature::LastProperty]);
    if counts {
        // A number that grows: text/template cannot add, but a text's length can.
        out.control("$count := \"\"");
    }
    out.control("range $name, $property := $parameters.Properties");
    if counts {
        out.control("$count = printf \"%sx\" $count");
    }
    let types = [
        SchemaFeature::IsString,
        SchemaFeature::IsInteger,
        SchemaFeature::IsNumber,
        SchemaFeature::IsBoolean,
        SchemaFeature::IsArray,
    ];
    if any(&types) || mentions(TYPE) {
        out.control("$type := print $property.Type");
    }
    let items = [
        SchemaFeature::StringItems,
        SchemaFeature::IntegerItems,
        SchemaFeature::NumberItems,
        SchemaFeature::BooleanItems,
    ];
    if any(&items) || mentions(ITEMS) {
        out.control("$items := \"\"");
        out.control("if $property.Items");
        out.control("$items = print $property.Items.type");
        out.control("end");
    }
    if any(&[SchemaFeature::Required]) {
        out.control("$required := false");
        out.control("range $parameters.Required");
        out.control("if eq . $name");
        out.control("$required = true");
        out.control("end");
        out.control("end");
    }
    if any(&[SchemaFeature::FullStop]) {
        out.control("$fullStop := false");
        out.control("if $property.Description");
        out.control("if eq (slice $property.Description (len (slice $property.Description 1))) \".\"");
        out.control("$fullStop = true");
        out.control("end");
        out.control("end");
    }
    for element in elements {
        written(out, defines, element);
    }
    out.control("end");
}

/// An element and the text behind it.
fn written(out: &mut GoText, defines: &mut Defines, written: &Written) {
    if let Some(feature) = written.only_if {
        out.control(&format!("if {}", condition(feature)));
    }
    match &written.element {
        Element::Tool(part, style, level) => {
            let action = defines.tool(*part, style, *level);
            out.print(&action);
        }
        Element::Required(separator) => {
            list(out, "$parameters.Required", separator, "print .");
        }
        Element::EnumValues(as_json, separator) => {
            list(out, "$property.Enum", separator, if *as_json { "printf \"%q\" ." } else { "print ." });
        }
        Element::Property(part) => {
            let action = match part {
                PropertyPart::Name => "$name".to_owned(),
                PropertyPart::Description => "$property.Description".to_owned(),
                PropertyPart::ReprDescription => defines.repr("$property.Description"),
                PropertyPart::QuotedDescription => "printf \"%q\" $property.Description".to_owned(),
                PropertyPart::Whole(style, level) => defines.property(style, *level, "$property"),
                PropertyPart::Items(style, level) => defines.json(style, *level, "$property.Items"),
                PropertyPart::Enum(style, level) => defines.json(style, *level, "$property.Enum"),
                PropertyPart::EnumValue(value, _) => format!("index $property.Enum {value}"),
            };
            out.print(&action);
        }
    }
    rule(out, &written.behind);
    if written.only_if.is_some() {
        out.control("end");
    }
}

/// A list with a text between two items.
fn list(out: &mut GoText, over: &str, separator: &str, action: &str) {
    out.control(&format!("range $i, $_ := {over}"));
    if !separator.is_empty() {
        out.control("if $i");
        out.text(separator);
        out.control("end");
    }
    out.print(action);
    out.control("end");
}

fn rule(out: &mut GoText, rule: &Rule) {
    for tree in &rule.trees {
        branch(out, tree);
    }
}

/// Text that depends on features; what all cases share is written once.
fn branch(out: &mut GoText, tree: &Tree<String, SchemaFeature>) {
    let (feature, yes, no) = match tree {
        Tree::Leaf(text) => return typed(out, text),
        Tree::Split(feature, yes, no) => (*feature, yes, no),
    };
    let leaves: Vec<&str> = tree.leaves().into_iter().map(String::as_str).collect();
    let front = leaves.iter().skip(1).fold(leaves[0], |a, b| common_prefix(a, b));
    if !front.is_empty() {
        typed(out, front);
        return branch(out, &tree.map(&mut |text| text[front.len()..].to_owned()));
    }
    let back = leaves.iter().skip(1).fold(leaves[0], |a, b| common_suffix(a, b)).to_owned();
    if !back.is_empty() {
        branch(out, &tree.map(&mut |text| text[..text.len() - back.len()].to_owned()));
        return typed(out, &back);
    }
    let silent = |t: &Tree<String, SchemaFeature>| t.leaves().iter().all(|text| text.is_empty());
    let test = condition(feature);
    if silent(yes) {
        out.control(&if test.contains(' ') { format!("if not ({test})") } else { format!("if not {test}") });
        branch(out, no);
    } else {
        out.control(&format!("if {test}"));
        branch(out, yes);
        if !silent(no) {
            out.control("else");
            branch(out, no);
        }
    }
    out.control("end");
}

/// Text in which marks stand for types.
fn typed(out: &mut GoText, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find([TYPE, ITEMS]) {
        out.text(&rest[..at]);
        out.print(if rest[at..].starts_with(TYPE) { "$type" } else { "$items" });
        rest = &rest[at + TYPE.len_utf8()..];
    }
    out.text(rest);
}
