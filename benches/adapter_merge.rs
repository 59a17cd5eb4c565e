//! Merging of each form against a plain copy of the same weights: one thread, pages in memory.
//!
//! `cargo bench --bench adapter_merge [-- FORM ...]` prints, per form, gigabytes of bf16 weights per second, and the
//! ratio to decoding the same rows without an adapter. Factors are random and mean nothing.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use to_gguf::adapter::{Adapter, BaseInfo, MergeOptions, apply};
use to_gguf::recipe::{Recipe, Scratch};
use to_gguf::source::ModelFolder;

const ROWS: u64 = 4096;
const COLS: u64 = 4096;
/// Rows of a chunk, as the engine cuts them.
const CHUNK: u64 = 64;
const MODULE: &str = "model.layers.0.self_attn.q_proj";

/// Name and shape of a tensor.
type Part = (String, Vec<u64>);

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("a folder");
    fs::write(model.join("config.json"), json!({"model_type": "llama"}).to_string()).expect("room");
    write(&model.join("model.safetensors"), "BF16", &[(format!("{MODULE}.weight"), vec![ROWS, COLS])]);
    let model = ModelFolder::open(&model).expect("a model");
    let tensors = model.tensors();
    let base = BaseInfo::new("model", model.config());
    let plain = time(tensors.get(&format!("{MODULE}.weight")).expect("the weight"));
    println!("{:22} {:6.2} GB/s", "no adapter", gigabytes() / plain);
    for (form, config, parts) in forms() {
        if !wanted.is_empty() && !wanted.iter().any(|w| form.contains(w.as_str())) {
            continue;
        }
        let folder = dir.path().join("adapter");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("adapter_config.json"), config.to_string()).expect("room");
        let parts: Vec<Part> = parts.into_iter().map(|(n, s)| (format!("base_model.model.{n}"), s)).collect();
        write(&folder.join("adapter_model.safetensors"), "F32", &parts);
        let adapter = Adapter::open(&folder, None).unwrap_or_else(|e| panic!("{form}: {e}"));
        let mut merged = tensors.clone();
        apply(&[(adapter, 1.0)], &mut merged, &base, &MergeOptions::default())
            .unwrap_or_else(|e| panic!("{form}: {e}"));
        let seconds = time(merged.get(&format!("{MODULE}.weight")).expect("the weight"));
        println!("{form:22} {:6.2} GB/s  {:6.1} x the time without", gigabytes() / seconds, seconds / plain);
    }
}

/// Forms, their configs and tensors.
fn forms() -> Vec<(String, Value, Vec<Part>)> {
    let own = |part: &str| format!("{MODULE}.{part}");
    let lora = |r: u64| vec![(own("lora_A.weight"), vec![r, COLS]), (own("lora_B.weight"), vec![ROWS, r])];
    let mut all = Vec::new();
    for r in [8, 16, 64, 256] {
        all.push((format!("LoRA {r}"), json!({"peft_type": "LORA", "r": r, "lora_alpha": 16}), lora(r)));
    }
    for r in [16, 64] {
        let mut parts = lora(r);
        parts.push((own("lora_magnitude_vector"), vec![ROWS]));
        all.push((
            format!("DoRA {r}"),
            json!({"peft_type": "LORA", "r": r, "lora_alpha": 16, "use_dora": true}),
            parts,
        ));
    }
    let half = ["hada_w1_a", "hada_w2_a"].map(|p| (own(p), vec![ROWS, 16]));
    let other = ["hada_w1_b", "hada_w2_b"].map(|p| (own(p), vec![16, COLS]));
    all.push(("LoHa 16".into(), json!({"peft_type": "LOHA", "r": 16, "alpha": 16}), [half, other].concat()));
    let sides = vec![(own("lokr_w1"), vec![64, 64]), (own("lokr_w2"), vec![64, 64])];
    all.push(("LoKr 64".into(), json!({"peft_type": "LOKR", "r": 16, "alpha": 16}), sides));
    all.push((
        "IA3".into(),
        json!({"peft_type": "IA3", "feedforward_modules": []}),
        vec![(own("ia3_l"), vec![ROWS, 1])],
    ));
    let oft = json!({"peft_type": "OFT", "r": 0, "oft_block_size": 32, "use_cayley_neumann": false});
    all.push(("OFT 32".into(), oft, vec![(own("oft_R.weight"), vec![COLS / 32, 496])]));
    let boft = json!({"peft_type": "BOFT", "boft_block_size": 8, "boft_n_butterfly_factor": 2});
    let parts = vec![(own("boft_R"), vec![2, COLS / 8, 8, 8]), (own("boft_s"), vec![ROWS, 1])];
    all.push(("BOFT 8 x 2".into(), boft, parts));
    let vera = json!({"peft_type": "VERA", "r": 256, "save_projection": true});
    let parts = vec![
        (own("vera_lambda_b"), vec![ROWS]),
        (own("vera_lambda_d"), vec![256]),
        ("vera_A".to_string(), vec![256, COLS]),
        ("vera_B".to_string(), vec![ROWS, 256]),
    ];
    all.push(("VeRA 256".into(), vera, parts));
    all.push(("HRA 8".into(), json!({"peft_type": "HRA", "r": 8}), vec![(own("hra_u"), vec![COLS, 8])]));
    all.push(("MiSS 16".into(), json!({"peft_type": "MISS", "r": 16}), vec![(own("miss_block"), vec![16, ROWS])]));
    let c3a = vec![(own("c3a_kernel"), vec![ROWS / 256, COLS / 256, 256])];
    all.push(("C3A 256".into(), json!({"peft_type": "C3A", "block_size": 256}), c3a));
    all
}

fn gigabytes() -> f64 {
    (ROWS * COLS * 2) as f64 / 1e9
}

/// The best of some passes over all rows, in seconds.
fn time(recipe: &Recipe) -> f64 {
    let mut scratch = Scratch::default();
    let mut out = vec![0.0f32; (CHUNK * COLS) as usize];
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        for row in (0..ROWS).step_by(CHUNK as usize) {
            recipe.rows(row..row + CHUNK, &mut out, &mut scratch).expect("rows");
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Writes tensors of small random numbers.
fn write(path: &Path, dtype: &str, tensors: &[Part]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<u64>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let value = ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.02;
            match dtype {
                "BF16" => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => data.extend(value.to_le_bytes()),
            }
        }
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.append(&mut data);
    fs::write(path, file).expect("room for the tensors");
}
