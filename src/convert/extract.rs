//! `to-gguf extract`: a LoRA from the difference of two models.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::Value;

use super::adapter_folder::{AdapterFolder, Values};
use super::open::name_of;
use super::{AdapterFormat, AdapterSave, Conversion, ConvertError, Job, Method, Request, SaveEmbeddings};
use crate::adapter::{self, BaseInfo, PeftTensor};
use crate::device::Device;
use crate::report::{ExtractedReport, ModelReport, Report};
use crate::save::adapter_file::FileTensor;
use crate::source::{ModelFolder, Places, SourceError, resolve_model};
use crate::stream::{Progress, Settings};

/// What is to be extracted.
#[derive(Clone, Debug)]
pub struct ExtractRequest {
    /// The model that the adapter will be for.
    pub base: String,
    /// The fine-tuned model.
    pub tuned: String,
    /// Rank of the factors.
    pub rank: u64,
    /// Which modules; all where there is none.
    pub target: Option<Regex>,
    /// A folder, or a `.gguf` file for a GGUF adapter; `./NAME-lora` if not given.
    pub output: Option<PathBuf>,
    /// What the adapter is saved as.
    pub format: AdapterFormat,
    /// Whether existing files may be replaced.
    pub force: bool,
}

/// Compares two models and plans the adapter between them. Equal tensors are read once for it; differences are
/// decomposed only in [`Job::write`], one at a time.
pub fn plan_extract(request: &ExtractRequest) -> Result<Box<dyn Job>, ConvertError> {
    if request.format == AdapterFormat::Gguf {
        return Ok(Box::new(ExtractedGguf::plan(request)?));
    }
    let name = name_of(&folder(&request.tuned)?);
    let folder = match &request.output {
        Some(path) if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) => {
            return Err(ConvertError::PeftNeedsFolder { path: path.clone() });
        }
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{name}-lora")),
    };
    Ok(Box::new(plan_folder(request, &folder)?))
}

/// The folder of a model, by path or by name in the cache.
fn folder(name: &str) -> Result<PathBuf, ConvertError> {
    match resolve_model(name, None, &Places::from_environment())? {
        crate::source::Model::Folder(folder) => Ok(folder),
        _ => Err(SourceError::NoModel {
            name: name.to_owned(),
            cause: "is not a model folder, and a difference is of two whole models".to_owned(),
            tried: Vec::new(),
            remedy: "merge an adapter first (--save-method merged_16bit), or give the folder of a model".to_owned(),
        }
        .into()),
    }
}

fn plan_folder(request: &ExtractRequest, out: &Path) -> Result<AdapterFolder, ConvertError> {
    let (base_folder, tuned_folder) = (folder(&request.base)?, folder(&request.tuned)?);
    let (base, tuned) = (ModelFolder::open(&base_folder)?, ModelFolder::open(&tuned_folder)?);
    let infos = [&base, &tuned].map(|m| BaseInfo::new(m.name(), m.config()));
    let (before, after) = (base.tensors(), tuned.tensors());
    let extracted = adapter::extract((&before, &infos[0]), (&after, &infos[1]), request.rank, request.target.as_ref())?;
    let mut settings = extracted.adapter.settings;
    let place = std::fs::canonicalize(&base_folder).unwrap_or(base_folder);
    settings.insert("base_model_name_or_path".into(), place.display().to_string().into());
    let class = base.config().get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str).unwrap_or_default();
    if class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel") {
        settings.insert("task_type".into(), "CAUSAL_LM".into());
    }
    if extracted.adapter.tensors.is_empty() {
        return Err(ConvertError::NoDifference { base: request.base.clone(), tuned: request.tuned.clone() });
    }
    let tensors: Vec<(FileTensor, Values)> = extracted
        .adapter
        .tensors
        .into_iter()
        .map(|(name, tensor)| match tensor {
            PeftTensor::Stored(_, recipe) | PeftTensor::Values(recipe) => AdapterFolder::computed(name, recipe),
        })
        .collect();
    let mut report = Report::default();
    report
        .warnings
        .extend(extracted.left_out.iter().map(|(tensor, why)| format!("{tensor} differs and is left out: {why}")));
    report.model = ModelReport {
        path: tuned_folder.clone(),
        architecture: "difference".to_owned(),
        tensors: after.len(),
        parameters: 0,
        bytes: base.size_bytes() + tuned.size_bytes(),
        quantization: tuned.packing(),
        dropped: Vec::new(),
    };
    let card = format!(
        "---\nbase_model: {}\nlibrary_name: peft\ntags:\n- lora\n- transformers\n---\n\n# {}\n\nThe difference of {} from \
         {} as a LoRA of rank {}.\n",
        Value::from(base.name()),
        name_of(out),
        tuned.name(),
        base.name(),
        request.rank
    );
    AdapterFolder::of_parts(
        out,
        (settings, tensors),
        (tuned.tokenizer_files(), card.into_bytes()),
        request.force,
        (report, Some(extracted.captured)),
    )
}

/// A GGUF adapter of a difference: the PEFT folder is made beside the target, converted, and removed.
struct ExtractedGguf {
    folder: AdapterFolder,
    request: ExtractRequest,
    temporary: PathBuf,
    report: Report,
}

impl ExtractedGguf {
    fn plan(request: &ExtractRequest) -> Result<Self, ConvertError> {
        let name = name_of(&folder(&request.tuned)?);
        let target = request.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-lora")));
        let beside = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = beside.join(format!(".to-gguf-extract-{}", std::process::id())).join(&name);
        let folder = plan_folder(request, &temporary)?;
        if let Some(whole) = folder.saved_whole() {
            return Err(ConvertError::WholeInGguf { tensor: whole.to_owned() });
        }
        let report = Report { files: vec![target], outputs: Vec::new(), ..folder.report().clone() };
        Ok(ExtractedGguf { folder, request: request.clone(), temporary, report })
    }
}

impl Job for ExtractedGguf {
    fn report(&self) -> &Report {
        &self.report
    }

    fn total_bytes(&self) -> u64 {
        self.folder.total_bytes()
    }

    fn write(
        self: Box<Self>,
        device: &dyn Device,
        settings: &Settings<'_>,
        progress: &dyn Progress,
    ) -> Result<Report, ConvertError> {
        let this = *self;
        let made = Box::new(this.folder).write(device, settings, progress);
        let result = made.and_then(|made| {
            let method = AdapterSave { format: AdapterFormat::Gguf, safe: true, embeddings: SaveEmbeddings::Auto };
            let request = Request {
                base: Some(this.request.base.clone()),
                output: this.request.output.clone(),
                force: this.request.force,
                ..Request::adapter_only(&this.temporary, Method::Lora(method))
            };
            let written = Box::new(Conversion::plan_adapter(&request)?).write(device, settings, progress)?;
            let warnings = made.warnings.into_iter().chain(written.warnings).collect();
            Ok(Report { extracted: made.extracted, model: made.model, seconds: made.seconds, warnings, ..written })
        });
        if let Some(parent) = this.temporary.parent() {
            // What cannot be removed is named by its leading dot; the run itself is not harmed.
            let _ = std::fs::remove_dir_all(parent);
        }
        result
    }
}

/// What the report says of one module.
pub(super) fn extracted_report(captured: &adapter::Captured) -> ExtractedReport {
    ExtractedReport { module: captured.module.clone(), rank: captured.rank, energy: captured.energy }
}
