//! DeLoRA (arXiv:2503.18225): directions and strength apart. Every pair of a row of `A` and a column of `B` is brought
//! to length 1, and the inputs are weighted by the norms that the weight's columns had when training began:
//! `Δ = B @ diag(λ / (r ‖A_k‖ ‖B_k‖)) @ A @ diag(n)`, with norms below 1e-4 taken as 1e-4.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterError;
use super::change::Effect;
use super::contents::Module;
use super::draft::{Context, Edit};
use super::lazy::Recent;
use super::lowrank::Factors;
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;

/// The smallest norm that is divided by.
const LEAST: f64 = 1e-4;

/// `A`, with all that is multiplied between it and `B`.
struct Weighted {
    /// `[r, inputs]`
    a: Recipe,
    /// `[outputs, r]`
    b: Recipe,
    /// `[1, 1]`
    strength: Recipe,
    /// `[1, inputs]`
    norms: Recipe,
    values: Recent,
}

impl Weighted {
    fn compute(&self, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let (rank, inputs) = (self.a.shape().rows() as usize, self.a.shape().row_len() as usize);
        let outputs = self.b.shape().rows();
        let mut values = vec![0f32; rank * inputs];
        self.a.rows(0..rank as u64, &mut values, scratch)?;
        let mut squares = vec![0f64; rank];
        let mut row = vec![0f32; rank];
        for o in 0..outputs {
            self.b.rows(o..o + 1, &mut row, scratch)?;
            squares.iter_mut().zip(&row).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        }
        let mut strength = [0f32];
        self.strength.rows(0..1, &mut strength, scratch)?;
        let mut norms = vec![0f32; inputs];
        self.norms.rows(0..1, &mut norms, scratch)?;
        for (row, squares) in values.chunks_exact_mut(inputs.max(1)).zip(squares) {
            let own = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt().max(LEAST);
            let factor = f64::from(strength[0]) / rank as f64 / (own * squares.sqrt().max(LEAST));
            row.iter_mut().zip(&norms).for_each(|(v, n)| *v = (f64::from(*v) * factor * f64::from(*n)) as f32);
        }
        Ok(values)
    }
}

impl RowSource for Weighted {
    fn shape(&self) -> &Shape {
        self.a.shape()
    }

    fn precision(&self) -> GgmlType {
        self.a.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.values.copy_rows(rows, self.a.shape().row_len(), out, || self.compute(scratch))
    }

    fn describe(&self) -> String {
        format!("{:?} scaled by {:?}", self.a, self.norms)
    }
}

/// Plans DeLoRA.
pub(super) fn delora(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let a = module.need("delora_A", "other parameters", cx.label)?;
    let b = module.need("delora_B", "delora_A", cx.label)?;
    let strength = module.need("delora_lambda", "delora_A", cx.label)?;
    let norms = module.need("delora_w_norm", "delora_A", cx.label)?;
    let weight = cx.weight(&module.name, &a)?;
    if weight.transposed || weight.target.shape().ndim() != 2 {
        return Err(cx.mismatch(&a, &weight.target, "a linear layer"));
    }
    let rank = a.dims().first().copied().unwrap_or(0);
    cx.expect(&a, &weight.target, &[rank, weight.inputs])?;
    cx.expect(&b, &weight.target, &[weight.outputs, rank])?;
    cx.expect(&norms, &weight.target, &[weight.inputs])?;
    cx.expect(&strength, &weight.target, &[1])?;
    let weighted = Recipe::source(Arc::new(Weighted {
        a: a.recipe.clone(),
        b: b.recipe.clone(),
        strength: strength.recipe.clone().reshape(Shape::matrix(1, 1))?,
        norms: norms.recipe.clone().reshape(Shape::matrix(1, weight.inputs))?,
        values: Recent::new(),
    }));
    let effect = Effect::LowRank(Factors::new(weighted, b.recipe.clone(), 1.0));
    // PEFT rounds the delta to the model's type before it adds it.
    let edit = Edit { rounds_addend: true, ..Edit::new("DeLoRA", Some(rank), &[&a, &b, &strength, &norms], effect) };
    cx.edit(&weight.target, &module.name, edit);
    cx.nothing_left(&module)
}
