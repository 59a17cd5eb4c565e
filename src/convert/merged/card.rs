//! The model card of a merged model: what it was made of, and how. It names models, never places on this machine.

use std::path::Path;

use serde_json::Value;

use crate::report::AdapterReport;

/// What a card says.
pub(super) struct Card<'a> {
    /// The model's name.
    pub(super) name: &'a str,
    /// The base: a Hub id, or a folder's name.
    pub(super) base: String,
    /// The merged adapters.
    pub(super) adapters: &'a [AdapterReport],
    /// The architecture class.
    pub(super) architecture: &'a str,
    /// The type of the weights, as PyTorch names it.
    pub(super) dtype: &'a str,
    /// Whether sums were rounded once, at the end.
    pub(super) exact: bool,
    /// Whether linear layers are in four bits.
    pub(super) four_bit: bool,
    /// The base's card, for what it says of licences and languages.
    pub(super) base_card: Option<&'a str>,
}

/// Keys of a base's card that hold for what is made of it.
const INHERITED: [&str; 5] = ["license", "license_name", "license_link", "language", "pipeline_tag"];

impl Card<'_> {
    /// The card's text.
    pub(super) fn render(&self) -> String {
        let mut head = serde_json::Map::new();
        head.insert("base_model".into(), self.base.clone().into());
        head.insert("library_name".into(), "transformers".into());
        let mut tags = vec!["to-gguf"];
        if !self.adapters.is_empty() {
            tags.push("merged");
        }
        if self.adapters.iter().any(|a| a.kind.contains("LoRA") || a.kind.contains("DoRA")) {
            tags.push("lora");
        }
        if self.four_bit {
            tags.extend(["bitsandbytes", "4-bit"]);
        }
        let inherited = self.base_card.and_then(front_matter).unwrap_or_default();
        for key in INHERITED {
            if let Some(value) = inherited.get(key) {
                head.insert(key.into(), value.clone());
            }
        }
        if !head.contains_key("pipeline_tag") && self.architecture.ends_with("ForCausalLM") {
            head.insert("pipeline_tag".into(), "text-generation".into());
        }
        head.insert("tags".into(), tags.into());
        let yaml = serde_yaml_ng::to_string(&Value::Object(head)).unwrap_or_default();

        let mut text = format!("---\n{yaml}---\n\n# {}\n\n", self.name);
        let form = if self.four_bit {
            format!("NF4 with double quantization (bitsandbytes), the other tensors in {}", self.dtype)
        } else {
            self.dtype.to_owned()
        };
        match self.adapters {
            [] => text += &format!("`{}`, saved in {form}.\n", self.base),
            _ => {
                text += &format!("`{}` with these adapters merged into its weights, saved in {form}:\n\n", self.base);
                for adapter in self.adapters {
                    let name = adapter.path.file_name().unwrap_or_default().to_string_lossy();
                    let weight =
                        if adapter.weight == 1.0 { String::new() } else { format!(", weight {}", adapter.weight) };
                    text += &format!("* `{name}`: {}, {} tensors{weight}\n", adapter.kind, adapter.tensors);
                }
                if self.exact {
                    text += "\nThe changes were summed in float32 and rounded once.\n";
                }
            }
        }
        text + "\nMade with to-gguf.\n"
    }
}

/// The YAML between two lines of dashes at the start of a card.
fn front_matter(card: &str) -> Option<Value> {
    let rest = card.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let end = rest.find("\n---")?;
    serde_yaml_ng::from_str::<Value>(&rest[..end]).ok().filter(Value::is_object)
}

/// What to call a base: the id that an adapter names, unless it is a place on some machine; else the folder's name.
pub(super) fn base_name(named: Option<&str>, folder: &Path, folder_name: &str) -> String {
    // The cache of the Hub names a model's folder after its id.
    let cached = folder.iter().find_map(|part| part.to_str()?.strip_prefix("models--"));
    let cached = cached.map(|id| id.replacen("--", "/", 1));
    let is_id = |n: &&str| {
        let parts: Vec<&str> = n.split('/').collect();
        let plain = |p: &&str| !p.is_empty() && !p.starts_with('.') && !p.contains(['\\', ':', '~']);
        parts.len() == 2 && parts.iter().all(plain) && !Path::new(n).exists()
    };
    named.filter(is_id).map(str::to_owned).or(cached).unwrap_or_else(|| folder_name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> AdapterReport {
        AdapterReport { path: "/home/someone/run-7".into(), weight: 0.5, kind: "LoRA".into(), tensors: 3 }
    }

    #[test]
    fn a_card_names_models_and_no_places() {
        let card = Card {
            name: "mine",
            base: base_name(Some("/home/someone/base"), Path::new("/home/someone/base"), "base"),
            adapters: &[adapter()],
            architecture: "LlamaForCausalLM",
            dtype: "bfloat16",
            exact: true,
            four_bit: false,
            base_card: Some("---\nlicense: mit\nother: x\n---\n# Base\n"),
        };
        let text = card.render();
        assert!(!text.contains("/home"), "{text}");
        assert!(text.starts_with("---\nbase_model: base\nlibrary_name: transformers\nlicense: mit\n"), "{text}");
        assert!(text.contains("* `run-7`: LoRA, 3 tensors, weight 0.5\n"), "{text}");
        assert!(!text.contains("other"), "{text}");
    }

    #[test]
    fn the_base_is_a_hub_id_or_a_folder_name() {
        let here = Path::new("/m/x");
        assert_eq!(base_name(Some("org/model"), here, "x"), "org/model");
        for place in ["/a/b", "./model", "../b", "C:\\a/b", "model", "a/b/c", "~/model"] {
            assert_eq!(base_name(Some(place), here, "x"), "x", "{place}");
        }
        assert_eq!(base_name(None, here, "x"), "x");
        let cached = Path::new("/c/hub/models--org--model-7b/snapshots/0123");
        assert_eq!(base_name(None, cached, "0123"), "org/model-7b");
    }
}
