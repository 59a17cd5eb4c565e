//! Mamba and FalconMamba: state-space layers, no attention.

use super::config::Config;
use super::error::ArchError;
use super::keys::block_count;
use super::spec::{Family, From, Key, Keys, Op, Tensor, When, dropped, tensor};
use crate::gguf::Value;
use crate::tokenizer::VocabKind;

const TIED: When = When::Model(|c| {
    let untied = |key: &str| c.get(&[key]).is_some_and(|v| v == false);
    !untied("tie_word_embeddings") && !untied("tie_embeddings")
});

const TENSORS: &[Tensor] = &[
    tensor("token_embd.weight", "backbone.embeddings.weight"),
    tensor("token_embd.weight", "backbone.embedding.weight"),
    tensor("output_norm.weight", "backbone.norm_f.weight"),
    dropped("lm_head.weight", "the same as the embeddings, which llama.cpp uses").when(TIED),
    tensor("output.weight", "lm_head.weight"),
    tensor("blk.{L}.attn_norm.weight", "backbone.layers.{L}.norm.weight"),
    tensor("blk.{L}.ssm_a", "backbone.layers.{L}.mixer.A_log").ops(&[Op::NegExp]),
    tensor("blk.{L}.ssm_d", "backbone.layers.{L}.mixer.D"),
    tensor("blk.{L}.ssm_in.weight", "backbone.layers.{L}.mixer.in_proj.weight"),
    tensor("blk.{L}.ssm_conv1d.weight", "backbone.layers.{L}.mixer.conv1d.weight").ops(&[Op::Squeeze]),
    tensor("blk.{L}.ssm_conv1d.bias", "backbone.layers.{L}.mixer.conv1d.bias"),
    tensor("blk.{L}.ssm_x.weight", "backbone.layers.{L}.mixer.x_proj.weight"),
    tensor("blk.{L}.ssm_dt.*", "backbone.layers.{L}.mixer.dt_proj.*"),
    tensor("blk.{L}.ssm_out.weight", "backbone.layers.{L}.mixer.out_proj.weight"),
];

/// Mamba. Its converter reads config.json without the defaults of a class.
pub(super) const MAMBA: Family = Family {
    classes: &["MambaForCausalLM", "MambaLMHeadModel", "FalconMambaForCausalLM"],
    arch: "mamba",
    example: "state-spaces/mamba-130m-hf",
    vocab: VocabKind::Bpe,
    tensors: &[TENSORS],
    keys: &[
        // An arbitrary length: there is none.
        Key::U32("context_length", From::Lit(1_048_576.0)),
        Key::U32("embedding_length", From::Need(&["hidden_size", "d_model"])),
        Key::U32("feed_forward_length", From::Lit(0.0)),
        Key::U32("attention.head_count", From::Lit(0.0)),
        Key::Many(block_count),
        Key::Many(state_space),
        Key::FileType,
    ],
    ..Family::NEW
};

fn state_space(config: &Config, keys: &mut Keys) -> Result<(), ArchError> {
    let width = config.need_uint(&["hidden_size", "d_model"])?;
    let given = |names: &[&str], default: u64| Ok(config.uint(names)?.filter(|&n| n != 0).unwrap_or(default));
    let inner = given(&["intermediate_size", "d_inner"], 2 * width)?;
    if inner != 2 * width {
        let problem = format!("is {inner}, not twice the hidden size {width}");
        return Err(config.unfit("intermediate_size", problem, "llama.cpp runs no other Mamba"));
    }
    keys.uint("ssm.conv_kernel", given(&["conv_kernel", "d_conv"], 4)?, config)?;
    keys.uint("ssm.inner_size", inner, config)?;
    keys.uint("ssm.state_size", given(&["state_size", "d_state"], 16)?, config)?;
    keys.uint("ssm.time_step_rank", given(&["time_step_rank", "dt_rank"], width.div_ceil(16))?, config)?;
    let eps = config.float(&["layer_norm_epsilon", "rms_norm_eps"])?.filter(|&e| e != 0.0).unwrap_or(1e-5);
    keys.float("attention.layer_norm_rms_epsilon", eps);
    keys.set("ssm.dt_b_c_rms", Value::Bool(config.text(&["model_type"]) == Some("falcon_mamba")));
    Ok(())
}
