//! `to-gguf devices`: the GPUs that can compute.

use std::fmt::Write;
use std::process::ExitCode;

use indicatif::BinaryBytes;

use crate::device::cuda::{self, Failure, Gpus};

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub(super) struct DevicesArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Lists devices on stdout. That there is no GPU is an answer, not a failure.
pub(super) fn run(args: &DevicesArgs) -> anyhow::Result<ExitCode> {
    let found = cuda::list();
    let text = if args.json { json(&found)? } else { table(&found) };
    super::print_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn json(found: &Result<Gpus, Failure>) -> serde_json::Result<String> {
    let cpu = serde_json::json!({ "threads": threads() });
    let cuda = match found {
        Ok(gpus) => serde_json::to_value(gpus)?,
        Err(e) => serde_json::json!({ "gpus": [], "unavailable": e.cause() }),
    };
    Ok(serde_json::to_string_pretty(&serde_json::json!({ "cpu": cpu, "cuda": cuda }))? + "\n")
}

fn table(found: &Result<Gpus, Failure>) -> String {
    let mut out = format!("cpu     {} threads\n", threads());
    // Writing to a `String` cannot fail.
    let _ = match found {
        Err(e) => writeln!(out, "cuda    none: {}", e.cause()),
        Ok(Gpus { driver, needs, gpus }) => {
            for gpu in gpus {
                let memory = BinaryBytes(gpu.memory).to_string();
                let unfit = if gpu.supported { "" } else { ", which is too old for the kernels" };
                let capability = &gpu.compute_capability;
                let _ = writeln!(
                    out,
                    "cuda:{}  {}, {memory}, compute capability {capability}{unfit}",
                    gpu.ordinal, gpu.name
                );
            }
            writeln!(out, "The driver supports CUDA {driver}; the kernels need {needs}.")
        }
    };
    out
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
