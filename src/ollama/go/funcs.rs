//! The functions: Ollama's own, then text/template's built-in ones.

use super::GoError;
use super::format::{json, plain, printed, sprint, sprintf, typescript};
use super::value::Value;
use crate::ollama::python::Date;
use std::cmp::Ordering;

fn need(name: &str, args: &[Value], least: usize) -> Result<(), GoError> {
    if args.len() < least {
        return Err(GoError::exec(format!(
            "wrong number of args for {name}: want at least {least} got {}",
            args.len()
        )));
    }
    Ok(())
}

/// Calls a function other than `and` and `or`, which decide what is evaluated.
pub(super) fn call(name: &str, args: &[Value], today: Date) -> Result<Value, GoError> {
    let one = || need(name, args, 1).map(|()| &args[0]);
    Ok(match name {
        "json" => json(one()?).into(),
        "currentDate" => today.iso().into(),
        "yesterdayDate" => today.yesterday().iso().into(),
        "toTypeScriptType" => typescript(one()?).into(),
        "not" => Value::Bool(!one()?.is_true()),
        "len" => Value::Int(length(one()?)?),
        "index" => index(one()?, &args[1..])?,
        "slice" => slice(one()?, &args[1..])?,
        "print" => sprint(args).into(),
        "println" => {
            let parts: Vec<String> = args.iter().map(plain).collect();
            format!("{}\n", parts.join(" ")).into()
        }
        "printf" => match one()? {
            Value::Str(format) => sprintf(format, &args[1..]).into(),
            other => {
                return Err(GoError::exec(format!("wrong type for value; expected string; got {}", other.type_name())));
            }
        },
        "eq" => {
            let first = one()?;
            need("eq", args, 2)?;
            let mut found = false;
            for other in &args[1..] {
                if equal(first, other)? {
                    found = true;
                    break;
                }
            }
            Value::Bool(found)
        }
        "ne" => {
            need("ne", args, 2)?;
            Value::Bool(!equal(&args[0], &args[1])?)
        }
        "lt" | "le" | "gt" | "ge" => {
            need(name, args, 2)?;
            let order = compare(&args[0], &args[1])?;
            Value::Bool(match name {
                "lt" => order == Some(Ordering::Less),
                "le" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                "gt" => order == Some(Ordering::Greater),
                _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            })
        }
        "html" => escape(args, |c| match c {
            '"' => Some("&#34;".into()),
            '\'' => Some("&#39;".into()),
            '&' => Some("&amp;".into()),
            '<' => Some("&lt;".into()),
            '>' => Some("&gt;".into()),
            '\0' => Some("\u{fffd}".into()),
            _ => None,
        }),
        "js" => escape(args, |c| match c {
            '\\' => Some("\\\\".into()),
            '\'' => Some("\\'".into()),
            '"' => Some("\\\"".into()),
            '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", c as u32)),
            c if (c as u32) < 0x20 || !super::format::is_print(c) => Some(format!("\\u{:04X}", c as u32)),
            _ => None,
        }),
        "urlquery" => {
            let mut out = String::new();
            for byte in evaluated(args).bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
                    b' ' => out.push('+'),
                    b => out.push_str(&format!("%{b:02X}")),
                }
            }
            out.into()
        }
        "call" => return Err(GoError::exec("call of a value that is no function")),
        other => return Err(GoError::exec(format!("{other:?} is not a defined function"))),
    })
}

fn evaluated(args: &[Value]) -> String {
    match args {
        [Value::Str(s)] => s.to_string(),
        [one] => printed(one),
        many => sprint(many),
    }
}

fn escape(args: &[Value], replace: impl Fn(char) -> Option<String>) -> Value {
    let mut out = String::new();
    for c in evaluated(args).chars() {
        match replace(c) {
            Some(text) => out.push_str(&text),
            None => out.push(c),
        }
    }
    out.into()
}

fn length(value: &Value) -> Result<i64, GoError> {
    let n = match value {
        Value::Str(s) => s.len(),
        Value::Bytes(b) => b.len(),
        Value::List(l) => l.items.len(),
        Value::Map(m) => m.entries.len(),
        Value::Nil => return Err(GoError::exec("error calling len: len of nil pointer")),
        other => {
            return Err(GoError::exec(format!("error calling len: len of type {}", other.type_name())));
        }
    };
    Ok(i64::try_from(n).unwrap_or(i64::MAX))
}

fn position(value: &Value, limit: usize) -> Result<usize, GoError> {
    let Value::Int(n) = value else {
        return Err(GoError::exec(format!("cannot index slice/array with type {}", value.type_name())));
    };
    usize::try_from(*n).ok().filter(|n| *n <= limit).ok_or_else(|| GoError::exec(format!("index out of range: {n}")))
}

fn index(value: &Value, indices: &[Value]) -> Result<Value, GoError> {
    let mut at = value.clone();
    for i in indices {
        at = match &at {
            Value::List(l) => {
                let n = position(i, l.items.len())?;
                l.items.get(n).cloned().ok_or_else(|| GoError::exec(format!("index out of range: {n}")))?
            }
            Value::Str(_) | Value::Bytes(_) => {
                let bytes = at.bytes().unwrap_or_default();
                let n = position(i, bytes.len())?;
                bytes
                    .get(n)
                    .map(|b| Value::Int(i64::from(*b)))
                    .ok_or_else(|| GoError::exec(format!("index out of range: {n}")))?
            }
            Value::Map(m) => match i {
                Value::Str(key) => m.entries.get(&**key).cloned().unwrap_or(Value::Nil),
                other => {
                    return Err(GoError::exec(format!("value has type {}; should be string", other.type_name())));
                }
            },
            Value::Nil => return Err(GoError::exec("error calling index: index of untyped nil")),
            other => {
                return Err(GoError::exec(format!(
                    "error calling index: can't index item of type {}",
                    other.type_name()
                )));
            }
        };
    }
    Ok(at)
}

fn slice(value: &Value, indices: &[Value]) -> Result<Value, GoError> {
    let size = match value {
        Value::Str(s) => s.len(),
        Value::Bytes(b) => b.len(),
        Value::List(l) => l.items.len(),
        Value::Nil => return Err(GoError::exec("error calling slice: slice of untyped nil")),
        other => {
            return Err(GoError::exec(format!("error calling slice: can't slice item of type {}", other.type_name())));
        }
    };
    if indices.len() > 2 {
        return Err(GoError::exec("error calling slice: too many slice indexes"));
    }
    let from = indices.first().map_or(Ok(0), |i| position(i, size))?;
    let to = indices.get(1).map_or(Ok(size), |i| position(i, size))?;
    if from > to {
        return Err(GoError::exec(format!("invalid slice index: {from} > {to}")));
    }
    match value {
        Value::Str(_) | Value::Bytes(_) => {
            let cut = &value.bytes().unwrap_or_default()[from..to];
            Ok(match std::str::from_utf8(cut) {
                Ok(text) => text.into(),
                Err(_) => Value::Bytes(cut.into()),
            })
        }
        Value::List(l) => Ok(Value::list(l.kind, l.items[from..to].to_vec())),
        _ => Ok(Value::Nil),
    }
}

/// Go's `eq` of two values: basic kinds must agree, nil equals only nil.
fn equal(a: &Value, b: &Value) -> Result<bool, GoError> {
    match (a, b) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (Value::Bool(x), Value::Bool(y)) => Ok(x == y),
        (Value::Int(x), Value::Int(y)) => Ok(x == y),
        (Value::Float(x), Value::Float(y)) => Ok(x == y),
        (Value::Str(_) | Value::Bytes(_), Value::Str(_) | Value::Bytes(_)) => Ok(a.bytes() == b.bytes()),
        (Value::List(_) | Value::Map(_), _) | (_, Value::List(_) | Value::Map(_)) => {
            Err(GoError::exec("error calling eq: non-comparable type"))
        }
        (Value::Struct(x), Value::Struct(y)) => Ok(std::rc::Rc::ptr_eq(x, y)),
        _ => Err(GoError::exec("error calling eq: incompatible types for comparison")),
    }
}

fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>, GoError> {
    match (a, b) {
        (Value::Int(x), Value::Int(y)) => Ok(Some(x.cmp(y))),
        (Value::Float(x), Value::Float(y)) => Ok(x.partial_cmp(y)),
        (Value::Str(_) | Value::Bytes(_), Value::Str(_) | Value::Bytes(_)) => Ok(Some(a.bytes().cmp(&b.bytes()))),
        (Value::Int(_) | Value::Float(_) | Value::Str(_), Value::Int(_) | Value::Float(_) | Value::Str(_)) => {
            Err(GoError::exec("error calling lt: incompatible types for comparison"))
        }
        _ => Err(GoError::exec("error calling lt: invalid type for comparison")),
    }
}
