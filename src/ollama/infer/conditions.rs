//! The facts that a template asks for: their conditions, and the variables that hold them.

use super::go_text::GoText;
use super::learn::Feature;
use std::collections::BTreeSet;

/// The condition that tests a feature.
pub(super) fn condition(feature: Feature) -> &'static str {
    match feature {
        Feature::HasSystem => "$hasSystem",
        Feature::HasTools => "$.Tools",
        Feature::IsLast => "eq $i $last",
        Feature::IsFirst => "eq $i $first",
        Feature::AtMostSecond => "le $i $second",
        Feature::IsLastUser => "eq $i $lastUser",
        Feature::AfterLastUser => "gt $i $lastUser",
        Feature::ThinkOn => "$.Think",
        Feature::ThinkOff => "and $.IsThinkSet (not $.Think)",
        Feature::ThisThinking => "$m.Thinking",
        Feature::ThisCalls => "$m.ToolCalls",
        Feature::ThisContent => "$m.Content",
        Feature::ThisManyCalls => "gt (len $m.ToolCalls) 1",
        Feature::BeforeThinking => "$beforeThinking",
        Feature::BeforeCalls => "$beforeCalls",
        Feature::BeforeContent => "$beforeContent",
        Feature::LastIsTool => "eq $lastRole \"tool\"",
        Feature::LastIsUser => "eq $lastRole \"user\"",
        Feature::AnyTool => "$anyTool",
        Feature::SecondBeforeTool => "eq $secondRole \"tool\"",
        Feature::ToolBefore => "$toolSeen",
        Feature::AnswerFollows => "gt $lastAnswer $i",
        Feature::EndsLine => "and $m.Content (eq (slice $m.Content (len (slice $m.Content 1))) \"\\n\")",
    }
}

/// What the body needs to know about the conversation, found out while it is written.
#[derive(Default)]
pub(super) struct Needs {
    /// The facts that are asked for.
    pub(super) features: BTreeSet<Feature>,
    /// The system prompt.
    pub(super) system: bool,
    /// The number of the last message.
    pub(super) last: bool,
    /// The kind of the element before.
    pub(super) prev: bool,
    /// How many calls came before.
    pub(super) calls: bool,
    /// How many results came before.
    pub(super) results: bool,
    /// The name of the first call of the last message with calls.
    pub(super) called_name: bool,
}

/// A fact about what came before a message: its variables' first value, and each with what a message makes of it.
type Running = (Feature, &'static str, &'static [(&'static str, &'static str)]);

const RUNNING: [Running; 5] = [
    (Feature::BeforeThinking, "false", &[("$beforeThinking", "$m.Thinking")]),
    (Feature::BeforeCalls, "false", &[("$beforeCalls", "$m.ToolCalls")]),
    (Feature::BeforeContent, "false", &[("$beforeContent", "$m.Content")]),
    (Feature::SecondBeforeTool, "\"\"", &[("$secondRole", "$beforeRole"), ("$beforeRole", "$m.Role")]),
    (Feature::ToolBefore, "false", &[("$toolSeen", "or $toolSeen (eq $m.Role \"tool\")")]),
];

impl Needs {
    /// Declares what is carried from message to message.
    pub(super) fn declare(&self, out: &mut GoText) {
        if self.prev {
            out.control("$prev := \"\"");
        }
        for (on, name) in [(self.calls, "$calls"), (self.results, "$results"), (self.called_name, "$calledName")] {
            if on {
                out.control(&format!("{name} := \"\""));
            }
        }
        for (feature, first, variables) in RUNNING {
            if self.features.contains(&feature) {
                for (name, _) in variables {
                    out.control(&format!("{name} := {first}"));
                }
            }
        }
    }

    /// Updates that at the end of a message.
    pub(super) fn update(&self, out: &mut GoText) {
        for (feature, first, variables) in RUNNING {
            if !self.features.contains(&feature) {
                continue;
            }
            for (name, value) in variables {
                if first == "false" && !value.starts_with("or ") {
                    out.control(&format!("{name} = false"));
                    out.control(&format!("if {value}"));
                    out.control(&format!("{name} = true"));
                    out.control("end");
                } else {
                    out.control(&format!("{name} = {value}"));
                }
            }
        }
    }

    /// Writes a first look at all messages, for what has to be known before they are printed.
    pub(super) fn preamble(&self, out: &mut GoText) {
        let has = |f: Feature| self.features.contains(&f);
        let has_system = has(Feature::HasSystem) || has(Feature::IsFirst) || has(Feature::AtMostSecond);
        let last_user = has(Feature::IsLastUser) || has(Feature::AfterLastUser);
        let last_role = has(Feature::LastIsTool) || has(Feature::LastIsUser);
        let last_answer = has(Feature::AnswerFollows);
        let last = self.last || has(Feature::IsLast);
        if self.system {
            out.control("$system := \"\"");
        }
        if has(Feature::HasSystem) {
            out.control("$hasSystem := false");
        }
        if has(Feature::IsFirst) {
            out.control("$first := 0");
        }
        if has(Feature::AtMostSecond) {
            out.control("$second := 1");
        }
        if last_user {
            out.control("$lastUser := -1");
        }
        if last_answer {
            out.control("$lastAnswer := -1");
        }
        if last {
            out.control("$last := -1");
        }
        if last_role {
            out.control("$lastRole := \"\"");
        }
        if has(Feature::AnyTool) {
            out.control("$anyTool := false");
        }
        if !(self.system || has_system || last_user || last || last_answer || last_role || has(Feature::AnyTool)) {
            return;
        }
        out.control("range $i, $m := .Messages");
        if self.system || has_system {
            out.control("if and (eq $i 0) (eq .Role \"system\")");
            if self.system {
                out.control("$system = .Content");
            }
            if has(Feature::HasSystem) {
                out.control("$hasSystem = true");
            }
            if has(Feature::IsFirst) {
                out.control("$first = 1");
            }
            if has(Feature::AtMostSecond) {
                out.control("$second = 2");
            }
            out.control("end");
        }
        if last_user {
            out.control("if eq .Role \"user\"");
            out.control("$lastUser = $i");
            out.control("end");
        }
        if has(Feature::AnyTool) {
            out.control("if eq .Role \"tool\"");
            out.control("$anyTool = true");
            out.control("end");
        }
        if last_answer {
            out.control("if and (eq .Role \"assistant\") (not .ToolCalls)");
            out.control("$lastAnswer = $i");
            out.control("end");
        }
        if last {
            out.control("$last = $i");
        }
        if last_role {
            out.control("$lastRole = .Role");
        }
        out.control("end");
    }
}
