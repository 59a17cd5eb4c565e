//! GraLoRA (arXiv:2505.20355): a low-rank product for every block of a grid of `k × k`, and perhaps one for the whole.
//!
//! The file holds `A` `[k, in / k, r]` and `B` `[k, r, out / k]`. With `s = r / k`, block `(q, n)` of the delta, rows
//! `q` and columns `n`, is `B[q, n s .. n s + s]ᵀ @ A[n, :, q s .. q s + s]ᵀ`; a hybrid adds `B_general @ A_general`.
//! The scale is `alpha / (r + hybrid_r)`. So the rows `q` of the delta are one product of rank `r`, in which row
//! `n s + i` of the right factor is zero outside the columns `n`.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterError;
use super::change::{Addend, Effect};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit};
use super::experts::ExpertDeltas;
use super::lowrank::Factors;
use super::passes::Squares;
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch, Term};
use crate::shape::Shape;

/// PEFT's value of `alpha` where the config has none.
const DEFAULT_ALPHA: f64 = 64.0;

/// The right factor of the rows `q`: `[r, in]`.
struct Spread {
    /// `[k * in / k, r]`
    a: Recipe,
    /// The rows of blocks whose it is.
    q: usize,
    /// Blocks along each side.
    k: usize,
    shape: Shape,
}

impl RowSource for Spread {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.a.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let (rank, inputs) = (self.shape.rows() as usize, self.shape.row_len() as usize);
        let (wide, part) = (inputs / self.k, rank / self.k);
        let mut stored = scratch.take_floats(inputs * rank);
        let read = self.a.rows(0..inputs as u64, &mut stored, scratch);
        out.fill(0.0);
        for (row, out) in rows.zip(out.chunks_exact_mut(inputs)) {
            let (n, i) = (row as usize / part, row as usize % part);
            let from = stored[n * wide * rank..].iter().skip(self.q * part + i).step_by(rank);
            out[n * wide..(n + 1) * wide].iter_mut().zip(from).for_each(|(v, a)| *v = *a);
        }
        scratch.give_floats(stored);
        read
    }

    fn describe(&self) -> String {
        format!("{:?}", self.a)
    }
}

/// Plans GraLoRA.
pub(super) fn gralora(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let a = module.need("gralora_A", "other parameters", cx.label)?;
    let b = module.need("gralora_B", "gralora_A", cx.label)?;
    let general = match module.take("gralora_A_general") {
        Some(a) => Some((a, module.need("gralora_B_general", "gralora_A_general", cx.label)?)),
        None => None,
    };
    let weight = cx.weight(&module.name, &a)?;
    let &[k, wide, rank] = a.dims() else { return Err(cx.mismatch(&a, &weight.target, "a stack of matrices")) };
    if k == 0 || k * wide != weight.inputs || rank == 0 || rank % k != 0 || weight.outputs % k != 0 {
        return Err(cx.mismatch(&a, &weight.target, format!("[k, {} / k, a multiple of k]", weight.inputs)));
    }
    let tall = weight.outputs / k;
    cx.expect(&b, &weight.target, &[k, rank, tall])?;
    if let Some((a, b)) = &general {
        let hybrid = a.dims().first().copied().unwrap_or(0);
        cx.expect(a, &weight.target, &[hybrid, weight.inputs])?;
        cx.expect(b, &weight.target, &[weight.outputs, hybrid])?;
    }
    let hybrid = general.as_ref().map_or(0, |(a, _)| a.dims()[0]);
    let alpha = cx.config.number("alpha")?.unwrap_or(DEFAULT_ALPHA);
    let scale = alpha / (rank + hybrid) as f64;
    let stored = a.recipe.clone().reshape(Shape::matrix(weight.inputs, rank))?;
    let mut products = Vec::with_capacity(k as usize);
    for q in 0..k {
        let shape = Shape::matrix(rank, weight.inputs);
        let mut right = Recipe::source(Arc::new(Spread { a: stored.clone(), q: q as usize, k: k as usize, shape }));
        let mut left = b.recipe.clone().slice(q, 1)?.reshape(Shape::matrix(rank, tall))?;
        if let Some((a, b)) = &general {
            right = Recipe::concat(vec![right, a.recipe.clone()])?;
            left = Recipe::concat(vec![left, b.recipe.clone().slice(q * tall, tall)?.transposed()?])?;
        }
        products.push((left.transposed()?, right));
    }
    let (left, right) = as_one(&products, tall)?;
    let effect = if weight.transposed {
        Effect::LowRank(Factors::new(left.transposed()?, right.transposed()?, scale))
    } else {
        let factors = products.into_iter().map(|(left, right)| Factors::new(right, left, scale)).collect();
        let term = Term { a: right, b: left, scale };
        Effect::Adds(Box::new(Grid { rows: ExpertDeltas { factors, rows: tall }, term }))
    };
    let parts: Vec<&Tensor> = [&a, &b].into_iter().chain(general.iter().flat_map(|(a, b)| [a, b])).collect();
    cx.edit(&weight.target, &module.name, Edit::new("GraLoRA", Some(rank + hybrid), &parts, effect));
    cx.nothing_left(&module)
}

/// The products of all rows of blocks as one, `[out, k r]` and `[k r, in]`: every left factor is filled up with zeros
/// above and below, so that it meets its own outputs only.
fn as_one(products: &[(Recipe, Recipe)], tall: u64) -> Result<(Recipe, Recipe), AdapterError> {
    let count = products.len() as u64;
    let mut lefts = Vec::new();
    for (q, (left, _)) in (0..count).zip(products) {
        let zeros = |blocks: u64| {
            let shape = Shape::matrix(blocks * tall, left.shape().row_len());
            let values = vec![0.0; shape.elements() as usize];
            (blocks > 0).then(|| Recipe::constant(shape, values)).transpose()
        };
        let parts = [zeros(q)?, Some(left.clone()), zeros(count - 1 - q)?];
        lefts.push(Recipe::concat(parts.into_iter().flatten().collect())?.transposed()?);
    }
    let right = Recipe::concat(products.iter().map(|(_, right)| right.clone()).collect())?;
    Ok((Recipe::concat(lefts)?.transposed()?, right))
}

/// The deltas of all rows of blocks, one after another.
struct Grid {
    rows: ExpertDeltas,
    /// All of them as one product.
    term: Term,
}

impl Addend for Grid {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.rows.rows(rows, out, scratch)
    }

    fn add(&self, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Option<Result<Squares, ReadError>> {
        self.rows.add(rows, values, scratch)
    }

    fn terms(&self) -> Option<Vec<Term>> {
        Some(vec![self.term.clone()])
    }
}
