//! The command line: arguments, progress, reports, exit codes. The only room that prints.

mod adapter;
mod args;
mod convert;
mod devices;
mod diff;
mod extract;
mod inspect;
mod ollama;
mod print;
mod progress;
mod template;

use std::borrow::Cow;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// Exit status of a run that the user interrupted.
const INTERRUPTED: u8 = 130;

/// Runs the program on the process's arguments.
///
/// Exit status: 0 done; 1 failed, with one line `error: ...` on stderr; 2 wrong usage; 130 interrupted.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    start_log(cli.convert.run.verbose);
    let result = match cli.command {
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Diff(args)) => diff::run(&args),
        Some(Command::Extract(args)) => extract::run(&args),
        Some(Command::Template(args)) => template::run(&args),
        Some(Command::Ollama(args)) => ollama::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Cli::command(), "to-gguf", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        None => convert::run(&cli.convert),
    };
    result.unwrap_or_else(|error: anyhow::Error| {
        if let Some(usage) = error.downcast_ref::<Usage>() {
            eprintln!("error: {usage}");
            return ExitCode::from(2);
        }
        // Causes are worded into each error's own text, so one line tells all.
        eprintln!("error: {}", one_line(&error.to_string()));
        ExitCode::from(if error.downcast_ref::<Interrupted>().is_some() { INTERRUPTED } else { 1 })
    })
}

/// Words clap's answer to arguments that it does not understand as one line, its tips included. `--help` and
/// `--version` come this way, too.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that has seen enough and closed the pipe is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let tips = rest.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).map(|tip| format!("; {tip}"));
    eprintln!("{}{}; to-gguf --help lists what can be given", one_line(message), tips.collect::<String>());
    ExitCode::from(2)
}

/// Options that contradict each other or that this version does not have: wrong usage, exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The user interrupted the run.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was written under a final name")]
struct Interrupted;

/// An error's text without line breaks, so that a failure is one line.
fn one_line(text: &str) -> String {
    let line = text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    printable(&line).into_owned()
}

/// A name from a file, its control characters written as escapes: it must not move the terminal's cursor or begin a
/// line of its own.
fn printable(name: &str) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return name.into();
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    name.chars().map(escaped).collect::<String>().into()
}

/// Writes a result to stdout. A reader that has seen enough and closed the pipe is no failure.
fn print_out(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Log events go to stderr: warnings always, more with each `-v`.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    // A second initialisation can only happen in tests, where the first one serves.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(std::env::var_os("NO_COLOR").is_none())
        .try_init();
}
