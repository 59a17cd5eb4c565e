//! Execution: the walk over the tree, variables, fields and pipelines.

use super::GoError;
use super::format::printed;
use super::funcs;
use super::parse::{Arg, Branch, Node, Pipe, Template};
use super::value::Value;
use crate::ollama::python::Date;

/// Go allows 100,000 nested calls; a prompt template needs as many as the blanks that it trims.
const MAX_DEPTH: usize = 400;
/// Nodes that one execution may visit.
const MAX_STEPS: usize = 20_000_000;

pub(super) fn execute(template: &Template, data: &Value, today: Date) -> Result<String, GoError> {
    let mut run =
        Run { template, today, out: String::new(), variables: vec![("$".into(), data.clone())], depth: 0, steps: 0 };
    run.list(&template.root, data)?;
    Ok(run.out)
}

struct Run<'a> {
    template: &'a Template,
    today: Date,
    out: String,
    variables: Vec<(String, Value)>,
    depth: usize,
    steps: usize,
}

/// How a list of nodes ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl<'a> Run<'a> {
    fn list(&mut self, nodes: &'a [Node], dot: &Value) -> Result<Flow, GoError> {
        for node in nodes {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(GoError::exec("the template does not come to an end"));
            }
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipe) => {
                    let value = self.pipeline(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        self.out.push_str(&printed(&value));
                    }
                }
                Node::If(branch) | Node::With(branch) => {
                    let flow = self.branch(branch, dot, matches!(node, Node::With(_)))?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Node::Range(branch) => self.range(branch, dot)?,
                Node::Call { name, data } => self.call(name, data.as_ref(), dot)?,
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::On)
    }

    fn branch(&mut self, branch: &'a Branch, dot: &Value, with: bool) -> Result<Flow, GoError> {
        let mark = self.variables.len();
        let value = self.pipeline(&branch.pipe, dot)?;
        let flow = if value.is_true() {
            self.list(&branch.list, if with { &value } else { dot })?
        } else if let Some(otherwise) = &branch.otherwise {
            self.list(otherwise, dot)?
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
                self.list(otherwise, dot)?;
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
            let flow = self.list(&branch.list, &item)?;
            self.variables.truncate(inner);
            if flow == Flow::Break {
                break;
            }
        }
        self.variables.truncate(mark);
        Ok(())
    }

    fn call(&mut self, name: &str, data: Option<&'a Pipe>, dot: &Value) -> Result<(), GoError> {
        let template = self.template;
        let nodes =
            template.defines.get(name).ok_or_else(|| GoError::exec(format!("template {name:?} not defined")))?;
        let value = match data {
            Some(pipe) => self.pipeline(pipe, dot)?,
            None => Value::Nil,
        };
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(GoError::exec("exceeded the maximum depth of nested templates"));
        }
        let outer = std::mem::replace(&mut self.variables, vec![("$".into(), value.clone())]);
        self.list(nodes, &value)?;
        self.variables = outer;
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
