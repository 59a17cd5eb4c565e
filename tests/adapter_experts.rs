//! LoRA of single experts, as adapters of models with a module for each expert have it, over a model that stores its
//! experts as one tensor: the same values as over a model that stores every expert on its own.

mod common;
#[path = "common/crafted.rs"]
mod crafted;

use crafted::{Tensors, save};
use serde_json::json;
use tempfile::TempDir;
use to_gguf::adapter::{Adapter, BaseInfo, MergeOptions, apply};
use to_gguf::recipe::Scratch;
use to_gguf::source::{ModelFolder, TensorSet};

const EXPERTS: usize = 3;
const HIDDEN: usize = 10;
const INNER: usize = 6;

/// Numbers that look random.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The matrix of expert `e` under the names of `piece`, the same in both models.
fn matrix(piece: &str, e: usize) -> (Vec<usize>, Vec<f32>) {
    let shape = if piece == "down_proj" { vec![HIDDEN, INNER] } else { vec![INNER, HIDDEN] };
    (shape, noise(HIDDEN * INNER, (piece.len() * 100 + usize::from(piece.as_bytes()[0]) + e) as u64))
}

fn model(tensors: &Tensors) -> TempDir {
    let folder = TempDir::new().unwrap();
    save(folder.path(), &json!({}), tensors);
    let weights = folder.path().join("adapter_model.safetensors");
    std::fs::rename(weights, folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("config.json"), json!({"model_type": "qwen3_moe"}).to_string()).unwrap();
    folder
}

fn stacked() -> TempDir {
    let rows = |pieces: &[&str]| (0..EXPERTS).flat_map(|e| pieces.iter().flat_map(move |p| matrix(p, e).1)).collect();
    model(&Tensors::from([
        (
            "model.layers.0.mlp.experts.gate_up_proj".into(),
            (vec![EXPERTS, 2 * INNER, HIDDEN], rows(&["gate_proj", "up_proj"])),
        ),
        ("model.layers.0.mlp.experts.down_proj".into(), (vec![EXPERTS, HIDDEN, INNER], rows(&["down_proj"]))),
    ]))
}

fn apart() -> TempDir {
    let pieces = ["gate_proj", "up_proj", "down_proj"];
    let named = |e: usize, p: &str| (format!("model.layers.0.mlp.experts.{e}.{p}.weight"), matrix(p, e));
    model(&(0..EXPERTS).flat_map(|e| pieces.map(|p| named(e, p))).collect())
}

/// Factors of different ranks for some of the experts; the middle one's `up_proj` is not trained.
fn adapter() -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut tensors = Tensors::new();
    for e in 0..EXPERTS {
        for (piece, rank) in [("gate_proj", 2), ("up_proj", 3), ("down_proj", 4)] {
            if (e, piece) == (1, "up_proj") {
                continue;
            }
            let (shape, _) = matrix(piece, e);
            let name = format!("base_model.model.model.layers.0.mlp.experts.{e}.{piece}");
            let seed = (e * 10 + rank) as u64;
            tensors.insert(format!("{name}.lora_A.weight"), (vec![rank, shape[1]], noise(rank * shape[1], seed)));
            tensors.insert(format!("{name}.lora_B.weight"), (vec![shape[0], rank], noise(rank * shape[0], seed + 1)));
        }
    }
    let ranks = json!({"gate_proj": 2, "up_proj": 3, "down_proj": 4});
    save(folder.path(), &json!({"peft_type": "LORA", "r": 8, "lora_alpha": 6, "rank_pattern": ranks}), &tensors);
    folder
}

fn merged(model: &TempDir, weights: &[f32]) -> Result<TensorSet, String> {
    let model = ModelFolder::open(model.path()).unwrap();
    let mut tensors = model.tensors();
    let folder = adapter();
    let adapters: Vec<(Adapter, f32)> =
        weights.iter().map(|w| (Adapter::open(folder.path(), None).unwrap(), *w)).collect();
    apply(&adapters, &mut tensors, &BaseInfo::new("model", model.config()), &MergeOptions::default())
        .map_err(|e| e.to_string())?;
    // The folder goes with this call, so values are taken now.
    let mut kept = TensorSet::default();
    for (name, recipe) in tensors.iter() {
        let values = values(&tensors, name, 1);
        let recipe = to_gguf::recipe::Recipe::constant(recipe.shape().clone(), values).unwrap();
        kept.set(name, recipe);
    }
    Ok(kept)
}

/// A tensor's values, read `step` rows at a time.
fn values(tensors: &TensorSet, name: &str, step: u64) -> Vec<f32> {
    let recipe = tensors.get(name).unwrap();
    let (rows, cols) = (recipe.shape().rows(), recipe.shape().row_len());
    let mut all = vec![0.0; (rows * cols) as usize];
    for start in (0..rows).step_by(step as usize) {
        let end = rows.min(start + step);
        let piece = &mut all[(start * cols) as usize..(end * cols) as usize];
        recipe.rows(start..end, piece, &mut Scratch::default()).unwrap();
    }
    all
}

#[test]
fn single_experts_of_a_stack_are_merged() {
    for weights in [&[1.0][..], &[0.5, -2.0]] {
        let (stack, split) = (merged(&stacked(), weights).unwrap(), merged(&apart(), weights).unwrap());
        let check = |stacked: &str, pieces: &[&str]| {
            let ours = values(&stack, &format!("model.layers.0.mlp.experts.{stacked}"), 5);
            let each = (0..EXPERTS).flat_map(|e| pieces.iter().map(move |p| (e, p)));
            let own = |(e, p)| values(&split, &format!("model.layers.0.mlp.experts.{e}.{p}.weight"), 4);
            let expected: Vec<f32> = each.clone().flat_map(own).collect();
            let same = |(x, y): (&f32, &f32)| (x - y).abs() <= 1e-6;
            assert!(ours.len() == expected.len() && ours.iter().zip(&expected).all(same), "{stacked}: {weights:?}");
            let plain: Vec<f32> = each.flat_map(|(e, p)| matrix(p, e).1).collect();
            let changed = ours.iter().zip(&plain).filter(|(x, y)| x != y).count();
            let trained = if pieces.len() == 2 { 5 } else { 3 };
            assert!(changed > trained * HIDDEN * INNER * 9 / 10 && changed <= trained * HIDDEN * INNER, "{changed}");
        };
        check("gate_up_proj", &["gate_proj", "up_proj"]);
        check("down_proj", &["down_proj"]);
    }
}
