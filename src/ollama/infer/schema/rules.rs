//! Rules for the text behind an element.

use super::{SchemaFeature, TYPES};
use crate::ollama::infer::learn::{Facts, Question, Tree, learn_greedily};
use crate::ollama::stops::{common_prefix, common_suffix};

/// A text that was seen, and the facts under which it was.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) facts: Facts,
    pub(super) text: String,
}

/// Stands for the property's type in the texts of a rule.
pub(super) const TYPE: char = '\u{e000}';
/// Stands for the type of an array's items in the texts of a rule.
pub(super) const ITEMS: char = '\u{e001}';

/// Texts that follow each other, each chosen by a tree. `? : string,` is a question mark that depends on whether the
/// property is required, then a text that depends on its type: two small trees, where one would be large.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) trees: Vec<Tree<String, SchemaFeature>>,
}

/// Most trees of a rule.
const MOST_TREES: usize = 4;

impl Rule {
    /// The smallest rule that is found for the samples; `None` if the facts do not tell their texts apart.
    pub(super) fn learn(samples: &[Sample]) -> Option<Self> {
        let as_seen: Vec<(Facts, String)> = samples.iter().map(|s| (s.facts, s.text.clone())).collect();
        let with_types: Vec<(Facts, String)> = samples.iter().map(|s| (s.facts, mark_types(s))).collect();
        let (seen, typed) = (factor(as_seen), factor(with_types));
        [typed, seen].into_iter().flatten().min_by_key(|trees| size(trees)).map(|trees| Self { trees })
    }

    /// The text under these facts.
    pub(super) fn text(&self, facts: Facts) -> String {
        let (own, items) = types(facts);
        let text: String = self.trees.iter().map(|t| t.decide(facts).as_str()).collect();
        text.replace(TYPE, own).replace(ITEMS, items)
    }
}

/// The names of a property's type, and of its items' type.
fn types(facts: Facts) -> (&'static str, &'static str) {
    let holds = |f: SchemaFeature| facts & f.bit() != 0;
    let own = TYPES.iter().find(|t| holds(t.1)).map_or("array", |t| t.0);
    let items = TYPES.iter().find(|t| holds(t.2)).map_or("", |t| t.0);
    (own, items)
}

/// The text with marks in the place of the type's name.
fn mark_types(sample: &Sample) -> String {
    let of_property = TYPES.iter().any(|t| sample.facts & t.1.bit() != 0);
    let of_array = sample.facts & SchemaFeature::IsArray.bit() != 0;
    if !of_property && !of_array {
        return sample.text.clone();
    }
    let (own, items) = types(sample.facts);
    let mut text = sample.text.replace(own, &TYPE.to_string());
    if of_array && !items.is_empty() {
        text = text.replace(items, &ITEMS.to_string());
    }
    text
}

fn size(trees: &[Tree<String, SchemaFeature>]) -> usize {
    trees.iter().map(|t| t.leaves().len()).sum()
}

/// Splits off what depends on one feature, in front or behind, as long as the rule becomes smaller by that.
fn factor(samples: Vec<(Facts, String)>) -> Option<Vec<Tree<String, SchemaFeature>>> {
    let mut rest = samples;
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let mut middle = learn_greedily(&rest);
    while front.len() + back.len() + 1 < MOST_TREES {
        let now = middle.as_ref().map_or(usize::MAX, |t| t.leaves().len());
        let mut best: Option<(usize, Peeled, bool)> = None;
        for questions in questions() {
            for in_front in [true, false] {
                let Some(peeled) = peel(&rest, &questions, in_front) else { continue };
                let then = peeled.middle.leaves().len() + peeled.split.leaves().len();
                if then < best.as_ref().map_or(now, |(size, ..)| *size) {
                    best = Some((then, peeled, in_front));
                }
            }
        }
        let Some((_, peeled, in_front)) = best else { break };
        if in_front {
            front.push(peeled.split);
        } else {
            back.insert(0, peeled.split);
        }
        rest = peeled.rest;
        middle = Some(peeled.middle);
    }
    front.push(middle?);
    front.extend(back);
    front.retain(|tree| tree.leaves().iter().any(|text| !text.is_empty()));
    Some(front)
}

/// A text that depends on one feature, split off.
struct Peeled {
    split: Tree<String, SchemaFeature>,
    /// The samples without it.
    rest: Vec<(Facts, String)>,
    /// The tree for those.
    middle: Tree<String, SchemaFeature>,
}

/// What a text that is split off may depend on: one feature, or whether the property is the last, and then of the
/// last tool.
fn questions() -> impl Iterator<Item = Tree<(), SchemaFeature>> {
    let leaf = || Box::new(Tree::Leaf(()));
    let single = SchemaFeature::ALL.iter().map(move |f| Tree::Split(*f, leaf(), leaf()));
    let last = Tree::Split(SchemaFeature::LastTool, leaf(), leaf());
    single.chain([Tree::Split(SchemaFeature::LastProperty, Box::new(last), leaf())])
}

/// Splits off what is common to the texts that have the same answers.
fn peel(samples: &[(Facts, String)], questions: &Tree<(), SchemaFeature>, in_front: bool) -> Option<Peeled> {
    let split = shared(samples.iter().collect(), questions, in_front)?;
    if split.leaves().iter().all(|text| *text == split.leaves()[0]) {
        return None;
    }
    let rest: Vec<(Facts, String)> = samples
        .iter()
        .map(|(facts, text)| {
            let gone = split.decide(*facts).len();
            let kept = if in_front { &text[gone..] } else { &text[..text.len() - gone] };
            (*facts, kept.to_owned())
        })
        .collect();
    Some(Peeled { split, middle: learn_greedily(&rest)?, rest })
}

/// The text that the samples share in front or behind, for each answer; `None` if a question does not divide them.
fn shared(
    samples: Vec<&(Facts, String)>,
    questions: &Tree<(), SchemaFeature>,
    in_front: bool,
) -> Option<Tree<String, SchemaFeature>> {
    match questions {
        Tree::Leaf(()) => {
            let mut texts = samples.iter().map(|s| s.1.as_str());
            let first = texts.next()?;
            let common = texts.fold(first, |a, b| if in_front { common_prefix(a, b) } else { common_suffix(a, b) });
            Some(Tree::Leaf(common.to_owned()))
        }
        Tree::Split(feature, yes, no) => {
            let (with, without): (Vec<_>, Vec<_>) = samples.into_iter().partition(|s| s.0 & feature.bit() != 0);
            let (yes, no) = (shared(with, yes, in_front)?, shared(without, no, in_front)?);
            Some(Tree::Split(*feature, Box::new(yes), Box::new(no)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_factored_into_what_depends_on_what() {
        let mut samples = Vec::new();
        for required in [true, false] {
            for (name, feature, _) in TYPES {
                let facts = feature.bit() | if required { SchemaFeature::Required.bit() } else { 0 };
                let shown = if name == "integer" { "number" } else { name };
                samples.push(Sample { facts, text: format!("{}: {shown},\n", if required { "" } else { "?" }) });
            }
        }
        let rule = Rule::learn(&samples).unwrap();
        for sample in &samples {
            assert_eq!(rule.text(sample.facts), sample.text);
        }
        // `?` or nothing; `number` or the type.
        assert!(size(&rule.trees) <= 4, "{:?}", rule.trees);
    }

    #[test]
    fn texts_that_differ_without_a_reason_have_no_rule() {
        let sample = |text: &str| Sample { facts: 0, text: text.into() };
        assert!(Rule::learn(&[sample("a"), sample("b")]).is_none());
    }
}
