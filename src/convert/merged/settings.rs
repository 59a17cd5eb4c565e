//! `config.json` of a merged model: what merging and saving changed, and nothing else.

use serde_json::{Map, Value, json};

/// The settings of how the weights were packed, in the model's config or its text part.
const PACKING: [&str; 2] = ["quantization_config", "compression_config"];

/// The config with its type, and with the packing that the files have. `config` is as merging leaves it; `skipped`
/// are the modules that are not packed beyond the usual ones.
pub(super) fn config(config: &Value, dtype: &str, packed: Option<Option<Vec<&str>>>) -> Value {
    let mut config = config.clone();
    let Some(whole) = config.as_object_mut() else { return config };
    for part in ["text_config", "llm_config", "language_config"] {
        if let Some(part) = whole.get_mut(part).and_then(Value::as_object_mut) {
            set_type(part, dtype, false);
        }
    }
    set_type(whole, dtype, true);
    if let Some(skipped) = packed {
        whole.insert("quantization_config".to_owned(), four_bit(dtype, skipped));
    }
    config
}

fn set_type(table: &mut Map<String, Value>, dtype: &str, always: bool) {
    PACKING.iter().for_each(|key| drop(table.shift_remove(*key)));
    let before = table.shift_remove("torch_dtype");
    if always || before.is_some() || table.contains_key("dtype") {
        table.insert("dtype".to_owned(), dtype.into());
    }
}

/// `quantization_config` as transformers writes it for NF4 with double quantization.
fn four_bit(dtype: &str, skipped: Option<Vec<&str>>) -> Value {
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_set_and_the_packing_goes() {
        let before = json!({
            "model_type": "x", "torch_dtype": "float16", "quantization_config": {"quant_method": "gptq"},
            "text_config": {"torch_dtype": "float16", "hidden_size": 4}, "vision_config": {"hidden_size": 2}
        });
        let after = json!({
            "model_type": "x", "dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "hidden_size": 4},
            "vision_config": {"hidden_size": 2}
        });
        assert_eq!(config(&before, "bfloat16", None), after);
        let packed = config(&before, "bfloat16", Some(None));
        assert_eq!(packed["quantization_config"]["bnb_4bit_quant_type"], "nf4");
        assert_eq!(packed["quantization_config"]["llm_int8_skip_modules"], Value::Null);
    }
}
