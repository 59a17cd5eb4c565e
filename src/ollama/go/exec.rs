//! Execution: the walk over the tree, variables, fields and pipelines.

use super::GoError;
use super::format::printed;
use super::funcs;
use super::parse::{Arg, Branch, Node, Pipe, Template};
use super::value::Value;
use crate::ollama::python::Date;

/// Go allows 100,000 nested calls; a prompt template needs as many as a text has bytes that it walks through.
const MAX_CALLS: usize = 100_000;
/// How many of them may wait for the end of one that they made in their middle.
const MAX_DEPTH: usize = 400;
/// Nodes that one execution may visit.
const MAX_STEPS: usize = 20_000_000;

pub(super) fn execute(template: &Template, data: &Value, today: Date) -> Result<String, GoError> {
    let variables = vec![("$".into(), data.clone())];
    let mut run = Run { template, today, out: Vec::new(), variables, calls: 0, depth: 0, steps: 0 };
    run.list(&template.root, data, false)?;
    Ok(String::from_utf8_lossy(&run.out).into_owned())
}

struct Run<'a> {
    template: &'a Template,
    today: Date,
    /// Bytes: a template may print a character in pieces.
    out: Vec<u8>,
    variables: Vec<(String, Value)>,
    /// Calls that have not returned in Go.
    calls: usize,
    /// Those of them that have something left to do.
    depth: usize,
    steps: usize,
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow<'a> {
    On,
    Break,
    Continue,
    /// What is left to do is this call: made by a loop instead of by recursion, it takes no stack.
    Call(&'a str, Value),
}

impl<'a> Run<'a> {
    /// Runs nodes; `tail`: nothing comes behind them in their template.
    fn list(&mut self, nodes: &'a [Node], dot: &Value, tail: bool) -> Result<Flow<'a>, GoError> {
        for (n, node) in nodes.iter().enumerate() {
            let tail = tail && n + 1 == nodes.len();
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(GoError::exec("the template does not come to an end"));
            }
            match node {
                Node::Text(text) => self.out.extend_from_slice(text.as_bytes()),
                Node::Action(pipe) => {
                    let value = self.pipeline(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        match &value {
                            Value::Bytes(bytes) => self.out.extend_from_slice(bytes),
                            other => self.out.extend_from_slice(printed(other).as_bytes()),
                        }
                    }
                }
                Node::If(branch) | Node::With(branch) => {
                    let flow = self.branch(branch, dot, matches!(node, Node::With(_)), tail)?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Node::Range(branch) => self.range(branch, dot)?,
                Node::Call { name, data } => {
                    let value = match data {
                        Some(pipe) => self.pipeline(pipe, dot)?,
                        None => Value::Nil,
                    };
                    if tail {
                        return Ok(Flow::Call(name, value));
                    }
                    self.call(name, value)?;
                }
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::On)
    }

    fn branch(&mut self, branch: &'a Branch, dot: &Value, with: bool, tail: bool) -> Result<Flow<'a>, GoError> {
        let mark = self.variables.len();
        let value = self.pipeline(&branch.pipe, dot)?;
        let flow = if value.is_true() {
            self.list(&branch.list, if with { &value } else { dot }, tail)?
        } else if let Some(otherwise) = &branch.otherwise {
            self.list(otherwise, dot, tail)?
        } else {
            Flow::On
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn range(&mut self, branch: &'a Branch, dot: &Value) -> Result<(), GoError> {
        let mark = self.variables.len();
        let over = self.pipeline_value(&branch.pipe, dot)?;
        let items: Vec<(Value, Value)> = match &over {
            Value::List(l) => (0..).map(Value::Int).zip(l.items.iter().cloned()).collect(),
            Value::Map(m) if !m.kind.name.starts_with('*') => {
                m.entries.iter().map(|(k, v)| (Value::from(k.as_str()), v.clone())).collect()
            }
            Value::Int(n) => (0..(*n).min(1_000_000)).map(|i| (Value::Int(i), Value::Int(i))).collect(),
            Value::Nil => Vec::new(),
            other => {
                return Err(GoError::exec(format!("range can't iterate over a {}", other.type_name())));
            }
        };
        if items.is_empty() {
            if let Some(otherwise) = &branch.otherwise {
                self.list(otherwise, dot, false)?;
            }
            self.variables.truncate(mark);
            return Ok(());
        }
        if !branch.pipe.assigns {
            for name in &branch.pipe.variables {
                self.variables.push((name.clone(), over.clone()));
            }
        }
        let inner = self.variables.len();
        for (key, item) in items {
            match branch.pipe.variables.as_slice() {
                [value] => self.set(value, item.clone())?,
                [first, second] => {
                    self.set(first, key)?;
                    self.set(second, item.clone())?;
                }
                _ => {}
            }
            let flow = self.list(&branch.list, &item, false)?;
            self.variables.truncate(inner);
            if flow == Flow::Break {
                break;
            }
        }
        self.variables.truncate(mark);
        Ok(())
    }

    fn call(&mut self, name: &'a str, value: Value) -> Result<(), GoError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(GoError::exec("exceeded the maximum depth of nested templates"));
        }
        let (template, before) = (self.template, self.calls);
        let outer = std::mem::take(&mut self.variables);
        let mut next = Some((name, value));
        while let Some((name, value)) = next.take() {
            self.calls += 1;
            if self.calls > MAX_CALLS {
                return Err(GoError::exec("exceeded the maximum depth of nested templates"));
            }
            let nodes =
                template.defines.get(name).ok_or_else(|| GoError::exec(format!("template {name:?} not defined")))?;
            self.variables = vec![("$".into(), value.clone())];
            if let Flow::Call(name, value) = self.list(nodes, &value, true)? {
                next = Some((name, value));
            }
        }
        self.variables = outer;
        self.calls = before;
        self.depth -= 1;
        Ok(())
    }

    fn set(&mut self, name: &str, value: Value) -> Result<(), GoError> {
        match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
            Some((_, slot)) => {
                *slot = value;
                Ok(())
            }
            None => Err(GoError::exec(format!("undefined variable: {name}"))),
        }
    }

    /// A pipeline with its declarations.
    fn pipeline(&mut self, pipe: &'a Pipe, dot: &Value) -> Result<Value, GoError> {
        let value = self.pipeline_value(pipe, dot)?;
        for name in &pipe.variables {
            if pipe.assigns {
                self.set(name, value.clone())?;
            } else {
                self.variables.push((name.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    fn pipeline_value(&mut self, pipe: &'a Pipe, dot: &Value) -> Result<Value, GoError> {
        let mut last = None;
        for command in &pipe.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Value::Nil))
    }

    fn command(&mut self, command: &'a [Arg], dot: &Value, last: Option<Value>) -> Result<Value, GoError> {
        let Some((first, rest)) = command.split_first() else {
            return Err(GoError::exec("empty command"));
        };
        if let Arg::Function(name) = first {
            return self.function(name, rest, dot, last);
        }
        if !rest.is_empty() || last.is_some() {
            return Err(GoError::exec("can't give argument to non-function"));
        }
        self.arg(first, dot)
    }

    fn function(&mut self, name: &str, rest: &'a [Arg], dot: &Value, last: Option<Value>) -> Result<Value, GoError> {
        if name == "and" || name == "or" {
            let mut value = None;
            for arg in rest {
                let v = self.arg(arg, dot)?;
                let done = v.is_true() == (name == "or");
                value = Some(v);
                if done {
                    return Ok(value.unwrap_or(Value::Nil));
                }
            }
            return last
                .or(value)
                .ok_or_else(|| GoError::exec(format!("wrong number of args for {name}: want at least 1 got 0")));
        }
        let mut args = Vec::with_capacity(rest.len() + 1);
        for arg in rest {
            args.push(self.arg(arg, dot)?);
        }
        args.extend(last);
        funcs::call(name, &args, self.today)
    }

    fn arg(&mut self, arg: &'a Arg, dot: &Value) -> Result<Value, GoError> {
        Ok(match arg {
            Arg::Dot => dot.clone(),
            Arg::Nil => Value::Nil,
            Arg::Bool(b) => Value::Bool(*b),
            Arg::Int(n) => Value::Int(*n),
            Arg::Float(f) => Value::Float(*f),
            Arg::Str(s) => s.as_str().into(),
            Arg::Field(names) => fields(dot.clone(), names)?,
            Arg::Variable(names) => {
                let Some((name, rest)) = names.split_first() else {
                    return Ok(Value::Nil);
                };
                let value = self
                    .variables
                    .iter()
                    .rev()
                    .find(|(n, _)| n == name)
                    .map(|(_, v)| v.clone())
                    .ok_or_else(|| GoError::exec(format!("undefined variable: {name}")))?;
                fields(value, rest)?
            }
            Arg::Function(name) => self.function(name, &[], dot, None)?,
            Arg::Pipe(pipe) => self.pipeline(pipe, dot)?,
            Arg::Chain(inner, names) => {
                let value = self.arg(inner, dot)?;
                fields(value, names)?
            }
        })
    }
}

fn fields(mut value: Value, names: &[String]) -> Result<Value, GoError> {
    for name in names {
        value = match &value {
            Value::Map(m) => m.entries.get(name).cloned().unwrap_or(Value::Nil),
            Value::Struct(s) => match s.fields.iter().find(|f| f.name == name) {
                Some(field) => field.value.clone(),
                None => {
                    return Err(GoError::exec(format!("can't evaluate field {name} in type {}", s.kind.name)));
                }
            },
            Value::Nil => return Err(GoError::exec(format!("nil pointer evaluating interface {{}}.{name}"))),
            other => {
                return Err(GoError::exec(format!("can't evaluate field {name} in type {}", other.type_name())));
            }
        };
    }
    Ok(value)
}
