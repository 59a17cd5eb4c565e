//! Ollama's model store: blobs by digest, and a manifest per name.
//!
//! Layout (`manifest/` of Ollama): `blobs/sha256-<hex>` and `manifests/<host>/<namespace>/<model>/<tag>`. A blob
//! appears under its name only when it is whole, and the manifest, which makes the model visible, comes last.

use super::go::{Value, json_text};
use super::grammar::{Creation, home};
use super::name::ModelName;
use crate::gguf::{GgufError, GgufFile};
use crate::quant::FileType;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a model's description.
pub const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.ollama.image.";

/// A store that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("{path}: {source}; check the path, its permissions and the free space of Ollama's store (OLLAMA_MODELS)")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The name is taken.
    #[error("{name} is already in Ollama's store ({path}); choose another name or pass --force")]
    Exists {
        /// The name.
        name: String,
        /// Its manifest.
        path: PathBuf,
    },
    /// The model could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A model in several files, which Ollama joins itself.
    #[error("{path} is one of several parts; pass --ollama-create, so that the server joins them, or write one file")]
    Split {
        /// The file.
        path: PathBuf,
    },
    /// Nothing to store.
    #[error("the Modelfile names no file of its own with FROM; a model cannot be stored without one")]
    NoFile,
    /// A manifest that is none.
    #[error("{path}: not a manifest ({detail}); delete it and create the model again")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A name that is not in the store.
    #[error("{name} is not in Ollama's store ({path} does not exist); see `ollama list`")]
    Missing {
        /// The name.
        name: String,
        /// Where its manifest would be.
        path: PathBuf,
    },
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    |source| StoreError::Io { path: path.to_owned(), source }
}

/// One entry of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What it is.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// `sha256:<hex>`
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

impl Layer {
    /// The last word of Ollama's media types: `model`, `template`, …
    pub fn kind(&self) -> &str {
        self.media_type.strip_prefix(LAYER_TYPE).unwrap_or(&self.media_type)
    }
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 2
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// [`MANIFEST_TYPE`]
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The description.
    pub config: Layer,
    /// The parts.
    pub layers: Vec<Layer>,
}

/// How a file got into the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It was there.
    Existing,
    /// A second name of the same file.
    Linked,
    /// A copy that shares its blocks.
    Cloned,
    /// A copy.
    Copied,
}

/// What was stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The name.
    pub name: ModelName,
    /// The manifest's path.
    pub manifest: PathBuf,
    /// Each file of the model and how it got there.
    pub files: Vec<(PathBuf, Placed)>,
}

/// A model store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at a folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The user's store: `$OLLAMA_MODELS`, or `~/.ollama/models`.
    pub fn of_user() -> Self {
        let set = std::env::var_os("OLLAMA_MODELS").filter(|v| !v.is_empty());
        Self::at(set.map_or_else(|| home().join(".ollama").join("models"), PathBuf::from))
    }

    /// Where a blob lies.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs").join(digest.replace(':', "-"))
    }

    /// Where a name's manifest lies.
    pub fn manifest_path(&self, name: &ModelName) -> PathBuf {
        self.root.join("manifests").join(name.path())
    }

    /// Reads a name's manifest.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Manifest`], [`StoreError::Io`].
    pub fn manifest(&self, name: &ModelName) -> Result<Manifest, StoreError> {
        const LONGEST: u64 = 4 << 20;
        let path = self.manifest_path(name);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { name: name.to_string(), path });
            }
            other => other.map_err(io_error(&path))?,
        };
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).map_err(io_error(&path))?;
        serde_json::from_str(&text).map_err(|e| StoreError::Manifest { path, detail: e.to_string() })
    }

    /// Stores a model under a name. `progress` is told how many bytes were read.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is visible under the name then, and blobs made by this call are gone.
    pub fn write(
        &self,
        name: &ModelName,
        creation: &Creation,
        force: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Stored, StoreError> {
        let manifest = self.manifest_path(name);
        if manifest.exists() && !force {
            return Err(StoreError::Exists { name: name.to_string(), path: manifest });
        }
        let mut made = Vec::new();
        let result = self.write_all(name, creation, &manifest, &mut made, progress);
        if result.is_err() {
            for path in made {
                // Best effort: an unreferenced blob is harmless, Ollama prunes it when it starts.
                let _ = fs::remove_file(path);
            }
        }
        result
    }

    fn write_all(
        &self,
        name: &ModelName,
        creation: &Creation,
        manifest: &Path,
        made: &mut Vec<PathBuf>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Stored, StoreError> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs).map_err(io_error(&blobs))?;
        let mut layers = Vec::new();
        let mut files = Vec::new();
        let mut config = None;
        let adapters = creation.adapters.iter().map(|p| (p, "adapter"));
        for (path, given) in creation.files.iter().map(|p| (p, "model")).chain(adapters) {
            let gguf = GgufFile::open(path)?;
            if gguf.parts().len() > 1 {
                return Err(StoreError::Split { path: path.clone() });
            }
            let kind = if given == "adapter" { given } else { kind_of(&gguf) };
            if kind == "model" && config.is_none() {
                config = Some(description(&gguf, creation));
            }
            let (digest, size) = digest_file(path, progress)?;
            let placed = self.place(path, &digest, size, made)?;
            files.push((path.clone(), placed));
            layers.push(Layer { media_type: format!("{LAYER_TYPE}{kind}"), digest, size });
        }
        let config = config.ok_or(StoreError::NoFile)?;
        let mut add = |kind: &str, text: &str| -> Result<Layer, StoreError> {
            Ok(Layer { media_type: format!("{LAYER_TYPE}{kind}"), ..self.blob_of(text.as_bytes(), made)? })
        };
        for (kind, text) in [("template", &creation.template), ("system", &creation.system)] {
            if let Some(text) = text.as_ref().filter(|t| !t.is_empty()) {
                layers.push(add(kind, text)?);
            }
        }
        for license in &creation.licenses {
            layers.push(add("license", license)?);
        }
        if !creation.parameters.is_empty() {
            let parameters = Json::Object(creation.parameters.clone());
            layers.push(add("params", &encoded(&parameters))?);
        }
        if !creation.messages.is_empty() {
            let list: Vec<String> = creation
                .messages
                .iter()
                .map(|(role, content)| {
                    let text = |s: &str| json_text(&Value::from(s));
                    format!("{{\"role\":{},\"content\":{}}}", text(role), text(content))
                })
                .collect();
            layers.push(add("messages", &format!("[{}]\n", list.join(",")))?);
        }
        let config = Layer { media_type: CONFIG_TYPE.into(), ..self.blob_of(format!("{config}\n").as_bytes(), made)? };
        let text =
            serde_json::to_string(&Manifest { schema_version: 2, media_type: MANIFEST_TYPE.into(), config, layers })
                .map_err(|e| StoreError::Manifest { path: manifest.to_owned(), detail: e.to_string() })?;
        let folder = manifest.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        // Beside the manifests Ollama takes every file for one, so the temporary one lies with the blobs.
        write_whole(&blobs, manifest, format!("{text}\n").as_bytes())?;
        Ok(Stored { name: name.clone(), manifest: manifest.to_owned(), files })
    }

    /// Puts a small text into the store.
    fn blob_of(&self, bytes: &[u8], made: &mut Vec<PathBuf>) -> Result<Layer, StoreError> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(bytes)));
        let path = self.blob(&digest);
        let whole = fs::metadata(&path).is_ok_and(|m| m.len() == bytes.len() as u64);
        if !whole {
            write_whole(&self.root.join("blobs"), &path, bytes)?;
            made.push(path);
        }
        Ok(Layer { media_type: String::new(), digest, size: bytes.len() as u64 })
    }

    /// Puts a file into the store: by a second name, by sharing its blocks, or by copying it.
    fn place(&self, file: &Path, digest: &str, size: u64, made: &mut Vec<PathBuf>) -> Result<Placed, StoreError> {
        let blob = self.blob(digest);
        if fs::metadata(&blob).is_ok_and(|m| m.len() == size) {
            return Ok(Placed::Existing);
        }
        let source = fs::canonicalize(file).map_err(io_error(file))?;
        let temporary = temporary(&self.root.join("blobs"));
        // A link is made beside and renamed, so that a broken blob of that name is replaced.
        let result = if fs::hard_link(&source, &temporary).is_ok() {
            Ok(Placed::Linked)
        } else {
            clone_or_copy(&source, &temporary)
        };
        let placed = result.and_then(|placed| {
            fs::rename(&temporary, &blob)?;
            Ok(placed)
        });
        if placed.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        let placed = placed.map_err(io_error(&blob))?;
        made.push(blob);
        Ok(placed)
    }
}

fn temporary(folder: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    folder.join(format!(".to-gguf-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Copies a file, sharing its blocks where the file system can.
fn clone_or_copy(source: &Path, target: &Path) -> io::Result<Placed> {
    let mut from = File::open(source)?;
    let mut to = File::create_new(target)?;
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(Placed::Cloned);
    }
    io::copy(&mut from, &mut to)?;
    set_readable(&to)?;
    to.sync_all()?;
    Ok(Placed::Copied)
}

/// Blobs are readable by all: the server may run as another user.
fn set_readable(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Writes a file so that it is whole or not there.
fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = temporary(folder);
    let write = || -> io::Result<()> {
        let mut file = File::create_new(&temporary)?;
        file.write_all(bytes)?;
        set_readable(&file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        io_error(path)(source)
    })
}

/// A file's digest and size.
///
/// # Errors
/// [`StoreError::Io`].
pub fn digest_file(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(String, u64), StoreError> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).map_err(io_error(path))?;
        if n == 0 {
            return Ok((format!("sha256:{}", hex(&hash.finalize())), size));
        }
        hash.update(&buffer[..n]);
        size += n as u64;
        progress(n as u64);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// JSON as Go's encoder writes it: sorted keys, `<` escaped, a line break at the end.
fn encoded(value: &Json) -> String {
    format!("{}\n", json_text(&Value::from(value)))
}

/// The files with all parts of those that are split, each once.
pub fn with_parts(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for file in files {
        let first = match GgufFile::open(file) {
            Err(GgufError::NotFirstPart { expected, .. }) => expected,
            _ => file.clone(),
        };
        let parts = match GgufFile::open(&first) {
            Ok(gguf) if gguf.parts().len() > 1 => gguf.parts().iter().map(|part| part.path.clone()).collect(),
            // What cannot be opened is reported where it is used.
            _ => vec![file.clone()],
        };
        out.extend(parts.into_iter().filter(|part| !out.contains(part)).collect::<Vec<_>>());
    }
    out
}

/// Whether a GGUF is a model, an adapter or a projector (Ollama's `ggufLayers`).
pub fn kind_of(gguf: &GgufFile) -> &'static str {
    let metadata = gguf.metadata();
    let text = |key: &str| metadata.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    match text("general.type").as_str() {
        "adapter" => "adapter",
        "projector" | "mmproj" => "projector",
        _ if text("general.architecture") == "clip" => "projector",
        _ => "model",
    }
}

/// The description of a model, as `ollama create` writes it.
fn description(gguf: &GgufFile, creation: &Creation) -> Json {
    let family = architecture(gguf);
    let mut out = json!({
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": human_number(parameter_count(gguf)),
        "file_type": file_type(gguf),
    });
    if let Some(map) = out.as_object_mut() {
        for (key, value) in
            [("renderer", &creation.renderer), ("parser", &creation.parser), ("requires", &creation.requires)]
        {
            if let Some(value) = value {
                map.insert(key.into(), json!(value));
            }
        }
        map.insert("architecture".into(), json!("amd64"));
        map.insert("os".into(), json!("linux"));
    }
    out
}

fn architecture(gguf: &GgufFile) -> String {
    let value = gguf.metadata().get("general.architecture");
    value.and_then(|v| v.as_str()).unwrap_or("unknown").to_owned()
}

fn parameter_count(gguf: &GgufFile) -> u64 {
    gguf.tensors().iter().map(|t| t.shape.elements()).fold(0, u64::saturating_add)
}

/// The quantization's name, from `general.file_type`.
pub fn file_type(gguf: &GgufFile) -> String {
    let id = gguf.metadata().get("general.file_type").and_then(|v| v.as_u64());
    id.and_then(|id| FileType::from_id(u32::try_from(id).ok()?))
        .map_or_else(|| "unknown".into(), |t| t.name().to_owned())
}

/// Ollama's way to write a number of parameters (`format.HumanNumber`).
fn human_number(n: u64) -> String {
    let scaled = |unit: f64, decimals: usize, letter: char| {
        let number = n as f64 / unit;
        if number == number.floor() { format!("{number:.0}{letter}") } else { format!("{number:.decimals$}{letter}") }
    };
    match n {
        1_000_000_000.. => scaled(1e9, 1, 'B'),
        1_000_000.. => scaled(1e6, 2, 'M'),
        1_000.. => format!("{:.0}K", n as f64 / 1e3),
        _ => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (n, text) in [
            (999, "999"),
            (361_000, "361K"),
            (7_000_000, "7M"),
            (134_515_008, "134.52M"),
            (8_030_261_248, "8.0B"),
            (2_000_000_000, "2B"),
        ] {
            assert_eq!(human_number(n), text);
        }
    }
}
