//! T5, mT5 and UMT5: encoder and decoder with relative positions; one table of embeddings, saved up to three times.

use super::keys::block_count;
use super::spec::{Family, From, Key, Tensor, tensor};
use crate::tokenizer::VocabKind;

const SHARED: &[Tensor] = &[
    tensor("token_embd.weight", "shared.weight").or_duplicate(),
    tensor("token_embd.weight", "encoder.embed_tokens.weight").or_duplicate(),
    tensor("token_embd.weight", "decoder.embed_tokens.weight").or_duplicate(),
    tensor("output.weight", "lm_head.weight"),
    tensor("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
    tensor("dec.output_norm.weight", "decoder.final_layer_norm.weight"),
];

const ENCODER: &[Tensor] = &[
    tensor("enc.blk.{L}.attn_norm.weight", "encoder.block.{L}.layer.0.layer_norm.weight"),
    tensor("enc.blk.{L}.attn_q.weight", "encoder.block.{L}.layer.0.SelfAttention.q.weight"),
    tensor("enc.blk.{L}.attn_k.weight", "encoder.block.{L}.layer.0.SelfAttention.k.weight"),
    tensor("enc.blk.{L}.attn_v.weight", "encoder.block.{L}.layer.0.SelfAttention.v.weight"),
    tensor("enc.blk.{L}.attn_o.weight", "encoder.block.{L}.layer.0.SelfAttention.o.weight"),
    tensor("enc.blk.{L}.attn_rel_b.weight", "encoder.block.{L}.layer.0.SelfAttention.relative_attention_bias.weight"),
    tensor("enc.blk.{L}.ffn_norm.weight", "encoder.block.{L}.layer.1.layer_norm.weight"),
    tensor("enc.blk.{L}.ffn_up.weight", "encoder.block.{L}.layer.1.DenseReluDense.wi.weight"),
    tensor("enc.blk.{L}.ffn_gate.weight", "encoder.block.{L}.layer.1.DenseReluDense.wi_0.weight"),
    tensor("enc.blk.{L}.ffn_up.weight", "encoder.block.{L}.layer.1.DenseReluDense.wi_1.weight"),
    tensor("enc.blk.{L}.ffn_down.weight", "encoder.block.{L}.layer.1.DenseReluDense.wo.weight"),
];

const DECODER: &[Tensor] = &[
    tensor("dec.blk.{L}.attn_norm.weight", "decoder.block.{L}.layer.0.layer_norm.weight"),
    tensor("dec.blk.{L}.attn_q.weight", "decoder.block.{L}.layer.0.SelfAttention.q.weight"),
    tensor("dec.blk.{L}.attn_k.weight", "decoder.block.{L}.layer.0.SelfAttention.k.weight"),
    tensor("dec.blk.{L}.attn_v.weight", "decoder.block.{L}.layer.0.SelfAttention.v.weight"),
    tensor("dec.blk.{L}.attn_o.weight", "decoder.block.{L}.layer.0.SelfAttention.o.weight"),
    tensor("dec.blk.{L}.attn_rel_b.weight", "decoder.block.{L}.layer.0.SelfAttention.relative_attention_bias.weight"),
    tensor("dec.blk.{L}.cross_attn_norm.weight", "decoder.block.{L}.layer.1.layer_norm.weight"),
    tensor("dec.blk.{L}.cross_attn_q.weight", "decoder.block.{L}.layer.1.EncDecAttention.q.weight"),
    tensor("dec.blk.{L}.cross_attn_k.weight", "decoder.block.{L}.layer.1.EncDecAttention.k.weight"),
    tensor("dec.blk.{L}.cross_attn_v.weight", "decoder.block.{L}.layer.1.EncDecAttention.v.weight"),
    tensor("dec.blk.{L}.cross_attn_o.weight", "decoder.block.{L}.layer.1.EncDecAttention.o.weight"),
    tensor(
        "dec.blk.{L}.cross_attn_rel_b.weight",
        "decoder.block.{L}.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
    tensor("dec.blk.{L}.ffn_norm.weight", "decoder.block.{L}.layer.2.layer_norm.weight"),
    tensor("dec.blk.{L}.ffn_up.weight", "decoder.block.{L}.layer.2.DenseReluDense.wi.weight"),
    tensor("dec.blk.{L}.ffn_gate.weight", "decoder.block.{L}.layer.2.DenseReluDense.wi_0.weight"),
    tensor("dec.blk.{L}.ffn_up.weight", "decoder.block.{L}.layer.2.DenseReluDense.wi_1.weight"),
    tensor("dec.blk.{L}.ffn_down.weight", "decoder.block.{L}.layer.2.DenseReluDense.wo.weight"),
];

/// T5.
pub(super) const T5: Family = Family {
    classes: &[
        "T5ForConditionalGeneration",
        "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration",
        "UMT5Model",
    ],
    arch: "t5",
    example: "google/flan-t5-small",
    vocab: VocabKind::T5,
    tensors: &[SHARED, ENCODER, DECODER],
    keys: &[
        Key::U32("context_length", From::Or(&["n_positions"], 512.0)),
        Key::U32("embedding_length", From::Need(&["d_model"])),
        Key::U32("feed_forward_length", From::Need(&["d_ff"])),
        Key::Many(block_count),
        Key::U32("decoder_block_count", From::Any(&["num_decoder_layers"])),
        Key::U32("attention.head_count", From::Need(&["num_heads"])),
        Key::U32("attention.key_length", From::Need(&["d_kv"])),
        Key::U32("attention.value_length", From::Need(&["d_kv"])),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_epsilon"])),
        Key::U32("attention.relative_buckets_count", From::Need(&["relative_attention_num_buckets"])),
        Key::F32("attention.layer_norm_rms_epsilon", From::Need(&["layer_norm_epsilon"])),
        Key::U32("decoder_start_token_id", From::Need(&["decoder_start_token_id"])),
        Key::FileType,
    ],
    ..Family::NEW
};
