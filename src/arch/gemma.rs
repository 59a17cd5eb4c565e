//! Gemma 1 to 3: norms stored as their distance from 1, and a head that is the embeddings.

use serde_json::Value as Json;

use super::blocks::{ATTENTION, DISTANCE_FROM_ONE, GATED_MLP, NO_HEAD};
use super::config::Config;
use super::error::ArchError;
use super::keys::{COMMON, block_count};
use super::spec::{Family, From, KV_HEADS, Key, Keys, Op, Place, Tensor, tensor};
use crate::recipe::Recipe;
use crate::tokenizer::VocabKind;

const ENDS: &[Tensor] = &[
    tensor("token_embd.weight", "model.embed_tokens.weight"),
    tensor("output_norm.weight", "model.norm.weight").ops(DISTANCE_FROM_ONE),
];

const NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_norm.weight", "model.layers.{L}.input_layernorm.weight").ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.ffn_norm.weight", "model.layers.{L}.post_attention_layernorm.weight").ops(DISTANCE_FROM_ONE),
];

/// Norms before and after both parts of a block.
const FOUR_NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_norm.weight", "model.layers.{L}.input_layernorm.weight").ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.post_attention_norm.weight", "model.layers.{L}.post_attention_layernorm.weight")
        .ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.ffn_norm.weight", "model.layers.{L}.pre_feedforward_layernorm.weight").ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.post_ffw_norm.weight", "model.layers.{L}.post_feedforward_layernorm.weight").ops(DISTANCE_FROM_ONE),
];

const QK_NORMS: &[Tensor] = &[
    tensor("blk.{L}.attn_q_norm.weight", "model.layers.{L}.self_attn.q_norm.weight").ops(DISTANCE_FROM_ONE),
    tensor("blk.{L}.attn_k_norm.weight", "model.layers.{L}.self_attn.k_norm.weight").ops(DISTANCE_FROM_ONE),
];

const ENDS_OF_GEMMA3: &[Tensor] = &[
    tensor("token_embd.weight", "model.embed_tokens.weight").ops(&[Op::TokenRows(tokens)]),
    tensor("output_norm.weight", "model.norm.weight").ops(DISTANCE_FROM_ONE),
    tensor("output.weight", "lm_head.weight"),
];

/// Keys of Gemma 1 and 2.
const KEYS: Key = Key::Group(&[
    Key::U32("context_length", From::Need(&["max_position_embeddings"])),
    Key::U32("embedding_length", From::Need(&["hidden_size"])),
    Key::Many(block_count),
    Key::U32("feed_forward_length", From::Need(&["intermediate_size"])),
    Key::U32("attention.head_count", From::Need(&["num_attention_heads"])),
    Key::Many(|config, keys| keys.uint("attention.head_count_kv", KV_HEADS.value(config)?, config)),
    Key::F32("attention.layer_norm_rms_epsilon", From::Need(&["rms_norm_eps"])),
    Key::U32("attention.key_length", From::Need(&["head_dim"])),
    Key::U32("attention.value_length", From::Need(&["head_dim"])),
    Key::FileType,
]);

/// Gemma and CodeGemma.
pub(super) const GEMMA: Family = Family {
    classes: &["GemmaForCausalLM"],
    arch: "gemma",
    example: "google/gemma-2b",
    vocab: VocabKind::Gemma,
    tensors: &[ENDS, NO_HEAD, NORMS, ATTENTION, GATED_MLP],
    keys: &[KEYS],
    ..Family::NEW
};

/// Gemma 2.
pub(super) const GEMMA2: Family = Family {
    classes: &["Gemma2ForCausalLM"],
    arch: "gemma2",
    example: "google/gemma-2-9b-it",
    vocab: VocabKind::Gemma2,
    tensors: &[ENDS, NO_HEAD, FOUR_NORMS, ATTENTION, GATED_MLP],
    keys: &[
        KEYS,
        Key::F32("attn_logit_softcapping", From::Need(&["attn_logit_softcapping"])),
        Key::F32("final_logit_softcapping", From::Need(&["final_logit_softcapping"])),
        Key::U32("attention.sliding_window", From::Need(&["sliding_window"])),
    ],
    ..Family::NEW
};

/// Gemma 3, the text part.
pub(super) const GEMMA3: Family = Family {
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    arch: "gemma3",
    example: "google/gemma-3-4b-it",
    vocab: VocabKind::Gemma2,
    tensors: &[ENDS_OF_GEMMA3, FOUR_NORMS, ATTENTION, QK_NORMS, GATED_MLP],
    keys: &[
        COMMON,
        Key::U32("context_length", From::Or(&["max_position_embeddings"], 131_072.0)),
        Key::U32("attention.head_count", From::Or(&["num_attention_heads"], 8.0)),
        Key::F32("attention.layer_norm_rms_epsilon", From::Or(&["rms_norm_eps"], 1e-6)),
        Key::U32("attention.key_length", From::Or(&["head_dim"], 256.0)),
        Key::U32("attention.value_length", From::Or(&["head_dim"], 256.0)),
        Key::F32("rope.freq_base", From::Is(global_base)),
        Key::Many(softcap),
        Key::U32("attention.sliding_window", From::Is(window)),
        Key::U32("attention.head_count_kv", From::Or(&["num_key_value_heads"], 4.0)),
    ],
    ..Family::NEW
};

fn global_base(config: &Config) -> Result<Option<Json>, ArchError> {
    Ok(Some(config.rope_float("rope_theta")?.unwrap_or(1_000_000.0).into()))
}

fn softcap(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    if let Some(cap) = config.float(&["final_logit_softcapping"])?.filter(|&cap| cap != 0.0) {
        keys.float("final_logit_softcapping", cap);
    }
    Ok(())
}

fn window(config: &Config) -> Result<Option<Json>, ArchError> {
    match config.uint(&["sliding_window_pattern"])? {
        Some(1) => Ok(None),
        _ => config.need(&["sliding_window"]).cloned().map(Some),
    }
}

/// Tokens of the tokenizer: Gemma 3's table has rows beyond them (`Gemma3Model.modify_tensors`).
fn tokens(recipe: &Recipe, place: &Place<'_>) -> Result<u64, ArchError> {
    let rows = recipe.shape().rows();
    let tokens = if place.folder.join("tokenizer.model").is_file() {
        place.config.uint(&["vocab_size"])?.unwrap_or(rows)
    } else {
        let file = place.folder.join("tokenizer.json");
        let error = |cause: String| ArchError::File { file: file.clone(), cause };
        let bytes = std::fs::read(&file).map_err(|e| error(e.to_string()))?;
        let json: Json = serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?;
        let pieces = match &json["model"]["vocab"] {
            Json::Object(pieces) => pieces.len(),
            Json::Array(pieces) => pieces.len(),
            _ => return Err(error("no model.vocab".into())),
        };
        (pieces + json["added_tokens"].as_array().map_or(0, Vec::len)) as u64
    };
    Ok(tokens.min(rows))
}
