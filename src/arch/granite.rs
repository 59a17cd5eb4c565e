//! Granite, dense and with experts: Llama with four scales.

use super::blocks::{DECODER, GATED_MLP, NORMS};
use super::config::Config;
use super::error::ArchError;
use super::keys::COMMON;
use super::llama::{self, ROTARY_ATTENTION};
use super::spec::{Family, From, HEADS, Key, Keys, Op, Tensor, When, tensor};
use crate::tokenizer::VocabKind;

const KEYS: Key = Key::Group(&[
    COMMON,
    // Granite has no head_dim of its own.
    Key::Many(|_, keys| {
        keys.remove("attention.key_length");
        keys.remove("attention.value_length");
        Ok(())
    }),
    Key::U32("vocab_size", From::Need(&["vocab_size"])),
    Key::Many(|config, keys| {
        let head = config.need_uint(&["hidden_size"])?.checked_div(HEADS.value(config)?).unwrap_or(0);
        keys.uint("rope.dimension_count", head, config)
    }),
    Key::Many(scales),
]);

fn scales(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    for (key, name) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        if let Some(scale) = config.float(&[name])?.filter(|&s| s != 0.0) {
            keys.float(key, scale);
        }
    }
    Ok(())
}

/// Granite 3.
pub(super) const GRANITE: Family = Family {
    classes: &["GraniteForCausalLM"],
    arch: "granite",
    example: "ibm-granite/granite-3.3-2b-instruct",
    vocab: VocabKind::Llama,
    tensors: &[DECODER, NORMS, ROTARY_ATTENTION, GATED_MLP],
    generated: &[llama::llama3_frequencies],
    keys: &[KEYS],
    ..Family::NEW
};

const HAS_EXPERTS: When = When::Model(|c| c.truthy(&["num_local_experts"]));
const GATE: &[Op] = &[Op::Part { index: 0, of: 2 }];
const UP: &[Op] = &[Op::Part { index: 1, of: 2 }];

/// Experts of a layer in one tensor, gate above up; a shared expert of the same kind, which is the whole
/// feed-forward part of a model without experts.
const MIXTURE: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate_inp.weight", "model.layers.{L}.block_sparse_moe.router.layer.weight"),
    tensor("blk.{L}.ffn_gate_exps.weight", "model.layers.{L}.block_sparse_moe.input_linear.weight").ops(GATE),
    tensor("blk.{L}.ffn_up_exps.weight", "model.layers.{L}.block_sparse_moe.input_linear.weight").ops(UP),
    tensor("blk.{L}.ffn_down_exps.weight", "model.layers.{L}.block_sparse_moe.output_linear.weight"),
    tensor("blk.{L}.ffn_gate_shexp.weight", "model.layers.{L}.shared_mlp.input_linear.weight")
        .ops(GATE)
        .when(HAS_EXPERTS),
    tensor("blk.{L}.ffn_up_shexp.weight", "model.layers.{L}.shared_mlp.input_linear.weight").ops(UP).when(HAS_EXPERTS),
    tensor("blk.{L}.ffn_down_shexp.weight", "model.layers.{L}.shared_mlp.output_linear.weight").when(HAS_EXPERTS),
    tensor("blk.{L}.ffn_gate.weight", "model.layers.{L}.shared_mlp.input_linear.weight").ops(GATE),
    tensor("blk.{L}.ffn_up.weight", "model.layers.{L}.shared_mlp.input_linear.weight").ops(UP),
    tensor("blk.{L}.ffn_down.weight", "model.layers.{L}.shared_mlp.output_linear.weight"),
];

/// Granite 3 with experts.
pub(super) const GRANITE_MOE: Family = Family {
    classes: &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"],
    arch: "granitemoe",
    example: "ibm-granite/granite-3.1-3b-a800m-instruct",
    vocab: VocabKind::Llama,
    tensors: &[DECODER, NORMS, ROTARY_ATTENTION, MIXTURE],
    generated: &[llama::llama3_frequencies],
    keys: &[
        KEYS,
        Key::Many(|config, keys| match config.uint(&["shared_intermediate_size"])? {
            None | Some(0) => Ok(()),
            Some(n) => keys.uint("expert_shared_feed_forward_length", n, config),
        }),
    ],
    ..Family::NEW
};
