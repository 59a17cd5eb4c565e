//! GPT-NeoX (Pythia), Bloom and Falcon: query, key and value of each head (or group of heads) lie together.

use super::config::Config;
use super::error::ArchError;
use super::keys::block_count;
use super::spec::{Family, From, Key, Keys, Num, Op, Tensor, tensor};

const HEADS: Num = Num::Of(&["n_head", "num_attention_heads"]);
const FALCON_HEADS: Num = Num::Of(&["num_attention_heads", "n_head"]);
const FALCON_GROUPS: Num = Num::Is(falcon_groups);

const PER_HEAD: &[Op] = &[Op::Degroup { groups: HEADS, heads: HEADS }];
const PER_GROUP: &[Op] = &[Op::Degroup { groups: FALCON_GROUPS, heads: FALCON_HEADS }];

const NEOX: &[Tensor] = &[
    tensor("token_embd.weight", "gpt_neox.embed_in.weight"),
    tensor("output_norm.*", "gpt_neox.final_layer_norm.*"),
    tensor("output.weight", "embed_out.weight"),
    tensor("output.weight", "lm_head.weight"),
    tensor("blk.{L}.attn_norm.*", "gpt_neox.layers.{L}.input_layernorm.*"),
    tensor("blk.{L}.ffn_norm.*", "gpt_neox.layers.{L}.post_attention_layernorm.*"),
    tensor("blk.{L}.attn_qkv.*", "gpt_neox.layers.{L}.attention.query_key_value.*").ops(PER_HEAD),
    tensor("blk.{L}.attn_output.*", "gpt_neox.layers.{L}.attention.dense.*"),
    tensor("blk.{L}.ffn_up.*", "gpt_neox.layers.{L}.mlp.dense_h_to_4h.*"),
    tensor("blk.{L}.ffn_down.*", "gpt_neox.layers.{L}.mlp.dense_4h_to_h.*"),
];

const BLOOM_TENSORS: &[Tensor] = &[
    tensor("token_embd.weight", "word_embeddings.weight"),
    tensor("token_embd_norm.*", "word_embeddings_layernorm.*"),
    tensor("output_norm.*", "ln_f.*"),
    tensor("output.weight", "lm_head.weight"),
    tensor("blk.{L}.attn_norm.*", "h.{L}.input_layernorm.*"),
    tensor("blk.{L}.ffn_norm.*", "h.{L}.post_attention_layernorm.*"),
    tensor("blk.{L}.attn_qkv.*", "h.{L}.self_attention.query_key_value.*").ops(PER_HEAD),
    tensor("blk.{L}.attn_output.*", "h.{L}.self_attention.dense.*"),
    tensor("blk.{L}.ffn_up.*", "h.{L}.mlp.dense_h_to_4h.*"),
    tensor("blk.{L}.ffn_down.*", "h.{L}.mlp.dense_4h_to_h.*"),
];

const FALCON_TENSORS: &[Tensor] = &[
    tensor("token_embd.weight", "word_embeddings.weight"),
    tensor("output_norm.*", "ln_f.*"),
    tensor("output.weight", "lm_head.weight"),
    tensor("blk.{L}.attn_norm.*", "h.{L}.input_layernorm.*"),
    tensor("blk.{L}.attn_norm.*", "h.{L}.ln_mlp.*"),
    tensor("blk.{L}.attn_norm_2.*", "h.{L}.ln_attn.*"),
    tensor("blk.{L}.attn_qkv.*", "h.{L}.self_attention.query_key_value.*").ops(PER_GROUP),
    tensor("blk.{L}.attn_output.*", "h.{L}.self_attention.dense.*"),
    tensor("blk.{L}.ffn_up.*", "h.{L}.mlp.dense_h_to_4h.*"),
    tensor("blk.{L}.ffn_down.*", "h.{L}.mlp.dense_4h_to_h.*"),
];

/// Key and value heads of a Falcon. transformers fills num_kv_heads in also for a multi-query model, which has one.
fn falcon_groups(config: &Config) -> Result<u64, ArchError> {
    let multi_query = config.get(&["multi_query"]).is_none_or(|v| *v != false);
    if config.raw("n_head_kv").is_none() && !config.truthy(&["new_decoder_architecture"]) && multi_query {
        return Ok(1);
    }
    Ok(config.uint(&["num_kv_heads", "n_head_kv"])?.filter(|&n| n > 0).unwrap_or(1))
}

/// GPT-NeoX and Pythia. Its converter writes no `general.file_type`.
pub(super) const GPTNEOX: Family = Family {
    classes: &["GPTNeoXForCausalLM"],
    arch: "gptneox",
    example: "EleutherAI/pythia-70m",
    tensors: &[NEOX],
    keys: &[
        Key::U32("context_length", From::Need(&["max_position_embeddings"])),
        Key::U32("embedding_length", From::Need(&["hidden_size"])),
        Key::Many(block_count),
        Key::U32("feed_forward_length", From::Need(&["intermediate_size"])),
        Key::Many(rotary_width),
        Key::U32("attention.head_count", From::Need(&["num_attention_heads"])),
        Key::Bool(
            "use_parallel_residual",
            From::Is(|c| Ok(Some(c.get(&["use_parallel_residual"]).cloned().unwrap_or(true.into())))),
        ),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_eps"])),
    ],
    ..Family::NEW
};

fn rotary_width(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    let part = match config.float(&["rotary_pct"])? {
        Some(part) => part,
        None => config.rope_float("partial_rotary_factor")?.unwrap_or(0.25),
    };
    let head = config.need_uint(&["hidden_size"])?.checked_div(HEADS.value(config)?).unwrap_or(0);
    keys.uint("rope.dimension_count", (part * head as f64) as u64, config)
}

/// Bloom.
pub(super) const BLOOM: Family = Family {
    classes: &["BloomForCausalLM", "BloomModel"],
    arch: "bloom",
    example: "bigscience/bloom-560m",
    strip: &["transformer."],
    tensors: &[BLOOM_TENSORS],
    keys: &[
        Key::U32("context_length", From::Need(&["seq_length", "hidden_size", "n_embed"])),
        Key::U32("embedding_length", From::Need(&["hidden_size", "n_embed"])),
        Key::Many(|c, keys| keys.uint("feed_forward_length", 4 * c.need_uint(&["hidden_size", "n_embed"])?, c)),
        Key::Many(block_count),
        Key::U32("attention.head_count", From::Need(&["n_head", "num_attention_heads"])),
        Key::U32("attention.head_count_kv", From::Need(&["n_head", "num_attention_heads"])),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_epsilon"])),
        Key::FileType,
    ],
    ..Family::NEW
};

/// Falcon.
pub(super) const FALCON: Family = Family {
    classes: &["FalconForCausalLM", "RWForCausalLM"],
    arch: "falcon",
    example: "tiiuae/falcon-7b",
    strip: &["transformer."],
    tensors: &[FALCON_TENSORS],
    keys: &[
        // Not in its config.json.
        Key::U32("context_length", From::Lit(2048.0)),
        Key::Str("tensor_data_layout", From::Text("jploski")),
        Key::U32("embedding_length", From::Need(&["hidden_size"])),
        Key::Many(|c, keys| keys.uint("feed_forward_length", 4 * c.need_uint(&["hidden_size"])?, c)),
        Key::Many(block_count),
        Key::U32("attention.head_count", From::Need(&["num_attention_heads", "n_head"])),
        Key::Many(|c, keys| keys.uint("attention.head_count_kv", FALCON_GROUPS.value(c)?, c)),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_epsilon"])),
        Key::FileType,
    ],
    restored: |key| vec![("n_head_kv", key("attention.head_count_kv"))],
    ..Family::NEW
};
