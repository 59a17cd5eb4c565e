//! Decision trees: the smallest rule, over facts that a Go template can test, that explains what was seen.

use crate::ollama::chat::{Conversation, Role};

/// A fact about a place in a conversation that a Go template can test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Feature {
    /// The first message is a system prompt.
    HasSystem,
    /// Tools are on offer.
    HasTools,
    /// This message is the last.
    IsLast,
    /// Nothing but a system prompt stands before this message.
    IsFirst,
    /// This is the last message of the user.
    IsLastUser,
    /// The last message of the user comes before this one.
    AfterLastUser,
    /// The user asked for thinking.
    ThinkOn,
    /// The user asked for no thinking.
    ThinkOff,
    /// This message has thinking.
    ThisThinking,
    /// This message has calls.
    ThisCalls,
    /// This message has text.
    ThisContent,
    /// This message has several calls.
    ThisManyCalls,
    /// The message before has thinking.
    BeforeThinking,
    /// The message before has calls.
    BeforeCalls,
    /// The message before has text.
    BeforeContent,
    /// The last message is a tool's result.
    LastIsTool,
    /// The last message is the user's.
    LastIsUser,
    /// Some message is a tool's result.
    AnyTool,
    /// This message is at most the second, a system prompt not counted.
    AtMostSecond,
    /// The message before the one before is a tool's result.
    SecondBeforeTool,
    /// Some message before this one is a tool's result.
    ToolBefore,
    /// An answer without calls comes behind this message.
    AnswerFollows,
    /// This message's text ends with a line break.
    EndsLine,
}

/// All features, those preferred first that are about the whole conversation.
pub(super) const FEATURES: &[Feature] = &[
    Feature::HasSystem,
    Feature::HasTools,
    Feature::ThinkOn,
    Feature::ThinkOff,
    Feature::IsLast,
    Feature::IsLastUser,
    Feature::AfterLastUser,
    Feature::IsFirst,
    Feature::ThisThinking,
    Feature::ThisCalls,
    Feature::ThisContent,
    Feature::BeforeThinking,
    Feature::BeforeCalls,
    Feature::BeforeContent,
    Feature::LastIsTool,
    Feature::LastIsUser,
    Feature::AnyTool,
    Feature::AtMostSecond,
    Feature::ThisManyCalls,
    Feature::SecondBeforeTool,
    Feature::ToolBefore,
    Feature::AnswerFollows,
    Feature::EndsLine,
];

impl Feature {
    /// Whether it is the same at every message of a conversation.
    pub(super) fn is_global(self) -> bool {
        matches!(
            self,
            Feature::HasSystem
                | Feature::HasTools
                | Feature::ThinkOn
                | Feature::ThinkOff
                | Feature::LastIsTool
                | Feature::LastIsUser
                | Feature::AnyTool
        )
    }
}

/// The features that hold, one bit each.
pub(super) type Facts = u32;

/// The features at message `at` of a conversation; `at` is the number of messages for its end.
pub(super) fn facts(conversation: &Conversation, at: usize) -> Facts {
    let messages = &conversation.messages;
    let has_system = messages.first().is_some_and(|m| m.role == Role::System);
    let last_user = messages.iter().rposition(|m| m.role == Role::User);
    let this = messages.get(at);
    let before = at.checked_sub(1).and_then(|b| messages.get(b));
    let last = messages.last().map(|m| m.role);
    let has_thinking = |m: Option<&crate::ollama::chat::Message>| {
        m.is_some_and(|m| m.thinking.as_deref().is_some_and(|t| !t.is_empty()))
    };
    let mut bits = 0;
    let mut set = |feature: Feature, on: bool| {
        if on {
            bits |= 1 << feature as u8;
        }
    };
    set(Feature::HasSystem, has_system);
    set(Feature::HasTools, !conversation.tools.is_empty());
    set(Feature::IsLast, at + 1 == messages.len());
    set(Feature::IsFirst, at == usize::from(has_system));
    set(Feature::AtMostSecond, at <= usize::from(has_system) + 1);
    set(Feature::IsLastUser, Some(at) == last_user);
    set(Feature::AfterLastUser, last_user.is_none_or(|u| at > u));
    set(Feature::ThinkOn, conversation.think == Some(true));
    set(Feature::ThinkOff, conversation.think == Some(false));
    set(Feature::ThisThinking, has_thinking(this));
    set(Feature::ThisCalls, this.is_some_and(|m| !m.tool_calls.is_empty()));
    set(Feature::ThisManyCalls, this.is_some_and(|m| m.tool_calls.len() > 1));
    set(Feature::ThisContent, this.is_some_and(|m| !m.content.is_empty()));
    set(Feature::BeforeThinking, has_thinking(before));
    set(Feature::BeforeCalls, before.is_some_and(|m| !m.tool_calls.is_empty()));
    set(Feature::BeforeContent, before.is_some_and(|m| !m.content.is_empty()));
    set(Feature::LastIsTool, last == Some(Role::Tool));
    set(Feature::LastIsUser, last == Some(Role::User));
    let is_tool = |m: &crate::ollama::chat::Message| m.role == Role::Tool;
    let answers = |m: &crate::ollama::chat::Message| m.role == Role::Assistant && m.tool_calls.is_empty();
    set(Feature::SecondBeforeTool, at.checked_sub(2).and_then(|b| messages.get(b)).is_some_and(is_tool));
    set(Feature::ToolBefore, messages[..at].iter().any(is_tool));
    set(Feature::AnswerFollows, messages.iter().skip(at + 1).any(answers));
    set(Feature::EndsLine, this.is_some_and(|m| m.content.ends_with('\n')));
    set(Feature::AnyTool, messages.iter().any(|m| m.role == Role::Tool));
    bits
}

/// A question whose answer is one bit of some facts.
pub(super) trait Question: Copy + 'static {
    /// All questions, those preferred first that come first.
    const ALL: &'static [Self];
    /// The answer's bit.
    fn bit(self) -> Facts;
}

impl Question for Feature {
    const ALL: &'static [Self] = FEATURES;

    fn bit(self) -> Facts {
        1 << self as u8
    }
}

/// A decision tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tree<L, Q = Feature> {
    /// A decision.
    Leaf(L),
    /// A question; where it holds, and where it does not.
    Split(Q, Box<Tree<L, Q>>, Box<Tree<L, Q>>),
}

impl<L, Q: Question> Tree<L, Q> {
    /// The decision for these facts.
    pub(super) fn decide(&self, facts: Facts) -> &L {
        match self {
            Tree::Leaf(label) => label,
            Tree::Split(feature, yes, no) => {
                if facts & feature.bit() != 0 {
                    yes.decide(facts)
                } else {
                    no.decide(facts)
                }
            }
        }
    }

    /// Every decision, left to right.
    pub(super) fn leaves(&self) -> Vec<&L> {
        match self {
            Tree::Leaf(label) => vec![label],
            Tree::Split(_, yes, no) => {
                let mut out = yes.leaves();
                out.extend(no.leaves());
                out
            }
        }
    }

    /// The same questions with other decisions.
    pub(super) fn map<M>(&self, f: &mut impl FnMut(&L) -> M) -> Tree<M, Q> {
        match self {
            Tree::Leaf(label) => Tree::Leaf(f(label)),
            Tree::Split(feature, yes, no) => {
                let yes = yes.map(f);
                Tree::Split(*feature, Box::new(yes), Box::new(no.map(f)))
            }
        }
    }

    /// The features that are asked.
    pub(super) fn features(&self) -> Vec<Q> {
        match self {
            Tree::Leaf(_) => Vec::new(),
            Tree::Split(feature, yes, no) => {
                let mut out = vec![*feature];
                out.extend(yes.features());
                out.extend(no.features());
                out
            }
        }
    }
}

/// Deepest tree that is tried; the study of real templates never needed more than four questions.
const MAX_DEPTH: u32 = 5;

/// The smallest tree that explains the samples; `None` if the features cannot tell them apart.
pub(super) fn learn<L: Clone + Eq, Q: Question>(samples: &[(Facts, L)]) -> Option<Tree<L, Q>> {
    let mut labels: Vec<&L> = Vec::new();
    let mut unique: Vec<(Facts, usize)> = Vec::new();
    for (facts, label) in samples {
        let n = labels.iter().position(|l| *l == label).unwrap_or_else(|| {
            labels.push(label);
            labels.len() - 1
        });
        if !unique.contains(&(*facts, n)) {
            unique.push((*facts, n));
        }
    }
    let mut sorted = unique.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|w| w[0].0 == w[1].0) {
        return None; // the same facts led to two decisions
    }
    (0..=MAX_DEPTH).find_map(|depth| search(&unique, depth)).map(|t| t.map(&mut |n: &usize| labels[*n].clone()))
}

/// A small tree that explains the samples, found by asking first what tells most: for many labels, where trying all
/// trees would take too long. `None` if the features cannot tell them apart.
pub(super) fn learn_greedily<L: Clone + Eq, Q: Question>(samples: &[(Facts, L)]) -> Option<Tree<L, Q>> {
    let mut labels: Vec<&L> = Vec::new();
    let mut unique: Vec<(Facts, usize)> = samples
        .iter()
        .map(|(facts, label)| {
            let n = labels.iter().position(|l| *l == label).unwrap_or_else(|| {
                labels.push(label);
                labels.len() - 1
            });
            (*facts, n)
        })
        .collect();
    unique.sort_unstable();
    unique.dedup();
    grow(&unique).map(|tree| tree.map(&mut |n: &usize| labels[*n].clone()))
}

fn grow<Q: Question>(samples: &[(Facts, usize)]) -> Option<Tree<usize, Q>> {
    let first = samples.first()?.1;
    if samples.iter().all(|s| s.1 == first) {
        return Some(Tree::Leaf(first));
    }
    let mut best: Option<(f64, Q)> = None;
    for &question in Q::ALL {
        let (yes, no): (Vec<_>, Vec<_>) = samples.iter().partition(|s| s.0 & question.bit() != 0);
        if yes.is_empty() || no.is_empty() {
            continue;
        }
        let left = disorder(&yes) + disorder(&no);
        if best.is_none_or(|(least, _)| left < least) {
            best = Some((left, question));
        }
    }
    let (_, question) = best?;
    let (yes, no): (Vec<_>, Vec<_>) = samples.iter().partition(|s| s.0 & question.bit() != 0);
    Some(Tree::Split(question, Box::new(grow(&yes)?), Box::new(grow(&no)?)))
}

/// How many bits the labels of samples need together.
fn disorder(samples: &[(Facts, usize)]) -> f64 {
    let mut counts: Vec<(usize, f64)> = Vec::new();
    for (_, label) in samples {
        match counts.iter_mut().find(|c| c.0 == *label) {
            Some(count) => count.1 += 1.0,
            None => counts.push((*label, 1.0)),
        }
    }
    let all = samples.len() as f64;
    counts.iter().map(|(_, n)| n * (all / n).log2()).sum()
}

fn size<Q>(tree: &Tree<usize, Q>) -> usize {
    match tree {
        Tree::Leaf(_) => 1,
        Tree::Split(_, yes, no) => size(yes) + size(no),
    }
}

fn search<Q: Question>(samples: &[(Facts, usize)], depth: u32) -> Option<Tree<usize, Q>> {
    let first = samples.first()?.1;
    if samples.iter().all(|s| s.1 == first) {
        return Some(Tree::Leaf(first));
    }
    let mut labels: Vec<usize> = samples.iter().map(|s| s.1).collect();
    labels.sort_unstable();
    labels.dedup();
    if labels.len() > 1 << depth {
        return None;
    }
    let mut best: Option<Tree<usize, Q>> = None;
    for &feature in Q::ALL {
        let bit = feature.bit();
        let (yes, no): (Vec<_>, Vec<_>) = samples.iter().partition(|s| s.0 & bit != 0);
        if yes.is_empty() || no.is_empty() {
            continue;
        }
        let (Some(yes), Some(no)) = (search(&yes, depth - 1), search(&no, depth - 1)) else {
            continue;
        };
        let tree = Tree::Split(feature, Box::new(yes), Box::new(no));
        if best.as_ref().is_none_or(|b| size(&tree) < size(b)) {
            best = Some(tree);
        }
        if best.as_ref().is_some_and(|b| size(b) == labels.len()) {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_shortest_rule() {
        let bit = |f: Feature| 1 << f as u8;
        let samples = vec![
            (bit(Feature::HasSystem), "a"),
            (bit(Feature::HasSystem) | bit(Feature::IsLast), "a"),
            (bit(Feature::IsLast), "b"),
            (0, "c"),
        ];
        let tree: Tree<&str> = learn(&samples).unwrap();
        for (facts, label) in &samples {
            assert_eq!(tree.decide(*facts), label);
        }
        assert_eq!(tree.leaves().len(), 3);
        assert!(learn::<i32, Feature>(&[(0, 1), (0, 2)]).is_none());
        assert!(learn_greedily::<i32, Feature>(&[(0, 1), (0, 2)]).is_none());
        let greedy: Tree<&str> = learn_greedily(&samples).unwrap();
        assert!(samples.iter().all(|(facts, label)| greedy.decide(*facts) == label));
    }
}
