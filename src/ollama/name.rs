//! Names of models in Ollama's store: `host/namespace/model:tag`.

use std::fmt;
use std::path::PathBuf;

/// A name with all its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

/// A name that Ollama would not accept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "--ollama {name:?}: {part} {value:?} is not allowed; use NAME or NAME:TAG of letters, digits, '-', '_' and '.'"
)]
pub struct NameError {
    name: String,
    part: &'static str,
    value: String,
}

impl ModelName {
    /// Parses a name; what is missing is `registry.ollama.ai`, `library` and `latest`.
    ///
    /// # Errors
    /// [`NameError`] for characters or lengths that Ollama does not allow.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let bare = name.split_once("://").map_or(name, |(_, rest)| rest);
        let (rest, tag) = match bare.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, tag),
            _ => (bare, "latest"),
        };
        let parts: Vec<&str> = rest.rsplitn(3, '/').collect();
        let model = parts.first().copied().unwrap_or_default();
        let namespace = parts.get(1).copied().unwrap_or("library");
        let host = parts.get(2).copied().unwrap_or("registry.ollama.ai");
        for (part, value, extra, longest) in [
            ("the host", host, "-_.:", 350),
            ("the namespace", namespace, "-_", 80),
            ("the model's name", model, "-_.", 80),
            ("the tag", tag, "-_.", 80),
        ] {
            let first = value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            let all = value.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c));
            if !first || !all || value.len() > longest {
                return Err(NameError { name: name.to_owned(), part, value: value.to_owned() });
            }
        }
        Ok(Self { host: host.into(), namespace: namespace.into(), model: model.into(), tag: tag.into() })
    }

    /// Where its manifest lies, below `manifests`.
    pub fn path(&self) -> PathBuf {
        [&self.host, &self.namespace, &self.model, &self.tag].iter().collect()
    }
}

impl fmt::Display for ModelName {
    /// The shortest form: what `ollama run` is given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != "registry.ollama.ai" {
            write!(f, "{}/", self.host)?;
        }
        if self.host != "registry.ollama.ai" || self.namespace != "library" {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}", self.model)?;
        if self.tag != "latest" {
            write!(f, ":{}", self.tag)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_defaults_and_rules() {
        let path = |s: &str| ModelName::parse(s).unwrap().path().display().to_string();
        assert_eq!(path("mine"), "registry.ollama.ai/library/mine/latest");
        assert_eq!(path("me/mine:8b-q4_K_M"), "registry.ollama.ai/me/mine/8b-q4_K_M");
        assert_eq!(path("host:5000/me/mine"), "host:5000/me/mine/latest");
        assert_eq!(ModelName::parse("mine:latest").unwrap().to_string(), "mine");
        for bad in ["", "a b", "../x", "a/../b", "x:", "-x", "a/b/c/../d", "x:y:z/"] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }
}
