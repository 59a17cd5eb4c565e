//! Phi 2, 3, 3.5-MoE and 4: fused projections stay fused.

use serde_json::Value as Json;

use super::blocks::{ATTENTION, DECODER, FC_MLP, NORMS};
use super::config::Config;
use super::error::ArchError;
use super::keys::block_count;
use super::spec::{Family, From, Generated, HEADS, Key, Keys, Num, Tensor, tensor};
use crate::tokenizer::VocabKind;

const EXPERTS: Num = Num::Of(&["num_local_experts", "num_experts"]);

const PHI2_TENSORS: &[Tensor] = &[
    tensor("token_embd.*", "model.embed_tokens.*"),
    tensor("output_norm.*", "model.final_layernorm.*"),
    tensor("output.*", "lm_head.*"),
    tensor("blk.{L}.attn_norm.*", "model.layers.{L}.input_layernorm.*"),
    tensor("blk.{L}.attn_output.*", "model.layers.{L}.self_attn.dense.*"),
];

/// Attention and feed-forward parts with fused inputs.
const FUSED: &[Tensor] = &[
    tensor("blk.{L}.attn_qkv.*", "model.layers.{L}.self_attn.qkv_proj.*"),
    tensor("blk.{L}.attn_output.*", "model.layers.{L}.self_attn.o_proj.*"),
    tensor("blk.{L}.ffn_up.*", "model.layers.{L}.mlp.gate_up_proj.*"),
    tensor("blk.{L}.ffn_down.*", "model.layers.{L}.mlp.down_proj.*"),
];

const MIXTURE: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate_inp.weight", "model.layers.{L}.block_sparse_moe.gate.weight"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.block_sparse_moe.experts.{E}.w1.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.block_sparse_moe.experts.{E}.w2.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.block_sparse_moe.experts.{E}.w3.weight")
        .stacked("experts", EXPERTS),
];

/// Phi 1 to 2.
pub(super) const PHI2: Family = Family {
    classes: &["PhiForCausalLM"],
    arch: "phi2",
    example: "microsoft/phi-2",
    tensors: &[PHI2_TENSORS, ATTENTION, FC_MLP],
    keys: &[
        Key::U32("context_length", From::Need(&["n_positions", "max_position_embeddings"])),
        Key::U32("embedding_length", From::Need(&["hidden_size", "n_embd"])),
        Key::Many(|config, keys| keys.uint("feed_forward_length", 4 * width(config)?, config)),
        Key::Many(block_count),
        Key::U32("attention.head_count", From::Need(&["num_attention_heads", "n_head"])),
        Key::U32("attention.head_count_kv", From::Need(&["num_attention_heads", "n_head"])),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_epsilon", "layer_norm_eps"])),
        Key::Many(rotary_width),
        Key::FileType,
        Key::Bool("tokenizer.ggml.add_bos_token", From::Flag(false)),
    ],
    ..Family::NEW
};

const PHI3_KEYS: Key = Key::Group(&[
    Key::U32("context_length", From::Need(&["n_positions", "max_position_embeddings"])),
    Key::Many(|config, keys| keys.uint("rope.scaling.original_context_length", original(config)?, config)),
    Key::U32("embedding_length", From::Need(&["hidden_size", "n_embd"])),
    Key::U32("feed_forward_length", From::Need(&["intermediate_size"])),
    Key::Many(block_count),
    Key::U32("attention.head_count", From::Need(&["num_attention_heads", "n_head"])),
    Key::U32("attention.head_count_kv", From::Need(&["num_key_value_heads", "n_head_kv"])),
    Key::F32("attention.layer_norm_rms_epsilon", From::Need(&["rms_norm_eps"])),
    Key::Many(rotary_width),
    Key::F32("rope.freq_base", From::Is(|config| Ok(config.rope_float("rope_theta")?.map(Json::from)))),
    Key::FileType,
    // 0 tells Phi 4 from the others.
    Key::U32("attention.sliding_window", From::Or(&["sliding_window"], 0.0)),
]);

/// Phi 3 and 4.
pub(super) const PHI3: Family = Family {
    classes: &["Phi3ForCausalLM", "Phi4ForCausalLMV"],
    arch: "phi3",
    example: "microsoft/Phi-3-mini-4k-instruct",
    vocab: VocabKind::Phi3,
    tensors: &[DECODER, NORMS, FUSED],
    generated: &[long_rope],
    early_keys: &[Key::Many(attention_factor)],
    keys: &[PHI3_KEYS],
    ..Family::NEW
};

/// Phi 3.5 with experts.
pub(super) const PHIMOE: Family = Family {
    classes: &["PhiMoEForCausalLM", "PhimoeForCausalLM"],
    arch: "phimoe",
    example: "microsoft/Phi-3.5-MoE-instruct",
    vocab: VocabKind::Phi3,
    tensors: &[DECODER, NORMS, ATTENTION, MIXTURE],
    generated: &[long_rope],
    early_keys: &[Key::Many(attention_factor)],
    keys: &[
        PHI3_KEYS,
        Key::U32("expert_used_count", From::Need(&["num_experts_per_tok", "num_experts_per_token"])),
        Key::U32("expert_count", From::Need(&["num_local_experts", "num_experts"])),
    ],
    ..Family::NEW
};

fn width(config: &Config) -> Result<u64, ArchError> {
    config.need_uint(&["hidden_size", "n_embd"])
}

/// Elements of a head that are rotated.
fn rotated(config: &Config) -> Result<u64, ArchError> {
    let part = config.rope_float("partial_rotary_factor")?.unwrap_or(1.0);
    let heads = Num::Of(&["num_attention_heads", "n_head"]).value(config).or_else(|_| HEADS.value(config))?;
    ((part * width(config)? as f64) as u64)
        .checked_div(heads)
        .ok_or_else(|| config.unfit("num_attention_heads", "is 0".into(), "a model has at least one head"))
}

fn rotary_width(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    keys.uint("rope.dimension_count", rotated(config)?, config)
}

fn original(config: &Config) -> Result<u64, ArchError> {
    const NAMES: &[&str] = &["original_max_position_embeddings"];
    match config.rope().get(NAMES[0]).filter(|v| !v.is_null()) {
        Some(v) => config.as_uint(NAMES, v),
        None => config.need_uint(NAMES),
    }
}

/// Whether the model has factors for long contexts.
fn is_long(config: &Config) -> bool {
    config.rope().get("long_factor").and_then(Json::as_array).is_some_and(|f| !f.is_empty())
}

/// How attention is scaled over long contexts.
fn attention_factor(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    if !is_long(config) {
        return Ok(());
    }
    let original = original(config)? as f64;
    let scale = config.need_uint(&["n_positions", "max_position_embeddings"])? as f64 / original;
    let kind = config.rope().get("rope_type").and_then(Json::as_str).unwrap_or_default().to_lowercase();
    let factor = match kind.as_str() {
        "su" | "longrope" if scale > 1.0 => (1.0 + scale.ln() / original.ln()).sqrt(),
        "yarn" if scale > 1.0 => 0.1 * scale.ln() + 1.0,
        "su" | "longrope" | "yarn" => 1.0,
        _ => {
            return Err(config.unfit(
                "rope_scaling",
                format!("is of type {kind:?}"),
                "longrope and yarn are supported",
            ));
        }
    };
    keys.float("rope.scaling.attn_factor", factor);
    Ok(())
}

/// Factors of the frequencies, for long and for short contexts (`Phi3MiniModel.generate_extra_tensors`).
fn long_rope(config: &Config) -> Result<Vec<Generated>, ArchError> {
    if !is_long(config) {
        return Ok(Vec::new());
    }
    let wanted = rotated(config)? / 2;
    let factors = |key: &'static str| {
        let value = config.rope().get(key).cloned().unwrap_or_default();
        let list = value.as_array().ok_or_else(|| config.ill_typed(&[key], &value, "an array of numbers"))?;
        if list.len() as u64 != wanted {
            let problem = format!("has {} factors, but {wanted} are rotated", list.len());
            return Err(config.unfit(key, problem, "take config.json from the original model"));
        }
        list.iter().map(|v| Ok(config.as_float(&[key], v)? as f32)).collect::<Result<Vec<f32>, _>>()
    };
    Ok(vec![
        Generated::vector("rope_factors_long.weight", factors("long_factor")?),
        Generated::vector("rope_factors_short.weight", factors("short_factor")?),
    ])
}
