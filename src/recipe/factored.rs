//! Blocks whose matrix has a factor of its own: llama.cpp keeps it beside them, and multiplies when the model runs.

use std::sync::Arc;

use super::{Node, Recipe, RowMap, RowSource};

/// The numbers that belong to a matrix of blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockFactors {
    /// What the blocks are multiplied by.
    pub weight: f32,
    /// The scale of the matrix's inputs, 1 where none is known.
    pub input: f32,
    /// Whether the inputs are to keep 16 bits.
    pub wide_inputs: bool,
}

/// A tensor as blocks, and what belongs to each matrix of them.
pub struct Factored {
    /// The tensor without the factors.
    pub blocks: Recipe,
    /// One for a matrix; one for each of a stack.
    pub factors: Vec<BlockFactors>,
}

impl Recipe {
    /// The tensor as blocks and factors, where it is stored so and nothing changes its values. A matrix that is put
    /// together from parts has blocks only if one factor serves all of them.
    pub fn factored(&self) -> Option<Factored> {
        let (node, factors) = match &*self.node {
            Node::Source(tensor) => {
                let (blocks, factors): (Arc<dyn RowSource>, _) = tensor.factored()?;
                (Node::Source(blocks), vec![factors])
            }
            Node::Rows { input, map } => {
                let Factored { blocks, factors } = input.factored()?;
                // A choice of rows keeps the matrices of a stack apart only where it is the same within each.
                (factors.len() == 1 || matches!(map, RowMap::Within { .. })).then_some(())?;
                (Node::Rows { input: blocks, map: map.clone() }, factors)
            }
            Node::Concat { parts, starts } => {
                let parts = parts.iter().map(Recipe::factored).collect::<Option<Vec<_>>>()?;
                let stacked = self.shape.ndim() == parts.first()?.blocks.shape.ndim() + 1;
                let factors =
                    parts.iter().map(|p| <[_; 1]>::try_from(&p.factors[..]).ok()).collect::<Option<Vec<_>>>()?;
                let mut factors: Vec<BlockFactors> = factors.into_iter().flatten().collect();
                if !stacked {
                    factors.dedup();
                    (factors.len() == 1).then_some(())?;
                }
                (Node::Concat { parts: parts.into_iter().map(|p| p.blocks).collect(), starts: starts.clone() }, factors)
            }
            Node::Reshape(input) if input.shape.row_len() == self.shape.row_len() => {
                let Factored { blocks, factors } = input.factored()?;
                (Node::Reshape(blocks), factors)
            }
            _ => return None,
        };
        let blocks = Recipe { shape: self.shape.clone(), precision: self.precision, node: Arc::new(node) };
        Some(Factored { blocks, factors })
    }
}
