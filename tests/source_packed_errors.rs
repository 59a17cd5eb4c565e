//! Packed models that are damaged or not supported: one line that names the tensor, the cause and the remedy.

use std::fs;

use serde_json::{Value, json};
use to_gguf::recipe::Scratch;
use to_gguf::source::ModelFolder;

/// A tensor of zeros: name, element type, shape.
type Tensor<'a> = (&'a str, &'a str, &'a [u64]);

fn folder(quantization: &Value, tensors: &[Tensor], data: &[(&str, &[u8])]) -> tempfile::TempDir {
    let mut header = serde_json::Map::new();
    let mut bytes: Vec<u8> = Vec::new();
    for (name, dtype, shape) in tensors {
        let width = match *dtype {
            "F32" | "I32" => 4,
            "F16" | "BF16" | "I16" => 2,
            "I64" => 8,
            _ => 1,
        };
        let start = bytes.len();
        bytes.resize(start + shape.iter().product::<u64>() as usize * width, 0);
        if let Some((_, given)) = data.iter().find(|(n, _)| n == name) {
            bytes[start..].copy_from_slice(given);
        }
        header.insert(name.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, bytes.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"quantization_config": quantization});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

#[track_caller]
fn refused(method: &str, tensors: &[Tensor], data: &[(&str, &[u8])], words: &[&str]) {
    let dir = folder(&json!({"quant_method": method}), tensors, data);
    let message = ModelFolder::open(dir.path()).map(|_| "it opened".to_string()).unwrap_or_else(|e| e.to_string());
    assert!(!message.contains('\n'), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

const STATE: &[u8] = br#"{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[2,64]}"#;

fn bnb<'a>(state_len: &'a [u64; 1], codes: &'a [u64; 2], absmax: &'a [u64; 1]) -> Vec<Tensor<'a>> {
    vec![
        ("a.weight", "U8", codes),
        ("a.weight.absmax", "F32", absmax),
        ("a.weight.quant_map", "F32", &[16]),
        ("a.weight.quant_state.bitsandbytes__nf4", "U8", state_len),
    ]
}

#[test]
fn a_bitsandbytes_weight_needs_its_quant_state() {
    let len = [STATE.len() as u64];
    let all = bnb(&len, &[64, 1], &[2]);
    let data: &[(&str, &[u8])] = &[("a.weight.quant_state.bitsandbytes__nf4", STATE)];
    refused("bitsandbytes", &all, data, &["it opened"]);
    refused("bitsandbytes", &all[..3], &[], &["a.weight", "quant_state", "missing"]);
    refused("bitsandbytes", &all[..1], &[], &["a.weight", "quant_state is missing"]);
    refused("bitsandbytes", &all[1..], data, &["a.weight", "missing"]);
    refused("bitsandbytes", &bnb(&len, &[63, 1], &[2]), data, &["a.weight", "64 bytes of codes", "63"]);
    refused("bitsandbytes", &bnb(&len, &[64, 1], &[3]), data, &["a.weight", "absmax", "[3]", "[2]"]);
    refused("bitsandbytes", &all, &[], &["a.weight", "quant_state", "not valid JSON"]);
    refused("bitsandbytes", &[("a.weight", "I8", &[4, 4])], &[], &["a.weight", "SCB is missing"]);
    let wrong = [("a.weight", "I8", &[4, 4][..]), ("a.SCB", "F32", &[3])];
    refused("bitsandbytes", &wrong, &[], &["a.weight", "[3]", "[4]"]);
}

#[test]
fn gptq_and_awq_parts_must_fit() {
    let gptq: [Tensor; 4] = [
        ("a.qweight", "I32", &[8, 32]),
        ("a.qzeros", "I32", &[2, 4]),
        ("a.scales", "F16", &[2, 32]),
        ("a.g_idx", "I32", &[64]),
    ];
    refused("gptq", &gptq, &[], &["it opened"]);
    refused("gptq", &gptq[..1], &[], &["a (gptq)", "qzeros is missing"]);
    refused("gptq", &[gptq[0], gptq[1]], &[], &["a (gptq)", "scales is missing"]);
    refused("gptq", &[gptq[0], ("a.qzeros", "I32", &[2, 5]), gptq[2]], &[], &["a (gptq)", "[2, 5]"]);
    refused("gptq", &[gptq[0], gptq[1], ("a.scales", "F16", &[3, 32])], &[], &["a (gptq)", "[3, 32]"]);
    let short = [gptq[0], gptq[1], gptq[2], ("a.g_idx", "I32", &[60][..])];
    refused("gptq", &short, &[], &["a (gptq)", "g_idx", "[60]", "[64]"]);
    let dir = folder(&json!({"quant_method": "gptq", "checkpoint_format": "marlin"}), &gptq, &[]);
    assert!(ModelFolder::open(dir.path()).unwrap_err().to_string().contains("marlin"));
    let awq: [Tensor; 3] =
        [("a.qweight", "I32", &[64, 4]), ("a.qzeros", "I32", &[2, 3]), ("a.scales", "F16", &[2, 32])];
    refused("awq", &awq, &[], &["a (awq)", "[2, 3]"]);
}

/// Four bits, 64 columns in two groups, 32 rows: scales of 1 and zero points of 1, then of 2.
fn with_index(dtype: &str, index: &[u8]) -> Result<Vec<f32>, String> {
    let dims: [u64; 1] = [64];
    let tensors: [Tensor; 4] = [
        ("a.qweight", "I32", &[8, 32]),
        ("a.qzeros", "I32", &[2, 4]),
        ("a.scales", "F16", &[2, 32]),
        ("a.g_idx", dtype, &dims),
    ];
    let (ones, zeros) = ([0x00, 0x3c].repeat(64), [[0x11; 16], [0x22; 16]].concat());
    let data: [(&str, &[u8]); 3] = [("a.scales", &ones), ("a.qzeros", &zeros), ("a.g_idx", index)];
    let dir = folder(&json!({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}), &tensors, &data);
    let model = ModelFolder::open(dir.path()).map_err(|e| e.to_string())?;
    let mut out = vec![0.0; 32 * 64];
    let read = model.tensors().get("a.weight").unwrap().rows(0..32, &mut out, &mut Scratch::default());
    read.map(|()| out).map_err(|e| e.to_string())
}

#[test]
fn a_gptq_index_of_64_bits_equals_that_of_32_and_names_what_is_no_group() {
    for groups in [(0..64).map(|c| c / 32).collect::<Vec<i64>>(), (0..64).map(|c| c % 2).collect()] {
        let narrow: Vec<u8> = groups.iter().flat_map(|&g| (g as i32).to_le_bytes()).collect();
        let wide: Vec<u8> = groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        let expected: Vec<f32> = (0..32).flat_map(|_| groups.iter().map(|&g| -1.0 - g as f32)).collect();
        assert_eq!(with_index("I32", &narrow).unwrap(), expected);
        assert_eq!(with_index("I64", &wide).unwrap(), expected);
    }
    for wrong in [2, -1, 1 << 32, i64::MIN] {
        let mut groups = [0i64; 64];
        groups[5] = wrong;
        let message = with_index("I64", groups.map(i64::to_le_bytes).as_flattened()).unwrap_err();
        for word in ["a.", "column 5", &format!("group {wrong}")] {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
    }
    let message = with_index("I16", &[0; 128]).unwrap_err();
    assert!(message.contains("g_idx has type I16, needs I32 or I64"), "{message}");
}

/// The shape of a four-bit weight of quanto without a bias, of `groups` by `group`, or why there is none.
fn quanto_shape(config: Value, module: &str, groups: u64, group: u64) -> Result<Vec<u64>, String> {
    let (codes, scale, shift) =
        (format!("{module}.weight._data._data"), format!("{module}.weight._scale"), format!("{module}.weight._shift"));
    let (packed, each) = ([groups.div_ceil(2), group], [groups, 1]);
    let tensors: [Tensor; 3] = [(&codes, "U8", &packed), (&scale, "BF16", &each), (&shift, "BF16", &each)];
    let dir = folder(&Value::Null, &tensors, &[]);
    let mut config = config;
    config["quantization_config"] = json!({"quant_method": "quanto", "weights": "qint4"});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let model = ModelFolder::open(dir.path()).map_err(|e| e.to_string())?;
    Ok(model.tensors().get(&format!("{module}.weight")).unwrap().shape().dims().to_vec())
}

#[test]
fn rows_of_quanto_are_told_by_the_layers_place_in_the_model() {
    let shape = |module, groups, group| quanto_shape(json!({"hidden_size": 256}), module, groups, group);
    assert_eq!(shape("model.layers.0.self_attn.q_proj", 6, 128).unwrap(), [3, 256]);
    assert_eq!(shape("model.layers.0.mlp.down_proj", 256, 96).unwrap(), [256, 96]);
    assert_eq!(shape("model.layers.0.mlp.down_proj", 1280, 32).unwrap(), [256, 160]);
    // Groups that the library cuts no longer rows into are rows.
    assert_eq!(quanto_shape(json!({}), "a.b", 6, 48).unwrap(), [6, 48]);
    assert_eq!(quanto_shape(json!({}), "a.b", 6, 131).unwrap(), [6, 131]);
    let text = quanto_shape(json!({"text_config": {"hidden_size": 64}}), "language_model.layers.0.q_proj", 6, 64);
    assert_eq!(text.unwrap(), [6, 64]);
    let says = |result: Result<Vec<u64>, String>, words: &[&str]| {
        let message = result.unwrap_err();
        assert!(
            words.iter().all(|w| message.contains(w)) && !message.contains('\n'),
            "{words:?} are not in: {message}"
        );
    };
    let remedy = "16-bit model";
    says(shape("model.layers.0.mixer.odd", 6, 128), &["odd.weight", "quanto", "not the number of rows", remedy]);
    says(quanto_shape(json!({}), "a.q_proj", 6, 128), &["a.q_proj.weight", "config.json", remedy]);
    says(shape("a.q_proj", 5, 128), &["5 groups of 128 columns are no matrix of 256 columns", remedy]);
    says(shape("a.q_proj", 8, 64), &["8 groups of 64 columns are no matrix of 256 columns", remedy]);
}

#[test]
fn eight_bit_floats_need_scales_that_fit() {
    refused("fp8", &[("a.weight", "F8_E4M3", &[4, 8])], &[], &["a.weight", "without the scales"]);
    let wrong = [("a.weight", "F8_E4M3", &[4, 8][..]), ("a.weight_scale_inv", "F32", &[3, 3])];
    refused("fp8", &wrong, &[], &["a.weight", "[3, 3]", "[4, 8]"]);
    refused("fp8", &[("a.weight_scale_inv", "F32", &[1])], &[], &["a.weight", "missing"]);
    refused("mxfp4", &[("e_blocks", "U8", &[2, 4, 2, 16])], &[], &["e (mxfp4)", "scales is missing"]);
    let packed = [("a.weight_packed", "I32", &[4, 3][..]), ("a.weight_scale", "BF16", &[4, 1])];
    refused("compressed-tensors", &packed, &[], &["a.weight", "shape is missing"]);
    refused("torchao", &[("a._weight_qdata", "I8", &[4, 4])], &[], &["a.weight", "torchao class"]);
}

#[test]
fn unknown_and_refused_methods_are_named_with_the_remedy() {
    let plain: [Tensor; 1] = [("a.weight", "F16", &[4, 4])];
    refused("exl2", &plain, &[], &["exl2", "GPU kernel", "16-bit model", "--base"]);
    refused("no-such-thing", &plain, &[], &["no-such-thing", "not known", "16-bit model"]);
}
