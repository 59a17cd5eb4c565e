//! Progress on stderr: a bar on a terminal, plain lines in a log.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::stream::Progress;

/// How often a log gets a line.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What the user sees while a conversion runs.
pub(super) enum Display {
    /// Nothing, as `--quiet` asks.
    Quiet,
    /// A bar with bytes, rate, time left and the current tensor.
    Bar(ProgressBar),
    /// A line now and then.
    Log(Mutex<Log>),
}

/// State of the plain lines.
pub(super) struct Log {
    total: u64,
    done: u64,
    started: Instant,
    last: Instant,
}

impl Display {
    /// A display for a run over `total` bytes.
    pub(super) fn new(total: u64, quiet: bool) -> Self {
        if quiet {
            return Display::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            let now = Instant::now();
            return Display::Log(Mutex::new(Log { total, done: 0, started: now, last: now }));
        }
        let template = if std::env::var_os("NO_COLOR").is_some() {
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {wide_msg}"
        } else {
            "{bar:30.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {wide_msg}"
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Display::Bar(ProgressBar::new(total).with_style(style))
    }

    /// Ends the display, leaving no bar behind.
    pub(super) fn finish(&self) {
        if let Display::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Display {
    fn advance(&self, tensor: &str, bytes: u64) {
        match self {
            Display::Quiet => {}
            Display::Bar(bar) => {
                bar.inc(bytes);
                bar.set_message(tensor.to_owned());
            }
            Display::Log(log) => {
                let mut log = log.lock().unwrap_or_else(|p| p.into_inner());
                log.done += bytes;
                if log.last.elapsed() >= LOG_INTERVAL {
                    log.last = Instant::now();
                    let percent = log.done * 100 / log.total.max(1);
                    let rate = log.done as f64 / log.started.elapsed().as_secs_f64();
                    eprintln!(
                        "{percent:3} %  {} of {}  {}/s  {tensor}",
                        HumanBytes(log.done),
                        HumanBytes(log.total),
                        HumanBytes(rate as u64)
                    );
                }
            }
        }
    }
}
