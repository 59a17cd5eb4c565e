//! The main job at size: a random Llama of 1.1 billion parameters (TinyLlama's shape, bf16) with a rank-16
//! adapter on every projection, merged and quantized. Prints wall time, throughput and peak memory next to the
//! floor: the time that reading the source takes.
//!
//!     cargo bench --bench main_job -- [--types q4_k_m,q8_0] [--dir FOLDER] [--layers 22] [--keep] [--only-make]
//!
//! The peer's figures come from `tests/oracle/peer_pipeline.py FOLDER`, which runs PEFT, the converter and the
//! quantizer in use today over the same folder.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const HIDDEN: u64 = 2048;
const INTERMEDIATE: u64 = 5632;
const KEY_VALUE: u64 = 256;
const VOCABULARY: u64 = 32000;
const RANK: u64 = 16;

fn main() {
    let (mut types, mut dir, mut layers) = ("q4_k_m".to_owned(), None::<PathBuf>, 22u64);
    let (mut keep, mut only_make) = (false, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--types" => types = args.next().expect("--types needs a list"),
            "--dir" => dir = args.next().map(Into::into),
            "--layers" => layers = args.next().and_then(|n| n.parse().ok()).expect("--layers needs a number"),
            "--keep" => keep = true,
            "--only-make" => only_make = true,
            _ => {}
        }
    }
    let dir = dir.unwrap_or_else(|| std::env::temp_dir().join("to-gguf-bench"));
    let (base, adapter) = (dir.join("tiny-1b"), dir.join("tiny-1b-lora"));
    if !adapter.join("adapter_model.safetensors").exists() {
        println!("making the model in {}", dir.display());
        make_model(&base, layers);
        make_adapter(&adapter, layers);
    }
    if only_make {
        return;
    }
    let source = std::fs::metadata(base.join("model.safetensors")).expect("the model").len();
    println!("floor: reading {:.2} GB takes {:.2} s", source as f64 / 1e9, read_once(&base).as_secs_f64());
    let out = dir.join("out");
    for ty in types.split(',') {
        let _ = std::fs::remove_dir_all(&out);
        let (wall, peak) = measure(&adapter, &base, ty, &out);
        println!(
            "{ty}: {:.2} s, {:.0} MB/s of source, peak memory {} MB",
            wall.as_secs_f64(),
            source as f64 / 1e6 / wall.as_secs_f64(),
            peak / 1024
        );
    }
    let _ = std::fs::remove_dir_all(&out);
    if !keep {
        let _ = std::fs::remove_dir_all(&dir);
    }
}

/// Runs the program once; its wall time and peak resident memory in kB.
fn measure(adapter: &Path, base: &Path, ty: &str, out: &Path) -> (Duration, u64) {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_to-gguf"))
        .args([adapter.as_os_str(), "--base".as_ref(), base.as_os_str()])
        .args(["--quant".as_ref(), ty.as_ref(), "-q".as_ref(), "-o".as_ref(), out.as_os_str()])
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status)
            && let Some(line) = text.lines().find(|l| l.starts_with("VmHWM"))
        {
            peak = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(peak);
        }
        if let Some(exit) = child.try_wait().expect("the program runs") {
            assert!(exit.success(), "the conversion failed");
            return (started.elapsed(), peak);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The time to read the model's file once.
fn read_once(base: &Path) -> Duration {
    let started = Instant::now();
    let mut file = File::open(base.join("model.safetensors")).expect("the model");
    let mut buffer = vec![0u8; 1 << 20];
    while file.read(&mut buffer).expect("the model") > 0 {}
    started.elapsed()
}

/// Names and shapes of the projections of a layer.
fn projections() -> [(&'static str, u64, u64); 7] {
    [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", KEY_VALUE, HIDDEN),
        ("self_attn.v_proj", KEY_VALUE, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ]
}

fn make_model(dir: &Path, layers: u64) {
    std::fs::create_dir_all(dir).expect("a folder for the model");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/shakespeare-llama");
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(fixture.join(name), dir.join(name)).expect("the fixture's tokenizer");
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCABULARY, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 4, "hidden_act": "silu",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    let mut tensors = vec![
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}");
        for (name, rows, cols) in projections() {
            tensors.push((format!("{prefix}.{name}.weight"), vec![rows, cols]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("{prefix}.{name}.weight"), vec![HIDDEN]));
        }
    }
    write_safetensors(&dir.join("model.safetensors"), &tensors, 0.02);
}

fn make_adapter(dir: &Path, layers: u64) {
    std::fs::create_dir_all(dir).expect("a folder for the adapter");
    let modules: Vec<&str> = projections().iter().map(|(n, ..)| n.rsplit('.').next().expect("a name")).collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny-1b", "r": RANK,
        "lora_alpha": 32, "target_modules": modules, "fan_in_fan_out": false, "bias": "none",
    });
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).expect("adapter_config.json");
    let mut tensors = Vec::new();
    for layer in 0..layers {
        for (name, rows, cols) in projections() {
            let prefix = format!("base_model.model.model.layers.{layer}.{name}");
            tensors.push((format!("{prefix}.lora_A.weight"), vec![RANK, cols]));
            tensors.push((format!("{prefix}.lora_B.weight"), vec![rows, RANK]));
        }
    }
    write_safetensors(&dir.join("adapter_model.safetensors"), &tensors, 0.01);
}

/// Writes bf16 tensors of seeded, roughly normal values of the given deviation.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<u64>)], deviation: f32) {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!({"format": "pt"}));
    let mut offset = 0u64;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<u64>();
        header
            .insert(name.clone(), serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut text = serde_json::to_string(&header).expect("a header");
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).expect("the file"));
    file.write_all(&(text.len() as u64).to_le_bytes()).expect("the header");
    file.write_all(text.as_bytes()).expect("the header");
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    for (name, shape) in tensors {
        let (scale, shift) = if name.contains("norm") { (0.1, 1.0) } else { (deviation, 0.0) };
        for _ in 0..shape.iter().product::<u64>() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Four bytes summed are close enough to a normal distribution of deviation 147.8.
            let sum: i32 = state.to_le_bytes()[..4].iter().map(|&b| i32::from(b)).sum::<i32>() - 510;
            let value = half::bf16::from_f32(shift + scale * sum as f32 / 147.8);
            file.write_all(&value.to_le_bytes()).expect("the weights");
        }
    }
    file.flush().expect("the weights");
}
