//! Several LoRAs, or one with a weight or an initial value of its own, as one plain LoRA.
//!
//! `sum of w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ..] [A_1; A_2; ..]`: the factors side by side, weights and
//! scales folded into `B`, so that the result's own scale is 1 in every module. A LoRA over a residual base (PiSSA,
//! OLoRA) gets the initial product, taken out of the base again, as a second pair: PEFT's conversion to twice the
//! rank.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::contents::{Module, Tensor};
use super::draft::stored_transposed;
use super::names::{self, Found, Names};
use super::peft::{PeftAdapter, PeftTensor, not_combinable, only_lora};
use super::residual::{Init, initial_term};
use super::{Adapter, AdapterError, BaseInfo};
use crate::quant::GgmlType;
use crate::recipe::{Elementwise, Recipe, Term};
use crate::shape::Shape;
use crate::source::TensorSet;

/// The model that residual bases are computed from.
#[derive(Clone, Copy, Debug)]
pub struct ResidualBase<'a> {
    /// Its tensors.
    pub tensors: &'a TensorSet,
    /// Facts about it.
    pub info: &'a BaseInfo,
}

/// The factors of one module, from all adapters.
struct Joined {
    /// The module as the first adapter names it.
    module: String,
    embedding: bool,
    /// Dimensions of `A` behind the rank, and outputs.
    inputs: Vec<u64>,
    outputs: u64,
    /// `A` `[r, inputs]`, `B` `[outputs, r]`.
    terms: Vec<Term>,
}

/// Combines adapters, each times its weight, into one plain LoRA.
///
/// # Errors
/// What is no product of two matrices (DoRA, biases, other kinds of adapters) is named.
pub fn combine(adapters: &[(Adapter, f32)], base: Option<ResidualBase<'_>>) -> Result<PeftAdapter, AdapterError> {
    let mut modules: IndexMap<String, Joined> = IndexMap::new();
    let mut saved: IndexMap<String, (usize, PeftTensor)> = IndexMap::new();
    for (index, (adapter, weight)) in adapters.iter().enumerate() {
        check(adapter)?;
        for module in &adapter.contents.modules {
            let key = names::canonical(&module.name);
            let joined = factors(adapter, module.clone(), f64::from(*weight), base)?;
            match modules.get_mut(&key) {
                None => drop(modules.insert(key, joined)),
                Some(first) => {
                    if (first.embedding, &first.inputs, first.outputs)
                        != (joined.embedding, &joined.inputs, joined.outputs)
                    {
                        return Err(AdapterError::Conflict {
                            first: adapters[0].0.label.clone(),
                            second: adapter.label.clone(),
                            cause: format!("their factors of {} are of different size", module.name),
                        });
                    }
                    first.terms.extend(joined.terms);
                }
            }
        }
        for whole in &adapter.contents.saved {
            if *weight != 1.0 || whole.leaf == "bias" {
                return Err(not_combinable(adapter, format!("{}.{}, trained whole,", whole.module, whole.leaf)));
            }
            let layer = if whole.tensor.name.contains(".base_layer.") { "base_layer." } else { "" };
            let name = format!("base_model.model.{}.{layer}{}", whole.module, whole.leaf);
            let tensor = PeftTensor::Values(whole.tensor.recipe.clone());
            if let Some((other, _)) = saved.insert(name, (index, tensor)) {
                return Err(AdapterError::Conflict {
                    first: adapters[other].0.label.clone(),
                    second: adapter.label.clone(),
                    cause: format!("both bring {} whole", whole.module),
                });
            }
        }
    }
    let settings = settings(adapters, &modules);
    let mut tensors = IndexMap::new();
    for joined in modules.into_values() {
        joined.write(&mut tensors)?;
    }
    tensors.extend(saved.into_iter().map(|(name, (_, tensor))| (name, tensor)));
    Ok(PeftAdapter { settings, tensors })
}

/// Whether an adapter has to be computed anew where it is saved alone: its factors belong to a residual base.
pub fn has_residual_base(adapter: &Adapter) -> bool {
    init(adapter).is_some()
}

fn init(adapter: &Adapter) -> Option<Init> {
    match adapter.config.text("init_lora_weights").map(str::to_ascii_lowercase).as_deref() {
        Some("pissa") => Some(Init::Pissa),
        Some("olora") => Some(Init::Olora),
        _ => None,
    }
}

/// Refuses what the settings show to be more than products.
fn check(adapter: &Adapter) -> Result<(), AdapterError> {
    only_lora(adapter)?;
    let config = &adapter.config;
    if config.flag("use_dora")? {
        return Err(not_combinable(adapter, "DoRA (use_dora)"));
    }
    if !config.texts("target_parameters").is_empty() {
        return Err(not_combinable(adapter, "LoRA of expert parameters (target_parameters)"));
    }
    for key in ["trainable_token_indices", "layer_replication"] {
        if config.get(key).is_some() {
            return Err(not_combinable(adapter, format!("an adapter with {key}")));
        }
    }
    Ok(())
}

/// The products of one module of one adapter.
fn factors(
    adapter: &Adapter,
    mut module: Module,
    weight: f64,
    base: Option<ResidualBase<'_>>,
) -> Result<Joined, AdapterError> {
    let embedding = module.has("lora_embedding_A");
    let (a, b) = if embedding { ("lora_embedding_A", "lora_embedding_B") } else { ("lora_A", "lora_B") };
    let (a, b) = (module.need(a, b, &adapter.label)?, module.need(b, a, &adapter.label)?);
    if let Some(other) = module.rest().next() {
        return Err(not_combinable(adapter, format!("tensor {}", other.name)));
    }
    let (Some((&rank, inputs)), Some((&outputs, ranks))) = (a.dims().split_first(), b.dims().split_first()) else {
        return Err(not_combinable(adapter, format!("tensor {}, which is no matrix,", a.name)));
    };
    if inputs.is_empty() || ranks.iter().product::<u64>() != rank || rank == 0 {
        return Err(AdapterError::Unfit {
            adapter: adapter.label.clone(),
            what: format!("tensor {}", b.name),
            cause: format!("has shape {}, but lora_A has rank {rank}; save the adapter again", b.recipe.shape()),
        });
    }
    let scale = scale(adapter, &module.name, &a, rank)?;
    let width = inputs.iter().product();
    let term = Term {
        a: a.recipe.clone().reshape(Shape::matrix(rank, width))?,
        b: b.recipe.clone().reshape(Shape::matrix(outputs, rank))?,
        scale: weight * scale,
    };
    let mut terms = vec![term];
    if let Some(init) = init(adapter).filter(|_| !embedding) {
        terms.push(initial(adapter, &module.name, init, rank, (weight, scale), base)?);
    }
    Ok(Joined { module: module.name.clone(), embedding, inputs: inputs.to_vec(), outputs, terms })
}

/// The factor of `B @ A`, after checking the rank against the config's.
fn scale(adapter: &Adapter, module: &str, a: &Tensor, rank: u64) -> Result<f64, AdapterError> {
    super::lora::scale_of(&adapter.config, &adapter.label, module, &a.name, rank)
}

/// What was taken out of the base before training, to be taken out again.
fn initial(
    adapter: &Adapter,
    module: &str,
    init: Init,
    rank: u64,
    (weight, scale): (f64, f64),
    base: Option<ResidualBase<'_>>,
) -> Result<Term, AdapterError> {
    let Some(base) = base else { return Err(not_combinable(adapter, "a LoRA over a residual base without that base")) };
    let names = Names::new(base.tensors);
    let recipe = match names.find(module, "weight") {
        Found::One(name) => base.tensors.get(&name).cloned(),
        _ => None,
    };
    let Some(recipe) = recipe.filter(|r| r.shape().ndim() == 2) else {
        return Err(AdapterError::NoSuchModule {
            adapter: adapter.label.clone(),
            tensor: module.to_owned(),
            module: module.to_owned(),
            advice: "; use the base model that the adapter was trained on".into(),
        });
    };
    let removed = initial_term(&recipe, init, rank as usize, scale);
    let term = Term { scale: removed.scale * weight, ..removed };
    if stored_transposed(module, base.info, &adapter.config)? {
        return Ok(Term { a: term.b.transposed()?, b: term.a.transposed()?, scale: term.scale });
    }
    Ok(term)
}

impl Joined {
    fn rank(&self) -> u64 {
        self.terms.iter().map(Term::rank).sum()
    }

    /// Adds the two factors under their names.
    fn write(self, tensors: &mut IndexMap<String, PeftTensor>) -> Result<(), AdapterError> {
        let rank = self.rank();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for term in self.terms {
            let factor = term.scale as f32;
            let scaled = term.b.with_precision(GgmlType::F32).map(Elementwise::Scale(factor));
            b.push(scaled.transposed()?);
            a.push(term.a.with_precision(GgmlType::F32));
        }
        let a_dims: Vec<u64> = [rank].into_iter().chain(self.inputs.iter().copied()).collect();
        // A convolution's B has a kernel of one element in each direction.
        let b_dims: Vec<u64> = [self.outputs, rank].into_iter().chain(self.inputs[1..].iter().map(|_| 1)).collect();
        let shape = |dims: Vec<u64>| Shape::new(dims).unwrap_or_else(|| Shape::vector(0));
        let a = Recipe::concat(a)?.reshape(shape(a_dims))?;
        let b = Recipe::concat(b)?.transposed()?.reshape(shape(b_dims))?;
        let names = match self.embedding {
            true => ["lora_embedding_A", "lora_embedding_B"],
            false => ["lora_A.weight", "lora_B.weight"],
        };
        for (name, recipe) in names.into_iter().zip([a, b]) {
            tensors.insert(format!("base_model.model.{}.{name}", self.module), PeftTensor::Values(recipe));
        }
        Ok(())
    }
}

/// The settings of the result: those of the first adapter, with the ranks and targets of the whole.
fn settings(adapters: &[(Adapter, f32)], modules: &IndexMap<String, Joined>) -> Map<String, Value> {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    modules.values().for_each(|m| *counts.entry(m.rank()).or_default() += 1);
    let rank = counts.into_iter().max_by_key(|(rank, n)| (*n, *rank)).map_or(1, |(rank, _)| rank);
    let others: Map<String, Value> = modules
        .values()
        .filter(|m| m.rank() != rank)
        .map(|m| (m.module.replace('.', "\\."), m.rank().into()))
        .collect();
    let mut settings = adapters[0].0.config.settings().clone();
    let fan_in = adapters.iter().any(|(a, _)| a.config.flag("fan_in_fan_out").unwrap_or(false));
    let mut whole: Vec<&str> = adapters.iter().flat_map(|(a, _)| a.config.texts("modules_to_save")).collect();
    whole.sort_unstable();
    whole.dedup();
    let set = [
        ("r", rank.into()),
        ("lora_alpha", rank.into()),
        ("rank_pattern", Value::Object(others.clone())),
        ("alpha_pattern", Value::Object(others)),
        ("use_rslora", false.into()),
        ("init_lora_weights", true.into()),
        ("target_modules", targets(adapters, modules)),
        ("modules_to_save", if whole.is_empty() { Value::Null } else { json!(whole) }),
        ("fan_in_fan_out", fan_in.into()),
        ("bias", "none".into()),
        ("lora_bias", false.into()),
        ("lora_dropout", json!(0.0)),
        ("inference_mode", true.into()),
        ("layers_to_transform", Value::Null),
        ("layers_pattern", Value::Null),
        ("exclude_modules", Value::Null),
        ("eva_config", Value::Null),
        ("loftq_config", json!({})),
    ];
    for (key, value) in set {
        settings.insert(key.into(), value);
    }
    settings
}

/// The target modules: the words that the adapters target wherever they stand; every module by its whole name where
/// some adapter leaves some of them out.
fn targets(adapters: &[(Adapter, f32)], modules: &IndexMap<String, Joined>) -> Value {
    let narrowed = ["layers_to_transform", "layers_pattern", "exclude_modules"];
    let plain = |a: &Adapter| {
        matches!(a.config.get("target_modules"), Some(Value::Array(_)))
            && narrowed.iter().all(|key| a.config.get(key).is_none())
    };
    let mut words: Vec<String> = if adapters.iter().all(|(a, _)| plain(a)) {
        adapters.iter().flat_map(|(a, _)| a.config.texts("target_modules")).map(str::to_owned).collect()
    } else {
        modules.values().map(|m| m.module.clone()).collect()
    };
    words.sort_unstable();
    words.dedup();
    json!(words)
}
