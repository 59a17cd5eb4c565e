//! GPT-2 and GPT-BigCode (StarCoder): learned positions; GPT-2's linear layers are stored transposed.

use super::keys::block_count;
use super::spec::{Family, From, Key, Op, Tensor, dropped, tensor};

/// `Conv1D` of transformers is a linear layer with its weight transposed.
const CONV1D: &[Op] = &[Op::Transpose];

const ENDS: &[Tensor] = &[
    tensor("token_embd.weight", "wte.weight"),
    tensor("position_embd.weight", "wpe.weight"),
    tensor("output_norm.*", "ln_f.*"),
    tensor("output.weight", "lm_head.weight"),
];

const BLOCK: &[Tensor] = &[
    tensor("blk.{L}.attn_norm.*", "h.{L}.ln_1.*"),
    tensor("blk.{L}.ffn_norm.*", "h.{L}.ln_2.*"),
    tensor("blk.{L}.attn_qkv.*", "h.{L}.attn.c_attn.*"),
    tensor("blk.{L}.attn_output.*", "h.{L}.attn.c_proj.*"),
    tensor("blk.{L}.ffn_up.*", "h.{L}.mlp.c_fc.*"),
    tensor("blk.{L}.ffn_down.*", "h.{L}.mlp.c_proj.*"),
];

const CONV1D_WEIGHTS: &[Tensor] = &[
    tensor("blk.{L}.attn_qkv.weight", "h.{L}.attn.c_attn.weight").ops(CONV1D),
    tensor("blk.{L}.attn_output.weight", "h.{L}.attn.c_proj.weight").ops(CONV1D),
    tensor("blk.{L}.ffn_up.weight", "h.{L}.mlp.c_fc.weight").ops(CONV1D),
    tensor("blk.{L}.ffn_down.weight", "h.{L}.mlp.c_proj.weight").ops(CONV1D),
    dropped("h.{L}.attn.bias", "an attention mask, which llama.cpp computes"),
    dropped("h.{L}.attn.masked_bias", "an attention mask, which llama.cpp computes"),
];

/// GPT-2.
pub(super) const GPT2: Family = Family {
    classes: &["GPT2LMHeadModel"],
    arch: "gpt2",
    example: "openai-community/gpt2",
    strip: &["transformer."],
    tensors: &[ENDS, CONV1D_WEIGHTS, BLOCK],
    keys: &[
        Key::Many(block_count),
        Key::U32("context_length", From::Need(&["n_ctx", "n_positions"])),
        Key::U32("embedding_length", From::Need(&["n_embd"])),
        Key::Many(|config, keys| keys.uint("feed_forward_length", 4 * config.need_uint(&["n_embd"])?, config)),
        Key::U32("attention.head_count", From::Need(&["n_head"])),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_epsilon"])),
        Key::FileType,
    ],
    ..Family::NEW
};

/// GPT-BigCode.
pub(super) const STARCODER: Family = Family {
    classes: &["GPTBigCodeForCausalLM"],
    arch: "starcoder",
    example: "bigcode/gpt_bigcode-santacoder",
    strip: &["transformer."],
    tensors: &[ENDS, BLOCK],
    keys: &[
        Key::U32("context_length", From::Need(&["n_positions"])),
        Key::U32("embedding_length", From::Need(&["n_embd"])),
        Key::Many(|config, keys| keys.uint("feed_forward_length", 4 * config.need_uint(&["n_embd"])?, config)),
        Key::Many(block_count),
        Key::U32("attention.head_count", From::Need(&["n_head"])),
        Key::U32("attention.head_count_kv", From::Lit(1.0)),
        Key::F32("attention.layer_norm_epsilon", From::Need(&["layer_norm_epsilon"])),
        Key::FileType,
    ],
    ..Family::NEW
};
