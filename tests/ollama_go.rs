//! The Go template evaluator against real Go: recorded outputs always, Go itself where it is installed.

use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use to_gguf::ollama::go::{Template, Value};
use to_gguf::ollama::infer::{Abilities, Scope};
use to_gguf::ollama::jinja::ChatTemplate;
use to_gguf::ollama::proof::{PROOF_DATE, held_out, translate};
use to_gguf::ollama::render::OllamaTemplate;

/// Templates that try every rule of the language; `{D}` is replaced by nothing, the data is [`data`].
const CASES: &[&str] = &[
    "plain text\n",
    "a {{ .s }} b",
    "a  {{- .s -}}  b",
    "a\n{{- /* note */ -}}\n b",
    "{{/* note */}}x",
    "{{ .missing }}|{{ .null }}|{{ .n.missing }}",
    "{{ .missing.deeper }}",
    "{{ .s.field }}",
    "{{ if .s }}yes{{ else }}no{{ end }}{{ if .empty }}yes{{ else }}no{{ end }}",
    "{{ if .zero }}a{{ else if .f }}b{{ else }}c{{ end }}",
    "{{ if and .s .empty }}a{{ else if or .empty .s }}b{{ end }}",
    "{{ with .n }}{{ .k }}{{ else }}none{{ end }}{{ with .empty }}x{{ else }}e{{ end }}",
    "{{ with $x := .s }}{{ $x }}{{ . }}{{ end }}",
    "{{ range .list }}[{{ . }}]{{ end }}",
    "{{ range $i, $v := .list }}{{ $i }}={{ $v }};{{ end }}",
    "{{ range $v := .list }}{{ $v }};{{ end }}",
    "{{ range .nothing }}x{{ else }}nothing{{ end }}",
    "{{ range .null }}x{{ else }}nothing{{ end }}",
    "{{ range $k, $v := .map }}{{ $k }}:{{ $v }} {{ end }}",
    "{{ range .list }}{{ if eq . \"b\" }}{{ continue }}{{ end }}{{ . }}{{ end }}",
    "{{ range .list }}{{ if eq . \"b\" }}{{ break }}{{ end }}{{ . }}{{ end }}",
    "{{ range .s }}x{{ end }}",
    "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}",
    "{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}",
    "{{ $x := \"\" }}{{ range .list }}{{ $x = . }}{{ end }}{{ $x }}",
    "{{ $y }}",
    "{{ $ }}|{{ $.s }}|{{ range .list }}{{ $.f }}{{ end }}",
    "{{ define \"t\" }}<{{ . }}>{{ end }}{{ template \"t\" .s }}{{ template \"t\" 3 }}",
    "{{ define \"t\" }}{{ if . }}{{ slice . 0 1 }}-{{ template \"t\" (slice . 1) }}{{ end }}{{ end }}{{ template \"t\" .s }}",
    "{{ block \"b\" .s }}({{ . }}){{ end }}",
    "{{ template \"none\" . }}",
    "{{ define \"a\" }}{{ $x }}{{ end }}",
    "{{ eq 1 1 }}{{ eq 1 2 }}{{ eq \"a\" \"b\" \"a\" }}{{ ne 1 2 }}{{ lt 1 2 }}{{ le 2 2 }}{{ gt 1 2 }}{{ ge 2 3 }}",
    "{{ eq .null nil }}{{ eq .s nil }}",
    "{{ eq .f 1 }}",
    "{{ eq .s 1 }}",
    "{{ lt \"a\" \"b\" }}{{ lt 1.5 2.5 }}",
    "{{ not .s }}{{ not .empty }}",
    "{{ len .s }}{{ len .list }}{{ len .map }}",
    "{{ len .f }}",
    "{{ index .list 1 }}{{ index .map \"x\" }}{{ index .map \"no\" }}",
    "{{ index .list 9 }}",
    "{{ slice .s 1 }}{{ slice .s 1 2 }}{{ slice .list 1 }}",
    "{{ slice .s 9 }}",
    "{{ len (slice .u 1) }}{{ slice .u 0 2 }}",
    "{{ .s | printf \"%s-%s\" \"x\" }}",
    "{{ printf \"%d %v %q %5d|%-5s|%05d %x %t %%\" 3 .f .s 7 \"ab\" 42 255 true }}",
    "{{ printf \"%s\" 3 }}{{ printf \"%d\" \"x\" }}{{ printf \"%d\" }}{{ printf \"x\" 1 }}",
    "{{ printf \"%.2f %g %v %v\" .f .f .big .tiny }}",
    "{{ printf \"%T %T %T %T %T %T\" .s .f .list .map .b 1 }}",
    "{{ printf \"%v %v\" .list .map }}",
    "{{ print 1 2 \"a\" \"b\" 3 }}{{ println \"x\" 1 }}",
    "{{ printf \"%q\" .u }}{{ printf \"%q\" .ctl }}",
    "{{ json .map }}{{ json .html }}{{ json .list }}{{ json .null }}{{ json .f }}{{ json .big }}",
    "{{ html .html }}{{ urlquery .html }}{{ js .html }}",
    "{{ .list }}{{ .map }}{{ .b }}{{ .f }}{{ .big }}",
    "{{ (index .list 0) }}{{ (.n).k }}",
    "{{ .n.k }}{{ $z := .n }}{{ $z.k }}",
    "{{ \"quo\\\"te\\n\\t\\u00e9\\x41\" }}{{ `raw \\n` }}{{ 'a' }}",
    "{{ 0x10 }} {{ 1_000 }} {{ 1e3 }} {{ -2 }} {{ 1.50 }}",
    "{{ true }}{{ false }}{{ nil }}",
    "{{ if true }}{{ nil | len }}{{ end }}",
    "{{- .s }}\n\n  {{- .s -}}  \n x",
    "{{ \"{{\" }} }} { {{ \"}\" }}",
    "{{ if }}x{{ end }}",
    "{{ .s",
    "{{ nofunc 1 }}",
    "{{ end }}",
    "{{ if .s }}",
    "{{ else }}",
    "{{ break }}",
    "{{ .s .f }}",
    "{{ 3 | 4 }}",
    "{{ and }}",
    "{{ or .empty \"x\" (len 3) }}",
    "{{ and .empty (len 3) }}",
    "{{ currentDate }} {{ slice currentDate 0 4 }}",
    "{{ with .n }}{{ .k }}{{ $.s }}{{ end }}",
    "{{ range $i, $m := .rows }}{{ if $i }}, {{ end }}{{ $m.name }}{{ range $m.tags }}#{{ . }}{{ end }}{{ end }}",
    "{{ if eq (len .list) 3 }}three{{ end }}",
    "{{ if not (and .s .f) }}a{{ else }}b{{ end }}",
    "{{\n .s\n}}",
    "{{ (printf \"%s\" .s) | len }}",
];

fn data() -> Json {
    json!({
        "s": "text", "empty": "", "zero": 0, "f": 1.5, "big": 1e21, "tiny": 0.00001, "b": true, "null": null,
        "n": {"k": "v"}, "list": ["a", "b", "c"], "nothing": [], "map": {"y": 2, "x": 1, "z": [1, "2", null]},
        "u": "éa日", "html": "<a href=\"x\">'&'</a>", "ctl": "a\u{1}\u{7f}\u{200b}\u{a0}é",
        "rows": [{"name": "one", "tags": ["p", "q"]}, {"name": "two", "tags": []}],
    })
}

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/go_template.json");

fn go_is_here() -> bool {
    Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn ask_go(cases: &[Json]) -> Vec<Json> {
    let judge = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/go_template.go");
    let mut go = Command::new("go").arg("run").arg(judge).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    go.stdin.take().unwrap().write_all(Json::from(cases.to_vec()).to_string().as_bytes()).unwrap();
    let out = go.wait_with_output().unwrap();
    assert!(out.status.success());
    serde_json::from_slice(&out.stdout).unwrap()
}

fn ours(template: &str) -> Json {
    let data = Value::from(&data());
    let result = Template::parse(template).and_then(|t| t.execute(&data, PROOF_DATE));
    match result {
        Ok(output) => json!({"output": output}),
        Err(_) => json!({"error": ""}),
    }
}

/// Equal outputs, or an error on both sides.
fn agree(ours: &Json, go: &Json) -> bool {
    match go.get("output") {
        Some(output) => ours.get("output") == Some(output),
        None => ours.get("error").is_some(),
    }
}

#[test]
fn the_language_equals_recorded_go() {
    let recorded: Vec<Json> = serde_json::from_str(&std::fs::read_to_string(RECORD).unwrap()).unwrap();
    assert_eq!(recorded.len(), CASES.len(), "record again: cargo test --test ollama_go -- --ignored record");
    let mut different = Vec::new();
    for (template, go) in CASES.iter().zip(&recorded) {
        let ours = ours(template);
        if !agree(&ours, go) {
            different.push(format!("{template:?}\nours {ours}\ngo   {go}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
}

#[test]
#[ignore = "writes the recorded outputs; needs Go"]
fn record() {
    let cases: Vec<Json> = CASES.iter().map(|t| json!({"template": t, "data": data()})).collect();
    let answers = ask_go(&cases);
    // Words of an error are Go's own; that there is one is all that is compared.
    let kept: Vec<Json> =
        answers.into_iter().map(|a| if a.get("error").is_some() { json!({"error": ""}) } else { a }).collect();
    std::fs::create_dir_all(Path::new(RECORD).parent().unwrap()).unwrap();
    std::fs::write(RECORD, serde_json::to_string_pretty(&kept).unwrap() + "\n").unwrap();
}

/// Our own template, of a common style, and those in the folders of `TEMPLATES` (colon-separated).
fn jinja_templates() -> Vec<String> {
    let mut out = vec![include_str!("../fixtures/shakespeare-llama/chat_template.jinja").to_owned()];
    out.extend(include_str!("data/chat_templates.txt").split("\n=====\n").map(str::to_owned));
    for folder in std::env::var("TEMPLATES").unwrap_or_default().split(':').filter(|f| !f.is_empty()) {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        out.extend(
            files
                .iter()
                .filter(|f| f.extension().is_some_and(|e| e == "jinja"))
                .map(|f| std::fs::read_to_string(f).unwrap()),
        );
    }
    out
}

#[test]
fn written_templates_print_the_same_in_go() {
    if !go_is_here() {
        eprintln!("skipped: Go is not installed (Debian: golang-go)");
        return;
    }
    let (mut cases, mut expected) = (Vec::new(), Vec::new());
    for source in jinja_templates() {
        let Ok(jinja) = ChatTemplate::new(&source, Some("<s>"), Some("</s>")) else { continue };
        let Ok(translation) = translate(&jinja, true) else { continue };
        let Some(proven) = translation.proven else { continue };
        let abilities: Abilities = translation.abilities;
        let scope: Scope = proven.scope;
        let ollama = OllamaTemplate::parse(&proven.template).unwrap();
        let all = held_out(scope, abilities.dialect.think_switch.is_some());
        let step = all.len().div_ceil(24);
        for conversation in all.iter().step_by(step) {
            let Ok(text) = jinja.render(conversation, &abilities.dialect) else { continue };
            assert_eq!(ollama.render(conversation, PROOF_DATE).as_deref(), Ok(abilities.expected(&jinja, &text)));
            let messages: Vec<Json> = conversation
                .messages
                .iter()
                .map(|m| {
                    let calls: Vec<Json> = m
                        .tool_calls
                        .iter()
                        .map(|c| json!({"ID": c.id, "Function": {"Name": c.name, "Arguments": c.arguments}}))
                        .collect();
                    json!({"Role": m.role.as_str(), "Content": m.content, "Thinking": m.thinking.clone().unwrap_or_default(),
                        "ToolCalls": calls, "ToolName": m.tool_name.clone().unwrap_or_default(),
                        "ToolCallID": m.tool_call_id.clone().unwrap_or_default()})
                })
                .collect();
            cases.push(json!({"template": proven.template, "chat": {"Messages": messages, "Tools": conversation.tools,
                "Think": conversation.think == Some(true), "IsThinkSet": conversation.think.is_some()}}));
            expected.push(abilities.expected(&jinja, &text).to_owned());
        }
    }
    let answers = ask_go(&cases);
    for ((case, answer), expected) in cases.iter().zip(&answers).zip(&expected) {
        assert_eq!(
            answer["output"].as_str(),
            Some(expected.as_str()),
            "{answer}\n{}",
            case["template"].as_str().unwrap()
        );
    }
    eprintln!("{} prompts printed by Go, all equal to the Jinja", cases.len());
}
