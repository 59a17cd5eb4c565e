//! From gaps to the form that people write: a heading before each element, an ending behind it, and only what
//! cannot be told that way as text between two kinds.

use super::learn::Tree;
use super::model::Model;
use super::part::{Kind, Part, join};
use std::collections::BTreeMap;

/// A laid-out model. Between two elements stand, in this order: the first's ending, the text of the pair, and
/// the second's heading.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Text right before an element.
    pub(super) heading: BTreeMap<Kind, Vec<Part>>,
    /// Text right behind an element, unless the conversation ends with it and is to be continued.
    pub(super) ending: BTreeMap<Kind, Vec<Part>>,
    /// What is left between two.
    pub(super) between: BTreeMap<(Kind, Kind), Tree<Vec<Part>>>,
    /// An answer's ending is left out where calls of the same message follow.
    pub(super) calls_follow: bool,
}

type Label = Vec<Part>;

impl Layout {
    /// Lays out a model.
    pub(super) fn new(model: &Model) -> Self {
        let mut layout = Self {
            heading: BTreeMap::new(),
            ending: BTreeMap::new(),
            between: model.gaps.clone(),
            calls_follow: model.gaps.contains_key(&(Kind::Answer, Kind::Call))
                && model.visible.get(&Kind::Call).is_some_and(|t| t.leaves().iter().all(|shown| **shown)),
        };
        // A user's heading is seen at the start, where nothing comes before it; an answer's ending before the
        // user's heading; a user's ending is like an answer's if it can be.
        layout.take_heading(Kind::User);
        layout.take_ending(Kind::Answer, None);
        let like = layout.ending.get(&Kind::Answer).cloned();
        layout.take_ending(Kind::User, like.as_ref());
        for kind in [Kind::Later, Kind::Result, Kind::Thinking, Kind::Call, Kind::Answer] {
            layout.take_heading(kind);
        }
        for kind in [Kind::Result, Kind::Later, Kind::Call, Kind::Thinking] {
            layout.take_ending(kind, None);
        }
        layout.narrow_thinking();
        layout
    }

    fn take_heading(&mut self, kind: Kind) {
        let labels: Vec<Label> = self.labels(|pair| pair.1 == kind);
        let heading = reversed(&common(labels.iter().map(|l| reversed(l)), true));
        if heading.is_empty() {
            return;
        }
        for (pair, tree) in &mut self.between {
            if pair.1 == kind {
                *tree = tree.map(&mut |l| reversed(&without(&reversed(l), &reversed(&heading), true)));
            }
        }
        self.heading.insert(kind, heading);
    }

    fn take_ending(&mut self, kind: Kind, like: Option<&Label>) {
        let labels: Vec<Label> = self.labels(|pair| pair.0 == kind && !open_end(self.calls_follow, pair));
        let mut ending = common(labels.iter().cloned(), false);
        if let Some(like) = like
            && !like.is_empty()
            && common([ending.clone(), like.clone()].into_iter(), false) == *like
        {
            ending.clone_from(like);
        }
        if ending.is_empty() {
            return;
        }
        let calls_follow = self.calls_follow;
        for (pair, tree) in &mut self.between {
            if pair.0 == kind && !open_end(calls_follow, *pair) {
                *tree = tree.map(&mut |l| without(l, &ending, false));
            }
        }
        self.ending.insert(kind, ending);
    }

    fn labels(&self, of: impl Fn((Kind, Kind)) -> bool) -> Vec<Label> {
        self.between
            .iter()
            .filter(|(pair, _)| of(**pair))
            .flat_map(|(_, tree)| tree.leaves().into_iter().cloned())
            .collect()
    }

    /// Leaves only the tags around the thinking: Ollama's parser reads them from the template.
    fn narrow_thinking(&mut self) {
        let (opening, closing) = (r"(?:<[^<>]+>|\[[^\[\]]+\])\s*$", r"^\s*(?:<[^<>]+>|\[[^\[\]]+\])");
        if let Some(heading) = self.heading.get(&Kind::Thinking).cloned()
            && let Some(Part::Lit(text)) = heading.last()
            && let Some(at) = regex::Regex::new(opening).ok().and_then(|re| re.find(text).map(|m| m.start()))
        {
            let mut rest = heading.clone();
            let tag = text[at..].to_owned();
            rest.pop();
            rest.push(Part::Lit(text[..at].to_owned()));
            let rest = join(rest);
            for (pair, tree) in &mut self.between {
                if pair.1 == Kind::Thinking {
                    *tree = tree.map(&mut |l| join(l.iter().chain(&rest).cloned().collect()));
                }
            }
            self.heading.insert(Kind::Thinking, vec![Part::Lit(tag)]);
        }
        if let Some(ending) = self.ending.get(&Kind::Thinking).cloned()
            && let Some(Part::Lit(text)) = ending.first()
            && let Some(at) = regex::Regex::new(closing).ok().and_then(|re| re.find(text).map(|m| m.end()))
        {
            let mut rest = ending.clone();
            let tag = text[..at].to_owned();
            rest[0] = Part::Lit(text[at..].to_owned());
            let rest = join(rest);
            for (pair, tree) in &mut self.between {
                if pair.0 == Kind::Thinking && !open_end(false, *pair) {
                    *tree = tree.map(&mut |l| join(rest.iter().chain(l).cloned().collect()));
                }
            }
            self.ending.insert(Kind::Thinking, vec![Part::Lit(tag)]);
        }
    }
}

/// Whether a pair's ending is left out: an answer at the very end is to be continued, and one with calls goes on.
fn open_end(calls_follow: bool, pair: (Kind, Kind)) -> bool {
    pair == (Kind::Answer, Kind::End)
        || pair == (Kind::Thinking, Kind::End)
        || calls_follow && pair == (Kind::Answer, Kind::Call)
}

/// The parts back to front, literals too, so that one function serves prefixes and suffixes.
fn reversed(parts: &[Part]) -> Label {
    parts
        .iter()
        .rev()
        .map(|p| match p {
            Part::Lit(text) => Part::Lit(text.chars().rev().collect()),
            other => other.clone(),
        })
        .collect()
}

/// The longest common beginning, cut where a reader would cut.
pub(super) fn common(labels: impl Iterator<Item = impl AsRef<[Part]>>, backwards: bool) -> Label {
    let mut labels = labels;
    let Some(first) = labels.next() else {
        return Vec::new();
    };
    let first: Label = first.as_ref().to_vec();
    let mut known = first.clone();
    let mut cut = false;
    for label in labels {
        let label = label.as_ref();
        let mut shared = Vec::new();
        for (n, (a, b)) in known.iter().zip(label).enumerate() {
            match (a, b) {
                (a, b) if a == b => shared.push(a.clone()),
                (Part::Lit(x), Part::Lit(y)) => {
                    let text = crate::ollama::stops::common_prefix(x, y);
                    if !text.is_empty() {
                        shared.push(Part::Lit(text.to_owned()));
                    }
                    // Cut inside of a literal, unless it was whole in what was known and nothing followed.
                    cut = cut && n + 1 == known.len() && text.len() == x.len()
                        || text.len() < x.len()
                        || text.len() < y.len();
                    break;
                }
                _ => break,
            }
        }
        known = shared;
    }
    if cut && let Some(Part::Lit(text)) = known.last_mut() {
        let at = boundary(text, backwards);
        text.truncate(at);
    }
    join_plain(known)
}

fn join_plain(parts: Label) -> Label {
    parts.into_iter().filter(|p| !matches!(p, Part::Lit(t) if t.is_empty())).collect()
}

/// The last place in a text where a marker or a line ends (or, read backwards, begins).
fn boundary(text: &str, backwards: bool) -> usize {
    let ends: &[char] = if backwards { &['<', '[', '\n'] } else { &['>', ']', '\n', ' '] };
    text.rfind(ends).map_or(0, |at| {
        let mut end = at + 1;
        // Read backwards, line breaks belong to what comes before them.
        if backwards && text[..end].ends_with('\n') {
            end -= 1;
        }
        end
    })
}

/// A label without the beginning that it is known to have.
pub(super) fn without(label: &[Part], beginning: &[Part], _backwards: bool) -> Label {
    let mut out = label.to_vec();
    for part in beginning {
        match (out.first_mut(), part) {
            (Some(Part::Lit(text)), Part::Lit(gone)) if text.starts_with(gone.as_str()) => {
                if text.len() == gone.len() {
                    out.remove(0);
                } else {
                    *text = text[gone.len()..].to_owned();
                }
            }
            (Some(a), b) if a == b => {
                out.remove(0);
            }
            _ => return label.to_vec(),
        }
    }
    out
}

/// The longest common ending of labels, cut where a reader would cut.
pub(super) fn common_ending(labels: &[&Label]) -> Label {
    reversed(&common(labels.iter().map(|l| reversed(l)), true))
}

/// A label without the ending that it is known to have.
pub(super) fn without_ending(label: &[Part], ending: &[Part]) -> Label {
    reversed(&without(&reversed(label), &reversed(ending), true))
}
