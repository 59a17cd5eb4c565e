//! Chat templates in Jinja, run as transformers runs them.
//!
//! transformers compiles them with jinja2's sandbox, `trim_blocks`, `lstrip_blocks`, loop controls, a
//! `generation` block, its own `tojson`, `raise_exception` and `strftime_now`. minijinja is brought to the same
//! behaviour: Python's way of printing values, Python's string and dictionary methods, jinja2's tests.

use super::chat::{Conversation, Dialect};
use super::python::{self, Date, JsonStyle};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use std::sync::{Arc, LazyLock, Mutex};

/// A step budget: a template that needs more does not describe a chat.
const FUEL: u64 = 5_000_000;

/// A chat template that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JinjaError {
    /// The text is no Jinja template.
    #[error("chat template, line {line}: {detail}; correct it in chat_template.jinja or tokenizer_config.json")]
    Syntax {
        /// Line of the template.
        line: usize,
        /// What the parser says.
        detail: String,
    },
    /// The template refused the conversation (`raise_exception`) or failed on it.
    #[error("chat template, line {line}: {detail}; the template does not take this conversation")]
    Render {
        /// Line of the template.
        line: usize,
        /// The template's own words, or minijinja's.
        detail: String,
    },
}

/// What a run of a template printed through its hooks, when it is observed instead of used.
#[derive(Clone, Debug)]
pub enum Hooked {
    /// `tojson` of a value.
    Json {
        /// The value that was printed.
        value: Value,
        /// How it was to be printed.
        style: JsonStyle,
    },
    /// `strftime_now` with this format.
    Date {
        /// The format.
        format: String,
    },
}

/// Opens the mark that stands for a hooked value in an observed text; its number and [`HOOK_END`] follow.
pub const HOOK_START: char = '\u{2}';
/// Closes the mark of a hooked value.
pub const HOOK_END: char = '\u{3}';

/// Stands behind a content that is to be continued, so that its end can be found.
const CUT_MARK: &str = "QzCutXq";

/// What stands in an observed text where the template printed JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonView {
    /// A mark: what was printed shows, whatever is inside.
    Mark,
    /// The JSON itself: some templates cut it or indent it.
    Text,
}

type Hooks = Arc<Mutex<Option<(JsonView, Vec<Hooked>)>>>;

/// A compiled chat template with the names it was trained with.
pub struct ChatTemplate {
    environment: Environment<'static>,
    hooks: Hooks,
    bos_token: Option<String>,
    eos_token: Option<String>,
    extra_tokens: Vec<(String, String)>,
    date: Arc<Mutex<Date>>,
    variables: Vec<String>,
}

static GENERATION: LazyLock<Option<regex::Regex>> =
    LazyLock::new(|| regex::Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());

/// An expression or a statement.
static TAG: LazyLock<Option<regex::Regex>> = LazyLock::new(|| regex::Regex::new(r"(?s)\{[{%].*?[%}]\}").ok());
/// A method of dictionaries, with the parenthesis that calls it, if it is called.
static METHOD: LazyLock<Option<regex::Regex>> =
    LazyLock::new(|| regex::Regex::new(r"\b[A-Za-z_]\w*(?:\.\w+)*\.(?:items|keys|values)\b(\s*\()?").ok());

/// A text marked as safe that something is added to.
static ADDED: LazyLock<Option<regex::Regex>> = LazyLock::new(|| regex::Regex::new(r"\|\s*safe\s*\+").ok());

impl ChatTemplate {
    /// Compiles a template; `bos_token` and `eos_token` are the texts it may refer to.
    ///
    /// # Errors
    /// [`JinjaError::Syntax`] if the text is no Jinja template.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, JinjaError> {
        let source = match GENERATION.as_ref() {
            Some(re) => re
                .replace_all(source, |c: &regex::Captures<'_>| {
                    let tag = if c.get(2).is_some() { "endif" } else { "if true" };
                    format!("{{%{} {tag} {}%}}", &c[1], &c[3])
                })
                .into_owned(),
            None => source.to_owned(),
        };
        let source = methods_as_in_python(&source);
        let hooks: Hooks = Arc::default();
        let date = Arc::new(Mutex::new(Date::today()));
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_keep_trailing_newline(false);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(method);
        environment.set_formatter(|out, _, value| match value.kind() {
            ValueKind::String | ValueKind::Undefined => write_plain(out, value),
            _ => out.write_str(&python::to_str(value)).map_err(|_| Error::new(ErrorKind::WriteFailure, "no room")),
        });
        add_functions(&mut environment, &hooks, &date);
        add_filters(&mut environment, &hooks);
        environment
            .add_template_owned("chat".to_owned(), source)
            .map_err(|e| JinjaError::Syntax { line: e.line().unwrap_or(0), detail: detail(&e) })?;
        let variables = environment
            .get_template("chat")
            .map(|t| t.undeclared_variables(false).into_iter().collect())
            .unwrap_or_default();
        Ok(Self {
            environment,
            hooks,
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
            extra_tokens: Vec::new(),
            date,
            variables,
        })
    }

    /// Names that the template reads and does not set itself.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }

    /// The text of the beginning-of-sequence token, if the template may print one.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref().filter(|t| !t.is_empty())
    }

    /// Fixes the day that `strftime_now` tells.
    pub fn set_date(&self, date: Date) {
        if let Ok(mut d) = self.date.lock() {
            *d = date;
        }
    }

    /// Renders a conversation as a prompt. A conversation that ends with the assistant is left open for it to
    /// continue, as transformers' `continue_final_message` does.
    ///
    /// # Errors
    /// [`JinjaError::Render`] if the template refuses the conversation.
    pub fn render(&self, conversation: &Conversation, dialect: &Dialect) -> Result<String, JinjaError> {
        let Some(last) = conversation.messages.last().filter(|_| conversation.continues()) else {
            return self.run(conversation, dialect);
        };
        // The place to cut is found by a mark behind the content, unless blanks at its end may be trimmed there.
        if !last.content.is_empty() && last.content.trim_end() == last.content {
            let mut marked = conversation.clone();
            if let Some(m) = marked.messages.last_mut() {
                m.content.push_str(CUT_MARK);
            }
            let mut text = self.run(&marked, dialect)?;
            if let Some(at) = text.rfind(CUT_MARK) {
                text.truncate(at);
                return Ok(text);
            }
        }
        Ok(cut_after(self.run(conversation, dialect)?, &last.content))
    }

    /// Renders a conversation to its very end, also one that ends with the assistant.
    ///
    /// # Errors
    /// [`JinjaError::Render`] if the template refuses the conversation.
    pub fn render_whole(&self, conversation: &Conversation, dialect: &Dialect) -> Result<String, JinjaError> {
        self.run(conversation, dialect)
    }

    /// Renders a conversation with marks in the place of dates, and of JSON if that is the view, and says what was
    /// printed through hooks, in order: a mark tells its number.
    ///
    /// # Errors
    /// [`JinjaError::Render`] if the template refuses the conversation.
    pub fn observe(
        &self,
        conversation: &Conversation,
        dialect: &Dialect,
        view: JsonView,
    ) -> Result<(String, Vec<Hooked>), JinjaError> {
        if let Ok(mut hooks) = self.hooks.lock() {
            *hooks = Some((view, Vec::new()));
        }
        let text = self.render(conversation, dialect);
        let hooked = self.hooks.lock().ok().and_then(|mut h| h.take());
        Ok((text?, hooked.map(|(_, list)| list).unwrap_or_default()))
    }

    /// The variables that a conversation is rendered with: those that transformers passes.
    pub fn context(
        &self,
        conversation: &Conversation,
        dialect: &Dialect,
    ) -> serde_json::Map<String, serde_json::Value> {
        let mut context = serde_json::Map::new();
        context.insert("messages".into(), dialect.messages(conversation));
        // transformers always passes both; `tools` is None when there are none.
        context.insert(
            "tools".into(),
            if conversation.tools.is_empty() { serde_json::Value::Null } else { conversation.tools.clone().into() },
        );
        context.insert("documents".into(), serde_json::Value::Null);
        context.insert("add_generation_prompt".into(), (!conversation.continues()).into());
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                context.insert(name.into(), token.as_str().into());
            }
        }
        for (name, token) in &self.extra_tokens {
            context.insert(name.clone(), token.as_str().into());
        }
        if let (Some(switch), Some(think)) = (&dialect.think_switch, conversation.think) {
            context.insert(switch.clone(), think.into());
        }
        context
    }

    fn run(&self, conversation: &Conversation, dialect: &Dialect) -> Result<String, JinjaError> {
        let context = self.context(conversation, dialect);
        self.environment
            .get_template("chat")
            .and_then(|t| t.render(Value::from_serialize(&context)))
            .map_err(|e| JinjaError::Render { line: e.line().unwrap_or(0), detail: detail(&e) })
    }
}

/// Cuts a text behind the last occurrence of a content, which the template may have trimmed.
fn cut_after(mut text: String, content: &str) -> String {
    let forms = [content, content.trim_start(), content.trim_end(), content.trim()];
    let end = forms
        .iter()
        .filter(|form| !form.is_empty())
        .filter_map(|form| text.rfind(form).map(|at| at + form.len()))
        .max();
    if let Some(end) = end {
        text.truncate(end);
    }
    text
}

fn write_plain(out: &mut minijinja::Output<'_>, value: &Value) -> Result<(), Error> {
    let result = match value.as_str() {
        Some(s) => out.write_str(s),
        None => Ok(()),
    };
    result.map_err(|_| Error::new(ErrorKind::WriteFailure, "no room"))
}

fn detail(error: &Error) -> String {
    let own = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    own.lines().next().unwrap_or_default().to_owned()
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

fn add_functions(environment: &mut Environment<'static>, hooks: &Hooks, date: &Arc<Mutex<Date>>) {
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(invalid(message.to_string()))
    });
    let (own_hooks, own_date) = (Arc::clone(hooks), Arc::clone(date));
    environment.add_function("strftime_now", move |format: String| -> String {
        if let Ok(mut hooks) = own_hooks.lock()
            && let Some((_, list)) = hooks.as_mut()
        {
            list.push(Hooked::Date { format });
            return format!("{HOOK_START}{}{HOOK_END}", list.len() - 1);
        }
        own_date.lock().map(|d| d.strftime(&format)).unwrap_or_default()
    });
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    // jinja2's Undefined can be iterated and has a length; None cannot.
    environment.add_test("iterable", |v: &Value| {
        matches!(
            v.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        )
    });
    environment.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    environment.add_test("callable", |_: &Value| false);
}

fn add_filters(environment: &mut Environment<'static>, hooks: &Hooks) {
    let hooks = Arc::clone(hooks);
    environment.add_filter("tojson", move |value: &Value, args: Rest<Value>, kwargs: Kwargs| -> Result<Value, Error> {
        let style = json_style(&args, &kwargs)?;
        if let Ok(mut hooks) = hooks.lock()
            && let Some((view, list)) = hooks.as_mut()
        {
            list.push(Hooked::Json { value: value.clone(), style: style.clone() });
            if *view == JsonView::Mark {
                return Ok(format!("{HOOK_START}{}{HOOK_END}", list.len() - 1).into());
            }
        }
        // A plain string, not a safe one: HF's filter returns str, so `|e` escapes it.
        Ok(python::json_dumps(value, &style).into())
    });
    environment.add_filter("string", |value: &Value| python::to_str(value));
    environment.add_filter("added_to", |_: &Value| -> Result<Value, Error> {
        Err(invalid("a text marked as safe is added to: jinja2 escapes what is added, which is not reproduced"))
    });
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, |value: &Value| escape(&python::to_str(value)));
    }
}

/// What jinja2's `escape` makes of a text (markupsafe).
fn escape(text: &str) -> String {
    let pairs = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ("\"", "&#34;")];
    pairs.into_iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// In jinja2 `x.items` is the dictionary's method, also where the dictionary has such a key, and a method that is not
/// called has no attributes: an empty dictionary stands for it.
fn methods_as_in_python(source: &str) -> String {
    let (Some(tag), Some(method)) = (TAG.as_ref(), METHOD.as_ref()) else {
        return source.to_owned();
    };
    tag.replace_all(source, |tag: &regex::Captures<'_>| {
        let tag = match ADDED.as_ref() {
            Some(added) => added.replace_all(&tag[0], "| added_to +").into_owned(),
            None => tag[0].to_owned(),
        };
        let kept = |found: &regex::Captures<'_>| match found.get(1) {
            Some(_) => found[0].to_owned(),
            None => "({})".to_owned(),
        };
        method.replace_all(&tag, kept).into_owned()
    })
    .into_owned()
}

/// The arguments of transformers' `tojson`: `ensure_ascii, indent, separators, sort_keys`.
fn json_style(args: &[Value], kwargs: &Kwargs) -> Result<JsonStyle, Error> {
    let mut style = JsonStyle::default();
    let positional = |n: usize, name: &str| -> Result<Option<Value>, Error> {
        match args.get(n) {
            Some(v) => Ok(Some(v.clone())),
            None => kwargs.get(name),
        }
    };
    if let Some(v) = positional(0, "ensure_ascii")? {
        style.ensure_ascii = v.is_true();
    }
    if let Some(v) = positional(1, "indent")?.filter(|v| !v.is_none() && !v.is_undefined()) {
        style.indent = Some(match v.as_str() {
            Some(s) => s.to_owned(),
            None => " ".repeat(v.as_usize().unwrap_or(0).min(64)),
        });
        style.item_separator = ",".into();
    }
    if let Some(v) = positional(2, "separators")?.filter(|v| !v.is_none() && !v.is_undefined()) {
        let part = |n| -> Result<String, Error> { Ok(v.get_item_by_index(n)?.to_string()) };
        style.item_separator = part(0)?;
        style.key_separator = part(1)?;
    }
    if let Some(v) = positional(3, "sort_keys")? {
        style.sort_keys = v.is_true();
    }
    kwargs.assert_all_used()?;
    Ok(style)
}

/// Python's methods: those that minijinja-contrib lacks, then its own.
fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(s) = value.as_str() {
        match name {
            "removeprefix" => {
                let (p,): (String,) = from_args(args)?;
                return Ok(s.strip_prefix(p.as_str()).unwrap_or(s).into());
            }
            "removesuffix" => {
                let (p,): (String,) = from_args(args)?;
                return Ok(s.strip_suffix(p.as_str()).unwrap_or(s).into());
            }
            "partition" | "rpartition" => {
                let (p,): (String,) = from_args(args)?;
                let cut = if name == "partition" { s.split_once(p.as_str()) } else { s.rsplit_once(p.as_str()) };
                let parts = match (cut, name) {
                    (Some((a, b)), _) => [a, p.as_str(), b],
                    (None, "partition") => [s, "", ""],
                    (None, _) => ["", "", s],
                };
                return Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into());
            }
            "rsplit" => {
                let (p, max): (Option<String>, Option<usize>) = from_args(args)?;
                let mut parts: Vec<&str> = match (&p, max) {
                    (Some(p), Some(max)) => s.rsplitn(max + 1, p.as_str()).collect(),
                    (Some(p), None) => s.rsplit(p.as_str()).collect(),
                    (None, _) => s.split_whitespace().rev().collect(),
                };
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into());
            }
            "index" => {
                let (p,): (String,) = from_args(args)?;
                return s
                    .find(p.as_str())
                    .map(|at| s[..at].chars().count().into())
                    .ok_or_else(|| invalid("substring not found"));
            }
            "isspace" => return Ok((!s.is_empty() && s.chars().all(char::is_whitespace)).into()),
            "zfill" => {
                let (width,): (usize,) = from_args(args)?;
                return Ok(format!("{s:0>width$}", width = width.min(1000)).into());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ollama::chat::{Message, Role};

    fn render(source: &str) -> String {
        let t = ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap();
        let c = Conversation { messages: vec![Message::new(Role::User, " hi ")], ..Conversation::default() };
        t.render(&c, &Dialect::default()).unwrap()
    }

    #[test]
    fn prints_as_python_does() {
        assert_eq!(render("{{ {'a': true, 'b': [none, 'x']} }}"), "{'a': True, 'b': [None, 'x']}");
        assert_eq!(render("{{ messages[0] | tojson }}"), r#"{"role": "user", "content": " hi "}"#);
        assert_eq!(render("{{ ({'a': [1]}) | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
        assert_eq!(render("{{ 'a.b.c'.rsplit('.', 1) }}"), "['a.b', 'c']");
        assert_eq!(render("{{ none is iterable }} {{ tools is none }}"), "False True");
    }

    #[test]
    fn methods_and_escapes_are_pythons() {
        assert_eq!(
            render("{% set x = {'items': {'type': 'a'}} %}{{ x.items.type is defined }} {{ x['items'].type }}"),
            "False a"
        );
        assert_eq!(render("x.items {% for k, v in {'b': 1}.items() %}{{ k }}{{ v }}{% endfor %}"), "x.items b1");
        assert_eq!(render("{{ '<\\'&\">' | e }}"), "&lt;&#39;&amp;&#34;&gt;");
    }

    #[test]
    fn generation_blocks_vanish_with_their_lines() {
        assert_eq!(render("a\n{% generation %}\nb\n{%- endgeneration %}\nc"), "a\nb".to_owned() + "c");
    }

    #[test]
    fn a_runaway_template_stops() {
        let t = ChatTemplate::new(
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            None,
            None,
        )
        .unwrap();
        assert!(t.render(&Conversation::default(), &Dialect::default()).is_err());
    }

    #[test]
    fn refusals_carry_the_templates_words() {
        let t = ChatTemplate::new("{{ raise_exception('no system role') }}", None, None).unwrap();
        let e = t.render(&Conversation::default(), &Dialect::default()).unwrap_err();
        assert!(e.to_string().contains("no system role"), "{e}");
    }
}
