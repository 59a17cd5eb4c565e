//! The syntax tree, built with the checks that Go makes while it parses.

use super::GoError;
use super::lex::{Piece, Token, pieces};
use std::collections::BTreeMap;

/// A node of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Text.
    Text(String),
    /// A pipeline whose value is printed, unless it declares.
    Action(Pipe),
    /// `if`
    If(Branch),
    /// `range`
    Range(Branch),
    /// `with`
    With(Branch),
    /// `template "name" pipeline`
    Call {
        /// The name.
        name: String,
        /// Its data; Ollama refuses a call without.
        data: Option<Pipe>,
    },
    /// `break`
    Break,
    /// `continue`
    Continue,
}

/// A control structure.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// The condition, or what is ranged over.
    pub pipe: Pipe,
    /// The body.
    pub list: Vec<Node>,
    /// The body of `else`.
    pub otherwise: Option<Vec<Node>>,
}

/// A pipeline: variables, then commands that each feed the next.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Pipe {
    /// Variables that are set.
    pub variables: Vec<String>,
    /// Whether they are assigned (`=`) rather than declared (`:=`).
    pub assigns: bool,
    /// Commands: an operand and its arguments.
    pub commands: Vec<Vec<Arg>>,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// `.`
    Dot,
    /// `nil`
    Nil,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Str(String),
    /// `.a.b`
    Field(Vec<String>),
    /// `$x.a.b`, the name with its dollar first.
    Variable(Vec<String>),
    /// A function.
    Function(String),
    /// `(pipeline)`
    Pipe(Box<Pipe>),
    /// `(pipeline).a.b`
    Chain(Box<Arg>, Vec<String>),
}

/// A parsed template with the templates it defines.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// The nodes.
    pub root: Vec<Node>,
    /// `define`d templates by name.
    pub defines: BTreeMap<String, Vec<Node>>,
}

const FUNCTIONS: &[&str] = &[
    "json",
    "currentDate",
    "yesterdayDate",
    "toTypeScriptType",
    "and",
    "or",
    "not",
    "len",
    "index",
    "slice",
    "print",
    "printf",
    "println",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "html",
    "js",
    "urlquery",
    "call",
];

struct Parser {
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
    defines: BTreeMap<String, Vec<Node>>,
    variables: Vec<String>,
    line: usize,
    ranges: usize,
    depth: usize,
}

/// What ended a list of nodes.
enum Stop {
    Eof,
    End,
    Else(Vec<Token>),
}

const MAX_NESTING: usize = 200;

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// [`GoError::Parse`] where Go, or Ollama's own check of `template` calls, refuses it.
    pub fn parse(source: &str) -> Result<Self, GoError> {
        let mut parser = Parser {
            pieces: pieces(source)?.into_iter().peekable(),
            defines: BTreeMap::new(),
            variables: vec!["$".into()],
            line: 1,
            ranges: 0,
            depth: 0,
        };
        let (root, end) = parser.list()?;
        match end {
            Stop::Eof => {}
            Stop::End => return Err(parser.error("unexpected {{end}}")),
            Stop::Else(_) => return Err(parser.error("unexpected {{else}}")),
        }
        let template = Self { root, defines: parser.defines };
        for list in std::iter::once(&template.root).chain(template.defines.values()) {
            template.check_calls(list)?;
        }
        Ok(template)
    }

    fn check_calls(&self, list: &[Node]) -> Result<(), GoError> {
        for node in list {
            match node {
                Node::Call { data: None, .. } => {
                    return Err(GoError::Parse { line: 0, detail: "undefined template specified".into() });
                }
                Node::If(b) | Node::Range(b) | Node::With(b) => {
                    self.check_calls(&b.list)?;
                    self.check_calls(b.otherwise.as_deref().unwrap_or_default())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Every identifier in the template, lower-cased, as Ollama collects them (`Template.Vars`).
    pub fn identifiers(&self) -> std::collections::BTreeSet<String> {
        fn pipe(p: &Pipe, out: &mut Vec<String>) {
            for arg in p.commands.iter().flatten() {
                match arg {
                    Arg::Field(names) | Arg::Variable(names) => out.extend(names.iter().cloned()),
                    Arg::Pipe(inner) => pipe(inner, out),
                    _ => {}
                }
            }
        }
        fn list(nodes: &[Node], out: &mut Vec<String>) {
            for node in nodes {
                match node {
                    Node::Action(p) => pipe(p, out),
                    Node::Call { data: Some(p), .. } => pipe(p, out),
                    Node::If(b) | Node::Range(b) | Node::With(b) => {
                        pipe(&b.pipe, out);
                        list(&b.list, out);
                        list(b.otherwise.as_deref().unwrap_or_default(), out);
                    }
                    _ => {}
                }
            }
        }
        let mut out = Vec::new();
        for nodes in std::iter::once(&self.root).chain(self.defines.values()) {
            list(nodes, &mut out);
        }
        out.into_iter().map(|s| s.to_lowercase()).collect()
    }
}

impl Parser {
    fn error(&self, detail: impl Into<String>) -> GoError {
        GoError::Parse { line: self.line, detail: detail.into() }
    }

    fn list(&mut self) -> Result<(Vec<Node>, Stop), GoError> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(self.error("nested too deeply"));
        }
        let mut nodes = Vec::new();
        loop {
            let Some(piece) = self.pieces.next() else {
                self.depth -= 1;
                return Ok((nodes, Stop::Eof));
            };
            let (tokens, line) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(tokens, line) => (tokens, line),
            };
            self.line = line;
            let mut tokens = trim(tokens);
            let keyword = match tokens.first() {
                Some(Token::Word(w)) => w.clone(),
                _ => String::new(),
            };
            match keyword.as_str() {
                "if" | "range" | "with" => {
                    tokens.remove(0);
                    nodes.push(self.control(&keyword, &tokens)?);
                }
                "else" => {
                    tokens.remove(0);
                    self.depth -= 1;
                    return Ok((nodes, Stop::Else(trim(tokens))));
                }
                "end" => {
                    if tokens.len() > 1 {
                        return Err(self.error("unexpected text behind end"));
                    }
                    self.depth -= 1;
                    return Ok((nodes, Stop::End));
                }
                "break" | "continue" if tokens.len() == 1 => {
                    if self.ranges == 0 {
                        return Err(self.error(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                    }
                    nodes.push(if keyword == "break" { Node::Break } else { Node::Continue });
                }
                "define" => self.define(&tokens)?,
                "block" | "template" => nodes.push(self.call(&keyword, &tokens)?),
                _ => {
                    let pipe = self.pipeline(&tokens, false)?;
                    nodes.push(Node::Action(pipe));
                }
            }
        }
    }

    fn body(&mut self) -> Result<(Vec<Node>, Stop), GoError> {
        let (nodes, end) = self.list()?;
        if matches!(end, Stop::Eof) {
            return Err(self.error("unexpected end of the template: an {{end}} is missing"));
        }
        Ok((nodes, end))
    }

    fn control(&mut self, keyword: &str, tokens: &[Token]) -> Result<Node, GoError> {
        let scope = self.variables.len();
        let pipe = self.pipeline(tokens, keyword == "range")?;
        if keyword == "range" {
            self.ranges += 1;
        }
        let (list, end) = self.body()?;
        if keyword == "range" {
            self.ranges -= 1;
        }
        let otherwise = match end {
            Stop::Else(rest) if rest.is_empty() => {
                // Variables of the first body are gone; those of the pipeline stay visible.
                let (list, end) = self.body()?;
                if !matches!(end, Stop::End) {
                    return Err(self.error("expected end; found {{else}}"));
                }
                Some(list)
            }
            Stop::Else(mut rest) => {
                let chained = matches!(rest.first(), Some(Token::Word(w)) if w == keyword && keyword != "range");
                if !chained {
                    return Err(self.error("unexpected text behind else"));
                }
                rest.remove(0);
                Some(vec![self.control(keyword, &rest)?])
            }
            _ => None,
        };
        self.variables.truncate(scope);
        let branch = Branch { pipe, list, otherwise };
        Ok(match keyword {
            "if" => Node::If(branch),
            "with" => Node::With(branch),
            _ => Node::Range(branch),
        })
    }

    fn define(&mut self, tokens: &[Token]) -> Result<(), GoError> {
        let words = without_spaces(tokens);
        let [_, Token::Str(name)] = words.as_slice() else {
            return Err(self.error("define needs one quoted name"));
        };
        let outer = std::mem::replace(&mut self.variables, vec!["$".into()]);
        let ranges = std::mem::take(&mut self.ranges);
        let (list, end) = self.body()?;
        if !matches!(end, Stop::End) {
            return Err(self.error("unexpected {{else}} in define"));
        }
        self.variables = outer;
        self.ranges = ranges;
        // An empty definition does not replace an earlier one.
        let empty = list.iter().all(|n| matches!(n, Node::Text(t) if t.trim().is_empty()));
        if !(empty && self.defines.contains_key(name)) {
            self.defines.insert(name.clone(), list);
        }
        Ok(())
    }

    fn call(&mut self, keyword: &str, tokens: &[Token]) -> Result<Node, GoError> {
        let rest = trim(tokens[1..].to_vec());
        let Some((Token::Str(name), data)) = rest.split_first() else {
            return Err(self.error(format!("{keyword} needs a quoted name")));
        };
        let data = trim(data.to_vec());
        let data = if data.is_empty() { None } else { Some(self.pipeline(&data, false)?) };
        if keyword == "block" {
            if data.is_none() {
                return Err(self.error("missing value for block clause"));
            }
            let outer = std::mem::replace(&mut self.variables, vec!["$".into()]);
            let (list, end) = self.body()?;
            if !matches!(end, Stop::End) {
                return Err(self.error("unexpected {{else}} in block"));
            }
            self.variables = outer;
            self.defines.insert(name.clone(), list);
        }
        Ok(Node::Call { name: name.clone(), data })
    }

    fn pipeline(&mut self, tokens: &[Token], range: bool) -> Result<Pipe, GoError> {
        let mut tokens = trim(tokens.to_vec());
        let mut pipe = Pipe::default();
        // Variables in front of `:=` or `=`.
        let mark = tokens.iter().position(|t| matches!(t, Token::Declare | Token::Assign));
        if let Some(mark) = mark {
            pipe.assigns = tokens[mark] == Token::Assign;
            for token in without_spaces(&tokens[..mark]) {
                match token {
                    Token::Variable(name) => pipe.variables.push(name),
                    Token::Comma if range => {}
                    _ => return Err(self.error("only variables can be set")),
                }
            }
            if pipe.variables.is_empty() || pipe.variables.len() > if range { 2 } else { 1 } {
                return Err(self.error("too many or no variables in a declaration"));
            }
            tokens = trim(tokens.split_off(mark + 1));
        }
        for command in split_pipes(&tokens) {
            let args = self.command(&command)?;
            if args.first() == Some(&Arg::Nil) {
                return Err(self.error("nil is not a command"));
            }
            if let Some(first) = args.first()
                && (!pipe.commands.is_empty() || args.len() > 1)
                && matches!(first, Arg::Bool(_) | Arg::Int(_) | Arg::Float(_) | Arg::Str(_) | Arg::Nil | Arg::Dot)
            {
                return Err(self.error("non executable command in pipeline"));
            }
            pipe.commands.push(args);
        }
        if pipe.commands.is_empty() {
            return Err(self.error("missing value for command"));
        }
        for name in &pipe.variables {
            if pipe.assigns {
                self.known(name)?;
            } else {
                self.variables.push(name.clone());
            }
        }
        Ok(pipe)
    }

    fn known(&self, name: &str) -> Result<(), GoError> {
        if self.variables.iter().any(|v| v == name) {
            Ok(())
        } else {
            Err(self.error(format!("undefined variable {name:?}")))
        }
    }

    fn command(&mut self, tokens: &[Token]) -> Result<Vec<Arg>, GoError> {
        let mut args: Vec<Arg> = Vec::new();
        let mut joined = false; // whether the next token stands directly behind an operand
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            let arg = match token {
                Token::Space => {
                    joined = false;
                    continue;
                }
                Token::Field(name) if joined => {
                    let Some(last) = args.last_mut() else {
                        return Err(self.error("unexpected field"));
                    };
                    match last {
                        Arg::Field(names) | Arg::Variable(names) | Arg::Chain(_, names) => names.push(name.clone()),
                        Arg::Pipe(_) | Arg::Dot => {
                            let inner = std::mem::replace(last, Arg::Dot);
                            *last = Arg::Chain(Box::new(inner), vec![name.clone()]);
                        }
                        _ => return Err(self.error(format!("unexpected .{name} behind a constant"))),
                    }
                    continue;
                }
                _ if joined => return Err(self.error("operands must be separated by spaces")),
                Token::Field(name) => Arg::Field(vec![name.clone()]),
                Token::Variable(name) => {
                    self.known(name)?;
                    Arg::Variable(vec![name.clone()])
                }
                Token::Dot => Arg::Dot,
                Token::Str(s) => Arg::Str(s.clone()),
                Token::Int(n) => Arg::Int(*n),
                Token::Float(f) => Arg::Float(*f),
                Token::Word(w) => match w.as_str() {
                    "true" => Arg::Bool(true),
                    "false" => Arg::Bool(false),
                    "nil" => Arg::Nil,
                    f if FUNCTIONS.contains(&f) => Arg::Function(w.clone()),
                    _ => return Err(self.error(format!("function {w:?} not defined"))),
                },
                Token::Open => {
                    let mut depth = 1;
                    let start = at;
                    while depth > 0 {
                        match tokens.get(at) {
                            Some(Token::Open) => depth += 1,
                            Some(Token::Close) => depth -= 1,
                            Some(_) => {}
                            None => return Err(self.error("unclosed left paren")),
                        }
                        at += 1;
                    }
                    self.depth += 1;
                    if self.depth > MAX_NESTING {
                        return Err(self.error("nested too deeply"));
                    }
                    let pipe = self.pipeline(&tokens[start..at - 1], false)?;
                    self.depth -= 1;
                    Arg::Pipe(Box::new(pipe))
                }
                other => return Err(self.error(format!("unexpected {other:?} in operand"))),
            };
            args.push(arg);
            joined = true;
        }
        if args.is_empty() {
            return Err(self.error("empty command"));
        }
        Ok(args)
    }
}

fn trim(mut tokens: Vec<Token>) -> Vec<Token> {
    while tokens.last() == Some(&Token::Space) {
        tokens.pop();
    }
    let lead = tokens.iter().take_while(|t| **t == Token::Space).count();
    tokens.drain(..lead);
    tokens
}

fn without_spaces(tokens: &[Token]) -> Vec<Token> {
    tokens.iter().filter(|t| **t != Token::Space).cloned().collect()
}

/// Splits at the pipes that stand outside of parentheses.
fn split_pipes(tokens: &[Token]) -> Vec<Vec<Token>> {
    let mut out = vec![Vec::new()];
    let mut depth = 0_usize;
    for token in tokens {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        if *token == Token::Pipe && depth == 0 {
            out.push(Vec::new());
        } else if let Some(last) = out.last_mut() {
            last.push(token.clone());
        }
    }
    if tokens.is_empty() { Vec::new() } else { out }
}
