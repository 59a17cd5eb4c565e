//! The names of tensors in an adapter's file, taken apart: which module, which parameter of the adapter.
//!
//! PEFT writes `base_model.model.<module>.<parameter>[.<adapter>][.weight]`, and trained modules of the model
//! itself as `base_model.model.<module>.weight`. Wrappers of torch.compile, FSDP, DDP and checkpointing leave their words
//! in the names; PEFT's wrappers leave `base_layer`, `modules_to_save` and `original_module`.

/// Words that wrappers put into names, and that mean nothing here.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// How the parameters of adapters begin. Only `token_adapter` is a word of its own.
const PARAMETERS: [&str; 24] = [
    "lora_",
    "hada_",
    "lokr_",
    "ia3_",
    "oft_",
    "boft_",
    "vera_",
    "hra_",
    "miss_",
    "bone_",
    "c3a_",
    "fourierft_",
    "shira_",
    "randlora_",
    "pvera_",
    "hira_",
    "delora_",
    "road_",
    "gralora_",
    "vblora_",
    "beft_",
    "ln_tuning_",
    "token_adapter",
    "trainable_tokens_",
];

/// Which part of a module a tensor is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    /// A parameter of the adapter, as `lora_A` or `lora_B.bias`; a trailing `.weight` is dropped.
    Parameter(String),
    /// A tensor of the model itself, trained or resized: `weight`, `bias`.
    Saved(String),
    /// A copy of the untouched module that a wrapper kept: it changes nothing.
    Original(String),
    /// The wrapper's own copy of a trained module. PEFT writes it beside the plain name when the vocabulary was
    /// resized; it counts where the plain name is missing.
    Copy(String),
}

/// A tensor's name, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The module as the trained model names it, without `base_model.model.`.
    pub(super) module: String,
    /// How many wrappers lie between the module and this parameter: several parameters of one module are
    /// trained by nested wrappers.
    pub(super) depth: usize,
    /// Which of its parts.
    pub(super) part: Part,
    /// The adapter's name, where the file still has it.
    pub(super) adapter: Option<String>,
}

impl Key {
    /// Takes a tensor's name apart. Every name can be; whether the model has such a module is another question.
    pub(super) fn parse(name: &str) -> Key {
        let words: Vec<&str> = name.split('.').filter(|w| !WRAPPERS.contains(w)).collect();
        let words = words.strip_prefix(&["module"]).unwrap_or(&words);
        let words = match words.strip_prefix(&["base_model"]) {
            Some(rest) => rest.strip_prefix(&["model"]).unwrap_or(rest),
            None => words,
        };
        let is_parameter = |w: &&str| PARAMETERS.iter().any(|p| w.starts_with(p));
        match words.iter().position(is_parameter) {
            // The embedding itself, of a resized vocabulary, under a wrapper that retrains some of its rows.
            Some(at) if matches!(words[at..], ["token_adapter", "base_layer", _]) => {
                Self::saved(&[&words[..at], &words[at + 2..]].concat())
            }
            Some(at) => Self::parameter(&words[..at], &words[at..]),
            None => Self::saved(words),
        }
    }

    fn parameter(module: &[&str], rest: &[&str]) -> Key {
        let depth = module.iter().rev().take_while(|w| **w == "base_layer").count();
        let module: Vec<&str> = module.iter().copied().filter(|w| *w != "base_layer").collect();
        let (parameter, rest) = match rest {
            ["token_adapter", inner, rest @ ..] => (*inner, rest),
            [parameter, rest @ ..] => (*parameter, rest),
            [] => ("", rest),
        };
        let (name, field) = match rest {
            [name @ .., field @ ("weight" | "bias")] => (name, Some(*field)),
            name => (name, None),
        };
        let part = match field {
            Some("bias") => format!("{parameter}.bias"),
            _ => parameter.to_string(),
        };
        Key {
            module: module.join("."),
            depth,
            part: Part::Parameter(part),
            adapter: (!name.is_empty()).then(|| name.join(".")),
        }
    }

    fn saved(words: &[&str]) -> Key {
        let mut kept: Vec<&str> = Vec::with_capacity(words.len());
        let (mut adapter, mut original, mut copy) = (None, false, false);
        let mut at = 0;
        while at < words.len() {
            match words[at] {
                "modules_to_save" => match words.len() - at {
                    0..=2 => copy = true,
                    _ => {
                        adapter = Some(words[at + 1].to_string());
                        at += 1;
                    }
                },
                "original_module" => original = true,
                "base_layer" => {}
                word => kept.push(word),
            }
            at += 1;
        }
        let (module, leaf) = match kept.split_last() {
            Some((leaf, module)) => (module.join("."), leaf.to_string()),
            None => (String::new(), String::new()),
        };
        let part = match (original, copy) {
            (true, _) => Part::Original(leaf),
            (false, true) => Part::Copy(leaf),
            (false, false) => Part::Saved(leaf),
        };
        Key { module, depth: 0, part, adapter }
    }
}

/// A tensor's name as PEFT's files have it today: without the words of wrappers and without the adapter's own name.
pub(super) fn saved_name(name: &str) -> String {
    let words: Vec<&str> = name.split('.').filter(|w| !WRAPPERS.contains(w)).collect();
    let words = words.strip_prefix(&["module"]).unwrap_or(&words);
    let (words, of_module) = match words.strip_prefix(&["base_model"]) {
        Some(rest) => rest.strip_prefix(&["model"]).map_or((rest, false), |rest| (rest, true)),
        None => (words, true),
    };
    let prefix = if of_module { "base_model.model" } else { "base_model" };
    let is_parameter = |w: &&str| PARAMETERS.iter().any(|p| w.starts_with(p));
    let mut kept = vec![prefix];
    match words.iter().position(is_parameter) {
        Some(at) => {
            let inner = if words[at] == "token_adapter" { 2 } else { 1 };
            let end = (at + inner).min(words.len());
            kept.extend(&words[..end]);
            // PEFT drops this one's field from its files.
            let field = words[end..].last().filter(|w| matches!(**w, "weight" | "bias"));
            kept.extend(field.filter(|_| words[end - 1] != "lora_magnitude_vector"));
        }
        None => {
            let mut at = 0;
            while at < words.len() {
                match words[at] {
                    "modules_to_save" if words.len() - at > 2 => at += 1,
                    "modules_to_save" | "original_module" => {}
                    word => kept.push(word),
                }
                at += 1;
            }
        }
    }
    kept.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(name: &str, module: &str, depth: usize, part: Part, adapter: Option<&str>) {
        let key = Key { module: module.into(), depth, part, adapter: adapter.map(Into::into) };
        assert_eq!(Key::parse(name), key, "{name}");
    }

    fn parameter(name: &str) -> Part {
        Part::Parameter(name.into())
    }

    #[test]
    fn names_are_taken_apart() {
        let q = "model.layers.0.self_attn.q_proj";
        is(&format!("base_model.model.{q}.lora_A.weight"), q, 0, parameter("lora_A"), None);
        is(&format!("base_model.model.{q}.lora_B.bias"), q, 0, parameter("lora_B.bias"), None);
        is(&format!("base_model.model.{q}.lora_A.default.weight"), q, 0, parameter("lora_A"), Some("default"));
        is(&format!("base_model.model.{q}.lora_magnitude_vector"), q, 0, parameter("lora_magnitude_vector"), None);
        is("base_model.model.wte.lora_embedding_A.x", "wte", 0, parameter("lora_embedding_A"), Some("x"));
        is("base_model.vera_A", "", 0, parameter("vera_A"), None);
        is("base_model.model.m.experts.base_layer.lora_A.weight", "m.experts", 1, parameter("lora_A"), None);
        is(
            "base_model.model.m.embed.token_adapter.trainable_tokens_delta",
            "m.embed",
            0,
            parameter("trainable_tokens_delta"),
            None,
        );
    }

    #[test]
    fn names_are_saved_as_peft_has_them_today() {
        let q = "base_model.model.model.layers.0.self_attn.q_proj";
        for (name, saved) in [
            (format!("{q}.lora_A.weight"), format!("{q}.lora_A.weight")),
            (format!("_orig_mod.{q}.lora_A.default.weight"), format!("{q}.lora_A.weight")),
            (format!("module.{q}.lora_B.default.bias"), format!("{q}.lora_B.bias")),
            (format!("{q}.lora_magnitude_vector.default.weight"), format!("{q}.lora_magnitude_vector")),
            (format!("{q}.base_layer.lora_A.weight"), format!("{q}.base_layer.lora_A.weight")),
            ("base_model.vera_A".into(), "base_model.vera_A".into()),
            ("model.m.lora_A.weight".into(), "base_model.model.model.m.lora_A.weight".into()),
            (
                "base_model.model._fsdp_wrapped_module.lm_head.modules_to_save.default.weight".into(),
                "base_model.model.lm_head.weight".into(),
            ),
            ("base_model.model.lm_head.base_layer.weight".into(), "base_model.model.lm_head.base_layer.weight".into()),
            (
                "base_model.model.m.embed.token_adapter.trainable_tokens_delta.default".into(),
                "base_model.model.m.embed.token_adapter.trainable_tokens_delta".into(),
            ),
        ] {
            assert_eq!(saved_name(&name), saved);
        }
    }

    #[test]
    fn wrappers_leave_no_trace() {
        for name in [
            "base_model.model.lm_head.modules_to_save.default.weight",
            "_orig_mod.base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model._fsdp_wrapped_module.lm_head._fsdp_wrapped_module.modules_to_save.default.weight",
            "module.base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model._checkpoint_wrapped_module.lm_head.modules_to_save.default.weight",
        ] {
            is(name, "lm_head", 0, Part::Saved("weight".into()), Some("default"));
        }
        is(
            "base_model.model.m.embed.token_adapter.base_layer.weight",
            "m.embed",
            0,
            Part::Saved("weight".into()),
            None,
        );
        is("base_model.model.lm_head.base_layer.weight", "lm_head", 0, Part::Saved("weight".into()), None);
        is("base_model.model.lm_head.modules_to_save.weight", "lm_head", 0, Part::Copy("weight".into()), None);
        is("base_model.model.lm_head.original_module.weight", "lm_head", 0, Part::Original("weight".into()), None);
    }
}
