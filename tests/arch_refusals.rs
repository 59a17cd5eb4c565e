//! Models that cannot be described: each error names the file or tensor, what is wrong, and what to do.

use std::path::Path;

use serde_json::{Value, json};
use to_gguf::arch::{self, ArchInput, Converted};
use to_gguf::recipe::Recipe;
use to_gguf::shape::Shape;
use to_gguf::source::TensorSet;

fn zeros(dims: &[u64]) -> Recipe {
    let shape = Shape::new(dims).unwrap();
    let n = shape.elements() as usize;
    Recipe::constant(shape, vec![0.0; n]).unwrap()
}

fn mixtral() -> Value {
    json!({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2,
        "vocab_size": 3})
}

/// A Mixtral of one block without the tensors of which `without` is true.
fn tensors(without: impl Fn(&str) -> bool) -> TensorSet {
    let mut all: Vec<(String, Recipe)> = vec![
        ("lm_head.weight".into(), zeros(&[3, 8])),
        ("model.embed_tokens.weight".into(), zeros(&[3, 8])),
        ("model.layers.0.self_attn.q_proj.weight".into(), zeros(&[8, 8])),
        ("model.layers.0.self_attn.k_proj.weight".into(), zeros(&[4, 8])),
    ];
    for expert in 0..2 {
        for (name, dims) in [("w1", [4, 8]), ("w2", [8, 4]), ("w3", [4, 8])] {
            let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight");
            all.push((name, zeros(&dims)));
        }
    }
    all.into_iter().filter(|(name, _)| !without(name)).collect()
}

fn convert(config: &Value, tensors: &TensorSet) -> Result<Converted, String> {
    let folder = tempfile::tempdir().unwrap();
    arch::convert(&ArchInput {
        config,
        config_file: Path::new("m/config.json"),
        tensors,
        folder: folder.path(),
        tokenizer_folder: folder.path(),
        name: Some("Tiny"),
    })
    .map_err(|e| e.to_string())
}

fn refused(config: &Value, tensors: &TensorSet, words: &[&str]) {
    let message = convert(config, tensors).map(|_| ()).expect_err("should be refused");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(message.contains("; "), "{message:?} gives no remedy");
    assert!(!message.contains('\n'), "{message:?} has several lines");
}

#[test]
fn a_whole_model_is_described_and_its_experts_are_stacked() {
    let made = convert(&mixtral(), &tensors(|_| false)).unwrap();
    let names: Vec<&str> = made.tensors.iter().map(|t| t.name.as_str()).collect();
    let experts = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.ffn_up_exps.weight"];
    assert_eq!(names[4..], experts);
    assert_eq!(made.tensors[5].recipe.shape().dims(), [2, 8, 4]);
    assert_eq!(made.tensors[5].source.len(), 2);
    assert_eq!(made.metadata.get("general.name").and_then(|v| v.as_str()), Some("Tiny"));
}

#[test]
fn an_unknown_class_is_refused_with_the_known_ones() {
    let mut config = mixtral();
    config["architectures"] = json!(["NoSuchModel"]);
    refused(&config, &tensors(|_| false), &["m/config.json", "NoSuchModel", "LlamaForCausalLM"]);
    config.as_object_mut().unwrap().remove("architectures");
    refused(&config, &tensors(|_| false), &["m/config.json", "architectures"]);
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    refused(&json!([1]), &tensors(|_| false), &["m/config.json", "not a JSON object"]);
}

#[test]
fn an_unknown_tensor_is_refused_by_name() {
    let mut set = tensors(|_| false);
    set.set("model.layers.0.self_attn.sinks", zeros(&[2]));
    refused(&mixtral(), &set, &["MixtralForCausalLM", "model.layers.0.self_attn.sinks"]);
    let mut set = tensors(|_| false);
    set.set("model.layers.1.self_attn.q_proj.weight", zeros(&[8, 8]));
    refused(&mixtral(), &set, &["model.layers.1.self_attn.q_proj.weight"]);
}

#[test]
fn a_missing_expert_is_named() {
    let set = tensors(|n| n.ends_with("experts.1.w2.weight"));
    refused(&mixtral(), &set, &["model.layers.0.block_sparse_moe.experts.1.w2.weight", "blk.0.ffn_down_exps.weight"]);
    let set = tensors(|n| n.ends_with("w3.weight"));
    refused(&mixtral(), &set, &["experts.0.w3.weight"]);
}

#[test]
fn an_expert_of_another_shape_is_named() {
    let mut set = tensors(|_| false);
    set.set("model.layers.0.block_sparse_moe.experts.1.w1.weight", zeros(&[4, 7]));
    refused(&mixtral(), &set, &["experts.0.w1.weight", "stack"]);
}

#[test]
fn two_tensors_for_one_place_are_refused() {
    let mut set = tensors(|_| false);
    set.set("language_model.lm_head.weight", zeros(&[3, 8]));
    refused(&mixtral(), &set, &["lm_head.weight", "language_model.lm_head.weight", "output.weight"]);
}

#[test]
fn ill_typed_and_impossible_keys_are_named() {
    for (key, value, word) in [
        ("num_hidden_layers", json!("two"), "whole number"),
        ("num_hidden_layers", json!(-1), "whole number"),
        ("num_hidden_layers", json!(1e9 as u64), "num_hidden_layers"),
        ("rms_norm_eps", json!("small"), "a number"),
        ("vocab_size", json!(1u64 << 40), "32 bits"),
        ("num_attention_heads", json!(3), "rope permutation"),
        ("num_attention_heads", json!(0), "rope permutation"),
    ] {
        let mut config = mixtral();
        config[key] = value;
        refused(&config, &tensors(|_| false), &[word]);
    }
    let mut config = mixtral();
    config["model_type"] = json!("unheard_of");
    config.as_object_mut().unwrap().remove("num_hidden_layers");
    refused(&config, &tensors(|_| false), &["m/config.json", "num_hidden_layers", "MixtralForCausalLM"]);
}

#[test]
fn tensors_of_other_modalities_are_dropped_with_a_reason() {
    let mut set = tensors(|_| false);
    set.set("vision_tower.patch.weight", zeros(&[2]));
    set.set("model.layers.0.self_attn.rotary_emb.inv_freq", zeros(&[2]));
    let made = convert(&mixtral(), &set).unwrap();
    assert_eq!(made.dropped.len(), 2);
    assert!(made.dropped.iter().all(|(_, reason)| !reason.is_empty()));
}
