//! Command-R and Command-R7B (Cohere 1 and 2): one norm for both parts of a block, a head that is the embeddings.

use super::blocks::{ATTENTION, GATED_MLP, NO_HEAD, QK_NORMS};
use super::keys::COMMON;
use super::spec::{Family, From, HEADS, Key, Tensor, tensor, zero};

const ENDS: &[Tensor] = &[
    tensor("token_embd.weight", "model.embed_tokens.weight"),
    tensor("output_norm.weight", "model.norm.weight"),
    tensor("blk.{L}.attn_norm.weight", "model.layers.{L}.input_layernorm.weight"),
];

/// Command-R.
pub(super) const COMMAND_R: Family = Family {
    classes: &["CohereForCausalLM"],
    arch: "command-r",
    example: "CohereLabs/c4ai-command-r-v01",
    tensors: &[ENDS, NO_HEAD, ATTENTION, QK_NORMS, GATED_MLP],
    keys: &[
        COMMON,
        // max_position_embeddings is smaller than what the model was trained for.
        Key::U32("context_length", From::Need(&["model_max_length", "max_position_embeddings"])),
        Key::F32("logit_scale", From::Need(&["logit_scale"])),
        Key::Str("rope.scaling.type", From::Text("none")),
    ],
    ..Family::NEW
};

/// Command-R7B.
pub(super) const COHERE2: Family = Family {
    classes: &["Cohere2ForCausalLM"],
    arch: "cohere2",
    example: "CohereLabs/c4ai-command-r7b-12-2024",
    tensors: &[&[zero("*.bias", "all zeros")], ENDS, NO_HEAD, ATTENTION, GATED_MLP],
    keys: &[
        COMMON,
        Key::F32("logit_scale", From::Need(&["logit_scale"])),
        Key::U32("attention.sliding_window", From::Need(&["sliding_window"])),
        Key::U32("vocab_size", From::Need(&["vocab_size"])),
        Key::Many(|config, keys| {
            let part = config.float(&["rotary_pct"])?.unwrap_or(1.0);
            let head = config.need_uint(&["hidden_size"])?.checked_div(HEADS.value(config)?).unwrap_or(0);
            keys.uint("rope.dimension_count", (part * head as f64) as u64, config)
        }),
        Key::Str("rope.scaling.type", From::Text("none")),
    ],
    ..Family::NEW
};
