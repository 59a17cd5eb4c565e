//! `to-gguf ollama`: putting a finished folder into Ollama, and checking one.

use crate::ollama::api::{Client, Progress};
use crate::ollama::check::{Report, Severity, check_folder, check_store};
use crate::ollama::grammar::{Creation, decode, parse};
use crate::ollama::name::ModelName;
use crate::ollama::store::{Placed, Store};
use anyhow::Context;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `ollama`.
#[derive(Debug, Args)]
pub(super) struct OllamaArgs {
    /// What to do
    #[command(subcommand)]
    pub command: OllamaCommand,
}

/// Subcommands of `ollama`.
#[derive(Debug, Subcommand)]
pub(super) enum OllamaCommand {
    /// Report what is missing or inconsistent in a Modelfile or a stored model; exit status 1 if something is wrong
    Check {
        /// A folder with a Modelfile, a Modelfile, or NAME[:TAG] of the store
        target: String,
    },
    /// Put a folder with a Modelfile into Ollama
    Add {
        /// The folder, or the Modelfile
        folder: PathBuf,
        /// NAME[:TAG] for `ollama run`
        name: String,
        /// Ask a running server instead of writing the store
        #[arg(long)]
        create: bool,
        /// Replace a model of that name
        #[arg(long)]
        force: bool,
    },
}

/// How a model gets into Ollama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Straight into the store.
    Store,
    /// Through a running server.
    Server,
}

/// Runs `ollama`.
///
/// # Errors
/// If a file, the store or the server fails.
pub(super) fn run(args: &OllamaArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        OllamaCommand::Check { target } => {
            let path = Path::new(target);
            let report = if path.exists() {
                check_folder(path)?
            } else {
                check_store(&Store::of_user(), &ModelName::parse(target)?)?
            };
            print_report(&report);
            Ok(if report.has_problems() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        OllamaCommand::Add { folder, name, create, force } => {
            let way = if *create { Way::Server } else { Way::Store };
            println!("{}", add(folder, name, way, *force)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print_report(report: &Report) {
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Fine => "ok",
            Severity::Note => "note",
            Severity::Problem => "problem",
        };
        println!("{word:>7}  {}", finding.text);
    }
}

/// Puts what a Modelfile describes into Ollama and returns what to tell the user.
///
/// # Errors
/// If a file, the store or the server fails; nothing is visible under the name then.
pub(super) fn add(folder: &Path, name: &str, way: Way, force: bool) -> anyhow::Result<String> {
    let name = ModelName::parse(name)?;
    let file = if folder.is_dir() { folder.join("Modelfile") } else { folder.to_owned() };
    let bytes = std::fs::read(&file)
        .with_context(|| format!("{}: cannot be read; convert with a Modelfile first", file.display()))?;
    let creation = Creation::new(&parse(&decode(&bytes))?, file.parent().unwrap_or(Path::new(".")))?;
    match way {
        Way::Store => {
            let stored = Store::of_user().write(&name, &creation, force, &mut |_| {})?;
            let how: Vec<String> = stored
                .files
                .iter()
                .map(|(path, placed)| {
                    let word = match placed {
                        Placed::Existing => "already there",
                        Placed::Linked => "linked, takes no space",
                        Placed::Cloned => "cloned, takes no space",
                        Placed::Copied => "copied",
                    };
                    format!("{} ({word})", path.display())
                })
                .collect();
            Ok(format!("{name} is in Ollama's store: {}; next: ollama run {name}", how.join(", ")))
        }
        Way::Server => {
            let mut last = String::new();
            Client::of_user().create(&name, &creation, &mut |event| match event {
                Progress::Status(status) if status != last => {
                    eprintln!("ollama: {status}");
                    last = status;
                }
                Progress::Sending(path, size) => eprintln!("ollama: sending {} ({size} bytes)", path.display()),
                Progress::Present(path) => eprintln!("ollama: has {} already", path.display()),
                _ => {}
            })?;
            Ok(format!("Ollama made {name}; next: ollama run {name}"))
        }
    }
}
