//! The vocabulary: constructors of recipes, each with its shape rule.

use std::sync::Arc;

use super::{Delta, Node, Recipe, RowSource, ShapeError};
use crate::quant::GgmlType;
use crate::shape::Shape;

/// Which input row an output row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowMap {
    /// `start + i * step`: a slice, or every other row.
    Stride {
        /// First input row.
        start: u64,
        /// Distance between input rows.
        step: u64,
    },
    /// The rotary layout of Llama: within each head of `head` rows, the halves are interleaved
    /// (`LlamaModel.permute` in llama.cpp's converter).
    Rope {
        /// Rows of one head, an even number.
        head: u64,
    },
    /// The way back from [`RowMap::Rope`].
    Unrope {
        /// Rows of one head, an even number.
        head: u64,
    },
    /// Parts of `rows` rows each, which lie one after another, row by row in turn: the first row of every part, then
    /// the second of every part.
    Interleave {
        /// Number of parts.
        parts: u64,
        /// Rows of each.
        rows: u64,
    },
    /// Of every `of` input rows, `take`: the one at `start` and those `step` apart (the same part of each matrix
    /// in a stack).
    Within {
        /// Rows of a matrix.
        of: u64,
        /// First row in each.
        start: u64,
        /// Distance between rows.
        step: u64,
        /// Rows from each.
        take: u64,
    },
    /// Any other choice: input row numbers.
    Gather(Arc<[u64]>),
}

impl RowMap {
    /// The input row of output row `i`.
    pub fn source(&self, i: u64) -> u64 {
        match self {
            RowMap::Stride { start, step } => start + i * step,
            RowMap::Rope { head } => {
                let (h, p) = (i / head, i % head);
                h * head + (p % 2) * (head / 2) + p / 2
            }
            RowMap::Unrope { head } => {
                let (h, p) = (i / head, i % head);
                h * head + p % (head / 2) * 2 + p / (head / 2)
            }
            RowMap::Interleave { parts, rows } => i % parts * rows + i / parts,
            RowMap::Within { of, start, step, take } => i / take * of + start + i % take * step,
            RowMap::Gather(rows) => rows[i as usize],
        }
    }
}

/// The same operation on every element. Each result is rounded to the recipe's precision where that is F16,
/// since a converter computes it in that type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// `x + c`
    Add(f32),
    /// `x * c`
    Scale(f32),
    /// `-exp(x)`
    NegExp,
    /// Rounded to the nearest number of this type, F16 or BF16, ties to even.
    Round(GgmlType),
}

impl Elementwise {
    pub(super) fn apply(self, x: f32) -> f32 {
        match self {
            Elementwise::Add(c) => x + c,
            Elementwise::Scale(c) => x * c,
            // Through f64, so that every platform rounds the same.
            Elementwise::NegExp => -(f64::from(x).exp() as f32),
            Elementwise::Round(GgmlType::BF16) => half::bf16::from_f32(x).to_f32(),
            Elementwise::Round(GgmlType::F16) => half::f16::from_f32(x).to_f32(),
            Elementwise::Round(_) => x,
        }
    }
}

impl Recipe {
    fn make(shape: Shape, precision: GgmlType, node: Node) -> Recipe {
        Recipe { shape, precision, node: Arc::new(node) }
    }

    fn unfit(&self, operation: &'static str, needs: impl Into<String>) -> ShapeError {
        ShapeError::Unfit { subject: format!("{self:?}"), shape: self.shape.clone(), operation, needs: needs.into() }
    }

    /// A stored tensor.
    pub fn source(tensor: Arc<dyn RowSource>) -> Recipe {
        Recipe::make(tensor.shape().clone(), tensor.precision(), Node::Source(tensor))
    }

    /// Values known when planning, always in F32.
    pub fn constant(shape: Shape, values: Vec<f32>) -> Result<Recipe, ShapeError> {
        let given = values.len() as u64;
        let recipe = Recipe::make(shape, GgmlType::F32, Node::Constant(values));
        if recipe.shape.elements() != given {
            return Err(recipe.unfit("constant", format!("{given} elements, as many as there are values")));
        }
        Ok(recipe)
    }

    /// The tensor with an adapter's changes, applied in order. The shape stays.
    pub fn merged(self, deltas: Vec<Arc<dyn Delta>>) -> Recipe {
        if deltas.is_empty() {
            return self;
        }
        Recipe::make(self.shape.clone(), self.precision, Node::Merge { base: self, deltas })
    }

    /// `count` rows along the first dimension of the tensor, starting at `start`.
    pub fn slice(self, start: u64, count: u64) -> Result<Recipe, ShapeError> {
        let Some((&first, rest)) = self.shape.dims().split_first() else {
            return Err(self.unfit("slice", "at least one dimension"));
        };
        if start.checked_add(count).is_none_or(|end| end > first) {
            return Err(self.unfit("slice", format!("a first dimension of at least {start} + {count}")));
        }
        let dims: Vec<u64> = [count].into_iter().chain(rest.iter().copied()).collect();
        let shape = Shape::new(dims).expect("no larger than the input");
        if rest.is_empty() {
            let precision = self.precision;
            return Ok(Recipe::make(shape, precision, Node::Columns { input: self, start }));
        }
        let per: u64 = rest[..rest.len() - 1].iter().product();
        let (precision, map) = (self.precision, RowMap::Stride { start: start * per, step: 1 });
        Ok(Recipe::make(shape, precision, Node::Rows { input: self, map }))
    }

    /// Rows chosen by `map`: `count` of them, as a matrix (or a vector, when the input is one and each element
    /// counts as a row).
    pub fn select(self, map: RowMap, count: u64) -> Result<Recipe, ShapeError> {
        if self.shape.ndim() == 1 {
            let n = self.shape.elements();
            return self.reshape(Shape::matrix(n, 1))?.select(map, count)?.reshape(Shape::vector(count));
        }
        let last = match &map {
            RowMap::Stride { start, step } => count.checked_sub(1).map(|n| start + n * step),
            RowMap::Rope { head } | RowMap::Unrope { head } => {
                if *head == 0 || !head.is_multiple_of(2) || !count.is_multiple_of(*head) {
                    return Err(self.unfit("rope permutation", format!("whole heads of {head} (even) rows")));
                }
                count.checked_sub(1)
            }
            RowMap::Interleave { parts, rows } => {
                if parts.checked_mul(*rows) != Some(count) {
                    return Err(self.unfit("interleaving", format!("{parts} x {rows} rows, not {count}")));
                }
                count.checked_sub(1)
            }
            RowMap::Within { of, start, step, take } => {
                let last = take.checked_sub(1).map(|n| start + n * step);
                if last.is_none_or(|last| last >= *of) || !count.is_multiple_of(*take) {
                    return Err(self.unfit("row choice", format!("{take} rows of every {of}, {count} in all")));
                }
                last.and_then(|last| Some((count / take).checked_sub(1)? * of + last))
            }
            RowMap::Gather(rows) => {
                if rows.len() as u64 != count {
                    return Err(self.unfit("row choice", format!("{count} row numbers, not {}", rows.len())));
                }
                rows.iter().copied().max()
            }
        };
        if last.is_some_and(|last| last >= self.shape.rows()) {
            return Err(self.unfit("row choice", format!("more than {} rows", last.unwrap_or(0))));
        }
        let shape = Shape::matrix(count, self.shape.row_len());
        let precision = self.precision;
        Ok(Recipe::make(shape, precision, Node::Rows { input: self, map }))
    }

    /// Llama's rotary row permutation over `heads` heads, for a weight `[heads * head, n]` or its bias.
    pub fn rope_permuted(self, heads: u64) -> Result<Recipe, ShapeError> {
        let (head, rows) = self.heads(heads)?;
        self.select(RowMap::Rope { head }, rows)
    }

    /// Undoes [`Recipe::rope_permuted`].
    pub fn rope_restored(self, heads: u64) -> Result<Recipe, ShapeError> {
        let (head, rows) = self.heads(heads)?;
        self.select(RowMap::Unrope { head }, rows)
    }

    /// Rows of each of so many equal heads, and of all.
    fn heads(&self, heads: u64) -> Result<(u64, u64), ShapeError> {
        let rows = if self.shape.ndim() == 1 { self.shape.elements() } else { self.shape.rows() };
        if heads == 0 || !rows.is_multiple_of(heads) {
            return Err(self.unfit("rope permutation", format!("rows in {heads} equal heads")));
        }
        Ok((rows / heads, rows))
    }

    /// Columns `start..start + count` of every row.
    pub fn columns(self, start: u64, count: u64) -> Result<Recipe, ShapeError> {
        if start.checked_add(count).is_none_or(|end| end > self.shape.row_len()) || self.shape.ndim() == 0 {
            return Err(self.unfit("column slice", format!("rows of at least {start} + {count}")));
        }
        let mut dims = self.shape.dims().to_vec();
        *dims.last_mut().expect("at least one dimension") = count;
        let shape = Shape::new(dims).expect("no larger than the input");
        let precision = self.precision;
        Ok(Recipe::make(shape, precision, Node::Columns { input: self, start }))
    }

    /// Tensors one after another along the first dimension; all others must agree.
    pub fn concat(parts: Vec<Recipe>) -> Result<Recipe, ShapeError> {
        let Some(first) = parts.first() else {
            return Recipe::constant(Shape::vector(0), Vec::new());
        };
        if first.shape.ndim() == 1 {
            let parts = parts
                .into_iter()
                .map(|p| {
                    let n = p.shape.elements();
                    p.reshape(Shape::matrix(n, 1))
                })
                .collect::<Result<Vec<_>, _>>()?;
            let joined = Recipe::concat(parts)?;
            let n = joined.shape.elements();
            return joined.reshape(Shape::vector(n));
        }
        let tail = first.shape.dims().get(1..).unwrap_or(&[]).to_vec();
        let mut length = 0u64;
        for p in &parts {
            if p.shape.ndim() == 0 || p.shape.dims()[1..] != tail[..] {
                return Err(p.unfit("concat", format!("all but the first dimension to be {tail:?}")));
            }
            length += p.shape.dims()[0];
        }
        let dims: Vec<u64> = [length].into_iter().chain(tail).collect();
        let shape = Shape::new(dims).ok_or_else(|| first.unfit("concat", "fewer than 2^64 elements in all"))?;
        Ok(Recipe::joined(shape, parts))
    }

    /// Equal tensors under a new first dimension: the experts of a layer.
    pub fn stack(parts: Vec<Recipe>) -> Result<Recipe, ShapeError> {
        let Some(first) = parts.first() else {
            return Recipe::constant(Shape::vector(0), Vec::new());
        };
        for p in &parts {
            if p.shape != first.shape {
                return Err(p.unfit("stack", format!("the shape of its siblings, {}", first.shape)));
            }
        }
        let dims: Vec<u64> = [parts.len() as u64].into_iter().chain(first.shape.dims().iter().copied()).collect();
        let shape = Shape::new(dims).ok_or_else(|| first.unfit("stack", "fewer than 2^64 elements in all"))?;
        Ok(Recipe::joined(shape, parts))
    }

    fn joined(shape: Shape, parts: Vec<Recipe>) -> Recipe {
        let mut starts = Vec::with_capacity(parts.len());
        let mut row = 0;
        for p in &parts {
            starts.push(row);
            row += p.shape.rows();
        }
        let precision = parts[0].precision;
        let precision = if parts.iter().all(|p| p.precision == precision) { precision } else { GgmlType::F32 };
        Recipe::make(shape, precision, Node::Concat { parts, starts })
    }

    /// The last two dimensions swapped.
    pub fn transposed(self) -> Result<Recipe, ShapeError> {
        let n = self.shape.ndim();
        if n < 2 {
            return Err(self.unfit("transpose", "at least two dimensions"));
        }
        if let Node::Transpose(inner) = &*self.node {
            return Ok(inner.clone());
        }
        let mut dims = self.shape.dims().to_vec();
        dims.swap(n - 1, n - 2);
        let shape = Shape::new(dims).expect("as many elements as the input");
        let precision = self.precision;
        Ok(Recipe::make(shape, precision, Node::Transpose(self)))
    }

    /// The same elements, in the same order, under another shape.
    pub fn reshape(self, shape: Shape) -> Result<Recipe, ShapeError> {
        if shape.elements() != self.shape.elements() {
            return Err(self.unfit("reshape", format!("as many elements as {shape}")));
        }
        if shape == self.shape {
            return Ok(self);
        }
        if let Node::Reshape(inner) = &*self.node {
            return inner.clone().reshape(shape);
        }
        let precision = self.precision;
        Ok(Recipe::make(shape, precision, Node::Reshape(self)))
    }

    /// The operation on every element.
    pub fn map(self, op: Elementwise) -> Recipe {
        let (shape, precision) = (self.shape.clone(), self.precision);
        Recipe::make(shape, precision, Node::Map { input: self, op })
    }
}
