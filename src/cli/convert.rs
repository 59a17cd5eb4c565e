//! The default command: options to a request, a run with progress, a report.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::{ConvertArgs, MergeType, RunArgs, SaveMethod, TensorTypeArg};
use super::ollama::{self, Way};
use super::progress::Display;
use super::{Interrupted, Usage, print};
use crate::adapter::MergeDtype;
use crate::convert::{self, AdapterRequest, ConvertError, Job, MergedOptions, Method, Request};
use crate::device;
use crate::gguf::{SplitLimit, SplitRule};
use crate::ollama::Wishes;
use crate::plan::PlanOptions;
use crate::quant::{
    GgmlType, ImatrixFilter, KvOverride, OptionError, QuantName, QuantOptions, TensorTypeRule, parse_prune_layers,
    weight_type,
};
use crate::report::Report;
use crate::stream::{Settings, StreamError};

/// Raised by Ctrl-C and by a request to terminate.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The type that is written unless `--quant` says otherwise.
const DEFAULT_QUANT: &str = "q4_k_m";

/// The type that a GGUF adapter is written in unless `--quant` says otherwise: the one of convert_lora_to_gguf.
const DEFAULT_ADAPTER_TYPE: &str = "f32";

/// What Unsloth says too before it merges into four bits.
const FOUR_BIT_WARNING: &str = "a merge in 4 bits is less exact than the model with its adapter: keep a merged_16bit \
     too, for GGUF and for further training (--save-method merged_4bit_forced does not say this)";

/// Plans and, unless it is a dry run, converts.
pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let method = method(args)?;
    if let Some(name) = &args.ollama {
        // Before the work: a bad name should not be found after an hour.
        crate::ollama::name::ModelName::parse(name).map_err(|e| Usage(e.to_string()))?;
    }
    let request = request(args, method)?;
    finish(convert::plan(&request)?, &args.run, args.dry_run, |mut report| {
        if let Some((name, way)) = ollama_target(args)? {
            let modelfile = report.files.iter().find(|f| f.ends_with("Modelfile"));
            let needed = || Usage("--ollama: needs a Modelfile; let -o name a folder".into());
            let told = ollama::add(modelfile.ok_or_else(needed)?, name, way, args.force)?;
            if !args.run.quiet && !args.run.json {
                eprintln!("{told}");
            }
            report.next.retain(|c| !c.starts_with("ollama"));
            report.next.insert(0, format!("ollama run {name}"));
        }
        if args.save_method == SaveMethod::Merged4bit {
            report.warnings.insert(0, FOUR_BIT_WARNING.to_owned());
        }
        Ok((report, args.report))
    })
}

/// Writes what was planned, unless it is a dry run, and prints the report. `then` works on the report first, and
/// answers whether changes are to be told one by one.
pub(super) fn finish(
    job: Box<dyn Job>,
    run: &RunArgs,
    dry_run: bool,
    then: impl FnOnce(Report) -> anyhow::Result<(Report, bool)>,
) -> anyhow::Result<ExitCode> {
    let report = if dry_run {
        let mut report = job.report().clone();
        report.dry_run = true;
        report
    } else {
        let threads = match run.threads {
            Some(n) => n.into(),
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        // Without a handler the process ends at once and leaves a temporary file for the next run to sweep.
        let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
        let settings = Settings { threads, max_memory: run.max_memory.map(|b| b.0), interrupted: &INTERRUPTED };
        let gpu_memory = run.gpu_memory.map(|b| b.0);
        let chosen = device::open(&run.device.0, job.total_bytes(), threads, gpu_memory)?;
        let display = Display::new(job.total_bytes(), run.quiet || run.json);
        let result = job.write(&*chosen.device, &settings, &display);
        display.finish();
        let mut report = result.map_err(|e| match e {
            ConvertError::Stream(StreamError::Interrupted) => anyhow::Error::from(Interrupted),
            other => other.into(),
        })?;
        report.warnings.extend(chosen.warning);
        report
    };
    let (report, changes) = then(report)?;
    if !run.json {
        report.warnings.iter().for_each(|w| eprintln!("warning: {}", super::one_line(w)));
    }
    let text = if run.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else if run.quiet {
        report.files.iter().map(|f| format!("{}\n", f.display())).collect()
    } else {
        print::report(&report, run.verbose > 0, changes)
    };
    // A reader that closed the pipe has seen what it wanted.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// How the result is saved.
fn method(args: &ConvertArgs) -> Result<Method, Usage> {
    match args.save_method {
        SaveMethod::Gguf => Ok(Method::Gguf),
        SaveMethod::Lora => args.adapter.method().map(Method::Lora),
        SaveMethod::Merged16bit | SaveMethod::Merged4bit | SaveMethod::Merged4bitForced => {
            refuse_gguf_options(args)?;
            Ok(Method::Merged(MergedOptions {
                dtype: args.dtype.map(|dtype| match dtype {
                    MergeType::F32 => GgmlType::F32,
                    MergeType::Bf16 => GgmlType::BF16,
                    MergeType::F16 => GgmlType::F16,
                }),
                four_bit: args.save_method != SaveMethod::Merged16bit,
                max_shard_size: args.max_shard_size.0,
            }))
        }
    }
}

/// Options that only a GGUF has a use for are no silent wishes beside another way to save.
fn refuse_gguf_options(args: &ConvertArgs) -> Result<(), Usage> {
    let q = &args.quantizer;
    let given = [
        ("--quant", !args.quant.is_empty()),
        ("--ollama", args.ollama.is_some()),
        ("--ollama-create", args.ollama_create.is_some()),
        ("--split-max-size", args.split_max_size.is_some()),
        ("--split-max-tensors", args.split_max_tensors.is_some()),
        ("--no-tensor-first-split", args.no_tensor_first_split),
        ("--pre-tokenizer", args.pre_tokenizer.is_some()),
        ("--imatrix", q.imatrix.is_some()),
        ("--pure", q.pure),
        ("--leave-output-tensor", q.leave_output_tensor),
        ("--output-tensor-type", q.output_tensor_type.is_some()),
        ("--token-embedding-type", q.token_embedding_type.is_some()),
        ("--tensor-type and --tensor-type-file", !q.tensor_types.0.is_empty()),
        ("--override-kv", !q.override_kv.is_empty()),
        ("--prune-layers", !q.prune_layers.is_empty()),
        ("--keep-split", q.keep_split),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Usage(format!("{option}: belongs to --save-method gguf; leave one of them out"))),
        None => Ok(()),
    }
}

/// The name that the model gets in Ollama, and the way there.
fn ollama_target(args: &ConvertArgs) -> Result<Option<(&String, Way)>, Usage> {
    match (&args.ollama, &args.ollama_create) {
        (Some(_), Some(Some(_))) => {
            Err(Usage("--ollama and --ollama-create: give the name once; --ollama-create chooses the server".into()))
        }
        (None, Some(None)) => Err(Usage("--ollama-create: give the model a NAME".into())),
        (Some(name), Some(None)) | (None, Some(Some(name))) => Ok(Some((name, Way::Server))),
        (Some(name), None) => Ok(Some((name, Way::Store))),
        (None, None) => Ok(None),
    }
}

fn request(args: &ConvertArgs, method: Method) -> Result<Request, Usage> {
    let default = if args.save_method == SaveMethod::Lora { DEFAULT_ADAPTER_TYPE } else { DEFAULT_QUANT };
    let names = if args.quant.is_empty() { vec![default.to_owned()] } else { args.quant.clone() };
    let quants = names
        .iter()
        .map(|name| {
            QuantName::from_name(name).ok_or_else(|| {
                Usage(format!("--quant: '{name}' is no type; the types are {}", QuantName::all_names().join(", ")))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Request {
        model: args.model.as_ref().map_or_else(|| ".".to_owned(), |p| p.to_string_lossy().into_owned()),
        adapters: args.loras.iter().map(|l| AdapterRequest { path: l.path.clone(), weight: l.weight }).collect(),
        adapter: args.adapter.adapter.clone(),
        base: args.base.as_ref().map(|p| p.to_string_lossy().into_owned()),
        method,
        quants,
        output: args.output.clone(),
        plan: PlanOptions { quant: quantizer(args)?, split: split(args)? },
        merge_dtype: match args.merge_dtype {
            MergeType::F32 => MergeDtype::F32,
            MergeType::Bf16 => MergeDtype::Bf16,
            MergeType::F16 => MergeDtype::F16,
        },
        imatrix: args.quantizer.imatrix.clone(),
        imatrix_filter: match (&args.quantizer.include_weights, &args.quantizer.exclude_weights) {
            (include, _) if !include.is_empty() => ImatrixFilter::Include(include.clone()),
            (_, exclude) if !exclude.is_empty() => ImatrixFilter::Exclude(exclude.clone()),
            _ => ImatrixFilter::All,
        },
        pre_tokenizer: args.pre_tokenizer.clone(),
        modelfile: !args.no_modelfile,
        wishes: Wishes {
            system: args.system.clone(),
            messages: args.messages.iter().map(|m| (m.role, m.text.clone())).collect(),
            projectors: args.projectors.clone(),
        },
        force: args.force,
    })
}

/// How a GGUF is split.
fn split(args: &ConvertArgs) -> Result<Option<SplitRule>, Usage> {
    let limit = match (args.split_max_size, args.split_max_tensors) {
        (Some(size), _) => Some(SplitLimit::Bytes(size.0)),
        (None, tensors) => tensors.map(SplitLimit::Tensors),
    };
    if args.no_tensor_first_split && limit.is_none() {
        return Err(Usage(
            "--no-tensor-first-split: nothing is split; add --split-max-size or --split-max-tensors".into(),
        ));
    }
    if limit.is_some() && args.save_method == SaveMethod::Lora {
        return Err(Usage("--split-max-size, --split-max-tensors: an adapter is one file; leave them out".into()));
    }
    Ok(limit.map(|limit| SplitRule { limit, bare_first: args.no_tensor_first_split }))
}

/// The options that carry llama-quantize's names.
fn quantizer(args: &ConvertArgs) -> Result<QuantOptions, Usage> {
    let q = &args.quantizer;
    // Most of these errors name their option themselves.
    let usage = |option: &'static str| {
        move |e: OptionError| match e.to_string() {
            words if words.starts_with(option) => Usage(words),
            words => Usage(format!("{option}: {words}")),
        }
    };
    let kind = |name: &Option<String>, option| name.as_deref().map(weight_type).transpose().map_err(usage(option));
    let mut tensor_types = Vec::new();
    for given in &q.tensor_types.0 {
        match given {
            TensorTypeArg::Rule(rule) => {
                tensor_types.push(TensorTypeRule::parse(rule).map_err(usage("--tensor-type"))?);
            }
            TensorTypeArg::File(path) => {
                let about = |words: String| Usage(format!("--tensor-type-file {}: {words}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|e| about(format!("cannot read: {e}")))?;
                tensor_types.extend(TensorTypeRule::parse_list(&text).map_err(|e| about(e.to_string()))?);
            }
        }
    }
    let mut prune_layers = BTreeSet::new();
    for list in &q.prune_layers {
        prune_layers.extend(parse_prune_layers(list).map_err(usage("--prune-layers"))?);
    }
    Ok(QuantOptions {
        pure: q.pure,
        leave_output_tensor: q.leave_output_tensor,
        output_tensor_type: kind(&q.output_tensor_type, "--output-tensor-type")?,
        token_embedding_type: kind(&q.token_embedding_type, "--token-embedding-type")?,
        tensor_types,
        override_kv: q
            .override_kv
            .iter()
            .map(|r| KvOverride::parse(r))
            .collect::<Result<_, _>>()
            .map_err(usage("--override-kv"))?,
        prune_layers,
        allow_requantize: q.allow_requantize,
        keep_split: q.keep_split,
    })
}
