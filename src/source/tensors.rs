//! Named tensors in file order: what a source offers, an adapter changes, and an architecture claims.

use indexmap::IndexMap;

use crate::recipe::Recipe;

/// The tensors of a model under their own names, in the order in which a converter meets them: shards in
/// sorted file-name order, and within a shard by name.
///
/// An adapter changes entries in place ([`TensorSet::set`] with a merged recipe) or replaces them; an
/// architecture takes what it understands, and what is left over is an error that names it.
#[derive(Clone, Debug, Default)]
pub struct TensorSet(IndexMap<String, Recipe>);

impl TensorSet {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// The recipe of a tensor.
    pub fn get(&self, name: &str) -> Option<&Recipe> {
        self.0.get(name)
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Adds a tensor at the end, or replaces the recipe of one that is there, in its place.
    pub fn set(&mut self, name: impl Into<String>, recipe: Recipe) {
        self.0.insert(name.into(), recipe);
    }

    /// Adds a tensor that is new to the model where a file that holds it too has it: by its name in the last shard, as
    /// far as names tell shards apart.
    pub fn insert_by_name(&mut self, name: impl Into<String>, recipe: Recipe) {
        let name = name.into();
        let names: Vec<&String> = self.0.keys().collect();
        let shard = names.windows(2).rposition(|pair| pair[1] < pair[0]).map_or(0, |last| last + 1);
        let at = names[shard..].iter().position(|other| **other > name).map_or(names.len(), |i| shard + i);
        self.0.shift_insert(at, name, recipe);
    }

    /// Removes a tensor; the others keep their order.
    pub fn remove(&mut self, name: &str) -> Option<Recipe> {
        self.0.shift_remove(name)
    }

    /// Names and recipes in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Recipe)> {
        self.0.iter().map(|(n, r)| (n.as_str(), r))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, Recipe)> for TensorSet {
    fn from_iter<I: IntoIterator<Item = (String, Recipe)>>(items: I) -> Self {
        TensorSet(items.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::quant::GgmlType;
    use crate::recipe::{ReadError, RowSource, Scratch};
    use crate::shape::Shape;

    struct Nothing(Shape);

    impl RowSource for Nothing {
        fn shape(&self) -> &Shape {
            &self.0
        }

        fn precision(&self) -> GgmlType {
            GgmlType::F32
        }

        fn read_rows(&self, _: Range<u64>, _: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
            Ok(())
        }

        fn describe(&self) -> String {
            String::new()
        }
    }

    fn nothing() -> Recipe {
        Recipe::source(Arc::new(Nothing(Shape::matrix(1, 1))))
    }

    fn inserted(names: &[&str], name: &str) -> Vec<String> {
        let mut set: TensorSet = names.iter().map(|n| (n.to_string(), nothing())).collect();
        set.insert_by_name(name, nothing());
        set.iter().map(|(n, _)| n.to_string()).collect()
    }

    #[test]
    fn a_new_tensor_stands_by_its_name_in_the_last_shard() {
        assert_eq!(inserted(&["model.a", "model.b"], "lm_head"), ["lm_head", "model.a", "model.b"]);
        assert_eq!(inserted(&["a", "c"], "b"), ["a", "b", "c"]);
        assert_eq!(inserted(&["a", "c"], "d"), ["a", "c", "d"]);
        assert_eq!(inserted(&["a", "m", "b", "d"], "c"), ["a", "m", "b", "c", "d"]);
        assert_eq!(inserted(&["x", "n", "m"], "a"), ["x", "n", "a", "m"]);
        assert_eq!(inserted(&[], "a"), ["a"]);
    }
}
