//! Adapters damaged at random: whatever is in the files, the answer is a merge or one line, never a panic.
//!
//! Every setting of the config takes every kind of value, and the header of the weights is changed a byte at a time
//! and a field at a time. What is accepted is also evaluated, in part.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use to_gguf::adapter::{Adapter, BaseInfo, MergeOptions, apply};
use to_gguf::recipe::Scratch;
use to_gguf::source::{ModelFolder, TensorSet};

const WEIGHTS: &str = "adapter_model.safetensors";

/// A model, and an adapter in a folder of its own that is written anew for each case.
struct Bench {
    tensors: TensorSet,
    base: BaseInfo,
    folder: TempDir,
    config: Value,
    weights: Vec<u8>,
    refused: usize,
    merged: usize,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

impl Bench {
    fn new() -> Bench {
        let model = ModelFolder::open(fixture("shakespeare-llama")).unwrap();
        let adapter = fixture("shakespeare-lora");
        let bench = Bench {
            tensors: model.tensors(),
            base: BaseInfo::new(model.name(), model.config()),
            folder: TempDir::new().unwrap(),
            config: serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap(),
            weights: std::fs::read(adapter.join(WEIGHTS)).unwrap(),
            refused: 0,
            merged: 0,
        };
        bench.write("adapter_config.json", bench.config.to_string().as_bytes());
        bench.write(WEIGHTS, &bench.weights);
        bench
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    /// Merges and evaluates the first rows of what changed.
    fn merge(&self) -> Result<(), String> {
        let adapter = Adapter::open(self.folder.path(), None).map_err(|e| e.to_string())?;
        let mut tensors = self.tensors.clone();
        let summary =
            apply(&[(adapter, 1.0)], &mut tensors, &self.base, &MergeOptions::default()).map_err(|e| e.to_string())?;
        for change in summary.changes.iter().step_by(11) {
            let recipe = tensors.get(&change.tensor).ok_or("a change of no tensor")?;
            let rows = recipe.shape().rows().min(2);
            let mut out = vec![0.0; (rows * recipe.shape().row_len()) as usize];
            recipe.rows(0..rows, &mut out, &mut Scratch::default()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn check(&mut self, what: &str) {
        match self.merge() {
            Ok(()) => self.merged += 1,
            Err(line) => {
                assert!(!line.contains('\n') && line.len() > 20, "{what}: {line}");
                let folder = self.folder.path().to_string_lossy();
                assert!(line.contains(&*folder), "{what}: no file is named in: {line}");
                self.refused += 1;
            }
        }
    }
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

#[test]
fn no_setting_of_any_value_panics() {
    let mut bench = Bench::new();
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(0.5),
        json!(u64::MAX),
        json!("x"),
        json!("(a+)+$"),
        json!([]),
        json!([[0, u64::MAX]]),
        json!([1, "x", null]),
        json!({}),
        json!({"q_proj": 0}),
        json!({"(?<=a)b|q_proj": 1e308, "[": 3}),
    ];
    let own: Vec<String> = bench.config.as_object().unwrap().keys().cloned().collect();
    let others = ["use_dora", "layer_replication", "trainable_token_indices", "rank_pattern", "alpha_pattern"];
    let kinds = ["ADALORA", "VERA", "LOKR", "OFT", "BOFT", "C3A", "FOURIERFT", "SHIRA", "RANDLORA", "BONE", "MISS"];
    let keys: Vec<String> = own.into_iter().chain(others.map(String::from)).collect();
    for (key, value) in keys.iter().flat_map(|k| values.iter().map(move |v| (k, v))) {
        let mut config = bench.config.clone();
        config[key] = value.clone();
        bench.write("adapter_config.json", config.to_string().as_bytes());
        bench.check(&format!("{key} = {value}"));
    }
    for kind in kinds {
        let mut config = bench.config.clone();
        config["peft_type"] = json!(kind);
        bench.write("adapter_config.json", config.to_string().as_bytes());
        bench.check(kind);
    }
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let text = bench.config.to_string().into_bytes();
    for i in 0..300 {
        let mut damaged = text.clone();
        let at = dice.below(damaged.len());
        match i % 3 {
            0 => damaged[at] = dice.below(256) as u8,
            1 => damaged.truncate(at),
            _ => drop(damaged.drain(at..(at + 1 + dice.below(9)).min(text.len()))),
        }
        bench.write("adapter_config.json", &damaged);
        bench.check(&String::from_utf8_lossy(&damaged));
    }
    assert!(bench.refused > 300 && bench.merged > 100, "{} refused, {} merged", bench.refused, bench.merged);
}

#[test]
fn no_header_of_the_weights_panics() {
    let mut bench = Bench::new();
    let weights = bench.weights.clone();
    let len = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let (header, data) = (&weights[8..8 + len], &weights[8 + len..]);
    let put = |bench: &Bench, header: &[u8]| {
        bench.write(WEIGHTS, &[&(header.len() as u64).to_le_bytes(), header, data].concat());
    };
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    for _ in 0..200 {
        let mut damaged = header.to_vec();
        let at = dice.below(damaged.len());
        damaged[at] = dice.below(256) as u8;
        put(&bench, &damaged);
        bench.check("a byte of the header");
    }
    let parsed: Value = serde_json::from_slice(header).unwrap();
    let names: Vec<String> = parsed.as_object().unwrap().keys().filter(|k| *k != "__metadata__").cloned().collect();
    let shapes =
        [json!([]), json!([0]), json!([0, 256]), json!([1, 1]), json!([u64::MAX, 2]), json!([2, 2, 2, 2]), json!(7)];
    for i in 0..200 {
        let mut changed = parsed.clone();
        let name = &names[dice.below(names.len())];
        match i % 5 {
            0 => changed[name]["shape"] = shapes[dice.below(shapes.len())].clone(),
            1 => changed[name]["dtype"] = json!(["F64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "x"][dice.below(7)]),
            2 => changed[name]["data_offsets"] = json!([dice.below(1 << 20), dice.below(1 << 20)]),
            3 => drop(changed.as_object_mut().unwrap().shift_remove(name)),
            _ => {
                let tensor = changed.as_object_mut().unwrap().shift_remove(name).unwrap();
                let cut = dice.below(name.len() + 1);
                let cut = (cut..=name.len()).find(|&c| name.is_char_boundary(c)).unwrap();
                changed[format!("{}{}", &name[..cut], ["", ".lora_A", "base_layer.", "é"][dice.below(4)])] = tensor;
            }
        }
        put(&bench, changed.to_string().as_bytes());
        bench.check("a field of the header");
    }
    for _ in 0..50 {
        bench.write(WEIGHTS, &weights[..dice.below(weights.len())]);
        bench.check("a truncated file");
    }
    assert!(bench.refused > 300, "{} refused, {} merged", bench.refused, bench.merged);
}
