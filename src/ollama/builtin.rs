//! Ollama's built-in renderers and parsers: which names there are, and from which release on.
//!
//! From the release tags of Ollama's repository up to 0.33: the names that `model/renderers/renderer.go` and
//! `model/parsers/parsers.go` know. Names that a release took back are left out.

/// A name and the first release that knows it.
pub(super) type Name = (&'static str, [u32; 3]);

const RENDERERS: [Name; 26] = [
    ("qwen3-coder", [0, 12, 0]),
    ("qwen3-vl-instruct", [0, 12, 6]),
    ("qwen3-vl-thinking", [0, 12, 7]),
    ("cogito", [0, 13, 0]),
    ("olmo3", [0, 13, 3]),
    ("olmo3-think", [0, 13, 3]),
    ("nemotron-3-nano", [0, 13, 4]),
    ("olmo3-32b-think", [0, 13, 4]),
    ("olmo3.1", [0, 13, 4]),
    ("deepseek3.1", [0, 13, 5]),
    ("functiongemma", [0, 13, 5]),
    ("glm-4.7", [0, 14, 3]),
    ("lfm2", [0, 14, 3]),
    ("lfm2-thinking", [0, 14, 3]),
    ("glm-ocr", [0, 15, 5]),
    ("qwen3.5", [0, 17, 1]),
    ("gemma4", [0, 20, 0]),
    ("gemma4-large", [0, 21, 0]),
    ("gemma4-small", [0, 21, 0]),
    ("laguna", [0, 22, 0]),
    ("cohere", [0, 30, 10]),
    ("ornith", [0, 30, 11]),
    ("poolside-v1", [0, 32, 3]),
    ("glimmer", [0, 32, 7]),
    ("nemotron-3.5-nano", [0, 32, 9]),
    ("qwen3.8", [0, 32, 12]),
];

const PARSERS: [Name; 27] = [
    ("passthrough", [0, 12, 0]),
    ("qwen3-coder", [0, 12, 0]),
    ("harmony", [0, 12, 1]),
    ("qwen3-vl-instruct", [0, 12, 6]),
    ("qwen3-vl-thinking", [0, 12, 7]),
    ("cogito", [0, 13, 1]),
    ("ministral", [0, 13, 1]),
    ("olmo3", [0, 13, 3]),
    ("olmo3-think", [0, 13, 3]),
    ("nemotron-3-nano", [0, 13, 4]),
    ("deepseek3", [0, 13, 5]),
    ("functiongemma", [0, 13, 5]),
    ("glm-4.7", [0, 14, 3]),
    ("lfm2", [0, 14, 3]),
    ("lfm2-thinking", [0, 14, 3]),
    ("glm-ocr", [0, 15, 5]),
    ("qwen3", [0, 16, 3]),
    ("qwen3-thinking", [0, 16, 3]),
    ("qwen3.5", [0, 17, 1]),
    ("gemma4", [0, 20, 0]),
    ("gemma4-no-thinking", [0, 20, 0]),
    ("laguna", [0, 22, 0]),
    ("cohere", [0, 30, 10]),
    ("ornith", [0, 30, 11]),
    ("poolside-v1", [0, 32, 3]),
    ("glimmer", [0, 32, 7]),
    ("nemotron-3.5-nano", [0, 32, 9]),
];

/// Which of the two a name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Builtin {
    /// `RENDERER`: makes the prompt, in place of a TEMPLATE.
    Renderer,
    /// `PARSER`: takes an answer apart.
    Parser,
}

impl Builtin {
    /// The command's name.
    pub(super) fn command(self) -> &'static str {
        match self {
            Builtin::Renderer => "RENDERER",
            Builtin::Parser => "PARSER",
        }
    }

    /// The first release that knows a name; `None` if none up to 0.33 does.
    pub(super) fn since(self, name: &str) -> Option<[u32; 3]> {
        let list: &[Name] = match self {
            Builtin::Renderer => &RENDERERS,
            Builtin::Parser => &PARSERS,
        };
        list.iter().find(|(known, _)| *known == name).map(|(_, version)| *version)
    }
}

/// Every parser and the first release that knows it.
pub(super) fn parsers() -> impl Iterator<Item = Name> {
    PARSERS.into_iter()
}

/// A version's three numbers; what is not there counts as 0.
pub(super) fn version(text: &str) -> [u32; 3] {
    let core = text.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(|n| n.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_versions() {
        assert_eq!(Builtin::Renderer.since("gemma4"), Some([0, 20, 0]));
        assert_eq!(Builtin::Renderer.since("harmony"), None);
        assert_eq!(Builtin::Parser.since("harmony"), Some([0, 12, 1]));
        assert!(version("v0.14") > version("0.13.9-rc1"));
    }
}
