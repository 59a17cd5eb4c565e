//! What a model is called and how it is laid out: Hugging Face tensors and hyperparameters to GGUF's.
//!
//! A family of architectures is a description ([`spec`]) in a file of its own, and a line in [`FAMILIES`]. [`convert`]
//! applies it: [`config`] completes the hyperparameters as transformers does, [`claim`] gives every source tensor its
//! place, [`keys`] writes the architecture's keys, [`general`] those about the model's origin. Nothing here reads a
//! weight.

use std::path::Path;

use crate::gguf::{Metadata, Value};
use crate::source::TensorSet;
use crate::tokenizer::VocabKind;

mod bert;
mod blocks;
mod card;
mod claim;
mod cohere;
mod config;
mod decoders;
mod deepseek;
mod error;
mod factors;
mod fused_qkv;
mod gemma;
mod general;
mod gpt2;
mod gpt_oss;
mod granite;
mod keys;
mod llama;
mod llama4;
mod mamba;
mod model_id;
mod olmo;
mod pattern;
mod phi;
mod qwen;
mod restore;
mod rope;
pub mod spec;
mod stored;
mod t5;
mod undo;

pub use config::Config;
pub use error::ArchError;
pub use factors::factor_names;
pub use model_id::{ParameterCounts, size_label};
pub use restore::{Restored, restore};
pub use spec::Family;
pub use stored::{ConvertedTensor, Stored, guess_output_type};

/// Every family: adding one is its file and its line here.
pub const FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &llama4::LLAMA4,
    &qwen::QWEN2,
    &qwen::QWEN2_MOE,
    &qwen::QWEN3,
    &qwen::QWEN3_MOE,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &phi::PHI2,
    &phi::PHI3,
    &phi::PHIMOE,
    &gpt2::GPT2,
    &gpt2::STARCODER,
    &gpt_oss::GPT_OSS,
    &deepseek::DEEPSEEK2,
    &granite::GRANITE,
    &granite::GRANITE_MOE,
    &cohere::COMMAND_R,
    &cohere::COHERE2,
    &olmo::OLMO,
    &olmo::OLMO2,
    &olmo::OLMOE,
    &decoders::STARCODER2,
    &decoders::SEED_OSS,
    &decoders::SMOLLM3,
    &decoders::ARCEE,
    &decoders::STABLELM,
    &decoders::NEMOTRON,
    &fused_qkv::GPTNEOX,
    &fused_qkv::BLOOM,
    &fused_qkv::FALCON,
    &mamba::MAMBA,
    &bert::BERT,
    &t5::T5,
];

/// A model to describe.
#[derive(Debug)]
pub struct ArchInput<'a> {
    /// The contents of config.json.
    pub config: &'a serde_json::Value,
    /// Where it was read, for messages.
    pub config_file: &'a Path,
    /// The model's tensors, merged already where there is an adapter.
    pub tensors: &'a TensorSet,
    /// The folder whose README.md, generation_config.json and name tell the model's origin: the model's, or the
    /// adapter's where there is one.
    pub folder: &'a Path,
    /// The folder of the tokenizer files, which some families look into.
    pub tokenizer_folder: &'a Path,
    /// A name that beats what the files say.
    pub name: Option<&'a str>,
}

/// A described model: everything about its GGUF file but the tokenizer and the weights themselves.
#[derive(Clone, Debug)]
pub struct Converted {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Hyperparameters with all defaults.
    pub config: Config,
    /// Keys before those of the tokenizer, in file order. `general.file_type` holds 0: set it.
    pub metadata: Metadata,
    /// Keys after those of the tokenizer; one that is there already keeps its place and changes its value.
    pub late_metadata: Metadata,
    /// Tensors in file order.
    pub tensors: Vec<ConvertedTensor>,
    /// Which vocabulary to look for.
    pub vocab: VocabKind,
    /// Source tensors without a place in GGUF, with the reason.
    pub dropped: Vec<(String, &'static str)>,
    /// How many parameters, and where.
    pub counts: ParameterCounts,
}

/// The family of a class name.
pub fn family(class: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|f| f.classes.contains(&class))
}

/// All class names that some family has.
pub fn supported_classes() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|f| f.classes.iter().copied())
}

/// Whether llama.cpp takes an output head of its own for an architecture, where the model has one.
pub fn has_head(arch: &str) -> bool {
    let tables = FAMILIES.iter().filter(|f| f.arch == arch).flat_map(|f| f.tensors.iter().copied().flatten());
    tables.into_iter().any(|t| matches!(t.fate, spec::Fate::Named("output.weight" | "output.*")))
}

fn recognise(input: &ArchInput<'_>) -> Result<(&'static Family, Config), ArchError> {
    let config = Config::new(input.config, input.config_file)?;
    match family(config.class()) {
        Some(family) => Ok((family, config)),
        None => Err(ArchError::UnknownClass {
            file: input.config_file.into(),
            class: config.class().into(),
            supported: supported_classes().collect::<Vec<_>>().join(", "),
        }),
    }
}

/// A model's tensors under GGUF names: what an adapter file is made from.
#[derive(Clone, Debug)]
pub struct Arranged {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Which vocabulary to look for.
    pub vocab: VocabKind,
    /// Tensors that a GGUF of the model holds.
    pub tensors: Vec<ConvertedTensor>,
    /// Source tensors without a place in GGUF, with the reason.
    pub dropped: Vec<(String, &'static str)>,
}

/// Arranges a model's tensors without describing the model.
pub fn arrange(input: &ArchInput<'_>) -> Result<Arranged, ArchError> {
    let (family, config) = recognise(input)?;
    let claimed = claim::claim(family, &config, input.tensors, Some(input.tokenizer_folder))?;
    Ok(Arranged { arch: family.arch, vocab: family.vocab, tensors: claimed.tensors, dropped: claimed.dropped })
}

/// The keys of an adapter as `convert_lora_to_gguf` writes them. `folder` is the adapter's, whose card and name tell
/// its origin; it changes `parameters` of the model's parameters.
pub fn adapter_metadata(arch: &str, folder: &Path, parameters: u64, alpha: f32) -> Result<Metadata, ArchError> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::string(arch));
    let origin = general::Origin { folder, config: &serde_json::Value::Null, name: None };
    general::write(&mut metadata, &origin, general::Subject::Lora(parameters))?;
    metadata.set("adapter.lora.alpha", Value::F32(alpha));
    metadata.set("general.quantization_version", Value::U32(2));
    Ok(metadata)
}

/// Describes a model as `convert_hf_to_gguf` writes it: the same keys and tensors in the same order.
pub fn convert(input: &ArchInput<'_>) -> Result<Converted, ArchError> {
    let (family, config) = recognise(input)?;
    let claimed = claim::claim(family, &config, input.tensors, Some(input.tokenizer_folder))?;
    let counts = ParameterCounts::of(claimed.tensors.iter().map(|t| (t.name.as_str(), t.recipe.shape().dims())));

    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::string(family.arch));
    let mut keys = spec::Keys { prefix: family.arch, folder: input.folder.into(), metadata };
    keys::write(family.early_keys, &config, &mut keys)?;
    let origin = general::Origin { folder: input.folder, config: input.config, name: input.name };
    general::write(&mut keys.metadata, &origin, general::Subject::Model(&counts))?;
    keys::write(family.keys, &config, &mut keys)?;
    keys.metadata.set("general.quantization_version", Value::U32(2));
    factors::write_wide_inputs(&claimed.wide_inputs, &mut keys.metadata);
    let mut late = spec::Keys { prefix: family.arch, folder: input.folder.into(), metadata: Metadata::new() };
    keys::write(family.late_keys, &config, &mut late)?;
    Ok(Converted {
        arch: family.arch,
        config,
        metadata: keys.metadata,
        late_metadata: late.metadata,
        tensors: claimed.tensors,
        vocab: family.vocab,
        dropped: claimed.dropped,
        counts,
    })
}
