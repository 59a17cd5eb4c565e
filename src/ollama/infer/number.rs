//! Numbers in a template's text that count calls or results.

use super::observe::{Counts, Observation};
use super::part::{Counter, Kind, Part};
use std::collections::{BTreeMap, HashMap};

/// Where parts stand in an observation: in a gap, or in the call that is the element of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Gap(usize),
    Call(usize),
}

/// The text around calls and results whose numbers follow a counter, with the counters in their places.
pub(super) type Numbered = HashMap<(usize, Place), Vec<Part>>;

/// A text with its numbers taken out.
struct Skeleton {
    at: (usize, Place),
    counts: Counts,
    pieces: Vec<Piece>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Part(Part),
    /// A number as it was written.
    Number(String),
}

/// What must be alike for texts to be compared: the elements around, and the text but for its numbers.
type Group = ((Kind, Kind), Vec<Option<Part>>);

/// Finds the numbers that count. One that is the same everywhere is text.
pub(super) fn number(observations: &[Observation]) -> Numbered {
    let mut groups: BTreeMap<Group, Vec<Skeleton>> = BTreeMap::new();
    let mut add = |pair: (Kind, Kind), skeleton: Skeleton| {
        if skeleton.pieces.iter().any(|p| matches!(p, Piece::Number(_))) {
            let form = skeleton.pieces.iter().map(|piece| match piece {
                Piece::Part(part) => Some(part.clone()),
                Piece::Number(_) => None,
            });
            groups.entry((pair, form.collect())).or_default().push(skeleton);
        }
    };
    for (o, observation) in observations.iter().enumerate() {
        for (g, gap) in observation.gaps.iter().enumerate() {
            if matches!(gap.behind, Kind::Call | Kind::Result) {
                let at = (o, Place::Gap(g));
                add((gap.before, gap.behind), Skeleton { at, counts: gap.counts, pieces: pieces(&gap.parts) });
            }
        }
        for (n, seen) in observation.seen.iter().enumerate() {
            if seen.kind == Kind::Call {
                let at = (o, Place::Call(n));
                add((Kind::Call, Kind::Start), Skeleton { at, counts: seen.counts, pieces: pieces(&seen.call) });
            }
        }
    }
    let mut out = Numbered::new();
    for ((pair, form), skeletons) in groups {
        let counters: Vec<Option<Counter>> =
            (0..form.len()).map(|p| if form[p].is_none() { counter(pair.1, &skeletons, p) } else { None }).collect();
        if counters.iter().all(Option::is_none) {
            continue;
        }
        for skeleton in skeletons {
            let parts = skeleton.pieces.into_iter().zip(&counters).map(|(piece, counter)| match (piece, counter) {
                (Piece::Number(_), Some(counter)) => Part::Number(*counter),
                (Piece::Number(text), None) => Part::Lit(text),
                (Piece::Part(part), _) => part,
            });
            out.insert(skeleton.at, super::part::join(parts.collect()));
        }
    }
    out
}

/// The counter that a number follows in all texts of a group, if it is not the same in all.
fn counter(behind: Kind, skeletons: &[Skeleton], p: usize) -> Option<Counter> {
    let number = |s: &Skeleton| match &s.pieces[p] {
        Piece::Number(text) => text.parse::<usize>().ok(),
        Piece::Part(_) => None,
    };
    let first = number(skeletons.first()?);
    if skeletons.iter().all(|s| number(s) == first) {
        return None;
    }
    let counters = match behind {
        Kind::Result => vec![Counter::Results(0), Counter::Results(1)],
        _ => [0, 1].map(|from| [Counter::Calls(from), Counter::CallsOfMessage(from)]).concat(),
    };
    counters.into_iter().find(|c| skeletons.iter().all(|s| number(s) == Some(s.counts.value(*c))))
}

/// Takes the numbers out of the literals.
fn pieces(parts: &[Part]) -> Vec<Piece> {
    let mut out = Vec::new();
    for part in parts {
        let Part::Lit(text) = part else {
            out.push(Piece::Part(part.clone()));
            continue;
        };
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (piece, length) = if digits > 0 {
                (Piece::Number(rest[..digits].to_owned()), digits)
            } else {
                let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
                (Piece::Part(Part::Lit(rest[..text].to_owned())), text)
            };
            out.push(piece);
            rest = &rest[length..];
        }
    }
    out
}
