//! `ollama create` over a running server's HTTP API: blobs first, then the model.
//!
//! Protocol (Ollama's `docs/api.md`): `HEAD /api/blobs/sha256:…` asks for a blob, `POST` sends it, `POST
//! /api/create` names the parts and answers with a JSON object per line until `{"status":"success"}`.

use super::grammar::Creation;
use super::name::ModelName;
use super::store::{StoreError, digest_file, with_parts};
use serde_json::{Map, Value as Json, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A server that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No connection, or one that broke.
    #[error("{url}: {detail}; is Ollama running? start it with `ollama serve` or set OLLAMA_HOST")]
    Connection {
        /// The address.
        url: String,
        /// The cause.
        detail: String,
    },
    /// An answer that says no.
    #[error("{url}: status {status}: {detail}; see the server's log")]
    Refused {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        detail: String,
    },
    /// An error in the stream of a creation.
    #[error("Ollama could not create {name}: {detail}; see the server's log")]
    Create {
        /// The model.
        name: String,
        /// The server's words.
        detail: String,
    },
    /// The stream ended early.
    #[error("Ollama's answer for {name} ended before `success`; see the server's log and try again")]
    Unfinished {
        /// The model.
        name: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file changed while it was read.
    #[error("{path}: {source}; check that the file is whole and not being written")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// What is reported while a model is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of a file that were hashed.
    Hashed(u64),
    /// A file that is about to be sent: its size.
    Sending(PathBuf, u64),
    /// Bytes that were sent.
    Sent(u64),
    /// The server has a file already.
    Present(PathBuf),
    /// What the server says.
    Status(String),
}

/// A server.
pub struct Client {
    base: String,
    agent: ureq::Agent,
}

/// Longest line that a server may answer with.
const LONGEST_LINE: u64 = 1 << 20;

impl Client {
    /// The server at an address.
    pub fn at(base: impl Into<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .build();
        Self { base: base.into().trim_end_matches('/').to_owned(), agent: config.new_agent() }
    }

    /// The user's server: `$OLLAMA_HOST`, or port 11434 of this machine.
    pub fn of_user() -> Self {
        Self::at(address(&std::env::var("OLLAMA_HOST").unwrap_or_default()))
    }

    /// Creates a model.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn create(
        &self,
        name: &ModelName,
        creation: &Creation,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ApiError> {
        let mut files = Map::new();
        let mut adapters = Map::new();
        let parts = with_parts(&creation.files);
        let models = parts.iter().map(|p| (p, false));
        for (path, is_adapter) in models.chain(creation.adapters.iter().map(|p| (p, true))) {
            let (digest, size) = digest_file(path, &mut |n| progress(Progress::Hashed(n)))?;
            self.send_blob(path, &digest, size, progress)?;
            let map = if is_adapter { &mut adapters } else { &mut files };
            let name = path.file_name().map_or_else(|| "model.gguf".into(), |n| n.to_string_lossy().into_owned());
            let mut key = name.clone();
            // Two files of one name, from two folders.
            while map.contains_key(&key) {
                key = format!("{}-{name}", map.len());
            }
            map.insert(key, json!(digest));
        }
        let request = request(name, creation, files, adapters);
        self.request_creation(name, &request, progress)
    }

    fn send_blob(
        &self,
        path: &Path,
        digest: &str,
        size: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ApiError> {
        let url = format!("{}/api/blobs/{digest}", self.base);
        let broken = |e: ureq::Error| ApiError::Connection { url: url.clone(), detail: e.to_string() };
        let answer = self.agent.head(&url).call().map_err(broken)?;
        if answer.status().is_success() {
            progress(Progress::Present(path.to_owned()));
            return Ok(());
        }
        if answer.status().as_u16() != 404 {
            return Err(refused(&url, answer));
        }
        progress(Progress::Sending(path.to_owned(), size));
        let file = File::open(path).map_err(|source| ApiError::File { path: path.to_owned(), source })?;
        let mut body = Counting { file, left: size, progress };
        let answer = self
            .agent
            .post(&url)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Length", size.to_string())
            .send(ureq::SendBody::from_reader(&mut body))
            .map_err(broken)?;
        if answer.status().is_success() { Ok(()) } else { Err(refused(&url, answer)) }
    }

    fn request_creation(
        &self,
        name: &ModelName,
        request: &Json,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), ApiError> {
        let url = format!("{}/api/create", self.base);
        let broken = |detail: String| ApiError::Connection { url: url.clone(), detail };
        let answer = self
            .agent
            .post(&url)
            .header("Content-Type", "application/json")
            .send(request.to_string())
            .map_err(|e| broken(e.to_string()))?;
        if !answer.status().is_success() {
            return Err(refused(&url, answer));
        }
        let mut lines = BufReader::new(answer.into_body().into_reader());
        let mut finished = false;
        loop {
            let mut line = String::new();
            let read = lines.by_ref().take(LONGEST_LINE).read_line(&mut line);
            if read.map_err(|e| broken(e.to_string()))? == 0 {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let Ok(value) = serde_json::from_str::<Json>(&line) else {
                let clipped: String = line.trim().chars().take(80).collect();
                return Err(ApiError::Create {
                    name: name.to_string(),
                    detail: format!("an answer that is no JSON: {clipped}"),
                });
            };
            if let Some(detail) = value.get("error").and_then(Json::as_str) {
                return Err(ApiError::Create { name: name.to_string(), detail: detail.to_owned() });
            }
            if let Some(status) = value.get("status").and_then(Json::as_str) {
                finished = status == "success";
                progress(Progress::Status(status.to_owned()));
            }
        }
        if finished { Ok(()) } else { Err(ApiError::Unfinished { name: name.to_string() }) }
    }
}

fn refused(url: &str, answer: ureq::http::Response<ureq::Body>) -> ApiError {
    let status = answer.status().as_u16();
    let mut text = String::new();
    let _ = answer.into_body().into_reader().take(4096).read_to_string(&mut text);
    let detail = serde_json::from_str::<Json>(&text)
        .ok()
        .and_then(|v| v.get("error").and_then(Json::as_str).map(str::to_owned))
        .unwrap_or_else(|| text.trim().to_owned());
    ApiError::Refused { url: url.to_owned(), status, detail }
}

/// The body of `/api/create`.
fn request(name: &ModelName, creation: &Creation, files: Map<String, Json>, adapters: Map<String, Json>) -> Json {
    let mut out = Map::new();
    out.insert("model".into(), json!(name.to_string()));
    if !files.is_empty() {
        out.insert("files".into(), Json::Object(files));
    }
    if !adapters.is_empty() {
        out.insert("adapters".into(), Json::Object(adapters));
    }
    for (key, value) in [
        ("from", &creation.from),
        ("template", &creation.template),
        ("system", &creation.system),
        ("renderer", &creation.renderer),
        ("parser", &creation.parser),
        ("requires", &creation.requires),
    ] {
        if let Some(value) = value {
            out.insert(key.into(), json!(value));
        }
    }
    if !creation.licenses.is_empty() {
        out.insert("license".into(), json!(creation.licenses));
    }
    if !creation.parameters.is_empty() {
        out.insert("parameters".into(), Json::Object(creation.parameters.clone()));
    }
    if !creation.messages.is_empty() {
        let list: Vec<Json> =
            creation.messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        out.insert("messages".into(), Json::Array(list));
    }
    out.insert("stream".into(), json!(true));
    Json::Object(out)
}

/// The address that `OLLAMA_HOST` means (Ollama's `envconfig.Host`).
fn address(host: &str) -> String {
    let host = host.trim();
    let (scheme, rest, default_port) = match host.split_once("://") {
        Some(("https", rest)) => ("https", rest, "443"),
        Some((_, rest)) => ("http", rest, "80"),
        None => ("http", host, "11434"),
    };
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p));
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port),
        _ => (authority, default_port),
    };
    let port = if port.parse::<u16>().is_ok() { port } else { default_port };
    let name = match name.trim_matches(['[', ']']) {
        // An address to listen on is none to connect to.
        "" | "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        other => other.to_owned(),
    };
    let path = if path.is_empty() { String::new() } else { format!("/{path}") };
    format!("{scheme}://{name}:{port}{path}")
}

/// A file of known length that tells how much of it was read.
struct Counting<'a> {
    file: File,
    left: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl Read for Counting<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read(&mut out[..most])?;
        if n == 0 {
            return Err(std::io::Error::other("the file became shorter while it was sent"));
        }
        self.left -= n as u64;
        (self.progress)(Progress::Sent(n as u64));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_completed() {
        for (given, expected) in [
            ("", "http://127.0.0.1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("box", "http://box:11434"),
            ("box:80", "http://box:80"),
            (":9000", "http://127.0.0.1:9000"),
            ("https://box", "https://box:443"),
            ("http://box/ollama", "http://box:80/ollama"),
            ("[::1]:11434", "http://[::1]:11434"),
            ("box:nonsense", "http://box:11434"),
        ] {
            assert_eq!(address(given), expected, "{given}");
        }
    }
}
