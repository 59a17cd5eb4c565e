//! Merging adapters into a model: the fixture, weights, ties, and the facts that the plan needs.

use std::path::{Path, PathBuf};

use to_gguf::adapter::{Adapter, BaseInfo, MergeDtype, MergeOptions, MergeSummary, apply};
use to_gguf::recipe::Scratch;
use to_gguf::source::{ModelFolder, TensorSet, open_weight_file};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn values(tensors: &TensorSet, name: &str) -> Vec<f32> {
    let recipe = tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out
}

fn merge(adapters: &[(Adapter, f32)], dtype: MergeDtype) -> (TensorSet, TensorSet, MergeSummary) {
    let model = ModelFolder::open(fixture("shakespeare-llama")).unwrap();
    let before = model.tensors();
    let mut after = before.clone();
    let base = BaseInfo::new(model.name(), model.config());
    let summary = apply(adapters, &mut after, &base, &MergeOptions { dtype }).unwrap();
    (before, after, summary)
}

/// `W + scale * B @ A` in f64.
fn expected(before: &TensorSet, adapter: &TensorSet, module: &str, scale: f64) -> Vec<f64> {
    let w = values(before, &format!("{module}.weight"));
    let a = values(adapter, &format!("base_model.model.{module}.lora_A.weight"));
    let b = values(adapter, &format!("base_model.model.{module}.lora_B.weight"));
    let (rank, cols) = (16, a.len() / 16);
    (w.iter().enumerate())
        .map(|(i, w)| {
            let (row, col) = (i / cols, i % cols);
            let sum: f64 = (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * cols + col])).sum();
            f64::from(*w) + scale * sum
        })
        .collect()
}

fn close(ours: &[f32], expected: &[f64]) {
    let largest = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
    let worst = ours.iter().zip(expected).fold(0f64, |m, (x, y)| m.max((f64::from(*x) - y).abs()));
    assert!(worst <= 1e-6 * largest, "off by {worst} of {largest}");
}

#[test]
fn the_fixture_merges_as_its_formula_says() {
    let adapter = Adapter::open(&fixture("shakespeare-lora"), None).unwrap();
    let file = open_weight_file(&fixture("shakespeare-lora/adapter_model.safetensors")).unwrap();
    let (before, after, summary) = merge(&[(adapter, 1.0)], MergeDtype::F32);
    let mut seen = 0;
    for (name, _) in before.iter() {
        let module = name.trim_end_matches(".weight");
        if file.contains(&format!("base_model.model.{module}.lora_A.weight")) {
            close(&values(&after, name), &expected(&before, &file, module, 2.0));
        } else if file.contains(&format!("base_model.model.{name}")) {
            assert_eq!(values(&after, name), values(&file, &format!("base_model.model.{name}")), "{name}");
        } else {
            assert_eq!(values(&after, name), values(&before, name), "{name}");
            continue;
        }
        seen += 1;
    }
    assert_eq!((seen, summary.changes.len()), (30, 30), "28 projections, the embedding and the head");
    assert_eq!(summary.untied_head, None);
    assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
    assert!(summary.changes.iter().all(|c| c.meter.ratio().is_some_and(|r| r > 0.0)));
}

#[test]
fn weights_combine_full_deltas() {
    let open = || Adapter::open(&fixture("shakespeare-lora"), None).unwrap();
    let file = open_weight_file(&fixture("shakespeare-lora/adapter_model.safetensors")).unwrap();
    let (before, after, _) = merge(&[(open(), 0.7), (open(), -0.3)], MergeDtype::F32);
    let module = "model.layers.1.mlp.down_proj";
    close(&values(&after, &format!("{module}.weight")), &expected(&before, &file, module, 0.8));
    let (old, new) = (values(&before, "lm_head.weight"), values(&file, "base_model.model.lm_head.weight"));
    let between: Vec<f64> =
        old.iter().zip(&new).map(|(w, s)| f64::from(*w) + 0.4 * (f64::from(*s) - f64::from(*w))).collect();
    close(&values(&after, "lm_head.weight"), &between);
}

#[test]
fn a_16_bit_merge_rounds_every_tensor_once() {
    let adapter = Adapter::open(&fixture("shakespeare-lora"), None).unwrap();
    let (_, exact, _) = merge(&[(adapter.clone(), 1.0)], MergeDtype::F32);
    let (_, rounded, _) = merge(&[(adapter, 1.0)], MergeDtype::Bf16);
    for (name, _) in exact.iter() {
        let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
        let expected: Vec<f32> = values(&exact, name).iter().map(round).collect();
        assert_eq!(values(&rounded, name), expected, "{name}");
    }
}
