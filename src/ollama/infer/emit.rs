//! The Go TEMPLATE of a model.

use super::conditions::{Needs, condition};
use super::defines::Defines;
use super::go_text::{GoText, escape, quoted};
use super::layout::{Layout, common, common_ending, without, without_ending};
use super::learn::Tree;
use super::model::Model;
use super::part::{Counter, Kind, Part, Trim};
use super::schema::TOOL_BLOCK;
use std::collections::{BTreeMap, BTreeSet};

/// The name that `$prev` has behind an element.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Start => "",
        Kind::User => "user",
        Kind::Thinking => "thinking",
        Kind::Answer => "answer",
        Kind::Call => "call",
        Kind::Result => "result",
        Kind::Later => "system",
        Kind::End => "end",
    }
}

struct Emitter<'a> {
    model: &'a Model,
    layout: Layout,
    defines: Defines,
    needs: Needs,
}

/// Writes the TEMPLATE.
///
/// # Errors
/// What the model contains that Go cannot express.
pub(super) fn emit(model: &Model) -> Result<String, String> {
    let mut emitter =
        Emitter { model, layout: Layout::new(model), defines: Defines::default(), needs: Needs::default() };
    // Whether `$prev` is needed shows only when the body is written; write it once to learn that.
    let mut scratch = GoText::default();
    emitter.body(&mut scratch)?;
    let mut body = GoText::default();
    emitter.body(&mut body)?;
    let body = body.finish();
    let mut head = GoText::default();
    if let Some(program) = &model.program {
        program.write(&mut head, &mut emitter.defines);
    }
    emitter.defines.write(&mut head);
    emitter.needs.preamble(&mut head);
    let head = head.finish();
    let gap = if !head.is_empty() && body.starts_with("{{-") { "\n" } else { "" };
    Ok(format!("{head}{gap}{body}"))
}

impl Emitter<'_> {
    fn body(&mut self, out: &mut GoText) -> Result<(), String> {
        let shown: BTreeSet<Kind> = self.layout.between.keys().map(|p| p.1).collect();
        let hoisted = self.hoist(out)?;
        self.needs.declare(out);
        out.control("range $i, $m := .Messages");
        let mut first = true;
        let mut branch = |out: &mut GoText, test: &str| {
            let keyword = if std::mem::take(&mut first) { "if" } else { "else if" };
            out.control(&format!("{keyword} {test}"));
        };
        if shown.contains(&Kind::Later) {
            branch(out, "and (eq .Role \"system\") (gt $i 0)");
            self.element(out, Kind::Later, hoisted)?;
        }
        if shown.contains(&Kind::User) {
            branch(out, "eq .Role \"user\"");
            self.element(out, Kind::User, hoisted)?;
        }
        if shown.contains(&Kind::Answer) {
            branch(out, "eq .Role \"assistant\"");
            if shown.contains(&Kind::Thinking) {
                self.element(out, Kind::Thinking, hoisted)?;
            }
            if shown.contains(&Kind::Call) {
                out.control("if or .Content (not .ToolCalls)");
                self.element(out, Kind::Answer, hoisted)?;
                out.control("end");
                self.calls(out)?;
            } else {
                self.element(out, Kind::Answer, hoisted)?;
            }
        }
        if shown.contains(&Kind::Result) {
            branch(out, "eq .Role \"tool\"");
            self.element(out, Kind::Result, hoisted)?;
            if self.needs.results {
                out.control("$results = printf \"%sx\" $results");
            }
        }
        out.control("end");
        self.needs.update(out);
        out.control("end");
        self.between(out, Kind::End, hoisted)
    }

    /// Writes what stands at the start before the loop, if it does not depend on what comes first.
    fn hoist(&mut self, out: &mut GoText) -> Result<bool, String> {
        let starts: Vec<Tree<Vec<Part>>> = self
            .layout
            .between
            .iter()
            .filter(|(pair, _)| pair.0 == Kind::Start)
            .map(|(_, tree)| simplify(tree))
            .collect();
        let Some(first) = starts.first() else {
            return Ok(false);
        };
        let global = first.features().iter().all(|f| f.is_global());
        if !global || starts.iter().any(|t| t != first) {
            return Ok(false);
        }
        self.tree(out, &first.clone())?;
        Ok(true)
    }

    /// One element with all that surrounds it.
    fn element(&mut self, out: &mut GoText, kind: Kind, hoisted: bool) -> Result<(), String> {
        let visible = self.model.visible.get(&kind).map(simplify);
        let mut conditional = 0;
        match visible {
            _ if kind == Kind::Thinking => {
                let tree = visible.unwrap_or(Tree::Leaf(true));
                conditional = self.open(out, &tree, Some("$m.Thinking"))?;
            }
            Some(tree) if tree != Tree::Leaf(true) => conditional = self.open(out, &tree, None)?,
            _ => {}
        }
        self.between(out, kind, hoisted)?;
        let trim = self.model.trims.get(&kind).map_or(Tree::Leaf(Trim::default()), simplify);
        let field = if kind == Kind::Thinking { ".Thinking" } else { ".Content" };
        let heading = self.layout.heading.get(&kind).cloned().unwrap_or_default();
        let ending = self.layout.ending.get(&kind).cloned().unwrap_or_default();
        if let (Kind::Thinking, [Part::Lit(open)], [Part::Lit(close)], Tree::Leaf(trim)) =
            (kind, heading.as_slice(), ending.as_slice(), &trim)
        {
            let action = self.defines.trimmed(trim, field);
            out.inline(&format!(
                "{{{{- if .Thinking }}}}{}{{{{ {action} }}}}{}{{{{ end }}}}",
                escape(open),
                escape(close)
            ));
        } else {
            self.parts(out, &heading)?;
            self.content(out, &trim, field);
            if kind == Kind::Answer && !ending.is_empty() {
                self.needs.last = true;
                out.control(if self.layout.calls_follow {
                    "if and (ne $i $last) (not $m.ToolCalls)"
                } else {
                    "if ne $i $last"
                });
                self.parts(out, &ending)?;
                out.control("end");
            } else {
                self.parts(out, &ending)?;
            }
        }
        if self.needs.prev {
            out.control(&format!("$prev = {}", quoted(word(kind))));
        }
        for _ in 0..conditional {
            out.control("end");
        }
        Ok(())
    }

    /// Opens an `if` for the places where an element is shown; returns how many to close.
    fn open(&mut self, out: &mut GoText, tree: &Tree<bool>, and: Option<&str>) -> Result<usize, String> {
        let formula = self.formula(tree);
        let text = match (and, formula.as_str()) {
            (Some(a), "true") => a.to_owned(),
            (Some(a), f) => format!("and {a} {}", parenthesised(f)),
            (None, f) => f.to_owned(),
        };
        out.control(&format!("if {text}"));
        Ok(1)
    }

    /// A tree of yes and no as one condition.
    fn formula(&mut self, tree: &Tree<bool>) -> String {
        match tree {
            Tree::Leaf(b) => b.to_string(),
            Tree::Split(feature, yes, no) => {
                self.needs.features.insert(*feature);
                let test = condition(*feature).to_owned();
                let (yes, no) = (self.formula(yes), self.formula(no));
                let not = |t: &str| format!("not {}", parenthesised(t));
                match (yes.as_str(), no.as_str()) {
                    ("true", "false") => test,
                    ("false", "true") => not(&test),
                    ("true", n) => format!("or {} {}", parenthesised(&test), parenthesised(n)),
                    (y, "false") => format!("and {} {}", parenthesised(&test), parenthesised(y)),
                    ("false", n) => format!("and {} {}", parenthesised(&not(&test)), parenthesised(n)),
                    (y, "true") => format!("or {} {}", parenthesised(&not(&test)), parenthesised(y)),
                    (y, n) => format!(
                        "or (and {} {}) (and {} {})",
                        parenthesised(&test),
                        parenthesised(y),
                        parenthesised(&not(&test)),
                        parenthesised(n)
                    ),
                }
            }
        }
    }

    fn content(&mut self, out: &mut GoText, trim: &Tree<Trim>, field: &str) {
        match trim {
            Tree::Leaf(trim) => {
                let action = self.defines.trimmed(trim, field);
                out.print(&action);
            }
            Tree::Split(feature, yes, no) => {
                self.needs.features.insert(*feature);
                out.control(&format!("if {}", condition(*feature)));
                self.content(out, yes, field);
                out.control("else");
                self.content(out, no, field);
                out.control("end");
            }
        }
    }

    fn calls(&mut self, out: &mut GoText) -> Result<(), String> {
        let visible = self.model.visible.get(&Kind::Call).map(simplify);
        let mut conditional = 0;
        if let Some(tree) = visible.filter(|t| *t != Tree::Leaf(true)) {
            conditional = self.open(out, &tree, None)?;
        }
        let heading = self.layout.heading.get(&Kind::Call).cloned().unwrap_or_default();
        let ending = self.layout.ending.get(&Kind::Call).cloned().unwrap_or_default();
        let again = self.layout.between.get(&(Kind::Call, Kind::Call)).map(simplify);
        let mut first: BTreeMap<(Kind, Kind), Tree<Vec<Part>>> = self.layout.between.clone();
        first.retain(|pair, _| pair.1 == Kind::Call && pair.0 != Kind::Call);
        let empty = |t: &Tree<Vec<Part>>| t.leaves().iter().all(|l| l.is_empty());
        if first.values().any(|t| !empty(t)) {
            out.control("if $m.ToolCalls");
            self.between_from(out, &first)?;
            out.control("end");
        }
        out.control("if .ToolCalls");
        out.control(if self.model.first_call_only {
            "range $n, $call := slice .ToolCalls 0 1"
        } else {
            "range $n, $call := .ToolCalls"
        });
        if self.needs.called_name {
            out.control("if not $n");
            out.control("$calledName = $call.Function.Name");
            out.control("end");
        }
        if let Some(again) = again.filter(|t| !empty(t)) {
            out.control("if $n");
            self.tree(out, &again)?;
            out.control("end");
        }
        self.parts(out, &heading)?;
        let call = self.model.call.clone();
        self.parts(out, &call)?;
        self.parts(out, &ending)?;
        if self.needs.calls {
            out.control("$calls = printf \"%sx\" $calls");
        }
        out.control("end");
        if self.needs.prev {
            out.control("$prev = \"call\"");
        }
        out.control("end");
        for _ in 0..conditional {
            out.control("end");
        }
        Ok(())
    }

    /// What stands between the element before, whatever it was, and this kind.
    fn between(&mut self, out: &mut GoText, kind: Kind, hoisted: bool) -> Result<(), String> {
        let mut pairs = self.layout.between.clone();
        pairs.retain(|pair, _| {
            pair.1 == kind && !(hoisted && pair.0 == Kind::Start) && *pair != (Kind::Answer, Kind::End)
        });
        let starts = self.layout.between.contains_key(&(Kind::Start, kind));
        if hoisted && starts && !pairs.is_empty() {
            // What the start needs was written before the loop.
            pairs.insert((Kind::Start, kind), Tree::Leaf(Vec::new()));
        }
        let open_end = self.layout.between.contains_key(&(Kind::Answer, Kind::End));
        if kind == Kind::End && open_end && pairs.values().any(|t| t.leaves().iter().any(|l| !l.is_empty())) {
            // A conversation that ends with an answer is left open.
            pairs.insert((Kind::Answer, Kind::End), Tree::Leaf(Vec::new()));
        }
        self.between_from(out, &pairs)
    }

    fn between_from(
        &mut self,
        out: &mut GoText,
        pairs: &BTreeMap<(Kind, Kind), Tree<Vec<Part>>>,
    ) -> Result<(), String> {
        let mut groups: Vec<(Tree<Vec<Part>>, Vec<Kind>)> = Vec::new();
        for (pair, tree) in pairs {
            let tree = simplify(tree);
            match groups.iter_mut().find(|(t, _)| *t == tree) {
                Some((_, kinds)) => kinds.push(pair.0),
                None => groups.push((tree, vec![pair.0])),
            }
        }
        match groups.as_slice() {
            [] => return Ok(()),
            [(tree, _)] => return self.tree(out, &tree.clone()),
            _ => {}
        }
        self.needs.prev = true;
        // Kinds that print nothing need no branch of their own.
        let silent = Tree::Leaf(Vec::new());
        groups.sort_by_key(|(t, kinds)| (*t == silent, kinds.len()));
        for (n, (tree, kinds)) in groups.iter().enumerate() {
            let words: Vec<String> = kinds.iter().map(|k| quoted(word(*k))).collect();
            if *tree == silent {
                continue;
            }
            let keyword = if n == 0 { "if" } else { "else if" };
            out.control(&format!("{keyword} eq $prev {}", words.join(" ")));
            self.tree(out, &tree.clone())?;
        }
        out.control("end");
        Ok(())
    }

    /// Text that depends on features; what all cases share is written once.
    fn tree(&mut self, out: &mut GoText, tree: &Tree<Vec<Part>>) -> Result<(), String> {
        let (feature, yes, no) = match tree {
            Tree::Leaf(parts) => return self.parts(out, parts),
            Tree::Split(feature, yes, no) => (*feature, yes, no),
        };
        let leaves = tree.leaves();
        let start = common(leaves.iter().map(|l| l.as_slice()), false);
        let rest = tree.map(&mut |l| without(l, &start, false));
        let end = common_ending(&rest.leaves());
        if !start.is_empty() || !end.is_empty() {
            self.parts(out, &start)?;
            let middle = simplify(&rest.map(&mut |l| without_ending(l, &end)));
            // What is left has no common text, so this ends.
            self.split(out, &middle)?;
            return self.parts(out, &end);
        }
        let _ = (feature, yes, no);
        self.split(out, tree)
    }

    fn split(&mut self, out: &mut GoText, tree: &Tree<Vec<Part>>) -> Result<(), String> {
        let (feature, yes, no) = match tree {
            Tree::Leaf(parts) => return self.parts(out, parts),
            Tree::Split(feature, yes, no) => (*feature, yes, no),
        };
        self.needs.features.insert(feature);
        let silent = |t: &Tree<Vec<Part>>| *t == Tree::Leaf(Vec::new());
        if silent(yes) {
            out.control(&format!("if not {}", parenthesised(condition(feature))));
            self.tree(out, no)?;
        } else {
            out.control(&format!("if {}", condition(feature)));
            self.tree(out, yes)?;
            if !silent(no) {
                out.control("else");
                self.tree(out, no)?;
            }
        }
        out.control("end");
        Ok(())
    }

    fn parts(&mut self, out: &mut GoText, parts: &[Part]) -> Result<(), String> {
        for part in parts {
            match part {
                Part::Lit(text) => out.text(text),
                Part::System(trim) => {
                    self.needs.system = true;
                    let action = self.defines.trimmed(trim, "$system");
                    out.print(&action);
                }
                Part::Date(format) => self.defines.date(out, format)?,
                Part::Tools(style, level) => self.defines.tools(out, style, *level),
                Part::ToolLoop(body, separator) => {
                    out.control("range $t, $tool := $.Tools");
                    if !separator.is_empty() {
                        out.control("if $t");
                        out.text(separator);
                        out.control("end");
                    }
                    self.parts(out, body)?;
                    out.control("end");
                }
                Part::ToolBlock => out.print(&format!("template {} $.Tools", quoted(TOOL_BLOCK))),
                Part::Tool(part, style, level) => {
                    let action = self.defines.tool(*part, style, *level);
                    out.print(&action);
                }
                Part::ResultName => out.print("$m.ToolName"),
                Part::ResultId => out.print("$m.ToolCallID"),
                Part::FirstCallName => {
                    self.needs.called_name = true;
                    out.print("$calledName");
                }
                Part::Number(counter) => {
                    let from = match counter {
                        Counter::Calls(from) => {
                            self.needs.calls = true;
                            ("$calls", from)
                        }
                        Counter::Results(from) => {
                            self.needs.results = true;
                            ("$results", from)
                        }
                        Counter::CallsOfMessage(0) => {
                            out.print("$n");
                            continue;
                        }
                        // text/template cannot add, but this many bytes of the list's text would be one more.
                        Counter::CallsOfMessage(_) => {
                            out.print("len (printf \"%*sx\" $n \"\")");
                            continue;
                        }
                    };
                    match from {
                        (name, 0) => out.print(&format!("len {name}")),
                        (name, _) => out.print(&format!("len (printf \"%sx\" {name})")),
                    }
                }
                Part::CallName => out.print("$call.Function.Name"),
                Part::CallId => out.print("$call.ID"),
                Part::Arguments(style, level) => {
                    let action = self.defines.json(style, *level, "$call.Function.Arguments");
                    out.print(&action);
                }
                Part::ArgumentLoop(text, other, separator) => {
                    out.control("$between := false");
                    out.control("range $key, $value := $call.Function.Arguments");
                    if !separator.is_empty() {
                        out.control("if $between");
                        out.text(separator);
                        out.control("end");
                        out.control("$between = true");
                    }
                    if text == other || other.is_empty() {
                        self.parts(out, text)?;
                    } else if text.is_empty() {
                        self.parts(out, other)?;
                    } else {
                        out.control("if eq (printf \"%T\" $value) \"string\"");
                        self.parts(out, text)?;
                        out.control("else");
                        self.parts(out, other)?;
                        out.control("end");
                    }
                    out.control("end");
                }
                Part::Key => out.print("$key"),
                Part::Value(None) => out.print("$value"),
                Part::Printed(forms) => {
                    let action = self.defines.printed(forms, "$value");
                    out.print(&action);
                }
                Part::Value(Some(style)) => {
                    let action = self.defines.json(style, 0, "$value");
                    out.print(&action);
                }
            }
        }
        Ok(())
    }
}

fn parenthesised(condition: &str) -> String {
    if condition.contains(' ') { format!("({condition})") } else { condition.to_owned() }
}

/// A tree without questions whose answers do not matter.
fn simplify<L: Clone + Eq>(tree: &Tree<L>) -> Tree<L> {
    match tree {
        Tree::Leaf(_) => tree.clone(),
        Tree::Split(feature, yes, no) => {
            let (yes, no) = (simplify(yes), simplify(no));
            if yes == no { yes } else { Tree::Split(*feature, Box::new(yes), Box::new(no)) }
        }
    }
}
