//! Llama 4, the text part: experts of a layer in one tensor, stored transposed, in every n-th layer.

use super::blocks::{ATTENTION, DECODER, NORMS};
use super::config::Config;
use super::error::ArchError;
use super::keys::COMMON;
use super::llama;
use super::spec::{Family, From, Key, Keys, Op, Tensor, tensor};

const GATE: &[Op] = &[Op::Transpose, Op::Part { index: 0, of: 2 }];
const UP: &[Op] = &[Op::Transpose, Op::Part { index: 1, of: 2 }];

const FEED_FORWARD: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate.weight", "model.layers.{L}.feed_forward.gate_proj.weight"),
    tensor("blk.{L}.ffn_up.weight", "model.layers.{L}.feed_forward.up_proj.weight"),
    tensor("blk.{L}.ffn_down.weight", "model.layers.{L}.feed_forward.down_proj.weight"),
    tensor("blk.{L}.ffn_gate_inp.weight", "model.layers.{L}.feed_forward.router.weight"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.feed_forward.experts.gate_up_proj").ops(GATE),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.feed_forward.experts.gate_up_proj").ops(UP),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.feed_forward.experts.down_proj").ops(&[Op::Transpose]),
    tensor("blk.{L}.ffn_gate_shexp.weight", "model.layers.{L}.feed_forward.shared_expert.gate_proj.weight"),
    tensor("blk.{L}.ffn_up_shexp.weight", "model.layers.{L}.feed_forward.shared_expert.up_proj.weight"),
    tensor("blk.{L}.ffn_down_shexp.weight", "model.layers.{L}.feed_forward.shared_expert.down_proj.weight"),
];

/// Llama 4.
pub(super) const LLAMA4: Family = Family {
    classes: &["Llama4ForConditionalGeneration", "Llama4ForCausalLM"],
    arch: "llama4",
    example: "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    tensors: &[DECODER, NORMS, ATTENTION, FEED_FORWARD],
    generated: &[llama::llama3_frequencies],
    keys: &[
        COMMON,
        // Its intermediate_size is that of the experts.
        Key::U32("feed_forward_length", From::Need(&["intermediate_size_mlp"])),
        Key::U32("vocab_size", From::Need(&["vocab_size"])),
        Key::Many(|config, keys| keys.uint("rope.dimension_count", config.head_dim()?, config)),
        Key::U32("interleave_moe_layer_step", From::Need(&["interleave_moe_layer_step"])),
        Key::U32("expert_feed_forward_length", From::Need(&["intermediate_size"])),
        Key::Many(no_window),
    ],
    ..Family::NEW
};

/// Models whose layers all have full attention (MobileLLM).
fn no_window(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    match config.get(&["layer_types"]).and_then(|t| t.as_array()) {
        Some(types) if types.iter().all(|t| t == "full_attention") => keys.uint("attention.sliding_window", 0, config),
        _ => Ok(()),
    }
}
