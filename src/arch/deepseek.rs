//! DeepSeek V2, V2-Lite, V3 and R1: latent attention, whose key and value parts llama.cpp has apart, and experts.

use super::blocks::{DECODER, GATED_MLP, NORMS};
use super::config::Config;
use super::error::ArchError;
use super::keys::COMMON;
use super::spec::{Family, Key, Keys, Num, Op, Tensor, When, dropped, tensor};
use crate::gguf::Value;

const EXPERTS: Num = Num::Of(&["n_routed_experts"]);
const KV_HEADS: Num = Num::Of(&["num_key_value_heads"]);
const KEY_WIDTH: Num = Num::Of(&["qk_nope_head_dim"]);
const VALUE_WIDTH: Num = Num::Of(&["v_head_dim"]);

/// The key part of each head, transposed: llama.cpp absorbs it into the query.
const KEY_PART: &[Op] = &[Op::Heads(KV_HEADS), Op::Rows { start: Num::Lit(0), count: KEY_WIDTH }, Op::Transpose];
const VALUE_PART: &[Op] = &[Op::Heads(KV_HEADS), Op::Rows { start: KEY_WIDTH, count: VALUE_WIDTH }];

const LATENT_ATTENTION: &[Tensor] = &[
    tensor("blk.{L}.attn_q.weight", "model.layers.{L}.self_attn.q_proj.weight"),
    tensor("blk.{L}.attn_q_a.weight", "model.layers.{L}.self_attn.q_a_proj.weight"),
    tensor("blk.{L}.attn_q_b.weight", "model.layers.{L}.self_attn.q_b_proj.weight"),
    tensor("blk.{L}.attn_q_a_norm.weight", "model.layers.{L}.self_attn.q_a_layernorm.weight"),
    tensor("blk.{L}.attn_kv_a_mqa.weight", "model.layers.{L}.self_attn.kv_a_proj_with_mqa.weight"),
    tensor("blk.{L}.attn_kv_a_norm.weight", "model.layers.{L}.self_attn.kv_a_layernorm.weight"),
    tensor("blk.{L}.attn_k_b.weight", "model.layers.{L}.self_attn.kv_b_proj.weight").ops(KEY_PART),
    tensor("blk.{L}.attn_v_b.weight", "model.layers.{L}.self_attn.kv_b_proj.weight").ops(VALUE_PART),
    tensor("blk.{L}.attn_output.weight", "model.layers.{L}.self_attn.o_proj.weight"),
];

const MIXTURE: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate_inp.weight", "model.layers.{L}.mlp.gate.weight"),
    tensor("blk.{L}.exp_probs_b.bias", "model.layers.{L}.mlp.gate.e_score_correction.bias"),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.mlp.experts.{E}.down_proj.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.mlp.experts.{E}.gate_proj.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.mlp.experts.{E}.up_proj.weight").stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_gate_shexp.weight", "model.layers.{L}.mlp.shared_experts.gate_proj.weight"),
    tensor("blk.{L}.ffn_up_shexp.weight", "model.layers.{L}.mlp.shared_experts.up_proj.weight"),
    tensor("blk.{L}.ffn_down_shexp.weight", "model.layers.{L}.mlp.shared_experts.down_proj.weight"),
];

const TIED: &[Tensor] = &[dropped("lm_head.weight", "the same as the embeddings, which llama.cpp uses")
    .when(When::Model(|c| c.truthy(&["tie_word_embeddings"])))];

/// DeepSeek V2 and V3.
pub(super) const DEEPSEEK2: Family = Family {
    classes: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "YoutuForCausalLM"],
    arch: "deepseek2",
    example: "deepseek-ai/DeepSeek-V2-Lite",
    tensors: &[TIED, DECODER, NORMS, LATENT_ATTENTION, GATED_MLP, MIXTURE],
    extra_blocks: Some("a layer that predicts a further token, which llama.cpp does not use"),
    keys: &[COMMON, Key::Many(latent_keys)],
    restored: widths,
    ..Family::NEW
};

/// The widths of a head's parts; key and value have as many heads as the query.
fn widths(key: &dyn Fn(&str) -> Option<u64>) -> Vec<(&'static str, Option<u64>)> {
    let rotated = key("rope.dimension_count");
    let keys = key("attention.key_length_mla").zip(rotated).and_then(|(all, rotated)| all.checked_sub(rotated));
    vec![
        ("num_key_value_heads", key("attention.head_count")),
        ("qk_nope_head_dim", keys),
        ("v_head_dim", key("attention.value_length_mla")),
    ]
}

fn latent_keys(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    // Absorbed latent attention has one key and value head.
    keys.uint("attention.head_count_kv", 1, config)?;
    if config.get(&["rms_norm_eps", "norm_eps"]).is_none() {
        keys.float("attention.layer_norm_rms_epsilon", 1e-6);
    }
    let routed = config.uint(&["n_routed_experts"])?;
    let dense = match (config.uint(&["first_k_dense_replace"])?, routed) {
        (Some(n), _) => n,
        (None, Some(_)) => 0,
        (None, None) => config.blocks()?,
    };
    keys.uint("leading_dense_block_count", dense, config)?;
    keys.uint("vocab_size", config.need_uint(&["vocab_size"])?, config)?;
    if let Some(rank) = config.uint(&["q_lora_rank"])? {
        keys.uint("attention.q_lora_rank", rank, config)?;
    }
    let latent = config.uint(&["kv_lora_rank"])?.unwrap_or(512);
    let rotated = config.need_uint(&["qk_rope_head_dim"])?;
    keys.uint("attention.kv_lora_rank", latent, config)?;
    keys.uint("attention.key_length", latent + rotated, config)?;
    keys.uint("attention.value_length", latent, config)?;
    keys.uint("attention.key_length_mla", config.need_uint(&["qk_nope_head_dim"])? + rotated, config)?;
    keys.uint("attention.value_length_mla", config.need_uint(&["v_head_dim"])?, config)?;
    let width = config.need_uint(&["moe_intermediate_size", "intermediate_size"])?;
    keys.uint("expert_feed_forward_length", width, config)?;
    if let Some(n) = routed {
        keys.uint("expert_count", n, config)?;
    }
    keys.uint("expert_shared_count", config.uint(&["n_shared_experts"])?.unwrap_or(0), config)?;
    if let Some(scale) = config.float(&["routed_scaling_factor"])? {
        keys.float("expert_weights_scale", scale);
    }
    if config.truthy(&["norm_topk_prob"]) {
        keys.set("expert_weights_norm", Value::Bool(true));
    }
    keys.uint("rope.dimension_count", rotated, config)?;
    if let Some(mscale) = config.rope().get("mscale_all_dim").filter(|v| !v.is_null()) {
        keys.float("rope.scaling.yarn_log_multiplier", 0.1 * config.as_float(&["mscale_all_dim"], mscale)?);
    }
    Ok(())
}
