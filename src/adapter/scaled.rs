//! Forms whose matrices are scaled by trained vectors.
//!
//! * IA3 (arXiv:2205.05638): `W' = l ⊙ W`, along the outputs, or along the inputs of a feed-forward module.
//! * AdaLoRA (arXiv:2303.10512): `Δ = alpha / (r + 1e-5) * B @ (A ⊙ E)`.
//! * VeRA (arXiv:2310.11454): `Δ = (λ_b ⊙ B) @ (λ_d ⊙ A)`, with projections that all layers share; PVeRA the same.
//! * RandLora (arXiv:2502.00987): a sum of such products over several bases, with the vectors on the smaller side.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterError;
use super::change::{Effect, Rewrite};
use super::contents::Module;
use super::draft::{Context, Edit, Weight};
use super::lazy::Recent;
use super::lowrank::Factors;
use super::passes::{self, Squares};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;

/// A matrix whose row `i` is multiplied by element `i` of a vector.
struct ScaledRows {
    matrix: Recipe,
    /// `[rows, 1]`
    factors: Recipe,
}

impl RowSource for ScaledRows {
    fn shape(&self) -> &Shape {
        self.matrix.shape()
    }

    fn precision(&self) -> GgmlType {
        self.matrix.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.matrix.rows(rows.clone(), out, scratch)?;
        let mut factors = scratch.take_floats((rows.end - rows.start) as usize);
        let result = self.factors.rows(rows, &mut factors, scratch);
        let cols = self.shape().row_len().max(1) as usize;
        for (row, factor) in out.chunks_exact_mut(cols).zip(&factors) {
            row.iter_mut().for_each(|v| *v *= factor);
        }
        scratch.give_floats(factors);
        result
    }

    fn describe(&self) -> String {
        format!("{:?} scaled by {:?}", self.matrix, self.factors)
    }
}

/// `diag(factors) @ matrix`.
fn scale_rows(matrix: Recipe, factors: Recipe) -> Result<Recipe, AdapterError> {
    let factors = factors.reshape(Shape::matrix(matrix.shape().rows(), 1))?;
    Ok(Recipe::source(Arc::new(ScaledRows { matrix, factors })))
}

/// `scale * b @ a` of a layer's `[outputs, inputs]`, as the model stores it.
fn product(a: Recipe, b: Recipe, scale: f64, weight: &Weight) -> Result<Effect, AdapterError> {
    let (a, b) = if weight.transposed { (b.transposed()?, a.transposed()?) } else { (a, b) };
    Ok(Effect::LowRank(Factors::new(a, b, scale)))
}

/// AdaLoRA: singular values of their own between the factors.
pub(super) fn adalora(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let a = module.need("lora_A", "other parameters", cx.label)?;
    let b = module.need("lora_B", "lora_A", cx.label)?;
    let e = module.need("lora_E", "lora_A", cx.label)?;
    // PEFT sets it to the rank whenever it builds the layer.
    module.take("ranknum");
    let weight = cx.weight(&module.name, &a)?;
    let rank = a.dims().first().copied().unwrap_or(0);
    cx.expect(&a, &weight.target, &[rank, weight.inputs])?;
    cx.expect(&b, &weight.target, &[weight.outputs, rank])?;
    if e.recipe.shape().elements() != rank {
        return Err(cx.mismatch(&e, &weight.target, format!("{rank} elements, the rank of lora_A")));
    }
    let alpha = cx.config.number("lora_alpha")?.filter(|a| *a > 0.0).unwrap_or(rank as f64);
    let scale = alpha / (rank as f64 + 1e-5);
    let effect = product(scale_rows(a.recipe.clone(), e.recipe.clone())?, b.recipe.clone(), scale, &weight)?;
    cx.edit(&weight.target, &module.name, Edit::new("AdaLoRA", Some(rank), &[&a, &b, &e], effect));
    cx.nothing_left(&module)
}

/// VeRA: two trained vectors, and projections that the file holds when `save_projection` was on.
pub(super) fn vera(module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    projected(module, ["vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"], "VeRA", 1, cx)
}

/// PVeRA: VeRA whose activations are drawn at random in training. The first half of `A` and of its vector are the
/// mean, which is what it computes afterwards; the other half is the variance.
pub(super) fn pvera(module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    if cx.config.flag("sample_at_inference")? {
        return Err(cx.refuse(
            "PVeRA with sample_at_inference",
            "it draws its activations at random, so no single set of weights behaves like it",
            "set sample_at_inference to false in adapter_config.json, for the mean",
        ));
    }
    projected(module, ["pvera_lambda_b", "pvera_lambda_d", "pvera_A", "pvera_B"], "PVeRA", 2, cx)
}

/// `(λ_b ⊙ B) @ (λ_d ⊙ A)`, with the first of `parts` equal parts of `A` and `λ_d`.
fn projected(
    mut module: Module,
    [lambda_b, lambda_d, a, b]: [&str; 4],
    kind: &'static str,
    parts: u64,
    cx: &mut Context,
) -> Result<(), AdapterError> {
    let lambda_b = module.need(lambda_b, "other parameters", cx.label)?;
    let lambda_d = module.need(lambda_d, &lambda_b.name, cx.label)?;
    let (Some(a), Some(b)) = (cx.shared(a, &mut module), cx.shared(b, &mut module)) else {
        return Err(no_projections(kind, cx));
    };
    let weight = cx.weight(&module.name, &lambda_b)?;
    let all = lambda_d.recipe.shape().elements();
    let rank = all / parts;
    cx.expect(&lambda_b, &weight.target, &[weight.outputs])?;
    cx.expect(&lambda_d, &weight.target, &[rank * parts])?;
    match (a.dims(), b.dims()) {
        ([a_rows, a_cols], [b_rows, b_cols])
            if (*a_rows, *b_cols) == (all, rank) && *a_cols >= weight.inputs && *b_rows >= weight.outputs => {}
        _ => return Err(cx.mismatch(&a, &weight.target, format!("[{all}, at least {}]", weight.inputs))),
    }
    let mean = lambda_d.recipe.clone().reshape(Shape::matrix(all, 1))?.slice(0, rank)?;
    let sliced_a = scale_rows(a.recipe.clone().slice(0, rank)?.columns(0, weight.inputs)?, mean)?;
    let sliced_b = scale_rows(b.recipe.clone().slice(0, weight.outputs)?, lambda_b.recipe.clone())?;
    let effect = product(sliced_a, sliced_b, 1.0, &weight)?;
    cx.edit(&weight.target, &module.name, Edit::new(kind, Some(rank), &[&a, &b, &lambda_b, &lambda_d], effect));
    cx.nothing_left(&module)
}

fn no_projections(kind: &str, cx: &Context) -> AdapterError {
    cx.refuse(
        format!("{kind} without its projections"),
        "the file holds only the trained vectors; the random matrices between them were not saved",
        "save the adapter again with save_projection=True",
    )
}

/// RandLora's smaller factor: row `k * bases + n` is `λ[k, n] * A[k] * γ[n]`.
struct RandBases {
    /// `[r, 1 or bases, at least dim]`
    a: Recipe,
    lambda: Recipe,
    gamma: Recipe,
    shape: Shape,
    values: Recent,
}

impl RandBases {
    fn compute(&self, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let dim = self.shape.row_len() as usize;
        let (rank, bases) = (self.lambda.shape().rows() as usize, self.lambda.shape().row_len() as usize);
        let mut values = vec![0f32; rank * bases * dim];
        let mut lambda = vec![0f32; rank * bases];
        self.lambda.rows(0..rank as u64, &mut lambda, scratch)?;
        let mut gamma = vec![0f32; bases * dim];
        self.gamma.rows(0..bases as u64, &mut gamma, scratch)?;
        let stored = self.a.shape().dims();
        let (per_rank, width) = (stored[1], stored[2] as usize);
        let mut row = vec![0f32; width];
        for (i, out) in values.chunks_exact_mut(dim).enumerate() {
            let (k, n) = (i / bases, i % bases);
            let at = k as u64 * per_rank + if per_rank == 1 { 0 } else { n as u64 };
            self.a.rows(at..at + 1, &mut row, scratch)?;
            for ((v, a), g) in out.iter_mut().zip(&row).zip(&gamma[n * dim..]) {
                *v = lambda[i] * a * g;
            }
        }
        Ok(values)
    }
}

impl RowSource for RandBases {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.a.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.values.copy_rows(rows, self.shape.row_len(), out, || self.compute(scratch))
    }

    fn describe(&self) -> String {
        format!("{:?} scaled by {:?} and {:?}", self.a, self.lambda, self.gamma)
    }
}

/// RandLora: random bases, scaled on the smaller side of the layer.
pub(super) fn randlora(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let lambda = module.need("randlora_lambda", "other parameters", cx.label)?;
    let gamma = module.need("randlora_gamma", "randlora_lambda", cx.label)?;
    let (Some(a), Some(b)) = (cx.shared("randlora_A", &mut module), cx.shared("randlora_B", &mut module)) else {
        return Err(no_projections("RandLora", cx));
    };
    let weight = cx.weight(&module.name, &lambda)?;
    let (small, large) = (weight.inputs.min(weight.outputs), weight.inputs.max(weight.outputs));
    let [rank, bases] = *lambda.dims() else { return Err(cx.mismatch(&lambda, &weight.target, "a matrix")) };
    cx.expect(&gamma, &weight.target, &[bases, small])?;
    let a_fits = matches!(*a.dims(), [r, n, d] if r == rank && (n == 1 || n >= bases) && d >= small);
    let b_fits = matches!(*b.dims(), [d, n, r] if r == rank && n >= bases && d >= large);
    if !a_fits || !b_fits {
        return Err(cx.mismatch(if a_fits { &b } else { &a }, &weight.target, format!("{bases} bases of rank {rank}")));
    }
    let update_a = Recipe::source(Arc::new(RandBases {
        a: a.recipe.clone(),
        lambda: lambda.recipe.clone(),
        gamma: gamma.recipe.clone(),
        shape: Shape::matrix(rank * bases, small),
        values: Recent::new(),
    }));
    let stored = b.dims().to_vec();
    let flat = b.recipe.clone().reshape(Shape::matrix(stored[0], stored[1] * rank))?;
    let update_b = flat.slice(0, large)?.columns(0, bases * rank)?;
    let alpha = cx.config.number("randlora_alpha")?.unwrap_or(rank as f64);
    let scale = alpha / rank as f64;
    let (a_factor, b_factor) =
        if weight.inputs == small { (update_a, update_b) } else { (update_b.transposed()?, update_a.transposed()?) };
    let effect = product(a_factor, b_factor, scale, &weight)?;
    let parts = [&a, &b, &lambda, &gamma];
    // PEFT rounds the delta to the model's type before it adds it.
    let edit = Edit { rounds_addend: true, ..Edit::new("RandLora", Some(rank * bases), &parts, effect) };
    cx.edit(&weight.target, &module.name, edit);
    cx.nothing_left(&module)
}

/// A trained factor for every row, or for every column.
struct Rescale {
    /// `[n, 1]` along the rows, `[1, n]` along the columns.
    factors: Recipe,
    along_rows: bool,
}

impl Rewrite for Rescale {
    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        self.measured(base, rows, values, scratch).map(|_| ())
    }

    fn measured(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Squares, ReadError> {
        let cols = base.shape().row_len() as usize;
        let range = if self.along_rows { rows } else { 0..1 };
        let count = if self.along_rows { (range.end - range.start) as usize } else { cols };
        let mut factors = scratch.take_floats(count);
        let result = self.factors.rows(range, &mut factors, scratch);
        let mut sums = Squares::default();
        for (i, row) in values.chunks_exact_mut(cols).enumerate() {
            sums += if self.along_rows { passes::scale(row, factors[i]) } else { passes::multiply(row, &factors) };
        }
        scratch.give_floats(factors);
        result.map(|()| sums)
    }
}

/// IA3: a factor for each output, the bias's included, or for each input.
pub(super) fn ia3(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let l = module.need("ia3_l", "other parameters", cx.label)?;
    let weight = cx.weight(&module.name, &l)?;
    let feedforward = match *l.dims() {
        [n, 1] if n == weight.outputs => false,
        [1, n] if n == weight.inputs => true,
        _ => {
            let needs = format!("[{}, 1], or [1, {}] for a feed-forward module", weight.outputs, weight.inputs);
            return Err(cx.mismatch(&l, &weight.target, needs));
        }
    };
    let factors = |along_rows: bool| {
        let n = l.recipe.shape().elements();
        let shape = if along_rows { Shape::matrix(n, 1) } else { Shape::matrix(1, n) };
        l.recipe.clone().reshape(shape).map(|factors| Effect::Rewrites(Box::new(Rescale { factors, along_rows })))
    };
    let effect = factors(feedforward == weight.transposed)?;
    cx.edit(&weight.target, &module.name, Edit { as_matrix: true, ..Edit::new("IA3", None, &[&l], effect) });
    if !feedforward && let Some(bias) = cx.find(&module.name, "bias")? {
        cx.edit(&bias, &module.name, Edit::new("IA3", None, &[&l], factors(false)?));
    }
    cx.nothing_left(&module)
}
