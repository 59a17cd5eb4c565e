//! The change inside a merged recipe as products of small matrices: `scale * B @ A`, under the arrangement that the
//! recipe makes of the tensor.
//!
//! Every word of the vocabulary acts on a product through its factors: what moves rows moves rows of `B`, what
//! chooses columns chooses columns of `A`, a transpose swaps them, a stack stacks them. So the factors of an
//! adapter go the way of the weights that they change, and no second description of any architecture is needed.

use super::{Elementwise, Node, Recipe, RowMap, ShapeError};
use crate::quant::GgmlType;
use crate::shape::Shape;

/// `scale * b @ a`, for a matrix or for each matrix of a stack.
#[derive(Clone, Debug)]
pub struct Term {
    /// `[rank, columns]`, or `[matrices, rank, columns]`.
    pub a: Recipe,
    /// `[rows, rank]`, or `[matrices, rows, rank]`.
    pub b: Recipe,
    /// The factor of the product.
    pub scale: f64,
}

impl Term {
    /// The rank.
    pub fn rank(&self) -> u64 {
        self.b.shape().row_len()
    }

    fn is_stack(&self) -> bool {
        self.b.shape().ndim() > 2
    }
}

/// Why a recipe's change is no sum of products.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotLowRank {
    /// An adapter's change is of another form.
    #[error("{change} is no product of two small matrices")]
    Change {
        /// The adapter and the module.
        change: String,
    },
    /// The arrangement does not act on factors.
    #[error("its values are rearranged ({how}), which does not act on factors")]
    Arrangement {
        /// The word, in words.
        how: String,
    },
    /// Shapes do not fit.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

impl Recipe {
    /// What merging adds to this recipe's result, as a sum of products; empty where nothing is merged in it.
    ///
    /// # Errors
    /// A change of another form, and an arrangement that mixes rows with columns.
    pub fn low_rank(&self) -> Result<Vec<Term>, NotLowRank> {
        match &*self.node {
            Node::Source(_) | Node::Constant(_) => Ok(Vec::new()),
            Node::Merge { base, deltas } => {
                let mut terms = base.low_rank()?;
                for delta in deltas {
                    let more = delta.terms(base).ok_or_else(|| NotLowRank::Change { change: delta.describe() })?;
                    terms.extend(more);
                }
                Ok(terms)
            }
            Node::Rows { input, map } => each(input, |term| rows(term, map, input, &self.shape)),
            Node::Columns { input, start } => {
                each(input, |t| Ok(Term { a: t.a.columns(*start, self.shape.row_len())?, ..t }))
            }
            Node::Transpose(input) => {
                each(input, |t| Ok(Term { a: t.b.transposed()?, b: t.a.transposed()?, scale: t.scale }))
            }
            Node::Map { input, op } => each(input, |t| match op {
                Elementwise::Add(_) => Ok(t),
                Elementwise::Scale(c) => Ok(Term { scale: t.scale * f64::from(*c), ..t }),
                Elementwise::NegExp | Elementwise::Round(_) => {
                    Err(NotLowRank::Arrangement { how: format!("{op:?} of each element") })
                }
            }),
            Node::Reshape(input) => each(input, |t| reshape(t, &input.shape, &self.shape)),
            Node::Concat { parts, .. } => concat(parts, &self.shape),
        }
    }
}

fn each(input: &Recipe, f: impl Fn(Term) -> Result<Term, NotLowRank>) -> Result<Vec<Term>, NotLowRank> {
    input.low_rank()?.into_iter().map(f).collect()
}

/// Rows of the product are rows of `b`; of a stack only whole matrices, or the same rows of each.
fn rows(term: Term, map: &RowMap, input: &Recipe, shape: &Shape) -> Result<Term, NotLowRank> {
    let count = shape.rows();
    if !term.is_stack() {
        return Ok(Term { b: term.b.select(map.clone(), count)?, ..term });
    }
    let dims = input.shape.dims();
    let height = dims[dims.len() - 2];
    match map {
        RowMap::Within { of, take, .. } if *of == height && *take > 0 => {
            let matrices = count / take;
            let b = term.b.clone().select(map.clone(), count)?;
            Ok(Term { b: b.reshape(stack_shape(matrices, *take, term.rank())?)?, ..term })
        }
        RowMap::Stride { start, step: 1 }
            if height > 0 && start.is_multiple_of(height) && count.is_multiple_of(height) =>
        {
            let (first, matrices) = (start / height, count / height);
            Ok(Term { a: term.a.slice(first, matrices)?, b: term.b.slice(first, matrices)?, ..term })
        }
        _ => Err(NotLowRank::Arrangement { how: format!("{map:?} of a stack") }),
    }
}

/// A reshape that keeps the rows' length only regroups rows: those of one matrix as a stack of matrices that share
/// `a`, or back.
fn reshape(term: Term, from: &Shape, to: &Shape) -> Result<Term, NotLowRank> {
    let unfit = || NotLowRank::Arrangement { how: format!("{from} to {to}") };
    if from.row_len() != to.row_len() || to.ndim() < 2 {
        return Err(unfit());
    }
    let rank = term.rank();
    let squeezed: Vec<u64> = to.dims().iter().copied().take(to.ndim() - 2).filter(|d| *d != 1).collect();
    let height = to.dims()[to.ndim() - 2];
    match (term.is_stack(), squeezed.as_slice()) {
        (false, []) => Ok(Term { b: term.b.reshape(Shape::matrix(height, rank))?, ..term }),
        (false, [matrices]) => {
            let a = Recipe::stack(vec![term.a; *matrices as usize])?;
            Ok(Term { a, b: term.b.reshape(stack_shape(*matrices, height, rank)?)?, scale: term.scale })
        }
        (true, [matrices]) if *matrices == term.b.shape().dims()[0] => Ok(term),
        (true, []) if term.b.shape().dims()[0] == 1 => {
            let columns = term.a.shape().row_len();
            let (a, b) = (term.a.reshape(Shape::matrix(rank, columns))?, term.b.reshape(Shape::matrix(height, rank))?);
            Ok(Term { a, b, scale: term.scale })
        }
        _ => Err(unfit()),
    }
}

/// Tensors one under another, or stacked under a new first dimension.
fn concat(parts: &[Recipe], shape: &Shape) -> Result<Vec<Term>, NotLowRank> {
    let terms = parts.iter().map(Recipe::low_rank).collect::<Result<Vec<_>, _>>()?;
    if terms.iter().all(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let stacked = parts.iter().all(|p| p.shape().ndim() == 2) && shape.ndim() == 3;
    if !stacked && parts.iter().any(|p| p.shape().ndim() > 2) {
        return join_stacks(parts, terms);
    }
    if stacked { stack(parts, terms) } else { blocks(parts, terms) }
}

/// The members of a stack: each one's sum becomes one product, of the largest rank among them.
fn stack(parts: &[Recipe], terms: Vec<Vec<Term>>) -> Result<Vec<Term>, NotLowRank> {
    let rank = terms.iter().map(|t| t.iter().map(Term::rank).sum()).max().unwrap_or(0);
    let (mut a, mut b) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
    let scale = common_scale(terms.iter().flatten());
    for (part, terms) in parts.iter().zip(terms) {
        let one = sum(terms, scale, (part.shape().rows(), part.shape().row_len()), rank)?;
        a.push(one.a);
        b.push(one.b);
    }
    Ok(vec![Term { a: Recipe::stack(a)?, b: Recipe::stack(b)?, scale }])
}

/// Stacks one after another: all must be changed in the same rank, or not at all.
fn join_stacks(parts: &[Recipe], terms: Vec<Vec<Term>>) -> Result<Vec<Term>, NotLowRank> {
    let how = || NotLowRank::Arrangement { how: "stacks of experts, joined".into() };
    let rank = terms.iter().flatten().map(Term::rank).max().unwrap_or(0);
    let scale = common_scale(terms.iter().flatten());
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (part, terms) in parts.iter().zip(terms) {
        let [count, rows, cols] = *part.shape().dims() else { return Err(how()) };
        match terms.as_slice() {
            [] => {
                a.push(zeros(stack_shape(count, rank, cols)?)?);
                b.push(zeros(stack_shape(count, rows, rank)?)?);
            }
            [one] if one.rank() == rank => {
                a.push(one.a.clone());
                b.push(scaled(one.b.clone(), one.scale / scale));
            }
            _ => return Err(how()),
        }
    }
    Ok(vec![Term { a: Recipe::concat(a)?, b: Recipe::concat(b)?, scale }])
}

/// Matrices one under another: each part's product keeps its `a`, and `b` is zero outside its rows.
fn blocks(parts: &[Recipe], terms: Vec<Vec<Term>>) -> Result<Vec<Term>, NotLowRank> {
    let heights: Vec<u64> = parts.iter().map(|p| p.shape().rows()).collect();
    let mut all: Vec<Term> = Vec::new();
    for (i, terms) in terms.into_iter().enumerate() {
        for term in terms {
            let rank = term.rank();
            let column = |b: Recipe| -> Result<Recipe, NotLowRank> {
                let mut column = Vec::with_capacity(heights.len());
                for (j, height) in heights.iter().enumerate() {
                    column.push(if i == j { b.clone() } else { zeros(Shape::matrix(*height, rank))? });
                }
                Ok(Recipe::concat(column)?)
            };
            all.push(Term { b: column(term.b)?, a: term.a, scale: term.scale });
        }
    }
    Ok(all)
}

/// The scale of the first term, 1 where there is none.
fn common_scale<'a>(mut terms: impl Iterator<Item = &'a Term>) -> f64 {
    terms.next().map_or(1.0, |t| t.scale)
}

/// A sum of products as one, `scale * b @ a` of exactly rank `rank`, for a matrix of this size: the factors side by
/// side, filled up with zeros.
fn sum(terms: Vec<Term>, scale: f64, (rows, cols): (u64, u64), rank: u64) -> Result<Term, NotLowRank> {
    let missing = rank - terms.iter().map(Term::rank).sum::<u64>();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for term in terms {
        b.push(scaled(term.b, term.scale / scale).transposed()?);
        a.push(term.a);
    }
    if missing > 0 {
        a.push(zeros(Shape::matrix(missing, cols))?);
        b.push(zeros(Shape::matrix(missing, rows))?);
    }
    if a.len() == 1 {
        return Ok(Term { a: a.remove(0), b: b.remove(0).transposed()?, scale });
    }
    Ok(Term { a: Recipe::concat(a)?, b: Recipe::concat(b)?.transposed()?, scale })
}

impl Term {
    /// A sum of products as one of this scale: the factors side by side, each `b` times its own scale over the
    /// common one. One product whose scale is the common one keeps its factors as they are.
    ///
    /// # Errors
    /// Stacks of different size.
    pub fn sum(terms: Vec<Term>, scale: f64) -> Result<Term, NotLowRank> {
        if let [one] = terms.as_slice() {
            return Ok(Term { a: one.a.clone(), b: scaled(one.b.clone(), one.scale / scale), scale });
        }
        let Some(first) = terms.first().filter(|t| t.is_stack()) else {
            let (rows, cols) = terms.first().map_or((0, 0), |t| (t.b.shape().rows(), t.a.shape().row_len()));
            let rank = terms.iter().map(Term::rank).sum();
            return sum(terms, scale, (rows, cols), rank);
        };
        let matrices = first.b.shape().dims()[0];
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for i in 0..matrices {
            let mut members = Vec::with_capacity(terms.len());
            for t in &terms {
                let (rank, rows, cols) = (t.rank(), t.b.shape().dims()[1], t.a.shape().row_len());
                members.push(Term {
                    a: t.a.clone().slice(i, 1)?.reshape(Shape::matrix(rank, cols))?,
                    b: t.b.clone().slice(i, 1)?.reshape(Shape::matrix(rows, rank))?,
                    scale: t.scale,
                });
            }
            let one = Term::sum(members, scale)?;
            a.push(one.a);
            b.push(one.b);
        }
        Ok(Term { a: Recipe::stack(a)?, b: Recipe::stack(b)?, scale })
    }
}

/// `recipe * factor`, in f32; a factor that rounds to 1 changes nothing.
fn scaled(recipe: Recipe, factor: f64) -> Recipe {
    if factor as f32 == 1.0 {
        return recipe;
    }
    recipe.with_precision(GgmlType::F32).map(Elementwise::Scale(factor as f32))
}

fn zeros(shape: Shape) -> Result<Recipe, ShapeError> {
    // A row of zeros repeated takes no memory, whatever the size.
    let row = Recipe::constant(Shape::matrix(1, shape.row_len()), vec![0.0; shape.row_len() as usize])?;
    let count = shape.rows();
    row.select(RowMap::Stride { start: 0, step: 0 }, count)?.reshape(shape)
}

fn stack_shape(matrices: u64, rows: u64, cols: u64) -> Result<Shape, NotLowRank> {
    Shape::new([matrices, rows, cols])
        .ok_or_else(|| NotLowRank::Arrangement { how: format!("a stack of {matrices} x {rows} x {cols}") })
}
