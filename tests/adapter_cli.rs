//! Bad adapters through the whole program: exit status 1, one line that names the adapter, nothing on stdout, and no
//! file that was not there before. And what a report says of sound ones.

mod common;
#[path = "common/crafted.rs"]
mod crafted;

use std::path::Path;

use common::{fixture, names, to_gguf};
use crafted::{Q, Tensors, crafted, rename};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs the program on an adapter in every way of saving that reads its values; each run fails and leaves nothing.
fn refused(adapter: &Path, words: &[&str]) {
    let base = fixture("shakespeare-llama");
    for save in [&["--quant", "q4_0", "-o", "x.gguf"][..], &["--quant", "q8_0,f16"], &["--save-method", "merged_16bit"]]
    {
        let dir = TempDir::new().unwrap();
        let args = [adapter.to_str().unwrap(), "--base", base.to_str().unwrap()];
        let run = to_gguf(dir.path(), args.iter().chain(save));
        let line = run.error_line();
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{line}");
        assert!(line.contains(adapter.to_str().unwrap()), "the adapter is not named: {line}");
        words.iter().for_each(|w| assert!(line.contains(w), "{w:?} is not in: {line}"));
        assert_eq!(names(dir.path()), [""; 0], "{line}");
    }
}

fn refused_as(change: impl FnOnce(&mut Value, &mut Tensors), words: &[&str]) {
    refused(crafted(change).path(), words);
}

#[test]
fn damaged_tensors_leave_no_file() {
    let a = &format!("{Q}.lora_A.weight");
    let b = &format!("{Q}.lora_B.weight");
    let other = "base_model.model.model.layers.0.self_attn.query.lora_A.weight";
    refused_as(|_, t| rename(t, a, other), &["has lora_B but no lora_A"]);
    let both = |_: &mut Value, t: &mut Tensors| {
        rename(t, a, other);
        rename(t, b, &other.replace("lora_A", "lora_B"));
    };
    refused_as(both, &[other, "the model does not have"]);
    refused_as(|_, t| drop(t.remove(b)), &["has lora_A but no lora_B"]);
    refused_as(|_, t| t.retain(|_, _| false), &["holds no tensors"]);
    refused_as(|_, t| drop(t.insert(format!("{Q}.lora_C"), (vec![1], vec![0.0]))), &["lora_C is not understood"]);
    refused_as(|_, t| t.get_mut(a).unwrap().0.reverse(), &["lora_A.weight has shape [256, 16]"]);
    // The last module of the file, when most of the output has been written.
    let late = "base_model.model.model.layers.3.mlp.up_proj.lora_B.weight";
    refused_as(|_, t| *t.get_mut(late).unwrap().1.last_mut().unwrap() = f32::NAN, &["layers.3.mlp.up_proj", "NaN"]);
    refused_as(|_, t| t.get_mut(late).unwrap().1[0] = f32::NEG_INFINITY, &["layers.3.mlp.up_proj", "-inf"]);
    let saved = "base_model.model.model.embed_tokens.weight";
    refused_as(|_, t| t.get_mut(saved).unwrap().1[700] = f32::NAN, &["embed_tokens", "row 2, column 188", "NaN"]);
}

#[test]
fn an_adapter_of_another_model_leaves_no_file() {
    let wide = |_: &mut Value, t: &mut Tensors| {
        for (name, (shape, values)) in t.iter_mut().filter(|(n, _)| n.ends_with("lora_A.weight")) {
            let columns = if name.contains("down_proj") { 1024 } else { 512 };
            (*shape, *values) = (vec![16, columns], vec![0.01; 16 * columns]);
        }
    };
    refused_as(wide, &["lora_A.weight has shape [16, ", "use the base model that the adapter was trained on"]);
    let deep = |_: &mut Value, t: &mut Tensors| {
        let (a, b) = (t[&format!("{Q}.lora_A.weight")].clone(), t[&format!("{Q}.lora_B.weight")].clone());
        t.insert(format!("{}.lora_A.weight", Q.replace(".0.", ".31.")), a);
        t.insert(format!("{}.lora_B.weight", Q.replace(".0.", ".31.")), b);
    };
    refused_as(deep, &["layers.31.self_attn.q_proj, which the model does not have", "shakespeare-llama"]);
    let vocabulary = |_: &mut Value, t: &mut Tensors| {
        t.remove("base_model.model.model.embed_tokens.weight");
        t.insert(
            "base_model.model.model.embed_tokens.lora_embedding_A".into(),
            (vec![16, 32000], vec![0.01; 16 * 32000]),
        );
        t.insert("base_model.model.model.embed_tokens.lora_embedding_B".into(), (vec![256, 16], vec![0.01; 256 * 16]));
    };
    refused_as(vocabulary, &["lora_embedding_A has shape [16, 32000]", "[2048, 256]"]);
}

#[test]
fn every_bad_setting_is_named() {
    let bad: [(&str, Value, &[&str]); 31] = [
        ("peft_type", json!(null), &["peft_type is missing"]),
        ("peft_type", json!("LORAX"), &["LORAX", "not known"]),
        ("peft_type", json!(["LORA"]), &["peft_type is [\"LORA\"]"]),
        ("r", json!(0), &["rank 16", "says 0"]),
        ("r", json!(8), &["rank 16", "says 8"]),
        ("r", json!("16"), &["r is \"16\""]),
        ("r", json!(16.5), &["r is 16.5"]),
        ("lora_alpha", json!("32"), &["lora_alpha is \"32\", not a number"]),
        ("lora_alpha", json!({}), &["lora_alpha is {}"]),
        ("use_rslora", json!("yes"), &["use_rslora is \"yes\", not true or false"]),
        ("use_dora", json!(1), &["use_dora is 1, not true or false"]),
        ("rank_pattern", json!([["q_proj", 4]]), &["rank_pattern is [["]),
        ("rank_pattern", json!({"q_proj": 4}), &["q_proj.lora_A.weight has rank 16", "says 4"]),
        ("rank_pattern", json!({"q_proj": 1.5}), &["rank_pattern gives", "1.5"]),
        ("alpha_pattern", json!({"[": 4}), &["alpha_pattern has \"[\""]),
        ("alpha_pattern", json!({"q_proj": null}), &["alpha_pattern gives \"q_proj\" no number"]),
        ("layer_replication", json!([[0, 99]]), &["layer_replication"]),
        ("layer_replication", json!("twice"), &["layer_replication"]),
        ("init_lora_weights", json!("pissa_niter_4"), &["pissa_niter_4", "cannot be merged"]),
        ("init_lora_weights", json!("loftq"), &["loftq", "cannot be merged"]),
        ("init_lora_weights", json!("odd"), &["\"odd\"", "not known here"]),
        ("init_lora_weights", json!(7), &["init_lora_weights is 7"]),
        ("target_parameters", json!(7), &["target_parameters is 7, not names of modules"]),
        ("target_modules", json!({"q_proj": 1}), &["target_modules is {"]),
        ("modules_to_save", json!([1]), &["modules_to_save is [1]"]),
        ("exclude_modules", json!(3), &["exclude_modules is 3"]),
        ("layers_to_transform", json!("all"), &["layers_to_transform is \"all\", not numbers of layers"]),
        ("fan_in_fan_out", json!("no"), &["fan_in_fan_out is \"no\""]),
        ("lora_bias", json!(0), &["lora_bias is 0"]),
        ("base_model_name_or_path", json!(5), &["base_model_name_or_path is 5, not a text"]),
        ("trainable_token_indices", json!("all"), &["trainable_token_indices is \"all\""]),
    ];
    for (key, value, words) in bad {
        refused_as(|c, _| c[key] = value, words);
    }
}

#[test]
fn incomplete_folders_leave_no_file() {
    let empty = TempDir::new().unwrap();
    refused(empty.path(), &["config.json"]);
    let folder = crafted(|_, _| ());
    std::fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    refused(folder.path(), &["config.json"]);
    let folder = crafted(|_, _| ());
    let weights = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..length]).unwrap();
        refused(folder.path(), &["adapter_model.safetensors"]);
    }
    std::fs::remove_file(&weights).unwrap();
    refused(folder.path(), &["neither adapter_model.safetensors nor adapter_model.bin"]);
    std::fs::write(folder.path().join("adapter_model.bin"), b"\x80\x02cposix\nsystem\nq\x00.").unwrap();
    refused(folder.path(), &["adapter_model.bin"]);
}

/// A finished conversion, as `--json` tells it.
fn converted(adapters: &[&str]) -> Value {
    let dir = TempDir::new().unwrap();
    let base = fixture("shakespeare-llama");
    let mut args = vec![base.to_str().unwrap(), "--quant", "f32", "--json", "-o", "x.gguf"];
    adapters.iter().for_each(|a| args.extend(["--lora", a]));
    let run = to_gguf(dir.path(), &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

/// `‖scale B A‖ / ‖W‖` of a module, in f64.
fn relative(tensors: &Tensors, scale: f64) -> f64 {
    let (a, b) = (&tensors[&format!("{Q}.lora_A.weight")].1, &tensors[&format!("{Q}.lora_B.weight")].1);
    let model = to_gguf::source::ModelFolder::open(fixture("shakespeare-llama")).unwrap().tensors();
    let weight = model.get("model.layers.0.self_attn.q_proj.weight").unwrap();
    let mut values = vec![0.0f32; 256 * 256];
    weight.rows(0..256, &mut values, &mut to_gguf::recipe::Scratch::default()).unwrap();
    let delta = |i: usize, j: usize| (0..16).map(|k| f64::from(b[i * 16 + k]) * f64::from(a[k * 256 + j])).sum::<f64>();
    let squares: f64 = (0..256 * 256).map(|e| (scale * delta(e / 256, e % 256)).powi(2)).sum();
    (squares / values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn a_report_tells_what_changed_and_by_how_much() {
    let mut file = Tensors::new();
    let folder = crafted(|c, t| {
        c["base_model_name_or_path"] = json!("someone/other-llama");
        t.retain(|n, _| n.contains("lora_") && !n.contains("layers.2.mlp"));
        file = t.clone();
    });
    let zero = crafted(|_, t| {
        t.retain(|n, _| n.contains("lora_"));
        t.iter_mut().filter(|(n, _)| n.contains("lora_B")).for_each(|(_, (_, v))| v.fill(0.0));
    });
    let (first, second) = (folder.path().to_str().unwrap(), zero.path().to_str().unwrap());
    let report = converted(&[&format!("{first}=-0.5"), second]);
    let adapters = report["adapters"].as_array().unwrap();
    assert_eq!(
        (&adapters[0]["weight"], &adapters[0]["kind"], &adapters[0]["tensors"]),
        (&json!(-0.5), &json!("LoRA"), &json!(25))
    );
    let changes = report["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 25 + 28);
    let of = |adapter: &str| {
        let own = |c: &&Value| c["tensor"] == "model.layers.0.self_attn.q_proj.weight" && c["adapter"] == adapter;
        changes.iter().find(own).unwrap_or_else(|| panic!("{adapter} in {changes:?}"))
    };
    let change = of(first);
    assert_eq!((&change["kind"], &change["rank"]), (&json!("LoRA"), &json!(16)));
    let (told, expected) = (change["relative_change"].as_f64().unwrap(), relative(&file, 32.0 / 16.0 * 0.5));
    assert!((told - expected).abs() < 1e-4 * expected, "{told} is told, {expected} is true");
    assert_eq!(of(second)["relative_change"], json!(0.0));
    let warnings = report["warnings"].to_string();
    for words in [
        "was trained on someone/other-llama, not on shakespeare-llama",
        "holds 25 of the 28 modules that its config targets; the first without is model.layers.2.mlp",
        "changes next to nothing",
    ] {
        assert!(warnings.contains(words), "{words:?} is not in {warnings}");
    }
    assert!(warnings.contains(&format!("{second} changes next to nothing")), "{warnings}");
}

#[test]
fn two_forms_on_one_module_are_both_merged() {
    let lora = crafted(|_, t| t.retain(|n, _| n.starts_with(Q)));
    let ia3 = crafted(|c, t| {
        *c = json!({"peft_type": "IA3", "feedforward_modules": [], "base_model_name_or_path": "shakespeare-llama"});
        *t = Tensors::from([(format!("{Q}.ia3_l"), (vec![256, 1], vec![1.25; 256]))]);
    });
    let report = converted(&[lora.path().to_str().unwrap(), ia3.path().to_str().unwrap()]);
    let kinds: Vec<&Value> = report["changes"].as_array().unwrap().iter().map(|c| &c["kind"]).collect();
    assert_eq!(kinds, ["LoRA", "IA3"]);
    let change = report["changes"][1]["relative_change"].as_f64().unwrap();
    assert!((change - 0.25).abs() < 1e-4, "the full delta of IA3 is a quarter of the unmerged weight, not {change}");
}
