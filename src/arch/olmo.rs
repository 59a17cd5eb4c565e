//! OLMo, OLMo 2 and 3, and OLMoE.

use super::blocks::{ATTENTION, DECODER, GATED_MLP, NORMS, QK_NORMS};
use super::config::Config;
use super::error::ArchError;
use super::keys::COMMON;
use super::llama::ROTARY_ATTENTION;
use super::qwen::MIXTURE;
use super::spec::{Family, From, Key, Keys, Tensor, tensor};
use crate::gguf::{Array, Value};

/// OLMo: norms without weights.
pub(super) const OLMO: Family = Family {
    classes: &["OlmoForCausalLM", "OLMoForCausalLM"],
    arch: "olmo",
    example: "allenai/OLMo-1.7-7B-hf",
    tensors: &[DECODER, ROTARY_ATTENTION, GATED_MLP],
    keys: &[
        COMMON,
        Key::F32("attention.layer_norm_epsilon", From::Lit(1e-5)),
        Key::F32("attention.clamp_kqv", From::Any(&["clip_qkv"])),
    ],
    ..Family::NEW
};

const NORMS_AFTER: &[Tensor] = &[
    tensor("blk.{L}.post_attention_norm.*", "model.layers.{L}.post_attention_layernorm.*"),
    tensor("blk.{L}.post_ffw_norm.*", "model.layers.{L}.post_feedforward_layernorm.*"),
];

/// OLMo 2 and 3.
pub(super) const OLMO2: Family = Family {
    classes: &["Olmo2ForCausalLM", "Olmo3ForCausalLM"],
    arch: "olmo2",
    example: "allenai/OLMo-2-1124-7B-Instruct",
    tensors: &[DECODER, ATTENTION, QK_NORMS, NORMS_AFTER, GATED_MLP],
    keys: &[COMMON, Key::Many(sliding)],
    ..Family::NEW
};

fn sliding(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    let Some(window) = config.uint(&["sliding_window"])? else { return Ok(()) };
    keys.uint("attention.sliding_window", window, config)?;
    let pattern = match config.get(&["layer_types"]).and_then(|t| t.as_array()) {
        Some(types) => types.iter().map(|t| t == "sliding_attention").collect(),
        None => (0..config.blocks()?).map(|i| (i + 1) % 4 != 0).collect(),
    };
    keys.set("attention.sliding_window_pattern", Value::Array(Array::Bool(pattern)));
    Ok(())
}

/// OLMoE.
pub(super) const OLMOE: Family = Family {
    classes: &["OlmoeForCausalLM"],
    arch: "olmoe",
    example: "allenai/OLMoE-1B-7B-0924",
    tensors: &[DECODER, NORMS, ATTENTION, QK_NORMS, MIXTURE],
    keys: &[COMMON, Key::F32("attention.layer_norm_rms_epsilon", From::Lit(1e-5))],
    ..Family::NEW
};
