//! The main job: find the model, merge its adapters, plan, stream, commit.
//!
//! [`plan`] reads headers only and decides everything; [`Job::write`] is all that touches weights or writes files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::adapter::MergeSummary;
use crate::device::Device;
use crate::plan::{Model, TypePlan};
use crate::report::{AdapterReport, ChangeReport, ModelReport, Report};
use crate::save::{GgufSink, OutputSet};
use crate::stream::{self, Progress, Settings, Sink, Stream};

mod adapter_folder;
mod adapter_gguf;
mod adapters;
mod error;
mod extract;
mod gguf;
mod merged;
mod open;
mod open_adapter;
mod request;
mod unplaced;

pub use adapter_gguf::AdapterGgufError;
pub use error::ConvertError;
pub use extract::{ExtractRequest, plan_extract};
pub use request::{AdapterFormat, AdapterRequest, AdapterSave, MergedOptions, Method, Request, SaveEmbeddings};

/// Something to save, decided to the byte. One kind for each [`Method`].
pub trait Job {
    /// What would be written.
    fn report(&self) -> &Report;

    /// Bytes that [`Progress`] will hear of.
    fn total_bytes(&self) -> u64;

    /// Makes every row once and writes all files; they get their names together, at the end.
    fn write(
        self: Box<Self>,
        device: &dyn Device,
        settings: &Settings<'_>,
        progress: &dyn Progress,
    ) -> Result<Report, ConvertError>;
}

/// Reads headers and decides everything; finds every error that can be found without weights.
pub fn plan(request: &Request) -> Result<Box<dyn Job>, ConvertError> {
    Ok(match &request.method {
        Method::Gguf => Box::new(Conversion::plan(request)?),
        Method::Lora(save) => match save.format {
            AdapterFormat::Gguf => Box::new(Conversion::plan_adapter(request)?),
            AdapterFormat::Peft => Box::new(adapter_folder::AdapterFolder::plan(request, save)?),
        },
        Method::Merged(options) => Box::new(merged::Merged::plan(request, options)?),
    })
}

/// A conversion to GGUF.
struct Conversion {
    model: Model,
    types: Vec<Output>,
    /// Small files beside the GGUFs, with their contents.
    beside: Vec<(PathBuf, Vec<u8>)>,
    force: bool,
    merge: MergeSummary,
    report: Report,
}

/// One type of the list, and where its files go.
struct Output {
    plan: TypePlan,
    paths: Vec<PathBuf>,
}

impl Conversion {
    fn plan(request: &Request) -> Result<Conversion, ConvertError> {
        let opened = open::open(request)?;
        let mut report = Report { warnings: opened.warnings, ..Report::default() };
        let imatrix = request.imatrix()?;
        let place = request.place(&opened.name, "gguf")?;
        let mut types = Vec::new();
        for &target in &request.quants {
            let plan = TypePlan::new(&opened.model, target, &request.plan, imatrix.as_ref())?;
            if types.iter().any(|o: &Output| o.plan.label == plan.label) {
                continue;
            }
            report.warnings.extend(plan.warnings.iter().map(|w| format!("{}: {w}", plan.label)));
            let paths = place.gguf_paths(&plan.label, plan.files.len(), request.plan.split.is_some());
            report.outputs.extend(plan.reports(&paths));
            types.push(Output { plan, paths });
        }
        let mut beside = Vec::new();
        if let Some(folder) = place.folder() {
            beside.extend(opened.tokenizer_files.into_iter().map(|(name, bytes)| (folder.join(name), bytes)));
            let first = types.first().map(|o| o.paths.clone()).unwrap_or_default();
            if request.modelfile && !first.is_empty() {
                let (text, notes) = opened.chat.modelfile(&first);
                report.warnings.extend(notes);
                beside.push((folder.join("Modelfile"), text.into_bytes()));
                report.next.push(format!(
                    "ollama create {} -f {}",
                    quoted(Path::new(&opened.name.to_lowercase())),
                    quoted(&folder.join("Modelfile"))
                ));
            }
        }
        if let Some(path) = types.first().and_then(|o| o.paths.first()) {
            report.next.push(format!("llama-cli -m {}", quoted(path)));
        }
        report.files = types.iter().flat_map(|o| o.paths.clone()).chain(beside.iter().map(|b| b.0.clone())).collect();
        report.adapters = opened.adapters;
        report.model = ModelReport { parameters: opened.model.parameters(), ..opened.report };
        Ok(Conversion { model: opened.model, types, beside, force: request.force, merge: opened.merge, report })
    }

    fn streams(&self) -> Vec<Stream> {
        self.model.recipes().into_iter().map(|(name, recipe)| Stream { name: name.to_owned(), recipe }).collect()
    }
}

impl Job for Conversion {
    fn report(&self) -> &Report {
        &self.report
    }

    fn total_bytes(&self) -> u64 {
        let used: HashSet<usize> =
            self.types.iter().flat_map(|o| &o.plan.files).flat_map(|f| &f.tensors).map(|t| t.target.stream).collect();
        let streams = self.streams().into_iter().enumerate().filter(|(i, _)| used.contains(i)).map(|(_, s)| s);
        stream::total_bytes(&streams.collect::<Vec<_>>())
    }

    fn write(
        self: Box<Self>,
        device: &dyn Device,
        settings: &Settings<'_>,
        progress: &dyn Progress,
    ) -> Result<Report, ConvertError> {
        let started = Instant::now();
        let streams = self.streams();
        let plans = || self.types.iter().flat_map(|o| o.plan.files.iter().zip(&o.paths));
        let files: Vec<(PathBuf, u64)> = plans()
            .map(|(f, path)| (path.clone(), f.layout.file_size()))
            .chain(self.beside.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)))
            .collect();
        let outputs = OutputSet::create(&files, self.force)?;
        let mut sinks = Vec::new();
        for (i, (plan, _)) in plans().enumerate() {
            let targets: Vec<_> = plan.tensors.iter().map(|t| t.target.clone()).collect();
            let rows: Vec<u64> = plan.tensors.iter().map(|t| t.info.shape.rows()).collect();
            sinks.push(GgufSink::new(outputs.file(i), &plan.layout, &targets, &rows, streams.len())?);
        }
        let dynamic: Vec<&dyn Sink> = sinks.iter().map(|s| s as &dyn Sink).collect();
        stream::run(&streams, &dynamic, device, settings, progress)?;
        let beside = sinks.len();
        drop(sinks);
        for (i, (path, bytes)) in self.beside.iter().enumerate() {
            outputs.file(beside + i).write_at(bytes, 0).map_err(|cause| ConvertError::io(path, "write", cause))?;
        }
        outputs.commit()?;
        Ok(closing_report(self.report, &self.merge, device, settings, started))
    }
}

/// The report of a run that is done: what was planned, and what only the rows could tell.
fn closing_report(
    planned: Report,
    merge: &MergeSummary,
    device: &dyn Device,
    settings: &Settings<'_>,
    started: Instant,
) -> Report {
    let mut warnings = planned.warnings.clone();
    warnings.extend(merge.closing_warnings());
    warnings.extend(device.warnings());
    let changes = merge.changes.iter().map(|c| ChangeReport {
        tensor: c.tensor.clone(),
        adapter: c.adapter.clone(),
        kind: c.kind,
        rank: c.rank,
        relative_change: c.meter.ratio(),
    });
    Report {
        changes: changes.collect(),
        warnings,
        device: device.name(),
        threads: settings.threads,
        seconds: started.elapsed().as_secs_f64(),
        ..planned
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConvertError> {
    std::fs::read(path).map_err(|cause| ConvertError::io(path, "read", cause))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
