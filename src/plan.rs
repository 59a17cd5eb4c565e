//! The plan: every name, type, shape and offset of every file, decided from headers.
//!
//! A pure function. What it returns is exact to the byte, so `--dry-run` prints it and the engine only fills it
//! in; every error that can be found without reading weights is found here.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::arch::{ConvertedTensor, Stored};
use crate::gguf::{Layout, LayoutError, Metadata, SplitRule, TensorInfo, Value, split};
use crate::quant::{
    FileType, GgmlType, Imatrix, MOSTLY_NVFP4, QuantName, QuantOptions, QuantPlan, QuantPlanError, SourceTensor,
};
use crate::recipe::{Elementwise, Recipe};
use crate::report::OutputReport;
use crate::save::GgufTarget;

/// A model on its way to GGUF: all keys, and all tensors under GGUF names, before a type is chosen.
#[derive(Clone, Debug)]
pub struct Model {
    /// Keys in the order in which a converter writes them.
    pub metadata: Metadata,
    /// Tensors in the order in which a converter writes them.
    pub tensors: Tensors,
}

/// The tensors of a model, by where their types come from.
#[derive(Clone, Debug)]
pub enum Tensors {
    /// From a model folder: types follow the converter's rules.
    Converted {
        /// The tensors.
        tensors: Vec<ConvertedTensor>,
        /// The type that `auto` stands for.
        auto: GgmlType,
    },
    /// From a GGUF, which has its types.
    Stored(Vec<StoredTensor>),
}

/// A tensor of a GGUF.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub recipe: Recipe,
    /// Its type.
    pub kind: GgmlType,
    /// The part of a split model that it lies in.
    pub part: usize,
}

/// A tensor that the plan looks at.
struct Look<'a> {
    name: &'a str,
    recipe: &'a Recipe,
    /// The type in a lossless GGUF of the model.
    own: GgmlType,
    part: usize,
    /// The stream of its rows, for each kind of file.
    streams: Streams,
}

/// Which streams of the model make a tensor's rows. They differ where llama.cpp's converter decodes a packed weight
/// to more bits than its library does, and writes them: a plain file holds those, and the quantizer gets them
/// rounded to the type of the model's own GGUF. So it gets single f32 matrices of a 16-bit model.
#[derive(Clone, Copy, Debug)]
struct Streams {
    /// For a file that the converter writes.
    plain: usize,
    /// For one that the quantizer makes of it.
    quantized: usize,
}

impl Look<'_> {
    /// The streams of a tensor beside its own: of a packed weight, what the converter decodes and that rounded to the
    /// type of the model's own GGUF; of an f32 matrix in a 16-bit model, the matrix rounded. A converter stores all
    /// matrices of a model in one type, so that is what is quantized; what an adapter changes is quantized as it is.
    fn more(&self) -> Vec<Recipe> {
        let rounded = |recipe: Recipe| recipe.map(Elementwise::Round(self.own));
        match self.recipe.as_converted() {
            Some(converted) => vec![converted.clone(), rounded(converted)],
            None if self.is_narrowed() => vec![rounded(self.recipe.clone())],
            None => Vec::new(),
        }
    }

    /// Whether the model's own GGUF holds it in 16 bits, and its files in more or in other ones.
    fn is_narrowed(&self) -> bool {
        matches!(self.own, GgmlType::F16 | GgmlType::BF16)
            && self.own != self.recipe.precision()
            && self.recipe.native().is_none()
            && !self.recipe.is_merged()
    }
}

/// The one type of all matrices of a 16-bit model; `None` where no matrix has 16 bits.
fn matrix_type(tensors: &[ConvertedTensor], auto: GgmlType) -> Option<GgmlType> {
    let is_matrix = |t: &ConvertedTensor| !matches!(t.stored, Stored::F32 | Stored::Fixed(_));
    tensors.iter().any(|t| is_matrix(t) && t.recipe.precision() == auto).then_some(auto)
}

impl Model {
    fn looks(&self) -> Vec<Look<'_>> {
        match &self.tensors {
            Tensors::Converted { tensors, auto } => {
                let matrices = matrix_type(tensors, *auto);
                let mut next = tensors.len();
                let mut looks = Vec::with_capacity(tensors.len());
                for (i, t) in tensors.iter().enumerate() {
                    let own = match (t.recipe.as_converted(), matrices) {
                        (None, Some(matrices)) if !t.recipe.is_merged() => t.stored_type(matrices),
                        (None, _) => t.stored_type(t.recipe.precision()),
                        (Some(_), _) => t.stored_type(*auto),
                    };
                    let mut look = Look {
                        name: &t.name,
                        recipe: &t.recipe,
                        own,
                        part: 0,
                        streams: Streams { plain: i, quantized: i },
                    };
                    match look.more().len() {
                        0 => {}
                        1 => look.streams.quantized = next,
                        _ => look.streams = Streams { plain: next, quantized: next + 1 },
                    }
                    next += look.more().len();
                    looks.push(look);
                }
                looks
            }
            Tensors::Stored(tensors) => {
                let look = |(i, t): (usize, &'_ StoredTensor)| (t.kind, t.part, Streams { plain: i, quantized: i });
                let decided: Vec<_> = tensors.iter().enumerate().map(look).collect();
                let looks = tensors.iter().zip(decided);
                looks
                    .map(|(t, (own, part, streams))| Look { name: &t.name, recipe: &t.recipe, own, part, streams })
                    .collect()
            }
        }
    }

    /// Names and recipes: the streams of the engine. First those of the tensors in order, then what [`Look::more`]
    /// adds to them.
    pub fn recipes(&self) -> Vec<(&str, Recipe)> {
        let looks = self.looks();
        let more = looks.iter().flat_map(|l| l.more().into_iter().map(|recipe| (l.name, recipe)));
        looks.iter().map(|l| (l.name, l.recipe.clone())).chain(more).collect()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.looks().iter().map(|l| l.recipe.shape().elements()).sum()
    }
}

/// One type asked for: the files that it gives, several when split.
#[derive(Clone, Debug)]
pub struct TypePlan {
    /// The type as it stands in file names, such as `Q4_K_M`.
    pub label: String,
    /// Files in order.
    pub files: Vec<FilePlan>,
    /// What the user should know of the choice of types.
    pub warnings: Vec<String>,
}

/// One GGUF file.
#[derive(Clone, Debug)]
pub struct FilePlan {
    /// All tensors in file order.
    pub tensors: Vec<PlannedTensor>,
    /// Where everything stands.
    pub layout: Layout,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// What it is called, its shape and its type.
    pub info: TensorInfo,
    /// The tensor of the model whose rows it takes, and how they are encoded.
    pub target: GgufTarget,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The types cannot be chosen as wished.
    #[error(transparent)]
    Quant(#[from] QuantPlanError),
    /// The file cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What applies to every type of a run.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// The quantizer's options.
    pub quant: QuantOptions,
    /// How the model is to be split, if it is.
    pub split: Option<SplitRule>,
}

impl TypePlan {
    /// Decides the files of one type.
    pub fn new(
        model: &Model,
        target: QuantName,
        options: &PlanOptions,
        imatrix: Option<&Imatrix>,
    ) -> Result<TypePlan, PlanError> {
        match (&model.tensors, plain_output(model, target)) {
            (Tensors::Converted { tensors, .. }, Some((file_type, output))) => {
                converted(model, tensors, file_type, output, options)
            }
            _ => quantized(model, target, options, imatrix),
        }
    }

    /// Reports of the files, once they have paths.
    pub fn reports(&self, paths: &[PathBuf]) -> Vec<OutputReport> {
        let report = |(file, path): (&FilePlan, &PathBuf)| {
            let rows = file.tensors.iter().enumerate().map(|(i, t)| {
                let (offset, bytes) = file.layout.place(i);
                (t.info.name.clone(), t.info.shape.ne(), t.info.kind.name().to_owned(), bytes, offset)
            });
            OutputReport::new(path.clone(), self.label.clone(), file.layout.file_size(), rows)
        };
        self.files.iter().zip(paths).map(report).collect()
    }
}

/// The converter's output type, where the target is one that the converter writes without quantizing.
fn plain_output(model: &Model, target: QuantName) -> Option<(FileType, GgmlType)> {
    let of = |output| match output {
        GgmlType::F32 => Some((FileType::F32, GgmlType::F32)),
        GgmlType::F16 => Some((FileType::F16, GgmlType::F16)),
        GgmlType::BF16 => Some((FileType::BF16, GgmlType::BF16)),
        _ => None,
    };
    match (target, &model.tensors) {
        (QuantName::Auto, Tensors::Converted { auto, .. }) => of(*auto),
        (QuantName::Type(t), _) if !t.base_type().is_quantized() => of(t.base_type()),
        _ => None,
    }
}

/// The file that the converter writes: its order, its types.
fn converted(
    model: &Model,
    tensors: &[ConvertedTensor],
    file_type: FileType,
    output: GgmlType,
    options: &PlanOptions,
) -> Result<TypePlan, PlanError> {
    let mut metadata = model.metadata.clone();
    // The converter names a file after the packed blocks that it copied.
    let holds = |ty| tensors.iter().any(|t| t.stored == Stored::Fixed(ty) && t.recipe.native() == Some(ty));
    let told = match () {
        () if holds(GgmlType::NVFP4) => MOSTLY_NVFP4,
        () if holds(GgmlType::MXFP4) => FileType::MXFP4_MOE as u32,
        () => file_type as u32,
    };
    metadata.set("general.file_type", Value::U32(told));
    for o in &options.quant.override_kv {
        metadata.set(o.key.clone(), o.value.clone());
    }
    let planned = tensors
        .iter()
        .zip(model.looks())
        .map(|(t, look)| {
            let (kind, stream) = (t.stored_type(output), look.streams.plain);
            PlannedTensor {
                info: TensorInfo { name: t.name.clone(), shape: t.recipe.shape().clone(), kind },
                target: GgufTarget { stream, ty: kind, importance: None },
            }
        })
        .collect();
    let label = file_type.name().to_owned();
    Ok(TypePlan { label, files: files(metadata, planned, options.split)?, warnings: Vec::new() })
}

/// The file that llama-quantize makes of the model's own-precision GGUF: its order, its choice of types.
fn quantized(
    model: &Model,
    target: QuantName,
    options: &PlanOptions,
    imatrix: Option<&Imatrix>,
) -> Result<TypePlan, PlanError> {
    let looks = model.looks();
    let sources: Vec<SourceTensor<'_>> = looks
        .iter()
        .map(|l| SourceTensor { name: l.name, shape: l.recipe.shape(), kind: l.own, part: l.part })
        .collect();
    let importance = imatrix.map(|m| m as &dyn crate::quant::Importance);
    // The GGUF of `auto` from a GGUF is that GGUF's own content.
    let target = if target == QuantName::Auto { QuantName::Copy } else { target };
    let plan = QuantPlan::new(&model.metadata, &sources, target, &options.quant, importance)?;
    let planned = |range: Range<usize>| -> Vec<PlannedTensor> {
        plan.decisions[range]
            .iter()
            .map(|d| {
                let name = sources[d.source].name;
                let weights = imatrix.filter(|_| d.weighted).and_then(|m| {
                    let all = crate::quant::Importance::len_for(m, name)?;
                    m.weights_for(name, all as usize, 0)
                });
                PlannedTensor {
                    info: TensorInfo { name: d.name.clone(), shape: d.shape.clone(), kind: d.to },
                    target: GgufTarget {
                        stream: looks[d.source].streams.quantized,
                        ty: d.to,
                        importance: weights.map(Arc::from),
                    },
                }
            })
            .collect()
    };
    let files = if options.quant.keep_split {
        plan.parts().into_iter().map(|(metadata, range)| file(metadata, planned(range))).collect::<Result<_, _>>()?
    } else {
        files(plan.metadata.clone(), planned(0..plan.decisions.len()), options.split)?
    };
    let fallbacks = plan
        .fallbacks
        .iter()
        .map(|f| format!("{}: rows of {} do not divide into {} blocks, so it is {}", f.tensor, f.row, f.wanted, f.got));
    let bare = plan.without_importance.iter().map(|t| format!("{t}: the importance matrix has nothing for it"));
    let unused = plan.unused_rules.iter().map(|r| format!("--tensor-type {r}: no tensor has such a name"));
    let warnings = fallbacks.chain(bare).chain(unused).collect();
    Ok(TypePlan { label: target.name().to_owned(), files, warnings })
}

fn files(metadata: Metadata, tensors: Vec<PlannedTensor>, rule: Option<SplitRule>) -> Result<Vec<FilePlan>, PlanError> {
    let Some(rule) = rule else { return Ok(vec![file(metadata, tensors)?]) };
    let infos: Vec<TensorInfo> = tensors.iter().map(|t| t.info.clone()).collect();
    split(&metadata, &infos, rule)?.into_iter().map(|(keys, range)| file(keys, tensors[range].to_vec())).collect()
}

fn file(metadata: Metadata, tensors: Vec<PlannedTensor>) -> Result<FilePlan, PlanError> {
    let infos: Vec<TensorInfo> = tensors.iter().map(|t| t.info.clone()).collect();
    let layout = Layout::new(&metadata, &infos)?;
    Ok(FilePlan { tensors, layout })
}
