//! The model of a template: which elements it shows, how, and the text between any two of them.

use super::learn::{Facts, Tree, learn};
use super::number::{Place, number};
use super::observe::Observation;
use super::part::{Kind, Part, Trim};
use super::schema::ToolProgram;
use std::collections::BTreeMap;

/// Decisions that were seen, and the facts under which they were made.
type Samples<L> = Vec<(Facts, L)>;

/// A template, understood.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// The text between two kinds of element.
    pub(super) gaps: BTreeMap<(Kind, Kind), Tree<Vec<Part>>>,
    /// Whether an element is shown.
    pub(super) visible: BTreeMap<Kind, Tree<bool>>,
    /// How an element's content is shown.
    pub(super) trims: BTreeMap<Kind, Tree<Trim>>,
    /// What is written for a call.
    pub(super) call: Vec<Part>,
    /// Of several calls of a message, only the first is shown.
    pub(super) first_call_only: bool,
    /// How tools are written, if they are written field by field.
    pub(super) program: Option<ToolProgram>,
}

impl Model {
    /// Finds the smallest rules that explain all observations; on failure, which place has none.
    pub(super) fn learn(observations: &[Observation], program: Option<ToolProgram>) -> Result<Self, String> {
        let system_trim = one_system_trim(observations)?;
        let separators = tool_separators(observations);
        let numbered = number(observations);
        let own_names = observations.iter().all(|o| o.references.own);
        if !own_names && !observations.iter().all(|o| o.references.first_of_last) {
            return Err("a result names another call than its own".into());
        }
        let only: Vec<bool> = observations.iter().filter_map(|o| o.first_call_only).collect();
        let first_call_only = only.contains(&true);
        if first_call_only && only.contains(&false) {
            return Err("only some calls of some messages are printed".into());
        }
        let mut gaps: BTreeMap<(Kind, Kind), Samples<Vec<Part>>> = BTreeMap::new();
        let mut visible: BTreeMap<Kind, Samples<bool>> = BTreeMap::new();
        let mut trims: BTreeMap<Kind, Samples<Trim>> = BTreeMap::new();
        let mut call: Option<Vec<Part>> = None;
        for (o, observation) in observations.iter().enumerate() {
            for (g, gap) in observation.gaps.iter().enumerate() {
                let parts = numbered
                    .get(&(o, Place::Gap(g)))
                    .unwrap_or(&gap.parts)
                    .iter()
                    .map(|part| match part {
                        Part::System(_) => Part::System(system_trim.clone()),
                        Part::ToolLoop(body, separator) if separator == "\u{1}" => {
                            Part::ToolLoop(body.clone(), separators.get(body).cloned().unwrap_or_default())
                        }
                        Part::ResultName if !own_names => Part::FirstCallName,
                        other => other.clone(),
                    })
                    .collect();
                gaps.entry((gap.before, gap.behind)).or_default().push((gap.facts, parts));
            }
            for (kind, facts, shown) in &observation.visible {
                visible.entry(*kind).or_default().push((*facts, *shown));
            }
            for (n, seen) in observation.seen.iter().enumerate() {
                if let Some(trim) = &seen.trim {
                    let facts = observation.facts_of(seen.message);
                    trims.entry(seen.kind).or_default().push((facts, trim.clone()));
                }
                if seen.kind == Kind::Call {
                    let parts = numbered.get(&(o, Place::Call(n))).unwrap_or(&seen.call);
                    call = Some(match call.take() {
                        None => parts.clone(),
                        Some(known) => merge_calls(known, parts)?,
                    });
                }
            }
        }
        let mut model = Self {
            gaps: BTreeMap::new(),
            visible: BTreeMap::new(),
            trims: BTreeMap::new(),
            call: call.unwrap_or_default(),
            first_call_only,
            program,
        };
        for (pair, samples) in gaps {
            let tree =
                learn(&samples).ok_or_else(|| format!("no rule for the text between {:?} and {:?}", pair.0, pair.1))?;
            model.gaps.insert(pair, tree);
        }
        for (kind, samples) in visible {
            let tree = learn(&samples).ok_or_else(|| format!("no rule for when {kind:?} is shown"))?;
            model.visible.insert(kind, tree);
        }
        for (kind, samples) in trims {
            let tree = learn(&samples).ok_or_else(|| format!("no rule for how {kind:?} is trimmed"))?;
            model.trims.insert(kind, tree);
        }
        Ok(model)
    }
}

/// The system prompt must be shown the same way everywhere; padded probes tell how.
fn one_system_trim(observations: &[Observation]) -> Result<Trim, String> {
    let mut known: Option<Trim> = None;
    for trim in observations.iter().filter_map(|o| o.system_trim.as_ref()) {
        match &known {
            Some(k) if k != trim => return Err("the system prompt is trimmed now and then".into()),
            _ => known = Some(trim.clone()),
        }
    }
    Ok(known.unwrap_or_default())
}

/// The text between two tools, by what is written for one.
fn tool_separators(observations: &[Observation]) -> BTreeMap<Vec<Part>, String> {
    let mut out = BTreeMap::new();
    for part in observations.iter().flat_map(|o| &o.gaps).flat_map(|g| &g.parts) {
        if let Part::ToolLoop(body, separator) = part
            && separator != "\u{1}"
        {
            out.insert(body.clone(), separator.clone());
        }
    }
    out
}

/// Two sights of a call: alike, but a loop over arguments may have shown texts here and numbers there.
fn merge_calls(known: Vec<Part>, seen: &[Part]) -> Result<Vec<Part>, String> {
    if known.len() != seen.len() {
        return Err("calls are not all written alike".into());
    }
    known
        .into_iter()
        .zip(seen)
        .map(|(a, b)| match (a, b) {
            (Part::ArgumentLoop(at, an, asep), Part::ArgumentLoop(bt, bn, bsep)) => {
                let one = |a: Vec<Part>, b: &Vec<Part>| {
                    if a.is_empty() {
                        Ok(b.clone())
                    } else if b.is_empty() || a == *b {
                        Ok(a)
                    } else {
                        Err("arguments are not all written alike".to_owned())
                    }
                };
                let separator = if asep.is_empty() { bsep.clone() } else { asep };
                if !bsep.is_empty() && *bsep != separator {
                    return Err("arguments are not all separated alike".into());
                }
                Ok(Part::ArgumentLoop(one(at, bt)?, one(an, bn)?, separator))
            }
            (a, b) if a == *b => Ok(a),
            _ => Err("calls are not all written alike".into()),
        })
        .collect()
}
