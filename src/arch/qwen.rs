//! Qwen 2 and 3, dense and with experts.

use super::blocks::{ATTENTION, DECODER, GATED_MLP, NORMS, QK_NORMS};
use super::keys::COMMON;
use super::spec::{Family, From, Key, Num, Op, Tensor, tensor};
use crate::tokenizer::VocabKind;

const EXPERTS: Num = Num::Of(&["num_local_experts", "num_experts"]);

/// A dense decoder.
const DENSE: &[&[Tensor]] = &[DECODER, NORMS, ATTENTION, GATED_MLP];

/// Experts, one tensor each, or all of a layer in one tensor (transformers v5).
pub(super) const MIXTURE: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate_inp.weight", "model.layers.{L}.mlp.gate.weight"),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.mlp.experts.{E}.down_proj.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.mlp.experts.{E}.gate_proj.weight")
        .stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.mlp.experts.{E}.up_proj.weight").stacked("experts", EXPERTS),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.mlp.experts.down_proj"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.mlp.experts.gate_up_proj")
        .ops(&[Op::Part { index: 0, of: 2 }]),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.mlp.experts.gate_up_proj")
        .ops(&[Op::Part { index: 1, of: 2 }]),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.mlp.experts.down_proj.weight"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.mlp.experts.gate_up_proj.weight")
        .ops(&[Op::Part { index: 0, of: 2 }]),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.mlp.experts.gate_up_proj.weight")
        .ops(&[Op::Part { index: 1, of: 2 }]),
];

/// The expert that sees every token.
pub(super) const SHARED_EXPERT: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate_inp_shexp.weight", "model.layers.{L}.mlp.shared_expert_gate.weight"),
    tensor("blk.{L}.ffn_gate_shexp.weight", "model.layers.{L}.mlp.shared_expert.gate_proj.weight"),
    tensor("blk.{L}.ffn_up_shexp.weight", "model.layers.{L}.mlp.shared_expert.up_proj.weight"),
    tensor("blk.{L}.ffn_down_shexp.weight", "model.layers.{L}.mlp.shared_expert.down_proj.weight"),
];

/// Widths of the experts.
pub(super) const EXPERT_KEYS: Key = Key::Group(&[
    Key::U32("expert_feed_forward_length", From::Any(&["moe_intermediate_size"])),
    Key::U32("expert_shared_feed_forward_length", From::Any(&["shared_expert_intermediate_size"])),
]);

/// Qwen 2 and 2.5.
pub(super) const QWEN2: Family = Family {
    classes: &[
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "Qwen2AudioForConditionalGeneration",
        "KORMoForCausalLM",
        "AudioFlamingo3ForConditionalGeneration",
        "DotsOCRForCausalLM",
    ],
    arch: "qwen2",
    example: "Qwen/Qwen2.5-7B-Instruct",
    vocab: VocabKind::SpmOrBpe,
    prefixes: &[("Qwen2Model", "model.")],
    tensors: DENSE,
    keys: &[COMMON, Key::Pooling],
    ..Family::NEW
};

/// Qwen 1.5 and 2 with experts.
pub(super) const QWEN2_MOE: Family = Family {
    classes: &["Qwen2MoeForCausalLM"],
    arch: "qwen2moe",
    example: "Qwen/Qwen1.5-MoE-A2.7B",
    tensors: &[DECODER, NORMS, ATTENTION, GATED_MLP, MIXTURE, SHARED_EXPERT],
    keys: &[COMMON, EXPERT_KEYS],
    ..Family::NEW
};

/// Qwen 3.
pub(super) const QWEN3: Family = Family {
    classes: &["Qwen3ForCausalLM", "Qwen3Model"],
    arch: "qwen3",
    example: "Qwen/Qwen3-8B",
    vocab: VocabKind::SpmOrBpe,
    tensors: &[DECODER, NORMS, ATTENTION, QK_NORMS, GATED_MLP],
    keys: &[COMMON, Key::Pooling],
    ..Family::NEW
};

/// Qwen 3 with experts.
pub(super) const QWEN3_MOE: Family = Family {
    classes: &["Qwen3MoeForCausalLM"],
    arch: "qwen3moe",
    example: "Qwen/Qwen3-30B-A3B",
    tensors: &[DECODER, NORMS, ATTENTION, QK_NORMS, GATED_MLP, MIXTURE],
    keys: &[COMMON, EXPERT_KEYS],
    ..Family::NEW
};
