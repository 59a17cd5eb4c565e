//! From a module as the adapter names it to a tensor as the model's files name it.
//!
//! The two may differ by the wrapper classes around the language model (`model.language_model.` in one version
//! of a library, `language_model.model.` in another, nothing in a file of the bare model) and by modules that
//! were renamed between versions. A name is looked up as it is first; then under its *canonical* form, which
//! drops the wrappers and undoes the renames. A canonical name that fits two tensors is an error.

use std::collections::HashMap;

use crate::source::TensorSet;

/// Leading words of names that only say how the language model is wrapped.
const WRAPPERS: [&str; 9] =
    ["model", "language_model", "text_model", "transformer", "gpt_neox", "backbone", "llm", "thinker", "decoder"];

/// Modules that versions of transformers name differently: the old word and the new.
const RENAMED: [(&str, &str); 3] = [("block_sparse_moe", "mlp"), ("embed_out", "lm_head"), ("router", "gate")];

/// Names of input embeddings, the last word of the module.
const EMBEDDINGS: [&str; 9] = [
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "tok_embeddings",
    "embedding",
    "embeddings",
    "embed",
    "shared",
];

/// Names of output heads, the last word of the module.
const HEADS: [&str; 3] = ["lm_head", "embed_out", "output"];

/// Whether a module of this name is an input embedding.
pub(super) fn is_embedding(module: &str) -> bool {
    EMBEDDINGS.contains(&last_word(module))
}

/// Whether a module of this name is the output head.
pub fn is_head(module: &str) -> bool {
    HEADS.contains(&last_word(module)) && !module.contains(".layers.") && !module.contains(".h.")
}

/// The names of a model's input embedding and of its output head, where it has a tensor for each.
pub fn embedding_and_head(tensors: &TensorSet) -> Option<(String, String)> {
    let names = Names::new(tensors);
    Some((names.embedding()?.to_owned(), names.head()?.to_owned()))
}

/// The last word of a dotted name.
pub(super) fn last_word(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Drops wrapper words at the start and undoes renames.
pub(super) fn canonical(name: &str) -> String {
    let mut words = name.split('.').peekable();
    while words.peek().is_some_and(|w| WRAPPERS.contains(w)) {
        words.next();
    }
    let words: Vec<&str> = words.map(|w| RENAMED.iter().find(|(old, _)| *old == w).map_or(w, |(_, new)| new)).collect();
    words.join(".")
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The tensor's name.
    One(String),
    /// Two tensors that the name could mean.
    Several(String, String),
    /// No such tensor.
    Nothing,
}

/// The model's tensor names, by canonical name.
pub(super) struct Names {
    exact: HashMap<String, ()>,
    canonical: HashMap<String, Vec<String>>,
}

impl Names {
    /// Indexes the names of a model.
    pub(super) fn new(tensors: &TensorSet) -> Self {
        let mut names = Names { exact: HashMap::new(), canonical: HashMap::new() };
        for (name, _) in tensors.iter() {
            names.exact.insert(name.to_string(), ());
            names.canonical.entry(canonical(name)).or_default().push(name.to_string());
        }
        names
    }

    /// The tensor `leaf` (`weight`, `bias`) of `module`.
    pub(super) fn find(&self, module: &str, leaf: &str) -> Found {
        let name = if module.is_empty() { leaf.to_string() } else { format!("{module}.{leaf}") };
        self.find_tensor(&name)
    }

    /// The tensor that the adapter names `name`.
    pub(super) fn find_tensor(&self, name: &str) -> Found {
        if self.exact.contains_key(name) {
            return Found::One(name.to_string());
        }
        match self.canonical.get(&canonical(name)).map(Vec::as_slice) {
            Some([one]) => Found::One(one.clone()),
            Some([first, second, ..]) => Found::Several(first.clone(), second.clone()),
            _ => Found::Nothing,
        }
    }

    /// Modules of the model whose last word is that of `module`, to help with a name that was not found: their
    /// number and the first.
    pub(super) fn alike(&self, module: &str) -> Option<(usize, String)> {
        let last = last_word(module);
        let mut alike: Vec<&str> = self
            .exact
            .keys()
            .filter_map(|name| name.rsplit_once('.').map(|(m, _)| m))
            .filter(|m| last_word(m) == last)
            .collect();
        alike.sort_unstable();
        alike.dedup();
        alike.first().map(|first| (alike.len(), first.to_string()))
    }

    /// The input embedding's tensor, when there is exactly one.
    pub(super) fn embedding(&self) -> Option<&str> {
        self.only(is_embedding)
    }

    /// The output head's tensor, when there is exactly one.
    pub(super) fn head(&self) -> Option<&str> {
        self.only(is_head)
    }

    fn only(&self, test: impl Fn(&str) -> bool) -> Option<&str> {
        let mut found = self
            .exact
            .keys()
            .filter(|name| name.strip_suffix(".weight").is_some_and(|m| test(m) && !canonical(m).contains('.')));
        match (found.next(), found.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;
    use crate::shape::Shape;

    fn names(list: &[&str]) -> Names {
        let recipe = Recipe::constant(Shape::vector(1), vec![0.0]).unwrap();
        Names::new(&list.iter().map(|n| (n.to_string(), recipe.clone())).collect())
    }

    #[test]
    fn wrappers_of_the_language_model_are_seen_through() {
        let layer = "layers.0.self_attn.q_proj";
        for stored in ["", "model.", "language_model.model.", "model.language_model.", "transformer."] {
            let names = names(&[&format!("{stored}{layer}.weight"), "vision_tower.layers.0.self_attn.q_proj.weight"]);
            for asked in ["", "model.", "language_model.model.", "model.language_model."] {
                let found = names.find(&format!("{asked}{layer}"), "weight");
                assert_eq!(found, Found::One(format!("{stored}{layer}.weight")), "{asked} in {stored}");
            }
            assert_eq!(names.find("model.layers.1.self_attn.q_proj", "weight"), Found::Nothing);
        }
    }

    #[test]
    fn a_name_that_fits_twice_is_not_guessed() {
        let names = names(&["model.norm.weight", "language_model.model.norm.weight"]);
        assert_eq!(names.find("model.norm", "weight"), Found::One("model.norm.weight".into()));
        assert!(matches!(names.find("norm", "weight"), Found::Several(..)));
    }

    #[test]
    fn the_embedding_and_the_head_are_recognised() {
        let names = names(&["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.output.weight"]);
        assert_eq!(names.embedding(), Some("model.embed_tokens.weight"));
        assert_eq!(names.head(), Some("lm_head.weight"));
    }
}
