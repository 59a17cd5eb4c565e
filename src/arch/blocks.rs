//! Rows that many families share.

use super::spec::{Op, Tensor, dropped, tensor};

/// Embeddings, last norm and head under the names of most decoders.
pub(super) const DECODER: &[Tensor] = &[
    tensor("token_embd.*", "model.embed_tokens.*"),
    tensor("output_norm.*", "model.norm.*"),
    tensor("output.*", "lm_head.*"),
];

/// A norm before attention, one before the feed-forward part.
pub(super) const NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_norm.*", "model.layers.{L}.input_layernorm.*"),
    tensor("blk.{L}.ffn_norm.*", "model.layers.{L}.post_attention_layernorm.*"),
];

/// Norms stored as their distance from 1.
pub(super) const DISTANCE_FROM_ONE: &[Op] = &[Op::Add(1.0)];

/// Separate query, key, value and output projections, in the row order of the source.
pub(super) const ATTENTION: &[Tensor] = &[
    tensor("blk.{L}.attn_q.*", "model.layers.{L}.self_attn.q_proj.*"),
    tensor("blk.{L}.attn_k.*", "model.layers.{L}.self_attn.k_proj.*"),
    tensor("blk.{L}.attn_v.*", "model.layers.{L}.self_attn.v_proj.*"),
    tensor("blk.{L}.attn_output.*", "model.layers.{L}.self_attn.o_proj.*"),
];

/// Norms of query and key.
pub(super) const QK_NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_q_norm.*", "model.layers.{L}.self_attn.q_norm.*"),
    tensor("blk.{L}.attn_k_norm.*", "model.layers.{L}.self_attn.k_norm.*"),
];

/// A gated feed-forward part.
pub(super) const GATED_MLP: &[Tensor] = &[
    tensor("blk.{L}.ffn_gate.*", "model.layers.{L}.mlp.gate_proj.*"),
    tensor("blk.{L}.ffn_up.*", "model.layers.{L}.mlp.up_proj.*"),
    tensor("blk.{L}.ffn_down.*", "model.layers.{L}.mlp.down_proj.*"),
];

/// A head that repeats the embeddings.
pub(super) const NO_HEAD: &[Tensor] = &[dropped("lm_head.weight", "the same as the embeddings, which llama.cpp uses")];

/// A feed-forward part without a gate.
pub(super) const PLAIN_MLP: &[Tensor] = &[
    tensor("blk.{L}.ffn_up.*", "model.layers.{L}.mlp.up_proj.*"),
    tensor("blk.{L}.ffn_down.*", "model.layers.{L}.mlp.down_proj.*"),
];

/// Fully connected layers under their older names.
pub(super) const FC_MLP: &[Tensor] = &[
    tensor("blk.{L}.ffn_up.*", "model.layers.{L}.mlp.fc1.*"),
    tensor("blk.{L}.ffn_down.*", "model.layers.{L}.mlp.fc2.*"),
];
