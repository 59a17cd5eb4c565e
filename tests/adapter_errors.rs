//! Broken adapters: each is refused with one line that names the adapter, the tensor or option, the cause and the
//! way out, or is told of in a warning.

mod common;
#[path = "common/crafted.rs"]
mod crafted;

use std::path::Path;

use common::fixture;
use crafted::{Q, Tensors, crafted, rename};
use serde_json::{Value, json};
use tempfile::TempDir;
use to_gguf::adapter::{Adapter, BaseInfo, MergeOptions, MergeSummary, apply};
use to_gguf::recipe::Scratch;
use to_gguf::source::ModelFolder;

/// Merges an adapter into the fixture's model and evaluates every tensor; what goes wrong, in words.
fn merge(folder: &Path) -> Result<MergeSummary, String> {
    let adapter = Adapter::open(folder, None).map_err(|e| e.to_string())?;
    let model = ModelFolder::open(fixture("shakespeare-llama")).unwrap();
    let mut tensors = model.tensors();
    let base = BaseInfo::new(model.name(), model.config());
    let summary = apply(&[(adapter, 1.0)], &mut tensors, &base, &MergeOptions::default()).map_err(|e| e.to_string())?;
    for (_, recipe) in tensors.iter() {
        let mut out = vec![0.0; recipe.shape().elements() as usize];
        recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).map_err(|e| e.to_string())?;
    }
    Ok(summary)
}

/// The message for a crafted adapter: one line, with all of `parts`.
fn refused(change: impl FnOnce(&mut Value, &mut Tensors), parts: &[&str]) {
    let folder = crafted(change);
    let message = merge(folder.path()).expect_err("it should have been refused");
    check(&message, parts);
    assert!(message.contains(&*folder.path().to_string_lossy()), "the adapter is not named: {message}");
}

fn check(message: &str, parts: &[&str]) {
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_renamed_module_is_named() {
    let to = "base_model.model.model.layers.0.self_attn.query.lora_A.weight";
    refused(
        |_, t| {
            rename(t, &format!("{Q}.lora_A.weight"), to);
            rename(t, &format!("{Q}.lora_B.weight"), &to.replace("lora_A", "lora_B"));
        },
        &[
            to,
            "model.layers.0.self_attn.query, which the model does not have",
            "use the base model",
            "shakespeare-llama",
        ],
    );
}

#[test]
fn a_missing_factor_is_named() {
    let parts = ["model.layers.0.self_attn.q_proj has lora_A but no lora_B", "incomplete"];
    refused(|_, t| drop(t.remove(&format!("{Q}.lora_B.weight"))), &parts);
    let parts = ["model.layers.0.self_attn.q_proj has lora_B but no lora_A"];
    refused(|_, t| drop(t.remove(&format!("{Q}.lora_A.weight"))), &parts);
}

#[test]
fn an_extra_parameter_is_named() {
    let name = format!("{Q}.lora_C.weight");
    refused(|_, t| drop(t.insert(name.clone(), (vec![1], vec![1.0]))), &[&name, "is not understood", "peft_type"]);
    let name = "base_model.model.model.rotary.inv_freq";
    refused(|_, t| drop(t.insert(name.into(), (vec![1], vec![1.0]))), &[name, "is not understood"]);
}

#[test]
fn a_transposed_factor_is_named() {
    refused(
        |_, t| t.get_mut(&format!("{Q}.lora_A.weight")).unwrap().0.reverse(),
        &["q_proj.lora_A.weight", "[256, 16]", "model.layers.0.self_attn.q_proj.weight [256, 256]", "needs"],
    );
}

#[test]
fn factors_for_another_model_are_named() {
    refused(
        |_, t| {
            t.insert(format!("{Q}.lora_A.weight"), (vec![16, 512], vec![0.5; 16 * 512]));
        },
        &["lora_A.weight has shape [16, 512]", "needs [16, 256]", "use the base model that the adapter was trained on"],
    );
    refused(
        |_, t| {
            t.insert("base_model.model.lm_head.weight".into(), (vec![2048, 128], vec![0.5; 2048 * 128]));
        },
        &["base_model.model.lm_head.weight has shape [2048, 128]", "rows of 256"],
    );
}

#[test]
fn a_factor_that_is_not_a_number_is_named_with_its_place() {
    refused(
        |_, t| t.get_mut(&format!("{Q}.lora_B.weight")).unwrap().1[5 * 16 + 3] = f32::NAN,
        &["model.layers.0.self_attn.q_proj", "row 5", "NaN", "lora_B.weight", "column 3"],
    );
    refused(
        |_, t| t.get_mut(&format!("{Q}.lora_A.weight")).unwrap().1[7] = f32::INFINITY,
        &["row 0", "lora_A.weight", "has inf at row 0, column 7"],
    );
}

#[test]
fn a_sum_that_overflows_says_so() {
    refused(
        |_, t| {
            t.get_mut(&format!("{Q}.lora_A.weight")).unwrap().1.fill(1e30);
            t.get_mut(&format!("{Q}.lora_B.weight")).unwrap().1.fill(1e30);
        },
        &["model.layers.0.self_attn.q_proj", "row 0", "too large"],
    );
}

#[test]
fn a_rank_that_contradicts_the_config_is_named() {
    refused(|c, _| c["r"] = json!(8), &["has rank 16", "says 8", "lora_A.weight"]);
    refused(|c, _| c["rank_pattern"] = json!({"q_proj": 4}), &["q_proj.lora_A.weight has rank 16", "says 4"]);
    refused(|c, _| c["r"] = json!(4_000_000_000u64), &["has rank 16", "says 4000000000"]);
    let empty = |c: &mut Value, t: &mut Tensors| {
        c["rank_pattern"] = json!({"layers.0.self_attn.q_proj": 0});
        t.insert(format!("{Q}.lora_A.weight"), (vec![0, 256], vec![]));
        t.insert(format!("{Q}.lora_B.weight"), (vec![256, 0], vec![]));
    };
    refused(empty, &["q_proj.lora_A.weight", "rank 0", "incomplete"]);
}

#[test]
fn settings_of_impossible_values_are_named() {
    refused(|c, _| c["lora_alpha"] = json!("much"), &["adapter_config.json: lora_alpha is \"much\""]);
    refused(|c, _| c["lora_alpha"] = json!([16]), &["adapter_config.json: lora_alpha is [16], not a number"]);
    refused(|c, _| c["alpha_pattern"] = json!({"q_proj": "16"}), &["alpha_pattern gives \"q_proj\" no number"]);
    refused(|c, _| c["rank_pattern"] = json!({"(": 4}), &["rank_pattern has \"(\""]);
    refused(|c, _| c["peft_type"] = json!(7), &["peft_type is 7"]);
    refused(|c, _| c["layer_replication"] = json!([[0, 9]]), &["layer_replication repeats layer 4", "has 4"]);
    refused(|c, _| c["layer_replication"] = json!([[0, 9_000_000_000u64]]), &["more than 10000 layers"]);
}

#[test]
fn kinds_without_a_merged_form_are_refused_by_name() {
    let of_the_prompt = ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE"];
    let of_activations = ["ADAPTION_PROMPT", "XLORA", "POLY", "LILY", "SHADOW"];
    for kind in of_the_prompt.into_iter().chain(of_activations) {
        refused(|c, _| c["peft_type"] = json!(kind), &[kind, "cannot be merged", "train a LoRA adapter instead"]);
    }
    // The others of PEFT 0.21.
    let unknown = "ADAMSS DEFT FROD GLORA OSF PEANUT PSOFT SUPERTUNING TINYLORA UNILORA WAVEFT";
    for kind in unknown.split(' ') {
        refused(|c, _| c["peft_type"] = json!(kind), &[kind, "its merge rule is not known here"]);
    }
    refused(|c, _| c["peft_type"] = json!("NEXT_YEARS_KIND"), &["NEXT_YEARS_KIND", "not known"]);
    refused(|c, _| c["alora_invocation_tokens"] = json!([1]), &["activated LoRA", "tokens in the prompt"]);
    refused(|c, _| c["arrow_config"] = json!({"top_k": 2}), &["Arrow", "anew for every token"]);
    refused(|c, _| c["use_qalora"] = json!(true), &["use_qalora", "cannot be merged"]);
}

#[test]
fn residual_bases_that_cannot_be_computed_again_are_refused() {
    for init in ["pissa_niter_16", "corda", "lora_ga"] {
        refused(|c, _| c["init_lora_weights"] = json!(init), &[init, "path_initial_model_for_weight_conversion"]);
    }
    refused(|c, _| c["init_lora_weights"] = json!("loftq"), &["loftq", "quantized base"]);
}

#[test]
fn a_kind_whose_parameters_are_not_in_the_file_is_refused() {
    refused(|c, _| c["peft_type"] = json!("LOKR"), &["lokr_w1_a"]);
    refused(|c, _| c["peft_type"] = json!("IA3"), &["ia3_l"]);
}

#[test]
fn trained_tokens_need_their_indices() {
    let rows = |t: &mut Tensors| {
        t.remove("base_model.model.model.embed_tokens.weight");
        let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
        t.insert(name.into(), (vec![2, 256], vec![0.1; 512]));
    };
    refused(|_, t| rows(t), &["trainable_token_indices is missing"]);
    let with = |indices: Value| {
        move |c: &mut Value, t: &mut Tensors| {
            c["trainable_token_indices"] = indices;
            rows(t);
        }
    };
    refused(with(json!([1, 2, 3])), &["[2, 256]", "3 rows of 256"]);
    refused(with(json!([1, 5000])), &["lists token 5000", "2048 rows"]);
    refused(with(json!([7, 7])), &["lists token 7 twice"]);
    assert!(merge(crafted(with(json!([7, 9]))).path()).is_ok());
}

#[test]
fn incomplete_folders_are_named() {
    let empty = TempDir::new().unwrap();
    check(&merge(empty.path()).unwrap_err(), &["no adapter_config.json", "name the folder"]);
    let folder = crafted(|_, _| ());
    std::fs::create_dir(empty.path().join("math")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(folder.path().join(file), empty.path().join("math").join(file)).unwrap();
    }
    check(&merge(empty.path()).unwrap_err(), &["no adapter_config.json", "math"]);
    assert!(Adapter::open(empty.path(), Some("math")).is_ok(), "several adapters lie in one folder");
    let other = Adapter::open(folder.path(), Some("poetry")).unwrap_err().to_string();
    check(&other, &["poetry", "leave the name out"]);
    std::fs::write(folder.path().join("adapter_config.json"), "{").unwrap();
    check(&merge(folder.path()).unwrap_err(), &["adapter_config.json", "is not JSON"]);
    let folder = crafted(|_, _| ());
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    check(&merge(folder.path()).unwrap_err(), &["neither adapter_model.safetensors nor adapter_model.bin"]);
}

#[test]
fn a_truncated_file_is_named() {
    let folder = crafted(|_, _| ());
    let path = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    check(&merge(folder.path()).unwrap_err(), &["adapter_model.safetensors"]);
}

#[test]
fn what_looks_wrong_is_told_without_stopping() {
    let warnings = |change: fn(&mut Value, &mut Tensors)| merge(crafted(change).path()).unwrap().warnings.join("\n");
    let other = warnings(|c, _| c["base_model_name_or_path"] = json!("someone/other-llama"));
    assert!(other.contains("was trained on someone/other-llama, not on shakespeare-llama"), "{other}");
    let fewer = warnings(|_, t| t.retain(|n, _| !n.contains("layers.2.mlp")));
    assert!(fewer.contains("holds 25 of the 28 modules") && fewer.contains("model.layers.2.mlp"), "{fewer}");
    let zero = crafted(|_, t| {
        t.retain(|n, _| n.contains("lora_"));
        t.iter_mut().filter(|(n, _)| n.contains("lora_B")).for_each(|(_, (_, v))| v.fill(0.0));
    });
    let closing = merge(zero.path()).unwrap().closing_warnings().join("\n");
    assert!(closing.contains("changes next to nothing"), "{closing}");
}

#[test]
fn one_of_several_adapters_in_a_file_is_chosen_by_a_last_word() {
    let folder = crafted(|_, t| {
        let plain: Vec<String> = t.keys().filter(|n| n.contains("lora_")).cloned().collect();
        for name in plain {
            let tensor = t.remove(&name).unwrap();
            let doubled = (tensor.0.clone(), tensor.1.iter().map(|v| v * 2.0).collect());
            t.insert(name.replace(".weight", ".poetry.weight"), tensor);
            t.insert(name.replace(".weight", ".prose.weight"), doubled);
        }
        t.retain(|n, _| n.contains("lora_"));
    });
    check(&merge(folder.path()).unwrap_err(), &["holds several adapters (poetry, prose)", "name one of them"]);
    let adapter = |name: &str| Adapter::open(&folder.path().join(name), None);
    assert!(adapter("poetry").unwrap().label().ends_with("(poetry)"));
    assert_eq!(adapter("prose").unwrap().path(), folder.path());
    check(&adapter("drama").unwrap_err().to_string(), &["drama", "poetry, prose"]);
}
