//! adapter_config.json: the settings that decide how the tensors of an adapter's file are merged.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::AdapterError;

/// The settings of one adapter. Kinds read what they need by name: there are thirty kinds of adapters with
/// about two hundred settings between them.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    path: PathBuf,
    settings: Map<String, Value>,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

impl AdapterConfig {
    /// Reads and checks a config file.
    pub(super) fn read(path: &Path) -> Result<Self, AdapterError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| AdapterError::Io { path: path.to_path_buf(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a config file.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, AdapterError> {
        let bad =
            |key: &str, cause: String| AdapterError::Config { path: path.to_path_buf(), key: key.to_string(), cause };
        let settings = match serde_json::from_str(text) {
            Ok(Value::Object(settings)) => settings,
            Ok(_) => return Err(bad("the file", "is not a JSON object".into())),
            Err(e) => return Err(bad("the file", format!("is not JSON ({e})"))),
        };
        let pattern = |key: &str| -> Result<Vec<(Regex, f64)>, AdapterError> {
            let entries = match settings.get(key) {
                None | Some(Value::Null) => return Ok(Vec::new()),
                Some(Value::Object(entries)) => entries,
                Some(other) => return Err(bad(key, format!("is {other}, not a table of patterns"))),
            };
            entries
                .iter()
                .map(|(pattern, value)| {
                    let value = value.as_f64().ok_or_else(|| bad(key, format!("gives {pattern:?} no number")))?;
                    Regex::new(&format!("^(?:(?s:.*)\\.)?(?:{})$", python_pattern(pattern)))
                        .map(|regex| (regex, value))
                        .map_err(|_| bad(key, format!("has {pattern:?}, which is no regular expression we can run")))
                })
                .collect()
        };
        // AdaLoRA keeps something else under this name: which of its singular values it has pruned.
        let is_adalora = settings.get("peft_type").and_then(Value::as_str) == Some("ADALORA");
        let rank_pattern = if is_adalora { Vec::new() } else { pattern("rank_pattern")? };
        let alpha_pattern = pattern("alpha_pattern")?;
        let config = AdapterConfig { path: path.to_path_buf(), settings, rank_pattern, alpha_pattern };
        config.check_kinds_of_values()?;
        Ok(config)
    }

    /// Settings that decide what is merged, or that say what was trained, have values of the kinds that PEFT writes:
    /// one that is misread would change the result without a word.
    fn check_kinds_of_values(&self) -> Result<(), AdapterError> {
        for key in ["use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "ensure_weight_tying"] {
            self.flag(key)?;
        }
        for key in ["base_model_name_or_path", "peft_version", "bias"] {
            if let Some(other) = self.get(key).filter(|v| !v.is_string()) {
                return Err(self.bad(key, format!("is {other}, not a text")));
            }
        }
        let is_names = |v: &Value| match v {
            Value::Array(all) => all.iter().all(Value::is_string),
            v => v.is_string(),
        };
        for key in ["target_modules", "modules_to_save", "exclude_modules", "target_parameters", "layers_pattern"] {
            if let Some(other) = self.get(key).filter(|v| !is_names(v)) {
                return Err(self.bad(key, format!("is {other}, not names of modules")));
            }
        }
        let is_numbers = |v: &Value| match v {
            Value::Array(all) => all.iter().all(Value::is_u64),
            v => v.is_u64(),
        };
        if let Some(other) = self.get("layers_to_transform").filter(|v| !is_numbers(v)) {
            return Err(self.bad("layers_to_transform", format!("is {other}, not numbers of layers")));
        }
        let is_tokens = |v: &Value| match v {
            Value::Object(by_module) => by_module.values().all(|v| v.is_array() && is_numbers(v)),
            v => v.is_array() && is_numbers(v),
        };
        match self.get("trainable_token_indices").filter(|v| !is_tokens(v)) {
            Some(other) => Err(self.bad("trainable_token_indices", format!("is {other}, not a list of token ids"))),
            None => Ok(()),
        }
    }

    /// No settings at all: what an adapter has that is still to be made.
    pub(super) fn empty() -> Self {
        AdapterConfig {
            path: PathBuf::new(),
            settings: Map::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }

    /// The file these settings come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All settings, in the order of the file.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// A setting as it is; `None` for one that is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.settings.get(key).filter(|v| !v.is_null())
    }

    /// The error for a setting of an unusable value.
    pub(super) fn bad(&self, key: &str, cause: impl Into<String>) -> AdapterError {
        AdapterError::Config { path: self.path.clone(), key: key.to_string(), cause: cause.into() }
    }

    /// A setting that is on or off; absent is off.
    pub fn flag(&self, key: &str) -> Result<bool, AdapterError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(key, format!("is {other}, not true or false"))),
        }
    }

    /// A number, when there is one.
    pub fn number(&self, key: &str) -> Result<Option<f64>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_f64().filter(|n| n.is_finite()) {
                Some(n) => Ok(Some(n)),
                None => Err(self.bad(key, format!("is {v}, not a number"))),
            },
        }
    }

    /// A whole number from zero on, when there is one.
    pub fn count(&self, key: &str) -> Result<Option<u64>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) => Ok(Some(n)),
                None => Err(self.bad(key, format!("is {v}, not a whole number"))),
            },
        }
    }

    /// A text, when the setting is one.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A list of texts; a single text is a list of one.
    pub fn texts(&self, key: &str) -> Vec<&str> {
        match self.get(key) {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(s)) => vec![s],
            _ => Vec::new(),
        }
    }

    /// The kind of adapter, in capitals as PEFT writes it.
    pub fn kind(&self) -> Result<String, AdapterError> {
        match self.get("peft_type") {
            Some(Value::String(s)) => Ok(s.to_ascii_uppercase()),
            Some(other) => Err(self.bad("peft_type", format!("is {other}, not a name"))),
            None => Err(self.bad("peft_type", "is missing")),
        }
    }

    /// The model that the adapter was trained on, as its author named it.
    pub fn base_model(&self) -> Option<&str> {
        self.text("base_model_name_or_path").filter(|s| !s.is_empty())
    }

    /// The version of PEFT that wrote the adapter, `(major, minor)`; `None` before versions were written (0.16)
    /// or when it cannot be read.
    pub fn peft_version(&self) -> Option<(u64, u64)> {
        let mut parts = self.text("peft_version")?.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// The rank that the config gives `module`: the first matching pattern, or `key`.
    pub fn rank(&self, module: &str, key: &str) -> Result<Option<u64>, AdapterError> {
        match pick(&self.rank_pattern, module) {
            Some(r) if r.fract() == 0.0 && r >= 0.0 => Ok(Some(r as u64)),
            Some(r) => Err(self.bad("rank_pattern", format!("gives {module} the rank {r}"))),
            None => self.count(key),
        }
    }

    /// The alpha that the config gives `module`: the first matching pattern, or `key`.
    pub fn alpha(&self, module: &str, key: &str) -> Result<Option<f64>, AdapterError> {
        match pick(&self.alpha_pattern, module) {
            Some(a) => Ok(Some(a)),
            None => self.number(key),
        }
    }
}

/// PEFT's rule (`get_pattern_key`): the first key in file order for which `(.*\.)?(key)$` matches the module's
/// name from its start.
fn pick(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module).unwrap_or(false)).map(|(_, value)| *value)
}

/// A Python regular expression for ours: all is written the same, but `\Z` is `\z`.
pub(super) fn python_pattern(pattern: &str) -> String {
    pattern.replace("\\Z", "\\z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> AdapterConfig {
        AdapterConfig::parse(Path::new("adapter_config.json"), text).unwrap()
    }

    #[test]
    fn the_first_pattern_in_file_order_wins() {
        let c = config(r#"{"r": 8, "rank_pattern": {"layers.1.*q_proj": 4, "q_proj": 2, "^model\\.v_proj": 16}}"#);
        let rank = |m: &str| c.rank(m, "r").unwrap();
        assert_eq!(rank("model.layers.1.self_attn.q_proj"), Some(4));
        assert_eq!(rank("model.layers.2.self_attn.q_proj"), Some(2));
        assert_eq!(rank("model.layers.2.self_attn.xq_proj"), Some(8), "a part of a name is no match");
        assert_eq!(rank("model.v_proj"), Some(16), "an anchored pattern matches at the start");
        assert_eq!(rank("q_proj.base"), Some(8), "the pattern ends where the name ends");
    }

    #[test]
    fn alternatives_in_a_pattern_stay_together() {
        let c = config(r#"{"lora_alpha": 8, "alpha_pattern": {"q_proj|v_proj": 1}}"#);
        assert_eq!(c.alpha("m.v_proj", "lora_alpha").unwrap(), Some(1.0));
        assert_eq!(c.alpha("m.v_proj.x", "lora_alpha").unwrap(), Some(8.0));
    }

    #[test]
    fn an_unusable_setting_is_named() {
        let e = config(r#"{"r": -3}"#).count("r").unwrap_err().to_string();
        assert!(e.contains("adapter_config.json: r is -3"), "{e}");
    }
}
