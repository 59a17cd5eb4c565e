//! What a model's name says: base name, size, fine-tune and version (`gguf-py`'s `metadata.py` and `utility.py`).

use std::sync::LazyLock;

use regex::Regex;

static VERSION: LazyLock<Regex> = LazyLock::new(|| whole(r"(v|iter)?\d+([.]\d+)*"));
static TYPE: LazyLock<Regex> = LazyLock::new(|| whole(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Regex> =
    LazyLock::new(|| whole(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| whole("chat|instruct|vision|lora"));
static UNTITLED: LazyLock<Regex> = LazyLock::new(|| whole(r"(?-i:v\d+(?:\.\d+)*|\d.*)"));

fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^(?i:{pattern})$")).expect("a literal pattern")
}

/// The parts of a model's name, as far as they can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// The name without its organisation.
    pub(super) full_name: Option<String>,
    /// Who publishes it.
    pub(super) organization: Option<String>,
    /// The family of models.
    pub(super) basename: Option<String>,
    /// What it was tuned for.
    pub(super) finetune: Option<String>,
    /// Its version.
    pub(super) version: Option<String>,
    /// Its size, such as `8B`.
    pub(super) size_label: Option<String>,
}

/// What a part of a name can be.
#[derive(Clone, Copy, Default)]
struct Kinds {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    quant: bool,
}

impl Kinds {
    fn count(self) -> usize {
        [self.basename, self.size, self.finetune, self.version, self.quant].into_iter().filter(|&b| b).count()
    }
}

/// Takes a name such as `meta-llama/Llama-3.1-8B-Instruct` apart (`Metadata.get_model_id_components`).
/// `parameters`, the number of parameters, tells a size from a context length; of an adapter, which need not change
/// all of its model, it is negative.
pub(super) fn parts(id: &str, parameters: i64) -> Parts {
    if id.contains(' ') {
        // A sentence, no name of the Hub's kind.
        return Parts { full_name: Some(id.into()), ..Parts::default() };
    }
    let (organization, full_name) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization).filter(|o| !o.starts_with('.')), name),
        None => (None, id),
    };
    let mut names: Vec<String> = full_name.split('-').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    let mut kinds = vec![Kinds::default(); names.len()];
    for (i, (name, kind)) in names.iter_mut().zip(&mut kinds).enumerate() {
        if VERSION.is_match(name) {
            kind.version = true;
        } else if TYPE.is_match(name) {
            kind.quant = true;
            *name = name.to_uppercase();
        } else if i > 0 && SIZE.is_match(name) {
            annotate_size(name, kind, parameters);
        } else if i > 0 && FINETUNE.is_match(name) {
            kind.finetune = true;
        }
    }
    // Words for sizes count only where there is no number.
    if names.iter().zip(&kinds).any(|(n, k)| k.size && n.chars().any(|c| c.is_ascii_digit())) {
        for (name, kind) in names.iter().zip(&mut kinds) {
            if kind.size && name.chars().all(char::is_alphabetic) {
                kind.size = false;
            }
        }
    }
    let mut at_start = true;
    for (name, kind) in names.iter().zip(&mut kinds) {
        let plain = kind.count() == 0;
        if at_start && ((plain && name.starts_with(char::is_alphabetic)) || kind.version) {
            kind.basename = true;
        } else {
            at_start = false;
            kind.finetune |= plain;
        }
    }
    for kind in kinds.iter_mut().rev() {
        if kind.basename && kind.count() > 1 {
            kind.basename = false;
        } else {
            break;
        }
    }
    let joined = |wanted: fn(&Kinds) -> bool| {
        let chosen: Vec<&str> = names.iter().zip(&kinds).filter(|(_, k)| wanted(k)).map(|(n, _)| n.as_str()).collect();
        (!chosen.is_empty()).then(|| chosen.join("-"))
    };
    let mut sizes: Vec<&str> = Vec::new();
    for (name, _) in names.iter().zip(&kinds).filter(|(_, k)| k.size) {
        if !sizes.contains(&name.as_str()) {
            sizes.push(name);
        }
    }
    let mut found = Parts {
        full_name: Some(full_name.into()),
        organization: organization.map(str::to_owned),
        basename: joined(|k| k.basename),
        finetune: joined(|k| k.finetune),
        version: joined(|k| k.version && !k.basename),
        size_label: (!sizes.is_empty()).then(|| sizes.join("-")),
    };
    if found.size_label.is_none() && found.finetune.is_none() && found.version.is_none() {
        found.basename = None;
    }
    found
}

/// Decides whether a part that looks like a size is one, and normalises it.
fn annotate_size(name: &mut String, kind: &mut Kinds, parameters: i64) {
    let mut part: Vec<char> = name.replace('_', ".").chars().collect();
    let n = part.len();
    if part[n - 1].is_ascii_digit() {
        // bloom-7b1 means 7.1b.
        let (unit, digit) = (part[n - 2], part[n - 1]);
        part.truncate(n - 2);
        part.extend(['.', digit, unit]);
    }
    let n = part.len();
    if n > 1 && part[n - 2].is_ascii_digit() && "kmbt".contains(part[n - 1]) {
        part[n - 1] = part[n - 1].to_ascii_uppercase();
    }
    if parameters != 0 {
        let number: String = part[..n - 1].iter().collect();
        let power = " KMBT".find(part[n - 1]).map_or(-1, |p| p as i32);
        if let Ok(number) = number.parse::<f64>() {
            let said = number * 1000f64.powi(power);
            let known = parameters.unsigned_abs();
            let unlikely = match parameters < 0 {
                true => said < (known / 8) as f64,
                false => (said - known as f64).abs() > (7 * known / 8) as f64,
            };
            if unlikely {
                // More likely a context length.
                kind.finetune = true;
                part[n - 1] = part[n - 1].to_ascii_lowercase();
            }
        }
    }
    if kind.count() == 0 {
        kind.size = true;
    }
    *name = part.into_iter().collect();
}

/// A name with spaces and capitals: `my-model-v2` becomes `My Model v2` (`Metadata.id_to_title`).
pub(super) fn title(id: &str) -> String {
    let words: Vec<String> = id
        .replace('-', " ")
        .split_whitespace()
        .map(|w| if is_lower(w) && !UNTITLED.is_match(w) { capitalised(w) } else { w.to_owned() })
        .collect();
    words.join(" ")
}

/// Python's `str.islower`.
fn is_lower(word: &str) -> bool {
    word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase)
}

/// Python's `str.title`: a capital at the start of each run of letters.
fn capitalised(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut inside = false;
    for c in word.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

/// A number of parameters in words: `67M`, or `4x79M` for experts (`gguf.size_label`).
pub fn size_label(counts: &ParameterCounts) -> String {
    if counts.experts > 0 {
        format!("{}x{}", counts.experts, rounded(counts.shared + counts.per_expert))
    } else {
        rounded(counts.total)
    }
}

fn rounded(count: u64) -> String {
    let n = count as f64;
    let (scaled, unit) = match n {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let whole = scaled.round_ties_even().to_string();
    let digits = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.digits$}{unit}")
}

/// How many parameters a model has, and where (`GGUFWriter.get_total_parameter_count`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterCounts {
    /// All.
    pub total: u64,
    /// Those of no expert.
    pub shared: u64,
    /// Those of one expert of each layer.
    pub per_expert: u64,
    /// Experts of a layer.
    pub experts: u64,
}

impl ParameterCounts {
    /// Counts over GGUF names and dimensions (slowest first).
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u64])>) -> Self {
        let mut counts = ParameterCounts::default();
        let (mut sum, mut stacks) = (0, 0);
        for (name, dims) in tensors {
            let size: u64 = dims.iter().product();
            counts.total += size;
            if name.contains("_exps.") && dims.len() >= 3 {
                let experts = dims[dims.len() - if name.contains(".bias") { 2 } else { 3 }];
                counts.per_expert += size.checked_div(experts).unwrap_or(0);
                sum += experts;
                stacks += 1;
            } else {
                counts.shared += size;
            }
        }
        counts.experts = sum.checked_div(stacks).unwrap_or(0);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(id: &str, parameters: i64) -> [Option<String>; 4] {
        let p = parts(id, parameters);
        [p.basename, p.size_label, p.finetune, p.version]
    }

    fn are(values: [&str; 4]) -> [Option<String>; 4] {
        values.map(|v| (!v.is_empty()).then(|| v.to_owned()))
    }

    /// Expectations: `gguf.Metadata.get_model_id_components` itself.
    #[test]
    fn names_are_taken_apart_as_gguf_py_does() {
        for (id, parameters, expected) in [
            ("Mistral/Mixtral-8x7B-Instruct-v0.1", 0, ["Mixtral", "8x7B", "Instruct", "v0.1"]),
            ("stabilityai/stablelm-2-zephyr-1_6b", 0, ["stablelm-2-zephyr", "1.6B", "", ""]),
            ("bigscience/bloom-7b1-petals", 0, ["bloom", "7.1B", "petals", ""]),
            ("microsoft/Phi-3-mini-4k-instruct", 0, ["Phi-3-mini", "4K", "instruct", ""]),
            ("Qwen2-7B", 0, ["Qwen2", "7B", "", ""]),
            ("plain-name", 0, ["", "", "", ""]),
            ("my-model-v2", 0, ["my-model", "", "", "v2"]),
            ("llama3", 0, ["", "", "", ""]),
            ("smallthinker-21B-A3B-Instruct", 0, ["smallthinker", "21B-A3B", "Instruct", ""]),
            ("crestf411/daybreak-kunoichi-2dpo-7b", 0, ["daybreak-kunoichi", "7B", "2dpo", ""]),
            ("./local-7b", 0, ["local", "7B", "", ""]),
            ("Meta-Llama-3.1-8B-Instruct-bnb-4bit", 0, ["Meta-Llama-3.1", "8B", "Instruct-bnb-4bit", ""]),
            ("Qwen3-30B-A3B-2507-FP8", 0, ["Qwen3", "30B-A3B", "FP8", "2507"]),
            ("gemma-3-4b-it", 0, ["gemma-3", "4B", "it", ""]),
            ("t5-small", 0, ["t5", "small", "", ""]),
            ("mini-large-3b", 0, ["mini-large", "3B", "", ""]),
            ("3-4-5", 0, ["", "", "", "3-4-5"]),
            ("v1", 0, ["", "", "", "v1"]),
            ("iter2-chat", 0, ["iter2", "", "chat", ""]),
            ("shakespeare-llama", 0, ["", "", "", ""]),
            ("Llama-3.2-1B-lora", 0, ["Llama-3.2", "1B", "lora", ""]),
            ("a--b-1.5B-128K-chat", 0, ["a-b", "1.5B-128K", "chat", ""]),
            ("x-xl", 0, ["x", "xl", "", ""]),
            ("Ünïcode-7b", 0, ["Ünïcode", "7B", "", ""]),
            ("NousResearch/Hermes-3-Llama-3.1-8B", 0, ["Hermes-3-Llama-3.1", "8B", "", ""]),
            ("foo-q4_k_m-7B", 0, ["foo", "7B", "", ""]),
            ("gpt-neox-20b", 0, ["gpt-neox", "20B", "", ""]),
            ("Mistral/Mixtral-8x7B-Instruct-v0.1", 70000, ["Mixtral", "8x7B", "Instruct", "v0.1"]),
            ("stabilityai/stablelm-2-zephyr-1_6b", 70000, ["stablelm-2-zephyr", "", "1.6b", ""]),
            ("bigscience/bloom-7b1-petals", 70000, ["bloom", "", "7.1b-petals", ""]),
            ("microsoft/Phi-3-mini-4k-instruct", 70000, ["Phi-3", "mini", "4k-instruct", ""]),
            ("Qwen2-7B", 70000, ["Qwen2", "", "7b", ""]),
            ("plain-name", 70000, ["", "", "", ""]),
            ("my-model-v2", 70000, ["my-model", "", "", "v2"]),
            ("llama3", 70000, ["", "", "", ""]),
            ("smallthinker-21B-A3B-Instruct", 70000, ["smallthinker", "A3B", "21b-Instruct", ""]),
            ("crestf411/daybreak-kunoichi-2dpo-7b", 70000, ["daybreak-kunoichi", "", "2dpo-7b", ""]),
            ("./local-7b", 70000, ["local", "", "7b", ""]),
            ("Meta-Llama-3.1-8B-Instruct-bnb-4bit", 70000, ["Meta-Llama-3.1", "", "8b-Instruct-bnb-4bit", ""]),
            ("Qwen3-30B-A3B-2507-FP8", 70000, ["Qwen3", "A3B", "30b-FP8", "2507"]),
            ("gemma-3-4b-it", 70000, ["gemma-3", "", "4b-it", ""]),
            ("t5-small", 70000, ["t5", "small", "", ""]),
            ("mini-large-3b", 70000, ["mini", "large", "3b", ""]),
            ("3-4-5", 70000, ["", "", "", "3-4-5"]),
            ("v1", 70000, ["", "", "", "v1"]),
            ("iter2-chat", 70000, ["iter2", "", "chat", ""]),
            ("shakespeare-llama", 70000, ["", "", "", ""]),
            ("Llama-3.2-1B-lora", 70000, ["Llama-3.2", "", "1b-lora", ""]),
            ("a--b-1.5B-128K-chat", 70000, ["a-b", "128K", "1.5b-chat", ""]),
            ("x-xl", 70000, ["x", "xl", "", ""]),
            ("Ünïcode-7b", 70000, ["Ünïcode", "", "7b", ""]),
            ("NousResearch/Hermes-3-Llama-3.1-8B", 70000, ["Hermes-3-Llama-3.1", "", "8b", ""]),
            ("foo-q4_k_m-7B", 70000, ["foo", "", "7b", ""]),
            ("gpt-neox-20b", 70000, ["gpt-neox", "", "20b", ""]),
            ("Mistral/Mixtral-8x7B-Instruct-v0.1", 8000000000, ["Mixtral", "8x7B", "Instruct", "v0.1"]),
            ("stabilityai/stablelm-2-zephyr-1_6b", 8000000000, ["stablelm-2-zephyr", "1.6B", "", ""]),
            ("bigscience/bloom-7b1-petals", 8000000000, ["bloom", "7.1B", "petals", ""]),
            ("microsoft/Phi-3-mini-4k-instruct", 8000000000, ["Phi-3", "mini", "4k-instruct", ""]),
            ("Qwen2-7B", 8000000000, ["Qwen2", "7B", "", ""]),
            ("plain-name", 8000000000, ["", "", "", ""]),
            ("my-model-v2", 8000000000, ["my-model", "", "", "v2"]),
            ("llama3", 8000000000, ["", "", "", ""]),
            ("smallthinker-21B-A3B-Instruct", 8000000000, ["smallthinker", "A3B", "21b-Instruct", ""]),
            ("crestf411/daybreak-kunoichi-2dpo-7b", 8000000000, ["daybreak-kunoichi", "7B", "2dpo", ""]),
            ("./local-7b", 8000000000, ["local", "7B", "", ""]),
            ("Meta-Llama-3.1-8B-Instruct-bnb-4bit", 8000000000, ["Meta-Llama-3.1", "8B", "Instruct-bnb-4bit", ""]),
            ("Qwen3-30B-A3B-2507-FP8", 8000000000, ["Qwen3", "A3B", "30b-FP8", "2507"]),
            ("gemma-3-4b-it", 8000000000, ["gemma-3", "4B", "it", ""]),
            ("t5-small", 8000000000, ["t5", "small", "", ""]),
            ("mini-large-3b", 8000000000, ["mini-large", "3B", "", ""]),
            ("3-4-5", 8000000000, ["", "", "", "3-4-5"]),
            ("v1", 8000000000, ["", "", "", "v1"]),
            ("iter2-chat", 8000000000, ["iter2", "", "chat", ""]),
            ("shakespeare-llama", 8000000000, ["", "", "", ""]),
            ("Llama-3.2-1B-lora", 8000000000, ["Llama-3.2", "1B", "lora", ""]),
            ("a--b-1.5B-128K-chat", 8000000000, ["a-b", "1.5B", "128k-chat", ""]),
            ("x-xl", 8000000000, ["x", "xl", "", ""]),
            ("Ünïcode-7b", 8000000000, ["Ünïcode", "7B", "", ""]),
            ("NousResearch/Hermes-3-Llama-3.1-8B", 8000000000, ["Hermes-3-Llama-3.1", "8B", "", ""]),
            ("foo-q4_k_m-7B", 8000000000, ["foo", "7B", "", ""]),
            ("gpt-neox-20b", 8000000000, ["gpt-neox", "", "20b", ""]),
        ] {
            assert_eq!(told(id, parameters), are(expected), "{id}");
        }
    }

    #[test]
    fn titles_keep_versions_and_acronyms() {
        assert_eq!(title("my-model-v2.1-GPT-7b"), "My Model v2.1 GPT 7b");
        assert_eq!(title("llama3test"), "Llama3Test");
    }

    #[test]
    fn sizes_have_two_digits() {
        let label = |total| size_label(&ParameterCounts { total, ..ParameterCounts::default() });
        assert_eq!([label(67_000_000), label(1_240_000_000), label(500)], ["67M", "1.2B", "0.50K"]);
        let experts = [("blk.0.ffn_up_exps.weight", &[4u64, 256, 256][..]), ("output.weight", &[1000, 256][..])];
        let counts = ParameterCounts::of(experts.into_iter());
        assert_eq!((counts.per_expert, counts.experts, counts.shared), (65536, 4, 256_000));
    }
}
