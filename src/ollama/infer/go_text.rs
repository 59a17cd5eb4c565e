//! Writing Go templates that a person can read: control structures on lines of their own, text as it is.

/// Builds the text of a Go template.
///
/// Every control action begins a line and eats the blanks before it (`{{-`); nothing eats blanks behind itself.
/// So text stands where it is printed, and only blanks at the end of a text, which the next control action
/// would eat, are written as a string.
#[derive(Default)]
pub(super) struct GoText {
    out: String,
    pending: String,
    depth: usize,
}

/// A Go string constant.
pub(super) fn quoted(text: &str) -> String {
    crate::ollama::go::quote(text)
}

impl GoText {
    /// Text that is printed.
    pub(super) fn text(&mut self, text: &str) {
        self.pending.push_str(text);
    }

    /// An action that prints.
    pub(super) fn print(&mut self, action: &str) {
        self.flush(false);
        if self.out.ends_with('{') {
            // A brace before `{{` would open the action one character early.
            self.out.pop();
            self.out.push_str("{{ \"{\" }}");
        }
        self.out.push_str("{{ ");
        self.out.push_str(action);
        self.out.push_str(" }}");
    }

    /// A control action.
    pub(super) fn control(&mut self, action: &str) {
        self.flush(true);
        if action == "end" || action.starts_with("else") {
            self.depth = self.depth.saturating_sub(1);
        }
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        self.out.push_str(&"  ".repeat(self.depth));
        self.out.push_str("{{- ");
        self.out.push_str(action);
        self.out.push_str(" }}");
        let opens = ["if ", "range ", "with ", "define ", "else"].iter().any(|w| action.starts_with(w));
        if opens {
            self.depth += 1;
        }
    }

    /// A whole inline piece: an `if` with text that stays on its line, as Ollama's search for tags needs it.
    pub(super) fn inline(&mut self, piece: &str) {
        self.flush(true);
        self.out.push('\n');
        self.out.push_str(&"  ".repeat(self.depth));
        self.out.push_str(piece);
    }

    /// The template.
    pub(super) fn finish(mut self) -> String {
        self.flush(true);
        self.out
    }

    fn flush(&mut self, control_follows: bool) {
        let text = std::mem::take(&mut self.pending);
        let kept = if control_follows { text.trim_end_matches([' ', '\t', '\r', '\n']) } else { text.as_str() };
        self.out.push_str(&escape(kept));
        if self.out.ends_with('{') && control_follows && kept.len() < text.len() {
            self.out.pop();
            self.out.push_str("{{ \"{\" }}");
        }
        if kept.len() < text.len() {
            self.out.push_str(&format!("{{{{ {} }}}}", quoted(&text[kept.len()..])));
        }
    }
}

/// Text in a template and in a Modelfile: braces that would open an action, quotes that would end the value, and
/// characters that the Modelfile's parser drops are written as string constants.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let special = if rest.starts_with("{{") {
            2
        } else if rest.starts_with("\"\"\"") {
            3
        } else if !matches!(c, '\n' | '\t') && !crate::ollama::go::is_print(c) {
            c.len_utf8()
        } else {
            0
        };
        if special > 0 {
            out.push_str(&format!("{{{{ {} }}}}", quoted(&rest[..special])));
            rest = &rest[special..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}
