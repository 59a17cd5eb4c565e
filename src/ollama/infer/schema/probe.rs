//! Tools to learn from: every type, required or not, at every place.

use super::TYPES;
use serde_json::{Map, Value as Json, json};

/// What a property of a probe is.
#[derive(Clone, Copy, Debug)]
struct Variant {
    kind: Kind,
    required: bool,
    full_stop: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A type by its number.
    Plain(usize),
    /// A string of which so many values are allowed.
    Enum(usize),
    /// An array with items of a type.
    Array(usize),
}

const KINDS: [Kind; 10] = [
    Kind::Plain(0),
    Kind::Plain(1),
    Kind::Plain(2),
    Kind::Plain(3),
    Kind::Enum(2),
    Kind::Enum(3),
    Kind::Array(0),
    Kind::Array(1),
    Kind::Array(2),
    Kind::Array(3),
];

fn property(n: usize, k: char, variant: Variant) -> Json {
    let stop = if variant.full_stop { "." } else { "" };
    let description = format!("QzP{n}{k}Xq{stop}");
    match variant.kind {
        Kind::Plain(t) => json!({"type": TYPES[t].0, "description": description}),
        Kind::Enum(count) => {
            let values: Vec<String> = (0..count).map(|v| format!("QzE{n}{k}{v}Xq")).collect();
            json!({"type": "string", "description": description, "enum": values})
        }
        Kind::Array(t) => json!({"type": "array", "items": {"type": TYPES[t].0}, "description": description}),
    }
}

fn tool(n: usize, variants: &[Variant]) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (k, variant) in ('a'..).zip(variants) {
        let name = format!("qzp{n}{k}");
        if variant.required {
            required.push(name.clone());
        }
        properties.insert(name, property(n, k, *variant));
    }
    let mut parameters = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        parameters["required"] = json!(required);
    }
    json!({"type": "function", "function": {"name": format!("qztn{n}x"), "description": format!("QzD{n}Xq"),
        "parameters": parameters}})
}

/// One tool each whose properties are all alike, so that it shows which elements are written for what; the second
/// is not required, so that a list of the required ones differs from a list of all.
pub(super) fn references() -> Vec<Vec<Json>> {
    [Kind::Plain(0), Kind::Enum(2), Kind::Array(0), Kind::Plain(1)]
        .into_iter()
        .map(|kind| {
            let variant = |required| Variant { kind, required, full_stop: false };
            vec![tool(0, &[variant(true), variant(false), variant(true)])]
        })
        .collect()
}

/// Every variant as the first, the last and the only property of a tool, and every tool as the last and not.
pub(super) fn variations() -> Vec<Vec<Json>> {
    let mut out = Vec::new();
    for (turn, kind) in KINDS.into_iter().enumerate() {
        for required in [true, false] {
            for full_stop in [false, true] {
                let variant = Variant { kind, required, full_stop };
                let filler = |shift: usize| Variant {
                    kind: KINDS[(turn + shift) % KINDS.len()],
                    required: shift.is_multiple_of(2),
                    full_stop: shift.is_multiple_of(3),
                };
                let before = |n| tool(n, &[variant, filler(3)]);
                let behind = |n| tool(n, &[filler(4), variant]);
                let alone = |n| tool(n, &[variant]);
                out.push(vec![before(0), behind(1)]);
                out.push(vec![behind(0), before(1)]);
                out.push(vec![alone(0), behind(1), alone(2)]);
            }
        }
    }
    out
}

/// A tool with apostrophes in its descriptions.
pub(super) fn apostrophes() -> Vec<Json> {
    let parameters = json!({"type": "object", "properties": {"qzp0a": {"type": "string", "description": "QzP0'aXq"}},
        "required": ["qzp0a"]});
    vec![
        json!({"type": "function", "function": {"name": "qztn0x", "description": "QzD0'Xq", "parameters": parameters}}),
    ]
}
