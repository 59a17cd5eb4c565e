//! What the user's MODEL means: a model folder, an adapter folder and its base, a GGUF file, or a Hub id.

use std::env;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::SourceError;
use super::folder::read_json;

/// What a MODEL argument turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// A folder with `config.json`.
    Folder(PathBuf),
    /// A folder with `adapter_config.json`, and its base model's folder.
    Adapter {
        /// The adapter's folder.
        adapter: PathBuf,
        /// The base's folder.
        base: PathBuf,
    },
    /// A GGUF file.
    Gguf(PathBuf),
}

/// Where models are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// The working folder.
    pub working: PathBuf,
    /// Hugging Face's cache of downloaded repositories (`hub`).
    pub cache: Option<PathBuf>,
}

impl Places {
    /// The working folder of the process, and the cache that `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` or the
    /// home folder give, in this order.
    pub fn from_environment() -> Self {
        let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| var("HF_HOME").map(|p| p.join("hub")))
            .or_else(|| var("XDG_CACHE_HOME").map(|p| p.join("huggingface/hub")))
            .or_else(|| env::home_dir().map(|p| p.join(".cache/huggingface/hub")));
        Places { working: env::current_dir().unwrap_or_else(|_| PathBuf::from(".")), cache }
    }
}

/// Finds what `model` names. `base` overrides where an adapter's base is.
pub fn resolve_model(model: &str, base: Option<&str>, places: &Places) -> Result<Model, SourceError> {
    let path = Path::new(model);
    if path.join("config.json").is_file() {
        return Ok(Model::Folder(path.to_path_buf()));
    }
    if path.join("adapter_config.json").is_file() {
        let base = match base {
            Some(base) => resolve_base(base, path, places, "--base")?,
            None => base_of_adapter(path, places)?,
        };
        return Ok(Model::Adapter { adapter: path.to_path_buf(), base });
    }
    if path.is_file() {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(Model::Gguf(path.to_path_buf()));
        }
        return Err(no_model(model, "is a file, but not a .gguf file", vec![], "give the folder that it lies in"));
    }
    if path.is_dir() {
        return Err(no_model(
            model,
            "has neither config.json nor adapter_config.json",
            vec![],
            "give a model folder, an adapter folder or a .gguf file",
        ));
    }
    let mut tried = vec![path.to_path_buf()];
    match cached(model, places, &mut tried) {
        Some(folder) if folder.join("adapter_config.json").is_file() && !folder.join("config.json").is_file() => {
            let base = match base {
                Some(base) => resolve_base(base, &folder, places, "--base")?,
                None => base_of_adapter(&folder, places)?,
            };
            Ok(Model::Adapter { adapter: folder, base })
        }
        Some(folder) => Ok(Model::Folder(folder)),
        None if is_hub_id(model) => Err(no_model(
            model,
            "is no folder here, and this version does not download from the Hub",
            tried,
            &format!("run `hf download {model}` first, or give a folder"),
        )),
        None => Err(no_model(model, "does not exist", tried, "give a model folder, an adapter folder or a .gguf file")),
    }
}

/// The base model's folder of an adapter, from `base_model_name_or_path` in its `adapter_config.json`.
pub fn base_of_adapter(adapter: &Path, places: &Places) -> Result<PathBuf, SourceError> {
    let config_path = adapter.join("adapter_config.json");
    let config = read_json(&config_path)?;
    match config.get("base_model_name_or_path").and_then(Value::as_str).filter(|s| !s.is_empty()) {
        Some(name) => resolve_base(name, adapter, places, "base_model_name_or_path"),
        None => Err(SourceError::NoModel {
            name: config_path.display().to_string(),
            cause: "does not say which base model the adapter belongs to (base_model_name_or_path)".to_string(),
            tried: vec![],
            remedy: "name it with --base FOLDER".to_string(),
        }),
    }
}

/// The folder of a base model: `name` as a path, beside the adapter, relative to the working folder, in the cache.
/// `from` says where the name comes from.
pub fn resolve_base(name: &str, adapter: &Path, places: &Places, from: &str) -> Result<PathBuf, SourceError> {
    let given = Path::new(name);
    let mut candidates: Vec<PathBuf> = Vec::new();
    if given.is_absolute() {
        candidates.push(given.to_path_buf());
    }
    let absolute = std::path::absolute(adapter).unwrap_or_else(|_| adapter.to_path_buf());
    let last = given.file_name().map(PathBuf::from);
    if let Some(parent) = absolute.parent() {
        if given.is_relative() {
            candidates.push(parent.join(given));
        }
        candidates.extend(last.as_ref().map(|l| parent.join(l)));
    }
    if given.is_relative() {
        candidates.push(absolute.join(given));
        candidates.push(places.working.join(given));
    }
    candidates.extend(last.map(|l| places.working.join(l)));
    let mut seen = Vec::new();
    for candidate in candidates {
        let candidate = tidy(&candidate);
        if candidate.join("config.json").is_file() {
            return Ok(candidate);
        }
        let is_gguf = candidate.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if is_gguf && candidate.is_file() {
            return Ok(candidate);
        }
        if !seen.contains(&candidate) {
            seen.push(candidate);
        }
    }
    if let Some(folder) = cached(name, places, &mut seen) {
        return Ok(folder);
    }
    let download = if is_hub_id(name) { format!("run `hf download {name}`, or ") } else { String::new() };
    Err(SourceError::NoModel {
        name: adapter.display().to_string(),
        cause: format!("the base model {name} ({from}) was not found"),
        tried: seen,
        remedy: format!("{download}give its folder with --base"),
    })
}

/// The snapshot of a Hub repository in the local cache: the revision that `refs/main` names, else any that is whole.
fn cached(id: &str, places: &Places, tried: &mut Vec<PathBuf>) -> Option<PathBuf> {
    let (cache, true) = (places.cache.as_ref()?, is_hub_id(id)) else { return None };
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    tried.push(repository.clone());
    let usable = |folder: &Path| folder.join("config.json").is_file() || folder.join("adapter_config.json").is_file();
    let snapshots = repository.join("snapshots");
    if let Ok(revision) = std::fs::read_to_string(repository.join("refs").join("main")) {
        let folder = snapshots.join(revision.trim());
        if usable(&folder) {
            return Some(folder);
        }
    }
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&snapshots).ok()?.flatten().map(|e| e.path()).collect();
    folders.sort();
    folders.into_iter().find(|f| usable(f))
}

/// Whether a name has the form of a Hub repository: `name` or `organization/name`.
fn is_hub_id(name: &str) -> bool {
    let part = |s: &str| {
        !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(part)
}

/// Resolves `..` where the folder exists, so that messages show the place itself.
fn tidy(path: &Path) -> PathBuf {
    let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    if plain { path.components().collect() } else { std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()) }
}

fn no_model(name: &str, cause: &str, tried: Vec<PathBuf>, remedy: &str) -> SourceError {
    SourceError::NoModel { name: name.to_string(), cause: cause.to_string(), tried, remedy: remedy.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_base_is_found_beside_the_adapter_in_the_working_folder_and_in_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        fs::create_dir_all(at("runs/adapter")).unwrap();
        let places = Places { working: at("work"), cache: Some(at("cache")) };
        let config = |base: &str| {
            let text = format!(r#"{{"base_model_name_or_path": "{base}"}}"#);
            fs::write(at("runs/adapter/adapter_config.json"), text).unwrap();
        };
        let model = |p: &str| {
            fs::create_dir_all(at(p)).unwrap();
            fs::write(at(p).join("config.json"), "{}").unwrap();
        };
        let adapter = at("runs/adapter");
        let find = || base_of_adapter(&adapter, &places);

        config("org/base");
        let message = find().unwrap_err().to_string();
        for place in ["runs/org/base", "runs/base", "work/org/base", "models--org--base", "--base", "hf download"] {
            assert!(message.contains(place), "{message}");
        }
        let snapshot = "cache/models--org--base/snapshots/abc";
        model(snapshot);
        fs::create_dir_all(at("cache/models--org--base/refs")).unwrap();
        fs::write(at("cache/models--org--base/refs/main"), "abc").unwrap();
        assert_eq!(find().unwrap(), at(snapshot));
        model("work/org/base");
        assert_eq!(find().unwrap(), at("work/org/base"));
        model("runs/base");
        assert_eq!(find().unwrap(), at("runs/base"));
        config("");
        assert!(find().unwrap_err().to_string().contains("--base"));
    }

    #[test]
    fn a_hub_id_is_refused_with_the_way_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        let places = Places { working: root.path().to_path_buf(), cache: None };
        let error = resolve_model("no-such-org/no-such-model", None, &places).unwrap_err();
        assert!(error.to_string().contains("hf download no-such-org/no-such-model"), "{error}");
    }
}
