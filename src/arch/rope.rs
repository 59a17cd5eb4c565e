//! RoPE parameters: the v4 keys (`rope_theta`, `rope_scaling`) and the v5 ones (`rope_parameters`) as one table.

use serde_json::{Map, Value};

/// RoPE types whose original context length transformers fills in.
const SCALED: [&str; 3] = ["llama3", "yarn", "longrope"];

/// What transformers does with RoPE keys when it reads a config (`convert_rope_params_to_dict`,
/// `standardize_rope_params`). `entry` describes the config class; one without RoPE fields keeps the keys as they are.
pub(super) fn standardise(keys: &mut Map<String, Value>, entry: &Map<String, Value>, raw: &Map<String, Value>) {
    let Some(default_theta) = entry.get("rope_theta") else { return };
    let model_type = keys.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let own_theta = entry.get("defaults").is_none_or(|d| d.get("rope_theta").is_none());
    let scaling = keys.remove("rope_scaling").filter(|v| v.as_object().is_some_and(|o| !o.is_empty()));
    let mut rope = match scaling.or_else(|| keys.remove("rope_parameters")) {
        Some(Value::Object(rope)) => rope,
        _ if model_type == "gpt_oss" => serde_json::from_str(
            r#"{"rope_type":"yarn","factor":32.0,"beta_fast":32.0,"beta_slow":1.0,"truncate":false,"original_max_position_embeddings":4096}"#,
        )
        .unwrap_or_default(),
        _ => Map::new(),
    };
    let theta = if own_theta { keys.remove("rope_theta") } else { keys.get("rope_theta").cloned() };
    let partial = keys.get("partial_rotary_factor").filter(|v| !v.is_null()).cloned();
    if entry.get("defaults").is_none_or(|d| d.get("partial_rotary_factor").is_none()) && model_type != "phi3" {
        keys.remove("partial_rotary_factor");
    }
    let by_type = match (default_theta.get("global"), default_theta.get("local")) {
        (Some(global), Some(local)) => Some((global, local)),
        _ if model_type == "olmo3" => Some((default_theta, default_theta)),
        _ => None,
    };
    if let Some((global, local)) = by_type {
        by_layer_type(keys, &mut rope, raw, theta, (global, local));
        keys.insert("rope_parameters".into(), Value::Object(rope));
        return;
    }
    let context = keys.get("max_position_embeddings").cloned().unwrap_or_default();
    let original = entry.get("rope_original").and_then(Value::as_bool).unwrap_or(false)
        || keys.contains_key("original_max_position_embeddings");
    let original = original.then(|| keys.get("original_max_position_embeddings").cloned()).flatten();
    let nested = nested_keys(keys, &rope);
    let fill = |rope: &mut Map<String, Value>, nested: bool| {
        set_default(rope, "rope_theta", theta.clone().unwrap_or_else(|| default_theta.clone()));
        if let Some(partial) = &partial {
            set_default(rope, "partial_rotary_factor", partial.clone());
        } else if model_type == "phi3" {
            set_default(rope, "partial_rotary_factor", 1.0.into());
        }
        let kind = rope.get("type").cloned().unwrap_or_else(|| "default".into());
        set_default(rope, "rope_type", kind);
        if rope.get("rope_type").and_then(Value::as_str).is_some_and(|t| SCALED.contains(&t)) {
            match &original {
                Some(original) if !nested => {
                    rope.insert("original_max_position_embeddings".into(), original.clone());
                }
                _ => set_default(rope, "original_max_position_embeddings", context.clone()),
            }
        }
        if model_type == "phi3" && matches!(rope.get("rope_type").and_then(Value::as_str), Some("su" | "yarn")) {
            rope.insert("rope_type".into(), "longrope".into());
        }
    };
    if nested.is_empty() {
        fill(&mut rope, false);
    } else {
        for key in nested {
            if let Some(Value::Object(part)) = rope.get_mut(&key) {
                fill(part, true);
            }
        }
    }
    keys.insert("rope_parameters".into(), Value::Object(rope));
}

/// Keys of `rope` that are kinds of layers.
fn nested_keys(keys: &Map<String, Value>, rope: &Map<String, Value>) -> Vec<String> {
    let types = keys.get("layer_types").and_then(Value::as_array);
    let is_type = |k: &str| types.is_some_and(|t| t.iter().any(|v| v.as_str() == Some(k)));
    rope.keys().filter(|k| is_type(k)).cloned().collect()
}

/// The classes with one RoPE base for global and one for local layers (Gemma 3, ModernBERT).
fn by_layer_type(
    keys: &mut Map<String, Value>,
    rope: &mut Map<String, Value>,
    raw: &Map<String, Value>,
    theta: Option<Value>,
    (global, local): (&Value, &Value),
) {
    let default = || Map::from_iter([("rope_type".to_owned(), Value::from("default"))]);
    let own = |rope: &Map<String, Value>, key: &str| rope.get(key).and_then(Value::as_object).cloned();
    // The older `rope_scaling` is about the layers with full attention.
    let mut full = match raw.get("rope_scaling").and_then(Value::as_object) {
        Some(scaling) => {
            let new = raw.get("rope_parameters").and_then(Value::as_object);
            let mut full = new.and_then(|r| own(r, "full_attention")).unwrap_or_else(default);
            full.extend(scaling.clone());
            full
        }
        None => own(rope, "full_attention").unwrap_or_else(default),
    };
    let mut sliding = own(rope, "sliding_attention").unwrap_or_else(default);
    let local_theta = keys.remove("rope_local_base_freq").or_else(|| keys.remove("local_rope_theta"));
    let global_theta = theta.or_else(|| keys.remove("global_rope_theta"));
    for (part, base) in
        [(&mut sliding, local_theta.as_ref().unwrap_or(local)), (&mut full, global_theta.as_ref().unwrap_or(global))]
    {
        let kind = part.get("type").cloned().unwrap_or_else(|| "default".into());
        set_default(part, "rope_type", kind);
        set_default(part, "rope_theta", base.clone());
        if part.get("rope_type").and_then(Value::as_str).is_some_and(|t| SCALED.contains(&t)) {
            set_default(
                part,
                "original_max_position_embeddings",
                keys.get("max_position_embeddings").cloned().unwrap_or_default(),
            );
        }
    }
    rope.clear();
    rope.insert("sliding_attention".into(), Value::Object(sliding));
    rope.insert("full_attention".into(), Value::Object(full));
}

fn set_default(map: &mut Map<String, Value>, key: &str, value: Value) {
    if !map.contains_key(key) {
        map.insert(key.into(), value);
    }
}

/// The table that the converter works with (`TextModel.__init__`): the standardised parameters, or `rope_scaling` of a
/// class that transformers does not know, with the older keys mirrored into it.
pub(super) fn mirrored(keys: &Map<String, Value>) -> Map<String, Value> {
    let find = |names: &[&str]| names.iter().find_map(|n| keys.get(*n)).filter(|v| !v.is_null()).cloned();
    let mut rope = keys
        .get("rope_parameters")
        .or_else(|| keys.get("rope_scaling"))
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if rope.contains_key("full_attention") || rope.contains_key("sliding_attention") {
        return rope;
    }
    const LOCAL: &[&str] =
        &["local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"];
    const GLOBAL: &[&str] =
        &["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"];
    if let Some(theta) = find(LOCAL) {
        let part: Map<String, Value> = [("rope_theta".to_owned(), theta)].into_iter().collect();
        rope.insert("sliding_attention".into(), Value::Object(part));
    }
    let kind = rope.get("type").cloned();
    for (key, value) in [
        ("rope_theta", find(GLOBAL)),
        ("rope_type", kind),
        ("partial_rotary_factor", find(&["partial_rotary_factor", "rope_pct", "rope_percent"])),
        ("original_max_position_embeddings", find(&["original_max_position_embeddings"])),
    ] {
        if let Some(value) = value {
            set_default(&mut rope, key, value);
        }
    }
    rope
}
