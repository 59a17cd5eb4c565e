//! The changes that adapters make, collected by tensor before any recipe is touched.

use std::collections::HashSet;
use std::sync::Arc;

use indexmap::IndexMap;

use super::change::{Change, Effect, MergeDtype, Meter, Rounding};
use super::config::AdapterConfig;
use super::contents::{Module, Tensor};
use super::error::Mismatch;
use super::experts::{self, Slice};
use super::names::{self, Found, Names};
use super::{AdapterError, BaseInfo, TensorChange};
use crate::recipe::{Delta, Recipe};
use crate::shape::Shape;
use crate::source::TensorSet;

/// A tensor of the model that a module of the adapter changes.
#[derive(Clone)]
pub(super) struct Target {
    /// Its name in the model.
    pub(super) name: String,
    /// Its values before any adapter; a tensor of more than two dimensions is seen as `[first, all others]`
    /// where a convolution is changed, see [`Target::matrix`].
    pub(super) recipe: Recipe,
}

impl Target {
    /// Its shape.
    pub(super) fn shape(&self) -> &Shape {
        self.recipe.shape()
    }

    /// Rows and columns, with all dimensions but the first in the columns: how a convolution's kernel is merged.
    pub(super) fn matrix(&self) -> (u64, u64) {
        match self.shape().dims() {
            [] => (1, 1),
            [n] => (1, *n),
            [first, rest @ ..] => (*first, rest.iter().product()),
        }
    }
}

/// One adapter's change to one tensor, not yet placed.
pub(super) struct Edit {
    /// What it does.
    pub(super) effect: Effect,
    /// The form, for reports: `LoRA`, `DoRA`, `LoKr`.
    pub(super) kind: &'static str,
    /// The rank, for forms that have one.
    pub(super) rank: Option<u64>,
    /// The adapter's tensors that it is made of.
    pub(super) parts: Vec<Tensor>,
    /// Whether PEFT rounds the addend to the model's type before it adds it.
    pub(super) rounds_addend: bool,
    /// Whether the effect sees all dimensions but the first as columns: a convolution's kernel.
    pub(super) as_matrix: bool,
}

impl Edit {
    /// An edit of a form that needs nothing special.
    pub(super) fn new(kind: &'static str, rank: Option<u64>, parts: &[&Tensor], effect: Effect) -> Self {
        let parts = parts.iter().map(|t| (*t).clone()).collect();
        Edit { effect, kind, rank, parts, rounds_addend: false, as_matrix: false }
    }
}

struct Placed {
    adapter: usize,
    module: String,
    edit: Edit,
}

/// All changes, by tensor.
#[derive(Default)]
pub(super) struct Draft {
    edits: IndexMap<String, Vec<Placed>>,
    resized: IndexMap<String, Recipe>,
    /// Changes of single experts of a stack by the adapter at hand, with the first one's module.
    slices: IndexMap<String, (String, Vec<Slice>)>,
    /// Names of shared parameters that some module made use of.
    pub(super) shared_used: HashSet<String>,
}

/// The weight of a module, and which of its dimensions are the layer's inputs and outputs.
pub(super) struct Weight {
    /// The tensor.
    pub(super) target: Target,
    /// Outputs of the layer.
    pub(super) outputs: u64,
    /// Inputs of the layer, times the kernel's size for a convolution.
    pub(super) inputs: u64,
    /// Whether it is stored `[inputs, outputs]`.
    pub(super) transposed: bool,
}

/// What planning one adapter's changes needs to know.
pub(super) struct Context<'a> {
    /// The adapter's number in the list.
    pub(super) index: usize,
    /// What to call it in messages.
    pub(super) label: &'a str,
    /// Its settings.
    pub(super) config: &'a AdapterConfig,
    /// The type of the merge.
    pub(super) dtype: MergeDtype,
    /// The model.
    pub(super) base: &'a BaseInfo,
    /// The model's tensors, unchanged.
    pub(super) tensors: &'a TensorSet,
    /// Their names.
    pub(super) names: &'a Names,
    /// Parameters that belong to no module.
    pub(super) shared: &'a IndexMap<String, Tensor>,
    /// The changes so far.
    pub(super) draft: &'a mut Draft,
}

impl Context<'_> {
    /// The model's tensor `leaf` of `module`; the output head of a tied model is its embedding under a name of
    /// its own. `tensor` is the adapter's, for the message.
    pub(super) fn target(&self, module: &str, leaf: &str, tensor: &str) -> Result<Target, AdapterError> {
        match self.find(module, leaf)? {
            Some(target) => Ok(target),
            None => Err(self.no_such_module(module, leaf, tensor)),
        }
    }

    /// As [`Context::target`], but a module that is not there is no error.
    pub(super) fn find(&self, module: &str, leaf: &str) -> Result<Option<Target>, AdapterError> {
        let name = match self.names.find(module, leaf) {
            Found::One(name) => name,
            Found::Several(first, second) => {
                let (adapter, module) = (self.label.to_string(), module.to_string());
                return Err(AdapterError::Ambiguous { adapter, module, first, second });
            }
            Found::Nothing => match self.tied_head() {
                Some((head, recipe)) if names::is_head(module) && leaf == "weight" => {
                    let recipe = self.draft.resized.get(&head).cloned().unwrap_or(recipe);
                    return Ok(Some(Target { name: head, recipe }));
                }
                _ => return Ok(None),
            },
        };
        let recipe = self.draft.resized.get(&name).or_else(|| self.tensors.get(&name)).cloned();
        Ok(recipe.map(|recipe| Target { name, recipe }))
    }

    /// The weight of `module`, for a kind of adapter that acts on layers; `tensor` is one of the adapter's.
    pub(super) fn weight(&self, module: &str, tensor: &Tensor) -> Result<Weight, AdapterError> {
        let target = self.target(module, "weight", &tensor.name)?;
        if target.shape().ndim() < 2 {
            return Err(self.mismatch(tensor, &target, "the weight of a layer"));
        }
        let transposed = self.stored_transposed(module)?;
        let (rows, cols) = target.matrix();
        let (outputs, inputs) = if transposed { (cols, rows) } else { (rows, cols) };
        Ok(Weight { target, outputs, inputs, transposed })
    }

    /// Checks a parameter's shape.
    pub(super) fn expect(&self, tensor: &Tensor, target: &Target, dims: &[u64]) -> Result<(), AdapterError> {
        if tensor.dims() == dims {
            return Ok(());
        }
        Err(self.mismatch(tensor, target, format!("{dims:?}")))
    }

    /// Takes the parameter `part` that all modules share from the file, or the module's own copy of it.
    pub(super) fn shared(&mut self, part: &str, module: &mut Module) -> Option<Tensor> {
        let own = module.take(part);
        let shared = self.shared.get(part);
        if let Some(tensor) = shared {
            self.draft.shared_used.insert(tensor.name.clone());
        }
        own.or_else(|| shared.cloned())
    }

    /// The name that the head of a tied model gets, and its values: the embedding's.
    pub(super) fn tied_head(&self) -> Option<(String, Recipe)> {
        let embedding = self.names.embedding()?;
        if !self.base.tie_word_embeddings || self.names.head().is_some() {
            return None;
        }
        Some((head_of(embedding), self.tensors.get(embedding)?.clone()))
    }

    /// The error for a module that the model does not have.
    pub(super) fn no_such_module(&self, module: &str, leaf: &str, tensor: &str) -> AdapterError {
        let hint = match self.names.alike(module) {
            Some((1, one)) if leaf == "weight" => format!(" (it has {one})"),
            Some((n, one)) if leaf == "weight" => format!(" (it has {n} others of that name, as {one})"),
            _ => String::new(),
        };
        let remedy = match self.config.base_model() {
            Some(name) => format!("use the base model that the adapter was trained on ({name})"),
            None => "use the base model that the adapter was trained on".to_string(),
        };
        AdapterError::NoSuchModule {
            adapter: self.label.to_string(),
            tensor: tensor.to_string(),
            module: if leaf == "weight" { module.to_string() } else { format!("{module}.{leaf}") },
            advice: format!("{hint}; {remedy}"),
        }
    }

    /// The error for a tensor of the wrong shape.
    pub(super) fn mismatch(&self, tensor: &Tensor, target: &Target, needs: impl Into<String>) -> AdapterError {
        AdapterError::Mismatch(Box::new(Mismatch {
            adapter: self.label.to_string(),
            tensor: tensor.name.clone(),
            shape: tensor.recipe.shape().clone(),
            target: target.name.clone(),
            target_shape: target.shape().clone(),
            needs: needs.into(),
            base: self.config.base_model().map(|b| format!(" ({b})")).unwrap_or_default(),
        }))
    }

    /// The error for a tensor that should be a matrix and is none.
    pub(super) fn not_a_matrix(&self, tensor: &Tensor) -> AdapterError {
        AdapterError::Unfit {
            adapter: self.label.to_string(),
            what: format!("tensor {}", tensor.name),
            cause: format!("has shape {}, not that of a matrix; restore the adapter's file", tensor.recipe.shape()),
        }
    }

    /// The error for a form without a merged one.
    pub(super) fn refuse(
        &self,
        what: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> AdapterError {
        AdapterError::NotMergeable {
            adapter: self.label.to_string(),
            what: what.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// Whether the module's weight is stored `[in, out]`; see [`stored_transposed`].
    pub(super) fn stored_transposed(&self, module: &str) -> Result<bool, AdapterError> {
        stored_transposed(module, self.base, self.config)
    }

    /// Adds a change of `target` by `module`.
    pub(super) fn edit(&mut self, target: &Target, module: &str, edit: Edit) {
        self.draft.add(self.index, &target.name, module, edit);
    }

    /// Gives a tensor more rows, or fewer, before any change: `recipe` is what the changes then start from.
    pub(super) fn resize(&mut self, name: &str, recipe: Recipe) {
        self.draft.resized.insert(name.to_string(), recipe);
    }

    /// Reports the first parameter of a module that no rule took.
    pub(super) fn nothing_left(&self, module: &Module) -> Result<(), AdapterError> {
        match module.rest().next() {
            None => Ok(()),
            Some(tensor) => Err(AdapterError::Unconsumed {
                adapter: self.label.to_string(),
                tensor: tensor.name.clone(),
                others: module.rest().count() - 1,
                hint: format!(
                    "a {} adapter has no such parameter here: check peft_type in adapter_config.json",
                    self.config.kind().unwrap_or_default()
                ),
            }),
        }
    }
}

/// Whether the module's weight is stored `[in, out]`, as `Conv1D` of the GPT-2 family does. PEFT decides by the
/// module's class and corrects `fan_in_fan_out`; only where the class is unknown does the setting decide.
pub(super) fn stored_transposed(module: &str, base: &BaseInfo, config: &AdapterConfig) -> Result<bool, AdapterError> {
    const CONV1D_MODELS: [&str; 6] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp_decoder", "clvp"];
    const CONV1D_MODULES: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];
    match base.model_type.as_deref() {
        Some(model) if CONV1D_MODELS.contains(&model) => Ok(CONV1D_MODULES.contains(&names::last_word(module))),
        Some(_) => Ok(false),
        None => config.flag("fan_in_fan_out"),
    }
}

/// The name of the head beside an embedding: `lm_head.weight`, with the wrapper that holds both.
pub(super) fn head_of(embedding: &str) -> String {
    match embedding.strip_prefix("language_model.model.") {
        Some(_) => "language_model.lm_head.weight".to_string(),
        None => "lm_head.weight".to_string(),
    }
}

impl Draft {
    /// Whether a tensor is changed.
    pub(super) fn changes(&self, name: &str) -> bool {
        self.edits.contains_key(name) || self.resized.contains_key(name)
    }

    /// What the changes of a tensor start from, where its size is new.
    pub(super) fn resized(&self, name: &str) -> Option<&Recipe> {
        self.resized.get(name)
    }

    /// The changes of a tensor: each one's kind, and the adapter's tensors that it is made of.
    pub(super) fn parts(&self, name: &str) -> Vec<(&'static str, Vec<&Recipe>)> {
        let placed = self.edits.get(name).map(Vec::as_slice).unwrap_or_default();
        placed.iter().map(|p| (p.edit.kind, p.edit.parts.iter().map(|t| &t.recipe).collect())).collect()
    }

    /// The kinds of a tensor's changes; `None` where there are none.
    pub(super) fn kinds(&self, name: &str) -> Option<impl Iterator<Item = &'static str> + '_> {
        self.edits.get(name).map(|placed| placed.iter().map(|p| p.edit.kind))
    }

    /// Adds a change of the tensor `target` by a module of adapter number `adapter`.
    pub(super) fn add(&mut self, adapter: usize, target: &str, module: &str, edit: Edit) {
        let placed = Placed { adapter, module: module.to_string(), edit };
        self.edits.entry(target.to_string()).or_default().push(placed);
    }

    /// Adds a change of some rows of the stack `target`.
    pub(super) fn add_slice(&mut self, target: &str, module: &str, slice: Slice) {
        let (_, slices) = self.slices.entry(target.to_string()).or_insert_with(|| (module.to_string(), Vec::new()));
        slices.push(slice);
    }

    /// Adds the changes of stacks that adapter number `adapter` made slice by slice.
    pub(super) fn place_slices(&mut self, adapter: usize) {
        for (target, (module, slices)) in std::mem::take(&mut self.slices) {
            self.add(adapter, &target, &module, experts::together(slices));
        }
    }

    /// Makes a tensor appear in the result, changed or not.
    pub(super) fn ensure(&mut self, name: &str) {
        self.edits.entry(name.to_string()).or_default();
    }

    /// Forgets every change of a tensor.
    pub(super) fn forget(&mut self, name: &str) {
        self.edits.shift_remove(name);
        self.resized.shift_remove(name);
    }

    /// Turns the changes into recipes. `head` is the name and the values that the output head starts from where
    /// the model has none of its own.
    pub(super) fn place(
        mut self,
        tensors: &mut TensorSet,
        adapters: &[(String, f64)],
        head: Option<(String, Recipe)>,
        dtype: MergeDtype,
    ) -> Result<Vec<TensorChange>, AdapterError> {
        let mut report = Vec::new();
        let mut names: Vec<String> = self.resized.keys().chain(self.edits.keys()).cloned().collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let stored = tensors.get(&name).or(head.as_ref().filter(|(h, _)| *h == name).map(|(_, recipe)| recipe));
            let Some(stored) = stored.cloned() else { continue };
            let precision = stored.precision();
            let base = self.resized.shift_remove(&name).unwrap_or(stored).with_precision(precision);
            let placed = self.edits.shift_remove(&name).unwrap_or_default();
            let as_matrix = placed.iter().any(|p| p.edit.as_matrix);
            let mut deltas: Vec<Arc<dyn Delta>> = Vec::with_capacity(placed.len() + 1);
            if let Some(round) = dtype.rounding().filter(|_| dtype.precision() != Some(precision)) {
                deltas.push(Arc::new(Rounding(round)));
            }
            let mut first = None;
            for (i, Placed { adapter, module, mut edit }) in placed.into_iter().enumerate() {
                let (label, weight) = &adapters[adapter];
                if let Effect::LowRank(factors) = &mut edit.effect {
                    factors.scale *= weight;
                }
                let meter = Arc::new(Meter::after(first.clone()));
                first.get_or_insert_with(|| meter.clone());
                deltas.push(Arc::new(Change {
                    effect: edit.effect,
                    weight: *weight as f32,
                    first: i == 0,
                    dtype,
                    rounds_addend: edit.rounds_addend,
                    meter: meter.clone(),
                    subject: format!("{label}: {module}"),
                    parts: edit.parts.into_iter().map(|t| t.recipe).collect(),
                }));
                let (kind, rank, adapter) = (edit.kind, edit.rank, label.clone());
                report.push(TensorChange { tensor: name.clone(), adapter, module, kind, rank, meter });
            }
            let shape = base.shape().clone();
            let merged = match shape.dims() {
                [first, rest @ ..] if as_matrix && rest.len() > 1 => {
                    let matrix = Shape::matrix(*first, rest.iter().product());
                    base.reshape(matrix)?.merged(deltas).reshape(shape)?
                }
                _ => base.merged(deltas),
            };
            let merged = merged.with_precision(dtype.precision().unwrap_or(precision));
            match tensors.contains(&name) {
                true => tensors.set(name, merged),
                false => tensors.insert_by_name(name, merged),
            }
        }
        Ok(report)
    }
}

/// The kind of change that a tensor of the model, trained whole, makes.
pub(super) const REPLACED: &str = "replaced";
