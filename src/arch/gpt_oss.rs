//! gpt-oss: experts in MXFP4 or 16 bits, gate and up interleaved row by row, attention sinks.

use super::blocks::{ATTENTION, DECODER};
use super::keys::COMMON;
use super::spec::{Family, From, Key, Op, Tensor, tensor};

/// Gate rows lie between up rows; experts are stored transposed.
const GATE: &[Op] = &[Op::Transpose, Op::Every { start: 0, step: 2 }];
const UP: &[Op] = &[Op::Transpose, Op::Every { start: 1, step: 2 }];

const BLOCK: &[Tensor] = &[
    tensor("blk.{L}.attn_norm.weight", "model.layers.{L}.input_layernorm.weight"),
    tensor("blk.{L}.post_attention_norm.weight", "model.layers.{L}.post_attention_layernorm.weight"),
    tensor("blk.{L}.attn_sinks.weight", "model.layers.{L}.self_attn.sinks"),
    tensor("blk.{L}.ffn_gate_inp.*", "model.layers.{L}.mlp.router.*"),
];

const EXPERTS: &[Tensor] = &[
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.mlp.experts.down_proj").ops(&[Op::Transpose]),
    tensor("blk.{L}.ffn_down_exps.bias", "model.layers.{L}.mlp.experts.down_proj_bias"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.mlp.experts.gate_up_proj").ops(GATE),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.mlp.experts.gate_up_proj").ops(UP),
    tensor("blk.{L}.ffn_gate_exps.bias", "model.layers.{L}.mlp.experts.gate_up_proj_bias")
        .ops(&[Op::EveryColumn { start: 0, step: 2 }]),
    tensor("blk.{L}.ffn_up_exps.bias", "model.layers.{L}.mlp.experts.gate_up_proj_bias")
        .ops(&[Op::EveryColumn { start: 1, step: 2 }]),
];

/// gpt-oss.
pub(super) const GPT_OSS: Family = Family {
    classes: &["GptOssForCausalLM"],
    arch: "gpt-oss",
    example: "openai/gpt-oss-20b",
    tensors: &[DECODER, BLOCK, ATTENTION, EXPERTS],
    keys: &[
        COMMON,
        Key::U32("attention.sliding_window", From::Need(&["sliding_window"])),
        Key::U32("expert_feed_forward_length", From::Need(&["intermediate_size"])),
    ],
    ..Family::NEW
};
