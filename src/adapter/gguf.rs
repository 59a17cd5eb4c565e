//! LoRA adapters in llama.cpp's form: a GGUF with `<tensor>.lora_a` and `<tensor>.lora_b` for tensors of a GGUF.
//!
//! Its changes belong to GGUF names, where rows are in GGUF's order already; so it is merged after the architecture
//! has given the model's tensors their places. As `llama_adapter_lora_init` and `llm_graph_context` read it: the scale
//! is `alpha / rank`, 1 where alpha is 0, and the factors of `token_embd` are the other way round (`a` `[tokens, r]`,
//! `b` `[dim, r]`). Experts have a third dimension in both factors. A norm (as mergekit extracts them) replaces the
//! model's; llama.cpp leaves such tensors aside when it runs.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::change::Effect;
use super::contents::Tensor;
use super::draft::{Draft, Edit, REPLACED};
use super::experts::ExpertDeltas;
use super::lowrank::Factors;
use super::saved::Replace;
use super::{AdapterError, MergeOptions, Mismatch, TensorChange};
use crate::gguf::{Metadata, Value};
use crate::recipe::Recipe;
use crate::shape::Shape;
use crate::source::{GgufModel, TensorSet};

/// An opened GGUF adapter. Weights are read later, by position.
#[derive(Clone, Debug)]
pub struct GgufLora {
    path: PathBuf,
    label: String,
    arch: String,
    alpha: f64,
    pairs: IndexMap<String, Pair>,
    norms: Vec<Tensor>,
}

/// The factors of one tensor.
#[derive(Clone, Debug, Default)]
struct Pair {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

/// Whether a GGUF is an adapter, not a model.
pub fn is_gguf_adapter(metadata: &Metadata) -> bool {
    metadata.get("general.type").and_then(Value::as_str) == Some("adapter")
}

impl GgufLora {
    /// Opens an adapter and sorts its tensors.
    pub fn open(path: &Path) -> Result<GgufLora, AdapterError> {
        let label = path.display().to_string();
        let file = GgufModel::open(path).map_err(|e| AdapterError::Gguf(Box::new(e)))?;
        let metadata = file.metadata();
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let unfit =
            |what: &str, cause: String| AdapterError::Unfit { adapter: label.clone(), what: what.into(), cause };
        if !is_gguf_adapter(metadata) {
            let found = text("general.type");
            return Err(unfit("general.type", format!("is '{found}', not 'adapter'; name a LoRA adapter")));
        }
        let refuse = |what: String, reason: &str, remedy: &str| AdapterError::NotMergeable {
            adapter: label.clone(),
            what,
            reason: reason.into(),
            remedy: remedy.into(),
        };
        if text("adapter.type") != "lora" {
            let what = format!("a GGUF adapter of type '{}'", text("adapter.type"));
            return Err(refuse(what, "only LoRA is a change of weights", "apply it with llama.cpp"));
        }
        if metadata.get("adapter.alora.invocation_tokens").is_some() {
            let reason = "it is switched on by tokens in the prompt, so no single set of weights behaves like it";
            return Err(refuse("an activated LoRA".into(), reason, "run it with llama.cpp"));
        }
        let alpha = match metadata.get("adapter.lora.alpha") {
            None => 0.0,
            Some(Value::F32(alpha)) if alpha.is_finite() => f64::from(*alpha),
            Some(other) => return Err(unfit("adapter.lora.alpha", format!("is {other:?}, not a finite f32"))),
        };
        let mut lora = GgufLora {
            path: path.to_path_buf(),
            arch: text("general.architecture"),
            alpha,
            pairs: IndexMap::new(),
            norms: Vec::new(),
            label,
        };
        for (name, recipe) in file.tensors().iter() {
            lora.sort(Tensor { name: name.to_string(), recipe: recipe.clone() })?;
        }
        Ok(lora)
    }

    fn sort(&mut self, tensor: Tensor) -> Result<(), AdapterError> {
        let of = |suffix: &str| tensor.name.strip_suffix(suffix).map(str::to_string);
        if let Some(name) = of(".lora_a") {
            self.pairs.entry(name).or_default().a = Some(tensor);
        } else if let Some(name) = of(".lora_b") {
            self.pairs.entry(name).or_default().b = Some(tensor);
        } else if tensor.name.ends_with("_norm.weight") {
            self.norms.push(tensor);
        } else {
            return Err(AdapterError::Unconsumed {
                adapter: self.label.clone(),
                tensor: tensor.name,
                others: 0,
                hint: "a GGUF adapter holds .lora_a, .lora_b and norms".into(),
            });
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to call it in messages and reports.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Merges adapters into tensors under GGUF names, each with its weight. `arch` is the model's
    /// `general.architecture`.
    ///
    /// # Errors
    /// Everything that does not fit is named: see [`AdapterError`].
    pub fn apply(
        adapters: &[(GgufLora, f32)],
        arch: &str,
        tensors: &mut TensorSet,
        options: &MergeOptions,
    ) -> Result<Vec<TensorChange>, AdapterError> {
        let mut draft = Draft::default();
        for (index, (adapter, _)) in adapters.iter().enumerate() {
            if adapter.arch != arch {
                return Err(AdapterError::Unfit {
                    adapter: adapter.label.clone(),
                    what: "general.architecture".into(),
                    cause: format!("is '{}', but the model's is '{arch}'; use the adapter's own base", adapter.arch),
                });
            }
            for (name, pair) in &adapter.pairs {
                let edit = adapter.edit(name, pair, tensors)?;
                draft.add(index, name, name, edit);
            }
            for norm in &adapter.norms {
                let base = adapter.target(&norm.name, norm, tensors)?;
                if base.shape() != norm.recipe.shape() {
                    return Err(adapter.mismatch(norm, &norm.name, base, "exactly its shape".into()));
                }
                let effect = Effect::Rewrites(Box::new(Replace { tensor: norm.recipe.clone(), frozen: false }));
                draft.add(index, &norm.name, &norm.name, Edit::new(REPLACED, None, &[norm], effect));
            }
        }
        let labels: Vec<(String, f64)> = adapters.iter().map(|(a, w)| (a.label.clone(), f64::from(*w))).collect();
        draft.place(tensors, &labels, None, options.dtype)
    }

    /// What a pair of factors does to its tensor.
    fn edit(&self, name: &str, pair: &Pair, tensors: &TensorSet) -> Result<Edit, AdapterError> {
        let missing = |has: &str, needs: &str| AdapterError::Missing {
            adapter: self.label.clone(),
            module: name.into(),
            has: has.into(),
            needs: needs.into(),
        };
        let (a, b) = match (&pair.a, &pair.b) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => return Err(missing("lora_a", "lora_b")),
            _ => return Err(missing("lora_b", "lora_a")),
        };
        let base = self.target(name, a, tensors)?;
        if base.shape().elements() == 0 {
            return Err(self.mismatch(a, name, base, "a tensor with elements".into()));
        }
        let rank = b.recipe.shape().row_len();
        let scale = if self.alpha == 0.0 { 1.0 } else { self.alpha / rank.max(1) as f64 };
        let effect = match (base.shape().dims(), a.dims(), b.dims()) {
            ([tokens, dim], [a_tokens, a_rank], [b_dim, b_rank]) if name.ends_with("token_embd.weight") => {
                self.expect(a, name, base, (*a_tokens, *a_rank), (*tokens, rank))?;
                self.expect(b, name, base, (*b_dim, *b_rank), (*dim, rank))?;
                Effect::LowRank(Factors::new(b.recipe.clone().transposed()?, a.recipe.clone(), scale))
            }
            ([rows, cols], [a_rank, a_cols], [b_rows, b_rank]) => {
                self.expect(a, name, base, (*a_rank, *a_cols), (rank, *cols))?;
                self.expect(b, name, base, (*b_rows, *b_rank), (*rows, rank))?;
                Effect::LowRank(Factors::new(a.recipe.clone(), b.recipe.clone(), scale))
            }
            ([experts, rows, cols], [a_experts, a_rank, a_cols], [b_experts, b_rows, b_rank]) => {
                self.expect(a, name, base, (*a_rank, *a_cols), (rank, *cols))?;
                self.expect(b, name, base, (*b_rows, *b_rank), (*rows, rank))?;
                if let Some(bad) = [(a, a_experts), (b, b_experts)].iter().find(|(_, n)| *n != experts) {
                    return Err(self.mismatch(bad.0, name, base, format!("factors of {experts} experts")));
                }
                let of = |factors: &Recipe, expert: u64, (rows, cols): (u64, u64)| {
                    factors.clone().slice(expert, 1)?.reshape(Shape::matrix(rows, cols))
                };
                let factors = (0..*experts).map(|e| {
                    Ok(Factors::new(of(&a.recipe, e, (rank, *cols))?, of(&b.recipe, e, (*rows, rank))?, scale))
                });
                let factors = factors.collect::<Result<Vec<_>, AdapterError>>()?;
                Effect::Adds(Box::new(ExpertDeltas { factors, rows: *rows }))
            }
            (base_dims, ..) => {
                return Err(self.mismatch(a, name, base, format!("factors of {} dimensions", base_dims.len())));
            }
        };
        Ok(Edit::new("LoRA", Some(rank), &[a, b], effect))
    }

    fn target<'a>(&self, name: &str, tensor: &Tensor, tensors: &'a TensorSet) -> Result<&'a Recipe, AdapterError> {
        tensors.get(name).ok_or_else(|| AdapterError::NoSuchModule {
            adapter: self.label.clone(),
            tensor: tensor.name.clone(),
            module: name.into(),
            advice: "; use the base model that the adapter was made for".into(),
        })
    }

    fn expect(
        &self,
        tensor: &Tensor,
        name: &str,
        base: &Recipe,
        found: (u64, u64),
        needed: (u64, u64),
    ) -> Result<(), AdapterError> {
        if found == needed {
            return Ok(());
        }
        Err(self.mismatch(tensor, name, base, format!("[{}, {}]", needed.0, needed.1)))
    }

    fn mismatch(&self, tensor: &Tensor, name: &str, base: &Recipe, needs: String) -> AdapterError {
        AdapterError::Mismatch(Box::new(Mismatch {
            adapter: self.label.clone(),
            tensor: tensor.name.clone(),
            shape: tensor.recipe.shape().clone(),
            target: name.into(),
            target_shape: base.shape().clone(),
            needs,
            base: String::new(),
        }))
    }
}
