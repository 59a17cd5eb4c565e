//! Decoders that need shared rows and a few keys: StarCoder 2, Seed-OSS, SmolLM 3, Arcee, StableLM, Nemotron.

use super::blocks::{ATTENTION, DECODER, DISTANCE_FROM_ONE, FC_MLP, GATED_MLP, NORMS, PLAIN_MLP};
use super::config::Config;
use super::error::ArchError;
use super::keys::{COMMON, block_count};
use super::llama::{self, ROTARY_ATTENTION};
use super::spec::{Family, From, HEADS, Key, Keys, Num, Tensor, tensor};
use crate::gguf::Value;
use crate::tokenizer::VocabKind;

/// StarCoder 2.
pub(super) const STARCODER2: Family = Family {
    classes: &["Starcoder2ForCausalLM"],
    arch: "starcoder2",
    example: "bigcode/starcoder2-3b",
    tensors: &[DECODER, NORMS, ATTENTION, STARCODER2_MLP, FC_MLP],
    keys: &[COMMON],
    ..Family::NEW
};

const STARCODER2_MLP: &[Tensor] = &[
    tensor("blk.{L}.ffn_up.*", "model.layers.{L}.mlp.c_fc.*"),
    tensor("blk.{L}.ffn_down.*", "model.layers.{L}.mlp.c_proj.*"),
];

/// Seed-OSS.
pub(super) const SEED_OSS: Family = Family {
    classes: &["SeedOssForCausalLM"],
    arch: "seed_oss",
    example: "ByteDance-Seed/Seed-OSS-36B-Instruct",
    tensors: &[DECODER, SEED_NORMS, ATTENTION, GATED_MLP],
    keys: &[COMMON],
    ..Family::NEW
};

const SEED_NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_norm.*", "model.layers.{L}.input_layernorm.*"),
    tensor("blk.{L}.post_attention_norm.*", "model.layers.{L}.post_attention_layernorm.*"),
];

/// SmolLM 3: Llama with some layers without RoPE.
pub(super) const SMOLLM3: Family = Family {
    classes: &["SmolLM3ForCausalLM"],
    arch: "smollm3",
    example: "HuggingFaceTB/SmolLM3-3B",
    vocab: VocabKind::Llama,
    tensors: &[DECODER, NORMS, ROTARY_ATTENTION, GATED_MLP],
    generated: &[llama::llama3_frequencies],
    keys: &[llama::KEYS],
    ..Family::NEW
};

/// Arcee: Llama without a gate.
pub(super) const ARCEE: Family = Family {
    classes: &["ArceeForCausalLM"],
    arch: "arcee",
    example: "arcee-ai/AFM-4.5B",
    vocab: VocabKind::Llama,
    tensors: &[DECODER, NORMS, ROTARY_ATTENTION, PLAIN_MLP],
    generated: &[llama::llama3_frequencies],
    keys: &[llama::KEYS, Key::Pooling],
    ..Family::NEW
};

/// Norms of query and key, a tensor for each head.
const HEAD_NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_q_norm.weight", "model.layers.{L}.self_attn.q_layernorm.norms.{E}.weight")
        .stacked("query norms", HEADS),
    tensor("blk.{L}.attn_k_norm.weight", "model.layers.{L}.self_attn.k_layernorm.norms.{E}.weight")
        .stacked("key norms", Num::Of(&["num_key_value_heads"])),
];

/// StableLM.
pub(super) const STABLELM: Family = Family {
    classes: &["StableLmForCausalLM", "StableLMEpochForCausalLM", "LlavaStableLMEpochForCausalLM"],
    arch: "stablelm",
    example: "stabilityai/stablelm-2-1_6b",
    tensors: &[DECODER, NORMS, ATTENTION, GATED_MLP, HEAD_NORMS],
    keys: &[
        Key::U32("context_length", From::Need(&["max_position_embeddings"])),
        Key::U32("embedding_length", From::Need(&["hidden_size"])),
        Key::Many(block_count),
        Key::U32("feed_forward_length", From::Need(&["intermediate_size"])),
        Key::Many(|config, keys| {
            let part = config.rope_float("partial_rotary_factor")?.unwrap_or(0.25);
            let head = config.need_uint(&["hidden_size"])?.checked_div(HEADS.value(config)?).unwrap_or(0);
            keys.uint("rope.dimension_count", (part * head as f64) as u64, config)
        }),
        Key::U32("attention.head_count", From::Need(&["num_attention_heads"])),
        Key::U32("attention.head_count_kv", From::Need(&["num_key_value_heads"])),
        Key::Bool(
            "use_parallel_residual",
            From::Is(|c| Ok(Some(c.get(&["use_parallel_residual"]).cloned().unwrap_or(true.into())))),
        ),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_eps", "norm_eps"])),
        Key::FileType,
    ],
    ..Family::NEW
};

/// Norm weights are stored as their distance from 1, norm biases are not.
const NEMOTRON_NORMS: &[Tensor] = &[
    tensor("output_norm.weight", "model.norm.weight").ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.attn_norm.weight", "model.layers.{L}.input_layernorm.weight").ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.ffn_norm.weight", "model.layers.{L}.post_attention_layernorm.weight").ops(DISTANCE_FROM_ONE),
];

/// Nemotron (Minitron).
pub(super) const NEMOTRON: Family = Family {
    classes: &["NemotronForCausalLM"],
    arch: "nemotron",
    example: "nvidia/Minitron-4B-Base",
    vocab: VocabKind::SpmOrBpe,
    tensors: &[NEMOTRON_NORMS, DECODER, NORMS, ATTENTION, PLAIN_MLP],
    keys: &[
        COMMON,
        Key::U32("vocab_size", From::Need(&["vocab_size"])),
        Key::F32(
            "attention.layer_norm_epsilon",
            From::Need(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"]),
        ),
        Key::Many(nemotron_rope),
    ],
    late_keys: &[
        Key::U32("tokenizer.ggml.padding_token_id", From::Lit(0.0)),
        Key::U32("tokenizer.ggml.unknown_token_id", From::Lit(1.0)),
    ],
    ..Family::NEW
};

fn nemotron_rope(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    let part = config.rope_float("partial_rotary_factor")?.unwrap_or(0.5);
    let rotated = (part * config.need_uint(&["hidden_size", "n_embd"])? as f64) as u64;
    keys.uint("rope.dimension_count", rotated.checked_div(HEADS.value(config)?).unwrap_or(0), config)?;
    let factor = match config.float(&["factor"])?.filter(|&f| f != 0.0) {
        Some(factor) => Some(factor),
        None => config.rope_float("factor")?,
    };
    keys.set("rope.scaling.type", Value::string(if factor.is_some() { "linear" } else { "none" }));
    if let Some(factor) = factor {
        keys.float("rope.scaling.factor", factor);
    }
    Ok(())
}
