//! Whether a Modelfile, or an entry of Ollama's store, fits the model it names.

use super::builtin::{Builtin, version};
use super::facts_of_modelfile;
use super::go::Template;
use super::grammar::{Creation, GrammarError, decode, parse};
use super::infer::{Abilities, Scope};
use super::jinja::ChatTemplate;
use super::modelfile::{ChatInput, ModelfileInput, words};
use super::name::ModelName;
use super::proof::{PROOF_DATE, describe, prove};
use super::recognise::{Signposts, call_tag_of, thinking_tags_of};
use super::render::OllamaTemplate;
use super::stops::{self, SpecialTokens};
use super::store::{Layer, MANIFEST_TYPE, Store, StoreError, digest_file, file_type, kind_of};
use crate::gguf::{GgufError, GgufFile};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// The model will not work as it was trained to.
    Problem,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found, and what to do about it.
    pub text: String,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The findings in the order in which they were made.
    pub findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, severity: Severity, text: impl Into<String>) {
        self.findings.push(Finding { severity, text: text.into() });
    }

    /// Whether anything is wrong.
    pub fn has_problems(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Problem)
    }
}

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file could not be read.
    #[error("{path}: {source}; name a folder with a Modelfile, a Modelfile, or a model of Ollama's store")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The Modelfile is none.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks a Modelfile, or the one in a folder.
///
/// # Errors
/// [`CheckError`] if there is none or Ollama could not parse it.
pub fn check_folder(path: &Path) -> Result<Report, CheckError> {
    const LONGEST: u64 = 64 << 20;
    let file = if path.is_dir() { path.join("Modelfile") } else { path.to_owned() };
    let io = |source| CheckError::Io { path: file.clone(), source };
    let size = std::fs::metadata(&file).map_err(io)?.len();
    if size > LONGEST {
        return Err(io(std::io::Error::other(format!("{size} bytes are no Modelfile"))));
    }
    let text = decode(&std::fs::read(&file).map_err(io)?);
    let folder = file.parent().unwrap_or(Path::new("."));
    let creation = Creation::new(&parse(&text)?, folder)?;
    let mut report = Report::default();
    report.add(Severity::Fine, "the Modelfile parses as Ollama parses it");
    if let Some(name) = &creation.from {
        report.add(
            Severity::Note,
            format!("FROM {name} is a model of Ollama's library, not a file: it cannot be checked here"),
        );
    }
    check_files(&creation, &mut report);
    Ok(report)
}

/// Checks an entry of a store: its blobs, then what they say about each other.
///
/// # Errors
/// [`CheckError::Store`] if the name is not in the store.
pub fn check_store(store: &Store, name: &ModelName) -> Result<Report, CheckError> {
    let manifest = store.manifest(name)?;
    let mut report = Report::default();
    if manifest.schema_version != 2 || manifest.media_type != MANIFEST_TYPE {
        report.add(
            Severity::Problem,
            format!(
                "the manifest is of version {} and type {}; Ollama reads version 2",
                manifest.schema_version, manifest.media_type
            ),
        );
    }
    let mut whole = true;
    for layer in manifest.layers.iter().chain([&manifest.config]) {
        whole &= check_blob(store, layer, &mut report);
    }
    if !whole {
        return Ok(report);
    }
    report.add(Severity::Fine, format!("{} blobs are there with their sizes and digests", manifest.layers.len() + 1));
    let read = |layer: &Layer| {
        let path = store.blob(&layer.digest);
        std::fs::read_to_string(&path).map_err(|source| CheckError::Io { path, source })
    };
    let mut creation = Creation::default();
    for layer in &manifest.layers {
        match layer.kind() {
            "model" | "projector" => creation.files.push(store.blob(&layer.digest)),
            "adapter" => creation.adapters.push(store.blob(&layer.digest)),
            "template" => creation.template = Some(read(layer)?),
            "system" => creation.system = Some(read(layer)?),
            "license" => creation.licenses.push(read(layer)?),
            "params" => match serde_json::from_str(&read(layer)?) {
                Ok(Json::Object(map)) => creation.parameters = map,
                _ => report.add(Severity::Problem, "the parameters are no JSON object; create the model again"),
            },
            "messages" => {}
            other => report.add(Severity::Note, format!("a layer of kind {other} is not checked")),
        }
    }
    let config: Json = serde_json::from_str(&read(&manifest.config)?).unwrap_or(Json::Null);
    if let Some(Ok(gguf)) = creation.files.first().map(GgufFile::open) {
        let stated = config.get("file_type").and_then(Json::as_str).unwrap_or_default();
        let actual = file_type(&gguf);
        if stated != actual {
            report.add(
                Severity::Problem,
                format!("the description says {stated:?}, the GGUF is {actual:?}; create the model again"),
            );
        }
    }
    let text = |key: &str| config.get(key).and_then(Json::as_str).map(str::to_owned);
    creation.renderer = text("renderer");
    creation.parser = text("parser");
    creation.requires = text("requires");
    check_files(&creation, &mut report);
    Ok(report)
}

fn check_blob(store: &Store, layer: &Layer, report: &mut Report) -> bool {
    let path = store.blob(&layer.digest);
    let kind = layer.kind();
    let hex = layer.digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        report.add(Severity::Problem, format!("{kind}: {:?} is no digest; create the model again", layer.digest));
        return false;
    }
    match digest_file(&path, &mut |_| {}) {
        Err(_) => {
            report
                .add(Severity::Problem, format!("{kind}: blob {} is missing; create the model again", path.display()));
            false
        }
        Ok((_, size)) if size != layer.size => {
            report.add(
                Severity::Problem,
                format!(
                    "{kind}: blob {} has {size} bytes, the manifest says {}; create the model again",
                    path.display(),
                    layer.size
                ),
            );
            false
        }
        Ok((digest, _)) if digest != layer.digest => {
            report.add(
                Severity::Problem,
                format!(
                    "{kind}: blob {} has digest {digest}, which is not its name; delete it and create the model again",
                    path.display()
                ),
            );
            false
        }
        Ok(_) => true,
    }
}

/// Checks what a Modelfile says against the GGUF files it names.
fn check_files(creation: &Creation, report: &mut Report) {
    let mut model = None;
    for path in creation.files.iter().chain(&creation.adapters) {
        match GgufFile::open(path) {
            Ok(gguf) if kind_of(&gguf) == "model" && model.is_none() => model = Some((gguf, path)),
            Ok(_) => {}
            // The first part, which is opened with all others, is named too.
            Err(GgufError::NotFirstPart { expected, .. }) if creation.files.contains(&expected) => {}
            Err(error) => report.add(Severity::Problem, error.to_string()),
        }
    }
    let Some((gguf, path)) = model else {
        return;
    };
    let input = ModelfileInput::of_gguf(&gguf, path);
    check_builtin(creation, report);
    check_context(creation, &input, report);
    check_template(creation, &input.chat, report);
    check_stops(creation, &input.chat, report);
}

/// A built-in renderer or parser must exist, and from the version on that the model requires.
fn check_builtin(creation: &Creation, report: &mut Report) {
    let required = creation.requires.as_deref().map(version);
    for (kind, name) in [(Builtin::Renderer, &creation.renderer), (Builtin::Parser, &creation.parser)] {
        let Some(name) = name else { continue };
        let command = kind.command();
        match kind.since(name) {
            None => report.add(
                Severity::Problem,
                format!("{command} {name}: Ollama up to 0.33 has none of that name; correct it or remove the line"),
            ),
            Some(since) if required.is_none_or(|r| r < since) => {
                let [major, minor, patch] = since;
                report.add(
                    Severity::Note,
                    format!(
                        "{command} {name} is known from Ollama {major}.{minor}.{patch} on; add REQUIRES {major}.{minor}.{patch}"
                    ),
                );
            }
            Some(_) => {}
        }
    }
}

fn check_context(creation: &Creation, input: &ModelfileInput, report: &mut Report) {
    let wanted = creation.parameters.get("num_ctx").and_then(Json::as_u64);
    match (wanted, input.context_length) {
        (Some(wanted), Some(length)) if wanted > length => report.add(
            Severity::Problem,
            format!("num_ctx {wanted} is more than the {length} tokens that the model was made for; lower it"),
        ),
        (None, Some(length)) if length < 4096 => report.add(
            Severity::Problem,
            format!("num_ctx is not set, and Ollama's default is more than the {length} tokens that the model was made for; add PARAMETER num_ctx {length}"),
        ),
        (_, Some(length)) => report.add(Severity::Fine, format!("the context fits into the model's {length} tokens")),
        _ => {}
    }
}

fn check_template(creation: &Creation, chat: &ChatInput, report: &mut Report) {
    let jinja = chat
        .template
        .as_ref()
        .map(|source| ChatTemplate::new(source, chat.bos_token.as_deref(), chat.eos_token.as_deref()));
    if let Some(Err(error)) = &jinja {
        report.add(Severity::Problem, error.to_string());
    }
    if let Some(renderer) = &creation.renderer {
        report.add(
            Severity::Note,
            format!("the built-in renderer {renderer} is used, not the TEMPLATE: its prompts are not checked"),
        );
    }
    let Some(text) = &creation.template else {
        match jinja {
            Some(_) => report.add(
                Severity::Note,
                "there is no TEMPLATE: Ollama 0.32 and later use the GGUF's chat template, older ones do not run this model as a chat",
            ),
            None => report.add(Severity::Note, "neither a TEMPLATE nor a chat template: the model completes text"),
        }
        return;
    };
    if let Err(error) = OllamaTemplate::parse(text) {
        report.add(Severity::Problem, error.to_string());
        return;
    }
    if let Some(bos) =
        chat.bos_token.as_ref().filter(|b| chat.add_bos == Some(true) && text.trim_start().starts_with(b.as_str()))
    {
        report.add(
            Severity::Problem,
            format!("the TEMPLATE begins with {bos}, which the tokenizer adds by itself: prompts would have it twice; remove it"),
        );
    }
    let Some(Ok(jinja)) = jinja else {
        report.add(Severity::Note, "the GGUF has no chat template to compare the TEMPLATE with");
        return;
    };
    jinja.set_date(PROOF_DATE);
    let abilities = match Abilities::discover(&jinja, chat.add_bos.unwrap_or(true)) {
        Ok(abilities) => abilities,
        Err(error) => {
            report.add(Severity::Note, error.to_string());
            return;
        }
    };
    compare(text, &jinja, &abilities, report);
    if creation.parser.is_none() && creation.renderer.is_none() {
        check_answers(text, &Signposts::find(&jinja, &abilities, abilities.scope.tools), report);
    }
}

/// Says whether Ollama looks for calls and thinking where the model writes them.
fn check_answers(text: &str, wanted: &Signposts, report: &mut Report) {
    let Ok(template) = Template::parse(text) else { return };
    if let Some(tag) = &wanted.call {
        let told = call_tag_of(&template);
        if told == *tag {
            report.add(Severity::Fine, format!("Ollama looks for calls of tools at {tag}, as the model writes them"));
        } else {
            report.add(
                Severity::Problem,
                format!("the model's calls of tools begin with {tag}, and by this TEMPLATE Ollama looks for {told}: they come back as text; put {{{{ if .ToolCalls }}}}{tag}{{{{ end }}}} in front"),
            );
        }
    }
    if let Some(parser) = wanted.parser {
        report.add(
            Severity::Problem,
            format!("the model's calls of tools are not JSON and come back as text; add PARSER {parser}"),
        );
    }
    if let Some((open, close)) = &wanted.thinking {
        if thinking_tags_of(&template).as_ref() == wanted.thinking.as_ref() {
            report.add(Severity::Fine, format!("Ollama takes what stands between {open} and {close} for thinking"));
        } else {
            report.add(
                Severity::Problem,
                format!("the model thinks between {open} and {close}, which this TEMPLATE does not tell Ollama: thinking comes back in the answer; see `to-gguf template`"),
            );
        }
    }
}

/// Says for which conversations a TEMPLATE equals the chat template.
fn compare(text: &str, jinja: &ChatTemplate, abilities: &Abilities, report: &mut Report) {
    let widest = abilities.scope;
    let plain = Scope::default();
    let with_system = Scope { system: widest.system, ..plain };
    let steps = [
        plain,
        with_system,
        Scope { thinking: widest.thinking, ..with_system },
        Scope { tools: widest.tools, ..with_system },
        widest,
    ];
    let mut done: Vec<Scope> = Vec::new();
    for scope in steps {
        if done.contains(&scope) {
            continue;
        }
        done.push(scope);
        let what = words(scope).join(", ");
        match prove(jinja, abilities, text, scope) {
            Ok(proof) => match proof.mismatch {
                None => report.add(
                    Severity::Fine,
                    format!("the TEMPLATE equals the chat template on {} conversations with {what}", proof.judged),
                ),
                Some(mismatch) => {
                    // Without the first two, no chat is as trained; the rest Ollama can take from the GGUF.
                    let basic = scope == plain || scope == with_system;
                    let severity = if basic { Severity::Problem } else { Severity::Note };
                    report.add(
                        severity,
                        format!(
                            "the TEMPLATE differs from the chat template with {what}: {}; see `to-gguf template`",
                            describe(&mismatch)
                        ),
                    );
                }
            },
            Err(error) => report.add(Severity::Problem, error.to_string()),
        }
    }
}

fn check_stops(creation: &Creation, chat: &ChatInput, report: &mut Report) {
    let written: Vec<&str> = creation
        .parameters
        .get("stop")
        .and_then(Json::as_array)
        .map(|list| list.iter().filter_map(Json::as_str).collect())
        .unwrap_or_default();
    let tokens = SpecialTokens { special: chat.special_tokens.clone(), added: chat.added_tokens.clone() };
    let needed = facts_of_modelfile(chat, |template, dialect| stops::from_template(template, dialect, &tokens));
    let missing: Vec<String> =
        needed.unwrap_or_default().into_iter().filter(|stop| !written.contains(&stop.as_str())).collect();
    // The tokenizer's own end token ends generation without a parameter.
    let (by_itself, needed): (Vec<String>, Vec<String>) =
        missing.into_iter().partition(|s| chat.eos_tokens.contains(s));
    for stop in &needed {
        report.add(
            Severity::Problem,
            format!(
                "{stop:?} ends an answer but is no stop: the model would not stop talking; add PARAMETER stop {stop:?}"
            ),
        );
    }
    for stop in &by_itself {
        report.add(
            Severity::Note,
            format!("{stop:?} is no PARAMETER stop; the GGUF names it as end token, so it still ends an answer"),
        );
    }
    if needed.is_empty() && by_itself.is_empty() && !written.is_empty() {
        report.add(Severity::Fine, format!("every end of an answer is a stop: {}", written.join(" ")));
    }
}
