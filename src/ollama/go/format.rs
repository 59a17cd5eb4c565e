//! Printing: `fmt` as templates reach it, and `encoding/json`.

use super::value::{Kind, Value};
use std::fmt::Write;

/// What an action prints for a value (`text/template`'s `printValue`).
pub(super) fn printed(value: &Value) -> String {
    match value {
        Value::Nil => "<no value>".into(),
        v => plain(v),
    }
}

/// `%v`
pub(super) fn plain(value: &Value) -> String {
    let mut out = String::new();
    write_plain(&mut out, value);
    out
}

fn joined(out: &mut String, values: impl Iterator<Item = (Option<String>, Value)>) {
    for (n, (key, value)) in values.enumerate() {
        if n > 0 {
            out.push(' ');
        }
        if let Some(key) = key {
            out.push_str(&key);
            out.push(':');
        }
        write_plain(out, &value);
    }
}

fn write_plain(out: &mut String, value: &Value) {
    match value {
        Value::Nil => out.push_str("<nil>"),
        Value::Bool(b) => {
            let _ = write!(out, "{b}");
        }
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Float(f) => out.push_str(&float(*f)),
        Value::Str(s) => out.push_str(s),
        Value::Bytes(b) => out.push_str(&String::from_utf8_lossy(b)),
        Value::List(l) if l.kind.prints_json => out.push_str(&json(value)),
        Value::Map(m) if m.kind.prints_json => out.push_str(&json(value)),
        Value::Struct(s) if s.kind.prints_json => out.push_str(&json(value)),
        Value::List(l) if l.kind.unwraps_single && l.items.len() < 2 => {
            if let Some(item) = l.items.first() {
                write_plain(out, item);
            }
        }
        Value::List(l) => {
            out.push('[');
            joined(out, l.items.iter().map(|v| (None, v.clone())));
            out.push(']');
        }
        Value::Map(m) => {
            out.push_str("map[");
            joined(out, m.entries.iter().map(|(k, v)| (Some(k.clone()), v.clone())));
            out.push(']');
        }
        Value::Struct(s) => {
            out.push('{');
            joined(out, s.fields.iter().map(|f| (None, f.value.clone())));
            out.push('}');
        }
    }
}

/// `%v` of a float64: shortest digits, an exponent below 1e-4 and from 1e21 on.
pub(super) fn float(f: f64) -> String {
    if f.is_nan() {
        return "NaN".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let magnitude = f.abs();
    if f != 0.0 && !(1e-4..1e21).contains(&magnitude) { exponent(f, 2) } else { format!("{f}") }
}

/// Scientific notation with at least `width` digits in the exponent.
pub(super) fn exponent(f: f64, width: usize) -> String {
    let text = format!("{f:e}");
    match text.split_once('e') {
        Some((mantissa, exp)) => match exp.strip_prefix('-') {
            Some(digits) => format!("{mantissa}e-{digits:0>width$}"),
            None => format!("{mantissa}e+{exp:0>width$}"),
        },
        None => text,
    }
}

/// `json.Marshal`: compact, sorted maps, `<`, `>` and `&` escaped.
pub fn json(value: &Value) -> String {
    let mut out = String::new();
    write_json(&mut out, value);
    out
}

fn write_json(out: &mut String, value: &Value) {
    match value {
        Value::Nil => out.push_str("null"),
        Value::Bool(b) => {
            let _ = write!(out, "{b}");
        }
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Float(f) => {
            let magnitude = f.abs();
            if *f != 0.0 && !(1e-6..1e21).contains(&magnitude) {
                out.push_str(&exponent(*f, 1));
            } else {
                let _ = write!(out, "{f}");
            }
        }
        Value::Str(s) => write_json_string(out, s),
        Value::Bytes(b) => write_json_string(out, &String::from_utf8_lossy(b)),
        Value::List(l) if l.kind.unwraps_single && l.items.len() == 1 => write_json(out, &l.items[0]),
        Value::List(l) => {
            out.push('[');
            for (n, item) in l.items.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write_json(out, item);
            }
            out.push(']');
        }
        Value::Map(m) => {
            out.push('{');
            for (n, (key, item)) in m.entries.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write_json_string(out, key);
                out.push(':');
                write_json(out, item);
            }
            out.push('}');
        }
        Value::Struct(s) => {
            out.push('{');
            let shown = s.fields.iter().filter(|f| !(f.omit_empty && is_empty(&f.value)));
            for (n, field) in shown.enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write_json_string(out, field.json);
                out.push(':');
                write_json(out, &field.value);
            }
            out.push('}');
        }
    }
}

/// encoding/json's `omitempty`.
fn is_empty(value: &Value) -> bool {
    !matches!(value, Value::Struct(_)) && !value.is_true()
}

fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Go's `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space.
pub fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // `escape_debug` of a string escapes what Unicode does not count as graphic, marks excepted behind a letter.
    let text: String = ['a', c].iter().collect();
    text.escape_debug().nth(1) == Some(c)
}

/// `%q`: `strconv.Quote`.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_print(c) => out.push(c),
            c if (c as u32) < 0x80 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if (c as u32) < 0x1_0000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

/// `fmt.Sprint`: a blank between two operands that are both no strings.
pub(super) fn sprint(args: &[Value]) -> String {
    let mut out = String::new();
    for (n, arg) in args.iter().enumerate() {
        if n > 0 && !matches!(arg, Value::Str(_)) && !matches!(args[n - 1], Value::Str(_)) {
            out.push(' ');
        }
        write_plain(&mut out, arg);
    }
    out
}

/// `fmt.Sprintf`
pub(super) fn sprintf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(f) = chars.next_if(|c| "+-# 0".contains(*c)) {
            flags.push(f);
        }
        let digits = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut n = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                n.push(d);
            }
            n.parse::<usize>().ok().map(|n| n.min(1000))
        };
        let width = digits(&mut chars);
        let precision = chars.next_if_eq(&'.').map(|_| digits(&mut chars).unwrap_or(0));
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(arg) = args.get(next) else {
            let _ = write!(out, "%!{verb}(MISSING)");
            continue;
        };
        next += 1;
        let text = match (verb, arg) {
            ('v', Value::Struct(s)) if flags.contains('+') && !s.kind.prints_json => plain(arg),
            ('v', v) => plain(v),
            ('T', v) => v.type_name().to_owned(),
            ('s', Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Nil) => bad(verb, arg),
            ('s', v) => match precision {
                Some(p) => plain(v).chars().take(p).collect(),
                None => plain(v),
            },
            ('q', Value::Str(s)) => quote(s),
            ('d', Value::Int(n)) => signed(*n, &flags),
            ('t', Value::Bool(b)) => b.to_string(),
            ('x', Value::Int(n)) => format!("{n:x}"),
            ('x', Value::Str(s)) => s.bytes().fold(String::new(), |mut t, b| {
                let _ = write!(t, "{b:02x}");
                t
            }),
            ('c', Value::Int(n)) => u32::try_from(*n).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string(),
            ('f', Value::Float(f)) => format!("{f:.*}", precision.unwrap_or(6)),
            ('e', Value::Float(f)) => exponent_fixed(*f, precision.unwrap_or(6)),
            ('g', Value::Float(f)) => float(*f),
            _ => bad(verb, arg),
        };
        let missing = width.unwrap_or(0).saturating_sub(text.chars().count());
        if flags.contains('-') {
            out.push_str(&text);
            out.extend(std::iter::repeat_n(' ', missing));
        } else {
            let zero = flags.contains('0') && !matches!(arg, Value::Str(_));
            let (sign, digits) = match text.strip_prefix('-') {
                Some(d) if zero => ("-", d),
                _ => ("", text.as_str()),
            };
            out.push_str(sign);
            out.extend(std::iter::repeat_n(if zero { '0' } else { ' ' }, missing));
            out.push_str(digits);
        }
    }
    if next < args.len() {
        out.push_str("%!(EXTRA ");
        for (n, arg) in args[next..].iter().enumerate() {
            if n > 0 {
                out.push_str(", ");
            }
            let _ = write!(out, "{}={}", arg.type_name(), plain(arg));
        }
        out.push(')');
    }
    out
}

fn signed(n: i64, flags: &str) -> String {
    if flags.contains('+') && n >= 0 { format!("+{n}") } else { n.to_string() }
}

fn exponent_fixed(f: f64, precision: usize) -> String {
    let text = format!("{f:.precision$e}");
    match text.split_once('e') {
        Some((m, e)) => match e.strip_prefix('-') {
            Some(d) => format!("{m}e-{d:0>2}"),
            None => format!("{m}e+{e:0>2}"),
        },
        None => text,
    }
}

fn bad(verb: char, arg: &Value) -> String {
    match arg {
        Value::Nil => format!("%!{verb}(<nil>)"),
        v => format!("%!{verb}({}={})", v.type_name(), plain(v)),
    }
}

/// TypeScript's word for a property's type (`api.ToolProperty.ToTypeScriptType`).
pub(super) fn typescript(value: &Value) -> String {
    let Value::Struct(property) = value else {
        return "any".into();
    };
    if property.kind != Kind::plain("api.ToolProperty") {
        return "any".into();
    }
    let list = |name: &str| {
        property
            .fields
            .iter()
            .find(|f| f.name == name)
            .and_then(|f| match &f.value {
                Value::List(l) => Some(l.items.clone()),
                _ => None,
            })
            .unwrap_or_default()
    };
    let any_of = list("AnyOf");
    if !any_of.is_empty() {
        return any_of.iter().map(typescript).collect::<Vec<_>>().join(" | ");
    }
    let types = list("Type");
    if types.is_empty() {
        return "any".into();
    }
    let word = |t: &Value| match plain(t).as_str() {
        "string" => "string",
        "number" | "integer" => "number",
        "boolean" => "boolean",
        "array" => "any[]",
        "object" => "Record<string, any>",
        "null" => "null",
        _ => "any",
    };
    types.iter().map(word).collect::<Vec<_>>().join(" | ")
}
