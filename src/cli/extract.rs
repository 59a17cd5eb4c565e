//! `to-gguf extract`: an adapter from the difference of two models.

use std::path::PathBuf;
use std::process::ExitCode;

use super::Usage;
use super::adapter::AdapterFormat;
use super::args::RunArgs;
use crate::convert::{self, ExtractRequest};

/// Arguments of `extract`.
#[derive(Debug, clap::Args)]
pub(super) struct ExtractArgs {
    /// The model that the adapter will be for
    #[arg(long, value_name = "MODEL")]
    pub base: PathBuf,
    /// The fine-tuned model
    #[arg(long, value_name = "MODEL")]
    pub tuned: PathBuf,
    /// Rank of the factors
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    pub rank: u64,
    /// Only modules whose name this regular expression matches
    #[arg(long, value_name = "REGEX")]
    pub target: Option<String>,
    /// A folder, or a .gguf file with --format gguf [default: ./NAME-lora]
    #[arg(short, long = "output", value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// What the adapter is saved as
    #[arg(long, value_name = "FORMAT", default_value = "peft")]
    pub format: AdapterFormat,
    /// Replace existing files
    #[arg(long)]
    pub force: bool,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Tell for each module how much of its difference the adapter holds
    #[arg(long)]
    pub report: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: RunArgs,
}

/// Extracts.
pub(super) fn run(args: &ExtractArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.as_deref().map(fancy_regex::Regex::new).transpose();
    let request = ExtractRequest {
        base: args.base.to_string_lossy().into_owned(),
        tuned: args.tuned.to_string_lossy().into_owned(),
        rank: args.rank,
        target: target.map_err(|e| Usage(format!("--target: is no regular expression ({e})")))?,
        output: args.output.clone(),
        format: args.format.into(),
        force: args.force,
    };
    let job = convert::plan_extract(&request)?;
    super::convert::finish(job, &args.run, args.dry_run, |report| Ok((report, args.report)))
}
