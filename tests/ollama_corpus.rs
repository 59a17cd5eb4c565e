//! Every published chat template at hand: for which conversations the TEMPLATE made of it is exact, as a table.
//!
//! `CHAT_TEMPLATES=FOLDER` names what `tests/oracle/chat_templates.py` collected: a folder of `.jinja` files per
//! source. `CHAT_TEMPLATES_ONLY=TEXT` narrows the run to files whose name holds the text and prints what stands in
//! the way of each. `CHAT_TEMPLATES_DUMP=FILE` writes what the templates, and mutations of them, render to, for
//! `tests/oracle/jinja2_equal.py`, which has jinja2 render the same. `CHAT_ANSWERS_DUMP=FILE` writes how their models
//! answer, for `tests/oracle/ollama_answers.go`, which has Ollama's own code take the answers apart,
//! and `CHAT_PROMPTS_DUMP=FILE` conversations and prompts for `tests/oracle/ollama_renderers.go`.

#[path = "common/mutations.rs"]
mod mutations;

use mutations::{Dice, mutate};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use to_gguf::ollama::answers::{answers, tools};
use to_gguf::ollama::chat::{Conversation, Message, Role};
use to_gguf::ollama::infer::{Abilities, Scope};
use to_gguf::ollama::jinja::ChatTemplate;
use to_gguf::ollama::proof::{PROOF_DATE, held_out, translate, translate_for};
use to_gguf::ollama::recognise::Signposts;

/// The rows of the table: a name, and the scope to be proven for a template of these abilities.
type Row = (&'static str, fn(Scope) -> Option<Scope>);

const ROWS: [Row; 6] = [
    ("plain turns", |_| Some(Scope::default())),
    ("+ system prompt", |able| able.system.then_some(Scope { system: true, ..Scope::default() })),
    ("+ later system messages", |able| able.later_system.then_some(Scope { tools: false, thinking: false, ..able })),
    ("+ thinking, no tools", |able| able.thinking.then_some(Scope { tools: false, later_system: false, ..able })),
    ("+ tools, no thinking", |able| able.tools.then_some(Scope { thinking: false, later_system: false, ..able })),
    ("+ tools and thinking", |able| (able.tools && able.thinking).then_some(Scope { later_system: false, ..able })),
];

/// One template: its source, its name, its text.
struct Entry {
    source: String,
    name: String,
    text: String,
}

/// What was found: per row, `None` where it does not apply, else whether it is exact, or why not.
type Verdict = Vec<Option<Result<usize, String>>>;

fn entries(folder: &str) -> Vec<Entry> {
    let mut out = Vec::new();
    let sorted = |folder: PathBuf| {
        let mut list: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        list.sort();
        list
    };
    let only = std::env::var("CHAT_TEMPLATES_ONLY").unwrap_or_default();
    for source in sorted(folder.into()) {
        for file in sorted(source.clone()) {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            if name.contains(&only) {
                let source = source.file_name().unwrap().to_string_lossy().into_owned();
                out.push(Entry { source, name, text: std::fs::read_to_string(&file).unwrap() });
            }
        }
    }
    out
}

fn judge(text: &str) -> Option<Verdict> {
    let template = ChatTemplate::new(text, Some("<s>"), Some("</s>")).ok()?;
    template.set_date(PROOF_DATE);
    let abilities = Abilities::discover(&template, true).ok()?;
    let verdict = |scope: Scope| translate_for(&template, &abilities, scope).map(|proven| proven.judged);
    Some(ROWS.iter().map(|(_, scope)| scope(abilities.scope).map(verdict)).collect())
}

#[test]
fn published_templates() {
    let Ok(folder) = std::env::var("CHAT_TEMPLATES") else {
        eprintln!("skipped: CHAT_TEMPLATES names no folder of templates (see tests/oracle/chat_templates.py)");
        return;
    };
    let entries = entries(&folder);
    let verdicts: Mutex<BTreeMap<usize, Option<Verdict>>> = Mutex::default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = entries.iter().position(|e| std::ptr::eq(e, entry)).unwrap();
                    let verdict = judge(&entry.text);
                    verdicts.lock().unwrap().insert(at, verdict);
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap();
    let mut sources: Vec<&str> = entries.iter().map(|e| e.source.as_str()).collect();
    sources.dedup();
    let mut judged = 0;
    for (entry, verdict) in entries.iter().zip(verdicts.values()) {
        let Some(verdict) = verdict else {
            println!("{}/{}: refuses the plainest conversation", entry.source, entry.name);
            continue;
        };
        for ((row, _), result) in ROWS.iter().zip(verdict) {
            match result {
                Some(Err(why)) => println!("{}/{}: {row}: {why}", entry.source, entry.name),
                Some(Ok(count)) => judged += count,
                None => {}
            }
        }
    }
    let tell = |of: &dyn Fn(usize, &Entry) -> bool, row: usize| {
        let results = verdicts.iter().filter(|(n, _)| of(**n, &entries[**n]));
        let results: Vec<&Result<usize, String>> = results.filter_map(|(_, v)| v.as_ref()?[row].as_ref()).collect();
        if results.is_empty() {
            return "–".to_owned();
        }
        format!("{} / {}", results.iter().filter(|r| r.is_ok()).count(), results.len())
    };
    let first = |n: usize, e: &Entry| !entries[..n].iter().any(|o| o.text == e.text);
    let heads: Vec<String> = sources
        .iter()
        .map(|s| format!("{s} ({})", entries.iter().filter(|e| e.source == **s).count()))
        .chain([
            format!("all ({})", entries.len()),
            format!("distinct ({})", { entries.iter().enumerate().filter(|(n, e)| first(*n, e)).count() }),
        ])
        .collect();
    println!("| exact / applicable | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for (row, (name, _)) in ROWS.iter().enumerate() {
        let cells: Vec<String> = sources
            .iter()
            .map(|s| tell(&|_, e| e.source == **s, row))
            .chain([tell(&|_, _| true, row), tell(&|n, e| first(n, e), row)])
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
    println!("{judged} held-out conversations agreed");
}

/// Writes a line of JSON per rendering: the template's number, its variables, the text or null; before each
/// template's renderings, a line with its text.
#[test]
fn renderings_for_jinja2() {
    let (Ok(folder), Ok(file)) = (std::env::var("CHAT_TEMPLATES"), std::env::var("CHAT_TEMPLATES_DUMP")) else {
        eprintln!(
            "skipped: CHAT_TEMPLATES_DUMP names no file to write renderings to (see tests/oracle/jinja2_equal.py)"
        );
        return;
    };
    let mut out = std::io::BufWriter::new(std::fs::File::create(file).unwrap());
    let mut dice = Dice(20_261_125);
    let mut templates: Vec<(String, String)> =
        entries(&folder).into_iter().map(|e| (format!("{}/{}", e.source, e.name), e.text)).collect();
    let styles: Vec<&str> = include_str!("data/chat_templates.txt").split("\n=====\n").collect();
    for round in 0..50 {
        templates.extend(styles.iter().map(|s| (format!("mutation {round}"), mutate(s, &mut dice))));
    }
    let mut renderings = 0;
    for (name, text) in templates {
        let Ok(template) = ChatTemplate::new(&text, Some("<s>"), Some("</s>")) else { continue };
        template.set_date(PROOF_DATE);
        let Ok(abilities) = Abilities::discover(&template, true) else { continue };
        writeln!(out, "{}", json!({"name": name, "template": text})).unwrap();
        for conversation in held_out(abilities.scope, abilities.dialect.think_switch.is_some()) {
            let context = template.context(&conversation, &abilities.dialect);
            let rendered = template.render_whole(&conversation, &abilities.dialect).ok();
            writeln!(out, "{}", json!({"context": context, "text": rendered})).unwrap();
            renderings += 1;
        }
    }
    println!("{renderings} renderings written");
}

/// Writes a line of JSON per template and answer: what is meant, the text, the TEMPLATE, and what we expect of Ollama.
#[test]
fn answers_for_ollama() {
    let (Ok(folder), Ok(file)) = (std::env::var("CHAT_TEMPLATES"), std::env::var("CHAT_ANSWERS_DUMP")) else {
        eprintln!("skipped: CHAT_ANSWERS_DUMP names no file to write answers to (see tests/oracle/ollama_answers.go)");
        return;
    };
    let mut out = std::io::BufWriter::new(std::fs::File::create(file).unwrap());
    for entry in entries(&folder) {
        let Ok(template) = ChatTemplate::new(&entry.text, Some("<s>"), Some("</s>")) else { continue };
        template.set_date(PROOF_DATE);
        let Ok(abilities) = Abilities::discover(&template, true) else { continue };
        if !abilities.scope.tools && !abilities.scope.thinking {
            continue;
        }
        let proven = translate(&template, true).ok().and_then(|t| t.proven);
        let signposts = Signposts::find(&template, &abilities, abilities.scope.tools);
        for (sample, answer) in answers(&template, &abilities).into_iter().enumerate() {
            let Some(answer) = answer else { continue };
            let calls: Vec<_> =
                answer.message.tool_calls.iter().map(|c| json!({"name": c.name, "arguments": c.arguments})).collect();
            let line = json!({
                "template": format!("{}/{}", entry.source, entry.name),
                "sample": sample,
                "go": proven.as_ref().map(|p| &p.template),
                "tools": tools(),
                "prompt": answer.prompt,
                "text": answer.text,
                "content": answer.message.content,
                "thinking": answer.message.thinking,
                "calls": calls,
                "reads_calls": proven.as_ref().is_some_and(|p| p.signposts.call.is_some()),
                "reads_thinking": proven.as_ref().is_some_and(|p| p.signposts.thinking.is_some()),
                "parser": signposts.parser,
            });
            writeln!(out, "{line}").unwrap();
        }
    }
}

/// Writes a line of JSON per conversation, as Ollama takes it, then one per template with its text for each, or null.
#[test]
fn prompts_for_ollama() {
    let (Ok(folder), Ok(file)) = (std::env::var("CHAT_TEMPLATES"), std::env::var("CHAT_PROMPTS_DUMP")) else {
        eprintln!(
            "skipped: CHAT_PROMPTS_DUMP names no file to write prompts to (see tests/oracle/ollama_renderers.go)"
        );
        return;
    };
    let mut out = std::io::BufWriter::new(std::fs::File::create(file).unwrap());
    let every = Scope { system: true, later_system: true, thinking: true, tools: true };
    // Ollama asks a model that can think to think, unless the user does not want it.
    let conversations: Vec<_> = held_out(every, true).into_iter().filter(|c| c.think.is_some()).collect();
    for c in &conversations {
        let messages: Vec<_> = c
            .messages
            .iter()
            .map(|m| {
                let calls: Vec<_> = m
                    .tool_calls
                    .iter()
                    .map(|c| json!({"id": c.id, "function": {"name": c.name, "arguments": c.arguments}}))
                    .collect();
                json!({"role": m.role.as_str(), "content": m.content, "thinking": m.thinking.as_deref().unwrap_or(""),
                    "tool_calls": calls, "tool_name": m.tool_name.as_deref().unwrap_or(""),
                    "tool_call_id": m.tool_call_id.as_deref().unwrap_or("")})
            })
            .collect();
        let line = json!({"conversation": {"messages": messages, "tools": c.tools, "think": c.think}});
        writeln!(out, "{line}").unwrap();
    }
    for entry in entries(&folder) {
        let Ok(template) = ChatTemplate::new(&entry.text, Some("<s>"), Some("</s>")) else { continue };
        template.set_date(PROOF_DATE);
        let Ok(abilities) = Abilities::discover(&template, true) else { continue };
        let (able, switch) = (abilities.scope, abilities.dialect.think_switch.is_some());
        let text = |c: &Conversation| {
            let any = |of: &dyn Fn(&Message) -> bool| c.messages.iter().any(of);
            let within = (able.tools || c.tools.is_empty())
                && (able.thinking || !any(&|m| m.thinking.is_some()))
                && (able.system || c.messages[0].role != Role::System)
                && (able.later_system || c.messages.iter().skip(1).all(|m| m.role != Role::System))
                && (switch || c.think == Some(true));
            let text = template.render(c, &abilities.dialect).ok().filter(|_| within)?;
            Some(text.strip_prefix("<s>").unwrap_or(&text).to_owned())
        };
        let texts: Vec<Option<String>> = conversations.iter().map(text).collect();
        writeln!(out, "{}", json!({"template": format!("{}/{}", entry.source, entry.name), "texts": texts})).unwrap();
    }
}
