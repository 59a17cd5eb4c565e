//! Merged models under their own names: files, names, shards, four bits, refusals.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{fixture, names, to_gguf};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

/// All tensors of a folder's shards: type, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let mut all = Tensors::new();
    for name in names(folder).iter().filter(|n| n.ends_with(".safetensors")) {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        for (name, t) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            all.insert(name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        }
    }
    all
}

fn model(folder: &Path, config: &str, list: &[(&str, Dtype, &[usize])]) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    let data: Vec<Vec<u8>> = list
        .iter()
        .map(|(_, dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            // The upper byte of a float small enough for it to be one.
            (0..bytes).map(|i| if i % 2 == 0 { i as u8 } else { 0x3C }).collect()
        })
        .collect();
    let views = list.iter().zip(&data).map(|((n, d, s), b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
    std::fs::write(folder.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

fn saved(folder: &Path, args: &[&str]) -> String {
    let run = to_gguf(folder, args);
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    run.stdout
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_merged_model_is_a_whole_model_folder() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = fixture("shakespeare-lora");
    let adapter = adapter.to_str().unwrap();
    saved(dir.path(), &[adapter, "--save-method", "merged_16bit"]);
    let out = dir.path().join("shakespeare-lora-merged");
    assert_eq!(
        names(&out),
        [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let base = tensors(&fixture("shakespeare-llama"));
    let merged = tensors(&out);
    assert_eq!(base.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>());
    assert!(merged.iter().all(|(n, t)| (t.0, &t.1) == (base[n].0, &base[n].1)));
    let changed = |n: &str| merged[n].2 != base[n].2;
    assert!(changed("model.layers.0.self_attn.q_proj.weight") && !changed("model.layers.0.input_layernorm.weight"));
    // What is merged is what goes into a GGUF.
    saved(dir.path(), &[adapter, "--quant", "bf16", "-o", "direct.gguf"]);
    saved(dir.path(), &[out.to_str().unwrap(), "--quant", "bf16", "-o", "detour.gguf"]);
    let size = |f: &str| std::fs::metadata(dir.path().join(f)).unwrap().len();
    let tail = |f: &str| {
        let bytes = std::fs::read(dir.path().join(f)).unwrap();
        bytes[bytes.len() - 8_000_000..].to_vec()
    };
    assert!(size("direct.gguf") > 8_000_000 && tail("direct.gguf") == tail("detour.gguf"));
}

#[test]
fn shards_hold_the_same_tensors_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = fixture("shakespeare-lora");
    let adapter = adapter.to_str().unwrap();
    for method in ["merged_16bit", "merged_4bit_forced"] {
        let save = |out: &str, more: &[&str]| {
            saved(dir.path(), &[&[adapter, "--save-method", method, "-o", out, "--force"], more].concat());
            tensors(&dir.path().join(out))
        };
        let whole = save("whole", &["--threads", "1"]);
        let shards = save("shards", &["--max-shard-size", "1MB", "--threads", "3", "--max-memory", "300KB"]);
        assert!(whole == shards, "{method}");
        let index = json(&dir.path().join("shards/model.safetensors.index.json"));
        assert_eq!(index["metadata"]["total_parameters"], 4_196_608);
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), whole.len());
        for (name, file) in map {
            let bytes = std::fs::read(dir.path().join("shards").join(file.as_str().unwrap())).unwrap();
            assert!(bytes.len() < 1_200_000 && SafeTensors::deserialize(&bytes).unwrap().tensor(name).is_ok());
        }
    }
}

#[test]
fn four_bits_are_those_of_bitsandbytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("nf4");
    let bytes = std::fs::read(model.join("packed.safetensors")).unwrap();
    let expected: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    // A memory so small that blocks are cut at chunk borders.
    for more in [&["--threads", "1"][..], &["--threads", "5", "--max-memory", "10KB"]] {
        let args = ["--save-method", "merged_4bit_forced", "-o", "out", "--force"];
        saved(dir.path(), &[&[model.to_str().unwrap()], &args[..], more].concat());
        let ours = tensors(&dir.path().join("out"));
        assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, tensor) in &expected {
            assert!(ours[name] == *tensor, "{name}: {:?}", (&ours[name].0, &ours[name].1));
        }
    }
    let config = json(&dir.path().join("out/config.json"));
    assert_eq!(config["quantization_config"]["bnb_4bit_quant_type"], "nf4");
}

#[test]
fn four_bits_warn_unless_they_are_forced() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("nf4");
    let run = |method| to_gguf(dir.path(), [model.to_str().unwrap(), "--save-method", method, "--dry-run"]);
    assert!(run("merged_4bit").stderr.contains("less exact"));
    assert_eq!(run("merged_4bit_forced").stderr, "");
}

#[test]
fn a_dry_run_is_exact_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = fixture("shakespeare-lora");
    for method in ["merged_16bit", "merged_4bit_forced"] {
        let args =
            [adapter.to_str().unwrap(), "--save-method", method, "-o", "out", "--json", "--max-shard-size", "2MB"];
        let plan = to_gguf(dir.path(), [&args[..], &["--dry-run"]].concat());
        assert!(names(dir.path()).is_empty());
        let real: serde_json::Value = serde_json::from_str(&saved(dir.path(), &args)).unwrap();
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
        assert_eq!((&plan["outputs"], &plan["files"]), (&real["outputs"], &real["files"]));
        for output in real["outputs"].as_array().unwrap() {
            let path = dir.path().join(output["path"].as_str().unwrap());
            assert_eq!(std::fs::metadata(path).unwrap().len(), output["bytes"].as_u64().unwrap());
        }
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
}

#[test]
fn what_transformers_would_not_write_again_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "unheard_of", "dtype": "float16", "tie_word_embeddings": true, "auto_map": {"AutoModel": "m.M"}}"#;
    let base = dir.path().join("base");
    model(
        &base,
        config,
        &[
            ("model.embed_tokens.weight", Dtype::F16, &[6, 4]),
            ("lm_head.weight", Dtype::F16, &[6, 4]),
            ("model.layers.0.x.weight", Dtype::BF16, &[4, 4]),
            ("model.layers.0.rotary_emb.inv_freq", Dtype::F32, &[2]),
            ("model.layers.0.table", Dtype::I64, &[3]),
        ],
    );
    std::fs::write(base.join("m.py"), "class M: pass\n").unwrap();
    std::fs::write(base.join("preprocessor_config.json"), "{}").unwrap();
    saved(dir.path(), &["base", "--save-method", "merged_16bit", "-o", "out"]);
    let out = tensors(&dir.path().join("out"));
    let kept: Vec<_> = out.iter().map(|(n, t)| (n.as_str(), t.0)).collect();
    let expected = [
        ("model.embed_tokens.weight", Dtype::F16),
        ("model.layers.0.table", Dtype::I64),
        ("model.layers.0.x.weight", Dtype::F16),
    ];
    assert_eq!(kept, expected);
    assert_eq!(out["model.layers.0.table"].2, tensors(&base)["model.layers.0.table"].2);
    assert!(dir.path().join("out/m.py").exists() && dir.path().join("out/preprocessor_config.json").exists());
    // Another type on demand; f32 is not what 16 bits are, unless it is asked for.
    saved(dir.path(), &["base", "--save-method", "merged_16bit", "-o", "bf16", "--dtype", "bf16"]);
    assert_eq!(tensors(&dir.path().join("bf16"))["model.layers.0.x.weight"].0, Dtype::BF16);
    assert_eq!(json(&dir.path().join("bf16/config.json"))["dtype"], "bfloat16");
}

#[test]
fn nothing_is_damaged_and_nothing_old_is_left_among_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    model(&base, r#"{"model_type": "x", "dtype": "bfloat16"}"#, &[("a.weight", Dtype::BF16, &[64, 64])]);
    let failing = |args: &[&str], code: i32, word: &str| {
        let run = to_gguf(dir.path(), args);
        assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
        assert!(run.error_line().contains(word), "{args:?}: {}", run.stderr);
    };
    let sixteen = ["base", "--save-method", "merged_16bit", "-o"];
    failing(&[&sixteen[..], &["base", "--force"]].concat(), 1, "another folder");
    failing(&[&sixteen[..], &["x.gguf"]].concat(), 1, "folder");
    failing(&[&sixteen[..], &["out", "--quant", "q8_0"]].concat(), 2, "--quant");
    failing(&[&sixteen[..], &["out", "--imatrix", "i"]].concat(), 2, "--imatrix");
    failing(&["base", "--save-method", "merged_4bit", "--max-shard-size", "0"], 2, "0");
    model(&dir.path().join("flat"), r#"{"model_type": "x"}"#, &[("a.weight", Dtype::BF16, &[64])]);
    failing(&["flat", "--save-method", "merged_4bit"], 1, "merged_16bit");

    saved(dir.path(), &[&sixteen[..], &["out", "--max-shard-size", "1KB"]].concat());
    let old = names(&dir.path().join("out"));
    failing(&[&sixteen[..], &["out"]].concat(), 1, "already exists");
    assert_eq!(names(&dir.path().join("out")), old);
    std::fs::write(dir.path().join("out/model-00001-of-00002.safetensors"), b"old").unwrap();
    saved(dir.path(), &[&sixteen[..], &["out", "--force"]].concat());
    assert_eq!(names(&dir.path().join("out")), ["README.md", "config.json", "model.safetensors"]);
}
