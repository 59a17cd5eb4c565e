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
