//! What a run did, or would do: plain data that the command line prints as a table or as JSON.

use std::path::PathBuf;

use serde::Serialize;

/// A whole conversion.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The model that was read.
    pub model: ModelReport,
    /// Adapters, in the order in which they were merged.
    pub adapters: Vec<AdapterReport>,
    /// What merging changed, by tensor; empty without adapters and in a dry run.
    pub changes: Vec<ChangeReport>,
    /// How much of each module's difference an extracted adapter holds; empty otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extracted: Vec<ExtractedReport>,
    /// Files of rows: GGUFs, or shards of another format.
    pub outputs: Vec<OutputReport>,
    /// Everything that stands in the output folder, in order of writing.
    pub files: Vec<PathBuf>,
    /// Where rows were computed.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
    /// Seconds from start to the last rename; 0 in a dry run.
    pub seconds: f64,
    /// Things that the user should know.
    pub warnings: Vec<String>,
    /// Commands to type next.
    pub next: Vec<String>,
}

/// The source of a conversion.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelReport {
    /// Folder or file.
    pub path: PathBuf,
    /// GGUF's name of the architecture.
    pub architecture: String,
    /// Tensors in the source.
    pub tensors: usize,
    /// Elements of all output tensors.
    pub parameters: u64,
    /// Bytes of the source's weight files.
    pub bytes: u64,
    /// The method that packed the weights (`bitsandbytes`, `gptq`, ..), where they are packed.
    pub quantization: Option<&'static str>,
    /// Source tensors that no output needs, each with the reason.
    pub dropped: Vec<Dropped>,
}

/// A source tensor that the result leaves out.
#[derive(Clone, Debug, Serialize)]
pub struct Dropped {
    /// Its name in the source.
    pub tensor: String,
    /// Why it is not needed.
    pub reason: String,
}

/// One adapter.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// Its folder.
    pub path: PathBuf,
    /// The factor given with `--lora`.
    pub weight: f32,
    /// PEFT's name of the method.
    pub kind: String,
    /// Source tensors that it changes.
    pub tensors: usize,
}

/// One adapter's change to one tensor of the source.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeReport {
    /// The source tensor.
    pub tensor: String,
    /// The adapter.
    pub adapter: String,
    /// The form of the change, such as `LoRA` or `replaced`.
    pub kind: &'static str,
    /// Its rank, for forms that have one.
    pub rank: Option<u64>,
    /// Norm of the change over norm of the base's tensor; none for a replaced tensor.
    pub relative_change: Option<f64>,
}

/// One module of an extracted adapter.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractedReport {
    /// The module.
    pub module: String,
    /// Rank of its factors.
    pub rank: u64,
    /// The part of the difference's sum of squares that they hold.
    pub energy: f64,
}

/// One file of rows.
#[derive(Clone, Debug, Serialize)]
pub struct OutputReport {
    /// Where it is written.
    pub path: PathBuf,
    /// File type, such as `Q4_K_M`.
    pub file_type: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// Tensors and bytes by type, in the order of first use.
    pub types: Vec<TypeReport>,
    /// Each tensor, in file order.
    pub tensors: Vec<TensorReport>,
}

/// The tensors of one type in a file.
#[derive(Clone, Debug, Serialize)]
pub struct TypeReport {
    /// The type's name in the file's format.
    #[serde(rename = "type")]
    pub ty: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of their data.
    pub bytes: u64,
}

/// One tensor of a file.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name in the file.
    pub name: String,
    /// Dimensions in the order of the file's format: fastest first in GGUF, slowest first in safetensors.
    pub shape: Vec<u64>,
    /// The type's name in the file's format.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes of its data.
    pub bytes: u64,
    /// Where its data begins in the file.
    pub offset: u64,
}

impl OutputReport {
    /// A report over tensors given as (name, dimensions, type, bytes, offset).
    pub fn new(
        path: PathBuf,
        file_type: String,
        bytes: u64,
        tensors: impl IntoIterator<Item = (String, Vec<u64>, String, u64, u64)>,
    ) -> Self {
        let (mut types, mut rows) = (Vec::<TypeReport>::new(), Vec::new());
        let (mut elements, mut data) = (0u64, 0u64);
        for (name, shape, ty, size, offset) in tensors {
            elements += shape.iter().product::<u64>();
            data += size;
            match types.iter_mut().find(|t| t.ty == ty) {
                Some(t) => {
                    t.tensors += 1;
                    t.bytes += size;
                }
                None => types.push(TypeReport { ty: ty.clone(), tensors: 1, bytes: size }),
            }
            rows.push(TensorReport { name, shape, ty, bytes: size, offset });
        }
        let bits_per_weight = data as f64 * 8.0 / elements.max(1) as f64;
        OutputReport { path, file_type, bytes, bits_per_weight, types, tensors: rows }
    }
}
