//! Named templates for what Go's functions lack: trimming, JSON as Python writes it, schemas, dates.

use super::go_text::{GoText, quoted};
use super::part::{Side, ToolPart, Trim, ValueForms};
use crate::ollama::python::JsonStyle;
use crate::ollama::python::MONTHS;
use std::collections::BTreeMap;

/// The `define`s that a template uses, collected while its body is written.
#[derive(Default)]
pub(super) struct Defines {
    texts: BTreeMap<String, String>,
    styles: Vec<JsonStyle>,
}

/// Indented JSON is written by one template per depth; nothing real nests deeper than this.
const JSON_DEPTH: usize = 6;

impl Defines {
    /// Writes all definitions.
    pub(super) fn write(&self, out: &mut GoText) {
        for text in self.texts.values() {
            out.inline(text);
        }
    }

    /// The action that prints a text, trimmed.
    pub(super) fn trimmed(&mut self, trim: &Trim, value: &str) -> String {
        if trim.json {
            return format!("printf \"%q\" {value}");
        }
        if (trim.left, trim.right) == (Side::Keep, Side::Keep) {
            return value.to_owned();
        }
        let name = self.trim_template(trim.left, trim.right);
        format!("template \"{name}\" {value}")
    }

    /// Defines how to print a text without its blanks: text/template has no trim, so they are cut one by one,
    /// first those on the left, then those on the right.
    fn trim_template(&mut self, left: Side, right: Side) -> String {
        let word = |side: Side, end: &str| match side {
            Side::Keep => String::new(),
            Side::Lines => format!("Lines{end}"),
            Side::Blanks => end.to_owned(),
        };
        let blank = |side: Side| match side {
            Side::Lines => r#""\n""#,
            _ => r#"" " "\n" "\t" "\r" "\v" "\f""#,
        };
        let (name, end, rest, side, then) = if left == Side::Keep {
            let name = format!("trim{}", word(right, "Right"));
            (name, "(slice . (len (slice . 1)))", "(slice . 0 (len (slice . 1)))", right, "{{ . }}".to_owned())
        } else {
            let then = if right == Side::Keep {
                "{{ . }}".to_owned()
            } else {
                format!("{{{{ template \"{}\" . }}}}", self.trim_template(Side::Keep, right))
            };
            let name = if (left, right) == (Side::Blanks, Side::Blanks) {
                "trim".to_owned()
            } else {
                format!("trim{}{}", word(left, "Left"), word(right, "Right"))
            };
            (name, "(slice . 0 1)", "(slice . 1)", left, then)
        };
        let text = format!(
            "{{{{- define \"{name}\" }}}}{{{{ if and . (eq {end} {}) }}}}{{{{ template \"{name}\" {rest} }}}}{{{{ else }}}}{then}{{{{ end }}}}{{{{ end }}}}",
            blank(side)
        );
        self.texts.insert(name.clone(), text);
        name
    }

    /// Prints today's date in a `strftime` format.
    pub(super) fn date(&mut self, out: &mut GoText, format: &str) -> Result<(), String> {
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.text(&c.to_string());
                continue;
            }
            match chars.next() {
                Some('Y') => out.print("slice currentDate 0 4"),
                Some('y') => out.print("slice currentDate 2 4"),
                Some('m') => out.print("slice currentDate 5 7"),
                Some('d') => out.print("slice currentDate 8 10"),
                Some('F') => out.print("currentDate"),
                Some('-') => match chars.next() {
                    Some('d') => self.bare_number(out, "8"),
                    Some('m') => self.bare_number(out, "5"),
                    other => return Err(format!("the date format {other:?}, which Go cannot make of the date")),
                },
                Some(c @ ('b' | 'B' | 'h')) => {
                    let name = if c == 'B' { "monthName" } else { "month" };
                    let mut text = format!("{{{{- define \"{name}\" }}}}");
                    for (n, month) in MONTHS.iter().enumerate() {
                        let keyword = if n == 0 { "if" } else { "else if" };
                        let month = if c == 'B' { month } else { &month[..3] };
                        text.push_str(&format!("{{{{ {keyword} eq . \"{:02}\" }}}}{month}", n + 1));
                    }
                    text.push_str("{{ end }}{{ end }}");
                    self.texts.insert(name.into(), text);
                    out.print(&format!("template \"{name}\" (slice currentDate 5 7)"));
                }
                Some('%') => out.text("%"),
                other => {
                    return Err(format!("a date with %{}, which Ollama's functions do not tell", other.unwrap_or(' ')));
                }
            }
        }
        Ok(())
    }

    /// A day or month without its leading zero, from where it stands in the date.
    fn bare_number(&mut self, out: &mut GoText, from: &str) {
        let (second, end) = if from == "8" { ("9", "10") } else { ("6", "7") };
        out.control(&format!("if eq (slice currentDate {from} {second}) \"0\""));
        out.print(&format!("slice currentDate {second} {end}"));
        out.control("else");
        out.print(&format!("slice currentDate {from} {end}"));
        out.control("end");
    }

    fn suffix(&mut self, style: &JsonStyle, level: usize) -> String {
        let n = self.styles.iter().position(|s| s == style).unwrap_or_else(|| {
            self.styles.push(style.clone());
            self.styles.len() - 1
        });
        let number = if n == 0 { String::new() } else { format!("{}", n + 1) };
        if style.indent.is_some() { format!("{number}.{level}") } else { number }
    }

    /// A string constant's text printed in the middle of a definition.
    fn constant(text: &str) -> String {
        if !text.contains(['{', '}', '"', '\n']) { text.to_owned() } else { format!("{{{{ {} }}}}", quoted(text)) }
    }

    fn line(style: &JsonStyle, level: usize) -> String {
        style.indent.as_ref().map_or(String::new(), |i| format!("\n{}", i.repeat(level)))
    }

    /// The action that prints a value as JSON in Python's form.
    pub(super) fn json(&mut self, style: &JsonStyle, level: usize, value: &str) -> String {
        let suffix = self.suffix(style, level);
        let name = format!("json{suffix}");
        if !self.texts.contains_key(&name) {
            self.texts.insert(name.clone(), String::new());
            let deeper = if style.indent.is_some() { level + 1 } else { level };
            let inner = if deeper > level + JSON_DEPTH || deeper > 3 * JSON_DEPTH {
                "json $v".to_owned()
            } else {
                self.json(style, deeper, "$v")
            };
            let open = Self::line(style, level + 1);
            let close = Self::line(style, level);
            let comma = format!("{}{open}", style.item_separator);
            let colon = Self::constant(&style.key_separator);
            let (open_text, close_text) = (Self::maybe(&open), Self::maybe(&close));
            let items = |head: &str, key: &str| {
                format!(
                    "{{{{ $s := {} }}}}{{{{ range {head} := . }}}}{{{{ $s }}}}{key}{{{{ {inner} }}}}{{{{ $s = {} }}}}{{{{ end }}}}",
                    quoted(""),
                    quoted(&comma)
                )
            };
            let key = format!("{{{{ printf \"%q\" $k }}}}{colon}");
            let text = format!(
                "{{{{- define \"{name}\" }}}}{{{{ $t := printf \"%T\" . }}}}\n\
                 {{{{- if eq $t \"string\" }}}}{{{{ printf \"%q\" . }}}}\n\
                 {{{{- else if eq $t \"[]interface {{}}\" \"[]string\" \"api.PropertyType\" }}}}{{{{ if . }}}}[{open_text}{}{close_text}]{{{{ else }}}}[]{{{{ end }}}}\n\
                 {{{{- else if eq $t \"map[string]interface {{}}\" \"template.templateArgs\" \"api.ToolCallFunctionArguments\" }}}}{{{{ if . }}}}{{{{ \"{{\" }}}}{open_text}{}{close_text}}}{{{{ else }}}}{{{{ \"{{}}\" }}}}{{{{ end }}}}\n\
                 {{{{- else }}}}{{{{ json . }}}}{{{{ end }}}}{{{{ end }}}}",
                items("$_, $v", ""),
                items("$k, $v", &key),
            );
            self.texts.insert(name.clone(), text);
        }
        format!("template \"{name}\" {value}")
    }

    fn maybe(text: &str) -> String {
        if text.is_empty() { String::new() } else { format!("{{{{ {} }}}}", quoted(text)) }
    }

    /// Prints all tools as one JSON list.
    pub(super) fn tools(&mut self, out: &mut GoText, style: &JsonStyle, level: usize) {
        let suffix = self.suffix(style, level);
        let name = format!("tools{suffix}");
        let deeper = if style.indent.is_some() { level + 1 } else { level };
        let one = self.tool_on(ToolPart::Whole, style, deeper, "$v");
        let comma = format!("{}{}", style.item_separator, Self::line(style, level + 1));
        let text = format!(
            "{{{{- define \"{name}\" }}}}[{}{{{{ $s := \"\" }}}}{{{{ range $_, $v := . }}}}{{{{ $s }}}}{{{{ {one} }}}}{{{{ $s = {} }}}}{{{{ end }}}}{}]{{{{ end }}}}",
            Self::maybe(&Self::line(style, level + 1)),
            quoted(&comma),
            Self::maybe(&Self::line(style, level)),
        );
        self.texts.insert(name.clone(), text);
        out.print(&format!("template \"{name}\" $.Tools"));
    }

    /// The action that prints a part of `$tool`.
    pub(super) fn tool(&mut self, part: ToolPart, style: &JsonStyle, level: usize) -> String {
        self.tool_on(part, style, level, "$tool")
    }

    fn tool_on(&mut self, part: ToolPart, style: &JsonStyle, level: usize, tool: &str) -> String {
        let function = format!("{tool}.Function");
        match part {
            ToolPart::Name => format!("{function}.Name"),
            ToolPart::Description => format!("{function}.Description"),
            ToolPart::ReprDescription => {
                self.repr_template();
                format!("template \"repr\" {function}.Description")
            }
            ToolPart::QuotedDescription => format!("printf \"%q\" {function}.Description"),
            ToolPart::Whole => {
                let inner = self.schema("toolFunction", style, level + 1);
                self.record(
                    "tool",
                    style,
                    level,
                    &[("type", "printf \"%q\" .Type", None), ("function", &format!("{inner} .Function"), None)],
                );
                self.call("tool", style, level, tool)
            }
            ToolPart::Function => {
                let name = self.schema("toolFunction", style, level);
                format!("{name} {function}")
            }
            ToolPart::Parameters => {
                let name = self.schema("toolParameters", style, level);
                format!("{name} {function}.Parameters")
            }
            ToolPart::Properties => {
                let name = self.schema("toolProperties", style, level);
                format!("{name} {function}.Parameters.Properties")
            }
            ToolPart::Required => self.json(style, level, &format!("{function}.Parameters.Required")),
        }
    }

    /// The action that prints the value of an argument that is no text.
    pub(super) fn printed(&mut self, forms: &ValueForms, value: &str) -> String {
        let mut action = |form: &Option<JsonStyle>, value: &str| match form {
            Some(style) => self.json(style, 0, value),
            None => self.repr(value),
        };
        let (list, map) = (action(&forms.list, "."), action(&forms.map, "."));
        let yes = if forms.python_bool { "{{ if . }}True{{ else }}False{{ end }}" } else { "{{ . }}" };
        let null = if forms.python_null { "None" } else { "null" };
        let text = format!(
            "{{{{- define \"value\" }}}}{{{{ $t := printf \"%T\" . }}}}\n\
             {{{{- if eq $t \"[]interface {{}}\" }}}}{{{{ {list} }}}}\n\
             {{{{- else if eq $t \"map[string]interface {{}}\" }}}}{{{{ {map} }}}}\n\
             {{{{- else if eq $t \"bool\" }}}}{yes}\n\
             {{{{- else if eq $t \"<nil>\" }}}}{null}\n\
             {{{{- else }}}}{{{{ json . }}}}{{{{ end }}}}{{{{ end }}}}"
        );
        self.texts.insert("value".into(), text);
        format!("template \"value\" {value}")
    }

    /// The action that prints a value as Python's `repr` does.
    pub(super) fn repr(&mut self, value: &str) -> String {
        self.repr_template();
        format!("template \"repr\" {value}")
    }

    /// Defines Python's `repr`. A text is put into single quotes, unless it has some and no double ones. To find that
    /// out, the text is walked through byte by byte with itself behind a NUL, so that it is still there at the end.
    fn repr_template(&mut self) {
        let byte = "slice . 0 1";
        let search = |name: &str, quote: &str, found: &str, not_found: &str| {
            format!(
                "{{{{- define \"{name}\" }}}}{{{{ if eq ({byte}) \"\\x00\" }}}}{{{{ template \"{not_found}\" (slice . 1) }}}}\
                 {{{{ else if eq ({byte}) {quote} }}}}{{{{ template \"{found}\" (slice . 1) }}}}\
                 {{{{ else }}}}{{{{ template \"{name}\" (slice . 1) }}}}{{{{ end }}}}{{{{ end }}}}"
            )
        };
        let skip = |name: &str, then: &str| {
            format!(
                "{{{{- define \"{name}\" }}}}{{{{ if eq ({byte}) \"\\x00\" }}}}{then}\
                 {{{{ else }}}}{{{{ template \"{name}\" (slice . 1) }}}}{{{{ end }}}}{{{{ end }}}}"
            )
        };
        let quoted = |name: &str, quote: &str| {
            format!("{{{{- define \"{name}\" }}}}{quote}{{{{ template \"{name}Rest\" . }}}}{quote}{{{{ end }}}}")
        };
        let rest = |name: &str, quote: Option<&str>| {
            let mut escapes: Vec<(&str, &str)> =
                vec![("\"\\\\\"", r"\\"), ("\"\\n\"", r"\n"), ("\"\\r\"", r"\r"), ("\"\\t\"", r"\t")];
            if quote.is_some() {
                escapes.push(("\"'\"", r"\'"));
            }
            let cases: String =
                escapes.iter().map(|(byte, text)| format!("{{{{ else if eq $b {byte} }}}}{text}")).collect();
            let cases = cases.replacen("{{ else if", "{{ if", 1);
            format!(
                "{{{{- define \"{name}Rest\" }}}}{{{{ if . }}}}{{{{ $b := {byte} }}}}{cases}{{{{ else }}}}{{{{ $b }}}}{{{{ end }}}}\
                 {{{{ template \"{name}Rest\" (slice . 1) }}}}{{{{ end }}}}{{{{ end }}}}"
            )
        };
        let again = "{{ template \"reprDouble\" (printf \"%s\\x00%s\" (slice . 1) (slice . 1)) }}";
        let single = "{{ template \"reprSingle\" (slice . 1) }}";
        let items = |over: &str, key: &str| {
            format!(
                "{{{{ $s := \"\" }}}}{{{{ range {over} := . }}}}{{{{ $s }}}}{key}{{{{ template \"repr\" $v }}}}{{{{ $s = \", \" }}}}{{{{ end }}}}"
            )
        };
        for (name, text) in [
            (
                "repr",
                format!(
                    "{{{{- define \"repr\" }}}}{{{{ $t := printf \"%T\" . }}}}\n\
                     {{{{- if eq $t \"string\" }}}}{{{{ template \"reprText\" (printf \"%s\\x00%s\" . .) }}}}\n\
                     {{{{- else if eq $t \"[]interface {{}}\" \"[]string\" }}}}[{}]\n\
                     {{{{- else if eq $t \"map[string]interface {{}}\" }}}}{{{{ \"{{\" }}}}{}}}\n\
                     {{{{- else if eq $t \"bool\" }}}}{{{{ if . }}}}True{{{{ else }}}}False{{{{ end }}}}\n\
                     {{{{- else if eq $t \"<nil>\" }}}}None\n\
                     {{{{- else }}}}{{{{ json . }}}}{{{{ end }}}}{{{{ end }}}}",
                    items("$_, $v", ""),
                    items("$k, $v", "{{ template \"repr\" $k }}: "),
                ),
            ),
            ("reprText", search("reprText", "\"'\"", "reprAgain", "reprSingle")),
            ("reprAgain", skip("reprAgain", again)),
            ("reprDouble", search("reprDouble", "\"\\\"\"", "reprBack", "reprPlain")),
            ("reprBack", skip("reprBack", single)),
            ("reprSingle", quoted("reprSingle", "'")),
            ("reprSingleRest", rest("reprSingle", Some("'"))),
            ("reprPlain", quoted("reprPlain", "\"")),
            ("reprPlainRest", rest("reprPlain", None)),
        ] {
            self.texts.insert(name.into(), text);
        }
    }

    /// The action that prints a whole property as JSON.
    pub(super) fn property(&mut self, style: &JsonStyle, level: usize, property: &str) -> String {
        format!("{} {property}", self.schema("toolProperty", style, level))
    }

    fn call(&mut self, name: &str, style: &JsonStyle, level: usize, value: &str) -> String {
        format!("template \"{name}{}\" {value}", self.suffix(style, level))
    }

    /// Defines how a part of a schema is written and returns `template "name"`.
    fn schema(&mut self, what: &str, style: &JsonStyle, level: usize) -> String {
        match what {
            "toolFunction" => {
                let inner = self.schema("toolParameters", style, level + 1);
                self.record(
                    what,
                    style,
                    level,
                    &[
                        ("name", "printf \"%q\" .Name", None),
                        ("description", "printf \"%q\" .Description", None),
                        ("parameters", &format!("{inner} .Parameters"), None),
                    ],
                );
            }
            "toolParameters" => {
                let inner = self.schema("toolProperties", style, level + 1);
                let required = self.json(style, level + 1, ".Required");
                self.record(
                    what,
                    style,
                    level,
                    &[
                        ("type", "printf \"%q\" .Type", None),
                        ("properties", &format!("{inner} .Properties"), None),
                        ("required", &required, Some(".Required")),
                    ],
                );
            }
            "toolProperties" => {
                let inner = self.schema("toolProperty", style, level + 1);
                let name = format!("{what}{}", self.suffix(style, level));
                let comma = format!("{}{}", style.item_separator, Self::line(style, level + 1));
                let text = format!(
                    "{{{{- define \"{name}\" }}}}{{{{ if . }}}}{{{{ \"{{\" }}}}{}{{{{ $s := \"\" }}}}{{{{ range $k, $v := . }}}}{{{{ $s }}}}{{{{ printf \"%q\" $k }}}}{}{{{{ {inner} $v }}}}{{{{ $s = {} }}}}{{{{ end }}}}{}}}{{{{ else }}}}{{{{ \"{{}}\" }}}}{{{{ end }}}}{{{{ end }}}}",
                    Self::maybe(&Self::line(style, level + 1)),
                    Self::constant(&style.key_separator),
                    quoted(&comma),
                    Self::maybe(&Self::line(style, level)),
                );
                self.texts.insert(name, text);
            }
            _ => {
                let types = self.json(style, level + 1, ".Type");
                let items = self.json(style, level + 1, ".Items");
                let kinds = self.json(style, level + 1, ".Enum");
                self.record(
                    what,
                    style,
                    level,
                    &[
                        ("type", &format!("if eq (len .Type) 1 }}}}{{{{ printf \"%q\" (print .Type) }}}}{{{{ else }}}}{{{{ {types} }}}}{{{{ end"), Some(".Type")),
                        ("items", &items, Some(".Items")),
                        ("description", "printf \"%q\" .Description", Some(".Description")),
                        ("enum", &kinds, Some(".Enum")),
                    ],
                );
            }
        }
        format!("template \"{what}{}\"", self.suffix(style, level))
    }

    /// Defines a JSON object with these fields: key, action, and the condition under which it is there.
    fn record(&mut self, what: &str, style: &JsonStyle, level: usize, fields: &[(&str, &str, Option<&str>)]) {
        let name = format!("{what}{}", self.suffix(style, level));
        let comma = format!("{}{}", style.item_separator, Self::line(style, level + 1));
        let mut text =
            format!("{{{{- define \"{name}\" }}}}{{{{ \"{{\" }}}}{}", Self::maybe(&Self::line(style, level + 1)));
        let conditional = fields.first().is_some_and(|f| f.2.is_some());
        if conditional {
            text.push_str("{{ $s := \"\" }}");
        }
        for (n, (key, action, condition)) in fields.iter().enumerate() {
            if let Some(condition) = condition {
                text.push_str(&format!("{{{{ if {condition} }}}}"));
            }
            if conditional {
                text.push_str("{{ $s }}");
            } else if n > 0 {
                text.push_str(&Self::maybe(&comma));
            }
            text.push_str(&format!("\"{key}\"{}{{{{ {action} }}}}", Self::constant(&style.key_separator)));
            if conditional {
                text.push_str(&format!("{{{{ $s = {} }}}}", quoted(&comma)));
            }
            if condition.is_some() {
                text.push_str("{{ end }}");
            }
        }
        text.push_str(&format!("{}}}{{{{ end }}}}", Self::maybe(&Self::line(style, level))));
        self.texts.insert(name, text);
    }
}
