//! What transformers knows of its layers and a list of tensors does not tell: which of them stay in f32, and which
//! are linear layers that bitsandbytes packs.
//!
//! From transformers 5.23: `_keep_in_fp32_modules` and its strict form; `replace_with_bnb_linear`, which packs
//! modules of the class `nn.Linear` (and `Conv1D`) itself, never a subclass; `get_keys_to_not_convert`. Experts of a
//! mixture are one stacked parameter in memory, no linear layer, and so are most routers.

use fancy_regex::Regex;
use serde_json::Value;

use crate::shape::Shape;

/// Parts of names that stay in f32, whatever 16-bit type the model has, by `model_type`.
const ALWAYS_F32: [(&[&str], &[&str]); 13] = [
    (
        &[
            "axk1",
            "axk2",
            "bailing_hybrid",
            "beam",
            "deepseek_v3",
            "deepseek_v32",
            "deepseek_v4",
            "dots1",
            "dots3_note",
            "dots3_note_text",
            "exaone_moe",
            "glm4_moe",
            "glm4_moe_lite",
            "glm4v_moe",
            "glm5_next",
            "glm5_next_text",
            "glm_moe_dsa",
            "hy_v3",
            "hy_v4",
            "inkling_text",
            "inkling2_text",
            "kolibri1",
            "mimo_v2_flash",
            "muse_spark",
            "nemotron_h",
            "solar_open",
        ],
        &["e_score_correction_bias"],
    ),
    (&["bailing_hybrid", "glm5_next", "glm5_next_text"], &["conv1d", "dt_bias", "A_log"]),
    (&["glm5_next", "glm5_next_text"], &["attn_hc.base", "attn_hc.scale", "ffn_hc.base", "ffn_hc.scale"]),
    (&["beam", "mistral_large4", "muse_spark", "inkling2_text"], &["mlp.gate.weight"]),
    (&["muse_spark"], &["post_attention_residual_gate", "post_feedforward_residual_gate"]),
    (&["inkling_text"], &["attn_sconv", "mlp_sconv", "k_sconv", "v_sconv", "gate.global_scale"]),
    (
        &["deepseek_v4"],
        &["attn_hc", "ffn_hc", "hc_head", "sinks", "position_bias", "q_a_norm", "kv_norm", "layernorm", "norm"],
    ),
    (&["ernie4_5_moe", "ernie4_5_vl_moe"], &["gate.weight", "moe_statics"]),
    (&["flint"], &["gate.weight"]),
    (&["flint", "openai_privacy_filter"], &["sinks"]),
    (
        &["hy_v4"],
        &["fn", "scale", "base", "hc_fn", "hc_scale", "hc_base", "weights_proj", "k_norm", "sinks", "lm_head"],
    ),
    (&["olmo_hybrid", "zamba"], &["A_log"]),
    (&["zaya"], &["balancing_biases"]),
];

/// Parts of names that stay in f32 where the model is in f16, by `model_type`.
const F32_BESIDE_F16: [(&[&str], &[&str]); 8] = [
    (&["t5", "mt5", "umt5", "udop", "pop2piano"], &["wo"]),
    (&["gpt_oss"], &["norm"]),
    (&["afmoe"], &["norm", "expert_bias"]),
    (&["axk2", "deepseek_v32", "glm_moe_dsa", "mistral_large4"], &["indexer.weights_proj"]),
    (&["deepseek_v4"], &["compressor.kv_proj", "compressor.gate_proj", "weights_proj", "indexer.kv_proj"]),
    (&["longcat_flash"], &["classifier.weight"]),
    (&["rwkv"], &["time_decay", "time_first"]),
    (&["blip-2", "instructblip", "instructblipvideo"], &["query_tokens", "qformer"]),
];

/// Whether a tensor of a model of this type stays in f32.
pub(super) fn stays_f32(name: &str, model_type: &str, f16: bool) -> bool {
    let listed = |table: &[(&[&str], &[&str])]| {
        table.iter().any(|(types, parts)| types.contains(&model_type) && parts.iter().any(|p| name.contains(p)))
    };
    listed(&ALWAYS_F32) || (f16 && listed(&F32_BESIDE_F16))
}

/// Models whose linear layers are stored `[inputs, outputs]` (`Conv1D`), and the layers' last words.
const CONV1D: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
const CONV1D_LAYERS: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

/// Models whose linear layers are of a subclass, so that none is packed.
const OTHER_LINEAR: [&str; 1] = ["falcon"];

/// Output heads: whole names, and last words.
const HEADS: [&str; 7] = ["output_projection", "proj_out", "lm_loss", "head", "output", "decoder", "score"];
const HEAD_ENDINGS: [&str; 6] =
    ["lm_head", "embed_out", "predictions.decoder", "lm_head.decoder", "pred_layer.proj", "generator_lm_head"];

/// Last words of embeddings that do not say so.
const EMBEDDINGS: [&str; 7] = ["wte", "wpe", "w", "shared", "embed_in", "relative_attention_bias", "bias_values"];

/// How a weight is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linear {
    /// As it is stored.
    Straight,
    /// Its transpose.
    Transposed,
}

/// Which weights of a model are packed.
pub(super) struct Packer {
    model_type: String,
    /// Modules that the base's own settings leave alone; these replace the usual ones.
    skipped: Option<Vec<(String, Option<Regex>)>>,
}

impl Packer {
    /// For a model with this config. Modules that a base already packed by bitsandbytes skips stay skipped.
    pub(super) fn new(config: &Value) -> Self {
        let skipped = config["quantization_config"]["llm_int8_skip_modules"].as_array().map(|list| {
            let names = list.iter().filter_map(Value::as_str);
            // From the start to a border between words, or as an ending (`should_convert_module`).
            names.map(|n| (n.to_owned(), Regex::new(&format!(r"^(?:{n})(?:(?<=\.)|(?=\.|$))")).ok())).collect()
        });
        Packer { model_type: config["model_type"].as_str().unwrap_or_default().to_owned(), skipped }
    }

    /// The modules that are left alone beyond the usual ones, as the config names them.
    pub(super) fn skipped(&self) -> Option<Vec<&str>> {
        self.skipped.as_ref().map(|list| list.iter().map(|(n, _)| n.as_str()).collect())
    }

    /// Whether and how the tensor `name` is packed.
    pub(super) fn linear(&self, name: &str, shape: &Shape) -> Option<Linear> {
        let module = name.strip_suffix(".weight").filter(|_| shape.ndim() == 2)?;
        if OTHER_LINEAR.contains(&self.model_type.as_str()) || self.is_skipped(module) {
            return None;
        }
        let words: Vec<&str> = module.split('.').collect();
        let (last, before) = words.split_last()?;
        let stacked = words.windows(2).any(|w| w[0] == "experts" && w[1].bytes().all(|b| b.is_ascii_digit()));
        let inside = before.last() == Some(&"router");
        let router = match *last {
            "gate" | "router" => !inside,
            "layer" => inside && self.model_type.starts_with("granitemoe"),
            _ => false,
        };
        if stacked || router || is_embedding(last) {
            return None;
        }
        let conv1d = CONV1D.contains(&self.model_type.as_str()) && CONV1D_LAYERS.contains(last);
        Some(if conv1d { Linear::Transposed } else { Linear::Straight })
    }

    fn is_skipped(&self, module: &str) -> bool {
        match &self.skipped {
            Some(list) => list.iter().any(|(name, regex)| {
                module.ends_with(name.as_str()) || regex.as_ref().is_some_and(|r| r.is_match(module).unwrap_or(false))
            }),
            None => {
                HEADS.contains(&module)
                    || HEAD_ENDINGS.iter().any(|e| module.ends_with(e))
                    || F32_BESIDE_F16.iter().chain(&ALWAYS_F32).any(|(types, parts)| {
                        types.contains(&self.model_type.as_str()) && parts.iter().any(|p| module.ends_with(p))
                    })
            }
        }
    }
}

/// Whether a module of this last word is an embedding.
fn is_embedding(word: &str) -> bool {
    let named =
        ["embed", "embedding", "embeddings"].iter().any(|e| word.ends_with(e)) && word != "relative_pos_embeddings";
    let begins = ["embed_tokens", "embed_positions", "tokens_embed", "positions_embed"];
    named || begins.iter().any(|b| word.starts_with(b)) || EMBEDDINGS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn packed(config: Value, names: &[&str]) -> Vec<bool> {
        let packer = Packer::new(&config);
        names.iter().map(|n| packer.linear(n, &Shape::matrix(8, 8)).is_some()).collect()
    }

    #[test]
    fn linear_layers_are_packed_and_nothing_else() {
        let llama = json!({"model_type": "llama"});
        let yes = ["model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.shared_expert_gate.weight"];
        assert_eq!(packed(llama.clone(), &yes), [true; 2]);
        let no = [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.experts.7.up_proj.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "transformer.wpe.weight",
        ];
        assert_eq!(packed(llama, &no), [false; 6]);
        assert_eq!(packed(json!({"model_type": "falcon"}), &["transformer.h.0.mlp.dense_h_to_4h.weight"]), [false]);
        let gpt2 = Packer::new(&json!({"model_type": "gpt2"}));
        assert_eq!(gpt2.linear("h.0.attn.c_attn.weight", &Shape::matrix(8, 24)), Some(Linear::Transposed));
    }

    #[test]
    fn the_skipped_modules_of_a_packed_base_are_its_own() {
        let config =
            json!({"quantization_config": {"llm_int8_skip_modules": ["lm_head", "layers.1", "model.layers.2"]}});
        let names = [
            "lm_head.weight",
            "model.layers.1.mlp.x.weight",
            "model.layers.2.mlp.x.weight",
            "model.layers.21.x.weight",
        ];
        assert_eq!(packed(config, &names), [false, true, false, true]);
    }

    #[test]
    fn what_is_kept_in_f32_depends_on_the_type() {
        assert!(stays_f32("model.layers.3.mlp.gate.e_score_correction_bias", "deepseek_v3", false));
        assert!(stays_f32("model.norm.weight", "gpt_oss", true));
        assert!(!stays_f32("model.norm.weight", "gpt_oss", false));
        assert!(!stays_f32("model.norm.weight", "llama", true));
    }
}
