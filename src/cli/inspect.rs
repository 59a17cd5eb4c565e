//! `to-gguf inspect`: what a GGUF file holds.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::{HumanBytes, HumanCount};

use super::printable;
use crate::gguf::{Inspection, inspect};

/// Longest value that a line shows.
const WIDTH: usize = 96;

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// A GGUF file, or the first of several parts
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Show all elements of long arrays
    #[arg(long)]
    pub full: bool,
}

/// Describes a file on stdout.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let found = inspect(&args.file, args.full)?;
    let text = if args.json { serde_json::to_string_pretty(&found)? + "\n" } else { table(&found, args.full) };
    super::print_out(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(found: &Inspection, full: bool) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        "{}  {}{}GGUF v{}, {} parameters, {}, {:.2} bits per weight",
        found.path.display(),
        found.architecture.as_deref().map(|a| format!("{}, ", printable(a))).unwrap_or_default(),
        found.file_type.as_deref().map(|t| format!("{t}, ")).unwrap_or_default(),
        found.version,
        HumanCount(found.parameters),
        HumanBytes(found.file_bytes),
        found.bits_per_weight
    ));
    if found.parts.len() > 1 {
        for part in &found.parts {
            line(format_args!("  {}  {}", part.path.display(), HumanBytes(part.bytes)));
        }
    }
    line(format_args!("\n{} keys", found.metadata.len()));
    let width = found.metadata.iter().map(|k| k.key.len()).max().unwrap_or(0).min(48);
    for k in &found.metadata {
        let length = k.length.map(|n| format!("[{n}]")).unwrap_or_default();
        let mut value = k.value.to_string();
        if !full && value.chars().count() > WIDTH {
            value = value.chars().take(WIDTH - 3).chain("...".chars()).collect();
        }
        line(format_args!("  {:<width$}  {:<8}  {value}", printable(&k.key), format!("{}{length}", k.kind)));
    }
    line(format_args!("\n{} tensors", found.tensors.len()));
    let width = found.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    for t in &found.tensors {
        line(format_args!(
            "  {:<width$}  {:<8} {:>11}  {:?}",
            printable(&t.name),
            t.kind,
            HumanBytes(t.bytes).to_string(),
            t.shape
        ));
    }
    line(format_args!("\n{} types", found.types.len()));
    for t in &found.types {
        line(format_args!(
            "  {:<8} {:>5} tensors {:>11}  {} parameters",
            t.kind,
            t.tensors,
            HumanBytes(t.bytes).to_string(),
            HumanCount(t.parameters)
        ));
    }
    out
}
