//! From the tokens of rendered tools to elements, and to the text behind each of them.

use super::rules::{Rule, Sample};
use super::{Element, SchemaFeature, Step, TYPES, Written};
use crate::ollama::infer::learn::{Facts, Question};
use crate::ollama::infer::part::{PropertyPart, ToolPart};
use crate::ollama::infer::tokens::{Token, Unexplained, unexplained};
use serde_json::{Map, Value as Json};

/// An element as it was printed: of which property (or of the tool), and the text up to the next one.
#[derive(Clone, Debug)]
struct Piece {
    tool: usize,
    property: Option<usize>,
    element: Element,
    behind: String,
}

/// The elements of one tool's text, in their order, without the text between them.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Element(Element),
    Loop(Vec<Element>),
}

/// Tokens of a rendered list of tools, and the list.
pub(super) type Shown = (Vec<Token>, Vec<Json>);

/// The steps by which a template writes a tool, without the text behind the elements.
pub(super) struct Layout {
    steps: Vec<Place>,
}

/// A step, and where an element is printed.
enum Place {
    Element(Element, Option<SchemaFeature>),
    Loop(Vec<(Element, Option<SchemaFeature>)>),
}

fn properties(tool: &Json) -> Option<&Map<String, Json>> {
    tool["function"]["parameters"]["properties"].as_object()
}

/// The positions of the required properties.
fn required(tool: &Json) -> Vec<usize> {
    let names: Vec<&str> = properties(tool).into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let list = tool["function"]["parameters"]["required"].as_array();
    list.into_iter().flatten().filter_map(|r| names.iter().position(|n| r == n)).collect()
}

/// The facts about a tool.
fn tool_facts(tools: &[Json], n: usize) -> Facts {
    let mut facts = 0;
    if n + 1 == tools.len() {
        facts |= SchemaFeature::LastTool.bit();
    }
    if !required(&tools[n]).is_empty() {
        facts |= SchemaFeature::AnyRequired.bit();
    }
    facts
}

/// The facts about a tool's property.
fn property_facts(tools: &[Json], n: usize, k: usize) -> Facts {
    let mut facts = tool_facts(tools, n);
    let count = properties(&tools[n]).map_or(0, Map::len);
    let empty = Json::Null;
    let property = properties(&tools[n]).and_then(|p| p.values().nth(k)).unwrap_or(&empty);
    let mut set = |feature: SchemaFeature, on: bool| {
        if on {
            facts |= feature.bit();
        }
    };
    set(SchemaFeature::LastProperty, k + 1 == count);
    set(SchemaFeature::Required, required(&tools[n]).contains(&k));
    set(SchemaFeature::HasEnum, property["enum"].is_array());
    set(SchemaFeature::IsArray, property["type"] == "array");
    for (name, of_property, of_items) in TYPES {
        set(of_property, property["type"] == name);
        set(of_items, property["items"]["type"] == name);
    }
    set(SchemaFeature::FullStop, property["description"].as_str().is_some_and(|d| d.ends_with('.')));
    facts
}

/// The text behind the last element of the last tool.
pub(super) fn text_after(last: &Step, tools: &[Json]) -> String {
    let Some(n) = tools.len().checked_sub(1) else {
        return String::new();
    };
    match last {
        Step::Element(written) => written.behind.text(tool_facts(tools, n)),
        Step::Loop(elements) => {
            let k = properties(&tools[n]).map_or(0, Map::len).saturating_sub(1);
            let facts = property_facts(tools, n, k);
            let shown = elements.iter().rfind(|w| w.only_if.is_none_or(|f| facts & f.bit() != 0));
            shown.map_or_else(String::new, |w| w.behind.text(facts))
        }
    }
}

/// Takes the quotes of Python's `repr` from around descriptions: those of tools, those of properties.
pub(super) fn with_repr(list: Vec<Token>, [of_tools, of_properties]: [bool; 2]) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::new();
    for token in list {
        let quoted = matches!(
            out.last(),
            Some(Token::Tool(_, ToolPart::ReprDescription, ..) | Token::Property(_, _, PropertyPart::ReprDescription))
        );
        let token = match token {
            // A full stop belongs to the text inside of the quotes.
            Token::Lit(text) if quoted => Token::Lit(text.replacen('\'', "", 1)),
            Token::Tool(n, ToolPart::Description, style, level) if of_tools => {
                drop_quote(&mut out);
                Token::Tool(n, ToolPart::ReprDescription, style, level)
            }
            Token::Property(n, k, PropertyPart::Description) if of_properties => {
                drop_quote(&mut out);
                Token::Property(n, k, PropertyPart::ReprDescription)
            }
            other => other,
        };
        out.push(token);
    }
    out
}

fn drop_quote(out: &mut [Token]) {
    if let Some(Token::Lit(text)) = out.last_mut()
        && text.ends_with('\'')
    {
        text.pop();
    }
}

/// The pieces of a rendered list of tools. A full stop at the end of a description belongs to it.
fn pieces((tokens, tools): &Shown) -> Result<Vec<Piece>, Unexplained> {
    let mut out: Vec<Piece> = Vec::new();
    for token in tokens {
        match token {
            Token::Tool(n, part, style, level) => {
                let element = Element::Tool(*part, style.clone(), *level);
                out.push(Piece { tool: *n, property: None, element, behind: String::new() });
            }
            Token::Property(n, k, part) => {
                let (mut tool, mut property) = (*n, *k);
                if matches!(part, PropertyPart::Items(..))
                    && let Some(Piece { tool: t, property: Some(p), .. }) = out.last()
                {
                    // Items of two properties may be equal: these are the items of the property at hand.
                    (tool, property) = (*t, *p);
                }
                let element = match part {
                    PropertyPart::EnumValue(value, quoted) => {
                        if *value > 0 {
                            add_enum_value(&mut out, *value, *quoted)?;
                            continue;
                        }
                        Element::EnumValues(*quoted, String::new())
                    }
                    other => Element::Property(other.clone()),
                };
                out.push(Piece { tool, property: Some(property), element, behind: String::new() });
            }
            Token::Lit(text) => {
                if let Some(last) = out.last_mut() {
                    last.behind = text.clone();
                }
            }
            _ if out.is_empty() => {}
            // The tools end where something else is printed.
            _ => break,
        }
    }
    for piece in &mut out {
        if let (Element::Property(PropertyPart::Description | PropertyPart::ReprDescription), Some(k)) =
            (&piece.element, piece.property)
            && property_facts(tools, piece.tool, k) & SchemaFeature::FullStop.bit() != 0
        {
            match piece.behind.strip_prefix('.') {
                Some(rest) => piece.behind = rest.to_owned(),
                None => return unexplained("descriptions of properties are changed"),
            }
        }
    }
    Ok(out)
}

/// Joins an allowed value, but the first, to the list that the values before it make.
fn add_enum_value(out: &mut [Piece], value: usize, quoted: bool) -> Result<(), Unexplained> {
    let Some(Piece { element: Element::EnumValues(same, separator), behind, .. }) = out.last_mut() else {
        return unexplained("allowed values are not printed one behind the other");
    };
    let between = std::mem::take(behind);
    if *same != quoted || value > 1 && *separator != between {
        return unexplained("allowed values are not all printed alike");
    }
    *separator = between;
    Ok(())
}

/// The shapes of a tool: its own elements, and loops over its properties.
fn shapes(pieces: &[Piece], tool: &Json) -> Result<Vec<Shape>, Unexplained> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(first) = pieces.get(at) {
        let Some(mut index) = first.property else {
            out.push(Shape::Element(first.element.clone()));
            at += 1;
            continue;
        };
        let mut end = at;
        while let Some(k) = pieces.get(end).and_then(|p| p.property)
            && k >= index
        {
            index = k;
            end += 1;
        }
        out.push(run(&pieces[at..end], tool)?);
        at = end;
    }
    Ok(out)
}

/// The shape of elements whose properties come in order: a loop over all of them, or a list of the required ones.
fn run(pieces: &[Piece], tool: &Json) -> Result<Shape, Unexplained> {
    let count = properties(tool).map_or(0, Map::len);
    let of =
        |k: usize| -> Vec<&Element> { pieces.iter().filter(|p| p.property == Some(k)).map(|p| &p.element).collect() };
    let first = of(0);
    if !first.is_empty() && (1..count).all(|k| of(k) == first) {
        return Ok(Shape::Loop(first.into_iter().cloned().collect()));
    }
    let listed: Vec<usize> = pieces.iter().filter_map(|p| p.property).collect();
    let names = pieces.iter().all(|p| p.element == Element::Property(PropertyPart::Name));
    let separator = pieces.first().map(|p| p.behind.clone()).unwrap_or_default();
    let inner = &pieces[..pieces.len().saturating_sub(1)];
    if names && listed == required(tool) && inner.iter().all(|p| p.behind == separator) {
        return Ok(Shape::Element(Element::Required(separator)));
    }
    unexplained("the properties of tools are not written one by one")
}

/// Joins the elements that all properties have with those that only some have.
fn merge(
    base: &[Element],
    with_enum: &[Element],
    with_items: &[Element],
) -> Option<Vec<(Element, Option<SchemaFeature>)>> {
    let mut out = Vec::new();
    let (mut enums, mut items) = (with_enum.iter().peekable(), with_items.iter().peekable());
    let mut extras = |out: &mut Vec<(Element, Option<SchemaFeature>)>, until: Option<&Element>| {
        for (list, feature) in [(&mut enums, SchemaFeature::HasEnum), (&mut items, SchemaFeature::IsArray)] {
            while let Some(extra) = list.next_if(|e| Some(*e) != until) {
                out.push((extra.clone(), Some(feature)));
            }
            if list.next().is_none() && until.is_some() {
                return None;
            }
        }
        Some(())
    };
    for element in base {
        extras(&mut out, Some(element))?;
        out.push((element.clone(), None));
    }
    extras(&mut out, None)?;
    Some(out)
}

impl Layout {
    /// Finds the steps from rendered tools whose properties are all plain, have allowed values, are arrays, plain.
    pub(super) fn discover(references: &[Shown]) -> Result<Self, Unexplained> {
        let mut all = Vec::new();
        for shown in references {
            all.push(shapes(&pieces(shown)?, &shown.1[0])?);
        }
        let [plain, with_enum, with_items, other] = all.as_slice() else {
            return unexplained("the template refuses some tools");
        };
        if plain != other || plain.len() != with_enum.len() || plain.len() != with_items.len() {
            return unexplained("tools are written differently for other types");
        }
        let mut steps = Vec::new();
        for ((base, with_enum), with_items) in plain.iter().zip(with_enum).zip(with_items) {
            steps.push(match (base, with_enum, with_items) {
                (Shape::Element(a), Shape::Element(b), Shape::Element(c)) if a == b && a == c => {
                    let listed = matches!(a, Element::Required(_) | Element::Tool(ToolPart::Required, ..));
                    Place::Element(a.clone(), listed.then_some(SchemaFeature::AnyRequired))
                }
                (Shape::Loop(a), Shape::Loop(b), Shape::Loop(c)) => match merge(a, b, c) {
                    Some(elements) => Place::Loop(elements),
                    None => return unexplained("properties are written in another order for other types"),
                },
                _ => return unexplained("tools are written differently for other types"),
            });
        }
        Ok(Self { steps })
    }

    /// Learns the text behind every element.
    pub(super) fn rules(&self, shown: &[Shown]) -> Result<Vec<Step>, Unexplained> {
        let mut samples: Vec<Vec<Vec<Sample>>> = self
            .steps
            .iter()
            .map(|step| match step {
                Place::Element(..) => vec![Vec::new()],
                Place::Loop(elements) => vec![Vec::new(); elements.len()],
            })
            .collect();
        let mut endings: Vec<(usize, usize, usize)> = Vec::new();
        for one in shown {
            let pieces = pieces(one)?;
            let mut rest = pieces.as_slice();
            let mut last = (0, 0);
            for n in 0..one.1.len() {
                for (s, step) in self.steps.iter().enumerate() {
                    match step {
                        Place::Element(element, only_if) => {
                            let facts = tool_facts(&one.1, n);
                            if only_if.is_none_or(|f| facts & f.bit() != 0) {
                                let behind = take_element(&mut rest, element, &one.1, n)?;
                                samples[s][0].push(Sample { facts, text: behind });
                                last = (s, 0);
                            }
                        }
                        Place::Loop(elements) => {
                            for k in 0..properties(&one.1[n]).map_or(0, Map::len) {
                                let facts = property_facts(&one.1, n, k);
                                for (e, (element, only_if)) in elements.iter().enumerate() {
                                    if only_if.is_none_or(|f| facts & f.bit() != 0) {
                                        let piece = take(&mut rest, element, n, Some(k))?;
                                        samples[s][e].push(Sample { facts, text: piece.behind.clone() });
                                        last = (s, e);
                                    }
                                }
                            }
                        }
                    }
                }
            }
            if !rest.is_empty() {
                return unexplained("more is written for some tools than for others");
            }
            endings.push((last.0, last.1, samples[last.0][last.1].len() - 1));
        }
        drop_common_ending(&mut samples, &endings);
        let rule = |samples: &[Sample]| match Rule::learn(samples) {
            Some(rule) => Ok(rule),
            None => unexplained("no rule for the text behind a part of the tools"),
        };
        let mut out = Vec::new();
        for (step, samples) in self.steps.iter().zip(&samples) {
            let written = |(element, only_if): &(Element, Option<SchemaFeature>), samples: &[Sample]| {
                Ok(Written { element: element.clone(), only_if: *only_if, behind: rule(samples)? })
            };
            out.push(match step {
                Place::Element(element, only_if) => Step::Element(written(&(element.clone(), *only_if), &samples[0])?),
                Place::Loop(elements) => {
                    Step::Loop(elements.iter().zip(samples).map(|(e, s)| written(e, s)).collect::<Result<_, _>>()?)
                }
            });
        }
        Ok(out)
    }
}

/// Takes the next piece, which must be this one.
fn take<'p>(
    rest: &mut &'p [Piece],
    element: &Element,
    tool: usize,
    property: Option<usize>,
) -> Result<&'p Piece, Unexplained> {
    match rest.split_first() {
        Some((piece, others)) if piece.tool == tool && piece.property == property && piece.element == *element => {
            *rest = others;
            Ok(piece)
        }
        _ => unexplained("tools are not all written alike"),
    }
}

/// Takes an element of the tool, and returns the text behind it.
fn take_element(rest: &mut &[Piece], element: &Element, tools: &[Json], n: usize) -> Result<String, Unexplained> {
    let Element::Required(separator) = element else {
        return Ok(take(rest, element, n, None)?.behind.clone());
    };
    let listed = required(&tools[n]);
    let mut behind = String::new();
    for (i, k) in listed.iter().enumerate() {
        behind.clone_from(&take(rest, &Element::Property(PropertyPart::Name), n, Some(*k))?.behind);
        if i + 1 < listed.len() && behind != *separator {
            return unexplained("required properties are not all listed alike");
        }
    }
    Ok(behind)
}

/// What always stands behind the tools is not theirs, but for what also stands behind a tool that others follow.
fn drop_common_ending(samples: &mut [Vec<Vec<Sample>>], endings: &[(usize, usize, usize)]) {
    let texts: Vec<&str> = endings.iter().map(|(s, e, n)| samples[*s][*e][*n].text.as_str()).collect();
    let Some((first, others)) = texts.split_first() else {
        return;
    };
    let common = others.iter().fold(*first, |shared, text| crate::ollama::stops::common_suffix(shared, text));
    let mut kept = common.len();
    for (s, e, n) in endings {
        let last = &samples[*s][*e][*n];
        let own = last.text.len() - common.len();
        let twin = last.facts & !SchemaFeature::LastTool.bit();
        for other in samples[*s][*e].iter().filter(|other| other.facts == twin) {
            let shared = crate::ollama::stops::common_prefix(&last.text, &other.text).len();
            kept = kept.min(shared.saturating_sub(own));
        }
    }
    // Lengths differ in the middle of no character: both are ends of common texts of the same ending.
    let dropped = common.len() - kept;
    for (s, e, n) in endings {
        let text = &mut samples[*s][*e][*n].text;
        text.truncate(text.len() - dropped);
    }
}
