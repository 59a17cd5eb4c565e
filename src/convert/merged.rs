//! A merged model under its own names: safetensors shards, in 16 bits or with linear layers in four, and the files
//! that make them a model folder. Any architecture will do, since nothing here looks into one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::open::MergedFolder;
use super::unplaced::warn_of_head;
use super::{ConvertError, Job, MergedOptions, Request, closing_report, quoted, read};
use crate::adapter::{MergeDtype, MergeSummary};
use crate::device::Device;
use crate::quant::GgmlType;
use crate::report::{AdapterReport, Dropped, ModelReport, OutputReport, Report};
use crate::save::shards::{assign, file_name, index};
use crate::save::{MergedSink, MergedTarget, OutputSet, Place, ShardLayout, TensorSpec};
use crate::source::{Model, ModelFolder, Places, Stored, TOKENIZER_FILES, resolve_model};
use crate::stream::{self, Progress, Settings, Stream};
use crate::tokenizer::saved_files;
use card::Card;
use layers::Packer;
use tied::second_copies;
use weights::{Form, Weight, names_of, parcels, weights};

mod card;
mod layers;
mod settings;
mod tied;
mod weights;

/// Files that say how a model's inputs are made, and other parts that its folder needs.
const KEPT: [&str; 9] = [
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];

/// Bytes that are copied at a time where a tensor is no weight.
const COPIED: u64 = 1 << 20;

/// A merged model, decided to the byte.
pub(super) struct Merged {
    /// What becomes of each stream.
    targets: Vec<MergedTarget>,
    streams: Vec<Stream>,
    /// Tensors that are copied as they are.
    copies: Vec<(Stored, Place)>,
    shards: Vec<(PathBuf, ShardLayout)>,
    /// Small files, with their contents.
    beside: Vec<(PathBuf, Vec<u8>)>,
    /// Weights of an earlier model in the same folder, which would be read instead of or beside the new ones.
    stale: Vec<PathBuf>,
    force: bool,
    merge: MergeSummary,
    report: Report,
}

impl Merged {
    /// Reads headers and decides everything.
    pub(super) fn plan(request: &Request, options: &MergedOptions) -> Result<Merged, ConvertError> {
        let places = Places::from_environment();
        let (folder, own) = match resolve_model(&request.model, request.base.as_deref(), &places)? {
            Model::Folder(folder) => (folder, None),
            Model::Adapter { adapter, base } => (base, Some(adapter)),
            Model::Gguf(path) => return Err(ConvertError::MergedGguf { path }),
        };
        // What is tied is merged once, as it is where transformers has loaded it.
        let base = ModelFolder::open(&folder)?;
        let mut tensors = base.tensors();
        let tied = second_copies(&base, &tensors)?;
        for (copy, _) in &tied {
            tensors.remove(copy);
        }
        let opened = MergedFolder::merge(request, base, tensors, own.as_deref())?;
        if let Some((adapter, _)) = opened.adapters.gguf.first() {
            return Err(ConvertError::MergedGguf { path: adapter.path().to_owned() });
        }
        let adapters = opened.adapters.reports(&opened.merge);
        let mut warnings = opened.merge.warnings.clone();
        warnings.extend(warn_of_head(&architecture(&opened.config), &opened.merge));
        let ty = element_type(&opened, options, &mut warnings);
        let packer = options.four_bit.then(|| Packer::new(opened.base.config()));
        let (list, mut dropped) = weights(&opened.base, &opened.tensors, ty, packer.as_ref());
        dropped.extend(tied.into_iter().map(|(copy, kept)| {
            let reason = format!("it is tied to {kept}");
            Dropped { tensor: copy, reason }
        }));
        if options.four_bit && !list.iter().any(|w| matches!(w.form, Form::Packed(_))) {
            return Err(ConvertError::NothingToPack { path: opened.base.path().to_owned() });
        }
        let folder = output_folder(request, &opened, options)?;
        let stale = stale(&folder, request.force)?;
        let (shards, spread) = spread(&list, options.max_shard_size)?;
        let shards: Vec<(PathBuf, ShardLayout)> =
            shards.into_iter().enumerate().map(|(i, l)| (folder.join(file_name(i, spread.count)), l)).collect();

        let mut report = Report { warnings, ..Report::default() };
        let beside = beside(&opened, &adapters, ty, &list, packer.as_ref(), &spread, &mut report.warnings)?;
        let beside: Vec<(PathBuf, Vec<u8>)> = beside.into_iter().map(|(name, b)| (folder.join(name), b)).collect();
        let label = if options.four_bit { "NF4" } else { ty.name() };
        report.outputs = shards.iter().map(|(path, layout)| output(path, label, layout)).collect();
        // A packed weight is six tensors: what counts is the weight's elements, over all files.
        let data: u64 = list.iter().flat_map(|w| &w.specs).map(TensorSpec::bytes).sum();
        let bits = data as f64 * 8.0 / parameters(&list).max(1) as f64;
        report.outputs.iter_mut().for_each(|o| o.bits_per_weight = bits);
        report.files = shards.iter().map(|s| s.0.clone()).chain(beside.iter().map(|b| b.0.clone())).collect();
        report.model = ModelReport {
            path: opened.base.path().to_owned(),
            architecture: architecture(&opened.config),
            tensors: opened.base.tensors().len(),
            parameters: parameters(&list),
            bytes: opened.base.size_bytes(),
            quantization: opened.base.packing(),
            dropped,
        };
        report.adapters = adapters;
        report.next.push(format!("to-gguf {} --quant q4_k_m", quoted(&folder)));
        if options.four_bit {
            report.next.clear();
        }

        let (mut targets, mut streams, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = 0;
        for weight in list {
            let place = |i: usize| spread.places[first + i];
            let count = weight.specs.len();
            let stream = |recipe| Stream { name: weight.name.clone(), recipe };
            match weight.form {
                Form::Plain(recipe, ty) => {
                    targets.push(MergedTarget::Plain { ty, place: place(0) });
                    streams.push(stream(recipe));
                }
                Form::Packed(recipe) => {
                    let (shape, dtype) = (recipe.shape().clone(), names_of(ty).0);
                    targets.push(MergedTarget::Packed { ty, dtype, shape, places: std::array::from_fn(place) });
                    streams.push(stream(recipe));
                }
                Form::Bytes(stored) => copies.push((stored, place(0))),
            }
            first += count;
        }
        let (force, merge) = (request.force, opened.merge);
        Ok(Merged { targets, streams, copies, shards, beside, stale, force, merge, report })
    }
}

impl Job for Merged {
    fn report(&self) -> &Report {
        &self.report
    }

    fn total_bytes(&self) -> u64 {
        stream::total_bytes(&self.streams)
    }

    fn write(
        self: Box<Self>,
        device: &dyn Device,
        settings: &Settings<'_>,
        progress: &dyn Progress,
    ) -> Result<Report, ConvertError> {
        let started = Instant::now();
        let shards = self.shards.iter().map(|(path, layout)| (path.clone(), layout.file_size()));
        let small = self.beside.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64));
        let mut outputs = OutputSet::create(&shards.chain(small).collect::<Vec<_>>(), self.force)?;
        let files = self.shards.iter().enumerate().map(|(i, (_, layout))| (outputs.file(i), layout)).collect();
        let sink = MergedSink::new(files, self.targets);
        stream::run(&self.streams, &[&sink], device, settings, progress)?;
        for (stored, place) in &self.copies {
            copy(stored, *place, &sink)?;
        }
        sink.finish()?;
        drop(sink);
        for (i, (path, bytes)) in self.beside.iter().enumerate() {
            let file = outputs.file(self.shards.len() + i);
            file.write_at(bytes, 0).map_err(|cause| ConvertError::io(path, "write", cause))?;
        }
        outputs.replace(self.stale);
        outputs.commit()?;
        Ok(closing_report(self.report, &self.merge, device, settings, started))
    }
}

/// Copies the bytes of a tensor.
fn copy(stored: &Stored, place: Place, sink: &MergedSink<'_>) -> Result<(), ConvertError> {
    let (count, width) = (stored.shape().elements(), stored.width());
    let mut bytes = Vec::new();
    for start in (0..count).step_by((COPIED / width) as usize) {
        let end = (start + COPIED / width).min(count);
        bytes.resize(((end - start) * width) as usize, 0);
        stored
            .read_elements(start..end, &mut bytes)
            .map_err(|cause| ConvertError::Copy { tensor: stored.name().to_owned(), cause })?;
        sink.write(place, &bytes, start * width)?;
    }
    Ok(())
}

/// The type of the weights: what was asked for, or the base's where that has 16 bits.
fn element_type(opened: &MergedFolder, options: &MergedOptions, warnings: &mut Vec<String>) -> GgmlType {
    if let Some(ty) = options.dtype {
        return ty;
    }
    match opened.base.element_type() {
        GgmlType::F32 => {
            warnings.push("the base is in float32, the result in bfloat16; --dtype f32 keeps float32".to_owned());
            GgmlType::BF16
        }
        ty => ty,
    }
}

/// The output folder. It may hold no model that this one is made of, and no adapter, which transformers would apply
/// a second time.
fn output_folder(request: &Request, opened: &MergedFolder, options: &MergedOptions) -> Result<PathBuf, ConvertError> {
    let ending = if options.four_bit { "merged-4bit" } else { "merged" };
    let folder = request.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}-{ending}", opened.name())));
    let is_file = ["gguf", "safetensors", "bin"].iter().any(|e| folder.extension().is_some_and(|x| x == *e));
    if is_file || (folder.exists() && !folder.is_dir()) {
        return Err(ConvertError::NeedsFolder { path: folder });
    }
    let real = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let read: Vec<&Path> =
        std::iter::once(opened.base.path()).chain(opened.adapters.peft.iter().map(|(a, _)| a.path())).collect();
    if read.iter().any(|p| p.canonicalize().is_ok_and(|p| p == real)) || folder.join("adapter_config.json").exists() {
        return Err(ConvertError::OverSource { path: folder });
    }
    Ok(folder)
}

/// Weights of another model in the folder: refused, or to be replaced.
fn stale(folder: &Path, force: bool) -> Result<Vec<PathBuf>, ConvertError> {
    let is_weights = |name: &str| {
        (name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")))
            || (name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json")))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(is_weights)).map(|e| e.path()).collect();
    found.sort();
    match found.first() {
        Some(path) if !force => Err(crate::save::OutputError::Exists { path: path.clone() }.into()),
        _ => Ok(found),
    }
}

/// Where the tensors of the files are.
struct Spread {
    /// By tensor of the files, in the order of the weights.
    places: Vec<Place>,
    /// Number of shards.
    count: usize,
}

/// Spreads the tensors over shards.
fn spread(list: &[Weight], limit: u64) -> Result<(Vec<ShardLayout>, Spread), ConvertError> {
    let (shard_of, count) = assign(&parcels(list), limit);
    let mut specs: Vec<Vec<TensorSpec>> = vec![Vec::new(); count];
    let mut places = Vec::with_capacity(shard_of.len());
    for (spec, &shard) in list.iter().flat_map(|w| &w.specs).zip(&shard_of) {
        places.push(Place { shard, tensor: specs[shard].len() });
        specs[shard].push(spec.clone());
    }
    let layouts = specs.into_iter().map(ShardLayout::new).collect::<Result<_, _>>()?;
    Ok((layouts, Spread { places, count }))
}

/// What the report says of a shard.
fn output(path: &Path, label: &str, layout: &ShardLayout) -> OutputReport {
    let rows = layout.specs().iter().enumerate().map(|(i, s)| {
        let offset = if s.late { 0 } else { layout.offset(i) };
        (s.name.clone(), s.shape.clone(), s.dtype.to_string(), s.bytes(), offset)
    });
    OutputReport::new(path.to_owned(), label.to_owned(), layout.file_size(), rows)
}

/// Elements of all weights, packed or not.
fn parameters(list: &[Weight]) -> u64 {
    let elements = |w: &Weight| match &w.form {
        Form::Plain(recipe, _) | Form::Packed(recipe) => recipe.shape().elements(),
        Form::Bytes(_) => 0,
    };
    list.iter().map(elements).sum()
}

fn architecture(config: &serde_json::Value) -> String {
    let named = config["architectures"][0].as_str().or(config["model_type"].as_str());
    named.unwrap_or("a model").to_owned()
}

/// The small files of the model's folder: index, settings, card, tokenizer, code.
fn beside(
    opened: &MergedFolder,
    adapters: &[AdapterReport],
    ty: GgmlType,
    list: &[Weight],
    packer: Option<&Packer>,
    spread: &Spread,
    warnings: &mut Vec<String>,
) -> Result<Vec<(PathBuf, Vec<u8>)>, ConvertError> {
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| files.push((name.into(), bytes));
    if spread.count > 1 {
        let specs = || list.iter().flat_map(|w| &w.specs);
        let bytes = specs().map(TensorSpec::bytes).sum();
        let shards = specs().zip(&spread.places).map(|(s, p)| (s.name.as_str(), p.shard));
        add("model.safetensors.index.json", index(shards, spread.count, bytes, parameters(list)).into_bytes());
    }
    let dtype = names_of(ty).0;
    let config = settings::config(&opened.config, dtype, packer.map(Packer::skipped));
    add("config.json", format!("{config:#}\n").into_bytes());
    // What the fine-tune brings beats what the base has.
    let homes: Vec<&Path> = opened.adapters.peft.iter().map(|(a, _)| a.path()).chain([opened.base.path()]).collect();
    let find = |name: &str| homes.iter().map(|h| h.join(name)).find(|p| p.is_file());
    for name in KEPT {
        if let Some(path) = find(name) {
            add(name, read(&path)?);
        }
    }
    if !opened.config["auto_map"].is_null() {
        for (name, path) in code(opened.base.path()) {
            add(&name, read(&path)?);
        }
    }
    let base_card = opened.base.readme().map(|p| read(&p)).transpose()?;
    let base_card = base_card.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let named = opened.adapters.peft.first().and_then(|(a, _)| a.config().base_model());
    let card = Card {
        name: &opened.name(),
        base: card::base_name(named, opened.base.path(), &opened.base.name()),
        adapters,
        architecture: &architecture(&opened.config),
        dtype,
        exact: opened.adapters.options.dtype == MergeDtype::F32,
        four_bit: packer.is_some(),
        base_card: base_card.as_deref(),
    };
    add("README.md", card.render().into_bytes());
    let (tokenizer, notes) = saved_files(&opened.tokenizer, &TOKENIZER_FILES)?;
    warnings.extend(notes);
    files.extend(tokenizer);
    Ok(files)
}

/// The Python files of a folder, which a model with code of its own is made of.
fn code(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
        .filter(|(name, path)| name.ends_with(".py") && path.is_file())
        .collect();
    found.sort();
    found
}
