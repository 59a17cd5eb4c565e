//! The `general.*` keys: who made a model and how it is called (`gguf-py`'s `metadata.py`).
//!
//! Sources, the first that says something wins: an explicit name, the model card's YAML front matter (README.md),
//! `_name_or_path` of config.json, the folder's name. Sampling settings come from generation_config.json.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::card;
use super::error::ArchError;
use super::model_id::{self, ParameterCounts, Parts};
use crate::gguf::{Metadata, Value};

/// What kind of file the keys are for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// A model of so many parameters.
    Model(&'a ParameterCounts),
    /// An adapter over this many parameters of its model.
    Lora(u64),
}

impl Subject<'_> {
    /// Parameters as the rules for names take them.
    fn parameters(self) -> i64 {
        match self {
            Subject::Model(counts) => i64::try_from(counts.total).unwrap_or(i64::MAX),
            Subject::Lora(total) => i64::try_from(total).map_or(i64::MIN, |n| -n),
        }
    }
}

/// Where the `general.*` keys of a model come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// The folder with README.md and generation_config.json; its name is the last resort.
    pub(super) folder: &'a Path,
    /// The contents of config.json.
    pub(super) config: &'a Json,
    /// A name that beats all others.
    pub(super) name: Option<&'a str>,
}

/// A model's name parts as they accumulate.
#[derive(Default)]
struct Naming {
    name: Option<String>,
    organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
    size_label: Option<String>,
}

impl Naming {
    /// Fills what is still open.
    fn add(&mut self, parts: Parts) {
        fn fill(slot: &mut Option<String>, value: Option<String>) {
            if slot.is_none() {
                *slot = value;
            }
        }
        fill(&mut self.name, parts.full_name.map(|n| model_id::title(&n)));
        fill(&mut self.organization, parts.organization.map(|n| model_id::title(&n)));
        fill(&mut self.basename, parts.basename);
        fill(&mut self.finetune, parts.finetune);
        fill(&mut self.version, parts.version);
        fill(&mut self.size_label, parts.size_label);
    }
}

/// Writes `general.type` and everything that follows it, up to the keys of the architecture.
pub(super) fn write(out: &mut Metadata, origin: &Origin<'_>, subject: Subject<'_>) -> Result<(), ArchError> {
    let parameters = subject.parameters();
    let card = card::read(&origin.folder.join("README.md"))?;
    let text = |keys: &[&str]| keys.iter().find_map(|k| card.get(*k).and_then(scalar));
    let mut naming = Naming {
        name: text(&["name", "model_name"]),
        organization: text(&["organization", "model_organization"]),
        basename: text(&["basename", "model_basename", "model_type"]),
        finetune: text(&["finetune", "model_finetune"]),
        version: text(&["version", "model_version"]),
        size_label: text(&["size_label", "model_size_label"]),
    };
    if let Some(id) = origin.config.get("_name_or_path").and_then(Json::as_str)
        && id.matches('/').count() <= 1
    {
        naming.add(model_id::parts(id, parameters));
    }
    naming.add(model_id::parts(&folder_name(origin.folder), parameters));
    if let Some(name) = origin.name {
        naming.name = Some(name.into());
    }
    match subject {
        Subject::Model(counts) => {
            if naming.size_label.is_none() && counts.total > 0 {
                naming.size_label = Some(model_id::size_label(counts));
            }
            out.set("general.type", Value::string("model"));
        }
        Subject::Lora(_) => {
            out.set("general.type", Value::string("adapter"));
            out.set("adapter.type", Value::string("lora"));
        }
    }
    sampling(out, origin.folder);
    let licence = match card.get("license") {
        Some(Json::Array(items)) => Some(items.iter().filter_map(scalar).collect::<Vec<_>>().join(",")),
        other => other.and_then(scalar),
    };
    for (key, value) in [
        ("name", naming.name),
        ("author", text(&["author", "model_author", "model_creator"])),
        ("version", naming.version),
        ("organization", naming.organization),
        ("finetune", naming.finetune),
        ("basename", naming.basename),
        ("description", text(&["description", "model_description"])),
        ("size_label", naming.size_label),
        ("license", licence),
        ("license.name", text(&["license_name"])),
        ("license.link", text(&["license_link"])),
        ("source.url", text(&["url", "model_url"])),
        ("source.doi", text(&["doi", "model_doi"])),
        ("source.uuid", text(&["uuid", "model_uuid"])),
        ("source.repo_url", text(&["repo_url", "model_repo_url"])),
    ] {
        set(out, key, value);
    }
    let of = |keys: &[&str]| keys.iter().find_map(|k| card.get(*k));
    parents(out, "base_model", of(&["base_model", "base_models", "base_model_sources"]), parameters);
    parents(out, "dataset", of(&["datasets", "dataset", "dataset_sources"]), parameters);
    for (key, sources) in [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])] {
        let items: Vec<String> = sources.iter().filter_map(|k| card.get(*k)).flat_map(list).collect();
        if !items.is_empty() {
            out.set(format!("general.{key}"), Value::strings(items));
        }
    }
    Ok(())
}

fn set(out: &mut Metadata, key: &str, value: Option<String>) {
    if let Some(value) = value.filter(|v| !v.is_empty()) {
        out.set(format!("general.{key}"), Value::string(value));
    }
}

/// A folder's own name, also for `.` and the like.
fn folder_name(folder: &Path) -> String {
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    name(folder).or_else(|| name(&folder.canonicalize().ok()?)).unwrap_or_default()
}

/// A text, or a number or truth value as text.
fn scalar(v: &Json) -> Option<String> {
    match v {
        Json::String(s) => Some(s.clone()),
        Json::Number(n) => Some(n.to_string()),
        Json::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

/// A text or a list of them.
fn list(v: &Json) -> Vec<String> {
    match v {
        Json::String(s) => vec![s.clone()],
        Json::Array(items) => items.iter().filter_map(scalar).collect(),
        _ => Vec::new(),
    }
}

/// Recommended sampling settings.
fn sampling(out: &mut Metadata, folder: &Path) {
    // A generation_config.json that cannot be read is no reason to fail: other programs ignore it too.
    let Some(settings) = std::fs::read(folder.join("generation_config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Map<String, Json>>(&bytes).ok())
    else {
        return;
    };
    let get = |names: &[&str]| names.iter().find_map(|k| settings.get(*k)).filter(|v| !v.is_null());
    if let Some(sequence) = get(&["sequence"]).and_then(Json::as_str) {
        set(out, "sampling.sequence", Some(sequence.into()));
    }
    const WHOLE: bool = true;
    const SETTINGS: &[(&str, &[&str], bool)] = &[
        ("top_k", &["top_k"], WHOLE),
        ("top_p", &["top_p"], !WHOLE),
        ("min_p", &["min_p"], !WHOLE),
        ("xtc_probability", &["xtc_probability"], !WHOLE),
        ("xtc_threshold", &["xtc_threshold"], !WHOLE),
        ("temp", &["temperature"], !WHOLE),
        ("penalty_last_n", &["penalty_last_n"], WHOLE),
        ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], !WHOLE),
        ("mirostat", &["mirostat"], WHOLE),
        ("mirostat_tau", &["mirostat_tau"], !WHOLE),
        ("mirostat_eta", &["mirostat_eta"], !WHOLE),
    ];
    for (key, names, whole) in SETTINGS {
        let value = get(names).and_then(|v| match whole {
            true => v.as_i64().and_then(|v| i32::try_from(v).ok()).map(Value::I32),
            false => v.as_f64().map(|v| Value::F32(v as f32)),
        });
        if let Some(value) = value {
            out.set(format!("general.sampling.{key}"), value);
        }
    }
}

/// The models or data sets that a model was made from.
fn parents(out: &mut Metadata, kind: &str, value: Option<&Json>, parameters: i64) {
    let Some(value) = value else { return };
    let entries: Vec<Vec<(&str, String)>> = match value {
        Json::String(_) => vec![parent(value, parameters)],
        Json::Array(items) => items.iter().map(|v| parent(v, parameters)).collect(),
        _ => Vec::new(),
    };
    out.set(format!("general.{kind}.count"), Value::U32(entries.len() as u32));
    for (i, entry) in entries.into_iter().enumerate() {
        for (key, value) in entry {
            set(out, &format!("{kind}.{i}.{key}"), Some(value));
        }
    }
}

/// One parent: an id of the Hub, an address, or a table of its own.
fn parent(value: &Json, parameters: i64) -> Vec<(&'static str, String)> {
    const KEYS: [&str; 9] =
        ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];
    let id = match value {
        Json::Object(table) => {
            return KEYS.iter().filter_map(|k| Some((*k, scalar(table.get(*k)?)?))).collect();
        }
        other => match other.as_str() {
            Some(id) => id,
            None => return Vec::new(),
        },
    };
    let (id, address) = match ["http://", "https://", "ssh://"].iter().any(|s| id.starts_with(s)) {
        false => (id, None),
        true => {
            let hub = ["https://huggingface.co/", "http://huggingface.co/"];
            let path = hub
                .iter()
                .find_map(|h| id.strip_prefix(h))
                .filter(|p| p.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains('/')));
            match path {
                Some(path) => (path, Some(id)),
                None => return vec![("repo_url", id.into())],
            }
        }
    };
    let parts = model_id::parts(id, parameters);
    let repo = match (address, &parts.organization, &parts.full_name) {
        (Some(address), _, _) => Some(address.to_owned()),
        (None, Some(o), Some(n)) => Some(format!("https://huggingface.co/{o}/{n}")),
        _ => None,
    };
    let entries = [
        ("name", parts.full_name.map(|n| model_id::title(&n))),
        ("version", parts.version),
        ("organization", parts.organization.map(|o| model_id::title(&o))),
        ("repo_url", repo),
    ];
    entries.into_iter().filter_map(|(k, v)| Some((k, v?))).collect()
}
