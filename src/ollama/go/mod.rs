//! Go's text/template, as much of it as Ollama's templates can use, evaluated exactly.
//!
//! A TEMPLATE that we write is only as good as the proof that it prints the right prompt, and the proof needs
//! Go's rules: trim markers, scoping of variables, `range` over sorted maps, comparison by kind, printing of
//! missing values. [`lex`](self) → [`parse`](self) → [`exec`](self); values are in [`value`](self). The
//! recorded outputs that it is tested against come from real Go (`tests/oracle/go_template.go`).

mod exec;
mod format;
mod funcs;
mod lex;
mod parse;
mod value;

pub use format::{is_print, json as json_text, quote};
pub use parse::{Arg, Branch, Node, Pipe, Template};
pub use value::{Field, Kind, List, Map, Struct, Value};

use super::python::Date;

/// A template that Go would refuse, or that fails when it runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoError {
    /// Refused at parse.
    #[error("TEMPLATE line {line}: {detail}; correct the Go template")]
    Parse {
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// Failed at execution.
    #[error("TEMPLATE: {detail}; correct the Go template")]
    Exec {
        /// What failed.
        detail: String,
    },
}

impl GoError {
    pub(crate) fn exec(detail: impl Into<String>) -> Self {
        Self::Exec { detail: detail.into() }
    }
}

impl Template {
    /// Executes the template on `data`; `today` is what `currentDate` tells.
    ///
    /// # Errors
    /// [`GoError::Exec`] where Go's `Execute` returns an error.
    pub fn execute(&self, data: &Value, today: Date) -> Result<String, GoError> {
        exec::execute(self, data, today)
    }
}
