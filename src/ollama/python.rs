//! What Python would print: `repr`, `str` and `json.dumps` of a Jinja value, and `strftime`.
//!
//! Chat templates were written against jinja2, where printing a dictionary gives Python's `repr` and `tojson`
//! is `json.dumps(…, ensure_ascii=False)` (transformers' `chat_template_utils.py`). minijinja prints neither way.

use minijinja::value::{Value, ValueKind};
use std::fmt::Write;

/// Separators and indentation of one `tojson` call, with `json.dumps`'s defaults.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JsonStyle {
    /// Indentation of nested lines, `None` for everything on one line.
    pub indent: Option<String>,
    /// Between the items of a list or dictionary; a line break follows it if there is an indent.
    pub item_separator: String,
    /// Between a key and its value.
    pub key_separator: String,
    /// Whether dictionaries are written with sorted keys.
    pub sort_keys: bool,
    /// Whether characters beyond ASCII are written as `\uXXXX`.
    pub ensure_ascii: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            indent: None,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            sort_keys: false,
            ensure_ascii: false,
        }
    }
}

/// `json.dumps(value)` in the given style.
pub fn json_dumps(value: &Value, style: &JsonStyle) -> String {
    json_dumps_at(value, style, 0)
}

/// `json.dumps(value)` as it stands inside of other JSON, indented that many times.
pub fn json_dumps_at(value: &Value, style: &JsonStyle, level: usize) -> String {
    let mut out = String::new();
    write_json(&mut out, value, style, level);
    out
}

fn newline(out: &mut String, style: &JsonStyle, level: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..level {
            out.push_str(indent);
        }
    }
}

/// Nesting beyond this is cut: no template prints it, and a value cannot refer to itself.
const MAX_DEPTH: usize = 200;

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, level: usize) {
    match value.kind() {
        _ if level > MAX_DEPTH => out.push_str("null"),
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Map => {
            let mut items: Vec<(Value, Value)> = entries(value);
            if style.sort_keys {
                items.sort_by_key(|(k, _)| k.to_string());
            }
            if items.is_empty() {
                out.push_str("{}");
                return;
            }
            out.push('{');
            for (n, (key, item)) in items.iter().enumerate() {
                if n > 0 {
                    out.push_str(&style.item_separator);
                }
                newline(out, style, level + 1);
                write_json_string(out, &key.to_string(), style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_json(out, item, style, level + 1);
            }
            newline(out, style, level);
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
            if items.is_empty() {
                out.push_str("[]");
                return;
            }
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push_str(&style.item_separator);
                }
                newline(out, style, level + 1);
                write_json(out, item, style, level + 1);
            }
            newline(out, style, level);
            out.push(']');
        }
        _ => write_json_string(out, &text(value), style.ensure_ascii),
    }
}

/// A JSON string as Python writes it: short escapes, `\u00XX` for other control characters.
pub fn write_json_string(out: &mut String, text: &str, ensure_ascii: bool) {
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
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c if ensure_ascii && (c as u32) >= 0x7f => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn entries(value: &Value) -> Vec<(Value, Value)> {
    value
        .try_iter()
        .map(|keys| {
            keys.map(|k| {
                let item = value.get_item(&k).unwrap_or_default();
                (k, item)
            })
            .collect()
        })
        .unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Python prints whole floats with `.0` and switches to exponents at 1e16; integers as they are.
fn number(value: &Value) -> String {
    let plain = value.to_string();
    if value.is_integer() {
        return plain;
    }
    match f64::try_from(value.clone()) {
        Ok(f) if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Ok(f) if f.is_nan() => "NaN".into(),
        Ok(f) if f != 0.0 && (f.abs() >= 1e16 || f.abs() < 1e-4) => {
            let s = format!("{f:e}");
            match s.split_once('e') {
                Some((m, e)) => {
                    let (sign, digits) = match e.strip_prefix('-') {
                        Some(d) => ('-', d),
                        None => ('+', e),
                    };
                    format!("{m}e{sign}{digits:0>2}")
                }
                None => s,
            }
        }
        Ok(f) => format!("{f:?}"),
        Err(_) => plain,
    }
}

/// Python's `str(value)`: strings as they are, everything else as `repr` prints it.
pub fn to_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => text(value),
        ValueKind::Undefined => String::new(),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value, 0);
            out
        }
    }
}

fn write_repr(out: &mut String, value: &Value, level: usize) {
    match value.kind() {
        _ if level > MAX_DEPTH => out.push_str("..."),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_repr_string(out, &text(value)),
        ValueKind::Map => {
            out.push('{');
            for (n, (key, item)) in entries(value).iter().enumerate() {
                if n > 0 {
                    out.push_str(", ");
                }
                write_repr(out, key, level + 1);
                out.push_str(": ");
                write_repr(out, item, level + 1);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            if let Ok(items) = value.try_iter() {
                for (n, item) in items.enumerate() {
                    if n > 0 {
                        out.push_str(", ");
                    }
                    write_repr(out, &item, level + 1);
                }
            }
            out.push(']');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's `repr` of a string: single quotes unless only they occur inside.
fn write_repr_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A calendar day, all that a chat template needs of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Year, as people write it.
    pub year: i32,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day of the month, 1 to 31.
    pub day: u32,
}

/// The months' English names, in order.
pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Date {
    /// Today in UTC, from the system clock.
    pub fn today() -> Self {
        let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self::from_days(i64::try_from(seconds / 86_400).unwrap_or(0))
    }

    /// The day that many days after 1 January 1970 (the civil-from-days formula of the proleptic calendar).
    fn from_days(days: i64) -> Self {
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let doe = z.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
        let month = (if mp < 10 { mp + 3 } else { mp - 9 }) as u32;
        let year = (yoe + era * 400 + i64::from(month <= 2)) as i32;
        Self { year, month, day }
    }

    fn days(self) -> i64 {
        let y = i64::from(self.year) - i64::from(self.month <= 2);
        let era = y.div_euclid(400);
        let yoe = y.rem_euclid(400);
        let m = i64::from(self.month);
        let doy = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
    }

    /// The day before.
    pub fn yesterday(self) -> Self {
        Self::from_days(self.days() - 1)
    }

    /// `YYYY-MM-DD`.
    pub fn iso(self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// Python's `strftime` for midnight of this day; directives it does not know are kept as written.
    pub fn strftime(self, format: &str) -> String {
        let month = MONTHS[(self.month as usize).clamp(1, 12) - 1];
        let weekday = DAYS[(self.days() + 3).rem_euclid(7) as usize];
        let first = Self { month: 1, day: 1, ..self };
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            let two = |n: u32| {
                if bare { n.to_string() } else { format!("{n:02}") }
            };
            match directive {
                Some('Y') => out.push_str(&self.year.to_string()),
                Some('y') => out.push_str(&two(self.year.rem_euclid(100) as u32)),
                Some('m') => out.push_str(&two(self.month)),
                Some('d') => out.push_str(&two(self.day)),
                Some('e') => out.push_str(&format!("{:>2}", self.day)),
                Some('B') => out.push_str(month),
                Some('b' | 'h') => out.push_str(&month[..3]),
                Some('A') => out.push_str(weekday),
                Some('a') => out.push_str(&weekday[..3]),
                Some('j') => out.push_str(&format!("{:03}", self.days() - first.days() + 1)),
                Some('F') => out.push_str(&self.iso()),
                Some('H' | 'M' | 'S') => out.push_str(&two(0)),
                Some('I') => out.push_str(&two(12)),
                Some('p') => out.push_str("AM"),
                Some('Z' | 'z') => {}
                Some('%') => out.push('%'),
                Some(other) => {
                    out.push('%');
                    out.push(other);
                }
                None => out.push('%'),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    #[test]
    fn json_is_pythons() {
        let v = Value::from_serialize(serde_json::json!({"b": [1, 2.0, "x\u{1}<"], "a": {}, "n": null, "t": true}));
        assert_eq!(
            json_dumps(&v, &JsonStyle::default()),
            r#"{"b": [1, 2.0, "x\u0001<"], "a": {}, "n": null, "t": true}"#
        );
        let indented = JsonStyle { indent: Some("  ".into()), item_separator: ",".into(), ..JsonStyle::default() };
        assert_eq!(json_dumps(&context! {a => vec![1]}, &indented), "{\n  \"a\": [\n    1\n  ]\n}");
    }

    #[test]
    fn repr_is_pythons() {
        let v = Value::from_serialize(serde_json::json!({"a": true, "b": [null, "it's", "q"]}));
        assert_eq!(to_str(&v), r#"{'a': True, 'b': [None, "it's", 'q']}"#);
    }

    #[test]
    fn dates_round_trip() {
        for days in [-800_000, -1, 0, 59, 11_016, 20_000, 30_000] {
            assert_eq!(Date::from_days(days).days(), days);
        }
        let d = Date { year: 2024, month: 3, day: 1 };
        assert_eq!(d.yesterday().iso(), "2024-02-29");
        assert_eq!(d.strftime("%A %d %B %Y, %-d %b %j"), "Friday 01 March 2024, 1 Mar 061");
    }
}
