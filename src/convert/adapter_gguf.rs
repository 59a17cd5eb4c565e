//! A GGUF adapter, for llama.cpp's `--lora` and Ollama's ADAPTER: factors under the names and in the arrangement of
//! the model's GGUF.
//!
//! The adapters are merged as ever, in recipes only; the architecture arranges the model's tensors as ever; and what
//! merging adds to each is read off its recipe as factors ([`Recipe::low_rank`]). llama.cpp multiplies every product
//! by `alpha / rank`, with one alpha for all: where that is not a tensor's true scale (rsLoRA, patterns, several
//! adapters), the difference is folded into its `lora_b`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::open::name_of;
use super::open_adapter::{self, AdapterBase, Adapters};
use super::request::Place;
use super::{Conversion, ConvertError, Output, Request};
use crate::adapter::{self, Adapter, MergeOptions, MergeSummary};
use crate::arch::{self, ArchInput, Arranged, ConvertedTensor, Stored};
use crate::gguf::{Layout, Metadata, TensorInfo};
use crate::plan::{FilePlan, Model, PlannedTensor, Tensors, TypePlan};
use crate::quant::{FileType, GgmlType, QuantName};
use crate::recipe::{NotLowRank, Term};
use crate::report::{ModelReport, Report};
use crate::save::GgufTarget;
use crate::source::TensorSet;

/// Why adapters cannot be a GGUF adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterGgufError {
    /// A change that is no product of factors.
    #[error(
        "{subject}: {kind} cannot be expressed in a GGUF adapter, which holds products of two matrices only; merge it \
         into the model instead (leave out --save-method lora)"
    )]
    Inexpressible {
        /// The adapter and the module.
        subject: String,
        /// The form of the change.
        kind: String,
    },
    /// The change is expressible, its arrangement is not.
    #[error("{tensor}: {cause}; merge the adapter into the model instead (leave out --save-method lora)")]
    Arrangement {
        /// The GGUF tensor.
        tensor: String,
        /// Why not.
        cause: String,
    },
    /// llama.cpp would ignore the factors, or fail over them.
    #[error("{tensor}: {cause}; merge the adapter into the model instead (leave out --save-method lora)")]
    NotApplied {
        /// The GGUF tensor.
        tensor: String,
        /// Why not.
        cause: String,
    },
    /// The model's GGUF has no such tensor.
    #[error("{adapter}: changes {tensor}, which a GGUF of the model does not hold ({reason}); train without it")]
    NotInModel {
        /// The adapter.
        adapter: String,
        /// The source tensor.
        tensor: String,
        /// Why not.
        reason: String,
    },
    /// The adapter belongs to a model with other layers.
    #[error(
        "{adapter}: repeats the model's layers (layer_replication), which the base's GGUF does not; merge it into the \
         model instead (leave out --save-method lora)"
    )]
    Replicated {
        /// The adapter.
        adapter: String,
    },
    /// Nothing is left to write.
    #[error("{adapter}: changes no tensor; a GGUF adapter of it would be empty")]
    Empty {
        /// The adapter.
        adapter: String,
    },
    /// A type that adapters are not stored in.
    #[error("--quant {name}: a GGUF adapter is stored as f32, f16, bf16, q8_0 or auto; choose one of these")]
    Type {
        /// The type.
        name: String,
    },
}

impl Conversion {
    /// Plans a GGUF adapter in each of the types asked for. Reads headers only.
    pub(super) fn plan_adapter(request: &Request) -> Result<Conversion, ConvertError> {
        let mut opened = open_adapter::open(request)?;
        let folder = std::mem::replace(&mut opened.base, Ok(PathBuf::new()))?;
        let base = AdapterBase::open(&folder, &opened.list)?;
        let types = types(&request.quants, &opened.list)?;
        let place = request.place(&opened.name, "lora")?;
        let (arranged, merge) = arrange(&base, &opened.list)?;
        let mut report = Report { warnings: merge.warnings.clone(), ..Report::default() };
        refuse_by_summary(&merge, &arranged, &opened.list)?;
        let products = products(&arranged, &merge)?;
        let alpha = common_alpha(&products);
        let (tensors, parameters) = factors(products, alpha)?;
        let metadata = arch::adapter_metadata(arranged.arch, opened.origin(), parameters, alpha)?;
        let mut outputs = Vec::new();
        for (file_type, output) in types {
            let label = format!("{}-LoRA", file_type.name());
            let plan = TypePlan { label, files: vec![file(&metadata, &tensors, output)?], warnings: Vec::new() };
            let paths = place.gguf_paths(&plan.label, 1, false);
            report.outputs.extend(plan.reports(&paths));
            outputs.push(Output { plan, paths });
        }
        let beside = beside(request, (&opened, &base), &arranged, &place, &outputs, &mut report)?;
        let adapters = outputs.iter().flat_map(|o| o.paths.clone());
        report.files = adapters.chain(beside.iter().map(|b| b.0.clone())).collect();
        report.adapters = opened.reports(&merge);
        report.model = ModelReport {
            path: opened.origin().to_owned(),
            architecture: arranged.arch.to_owned(),
            tensors: tensors.len(),
            parameters: tensors.iter().map(|t| t.recipe.shape().elements()).sum(),
            bytes: opened.bytes(),
            quantization: None,
            dropped: Vec::new(),
        };
        let model = Model { metadata, tensors: Tensors::Converted { tensors, auto: GgmlType::F16 } };
        Ok(Conversion { model, types: outputs, beside, force: request.force, merge, report })
    }
}

/// The types of the files, and their names; `auto` is the adapter's own 16-bit type.
fn types(quants: &[QuantName], adapters: &[(Adapter, f32)]) -> Result<Vec<(FileType, GgmlType)>, ConvertError> {
    let mut types: Vec<(FileType, GgmlType)> = Vec::new();
    for quant in quants {
        let output = match quant {
            QuantName::Auto => adapters
                .iter()
                .flat_map(|(a, _)| a.precisions())
                .find(|t| matches!(t, GgmlType::F16 | GgmlType::BF16))
                .unwrap_or(GgmlType::F16),
            QuantName::Type(t) => t.base_type(),
            _ => GgmlType::Q4_K,
        };
        let file_type = match (output, quant) {
            (GgmlType::F32, _) => FileType::F32,
            (GgmlType::F16, _) => FileType::F16,
            (GgmlType::BF16, _) => FileType::BF16,
            (GgmlType::Q8_0, QuantName::Type(FileType::Q8_0)) => FileType::Q8_0,
            _ => return Err(AdapterGgufError::Type { name: quant.name().to_owned() }.into()),
        };
        if !types.iter().any(|(_, t)| *t == output) {
            types.push((file_type, output));
        }
    }
    Ok(types)
}

/// The model's tensors as a GGUF arranges them, with the adapters merged in; changed ones first, in the order of the
/// adapters' files.
fn arrange(base: &AdapterBase, adapters: &[(Adapter, f32)]) -> Result<(Arranged, MergeSummary), ConvertError> {
    let AdapterBase { folder, config, tensors, info, .. } = base;
    let mut merged = tensors.clone();
    let merge = adapter::apply(adapters, &mut merged, info, &MergeOptions::default())?;
    let mut places: HashMap<(&str, &str), usize> = HashMap::new();
    for (adapter, _) in adapters {
        for (i, module) in adapter.modules().enumerate() {
            places.entry((adapter.label(), module)).or_insert(i);
        }
    }
    let mut changed: Vec<(usize, usize, &str)> = Vec::new();
    for (index, (adapter, _)) in adapters.iter().enumerate() {
        for change in merge.changes.iter().filter(|c| c.adapter == adapter.label()) {
            // Parameters of experts are named after their module, with more behind.
            let mut module = change.module.as_str();
            let place = loop {
                match (places.get(&(adapter.label(), module)), module.rsplit_once('.')) {
                    (Some(place), _) => break *place,
                    (None, Some((parent, _))) => module = parent,
                    (None, None) => break usize::MAX,
                }
            };
            changed.push((index, place, &change.tensor));
        }
    }
    changed.sort();
    let mut ordered = TensorSet::new();
    let names = changed.iter().map(|(_, _, name)| *name).chain(merged.iter().map(|(name, _)| name));
    for name in names {
        if let Some(recipe) = merged.get(name).filter(|_| !ordered.contains(name)) {
            ordered.set(name, recipe.clone());
        }
    }
    let arranged = arch::arrange(&ArchInput {
        config,
        config_file: &folder.join("config.json"),
        tensors: &ordered,
        folder,
        tokenizer_folder: folder,
        name: None,
    })?;
    Ok((arranged, merge))
}

/// Refuses what the summary of the merge shows already.
fn refuse_by_summary(
    merge: &MergeSummary,
    arranged: &Arranged,
    adapters: &[(Adapter, f32)],
) -> Result<(), AdapterGgufError> {
    let labels = || adapters.iter().map(|(a, _)| a.label()).collect::<Vec<_>>().join(", ");
    if merge.layer_map.is_some() {
        return Err(AdapterGgufError::Replicated { adapter: labels() });
    }
    if merge.changes.is_empty() {
        return Err(AdapterGgufError::Empty { adapter: labels() });
    }
    for change in &merge.changes {
        let held = arranged.tensors.iter().any(|t| t.source.contains(&change.tensor));
        if !held {
            let reason = arranged.dropped.iter().find(|(name, _)| *name == change.tensor).map(|(_, reason)| *reason);
            return Err(AdapterGgufError::NotInModel {
                adapter: change.adapter.clone(),
                tensor: change.tensor.clone(),
                reason: reason.unwrap_or("it is stored otherwise there").to_owned(),
            });
        }
    }
    Ok(())
}

/// What merging adds to one GGUF tensor.
struct Product {
    name: String,
    terms: Vec<Term>,
    source: Vec<String>,
}

impl Product {
    fn rank(&self) -> u64 {
        self.terms.iter().map(Term::rank).sum()
    }
}

/// The products of every changed tensor, all of them such as llama.cpp applies.
fn products(arranged: &Arranged, merge: &MergeSummary) -> Result<Vec<Product>, AdapterGgufError> {
    let has_head = merge.untied_head.is_none() && arranged.tensors.iter().any(|t| t.name == "output.weight");
    let mut products = Vec::new();
    for tensor in &arranged.tensors {
        let terms = tensor.recipe.low_rank().map_err(|e| match e {
            NotLowRank::Change { change } => {
                let kind = merge.changes.iter().find(|c| format!("{}: {}", c.adapter, c.module) == change);
                let kind = kind.map_or("this change", |c| c.kind);
                AdapterGgufError::Inexpressible { subject: change, kind: in_words(kind) }
            }
            other => AdapterGgufError::Arrangement { tensor: tensor.name.clone(), cause: other.to_string() },
        })?;
        if terms.is_empty() {
            continue;
        }
        if let Some(cause) = not_applied(arranged.arch, &tensor.name, has_head) {
            return Err(AdapterGgufError::NotApplied { tensor: tensor.name.clone(), cause: cause.to_owned() });
        }
        products.push(Product { name: tensor.name.clone(), terms, source: tensor.source.clone() });
    }
    Ok(products)
}

/// A kind of change for the middle of a sentence.
fn in_words(kind: &str) -> String {
    match kind {
        "replaced" => "a tensor that was trained whole (modules_to_save, or a bias)".to_owned(),
        "trained tokens" => "retrained rows of an embedding (trainable_token_indices)".to_owned(),
        "LoRA bias" => "a bias beside the factors (lora_bias)".to_owned(),
        other => other.to_owned(),
    }
}

/// Why llama.cpp does not apply factors of this tensor, where it does not: a product is applied where the graph
/// multiplies by the weight through `build_lora_mm` or looks up a token's embedding, and nowhere else.
fn not_applied(arch: &str, name: &str, has_head: bool) -> Option<&'static str> {
    const UNUSED: &str = "llama.cpp's computation ignores adapters of this tensor";
    if name == "token_embd.weight" || name == "output.weight" {
        if !has_head && arch != "bert" {
            return Some("the model's GGUF has one tensor for embedding and head, and llama.cpp cannot apply one half");
        }
        return (name == "output.weight" && arch == "deepseek2").then_some(UNUSED);
    }
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part);
    let everywhere = ["position_embd.weight", "token_types.weight", "ssm_conv1d.weight", "attn_rel_b.weight"];
    let attention = arch == "deepseek2" && part.starts_with("attn_") && part != "attn_output.weight";
    (everywhere.contains(&part) || attention).then_some(UNUSED)
}

/// The alpha that gives most products their scale as it is: then their factors stay as they were trained.
fn common_alpha(products: &[Product]) -> f32 {
    let mut counts: Vec<(f32, usize)> = Vec::new();
    for product in products {
        for term in &product.terms {
            let alpha = (term.scale * product.rank() as f64) as f32;
            match counts.iter_mut().find(|(a, _)| *a == alpha) {
                Some((_, n)) => *n += 1,
                None => counts.push((alpha, 1)),
            }
        }
    }
    let most = counts.iter().map(|(_, n)| *n).max().unwrap_or(0);
    // llama.cpp takes an alpha of 0 for a scale of 1.
    counts.iter().find(|(a, n)| *n == most && *a != 0.0).or(counts.iter().find(|(a, _)| *a != 0.0)).map_or(1.0, |c| c.0)
}

/// The tensors of the file, and how many of the model's parameters they change.
fn factors(products: Vec<Product>, alpha: f32) -> Result<(Vec<ConvertedTensor>, u64), AdapterGgufError> {
    let mut tensors = Vec::with_capacity(2 * products.len());
    let mut parameters = 0;
    for product in products {
        let rank = product.rank();
        let Product { name, terms, source } = product;
        let unfit = |e: NotLowRank| AdapterGgufError::Arrangement { tensor: name.clone(), cause: e.to_string() };
        let Term { mut a, mut b, .. } = Term::sum(terms, f64::from(alpha) / rank as f64).map_err(unfit)?;
        if name == "token_embd.weight" {
            // Rows of the first factor are looked up by token; the second is multiplied as it is.
            (a, b) = (b, a.transposed().map_err(|e| unfit(e.into()))?);
        }
        parameters += b.shape().rows() * a.shape().row_len();
        for (suffix, recipe) in [("lora_a", a), ("lora_b", b)] {
            let name = format!("{name}.{suffix}");
            let stored = Stored::of(&name, recipe.shape());
            tensors.push(ConvertedTensor { name, recipe, stored, source: source.clone(), whole: None });
        }
    }
    Ok((tensors, parameters))
}

/// The file of one type.
fn file(metadata: &Metadata, tensors: &[ConvertedTensor], output: GgmlType) -> Result<FilePlan, ConvertError> {
    let planned: Vec<PlannedTensor> = tensors
        .iter()
        .enumerate()
        .map(|(stream, t)| {
            let kind = t.stored_type(output);
            PlannedTensor {
                info: TensorInfo { name: t.name.clone(), shape: t.recipe.shape().clone(), kind },
                target: GgufTarget { stream, ty: kind, importance: None },
            }
        })
        .collect();
    let infos: Vec<TensorInfo> = planned.iter().map(|t| t.info.clone()).collect();
    let layout = Layout::new(metadata, &infos).map_err(crate::plan::PlanError::from)?;
    Ok(FilePlan { tensors: planned, layout })
}

/// What stands beside the adapter: a Modelfile over a GGUF of the base, and what to type next.
fn beside(
    request: &Request,
    (opened, model): (&Adapters, &AdapterBase),
    arranged: &Arranged,
    place: &Place,
    outputs: &[Output],
    report: &mut Report,
) -> Result<Vec<(PathBuf, Vec<u8>)>, ConvertError> {
    let Some(path) = outputs.first().and_then(|o| o.paths.first()) else { return Ok(Vec::new()) };
    let base = base_gguf(&model.folder);
    let shown = base.clone().unwrap_or_else(|| PathBuf::from("BASE.gguf"));
    let command = format!("llama-cli -m {} --lora {}", super::quoted(&shown), super::quoted(path));
    let mut files = Vec::new();
    if let (Some(folder), true) = (place.folder(), request.modelfile) {
        let from = base.as_ref().unwrap_or(&model.folder);
        let from = std::path::absolute(from).unwrap_or_else(|_| from.clone());
        let (text, notes) = opened.modelfile(model, arranged, &from, path, &request.wishes);
        report.warnings.extend(notes);
        let modelfile = folder.join("Modelfile");
        report.next.push(format!(
            "ollama create {} -f {}",
            super::quoted(Path::new(&opened.name.to_lowercase())),
            super::quoted(&modelfile)
        ));
        files.push((modelfile, text.into_bytes()));
    }
    if base.is_none() {
        report.next.insert(0, format!("to-gguf {}", super::quoted(&model.folder)));
    }
    report.next.push(command);
    Ok(files)
}

/// A GGUF of the base where this program puts it by itself.
fn base_gguf(folder: &Path) -> Option<PathBuf> {
    let name = name_of(folder);
    let mut found: Vec<PathBuf> = std::fs::read_dir(format!("{name}-gguf"))
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&name)))
        .collect();
    found.sort();
    found.into_iter().next()
}
