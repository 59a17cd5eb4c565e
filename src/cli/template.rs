//! `to-gguf template`: a chat template and its translation for Ollama, side by side.

use crate::ollama::chat::Conversation;
use crate::ollama::infer::{Abilities, Scope};
use crate::ollama::jinja::ChatTemplate;
use crate::ollama::proof::{PROOF_DATE, describe, held_out, prove, translate};
use crate::ollama::render::OllamaTemplate;
use crate::ollama::{ChatInput, grammar, scope_in_words};
use anyhow::{Context, bail};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `template`.
#[derive(Debug, Args)]
pub(super) struct TemplateArgs {
    /// Model folder, GGUF file or .jinja file
    pub model: PathBuf,

    /// Only compare, on every held-out conversation; exit status 1 if something differs
    #[arg(long)]
    pub check: bool,

    /// Compare with this Go template (or the TEMPLATE of this Modelfile) instead of the translation
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
}

/// Translates, or checks a translation, and shows both.
///
/// # Errors
/// If the model or its chat template cannot be read.
pub(super) fn run(args: &TemplateArgs) -> anyhow::Result<ExitCode> {
    let chat = ChatInput::of_path(&args.model)?;
    let Some(source) = &chat.template else {
        bail!("{}: no chat template; add chat_template.jinja, or there is nothing to translate", args.model.display());
    };
    let jinja = ChatTemplate::new(source, chat.bos_token.as_deref(), chat.eos_token.as_deref())?;
    jinja.set_date(PROOF_DATE);
    let add_bos = chat.add_bos.unwrap_or(true);
    let (text, abilities, scope) = match &args.against {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("{}: cannot be read; name a Go template or a Modelfile", file.display()))?;
            let text = match grammar::parse(&text) {
                Ok(commands) => commands.into_iter().find(|c| c.name == "template").map_or(text, |c| c.args),
                Err(_) => text,
            };
            let abilities = Abilities::discover(&jinja, add_bos)?;
            let scope = abilities.scope;
            (text, abilities, scope)
        }
        None => {
            let translation = translate(&jinja, add_bos)?;
            for (scope, why) in &translation.obstacles {
                eprintln!("not reproduced: {}: {why}", scope_in_words(*scope).join(", "));
            }
            let Some(proven) = translation.proven else {
                println!(
                    "no TEMPLATE reproduces this chat template; Ollama 0.32 and later use the one inside the GGUF"
                );
                return Ok(ExitCode::FAILURE);
            };
            (proven.template, translation.abilities, proven.scope)
        }
    };
    if !args.check {
        println!("{text}\n");
        show(&jinja, &abilities, &text, scope)?;
    }
    let proof = prove(&jinja, &abilities, &text, scope)?;
    let what = scope_in_words(scope).join(", ");
    match proof.mismatch {
        None => {
            println!("equal on {} held-out conversations: {what}", proof.judged);
            Ok(ExitCode::SUCCESS)
        }
        Some(mismatch) => {
            println!("{}", describe(&mismatch));
            let got = match &mismatch.got {
                Ok(text) => text.clone(),
                Err(error) => error.to_string(),
            };
            print!("{}", columns("chat template", "TEMPLATE", &mismatch.expected, &got));
            println!("different after {} conversations: {what}", proof.judged);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Prints one conversation of each kind in both renderings.
fn show(jinja: &ChatTemplate, abilities: &Abilities, text: &str, scope: Scope) -> anyhow::Result<()> {
    let go = OllamaTemplate::parse(text)?;
    let samples = held_out(scope, abilities.dialect.think_switch.is_some());
    let longest = |pick: &dyn Fn(&Conversation) -> bool| {
        samples
            .iter()
            .filter(|c| pick(c) && (4..8).contains(&c.messages.len()))
            .find(|c| jinja.render(c, &abilities.dialect).is_ok())
    };
    let plain = longest(&|c| c.tools.is_empty() && c.messages.iter().all(|m| m.thinking.is_none()));
    let thinking = longest(&|c| c.tools.is_empty() && c.messages.iter().any(|m| m.thinking.is_some()));
    let calls = longest(&|c| c.messages.iter().any(|m| !m.tool_calls.is_empty()));
    for conversation in [plain, thinking, calls].into_iter().flatten() {
        let rendered = jinja.render(conversation, &abilities.dialect)?;
        let expected = abilities.expected(jinja, &rendered);
        let got = go.render(conversation, PROOF_DATE)?;
        let roles: Vec<&str> = conversation.messages.iter().map(|m| m.role.as_str()).collect();
        print!("{}", columns(&format!("chat template: {}", roles.join(", ")), "TEMPLATE", expected, &got));
        println!();
    }
    Ok(())
}

/// Width of one column, in characters.
const WIDTH: usize = 58;

/// Two texts beside each other, line by line; rows that differ are marked.
fn columns(left_title: &str, right_title: &str, left: &str, right: &str) -> String {
    let (left, right) = (rows(left), rows(right));
    let clip = |s: &str| -> String { s.chars().take(WIDTH).collect() };
    let mut out = format!("{:<WIDTH$}   {}\n", clip(left_title), right_title);
    for n in 0..left.len().max(right.len()) {
        let (a, b) = (left.get(n).map_or("", String::as_str), right.get(n).map_or("", String::as_str));
        let mark = if left.get(n) == right.get(n) { ' ' } else { '!' };
        out.push_str(format!("{a:<WIDTH$} {mark} {b}").trim_end());
        out.push('\n');
    }
    out
}

/// Lines of at most [`WIDTH`] characters; line breaks are shown, so that a missing one is seen.
fn rows(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in text.split_inclusive('\n') {
        let shown: Vec<char> = line.replace('\n', "⏎").replace('\t', "→").chars().collect();
        out.extend(shown.chunks(WIDTH).map(|c| c.iter().collect()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_rows_are_marked() {
        let shown = columns("a", "b", "same\nold", "same\nnew");
        let lines: Vec<&str> = shown.lines().collect();
        assert!(!lines[1].contains('!'), "{shown}");
        assert!(lines[2].contains('!'), "{shown}");
    }
}
