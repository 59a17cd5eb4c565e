//! Evaluating a family's key table, and the keys that nearly all families share.

use serde_json::Value as Json;

use super::config::Config;
use super::error::ArchError;
use super::spec::{From, Key, Keys};
use crate::gguf::{Array, Value};

/// What `TextModel.set_gguf_parameters` of the converter writes, in its order.
pub(super) const COMMON: Key = Key::Group(&[
    Key::Many(block_count),
    Key::U32(
        "context_length",
        From::Any(&[
            "max_position_embeddings",
            "n_ctx",
            "n_positions",
            "max_length",
            "max_sequence_length",
            "model_max_length",
        ]),
    ),
    Key::U32("embedding_length", From::Any(&["hidden_size", "n_embd", "dim"])),
    Key::U32s(
        "feed_forward_length",
        From::Any(&[
            "prefix_dense_intermediate_size",
            "dense_intermediate_size",
            "intermediate_size",
            "n_inner",
            "hidden_dim",
        ]),
    ),
    Key::U32s("attention.head_count", From::Any(&["num_attention_heads", "n_head", "n_heads"])),
    Key::U32s("attention.head_count_kv", From::Any(&["num_key_value_heads", "n_kv_heads"])),
    Key::Many(causality),
    Key::Many(rope_keys),
    Key::F32("attention.layer_norm_rms_epsilon", From::Any(&["rms_norm_eps", "norm_eps"])),
    Key::F32("attention.layer_norm_epsilon", From::Any(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"])),
    Key::U32("expert_count", From::Any(&["num_local_experts", "num_experts", "n_routed_experts"])),
    Key::U32("expert_used_count", From::Any(&["num_experts_per_tok", "num_experts_per_token", "top_k_experts"])),
    Key::U32("expert_group_count", From::Any(&["n_group"])),
    Key::U32("expert_group_used_count", From::Any(&["topk_group"])),
    Key::Many(gating),
    Key::U32("attention.key_length", From::Any(&["head_dim"])),
    Key::U32("attention.value_length", From::Any(&["head_dim"])),
    Key::FileType,
]);

/// The number of blocks.
pub(super) fn block_count(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    keys.uint("block_count", config.blocks()?, config)
}

fn causality(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    if config.get(&["is_causal"]) == Some(&Json::Bool(false)) {
        keys.set("attention.causal", Value::Bool(false));
    }
    Ok(())
}

/// RoPE scaling, sections and bases.
fn rope_keys(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    let rope = config.rope_full();
    let kind = rope.get("rope_type").and_then(Json::as_str).unwrap_or_default();
    let factor = config.rope_float("factor")?;
    match (kind, factor) {
        ("linear", Some(factor)) => {
            keys.set("rope.scaling.type", Value::string("linear"));
            keys.float("rope.scaling.factor", factor);
        }
        ("yarn", Some(factor)) => {
            keys.set("rope.scaling.type", Value::string("yarn"));
            keys.float("rope.scaling.factor", factor);
            let original = rope.get("original_max_position_embeddings").ok_or_else(|| {
                config.unfit(
                    "rope_scaling",
                    "of type yarn has no original_max_position_embeddings".into(),
                    "add the context length before scaling",
                )
            })?;
            let names = &["original_max_position_embeddings"];
            keys.uint("rope.scaling.original_context_length", config.as_uint(names, original)?, config)?;
            let attention = match config.rope_float("attention_factor")? {
                None if !rope.contains_key("attention_factor") => config.rope_float("attn_factor")?,
                found => found,
            };
            for (name, value) in [
                ("rope.scaling.yarn_ext_factor", config.rope_float("extrapolation_factor")?),
                ("rope.scaling.yarn_attn_factor", attention),
                ("rope.scaling.yarn_beta_fast", config.rope_float("beta_fast")?),
                ("rope.scaling.yarn_beta_slow", config.rope_float("beta_slow")?),
            ] {
                if let Some(value) = value {
                    keys.float(name, value);
                }
            }
        }
        ("su" | "longrope", _) => keys.set("rope.scaling.type", Value::string("longrope")),
        _ => {}
    }
    if let Some(sections) = config.rope().get("mrope_section") {
        let mut sections = integers(config, "mrope_section", sections)?;
        sections.resize(sections.len().max(4), 0);
        sections.truncate(4);
        keys.set("rope.dimension_sections", Value::Array(Array::I32(sections)));
    }
    if let Some(theta) = config.rope_float("rope_theta")? {
        keys.float("rope.freq_base", theta);
    }
    let local = config.rope().get("sliding_attention").and_then(|s| s.get("rope_theta")).filter(|v| !v.is_null());
    if let Some(theta) = local {
        keys.float("rope.freq_base_swa", config.as_float(&["rope_theta"], theta)?);
    }
    Ok(())
}

/// The function that turns router scores into expert weights.
fn gating(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    const NAMES: &[&str] = &[
        "score_function",
        "scoring_func",
        "score_func",
        "moe_router_activation",
        "moe_router_activation_func",
        "expert_selection_fn",
    ];
    let Some(function) = config.get(NAMES) else { return Ok(()) };
    let number = match function.as_str() {
        Some("softmax") => 1,
        Some("sigmoid") => 2,
        Some("sqrtsoftplus") => 4,
        _ => return Err(config.ill_typed(NAMES, function, "\"softmax\", \"sigmoid\" or \"sqrtsoftplus\"")),
    };
    keys.uint("expert_gating_func", number, config)
}

/// How a sentence-transformers model pools (`_try_set_pooling_type`): modules.json names the folder that says so.
fn pooling(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    let read = |path: &std::path::Path| -> Result<Json, ArchError> {
        let error = |cause: String| ArchError::File { file: path.into(), cause };
        let bytes = std::fs::read(path).map_err(|e| error(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))
    };
    let modules = keys.folder.join("modules.json");
    if !modules.is_file() {
        return Ok(());
    }
    let modules = read(&modules)?;
    let is_pooling = |m: &&Json| m["type"].as_str().is_some_and(|t| t.ends_with("Pooling"));
    let Some(path) = modules.as_array().and_then(|m| m.iter().find(is_pooling)).and_then(|m| m["path"].as_str()) else {
        return Ok(());
    };
    let file = keys.folder.join(path).join("config.json");
    let pooling = read(&file)?;
    let on = |key: &str| pooling[key].as_bool() == Some(true);
    let number = match pooling["pooling_mode"].as_str() {
        _ if on("pooling_mode_mean_tokens") => 1,
        _ if on("pooling_mode_cls_token") => 2,
        _ if on("pooling_mode_lasttoken") => 3,
        Some("mean") => 1,
        Some("cls") => 2,
        Some("lasttoken") => 3,
        _ => return Err(ArchError::File { file, cause: "names no pooling of mean, cls or last token".into() }),
    };
    keys.uint("pooling_type", number, config)
}

/// An array of whole numbers as GGUF holds it.
pub(super) fn integers(config: &Config, key: &str, value: &Json) -> Result<Vec<i32>, ArchError> {
    let bad = || config.ill_typed(&[key], value, "an array of whole numbers");
    let items = value.as_array().ok_or_else(bad)?;
    items.iter().map(|v| v.as_i64().and_then(|v| i32::try_from(v).ok()).ok_or_else(bad)).collect()
}

/// Writes the keys of a table.
pub(super) fn write(table: &[Key], config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    for key in table {
        match *key {
            Key::Group(table) => write(table, config, keys)?,
            Key::Many(f) => f(config, keys)?,
            Key::Pooling => pooling(config, keys)?,
            // The value is a placeholder: the output type decides.
            Key::FileType => keys.set("general.file_type", Value::U32(0)),
            Key::U32(name, from) => {
                if let Some(v) = value(from, config)? {
                    keys.uint(name, config.as_uint(from.names(name), &v)?, config)?;
                }
            }
            Key::U32s(name, from) => match value(from, config)? {
                Some(list @ Json::Array(_)) => {
                    keys.set(name, Value::Array(Array::I32(integers(config, name, &list)?)));
                }
                Some(v) => keys.uint(name, config.as_uint(from.names(name), &v)?, config)?,
                None => {}
            },
            Key::F32(name, from) => {
                if let Some(v) = value(from, config)? {
                    keys.float(name, config.as_float(from.names(name), &v)?);
                }
            }
            Key::Bool(name, from) => {
                if let Some(v) = value(from, config)? {
                    let flag = v.as_bool().ok_or_else(|| config.ill_typed(from.names(name), &v, "true or false"))?;
                    keys.set(name, Value::Bool(flag));
                }
            }
            Key::Str(name, from) => {
                if let Some(v) = value(from, config)? {
                    let text = v.as_str().ok_or_else(|| config.ill_typed(from.names(name), &v, "a text"))?;
                    keys.set(name, Value::string(text));
                }
            }
        }
    }
    Ok(())
}

impl From {
    /// Config keys to name in a message.
    fn names(self, otherwise: &str) -> &[&str] {
        match self {
            From::Any(names) | From::Need(names) | From::Or(names, _) => names,
            // A computed value is at fault only together with its own key.
            _ if otherwise.is_empty() => &[],
            _ => &["value"],
        }
    }
}

/// The value of a key, if it has one.
fn value(from: From, config: &Config) -> Result<Option<Json>, ArchError> {
    Ok(match from {
        From::Any(names) => config.get(names).cloned(),
        From::Need(names) => Some(config.need(names)?.clone()),
        From::Or(names, default) => Some(config.get(names).cloned().unwrap_or_else(|| number(default))),
        From::Lit(n) => Some(number(n)),
        From::Flag(b) => Some(b.into()),
        From::Text(t) => Some(t.into()),
        From::Is(f) => f(config)?,
    })
}

/// A number as JSON: whole numbers stay whole.
fn number(n: f64) -> Json {
    if n.fract() == 0.0 && (0.0..9e15).contains(&n) { Json::from(n as u64) } else { Json::from(n) }
}
