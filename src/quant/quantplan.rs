//! The plan of a quantized file: its tensors in llama-quantize's order, a type for each, and its keys.
//!
//! Source: `llama_model_quantize_impl` at llama.cpp 0.5.0. Everything is decided from names, shapes and keys, so an
//! impossible wish is refused before a weight is read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::mixture::{self, Category, Mixture, ModelFacts, UnknownLayer, layer_of};
use super::{FileType, GgmlType, MOSTLY_NVFP4, QuantName, QuantOptions, can_hold_weights};
use crate::gguf::{Array, Metadata, Value};
use crate::shape::Shape;

/// The version of the quantization formats that llama.cpp writes (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;
/// Added to a file type that was guessed from the tensors (`LLAMA_FTYPE_GUESSED`).
const GUESSED: u32 = 1024;

/// A tensor of the model before quantization.
#[derive(Clone, Copy, Debug)]
pub struct SourceTensor<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Dimensions, slowest first.
    pub shape: &'a Shape,
    /// Its own type.
    pub kind: GgmlType,
    /// The input part it is in; matters with `--keep-split`.
    pub part: usize,
}

/// What a plan must know about an importance matrix.
pub trait Importance {
    /// Number of weights that it has for a tensor.
    fn len_for(&self, tensor: &str) -> Option<u64>;
    /// The `quantize.imatrix.*` keys.
    fn keys(&self) -> Vec<(&'static str, Value)>;
}

/// What becomes of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index among the source tensors.
    pub source: usize,
    /// Its name in the output; differs from the source's only where layers were pruned. An importance matrix knows
    /// the tensor by its source name.
    pub name: String,
    /// Dimensions as they are written: without slow dimensions of 1.
    pub shape: Shape,
    /// The type it had.
    pub from: GgmlType,
    /// The type it gets; where both are equal, its bytes are copied.
    pub to: GgmlType,
    /// Whether its importance weights are to be used.
    pub weighted: bool,
}

/// A tensor that could not have the type chosen for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Its name.
    pub tensor: String,
    /// Its row length.
    pub row: u64,
    /// The type that needs whole blocks.
    pub wanted: GgmlType,
    /// The type it got.
    pub got: GgmlType,
}

/// A quantized file, decided.
#[derive(Clone, Debug)]
pub struct QuantPlan {
    /// All keys in the order in which they are written.
    pub metadata: Metadata,
    /// All tensors in the order in which they are written.
    pub decisions: Vec<Decision>,
    /// Tensors that got another type for their shape.
    pub fallbacks: Vec<Fallback>,
    /// Quantized tensors for which the importance matrix has nothing.
    pub without_importance: Vec<String>,
    /// Tensor-type rules that no tensor matched.
    pub unused_rules: Vec<String>,
    /// With `--keep-split`, the tensors of each part.
    parts: Vec<Range<usize>>,
}

/// Why a model cannot be quantized as wished.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
#[non_exhaustive]
pub enum QuantPlanError {
    #[error(
        "tensor '{tensor}' would be {kind}, which is unusable without an importance matrix ({others} other tensors as well); \
         give one with --imatrix, or choose a type that needs none, such as Q2_K"
    )]
    NeedsImatrix { tensor: String, kind: GgmlType, others: usize },
    #[error(
        "the importance matrix has no weights for tensor '{tensor}', which would be {kind} and unusable without them; \
         use one made of this very model, or give the tensor another type with --tensor-type"
    )]
    MissingWeights { tensor: String, kind: GgmlType },
    #[error(
        "the importance matrix has {found} weights for tensor '{tensor}', which needs {needed} (row length × experts); \
         use one made of this very model, or leave the tensor out with --exclude-weights"
    )]
    WeightCount { tensor: String, found: u64, needed: u64 },
    #[error(
        "tensor '{tensor}' is {from} already, and would lose more as {to}; start from a 16-bit model, or pass --allow-requantize"
    )]
    Requantize { tensor: String, from: GgmlType, to: GgmlType },
    #[error("tensor '{tensor}' has type {from}, which cannot become {to}; keep it as it is with --tensor-type")]
    NotWeights { tensor: String, from: GgmlType, to: GgmlType },
    #[error(
        "tensor '{tensor}' has rows of {row}, and {kind} needs whole blocks of {block}; give it another type with --tensor-type"
    )]
    RaggedRow { tensor: String, row: u64, kind: GgmlType, block: u64 },
    #[error(transparent)]
    Layer(#[from] UnknownLayer),
    #[error("the model has no layer {layer} to prune (its last is {last}); correct --prune-layers")]
    NoSuchLayer { layer: u32, last: i64 },
    #[error("pruning leaves no tensor in part {} of the model; leave --keep-split out", part + 1)]
    EmptyPart { part: usize },
    #[error(
        "--override-kv {key}: the model has no {missing}, which llama.cpp wants under that name; \
         leave the architecture as it is, or set the keys"
    )]
    Architecture { key: &'static str, missing: String },
    #[error(
        "--override-kv: {arch}.expert_count would be {experts} with {arch}.expert_used_count {used}, which llama.cpp does not \
         load; set both, at least one expert used and no more than there are, or neither"
    )]
    Experts { arch: String, experts: u64, used: u64 },
    #[error("the model has no tensors; give a whole model")]
    NoTensors,
}

impl QuantPlan {
    /// Decides a file.
    pub fn new(
        metadata: &Metadata,
        tensors: &[SourceTensor<'_>],
        target: QuantName,
        options: &QuantOptions,
        imatrix: Option<&dyn Importance>,
    ) -> Result<Self, QuantPlanError> {
        if tensors.is_empty() {
            return Err(QuantPlanError::NoTensors);
        }
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by(|&a, &b| {
            let key = |i: usize| (layer_of(tensors[i].name).unwrap_or(-1), tensors[i].name);
            key(a).cmp(&key(b))
        });
        let (mut kept, layers_left) = prune(tensors, &order, &options.prune_layers)?;
        if options.keep_split {
            kept.sort_by_key(|&(i, _)| (tensors[i].part, i));
        }

        // Overrides reach the loader too, so they change what the mixture sees. There the first of a key counts.
        let mut seen = metadata.clone();
        for o in options.override_kv.iter().rev() {
            let same_type = metadata.get(&o.key).is_none_or(|v| v.type_id() == o.value.type_id());
            if same_type {
                seen.set(o.key.clone(), o.value.clone());
            }
        }
        check_architecture(metadata, &seen)?;
        check_experts(metadata, &seen)?;
        let facts = ModelFacts::of(&seen);
        let chooser = Chooser { facts: &facts, target, options, has_imatrix: imatrix.is_some() };
        let mut plan = chooser.decide(tensors, &kept)?;
        plan.check_weights(tensors, target, &facts, options, imatrix)?;

        let file_type = match target.mixture() {
            Some((file_type, ..)) => file_type as u32,
            None => own_file_type(&seen, tensors, &order),
        };
        plan.metadata = transform(metadata, file_type, options, imatrix);
        if !options.prune_layers.is_empty() {
            plan.metadata.set_last(&format!("{}.block_count", facts.arch), Value::U32(layers_left));
        }
        if options.keep_split {
            plan.parts = parts(tensors, &plan.decisions)?;
        }
        Ok(plan)
    }

    /// The keys and tensors of each file to write: one, or with `--keep-split` as many as the input has.
    pub fn parts(&self) -> Vec<(Metadata, Range<usize>)> {
        if self.parts.len() < 2 {
            return vec![(self.metadata.clone(), 0..self.decisions.len())];
        }
        let numbered = self.parts.iter().cloned().zip(0u16..);
        numbered
            .map(|(range, no)| {
                let mut keys = if no == 0 { self.metadata.clone() } else { Metadata::new() };
                keys.set_last("split.no", Value::U16(no));
                keys.set_last("split.count", Value::U16(self.parts.len() as u16));
                keys.set_last("split.tensors.count", Value::I32(self.decisions.len() as i32));
                (keys, range)
            })
            .collect()
    }

    /// Compares what will be quantized with what the importance matrix has.
    fn check_weights(
        &mut self,
        tensors: &[SourceTensor<'_>],
        target: QuantName,
        facts: &ModelFacts,
        options: &QuantOptions,
        imatrix: Option<&dyn Importance>,
    ) -> Result<(), QuantPlanError> {
        let Some((file_type, ..)) = target.mixture() else { return Ok(()) };
        let needs = |d: &Decision| mixture::requires_imatrix(&d.name, d.to, file_type);
        let Some(imatrix) = imatrix else {
            let mut offending = self.decisions.iter().filter(|d| {
                needs(d)
                    && mixture::allows_quantization(&facts.arch, &d.name, d.shape.ndim())
                    && !(options.leave_output_tensor && d.name == "output.weight")
            });
            return match offending.next() {
                None => Ok(()),
                Some(d) => {
                    Err(QuantPlanError::NeedsImatrix { tensor: d.name.clone(), kind: d.to, others: offending.count() })
                }
            };
        };
        for d in self.decisions.iter_mut().filter(|d| d.from != d.to) {
            let ne = d.shape.ne();
            let needed = ne.first().unwrap_or(&1) * ne.get(2).unwrap_or(&1);
            match imatrix.len_for(tensors[d.source].name) {
                Some(found) if found == needed => d.weighted = true,
                // An imatrix has one for the embedding's rows or none that fits.
                Some(_) if Category::of(&d.name) == Category::TokenEmbd => {}
                Some(found) => return Err(QuantPlanError::WeightCount { tensor: d.name.clone(), found, needed }),
                None if mixture::requires_imatrix(&d.name, d.to, file_type) => {
                    return Err(QuantPlanError::MissingWeights { tensor: d.name.clone(), kind: d.to });
                }
                None if d.to.is_quantized() => self.without_importance.push(d.name.clone()),
                None => {}
            }
        }
        Ok(())
    }
}

impl QuantName {
    /// The file type, and the types it forces on output and token embedding; `None` where tensors keep theirs.
    fn mixture(self) -> Option<(FileType, Option<GgmlType>)> {
        match self {
            QuantName::Auto | QuantName::Copy => None,
            QuantName::Type(t) => Some((t, None)),
            QuantName::Q2KL => Some((FileType::Q2_K, Some(GgmlType::Q8_0))),
        }
    }
}

/// Everything that the choice of a type looks at.
struct Chooser<'a> {
    facts: &'a ModelFacts,
    target: QuantName,
    options: &'a QuantOptions,
    has_imatrix: bool,
}

impl Chooser<'_> {
    fn decide(&self, tensors: &[SourceTensor<'_>], kept: &[(usize, String)]) -> Result<QuantPlan, QuantPlanError> {
        let forced = self.target.mixture().and_then(|m| m.1);
        let output_type = self.options.output_tensor_type.or(forced);
        let embedding_type = self.options.token_embedding_type.or(forced);
        let names = || kept.iter().map(|(_, name)| name.as_str());
        let mut mixture =
            self.target.mixture().map(|(t, _)| Mixture::new(self.facts, t, self.has_imatrix, output_type, names()));
        let mut used = vec![false; self.options.tensor_types.len()];
        let mut plan = QuantPlan {
            metadata: Metadata::new(),
            decisions: Vec::with_capacity(kept.len()),
            fallbacks: Vec::new(),
            without_importance: Vec::new(),
            unused_rules: Vec::new(),
            parts: Vec::new(),
        };
        for (source, name) in kept {
            let t = &tensors[*source];
            let shape = written_shape(t.shape);
            let to = match &mut mixture {
                Some(mixture) if self.may_change(name, &shape) => {
                    self.choose(mixture, name, &shape, output_type, embedding_type, &mut used, &mut plan.fallbacks)?
                }
                _ => t.kind,
            };
            self.check_change(name, t.kind, to, &shape)?;
            plan.decisions.push(Decision {
                source: *source,
                name: name.clone(),
                shape,
                from: t.kind,
                to,
                weighted: false,
            });
        }
        let unused = self.options.tensor_types.iter().zip(used).filter(|(_, used)| !used);
        plan.unused_rules = unused.map(|(rule, _)| rule.text().to_owned()).collect();
        Ok(plan)
    }

    fn may_change(&self, name: &str, shape: &Shape) -> bool {
        mixture::allows_quantization(&self.facts.arch, name, shape.ndim())
            && !(self.options.leave_output_tensor && name == "output.weight")
    }

    /// `llama_tensor_get_type`.
    #[allow(clippy::too_many_arguments)] // one call; the last two are where it reports to
    fn choose(
        &self,
        mixture: &mut Mixture<'_>,
        name: &str,
        shape: &Shape,
        output_type: Option<GgmlType>,
        embedding_type: Option<GgmlType>,
        used: &mut [bool],
        fallbacks: &mut Vec<Fallback>,
    ) -> Result<GgmlType, QuantPlanError> {
        let rule = self.options.tensor_types.iter().position(|rule| rule.matches(name));
        let category = Category::of(name);
        if let Some(kind) = embedding_type
            && category == Category::TokenEmbd
        {
            // A table of its own, so a rule that names it goes first.
            if !(name == "per_layer_token_embd.weight" && rule.is_some()) {
                return Ok(kind);
            }
        }
        if let Some(kind) = output_type
            && category == Category::Output
        {
            return Ok(kind);
        }
        let base = mixture.file_type().base_type();
        if !base.is_quantized() {
            return Ok(base);
        }
        let wanted = match rule {
            Some(i) => {
                used[i] = true;
                self.options.tensor_types[i].kind
            }
            None if self.options.pure => base,
            None => mixture.choose(name, &shape.ne())?,
        };
        let row = shape.row_len();
        let got = mixture::fallback(wanted, row).ok_or_else(|| ragged(name, row, wanted))?;
        if got != wanted {
            fallbacks.push(Fallback { tensor: name.to_owned(), row, wanted, got });
        }
        Ok(got)
    }

    fn check_change(&self, name: &str, from: GgmlType, to: GgmlType, shape: &Shape) -> Result<(), QuantPlanError> {
        if from == to {
            return Ok(());
        }
        let tensor = || name.to_owned();
        if !can_hold_weights(from) {
            return Err(QuantPlanError::NotWeights { tensor: tensor(), from, to });
        }
        if from.is_quantized() && !self.options.allow_requantize {
            return Err(QuantPlanError::Requantize { tensor: tensor(), from, to });
        }
        if !shape.row_len().is_multiple_of(to.geometry().elements) {
            return Err(ragged(name, shape.row_len(), to));
        }
        Ok(())
    }
}

fn ragged(name: &str, row: u64, kind: GgmlType) -> QuantPlanError {
    QuantPlanError::RaggedRow { tensor: name.to_owned(), row, kind, block: kind.geometry().elements }
}

/// Refuses an architecture that the user sets and the model has no keys for: llama.cpp cannot load such a model.
fn check_architecture(own: &Metadata, seen: &Metadata) -> Result<(), QuantPlanError> {
    const KEY: &str = "general.architecture";
    let arch = |m: &Metadata| m.get(KEY).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = arch(seen);
    if wanted == arch(own) {
        return Ok(());
    }
    let keys = ["context_length", "embedding_length", "block_count"].map(|key| format!("{wanted}.{key}"));
    match keys.into_iter().find(|key| seen.get(key).is_none()) {
        Some(missing) => Err(QuantPlanError::Architecture { key: KEY, missing }),
        None => Ok(()),
    }
}

/// Refuses numbers of experts that the user sets and that contradict each other: llama.cpp asserts that none do when it
/// loads a model (`llama_model_base::load_hparams`).
fn check_experts(own: &Metadata, seen: &Metadata) -> Result<(), QuantPlanError> {
    let arch = seen.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let numbers = |m: &Metadata| {
        ["expert_count", "expert_used_count"]
            .map(|key| m.get(&format!("{arch}.{key}")).and_then(Value::as_u64).unwrap_or(0))
    };
    let [experts, used] = numbers(seen);
    let loads = match experts {
        0 => used == 0,
        // A single expert counts as none.
        1 if matches!(arch, "hunyuan-vl" | "hunyuan-dense") => true,
        _ => (1..=experts).contains(&used),
    };
    if loads || numbers(own) == [experts, used] {
        return Ok(());
    }
    Err(QuantPlanError::Experts { arch: arch.to_owned(), experts, used })
}

/// The dimensions that llama.cpp writes: slow ones of 1 are dropped, one is always left (`ggml_n_dims`).
fn written_shape(shape: &Shape) -> Shape {
    let dims = shape.dims();
    let ones = dims.iter().take(dims.len().saturating_sub(1)).take_while(|&&d| d <= 1).count();
    match dims {
        [] => Shape::vector(1),
        // A dimension of zero elements ends the count there as well; such a tensor keeps its shape.
        _ if shape.elements() == 0 => shape.clone(),
        _ => Shape::new(&dims[ones..]).unwrap_or_else(|| shape.clone()),
    }
}

/// Drops the tensors of pruned layers and renumbers the others (`remap_layer`). Answers source indices with new
/// names, and the number of layers left.
fn prune(
    tensors: &[SourceTensor<'_>],
    order: &[usize],
    layers: &BTreeSet<u32>,
) -> Result<(Vec<(usize, String)>, u32), QuantPlanError> {
    let Some(&first) = layers.first() else {
        return Ok((order.iter().map(|&i| (i, tensors[i].name.to_owned())).collect(), 0));
    };
    let mut numbers: BTreeMap<u32, Option<u32>> = BTreeMap::new();
    let mut next = 0;
    let mut kept = Vec::with_capacity(order.len());
    for &i in order {
        let name = tensors[i].name;
        let Some((at, layer)) = block_number(name) else {
            kept.push((i, name.to_owned()));
            continue;
        };
        let number = *numbers.entry(layer).or_insert_with(|| {
            if layers.contains(&layer) {
                return None;
            }
            // Layers before the first pruned one keep their number.
            let number = if layer < first { layer } else { next };
            next = number + 1;
            Some(number)
        });
        if let Some(number) = number {
            kept.push((i, format!("{}{number}{}", &name[..at.start], &name[at.end..])));
        }
    }
    match layers.iter().find(|l| !numbers.contains_key(l)) {
        Some(&layer) => {
            Err(QuantPlanError::NoSuchLayer { layer, last: numbers.last_key_value().map_or(-1, |l| (*l.0).into()) })
        }
        None => Ok((kept, next)),
    }
}

/// Where a name says `blk.N.`, and N.
fn block_number(name: &str) -> Option<(Range<usize>, u32)> {
    name.match_indices("blk.").find_map(|(at, found)| {
        let start = at + found.len();
        let digits = name[start..].bytes().take_while(u8::is_ascii_digit).count();
        let end = start + digits;
        let number = name[start..end].parse().ok()?;
        name[end..].starts_with('.').then_some((start..end, number))
    })
}

/// `general.file_type` of a copy: the one it has, or one guessed from the most frequent type and marked as such.
fn own_file_type(metadata: &Metadata, tensors: &[SourceTensor<'_>], order: &[usize]) -> u32 {
    if let Some(t) = metadata.get("general.file_type").and_then(Value::as_u64) {
        return t as u32;
    }
    let mut counts: BTreeMap<GgmlType, usize> = BTreeMap::new();
    let (mut most, mut kind) = (0, GgmlType::F32);
    for &i in order {
        let n = counts.entry(tensors[i].kind).or_default();
        *n += 1;
        if *n > most {
            (most, kind) = (*n, tensors[i].kind);
        }
    }
    let file_type = match kind {
        GgmlType::Q3_K => FileType::Q3_K_M as u32,
        GgmlType::Q4_K => FileType::Q4_K_M as u32,
        GgmlType::Q5_K => FileType::Q5_K_M as u32,
        GgmlType::NVFP4 => MOSTLY_NVFP4,
        other => FileType::from_name(other.name()).map_or(0, |t| t as u32),
    };
    file_type | GUESSED
}

/// The output's keys: the input's in their order, then version, file type, and what was overridden or added.
fn transform(
    metadata: &Metadata,
    file_type: u32,
    options: &QuantOptions,
    imatrix: Option<&dyn Importance>,
) -> Metadata {
    let mut out = Metadata::new();
    for (key, value) in metadata.iter() {
        out.set(key, as_c_strings(value));
    }
    out.set_last("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    out.set_last("general.file_type", Value::U32(file_type));
    for key in ["split.no", "split.count", "split.tensors.count"] {
        out.remove(key);
    }
    for o in &options.override_kv {
        out.set_last(&o.key, o.value.clone());
    }
    for (key, value) in imatrix.into_iter().flat_map(|i| i.keys()) {
        out.set_last(key, value);
    }
    out
}

/// Strings up to their first zero byte: llama.cpp copies and reads keys as C strings.
fn as_c_strings(value: &Value) -> Value {
    let cut = |s: &bstr::BString| s.iter().position(|&b| b == 0).map_or_else(|| s.clone(), |end| s[..end].into());
    match value {
        Value::String(s) => Value::String(cut(s)),
        Value::Array(Array::String(a)) => Value::Array(Array::String(a.iter().map(cut).collect())),
        other => other.clone(),
    }
}

/// The runs of tensors of one part.
fn parts(tensors: &[SourceTensor<'_>], decisions: &[Decision]) -> Result<Vec<Range<usize>>, QuantPlanError> {
    let count = tensors.iter().map(|t| t.part + 1).max().unwrap_or(1);
    let mut ranges = Vec::with_capacity(count);
    let mut start = 0;
    for part in 0..count {
        let len = decisions[start..].iter().take_while(|d| tensors[d.source].part == part).count();
        if len == 0 {
            return Err(QuantPlanError::EmptyPart { part });
        }
        ranges.push(start..start + len);
        start += len;
    }
    Ok(ranges)
}
