//! `to-gguf diff`: how two GGUF files differ. Exit status 1 where they do.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::printable;
use crate::gguf::{DiffReport, diff};

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// A GGUF file, or the first of several parts
    pub a: PathBuf,
    /// The file to compare it with
    pub b: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Compares two files on stdout.
pub(super) fn run(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let found = diff(&args.a, &args.b)?;
    let text = if args.json { serde_json::to_string_pretty(&found)? + "\n" } else { table(&found) };
    super::print_out(&text)?;
    Ok(if found.differs() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn table(found: &DiffReport) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "{text}");
    };
    let side = |v: &Option<String>| v.clone().unwrap_or_else(|| "missing".into());
    for k in &found.keys {
        let at = k.first_index.map(|i| format!("  (first difference at {i})")).unwrap_or_default();
        line(format_args!("key    {}: {} | {}{at}", printable(&k.key), side(&k.a), side(&k.b)));
    }
    if found.key_order_differs {
        line(format_args!("order  the keys stand in another order"));
    }
    if found.tensor_order_differs {
        line(format_args!("order  the tensors stand in another order"));
    }
    for words in &found.layout {
        line(format_args!("layout {words}"));
    }
    for t in &found.tensors {
        let side = |v: &Option<(&str, Vec<u64>)>| {
            v.as_ref().map_or_else(|| "missing".into(), |(kind, shape)| format!("{kind} {shape:?}"))
        };
        let mut words = if t.a == t.b { side(&t.a) } else { format!("{} | {}", side(&t.a), side(&t.b)) };
        if let Some(b) = t.bytes {
            let _ = write!(words, "  {} of {} blocks differ, the first at {}", b.blocks, b.of, b.first);
        }
        if let Some(v) = t.values {
            let _ = write!(
                words,
                "  rmse {:.3e} ({:.3} %), max {:.3e}, cosine {:.6}",
                v.rmse,
                100.0 * v.relative_rmse,
                v.max_error,
                v.cosine
            );
        }
        line(format_args!("tensor {}: {words}", printable(&t.name)));
    }
    let verdict = if found.identical { "identical files" } else { "different files" };
    line(format_args!(
        "{verdict}: {} keys and {} tensors differ, {} tensors are equal",
        found.keys.len(),
        found.tensors.len(),
        found.equal_tensors
    ));
    out
}
