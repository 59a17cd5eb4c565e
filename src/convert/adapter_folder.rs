//! An adapter saved as PEFT saves it: a folder of settings, weights, tokenizer files and a card.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::extract::extracted_report;
use super::open_adapter::{self, AdapterBase, Adapters};
use super::request::{AdapterSave, Place, SaveEmbeddings};
use super::{ConvertError, Job, Request, closing_report};
use crate::adapter::{
    self, Captured, EmbeddingLayers, MergeOptions, MergeSummary, PeftAdapter, PeftTensor, ResidualBase,
};
use crate::device::Device;
use crate::quant::GgmlType;
use crate::recipe::{Recipe, Scratch};
use crate::report::{ModelReport, OutputReport, Report};
use crate::save::adapter_file::{self, FilePlan, FileTensor};
use crate::save::{AtomicFile, OutputSet};
use crate::source::{Stored, open_stored};
use crate::stream::{Progress, Settings, SinkError, StreamError};

/// Bytes of a tensor that are read, encoded and written in one step.
const STEP: u64 = 1 << 20;

/// An adapter folder, decided to the byte.
pub(super) struct AdapterFolder {
    weights: PathBuf,
    plan: FilePlan,
    tensors: Vec<(FileTensor, Values)>,
    /// Small files, with their contents.
    beside: Vec<(PathBuf, Vec<u8>)>,
    captured: Option<Arc<Mutex<Vec<Captured>>>>,
    force: bool,
    report: Report,
}

/// Where a tensor's bytes come from.
pub(super) enum Values {
    /// From the adapter's own file, as they are.
    Stored(Stored),
    /// Computed.
    Recipe(Recipe),
}

impl AdapterFolder {
    /// Reads headers only.
    pub(super) fn plan(request: &Request, save: &AdapterSave) -> Result<Self, ConvertError> {
        let opened = open_adapter::open(request)?;
        let place = request.place(&opened.name, "lora")?;
        let Place::Folder { folder, .. } = place else {
            return Err(ConvertError::PeftNeedsFolder { path: request.output.clone().unwrap_or_default() });
        };
        let mut report = Report::default();
        let base = match &opened.base {
            Ok(folder) => Some(AdapterBase::open(folder, &opened.list)?),
            Err(_) => None,
        };
        let merge = check_fit(&opened, base.as_ref())?;
        report.warnings.extend(merge.warnings.iter().cloned());
        let mut saved = make(&opened, base.as_ref(), &mut report)?;
        save_embeddings(&mut saved, save.embeddings, base.as_ref(), &mut report)?;
        place_base(&mut saved.settings, &opened);
        let tensors = tensors(&opened, saved.tensors)?;
        let card = card(&saved.settings, &opened)?;
        report.adapters = opened.reports(&merge);
        report.model = ModelReport {
            path: opened.origin().to_owned(),
            architecture: "PEFT adapter".to_owned(),
            bytes: opened.bytes(),
            ..ModelReport::default()
        };
        let parts = (saved.settings, tensors);
        Self::of_kind(save.safe, &folder, parts, (opened.tokenizer_files(), card), request.force, (report, None))
    }

    /// A folder with safetensors made of its settings, tensors, tokenizer files and card. `captured` is filled while
    /// tensors are computed.
    pub(super) fn of_parts(
        folder: &Path,
        parts: (Map<String, Value>, Vec<(FileTensor, Values)>),
        beside: (Vec<PathBuf>, Vec<u8>),
        force: bool,
        told: (Report, Option<Arc<Mutex<Vec<Captured>>>>),
    ) -> Result<Self, ConvertError> {
        Self::of_kind(true, folder, parts, beside, force, told)
    }

    fn of_kind(
        safe: bool,
        folder: &Path,
        (settings, mut tensors): (Map<String, Value>, Vec<(FileTensor, Values)>),
        (tokenizer, card): (Vec<PathBuf>, Vec<u8>),
        force: bool,
        (mut report, captured): (Report, Option<Arc<Mutex<Vec<Captured>>>>),
    ) -> Result<Self, ConvertError> {
        tensors.sort_by(|a, b| adapter_file::order(&a.0, &b.0));
        let infos: Vec<FileTensor> = tensors.iter().map(|t| t.0.clone()).collect();
        let (plan, name) = match safe {
            true => (adapter_file::safetensors(&infos), "adapter_model.safetensors"),
            false => (adapter_file::torch(&infos)?, "adapter_model.bin"),
        };
        let weights = folder.join(name);
        let rows = infos.iter().zip(&plan.offsets).map(|(t, offset)| {
            (t.name.clone(), t.shape.ne(), ggml_type(t.dtype).name().to_owned(), t.bytes(), *offset)
        });
        report.outputs.push(OutputReport::new(weights.clone(), "PEFT".to_owned(), plan.size, rows));
        let beside = beside(folder, &settings, tokenizer, card)?;
        report.files = [weights.clone()].into_iter().chain(beside.iter().map(|b| b.0.clone())).collect();
        report.model.tensors = tensors.len();
        report.model.parameters = infos.iter().map(|t| t.shape.elements()).sum();
        report.next.push(format!("to-gguf {}", super::quoted(folder)));
        Ok(AdapterFolder { weights, plan, tensors, beside, captured, force, report })
    }

    /// A tensor that is computed, in its own precision.
    pub(super) fn computed(name: String, recipe: Recipe) -> (FileTensor, Values) {
        let (dtype, shape) = (dtype(recipe.precision()), recipe.shape().clone());
        (FileTensor { name, dtype, shape }, Values::Recipe(recipe))
    }

    /// The first tensor that is no factor.
    pub(super) fn saved_whole(&self) -> Option<&str> {
        self.tensors.iter().map(|(t, _)| t.name.as_str()).find(|n| !n.contains(".lora_"))
    }
}

/// With a base at hand, finds out whether the adapters fit it, as merging them would.
fn check_fit(opened: &Adapters, base: Option<&AdapterBase>) -> Result<MergeSummary, ConvertError> {
    let Some(base) = base.filter(|b| b.has_weights) else { return Ok(MergeSummary::default()) };
    let mut tensors = base.tensors.clone();
    Ok(adapter::apply(&opened.list, &mut tensors, &base.info, &MergeOptions::default())?)
}

/// One adapter as it is; several, or one times a weight or over a residual base, as one plain LoRA.
fn make(opened: &Adapters, base: Option<&AdapterBase>, report: &mut Report) -> Result<PeftAdapter, ConvertError> {
    if let [(only, weight)] = opened.list.as_slice()
        && *weight == 1.0
    {
        let residual = adapter::has_residual_base(only);
        match (residual, &opened.base) {
            (false, _) => return Ok(only.resaved()),
            (true, Err(missing)) => {
                report.warnings.push(format!(
                    "{}: its base is a residual of the model (init_lora_weights) and stays so, since the model was not \
                     found: {missing}",
                    only.label()
                ));
                return Ok(only.resaved());
            }
            (true, Ok(_)) => {}
        }
    }
    let residual = base.map(|b| ResidualBase { tensors: &b.tensors, info: &b.info });
    Ok(adapter::combine(&opened.list, residual)?)
}

/// PEFT's `save_embedding_layers`.
fn save_embeddings(
    saved: &mut PeftAdapter,
    when: SaveEmbeddings,
    base: Option<&AdapterBase>,
    report: &mut Report,
) -> Result<(), ConvertError> {
    let layers = base.filter(|b| b.has_weights).map(|b| EmbeddingLayers::of(&b.tensors, b.info.tie_word_embeddings));
    let wanted = match when {
        SaveEmbeddings::Auto => saved.saves_embeddings(layers.as_ref()),
        SaveEmbeddings::Yes => true,
        SaveEmbeddings::No => {
            let changes = saved.drop_embeddings();
            if !changes.removed.is_empty() {
                let (n, first) = (changes.removed.len(), &changes.removed[0]);
                report.warnings.push(format!("--save-embedding-layers no: left out {n} tensors, as {first}"));
            }
            return Ok(());
        }
    };
    match (wanted, layers) {
        (true, Some(layers)) => {
            let changes = saved.add_embeddings(&layers);
            report
                .warnings
                .extend(changes.added.iter().map(|m| format!("{m} is saved with the adapter, from the base")));
            Ok(())
        }
        (true, None) if when == SaveEmbeddings::Yes => Err(ConvertError::NoEmbeddings),
        _ => Ok(()),
    }
}

/// A base that was named by a relative path is named by its whole path, since the new folder may lie elsewhere. A
/// name that is no folder, of the Hub, stays.
fn place_base(settings: &mut Map<String, Value>, opened: &Adapters) {
    const KEY: &str = "base_model_name_or_path";
    let name = settings.get(KEY).and_then(Value::as_str).unwrap_or_default();
    let is_place = |folder: &Path| folder.ends_with(Path::new(name)) && Path::new(name).is_relative();
    if let Ok(folder) = &opened.base
        && (name.is_empty() || is_place(folder))
        && let Ok(folder) = std::fs::canonicalize(folder)
    {
        settings.insert(KEY.into(), folder.display().to_string().into());
    }
}

/// The tensors of the file, with the types that they are written in.
fn tensors(
    opened: &Adapters,
    saved: impl IntoIterator<Item = (String, PeftTensor)>,
) -> Result<Vec<(FileTensor, Values)>, ConvertError> {
    let mut stored: Vec<Stored> = open_stored(opened.list[0].0.weights())?;
    let mut out = Vec::new();
    for (name, tensor) in saved {
        let (dtype, shape, values) = match tensor {
            PeftTensor::Stored(own, recipe) => match stored.iter().position(|s| s.name() == own) {
                Some(at) => {
                    let tensor = stored.swap_remove(at);
                    (tensor.dtype(), tensor.shape().clone(), Values::Stored(tensor))
                }
                None => (dtype(recipe.precision()), recipe.shape().clone(), Values::Recipe(recipe)),
            },
            PeftTensor::Values(recipe) => {
                out.push(AdapterFolder::computed(name, recipe));
                continue;
            }
        };
        out.push((FileTensor { name, dtype, shape }, values));
    }
    Ok(out)
}

fn dtype(precision: GgmlType) -> Dtype {
    match precision {
        GgmlType::F16 => Dtype::F16,
        GgmlType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// The type to show in a report.
fn ggml_type(dtype: Dtype) -> GgmlType {
    match dtype {
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 => GgmlType::BF16,
        _ => GgmlType::F32,
    }
}

/// Settings, card and tokenizer files.
fn beside(
    folder: &Path,
    settings: &Map<String, Value>,
    tokenizer: Vec<PathBuf>,
    card: Vec<u8>,
) -> Result<Vec<(PathBuf, Vec<u8>)>, ConvertError> {
    let mut files = Vec::new();
    let mut sorted: Vec<(&String, &Value)> = settings.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    let sorted: Map<String, Value> = sorted.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let text = format!("{:#}", Value::Object(sorted));
    files.push((folder.join("adapter_config.json"), text.into_bytes()));
    for file in tokenizer.into_iter().filter(|f| f.is_file()) {
        files.push((folder.join(file.file_name().unwrap_or_default()), super::read(&file)?));
    }
    files.push((folder.join("README.md"), card));
    Ok(files)
}

/// The adapter's own model card, or one with what is known.
fn card(settings: &Map<String, Value>, opened: &Adapters) -> Result<Vec<u8>, ConvertError> {
    let own = opened.origin().join("README.md");
    if opened.list.len() == 1 && own.is_file() {
        return super::read(&own);
    }
    let base = settings.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
    let kind = settings.get("peft_type").and_then(Value::as_str).unwrap_or("LORA").to_lowercase();
    let pipeline = match settings.get("task_type").and_then(Value::as_str) {
        Some("CAUSAL_LM") => "pipeline_tag: text-generation\n",
        _ => "",
    };
    let (tag, base) = (Value::from(format!("base_model:adapter:{base}")), Value::from(base));
    let mut text = format!(
        "---\nbase_model: {base}\nlibrary_name: peft\n{pipeline}tags:\n- {tag}\n- {kind}\n- transformers\n---\n\n# {}\n",
        opened.name
    );
    if opened.list.len() > 1 {
        text.push_str("\nA LoRA made of several by concatenation of their factors:\n\n");
        for (adapter, weight) in &opened.list {
            let name = super::open::name_of(adapter.path());
            text.push_str(&format!("- {name}, times {weight}\n"));
        }
    }
    Ok(text.into_bytes())
}

impl Job for AdapterFolder {
    fn report(&self) -> &Report {
        &self.report
    }

    fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|(t, _)| t.bytes()).sum()
    }

    fn write(
        self: Box<Self>,
        device: &dyn Device,
        settings: &Settings<'_>,
        progress: &dyn Progress,
    ) -> Result<Report, ConvertError> {
        let started = Instant::now();
        let AdapterFolder { weights, plan, tensors, beside, captured, force, report } = *self;
        let files: Vec<(PathBuf, u64)> = [(weights, plan.size)]
            .into_iter()
            .chain(beside.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)))
            .collect();
        let outputs = OutputSet::create(&files, force)?;
        let file = outputs.file(0);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build();
        let pool = pool.map_err(|e| StreamError::Threads { threads: settings.threads, cause: e.to_string() })?;
        let mut checksums = Vec::with_capacity(tensors.len());
        // What one tensor needed is dropped before the next: memory is that of one module.
        for ((tensor, values), offset) in tensors.into_iter().zip(&plan.offsets) {
            checksums.push(pool.install(|| write_tensor(file, &tensor, &values, *offset, settings, progress))?);
        }
        for (at, bytes) in plan.frame(&checksums) {
            put(file, &bytes, at)?;
        }
        for (i, (path, bytes)) in beside.iter().enumerate() {
            outputs.file(1 + i).write_at(bytes, 0).map_err(|cause| ConvertError::io(path, "write", cause))?;
        }
        outputs.commit()?;
        let mut report = closing_report(report, &MergeSummary::default(), device, settings, started);
        if let Some(captured) = captured {
            let captured = captured.lock().unwrap_or_else(|e| e.into_inner());
            report.extracted = captured.iter().map(extracted_report).collect();
        }
        Ok(report)
    }
}

fn put(file: &AtomicFile, bytes: &[u8], at: u64) -> Result<(), ConvertError> {
    let path = || file.target().display().to_string();
    file.write_at(bytes, at).map_err(|cause| SinkError { path: path(), cause }.into())
}

/// Writes one tensor, a step at a time; answers the checksum of its bytes.
fn write_tensor(
    file: &AtomicFile,
    tensor: &FileTensor,
    values: &Values,
    offset: u64,
    settings: &Settings<'_>,
    progress: &dyn Progress,
) -> Result<u32, ConvertError> {
    let width = tensor.dtype.bitsize() as u64 / 8;
    let row = tensor.shape.row_len().max(1);
    let rows = tensor.shape.elements() / row;
    let step = (STEP / (row * width)).max(1);
    let (mut scratch, mut checksum) = (Scratch::default(), 0);
    let (mut bytes, mut floats) = (Vec::new(), Vec::new());
    let rows_error =
        |cause: crate::recipe::ReadError| StreamError::Rows { tensor: tensor.name.clone(), cause: cause.into() };
    for start in (0..rows).step_by(step as usize) {
        if settings.interrupted.load(Ordering::Relaxed) {
            return Err(StreamError::Interrupted.into());
        }
        let end = (start + step).min(rows);
        bytes.resize(((end - start) * row * width) as usize, 0);
        match values {
            Values::Stored(stored) => stored.read_elements(start * row..end * row, &mut bytes).map_err(rows_error)?,
            Values::Recipe(recipe) => {
                floats.resize(((end - start) * row) as usize, 0.0);
                recipe.rows(start..end, &mut floats, &mut scratch).map_err(rows_error)?;
                encode(&floats, tensor.dtype, &mut bytes);
            }
        }
        checksum = adapter_file::crc32(checksum, &bytes);
        put(file, &bytes, offset + start * row * width)?;
        progress.advance(&tensor.name, bytes.len() as u64);
    }
    Ok(checksum)
}

/// Values as little-endian elements of a plain type.
fn encode(values: &[f32], dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F16 => {
            out.chunks_exact_mut(2).zip(values).for_each(|(o, v)| o.copy_from_slice(&f16::from_f32(*v).to_le_bytes()));
        }
        Dtype::BF16 => {
            out.chunks_exact_mut(2).zip(values).for_each(|(o, v)| o.copy_from_slice(&bf16::from_f32(*v).to_le_bytes()));
        }
        _ => out.chunks_exact_mut(4).zip(values).for_each(|(o, v)| o.copy_from_slice(&v.to_le_bytes())),
    }
}
