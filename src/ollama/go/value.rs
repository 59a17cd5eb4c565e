//! The values that a template sees, with the parts of their Go types that it can observe.

use std::collections::BTreeMap;
use std::rc::Rc;

/// A value in a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A nil interface: a missing map key, JSON's null.
    Nil,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `float64`
    Float(f64),
    /// `string`
    Str(Rc<str>),
    /// A `string` cut inside of a character: Go cuts bytes.
    Bytes(Rc<[u8]>),
    /// A slice.
    List(Rc<List>),
    /// A map with string keys.
    Map(Rc<Map>),
    /// A struct, or a pointer to one.
    Struct(Rc<Struct>),
}

/// A slice and its type.
#[derive(Debug, PartialEq)]
pub struct List {
    /// The type, which decides how it prints.
    pub kind: Kind,
    /// The items.
    pub items: Vec<Value>,
}

/// A map and its type; Go ranges over it in the order of its keys.
#[derive(Debug, PartialEq)]
pub struct Map {
    /// The type, which decides how it prints.
    pub kind: Kind,
    /// The entries.
    pub entries: BTreeMap<String, Value>,
}

/// A struct's fields in order.
#[derive(Debug, PartialEq)]
pub struct Struct {
    /// The type, which decides how it prints.
    pub kind: Kind,
    /// The fields.
    pub fields: Vec<Field>,
}

/// A field of a struct.
#[derive(Debug, PartialEq)]
pub struct Field {
    /// The name that templates use.
    pub name: &'static str,
    /// The name in JSON.
    pub json: &'static str,
    /// Whether JSON leaves it out when it is empty.
    pub omit_empty: bool,
    /// The value.
    pub value: Value,
}

/// What of a type's identity a template can observe: its `%T` and whether printing it gives JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What `printf "%T"` prints.
    pub name: &'static str,
    /// Whether the type has a `String` method that returns its JSON.
    pub prints_json: bool,
    /// Whether a single-item list is written as its item (`api.PropertyType`).
    pub unwraps_single: bool,
}

impl Kind {
    /// A type that prints the way Go prints its kind.
    pub const fn plain(name: &'static str) -> Self {
        Self { name, prints_json: false, unwraps_single: false }
    }

    /// A type whose `String` method returns JSON.
    pub const fn json(name: &'static str) -> Self {
        Self { name, prints_json: true, unwraps_single: false }
    }

    /// `[]interface {}`
    pub const ANY_LIST: Self = Self::plain("[]interface {}");
    /// `map[string]interface {}`
    pub const ANY_MAP: Self = Self::plain("map[string]interface {}");
    /// `[]string`
    pub const STRINGS: Self = Self::plain("[]string");
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Value::Str(s.into())
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Value::Str(s.into())
    }
}

impl From<&serde_json::Value> for Value {
    /// As `json.Unmarshal` into `any` does: every number becomes a float64.
    fn from(v: &serde_json::Value) -> Self {
        use serde_json::Value as J;
        match v {
            J::Null => Value::Nil,
            J::Bool(b) => Value::Bool(*b),
            J::Number(n) => Value::Float(n.as_f64().unwrap_or(0.0)),
            J::String(s) => Value::Str(s.as_str().into()),
            J::Array(items) => Value::list(Kind::ANY_LIST, items.iter().map(Value::from).collect()),
            J::Object(map) => Value::map(Kind::ANY_MAP, map.iter().map(|(k, v)| (k.clone(), v.into())).collect()),
        }
    }
}

impl Value {
    /// The bytes of a string.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Str(s) => Some(s.as_bytes()),
            Value::Bytes(b) => Some(b),
            _ => None,
        }
    }

    /// A slice.
    pub fn list(kind: Kind, items: Vec<Value>) -> Self {
        Value::List(Rc::new(List { kind, items }))
    }

    /// A map.
    pub fn map(kind: Kind, entries: BTreeMap<String, Value>) -> Self {
        Value::Map(Rc::new(Map { kind, entries }))
    }

    /// A struct; fields as (name, JSON name, omitted when empty, value).
    pub fn record(kind: Kind, fields: Vec<(&'static str, &'static str, bool, Value)>) -> Self {
        Value::Struct(Rc::new(Struct {
            kind,
            fields: fields
                .into_iter()
                .map(|(name, json, omit_empty, value)| Field { name, json, omit_empty, value })
                .collect(),
        }))
    }

    /// Go templates' truth: not the zero value, not an empty string, slice or map.
    pub fn is_true(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Float(f) => *f != 0.0,
            Value::Str(s) => !s.is_empty(),
            Value::Bytes(b) => !b.is_empty(),
            Value::List(l) => !l.items.is_empty(),
            Value::Map(m) => !m.entries.is_empty(),
            Value::Struct(_) => true,
        }
    }

    /// What `printf "%T"` prints.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Nil => "<nil>",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Str(_) | Value::Bytes(_) => "string",
            Value::List(l) => l.kind.name,
            Value::Map(m) => m.kind.name,
            Value::Struct(s) => s.kind.name,
        }
    }
}
