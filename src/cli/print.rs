//! Reports as a person reads them.

use std::fmt::Write;

use indicatif::{BinaryBytes, HumanBytes, HumanCount};

use crate::report::{OutputReport, Report};

/// Writing to a `String` cannot fail, so the result needs no look.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => {{ let _ = writeln!($out, $($arg)*); }};
}

/// The closing table of a conversion.
pub(super) fn report(report: &Report, verbose: bool, changes: bool) -> String {
    let mut text = String::new();
    let out = &mut text;
    let model = &report.model;
    line!(
        out,
        "{}  {}, {} parameters, {}",
        model.path.display(),
        model.architecture,
        HumanCount(model.parameters),
        HumanBytes(model.bytes)
    );
    for adapter in &report.adapters {
        line!(
            out,
            "  + {}  {}, {} tensors changed, weight {}",
            adapter.path.display(),
            adapter.kind,
            adapter.tensors,
            adapter.weight
        );
    }
    for change in report.changes.iter().filter(|_| verbose || changes) {
        let size = change.relative_change.map_or_else(|| "-".to_owned(), |r| format!("{:.3} %", r * 100.0));
        let rank = change.rank.map_or_else(String::new, |r| format!(" r{r}"));
        line!(out, "    {:<56} {:>10}  {}{rank} by {}", change.tensor, size, change.kind, change.adapter);
    }
    extracted(out, report, verbose || changes);
    for dropped in model.dropped.iter().filter(|_| verbose) {
        line!(out, "  - {}: {}", dropped.tensor, dropped.reason);
    }
    for output in &report.outputs {
        out.push('\n');
        table(out, output, verbose || report.dry_run);
    }
    let total: u64 = report.outputs.iter().map(|o| o.bytes).sum();
    out.push('\n');
    if report.dry_run {
        line!(out, "Nothing was written. These files would be:");
    } else {
        line!(
            out,
            "{} in, {} out, {:.1} s, {}/s of source on {} with {} threads. Files:",
            HumanBytes(model.bytes),
            HumanBytes(total),
            report.seconds,
            BinaryBytes((model.bytes as f64 / report.seconds.max(1e-9)) as u64),
            report.device,
            report.threads
        );
    }
    for file in &report.files {
        line!(out, "  {}", file.display());
    }
    if !report.next.is_empty() {
        line!(out, "\nNext:");
        for command in &report.next {
            line!(out, "  {command}");
        }
    }
    text
}

/// How much of the differences an extracted adapter holds.
fn extracted(out: &mut String, report: &Report, each: bool) {
    for module in report.extracted.iter().filter(|_| each) {
        line!(out, "    {:<56} {:>8.3} %  r{}", module.module, module.energy * 100.0, module.rank);
    }
    let energies = || report.extracted.iter().map(|e| e.energy * 100.0);
    if let Some(worst) = energies().reduce(f64::min) {
        let mean = energies().sum::<f64>() / report.extracted.len() as f64;
        line!(
            out,
            "  of {} differences the factors hold {mean:.2} % (sums of squares; on average), {worst:.2} % of the worst",
            report.extracted.len()
        );
    }
}

/// One file: its types, and its tensors where asked.
fn table(out: &mut String, output: &OutputReport, tensors: bool) {
    line!(
        out,
        "{}  {}, {:.2} bits per weight, {} ({} bytes)",
        output.path.display(),
        output.file_type,
        output.bits_per_weight,
        HumanBytes(output.bytes),
        output.bytes
    );
    for ty in &output.types {
        line!(out, "  {:>5} tensors  {:<8} {:>12}", ty.tensors, ty.ty, HumanBytes(ty.bytes).to_string());
    }
    if tensors {
        for t in &output.tensors {
            line!(out, "  {:<44} {:<8} {:>12} bytes at {:<12} {:?}", t.name, t.ty, t.bytes, t.offset, t.shape);
        }
    }
}
