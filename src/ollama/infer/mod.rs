//! From a Jinja chat template to a Go TEMPLATE, by watching what the Jinja prints.
//!
//! Nothing is looked up by a model's name, and no Jinja is translated. The template is run on [probe](probe)
//! conversations whose contents are unmistakable; what it prints between them is [observed](observe); the
//! smallest rules over facts that Go can test are [learned](learn); and the rules are [written](emit) as a
//! TEMPLATE. Whether that is right is not this module's claim: [`super::proof`] tests it on other conversations.

mod calls;
mod conditions;
mod defines;
mod emit;
mod go_text;
mod layout;
mod learn;
mod model;
mod number;
mod observe;
mod part;
mod probe;
mod schema;
mod tokens;
mod tools;

pub use probe::Scope;

use super::chat::{Conversation, Dialect};
use super::jinja::{ChatTemplate, JinjaError, JsonView};
use calls::CallForm;
use observe::observe;
use probe::{probes, single};
use schema::ToolProgram;

/// What a template can do, found out by trying.
#[derive(Clone, Debug, Default)]
pub struct Abilities {
    /// How it wants its conversation.
    pub dialect: Dialect,
    /// The kinds of conversation that it shows.
    pub scope: Scope,
    /// It prints the BOS token in front, and the runner will put it there: the TEMPLATE must not.
    pub strips_bos: bool,
}

impl Abilities {
    /// The Jinja's text as the TEMPLATE has to print it.
    pub fn expected<'t>(&self, template: &ChatTemplate, text: &'t str) -> &'t str {
        match template.bos_token() {
            Some(bos) if self.strips_bos => text.strip_prefix(bos).unwrap_or(text),
            _ => text,
        }
    }

    /// Tries a template. `add_bos`: whether the runner puts the BOS token in front.
    ///
    /// # Errors
    /// The template's own words if it does not take the plainest conversation.
    pub fn discover(template: &ChatTemplate, add_bos: bool) -> Result<Self, JinjaError> {
        let mut dialect = Dialect::default();
        let plain = single("U", false, 0, None);
        let shows = |dialect: &Dialect, conversation: &Conversation, what: &str| {
            template.render(conversation, dialect).is_ok_and(|t| t.contains(what))
        };
        if !shows(&dialect, &plain, "QzU0Xq") {
            let parts = Dialect { content_parts: true, ..dialect.clone() };
            if shows(&parts, &plain, "QzU0Xq") {
                dialect = parts;
            }
        }
        let text = template.render(&plain, &dialect)?;
        let strips_bos = add_bos && template.bos_token().is_some_and(|bos| text.starts_with(bos));
        let mut scope = Scope {
            system: shows(&dialect, &single("U A U", true, 0, None), "QzS0Xq"),
            later_system: shows(&dialect, &single("U A M U", false, 0, None), "QzM2Xq"),
            ..Scope::default()
        };
        // Thinking: the first key whose text appears anywhere, and a switch that changes the text.
        for key in ["reasoning_content", "reasoning", "thinking", "thinking_content"] {
            let with = Dialect { thinking_key: Some(key.into()), ..dialect.clone() };
            let seen = ["U HA", "U HA U", "U HC1 T", "U HAC1 T"]
                .iter()
                .any(|shape| [0, 2].iter().any(|&tools| shows(&with, &single(shape, false, tools, None), "QzH1Xq")));
            if seen {
                dialect = with;
                scope.thinking = true;
                break;
            }
        }
        for name in template.variables() {
            let lower = name.to_lowercase();
            if !(lower.contains("think") || lower.contains("reason")) {
                continue;
            }
            let with = Dialect { think_switch: Some(name.clone()), ..dialect.clone() };
            let changes = ["U", "U A U", "U HA U", "U HA"].iter().any(|shape| {
                let render = |think| template.render(&single(shape, false, 0, think), &with).ok();
                let (unset, on, off) = (render(None), render(Some(true)), render(Some(false)));
                // A number of tokens, say, that is called by such a name is no switch: it would be printed.
                let printed = [("True", &on), ("False", &off)]
                    .iter()
                    .any(|(word, text)| text.as_ref().is_some_and(|t| t.contains(word)));
                on.is_some() && off.is_some() && !printed && (on != off || on != unset)
            });
            if changes {
                dialect = with;
                scope.thinking = true;
                break;
            }
        }
        // Tools: an offer that is shown, a call that is shown, a result that is shown.
        let call = single("U C1 T", false, 2, None);
        let shows_call = |dialect: &Dialect| {
            template
                .render(&call, dialect)
                .is_ok_and(|t| t.contains("qzfc0x") && t.contains("QzV0aXq") && t.contains("QzT2Xq"))
        };
        let mut calls = shows_call(&dialect);
        if !calls {
            let with = Dialect { arguments_as_text: true, ..dialect.clone() };
            if shows_call(&with) {
                dialect = with;
                calls = true;
            }
        }
        scope.tools = calls && shows(&dialect, &single("U", false, 2, None), "qztn0x");
        Ok(Self { dialect, scope, strips_bos })
    }
}

/// Infers TEMPLATEs for one scope, each from another view of what the template prints; the first that is proven is
/// to be taken. In the place of one: what of the template could not be explained or expressed, in words for the report.
pub fn candidates<'t>(
    template: &'t ChatTemplate,
    abilities: &'t Abilities,
    scope: Scope,
) -> impl Iterator<Item = Result<String, String>> + 't {
    let views: &[JsonView] = match (scope.tools, abilities.dialect.arguments_as_text) {
        (false, _) => &[JsonView::Mark],
        (true, false) => &[JsonView::Mark, JsonView::Text],
        (true, true) => &[JsonView::Text, JsonView::Mark],
    };
    views.iter().map(move |view| infer(template, abilities, scope, *view))
}

fn infer(template: &ChatTemplate, abilities: &Abilities, scope: Scope, view: JsonView) -> Result<String, String> {
    let mut dialect = abilities.dialect.clone();
    if !scope.thinking {
        dialect.think_switch = None;
        dialect.thinking_key = None;
    }
    let (mut form, mut program) = (CallForm::default(), None);
    if scope.tools {
        form = CallForm::discover(template, &dialect, view);
        program = ToolProgram::learn(template, &dialect, view).map_err(|e| e.0)?;
    }
    let mut observations = Vec::new();
    for probe in probes(scope, dialect.think_switch.is_some()) {
        // What the Jinja refuses is outside of the domain.
        let Ok((text, hooks)) = template.observe(&probe.conversation, &dialect, view) else {
            continue;
        };
        let expected = abilities.expected(template, &text);
        observations.push(observe(&probe, expected, (&hooks, view), &form, program.as_ref()).map_err(|e| e.0)?);
    }
    let model = model::Model::learn(&observations, program)?;
    emit::emit(&model)
}
