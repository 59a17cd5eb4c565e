//! Hyperparameters: a model's config.json as transformers understands it.
//!
//! `convert_hf_to_gguf` reads `AutoConfig.from_pretrained(…).to_dict()`, not the file, so a key that the file
//! leaves out has its class default. [`Config::new`] applies the same rules: other names of fields, defaults by
//! `model_type` (`config_defaults.json`), computed fields, both generations of RoPE keys, and the nested text config.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::error::ArchError;
use super::rope;

static DEFAULTS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("config_defaults.json")).unwrap_or_default());

/// A model's hyperparameters with all defaults, the text model's keys at the top.
#[derive(Clone, Debug)]
pub struct Config {
    file: PathBuf,
    class: String,
    keys: Map<String, Value>,
    raw: Map<String, Value>,
    rope: Map<String, Value>,
}

impl Config {
    /// Reads the given config.json contents; `file` is for messages.
    pub fn new(raw: &Value, file: &Path) -> Result<Config, ArchError> {
        let raw = raw.as_object().ok_or_else(|| ArchError::NotAConfig { file: file.into() })?;
        let mut keys = with_defaults(raw, None);
        for (other, path) in [
            ("llm_config", "/llm_config"),
            ("lm_config", "/lm_config"),
            ("thinker_config", "/thinker_config/text_config"),
            ("language_config", "/language_config"),
            ("lfm", "/lfm"),
        ] {
            if keys.contains_key(other)
                && let Some(nested) = Value::Object(keys.clone()).pointer(path)
            {
                keys.insert("text_config".into(), nested.clone());
            }
        }
        let class = class_of(&keys).ok_or_else(|| ArchError::NoClass { file: file.into() })?;
        if let Some(Value::Object(text)) = keys.get("text_config").cloned() {
            keys.extend(text);
        }
        let rope = rope::mirrored(&keys);
        Ok(Config { file: file.into(), class, keys, raw: raw.clone(), rope })
    }

    /// The file, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The class that the model says it is.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The file's own top-level value of a key, without any default.
    pub fn raw(&self, key: &str) -> Option<&Value> {
        self.raw.get(key)
    }

    /// The value under the first of `names` that is there; `None` when there is none or it is null.
    pub fn get(&self, names: &[&str]) -> Option<&Value> {
        names.iter().find_map(|n| self.keys.get(*n)).filter(|v| !v.is_null())
    }

    /// As [`Config::get`], an error where there is none.
    pub fn need(&self, names: &[&str]) -> Result<&Value, ArchError> {
        self.get(names).ok_or_else(|| ArchError::MissingKey {
            file: self.file.clone(),
            keys: names.join(" or "),
            class: self.class.clone(),
        })
    }

    /// An optional unsigned number.
    pub fn uint(&self, names: &[&str]) -> Result<Option<u64>, ArchError> {
        self.get(names).map(|v| self.as_uint(names, v)).transpose()
    }

    /// An unsigned number that must be there.
    pub fn need_uint(&self, names: &[&str]) -> Result<u64, ArchError> {
        self.need(names).and_then(|v| self.as_uint(names, v))
    }

    /// An optional number.
    pub fn float(&self, names: &[&str]) -> Result<Option<f64>, ArchError> {
        self.get(names).map(|v| self.as_float(names, v)).transpose()
    }

    /// A number that must be there.
    pub fn need_float(&self, names: &[&str]) -> Result<f64, ArchError> {
        self.need(names).and_then(|v| self.as_float(names, v))
    }

    /// An optional text.
    pub fn text(&self, names: &[&str]) -> Option<&str> {
        self.get(names).and_then(Value::as_str)
    }

    /// Whether a key is there and true (1 counts, as in Python).
    pub fn truthy(&self, names: &[&str]) -> bool {
        self.get(names).is_some_and(truth)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> Result<u64, ArchError> {
        let n = self.need_uint(&["n_layers", "num_hidden_layers", "n_layer", "num_layers"])?;
        if n > 100_000 {
            return Err(self.unfit("num_hidden_layers", format!("is {n}"), "no model has so many layers"));
        }
        Ok(n)
    }

    /// RoPE parameters: the nested form of transformers v5, filled from the keys of v4.
    pub fn rope(&self) -> &Map<String, Value> {
        &self.rope
    }

    /// RoPE parameters of the layers with full attention, or of all.
    pub fn rope_full(&self) -> &Map<String, Value> {
        self.rope.get("full_attention").and_then(Value::as_object).unwrap_or(&self.rope)
    }

    /// A number among [`Config::rope_full`].
    pub fn rope_float(&self, name: &str) -> Result<Option<f64>, ArchError> {
        self.rope_full().get(name).filter(|v| !v.is_null()).map(|v| self.as_float(&[name], v)).transpose()
    }

    /// The head size: `head_dim`, or hidden size over heads.
    pub fn head_dim(&self) -> Result<u64, ArchError> {
        match self.uint(&["head_dim"])? {
            Some(n) => Ok(n),
            None => {
                let heads = self.need_uint(&["num_attention_heads", "n_head"])?;
                let hidden = self.need_uint(&["hidden_size", "n_embd"])?;
                hidden
                    .checked_div(heads)
                    .ok_or_else(|| self.unfit("num_attention_heads", "is 0".into(), "a model has at least one head"))
            }
        }
    }

    /// An error about the value of a key.
    pub fn unfit(&self, key: &str, problem: String, remedy: &'static str) -> ArchError {
        ArchError::Unfit { file: self.file.clone(), key: key.into(), problem, remedy }
    }

    /// A value that should be an unsigned number.
    pub fn as_uint(&self, names: &[&str], v: &Value) -> Result<u64, ArchError> {
        v.as_u64().or(v.as_bool().map(u64::from)).ok_or_else(|| self.ill_typed(names, v, "an unsigned whole number"))
    }

    /// A value that should be a number.
    pub fn as_float(&self, names: &[&str], v: &Value) -> Result<f64, ArchError> {
        v.as_f64().ok_or_else(|| self.ill_typed(names, v, "a number"))
    }

    /// The error for a value of the wrong kind.
    pub fn ill_typed(&self, names: &[&str], v: &Value, needed: &'static str) -> ArchError {
        let key = names.iter().find(|n| self.keys.contains_key(**n)).or(names.first()).unwrap_or(&"a key");
        let mut found = v.to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(60).chain("…".chars()).collect();
        }
        ArchError::IllTyped { file: self.file.clone(), key: (*key).into(), found, needed }
    }
}

/// Python's idea of truth.
fn truth(v: &Value) -> bool {
    match v {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// The class to convert as (`get_model_architecture`): the text config's own class, where it names one, else the
/// model's, with some exceptions.
fn class_of(keys: &Map<String, Value>) -> Option<String> {
    let first = |v: Option<&Value>| Some(v?.get("architectures")?.get(0)?.as_str()?.to_owned());
    let own = keys.get("architectures").and_then(|a| Some(a.get(0)?.as_str()?.to_owned())).or_else(|| {
        let layer = keys.get("ssm_cfg")?.get("layer").and_then(Value::as_str).unwrap_or("Mamba");
        Some(format!("{layer}ForCausalLM"))
    });
    const TOP: &[&str] = &[
        "StepVLForConditionalGeneration",
        "Sarashina2VisionForCausalLM",
        "Exaone4_5_ForConditionalGeneration",
        "Step3p7ForConditionalGeneration",
        "KimiK3ForConditionalGeneration",
    ];
    match own {
        Some(own) if TOP.contains(&own.as_str()) => Some(own),
        own => first(keys.get("text_config")).or(own),
    }
}

/// A config with what its class adds: `AutoConfig.for_model(model_type, **config).to_dict()`.
///
/// A `model_type` that the table lacks leaves the config as it is, as the converter's fallback does.
fn with_defaults(raw: &Map<String, Value>, assumed: Option<&str>) -> Map<String, Value> {
    let model_type = raw.get("model_type").and_then(Value::as_str).or(assumed);
    let Some(entry) = model_type.and_then(|t| DEFAULTS.get(t)).and_then(Value::as_object) else {
        return raw.clone();
    };
    let alias = |k: &str| entry.get("aliases").and_then(|a| a.get(k)).and_then(Value::as_str).unwrap_or(k).to_owned();
    let mut keys = Map::new();
    for (k, v) in entry.get("defaults").and_then(Value::as_object).into_iter().flatten().chain(raw) {
        keys.insert(alias(k), v.clone());
    }
    if let Some(t) = model_type {
        keys.insert("model_type".into(), t.into());
    }
    compute(&mut keys, entry, raw);
    rope::standardise(&mut keys, entry, raw);
    // Generation settings are not part of a config any more; of those only this one is a converter's key too.
    keys.remove("max_length");
    if let Some(text) = entry.get("text").and_then(Value::as_str) {
        let nested = keys.get("text_config").and_then(Value::as_object).cloned().unwrap_or_default();
        keys.insert("text_config".into(), Value::Object(with_defaults(&nested, Some(text))));
    }
    keys
}

/// Fields that a config class computes from others (`__post_init__`).
fn compute(keys: &mut Map<String, Value>, entry: &Map<String, Value>, raw: &Map<String, Value>) {
    let computed = |name: &str| {
        entry.get("computed").and_then(Value::as_array).is_some_and(|c| c.iter().any(|v| v.as_str() == Some(name)))
    };
    let absent = |keys: &Map<String, Value>, name: &str| keys.get(name).is_none_or(Value::is_null);
    let uint = |keys: &Map<String, Value>, name: &str| keys.get(name).and_then(Value::as_u64);
    if computed("num_key_value_heads") && absent(keys, "num_key_value_heads") {
        let heads = keys.get("num_attention_heads").cloned().unwrap_or_default();
        keys.insert("num_key_value_heads".into(), heads);
    }
    if computed("head_dim")
        && absent(keys, "head_dim")
        && let (Some(hidden), Some(heads @ 1..)) = (uint(keys, "hidden_size"), uint(keys, "num_attention_heads"))
    {
        keys.insert("head_dim".into(), (hidden / heads).into());
    }
    let model_type = keys.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let windowed = keys.get("use_sliding_window").is_some_and(truth);
    match model_type.as_str() {
        "qwen2" | "qwen3" | "qwen3_moe" | "qwen2_vl_text" | "qwen2_5_vl_text" if !windowed => {
            keys.insert("sliding_window".into(), Value::Null);
        }
        "qwen2_moe" if !windowed => {
            keys.insert("sliding_window".into(), 0.into());
        }
        "gemma3_text" | "gemma3n_text" if keys.get("use_bidirectional_attention").is_some_and(truth) => {
            if let Some(window) = uint(keys, "sliding_window") {
                keys.insert("sliding_window".into(), (window / 2 + 1).into());
            }
        }
        "phi" if !raw.contains_key("partial_rotary_factor") => {
            keys.insert("partial_rotary_factor".into(), 0.5.into());
        }
        "stablelm" if !raw.contains_key("partial_rotary_factor") => {
            keys.insert("partial_rotary_factor".into(), 0.25.into());
        }
        "gpt_neox" => {
            let factor = keys.remove("rotary_pct").unwrap_or_else(|| 0.25.into());
            keys.insert("partial_rotary_factor".into(), factor);
            if let Some(base) = keys.remove("rotary_emb_base") {
                keys.insert("rope_theta".into(), base);
            }
        }
        "falcon" | "bloom" => {
            if let Some(width) = keys.remove("n_embed").filter(|v| !v.is_null()) {
                keys.insert("hidden_size".into(), width);
            }
            if model_type == "falcon" && absent(keys, "num_kv_heads") {
                let heads = keys.get("num_attention_heads").cloned().unwrap_or_default();
                keys.insert("num_kv_heads".into(), heads);
            }
        }
        "deepseek_v2" | "deepseek_v3" => {
            let width = keys.get("qk_rope_head_dim").cloned().unwrap_or_default();
            keys.insert("head_dim".into(), width);
        }
        "cohere2" => {
            if let (Some(hidden), Some(heads @ 1..)) = (uint(keys, "hidden_size"), uint(keys, "num_attention_heads")) {
                keys.insert("head_dim".into(), (hidden / heads).into());
            }
        }
        "t5" | "mt5" | "umt5" if absent(keys, "num_decoder_layers") => {
            let layers = keys.get("num_layers").cloned().unwrap_or_default();
            keys.insert("num_decoder_layers".into(), layers);
        }
        _ => {}
    }
    if absent(keys, "layer_types")
        && let Some(types) = layer_types(&model_type, keys, windowed)
    {
        keys.insert("layer_types".into(), types.into());
    }
}

/// Kinds of attention layer by layer, where a class derives them.
fn layer_types(model_type: &str, keys: &Map<String, Value>, windowed: bool) -> Option<Vec<Value>> {
    let uint = |name: &str| keys.get(name).and_then(Value::as_u64);
    let blocks = uint("num_hidden_layers")?.min(100_000);
    let pattern = |default: u64| uint("sliding_window_pattern").filter(|&p| p > 0).unwrap_or(default);
    let sliding: Box<dyn Fn(u64) -> bool> = match model_type {
        "qwen2" | "qwen3" | "qwen2_vl_text" | "qwen2_5_vl_text" => {
            let (from, window) = (uint("max_window_layers").unwrap_or(28), uint("sliding_window"));
            Box::new(move |i| window.is_some() && i >= from)
        }
        "qwen2_moe" => {
            let until = uint("max_window_layers").unwrap_or(28);
            Box::new(move |i| windowed && i % 2 == 0 && i < until)
        }
        "gemma2" | "gpt_oss" => Box::new(|i| i % 2 == 0),
        "gemma3_text" => {
            let n = pattern(6);
            Box::new(move |i| (i + 1) % n != 0)
        }
        "gemma3n_text" => Box::new(|i| (i + 1) % 5 != 0),
        "gemma4_text" => Box::new(|i| (i + 1) % 6 != 0),
        "olmo3" => Box::new(|i| (i + 1) % 4 != 0),
        "cohere2" | "exaone4" => {
            let n = pattern(4);
            Box::new(move |i| (i + 1) % n != 0)
        }
        _ => return None,
    };
    Some((0..blocks).map(|i| if sliding(i) { "sliding_attention" } else { "full_attention" }.into()).collect())
}
