//! From adapters to changes: each kind's rule is asked in turn, tied heads are untied where the merge parts them,
//! and what looks wrong without being wrong is told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::change::{MergeDtype, Rounding};
use super::config::AdapterConfig;
use super::contents::Module;
use super::draft::{Context, Draft, REPLACED};
use super::names::Names;
use super::{Adapter, AdapterError, BaseInfo, MergeOptions, MergeSummary, TensorChange};
use super::{
    blocks, coverage, delora, gralora, hira, lora, products, replicate, road, rotations, saved, scaled, sparse, vblora,
};
use crate::recipe::Recipe;
use crate::source::TensorSet;

/// Below this `‖Δ‖ / ‖W‖` an adapter changes nothing that survives a quantizer.
const NEARLY_ZERO: f64 = 1e-6;

/// Kinds of adapters that act on the activations or the prompt: there is no weight they could become.
const NOT_WEIGHTS: [(&str, &str); 11] = [
    ("PROMPT_TUNING", "its trained vectors are prepended to the prompt, they are no change of any weight"),
    ("MULTITASK_PROMPT_TUNING", "its trained vectors are prepended to the prompt, they are no change of any weight"),
    ("P_TUNING", "its trained vectors are prepended to the prompt, they are no change of any weight"),
    ("CPT", "its trained vectors are prepended to the prompt, they are no change of any weight"),
    ("PREFIX_TUNING", "its trained vectors are prepended to keys and values, they are no change of any weight"),
    ("CARTRIDGE", "its trained vectors are prepended to keys and values, they are no change of any weight"),
    ("ADAPTION_PROMPT", "its gated attention to a trained prompt is no change of any weight"),
    ("XLORA", "its mixture of adapters is chosen anew for every token"),
    ("POLY", "its mixture of adapters is chosen anew for every task"),
    ("LILY", "its router mixes its products anew for every input"),
    ("SHADOW", "it is a second model that runs beside the first"),
];

/// Kinds of adapters that are merged.
const MERGED: [&str; 24] = [
    "LORA",
    "TRAINABLE_TOKENS",
    "ADALORA",
    "VERA",
    "RANDLORA",
    "IA3",
    "LOHA",
    "LOKR",
    "OFT",
    "BOFT",
    "HRA",
    "MISS",
    "BONE",
    "C3A",
    "FOURIERFT",
    "SHIRA",
    "PVERA",
    "HIRA",
    "DELORA",
    "ROAD",
    "GRALORA",
    "VBLORA",
    "BEFT",
    "LN_TUNING",
];

/// Initialisations that leave the base as it is, or whose residual base is computed again.
const SOUND_INITS: [&str; 6] = ["gaussian", "eva", "orthogonal", "mica", "pissa", "olora"];

/// Refuses kinds that cannot be merged, by name and reason, before their weights are looked for.
pub(super) fn refuse_by_kind(config: &AdapterConfig, label: &str) -> Result<(), AdapterError> {
    let refuse = |what: String, reason: &str, remedy: &str| AdapterError::NotMergeable {
        adapter: label.to_string(),
        what,
        reason: reason.to_string(),
        remedy: remedy.to_string(),
    };
    let kind = config.kind()?;
    let other_kind = "train a LoRA adapter instead, or run this one with PEFT";
    if let Some((kind, reason)) = NOT_WEIGHTS.iter().find(|(name, _)| *name == kind) {
        return Err(refuse(format!("an adapter of type {kind}"), reason, other_kind));
    }
    if !MERGED.contains(&kind.as_str()) {
        return Err(refuse(format!("an adapter of type {kind}"), "its merge rule is not known here", other_kind));
    }
    let convert = "convert it with PEFT (save_pretrained with path_initial_model_for_weight_conversion), or merge it into \
                   the residual base that was saved when training began";
    if let Some(other) = config.get("init_lora_weights").filter(|v| !v.is_string() && !v.is_boolean()) {
        return Err(config.bad("init_lora_weights", format!("is {other}, not true, false or a name")));
    }
    match config.text("init_lora_weights").map(str::to_ascii_lowercase).as_deref() {
        Some(init) if init.starts_with("pissa_niter") => {
            let reason = "its residual base came from a randomised decomposition that cannot be repeated";
            return Err(refuse(format!("an adapter initialised by {init}"), reason, convert));
        }
        Some(init @ ("corda" | "lora_ga")) => {
            let reason = "its residual base depends on the data that it was initialised with";
            return Err(refuse(format!("an adapter initialised by {init}"), reason, convert));
        }
        Some("loftq") => {
            let reason = "it was trained on a quantized base of its own, not on the model";
            let remedy = "merge it into that base, with init_lora_weights set to true in its config";
            return Err(refuse("an adapter initialised by loftq".into(), reason, remedy));
        }
        Some(init) if !SOUND_INITS.contains(&init) => {
            let reason = "that initialisation is not known here, and it may have changed the base";
            let remedy = "set init_lora_weights to true in its config if the base was left as it is";
            return Err(refuse(format!("an adapter initialised by {init:?}"), reason, remedy));
        }
        _ => {}
    }
    const VARIANTS: [(&str, &str); 4] = [
        ("use_qalora", "its A acts on groups of inputs"),
        ("use_bdlora", "its factors are block-diagonal"),
        ("kasa_config", "it truncates the base's singular values"),
        ("monteclora_config", "its weights are a random sample's mean"),
    ];
    let on = |key: &str| config.get(key).is_some_and(|v| *v != serde_json::Value::Bool(false));
    if let Some((key, reason)) = VARIANTS.iter().find(|(key, _)| on(key)) {
        return Err(refuse(
            format!("a variant of LoRA ({key})"),
            &format!("{reason}, which is not known here"),
            other_kind,
        ));
    }
    if config.get("alora_invocation_tokens").is_some() {
        let reason = "it is switched on by tokens in the prompt, so no single set of weights behaves like it";
        return Err(refuse("an activated LoRA (alora_invocation_tokens)".into(), reason, other_kind));
    }
    if config.get("arrow_config").is_some() {
        let reason = "its router mixes adapters anew for every token";
        return Err(refuse("an Arrow router (arrow_config)".into(), reason, "merge one of its experts"));
    }
    Ok(())
}

/// Merges adapters into a model's tensors, each with its weight.
///
/// `tensors` are changed in place: merged, replaced, or added where an output head parts from its embedding.
/// With several adapters the full deltas are combined in f32, in the order of the list.
///
/// # Errors
/// Everything that does not fit is named: see [`AdapterError`].
pub fn apply(
    adapters: &[(Adapter, f32)],
    tensors: &mut TensorSet,
    base: &BaseInfo,
    options: &MergeOptions,
) -> Result<MergeSummary, AdapterError> {
    let layer_map = replicate::replicate(adapters, tensors)?;
    let mut summary = MergeSummary { layer_map, ..MergeSummary::default() };
    let names = Names::new(tensors);
    let mut draft = Draft::default();
    for (index, (adapter, _)) in adapters.iter().enumerate() {
        warn_about_base(adapter, base, &mut summary.warnings);
        coverage::warn(adapter, tensors, &mut summary.warnings);
        let contents = adapter.contents.clone();
        let kind = adapter.config.kind()?;
        let mut cx = Context {
            index,
            shared: &contents.shared,
            label: &adapter.label,
            config: &adapter.config,
            dtype: options.dtype,
            base,
            tensors,
            names: &names,
            draft: &mut draft,
        };
        for tensor in contents.saved {
            saved::replace(tensor, &mut cx)?;
        }
        let mut wrappers: HashMap<String, usize> = HashMap::new();
        for module in &contents.modules {
            let most = wrappers.entry(module.name.clone()).or_default();
            *most = (*most).max(module.depth + 1);
        }
        for module in contents.modules {
            let wrappers = wrappers.get(&module.name).copied().unwrap_or(1);
            plan_module(&kind, module, wrappers, &mut cx)?;
        }
        draft.place_slices(index);
        let unused = contents.shared.values().find(|t| !draft.shared_used.contains(&t.name));
        if let Some(tensor) = unused {
            return Err(AdapterError::Unconsumed {
                adapter: adapter.label.clone(),
                tensor: tensor.name.clone(),
                others: 0,
                hint: format!("a {kind} adapter shares no such parameter: check peft_type in adapter_config.json"),
            });
        }
    }
    let head = part_head(&mut draft, tensors, &names, base, &mut summary)?;
    let labels: Vec<(String, f64)> = adapters.iter().map(|(a, w)| (a.label.clone(), f64::from(*w))).collect();
    let before = names.embedding().and_then(|e| tensors.get(e)).map(|r| r.shape().rows());
    summary.changes = draft.place(tensors, &labels, head, options.dtype)?;
    round_others(tensors, &summary.changes, options.dtype);
    let after = names.embedding().and_then(|e| tensors.get(e)).map(|r| r.shape().rows());
    summary.vocab_size = after.filter(|_| after != before);
    Ok(summary)
}

/// Rounds the tensors that no adapter changes to the type that the model is merged in: PEFT's was loaded in it whole.
/// Blocks of a GGUF are copied as they are.
fn round_others(tensors: &mut TensorSet, changes: &[TensorChange], dtype: MergeDtype) {
    let (Some(round), Some(precision)) = (dtype.rounding(), dtype.precision()) else { return };
    let changed: HashSet<&str> = changes.iter().map(|c| c.tensor.as_str()).collect();
    let others: Vec<(String, Recipe)> = tensors
        .iter()
        .filter(|(name, r)| !changed.contains(name) && r.precision() != precision && r.native().is_none())
        .map(|(name, recipe)| (name.to_string(), recipe.clone()))
        .collect();
    for (name, recipe) in others {
        tensors.set(name, recipe.merged(vec![Arc::new(Rounding(round))]).with_precision(precision));
    }
}

/// Asks the rule of the adapter's kind what a module's parameters change.
fn plan_module(kind: &str, module: Module, wrappers: usize, cx: &mut Context) -> Result<(), AdapterError> {
    match kind {
        "ADALORA" => scaled::adalora(module, cx),
        "VERA" => scaled::vera(module, cx),
        "RANDLORA" => scaled::randlora(module, cx),
        "IA3" => scaled::ia3(module, cx),
        "LOHA" => products::loha(module, cx),
        "LOKR" => products::lokr(module, cx),
        "OFT" => rotations::oft(module, cx),
        "BOFT" => rotations::boft(module, cx),
        "HRA" => rotations::hra(module, cx),
        "MISS" => blocks::miss(module, "miss_block", cx),
        "BONE" => blocks::miss(module, "bone_block", cx),
        "C3A" => blocks::c3a(module, cx),
        "FOURIERFT" => sparse::fourierft(module, cx),
        "SHIRA" => sparse::shira(module, cx),
        "PVERA" => scaled::pvera(module, cx),
        "HIRA" => hira::hira(module, cx),
        "DELORA" => delora::delora(module, cx),
        "ROAD" => road::road(module, cx),
        "GRALORA" => gralora::gralora(module, cx),
        "VBLORA" => vblora::vblora(module, cx),
        "BEFT" => saved::beft(module, cx),
        "LN_TUNING" => saved::ln_tuning(module, cx),
        _ => lora::plan(module, wrappers, cx),
    }
}

/// Decides what becomes of the head of a tied model. In training, an adapter of one of the two modules does not
/// touch the other, so that their merged values differ and the head needs a tensor of its own.
fn part_head(
    draft: &mut Draft,
    tensors: &TensorSet,
    names: &Names,
    base: &BaseInfo,
    summary: &mut MergeSummary,
) -> Result<Option<(String, Recipe)>, AdapterError> {
    let Some(embedding) = names.embedding() else { return Ok(None) };
    let Some(recipe) = tensors.get(embedding).cloned() else { return Ok(None) };
    if !base.tie_word_embeddings || names.head().is_some() {
        return Ok(None);
    }
    let head = super::draft::head_of(embedding);
    if !draft.changes(&head) && !draft.changes(embedding) {
        return Ok(None);
    }
    if draft.only_tokens(embedding) && !draft.changes(&head) {
        return Ok(None);
    }
    if draft.same_changes(embedding, &head)? {
        draft.forget(&head);
        return Ok(None);
    }
    let start = match draft.resized(embedding) {
        // The trained head had the grown vocabulary too, but its file does not hold it: the embedding's rows are
        // the best there are.
        Some(_) if !draft.changes(&head) => {
            summary.warnings.push(format!(
                "the vocabulary of {embedding} changed, but the adapter holds no head of that size; it stays tied"
            ));
            return Ok(None);
        }
        _ => recipe,
    };
    draft.ensure(&head);
    summary.untied_head = Some(head.clone());
    Ok(Some((head, start)))
}

impl Draft {
    /// Whether retrained rows are all that changes a tensor.
    fn only_tokens(&self, name: &str) -> bool {
        self.kinds(name).is_some_and(|mut kinds| kinds.all(|k| k == saved::TOKENS))
    }

    /// Whether an embedding and its head change in the same way: replaced by equal tensors, or by factors of LoRA
    /// that are each other's, as `ensure_weight_tying` makes them.
    fn same_changes(&self, embedding: &str, head: &str) -> Result<bool, AdapterError> {
        let (one, other) = (self.parts(embedding), self.parts(head));
        if one.len() != other.len() || one.is_empty() {
            return Ok(false);
        }
        for ((kind, one), (other_kind, other)) in one.iter().zip(&other) {
            let same = match (*kind, one.as_slice(), other.as_slice()) {
                _ if kind != other_kind => false,
                (REPLACED, [one], [other]) => one.equals(other)?,
                ("LoRA", [a, b], [head_a, head_b]) => {
                    (*a).clone().transposed()?.equals(head_b)? && (*b).clone().transposed()?.equals(head_a)?
                }
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Tells when an adapter names another base model than the one it is merged into.
fn warn_about_base(adapter: &Adapter, base: &BaseInfo, warnings: &mut Vec<String>) {
    let last = |s: &str| s.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(s).to_ascii_lowercase();
    // A snapshot in the cache of the Hub is named by its revision, which says nothing.
    let is_revision = base.name.len() == 40 && base.name.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(named) = adapter.config.base_model()
        && last(named) != last(&base.name)
        && !is_revision
    {
        warnings.push(format!("{} was trained on {named}, not on {}", adapter.label, base.name));
    }
}

/// Adapters whose every change is next to nothing.
pub(super) fn nearly_zero(changes: &[TensorChange]) -> Vec<String> {
    let mut largest: IndexMap<&str, f64> = IndexMap::new();
    for change in changes {
        if let Some(ratio) = change.meter.ratio() {
            let most = largest.entry(&change.adapter).or_default();
            *most = most.max(ratio);
        }
    }
    largest
        .into_iter()
        .filter(|(_, most)| *most < NEARLY_ZERO)
        .map(|(adapter, most)| {
            format!("{adapter} changes next to nothing (at most {most:.1e} of a tensor's norm); was it trained?")
        })
        .collect()
}
