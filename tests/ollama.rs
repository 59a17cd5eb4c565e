//! Ollama: translations of mutated templates, the store, the HTTP client, the check.

mod common;

use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use to_gguf::ollama::api::{ApiError, Client};
use to_gguf::ollama::check::{Severity, check_folder, check_store};
use to_gguf::ollama::grammar::{Creation, parse};
use to_gguf::ollama::jinja::ChatTemplate;
use to_gguf::ollama::name::ModelName;
use to_gguf::ollama::proof::{PROOF_DATE, translate};
use to_gguf::ollama::store::{Placed, Store, StoreError};

const STYLES: &str = include_str!("data/chat_templates.txt");

fn proven(source: &str) -> to_gguf::ollama::proof::Translation {
    let jinja = ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap();
    translate(&jinja, true).unwrap()
}

#[test]
fn every_common_style_is_proven_with_all_its_abilities() {
    for source in STYLES.split("\n=====\n") {
        let translation = proven(source);
        let scope = translation.proven.as_ref().map(|p| p.scope);
        assert_eq!(scope, Some(translation.abilities.scope), "{:?}\n{source}", translation.obstacles);
    }
}

/// Nothing is looked up: other markers, role names, blanks and trims are translated as well.
#[test]
fn mutated_templates_are_still_exact() {
    let changes: [(&str, &str); 8] = [
        ("<|im_start|>", "<<begin>> "),
        ("<|im_end|>", "{{ '{{' }}"),
        ("'\\n'", "'\\n\\n\\t'"),
        ("assistant", "assistant"),
        ("| trim", "| trim | upper | lower"),
        ("<|end|>", "\u{2028}<|fin|>"),
        ("[/ASK]", "[/ASK]\"\"\""),
        ("[ASK]", "{"),
    ];
    for source in STYLES.split("\n=====\n") {
        for (from, to) in changes {
            if !source.contains(from) || from == "| trim" {
                continue;
            }
            // A marker inside of a Jinja string cannot hold braces; the plain-text change stands for it.
            let to = if to.contains("{{") { "<|%end%|>" } else { to };
            let changed = source.replace(from, to);
            let translation = proven(&changed);
            assert!(translation.proven.is_some(), "{from} -> {to}: {:?}\n{changed}", translation.obstacles);
        }
    }
}

#[test]
fn a_template_that_go_cannot_follow_is_not_written() {
    for source in [
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if 'x' in m.content %}!{% endif %}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ strftime_now('%H:%M %A') }}",
    ] {
        let translation = proven(source);
        assert!(translation.proven.is_none(), "{}", translation.proven.unwrap().template);
        assert!(!translation.obstacles.is_empty());
    }
}

/// A tiny GGUF: keys and one F32 tensor of four elements.
fn gguf(template: &str) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let tokens = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "a"];
    out.extend(3_u32.to_le_bytes());
    out.extend(1_u64.to_le_bytes());
    out.extend(9_u64.to_le_bytes());
    for (key, value) in
        [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"), ("tokenizer.chat_template", template)]
    {
        text(&mut out, key);
        out.extend(8_u32.to_le_bytes());
        text(&mut out, value);
    }
    for (key, value) in [
        ("general.file_type", 0_u32),
        ("llama.context_length", 512),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 1),
    ] {
        text(&mut out, key);
        out.extend(4_u32.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    text(&mut out, "tokenizer.ggml.tokens");
    out.extend([9_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat());
    out.extend((tokens.len() as u64).to_le_bytes());
    for token in tokens {
        text(&mut out, token);
    }
    text(&mut out, "tokenizer.ggml.token_type");
    out.extend([9_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat());
    out.extend((tokens.len() as u64).to_le_bytes());
    for kind in [3_i32, 3, 3, 3, 1] {
        out.extend(kind.to_le_bytes());
    }
    text(&mut out, "output_norm.weight");
    out.extend(1_u32.to_le_bytes());
    out.extend(4_u64.to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend([0; 16]);
    out
}

/// A folder with a model and a Modelfile.
fn model(folder: &Path, extra: &str) -> Creation {
    model_with(folder, STYLES.split("\n=====\n").next().unwrap(), extra)
}

/// A folder with a model of a chat template and a Modelfile.
fn model_with(folder: &Path, chat_template: &str, extra: &str) -> Creation {
    std::fs::write(folder.join("m.gguf"), gguf(chat_template)).unwrap();
    let template = proven(chat_template).proven.unwrap().template;
    let text = format!(
        "FROM ./m.gguf\nTEMPLATE \"\"\"{template}\"\"\"\nPARAMETER stop \"<|im_end|>\"\nPARAMETER num_ctx 512\n{extra}"
    );
    std::fs::write(folder.join("Modelfile"), &text).unwrap();
    Creation::new(&parse(&text).unwrap(), folder).unwrap()
}

fn problems(report: &to_gguf::ollama::check::Report) -> Vec<&str> {
    let wrong = report.findings.iter().filter(|f| f.severity == Severity::Problem);
    wrong.map(|f| f.text.as_str()).collect()
}

#[test]
fn a_stored_model_has_the_documented_layout() {
    let folder = tempfile::tempdir().unwrap();
    let creation = model(
        folder.path(),
        "SYSTEM Be brief & <kind>\nPARAMETER temperature 0.6\nMESSAGE user Hi\nMESSAGE assistant \"Hello\"\nLICENSE MIT\n",
    );
    let store = Store::at(folder.path().join("store"));
    let name = ModelName::parse("me/tiny:f32").unwrap();
    let mut hashed = 0;
    let stored = store.write(&name, &creation, false, &mut |n| hashed += n).unwrap();
    assert_eq!(stored.files[0].1, Placed::Linked);
    assert_eq!(stored.manifest, folder.path().join("store/manifests/registry.ollama.ai/me/tiny/f32"));
    assert_eq!(hashed, std::fs::metadata(folder.path().join("m.gguf")).unwrap().len());
    let manifest = store.manifest(&name).unwrap();
    let kinds: Vec<&str> = manifest.layers.iter().map(|l| l.kind()).collect();
    assert_eq!(kinds, ["model", "template", "system", "license", "params", "messages"]);
    let blob = |n: usize| std::fs::read_to_string(store.blob(&manifest.layers[n].digest)).unwrap();
    assert_eq!(blob(1), creation.template.clone().unwrap());
    assert_eq!(blob(2), "Be brief & <kind>");
    assert_eq!(blob(4), "{\"num_ctx\":512,\"stop\":[\"\\u003c|im_end|\\u003e\"],\"temperature\":0.6}\n");
    assert_eq!(blob(5), "[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Hello\"}]\n");
    let config = std::fs::read_to_string(store.blob(&manifest.config.digest)).unwrap();
    assert_eq!(
        config,
        "{\"model_format\":\"gguf\",\"model_family\":\"llama\",\"model_families\":[\"llama\"],\"model_type\":\"4\",\"file_type\":\"F32\",\"architecture\":\"amd64\",\"os\":\"linux\"}\n"
    );
    // Nothing else lies around, and the whole is consistent.
    assert_eq!(std::fs::read_dir(folder.path().join("store/blobs")).unwrap().count(), 7);
    let report = check_store(&store, &name).unwrap();
    assert_eq!(problems(&report), Vec::<&str>::new());
    // The name is taken, unless forced.
    assert!(matches!(store.write(&name, &creation, false, &mut |_| {}), Err(StoreError::Exists { .. })));
    let again = store.write(&name, &creation, true, &mut |_| {}).unwrap();
    assert_eq!(again.files[0].1, Placed::Existing);
}

#[test]
fn a_damaged_store_entry_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let creation = model(folder.path(), "");
    let store = Store::at(folder.path().join("store"));
    let name = ModelName::parse("tiny").unwrap();
    store.write(&name, &creation, false, &mut |_| {}).unwrap();
    let manifest = store.manifest(&name).unwrap();
    let template = store.blob(&manifest.layers[1].digest);
    let text = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, text.replace("user", "resu")).unwrap();
    assert!(problems(&check_store(&store, &name).unwrap())[0].contains("has digest"));
    std::fs::write(&template, "short").unwrap();
    assert!(problems(&check_store(&store, &name).unwrap())[0].contains("has 5 bytes"));
    std::fs::remove_file(&template).unwrap();
    assert!(problems(&check_store(&store, &name).unwrap())[0].contains("is missing"));
    assert!(check_store(&store, &ModelName::parse("absent").unwrap()).is_err());
}

#[test]
fn a_store_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let creation = model(folder.path(), "");
    let store = Store::at(folder.path().join("store"));
    // A file stands where the manifest's folder should be.
    std::fs::create_dir_all(folder.path().join("store/manifests/registry.ollama.ai")).unwrap();
    std::fs::write(folder.path().join("store/manifests/registry.ollama.ai/library"), "").unwrap();
    let name = ModelName::parse("tiny").unwrap();
    assert!(store.write(&name, &creation, false, &mut |_| {}).is_err());
    assert_eq!(std::fs::read_dir(folder.path().join("store/blobs")).unwrap().count(), 0);
    assert!(folder.path().join("m.gguf").exists());
}

#[test]
fn a_modelfile_is_checked_against_its_model() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path(), "");
    assert_eq!(problems(&check_folder(folder.path()).unwrap()), Vec::<&str>::new());
    let file = folder.path().join("Modelfile");
    let good = std::fs::read_to_string(&file).unwrap();
    for (from, to, expected) in [
        ("PARAMETER stop \"<|im_end|>\"\n", "", "would not stop"),
        ("num_ctx 512", "num_ctx 4096", "more than the 512 tokens"),
        ("<|im_start|>user", "<|im_start|>human", "differs from the chat template"),
        ("./m.gguf", "./other.gguf", "other.gguf"),
        ("{{- end }}\"\"\"", "\"\"\"", "{{end}}"),
        ("num_ctx 512", "num_ctx 512\nRENDERER chatml", "none of that name"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        std::fs::write(&file, bad).unwrap();
        let report = check_folder(folder.path()).unwrap();
        assert!(problems(&report).iter().any(|p| p.contains(expected)), "{expected}: {:?}", problems(&report));
    }
}

#[test]
fn a_template_must_tell_where_calls_and_thinking_are() {
    let source = "{%- for tool in tools or [] %}<|im_start|>tool\n{{ tool | tojson }}<|im_end|>{%- endfor %}\
        {%- for m in messages %}<|im_start|>{{ m.role + '\\n' }}\
        {%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
        {%- for call in m.tool_calls or [] %}<call>{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\
        {%- endfor %}<|im_end|>{{ '\\n' }}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}";
    let folder = tempfile::tempdir().unwrap();
    model_with(folder.path(), source, "");
    let report = check_folder(folder.path()).unwrap();
    assert_eq!(problems(&report), Vec::<&str>::new());
    assert!(report.findings.iter().any(|f| f.text.contains("looks for calls of tools at <call>")), "{report:?}");
    let file = folder.path().join("Modelfile");
    let good = std::fs::read_to_string(&file).unwrap();
    for (from, to, expected) in [
        ("<call>", "", "begin with <call>"),
        ("<call>", "<tool>", "Ollama looks for <tool>"),
        (".Thinking", ".Content", "thinks between <think> and </think>"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}: {good}");
        std::fs::write(&file, bad).unwrap();
        let report = check_folder(folder.path()).unwrap();
        assert!(problems(&report).iter().any(|p| p.contains(expected)), "{expected}: {:?}", problems(&report));
    }
}

/// What the server in the tests does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    HeadFails,
    CreateRefused,
    BlobRefused,
    DigestMismatch,
    CreateError,
    StreamCut,
    NotJson,
    Hangup,
}

/// What a server was asked: the request line and the body.
type Asked = Vec<(String, Vec<u8>)>;

/// A server that knows three requests and checks them; returns its address and what it was asked.
fn server(fault: Fault, has_blob: bool) -> (String, Arc<Mutex<Asked>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { break };
            let asked = Arc::clone(&asked);
            std::thread::spawn(move || {
                let _ = answer(stream, fault, has_blob, &asked);
            });
        }
    });
    (address, log)
}

fn answer(mut stream: TcpStream, fault: Fault, has_blob: bool, log: &Mutex<Asked>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(n) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let line = request.trim().trim_end_matches(" HTTP/1.1").to_owned();
        log.lock().unwrap().push((line.clone(), body));
        let say = |stream: &mut TcpStream, status: &str, body: &str| {
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        if line.starts_with("HEAD /api/blobs/sha256:") && fault == Fault::HeadFails {
            say(&mut stream, "500 Internal Server Error", "")?;
        } else if line == "POST /api/create" && fault == Fault::CreateRefused {
            say(&mut stream, "400 Bad Request", "{\"error\":\"neither 'from' or 'files' was specified\"}")?;
        } else if line.starts_with("HEAD /api/blobs/sha256:") {
            say(&mut stream, if has_blob { "200 OK" } else { "404 Not Found" }, "")?;
        } else if line.starts_with("POST /api/blobs/sha256:") {
            match fault {
                Fault::BlobRefused => say(&mut stream, "507 Insufficient Storage", "{\"error\":\"disk full\"}")?,
                Fault::DigestMismatch => say(&mut stream, "400 Bad Request", "{\"error\":\"digest mismatch\"}")?,
                Fault::Hangup => return Ok(()),
                _ => say(&mut stream, "201 Created", "")?,
            }
        } else {
            let text = match fault {
                Fault::CreateError => "{\"status\":\"parsing GGUF\"}\n{\"error\":\"bad template\"}\n",
                Fault::StreamCut => "{\"status\":\"parsing GGUF\"}\n",
                Fault::NotJson => "<html>\n",
                _ => "{\"status\":\"parsing GGUF\"}\n\n{\"status\":\"writing manifest\"}\n{\"status\":\"success\"}\n",
            };
            say(&mut stream, "200 OK", text)?;
        }
    }
}

fn create(fault: Fault, has_blob: bool) -> (Result<(), ApiError>, Asked, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let creation = model(folder.path(), "SYSTEM Hi\n");
    let (address, log) = server(fault, has_blob);
    let result = Client::at(address).create(&ModelName::parse("tiny:x").unwrap(), &creation, &mut |_| {});
    let asked = log.lock().unwrap().clone();
    (result, asked, folder.path().join("m.gguf"), folder)
}

#[test]
fn the_client_sends_blobs_and_asks_for_the_model() {
    let (result, asked, gguf, _folder) = create(Fault::None, false);
    result.unwrap();
    assert_eq!(asked.len(), 3);
    let digest = asked[0].0.strip_prefix("HEAD /api/blobs/").unwrap();
    assert_eq!(asked[1].0, format!("POST /api/blobs/{digest}"));
    assert_eq!(asked[1].1, std::fs::read(gguf).unwrap());
    assert_eq!(asked[2].0, "POST /api/create");
    let request: Json = serde_json::from_slice(&asked[2].1).unwrap();
    assert_eq!(request["model"], "tiny:x");
    assert_eq!(request["files"], json!({"m.gguf": digest}));
    assert_eq!(request["system"], "Hi");
    assert_eq!(request["parameters"], json!({"stop": ["<|im_end|>"], "num_ctx": 512}));
    assert!(request["template"].as_str().unwrap().contains("<|im_start|>"));
    let (result, asked, _, _folder) = create(Fault::None, true);
    result.unwrap();
    assert_eq!(asked.len(), 2, "a blob that is there is not sent");
}

#[test]
fn the_clients_failures_say_what_happened() {
    for (fault, expected) in [
        (Fault::HeadFails, "status 500"),
        (Fault::CreateRefused, "neither 'from' or 'files'"),
        (Fault::BlobRefused, "507: disk full"),
        (Fault::DigestMismatch, "digest mismatch"),
        (Fault::CreateError, "bad template"),
        (Fault::StreamCut, "before `success`"),
        (Fault::NotJson, "no JSON"),
        (Fault::Hangup, "is Ollama running?"),
    ] {
        let error = create(fault, false).0.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let creation = model(folder.path(), "");
    let nobody = Client::at("http://127.0.0.1:9");
    let error = nobody.create(&ModelName::parse("x").unwrap(), &creation, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("ollama serve"), "{error}");
}

#[test]
fn the_fixtures_template_is_llama_3() {
    let source = include_str!("../fixtures/shakespeare-llama/chat_template.jinja");
    let jinja = ChatTemplate::new(source, Some("<|begin_of_text|>"), Some("<|eot_id|>")).unwrap();
    let translation = translate(&jinja, true).unwrap();
    let text = translation.proven.unwrap().template;
    let go = to_gguf::ollama::render::OllamaTemplate::parse(&text).unwrap();
    let mut chat = to_gguf::ollama::chat::Conversation::default();
    chat.messages.push(to_gguf::ollama::chat::Message::new(to_gguf::ollama::chat::Role::User, " Speak as ROMEO "));
    assert_eq!(
        go.render(&chat, PROOF_DATE).unwrap(),
        "<|start_header_id|>user<|end_header_id|>\n\nSpeak as ROMEO<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

/// Ollama joins the parts of a split model, if it is given all of them.
#[test]
fn all_parts_of_a_split_model_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let base = common::fixture("shakespeare-llama");
    let arguments = [base.to_str().unwrap(), "--quant", "q8_0", "--split-max-tensors", "15", "-o", "out"];
    assert_eq!(common::to_gguf(folder.path(), arguments).code, 0);
    let out = folder.path().join("out");
    let text = std::fs::read_to_string(out.join("Modelfile")).unwrap();
    let from = |text: &str| text.lines().filter(|l| l.starts_with("FROM ")).count();
    assert!(from(&text) > 1, "{text}");
    assert_eq!(problems(&check_folder(&out).unwrap()), Vec::<&str>::new());
    let creation = Creation::new(&parse(&text).unwrap(), &out).unwrap();
    let name = ModelName::parse("tiny").unwrap();
    let store = Store::at(folder.path().join("store"));
    assert!(matches!(store.write(&name, &creation, false, &mut |_| {}), Err(StoreError::Split { .. })));
    // Also a Modelfile that names the first part only.
    let first = Creation { files: creation.files[..1].to_vec(), ..Creation::default() };
    for creation in [creation, first] {
        let (address, log) = server(Fault::None, true);
        Client::at(address).create(&name, &creation, &mut |_| {}).unwrap();
        let asked = log.lock().unwrap().clone();
        let request: Json = serde_json::from_slice(&asked.last().unwrap().1).unwrap();
        assert_eq!(request["files"].as_object().unwrap().len(), from(&text));
    }
}

/// What the user adds stands in the Modelfile, and a projector is a second file of the model.
#[test]
fn a_modelfile_says_what_the_user_wants() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for file in std::fs::read_dir(common::fixture("shakespeare-llama")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    std::fs::write(base.join("LICENSE"), "Public domain.\nDo as you like.\n").unwrap();
    let projector = gguf(STYLES).windows(5).position(|w| w == b"llama").map(|at| {
        // Its architecture says that it is a projector.
        let mut bytes = gguf(STYLES);
        bytes.splice(at - 8..at + 5, [4_u64.to_le_bytes().as_slice(), b"clip"].concat());
        bytes.push(0); // the data begins where it did
        bytes
    });
    std::fs::write(folder.path().join("mmproj.gguf"), projector.unwrap()).unwrap();
    let arguments = [
        "base",
        "--quant",
        "q8_0",
        "-o",
        "out",
        "--system",
        "You are \"Romeo\".",
        "--message",
        "user=Hi",
        "--message",
        "assistant=Good morrow",
        "--mmproj",
        "mmproj.gguf",
    ];
    let run = common::to_gguf(folder.path(), arguments);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let text = std::fs::read_to_string(folder.path().join("out/Modelfile")).unwrap();
    let creation = Creation::new(&parse(&text).unwrap(), &folder.path().join("out")).unwrap();
    assert_eq!(creation.files.len(), 2, "{text}");
    assert_eq!(creation.system.as_deref(), Some("You are \"Romeo\"."));
    assert_eq!(creation.licenses, ["Public domain.\nDo as you like.\n"]);
    let said: Vec<(&str, &str)> = creation.messages.iter().map(|(r, t)| (r.as_str(), t.as_str())).collect();
    assert_eq!(said, [("user", "Hi"), ("assistant", "Good morrow")]);
    let store = Store::at(folder.path().join("store"));
    let name = ModelName::parse("romeo").unwrap();
    store.write(&name, &creation, false, &mut |_| {}).unwrap();
    let kinds: Vec<String> = store.manifest(&name).unwrap().layers.iter().map(|l| l.kind().to_owned()).collect();
    assert_eq!(kinds, ["model", "projector", "template", "system", "license", "params", "messages"]);
    // A model is no projector, and a stranger says nothing.
    for (option, value, words) in [
        ("--mmproj", folder.path().join("out/base-Q8_0.gguf").to_str().unwrap().to_owned(), "not a projector"),
        ("--message", "tool=x".to_owned(), "no role"),
    ] {
        let run = common::to_gguf(folder.path(), ["base", "--quant", "q8_0", "-o", "other", option, &value]);
        assert_ne!(run.code, 0);
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
}
