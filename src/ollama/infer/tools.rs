//! Recognising how the tools on offer are written where each is written whole, or by its larger parts.

use super::part::{Part, join};
use super::tokens::{Unexplained, unexplained};

/// Folds the marked parts of single tools into one loop, and joins literals.
pub(super) fn fold_tools(parts: Vec<Part>) -> Result<Vec<Part>, Unexplained> {
    let number = |p: &Part| match p {
        Part::ToolLoop(_, mark) => mark.strip_prefix('\u{1}').and_then(|n| n.parse::<usize>().ok()),
        _ => None,
    };
    let marked: Vec<(usize, usize)> = parts.iter().enumerate().filter_map(|(i, p)| Some((i, number(p)?))).collect();
    let (Some(first), Some(last)) = (marked.first(), marked.last()) else {
        return Ok(join(parts));
    };
    let count = marked.iter().map(|m| m.1).max().unwrap_or(0) + 1;
    let mut bodies = Vec::new();
    let mut separators: Vec<String> = Vec::new();
    let mut previous_end: Option<usize> = None;
    for tool in 0..count {
        let own: Vec<usize> = marked.iter().filter(|m| m.1 == tool).map(|m| m.0).collect();
        let (Some(&from), Some(&to)) = (own.first(), own.last()) else {
            return unexplained("a tool is left out");
        };
        if let Some(end) = previous_end {
            if from <= end {
                return unexplained("tools are printed more than once");
            }
            match join(parts[end + 1..from].to_vec()).as_slice() {
                [] => separators.push(String::new()),
                [Part::Lit(text)] => separators.push(text.clone()),
                _ => return unexplained("something else between two tools"),
            }
        }
        previous_end = Some(to);
        let body: Vec<Part> = parts[from..=to]
            .iter()
            .map(|p| match p {
                Part::ToolLoop(inner, _) => inner[0].clone(),
                other => other.clone(),
            })
            .collect();
        bodies.push(join(body));
    }
    if bodies.iter().any(|b| *b != bodies[0]) || separators.iter().any(|s| *s != separators[0]) {
        return unexplained("tools are not all printed alike");
    }
    let body = bodies.swap_remove(0);
    // With a single tool the text between two cannot be seen; it is filled in from other probes.
    let separator = separators.first().cloned().unwrap_or_else(|| "\u{1}".into());
    let mut out: Vec<Part> = parts[..first.0].to_vec();
    out.push(Part::ToolLoop(body, separator));
    out.extend_from_slice(&parts[last.0 + 1..]);
    Ok(join(out))
}
