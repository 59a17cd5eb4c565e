//! HiRA (arXiv:2505.17844): a low-rank product that multiplies the weight itself: `W' = W + W ⊙ (B @ A)`.
//!
//! Stored shapes are those of LoRA: linear `A` `[r, in]`, `B` `[out, r]`; embedding `A` `[r, vocabulary]`,
//! `B` `[dim, r]`; convolution `A` `[r, in, ..]`, `B` `[out, r, 1, ..]`. There is no scale.

use std::ops::Range;

use super::AdapterError;
use super::change::{self, Effect, Rewrite};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit};
use super::lowrank::Factors;
use super::passes::{self, Squares};
use crate::recipe::{ReadError, Recipe, Scratch};
use crate::shape::Shape;

struct Modulated {
    factors: Factors,
    /// PEFT rounds the product, and what it makes of the weight, to the model's type.
    round: Option<fn(f32) -> f32>,
}

impl Rewrite for Modulated {
    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.measured(base, rows, values, scratch).map(|_| ())
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }

    fn measured(
        &self,
        _: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Squares, ReadError> {
        let mut product = scratch.take_floats(values.len());
        product.fill(0.0);
        let result = self.factors.add(rows, &mut product, scratch, self.round).map(|_| match self.round {
            Some(round) => {
                product.iter_mut().zip(&*values).for_each(|(p, v)| *p = round(*v * *p));
                passes::add(values, &product)
            }
            None => passes::modulate(values, &product),
        });
        scratch.give_floats(product);
        result
    }
}

/// Plans HiRA.
pub(super) fn hira(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let (a_name, b_name) = match module.has("hira_embedding_A") || module.has("hira_embedding_B") {
        true => ("hira_embedding_A", "hira_embedding_B"),
        false => ("hira_A", "hira_B"),
    };
    let a = module.need(a_name, "other parameters", cx.label)?;
    let b = module.need(b_name, a_name, cx.label)?;
    let weight = cx.weight(&module.name, &a)?;
    let (rank, a_flat) = matrix(&a, cx)?;
    let (_, b_flat) = matrix(&b, cx)?;
    // An embedding's inputs are its rows.
    let is_embedding = a_name == "hira_embedding_A";
    let (rows, cols) = weight.target.matrix();
    let (outputs, inputs) = if is_embedding { (cols, rows) } else { (weight.outputs, weight.inputs) };
    if a_flat.shape().row_len() != inputs {
        return Err(cx.mismatch(&a, &weight.target, format!("{inputs} columns")));
    }
    if b_flat.shape().dims() != [outputs, rank] {
        return Err(cx.mismatch(&b, &weight.target, format!("[{outputs}, {rank}]")));
    }
    let factors = if is_embedding || weight.transposed {
        Factors::new(b_flat.transposed()?, a_flat.transposed()?, 1.0)
    } else {
        Factors::new(a_flat, b_flat, 1.0)
    };
    let effect = Effect::Rewrites(Box::new(Modulated { factors, round: cx.dtype.rounding() }));
    let edit = Edit::new("HiRA", Some(rank), &[&a, &b], effect);
    cx.edit(&weight.target, &module.name, Edit { as_matrix: true, ..edit });
    cx.nothing_left(&module)
}

/// The first dimension of a factor, and the factor with the others in one.
fn matrix(tensor: &Tensor, cx: &Context) -> Result<(u64, Recipe), AdapterError> {
    match tensor.dims() {
        [first, rest @ ..] if !rest.is_empty() => {
            let shape = Shape::matrix(*first, rest.iter().product());
            Ok((*first, tensor.recipe.clone().reshape(shape)?))
        }
        _ => Err(cx.not_a_matrix(tensor)),
    }
}
