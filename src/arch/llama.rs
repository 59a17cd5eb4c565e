//! Llama 1 to 3, Mistral and Mixtral, and what is built like them.
//!
//! llama.cpp rotates neighbouring elements where transformers rotates halves, so the rows of the query and key
//! projections are in another order.

use super::blocks::{DECODER, GATED_MLP, NORMS};
use super::config::Config;
use super::error::ArchError;
use super::keys::COMMON;
use super::spec::{Family, From, Generated, HEADS, KV_HEADS, Key, Num, Op, Tensor, tensor};
use crate::tokenizer::VocabKind;

const EXPERTS: Num = Num::Of(&["num_local_experts"]);

/// Attention whose query and key rows are in Llama's rotary order.
pub(super) const ROTARY_ATTENTION: &[Tensor] = &[
    tensor("blk.{L}.attn_q.*", "model.layers.{L}.self_attn.q_proj.*").ops(&[Op::Rope(HEADS)]),
    tensor("blk.{L}.attn_k.*", "model.layers.{L}.self_attn.k_proj.*").ops(&[Op::Rope(KV_HEADS)]),
    tensor("blk.{L}.attn_v.*", "model.layers.{L}.self_attn.v_proj.*"),
    tensor("blk.{L}.attn_output.*", "model.layers.{L}.self_attn.o_proj.*"),
];

/// Mixtral's experts, one tensor each.
const MIXTURE: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate_inp.weight", "model.layers.{L}.block_sparse_moe.gate.weight"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.block_sparse_moe.experts.{E}.w1.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.block_sparse_moe.experts.{E}.w2.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.block_sparse_moe.experts.{E}.w3.weight")
        .stacked("experts", EXPERTS),
];

/// Keys of Llama and what is built like it.
pub(super) const KEYS: Key = Key::Group(&[
    COMMON,
    Key::U32("vocab_size", From::Need(&["vocab_size"])),
    Key::Many(|config, keys| keys.uint("rope.dimension_count", config.head_dim()?, config)),
]);

/// The family.
pub(super) const LLAMA: Family = Family {
    classes: &[
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "LlamaModel",
        "IQuestCoderForCausalLM",
        "LlavaForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    ],
    arch: "llama",
    example: "meta-llama/Llama-3.2-1B-Instruct",
    vocab: VocabKind::Llama,
    prefixes: &[("LlamaModel", "model.")],
    tensors: &[DECODER, NORMS, ROTARY_ATTENTION, GATED_MLP, MIXTURE],
    generated: &[llama3_frequencies],
    keys: &[KEYS],
    ..Family::NEW
};

/// Llama 3's RoPE scaling as one factor per frequency (`LlamaModel.generate_extra_tensors`).
pub(super) fn llama3_frequencies(config: &Config) -> Result<Vec<Generated>, ArchError> {
    let rope = config.rope_full();
    if !rope.get("rope_type").and_then(|t| t.as_str()).is_some_and(|t| t.eq_ignore_ascii_case("llama3")) {
        return Ok(Vec::new());
    }
    let number = |name: &str, default: f64| Ok(config.rope_float(name)?.unwrap_or(default));
    let base = number("rope_theta", 10_000.0)?;
    let factor = number("factor", 8.0)?;
    let low = number("low_freq_factor", 1.0)?;
    let high = number("high_freq_factor", 4.0)?;
    let original = number("original_max_position_embeddings", 8192.0)?;
    let dim = config.head_dim()?;
    if dim > 1 << 16 {
        return Err(config.unfit("head_dim", format!("is {dim}"), "no model has such heads"));
    }
    let factors = (0..dim)
        .step_by(2)
        .map(|i| {
            // torch keeps the frequencies, and so all that follows from them, in f32.
            let exponent = i as f32 / dim as f32;
            let frequency = 1.0 / (base as f32).powf(exponent);
            let wavelength = (2.0 * std::f64::consts::PI) as f32 / frequency;
            if wavelength < (original / high) as f32 {
                1.0
            } else if wavelength > (original / low) as f32 {
                factor as f32
            } else {
                let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                1.0 / ((1.0 - smooth) / factor as f32 + smooth)
            }
        })
        .collect();
    Ok(vec![Generated::vector("rope_freqs.weight", factors)])
}
