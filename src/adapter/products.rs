//! Forms of LyCORIS (arXiv:2309.14859): element-wise and Kronecker products of low-rank matrices.
//!
//! * LoHa: `Δ = alpha / r * (w1a @ w1b) ⊙ (w2a @ w2b)`.
//! * LoKr: `Δ = alpha / r * w1 ⊗ w2`, either of them stored whole or as two factors.

use std::ops::Range;

use super::AdapterError;
use super::change::{self, Addend, Effect};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit, Weight};
use super::lazy::Recent;
use super::lowrank::Factors;
use super::passes::{self, Squares};
use crate::recipe::{ReadError, Recipe, Scratch};
use crate::shape::Shape;

/// `alpha / r` of a module, and the rank; both kinds write `alpha` without a prefix.
fn scale(module: &str, tensor: &Tensor, found: Option<u64>, cx: &Context) -> Result<(f64, u64), AdapterError> {
    let expected = cx.config.rank(module, "r")?;
    let rank = match (found, expected) {
        (Some(found), Some(expected)) if found != expected => {
            return Err(AdapterError::Rank {
                adapter: cx.label.to_string(),
                tensor: tensor.name.clone(),
                module: module.to_string(),
                found,
                expected,
            });
        }
        (found, expected) => expected.or(found).filter(|r| *r > 0),
    };
    let Some(rank) = rank else { return Err(cx.config.bad("r", format!("gives {module} no rank"))) };
    let alpha = cx.config.alpha(module, "alpha")?.unwrap_or(8.0);
    Ok((alpha / rank as f64, rank))
}

/// A tensor of a convolution's core: its product is another one.
fn refuse_core(core: &Tensor, kind: &str, cx: &Context) -> AdapterError {
    cx.refuse(
        format!("{kind} of a convolution ({})", core.name),
        "its decomposition over the kernel (use_effective_conv2d) is not known here",
        "train without use_effective_conv2d",
    )
}

struct Hadamard {
    first: Factors,
    second: Factors,
    scale: f32,
}

impl Hadamard {
    /// Rows of both products, in two buffers.
    fn products(&self, rows: Range<u64>, len: usize, scratch: &mut Scratch) -> Result<[Vec<f32>; 2], ReadError> {
        let mut both = [scratch.take_floats(len), scratch.take_floats(len)];
        for (factors, product) in [&self.first, &self.second].into_iter().zip(&mut both) {
            product.fill(0.0);
            factors.add(rows.clone(), product, scratch, None)?;
        }
        Ok(both)
    }

    /// Adds rows to `values`, a few at a time.
    fn add_to(&self, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<Squares, ReadError> {
        let cols = values.len() as u64 / (rows.end - rows.start).max(1);
        change::in_steps(cols, rows, change::step(cols), values, |rows, values| {
            let [first, second] = self.products(rows, values.len(), scratch)?;
            let sums = passes::add_scaled_products(values, &first, &second, self.scale);
            scratch.give_floats(second);
            scratch.give_floats(first);
            Ok(sums)
        })
    }
}

impl Addend for Hadamard {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        out.fill(0.0);
        self.add_to(rows, out, scratch).map(|_| ())
    }

    fn add(&self, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Option<Result<Squares, ReadError>> {
        Some(self.add_to(rows, values, scratch))
    }
}

/// Plans LoHa.
pub(super) fn loha(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let mut need = |part| module.need(part, "other parameters", cx.label);
    let parts = [need("hada_w1_a")?, need("hada_w1_b")?, need("hada_w2_a")?, need("hada_w2_b")?];
    if let Some(core) = module.take("hada_t1") {
        return Err(refuse_core(&core, "LoHa", cx));
    }
    let [w1a, w1b, w2a, w2b] = &parts;
    let weight = layer(&module.name, w1a, cx)?;
    let rank = w1a.dims().last().copied().unwrap_or(0);
    for (a, b) in [(w1a, w1b), (w2a, w2b)] {
        cx.expect(a, &weight.target, &[weight.outputs, rank])?;
        cx.expect(b, &weight.target, &[rank, weight.inputs])?;
    }
    let (scale, rank) = scale(&module.name, w1a, Some(rank), cx)?;
    let factors = |b: &Tensor, a: &Tensor| Factors::new(a.recipe.clone(), b.recipe.clone(), 1.0);
    let hadamard = Hadamard { first: factors(w1a, w1b), second: factors(w2a, w2b), scale: scale as f32 };
    let edit = Edit::new("LoHa", Some(rank), &[w1a, w1b, w2a, w2b], Effect::Adds(Box::new(hadamard)));
    cx.edit(&weight.target, &module.name, Edit { as_matrix: true, ..edit });
    cx.nothing_left(&module)
}

/// A layer that is stored `[outputs, inputs]`, the only ones that these kinds train.
fn layer(module: &str, tensor: &Tensor, cx: &Context) -> Result<Weight, AdapterError> {
    let weight = cx.weight(module, tensor)?;
    if weight.transposed {
        return Err(cx.mismatch(tensor, &weight.target, "a linear layer or a convolution"));
    }
    Ok(weight)
}

/// One side of a Kronecker product.
struct Side {
    /// The matrix, or its left factor.
    left: Recipe,
    right: Option<Recipe>,
    rows: u64,
    cols: u64,
    values: Recent,
}

impl Side {
    fn values(&self, scratch: &mut Scratch) -> Result<std::sync::Arc<Vec<f32>>, ReadError> {
        self.values.get(|| {
            let mut values = vec![0f32; (self.rows * self.cols) as usize];
            match &self.right {
                None => self.left.rows(0..self.rows, &mut values, scratch)?,
                Some(right) => {
                    let factors = Factors::new(right.clone(), self.left.clone(), 1.0);
                    factors.add(0..self.rows, &mut values, scratch, None)?;
                }
            }
            Ok(values)
        })
    }
}

struct Kronecker {
    first: Side,
    second: Side,
    scale: f32,
}

impl Addend for Kronecker {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let (w1, w2) = (self.first.values(scratch)?, self.second.values(scratch)?);
        let (b, d) = (self.first.cols as usize, self.second.cols as usize);
        for (row, out) in rows.zip(out.chunks_exact_mut(b * d)) {
            let (i, p) = ((row / self.second.rows) as usize, (row % self.second.rows) as usize);
            let (w1, w2) = (&w1[i * b..(i + 1) * b], &w2[p * d..(p + 1) * d]);
            pulp::Arch::new().dispatch(Outer { w1, w2, scale: self.scale, out });
        }
        Ok(())
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }
}

/// `x * y * scale` for all `x` of one row and `y` of another.
struct Outer<'a> {
    w1: &'a [f32],
    w2: &'a [f32],
    scale: f32,
    out: &'a mut [f32],
}

impl pulp::WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for (x, out) in self.w1.iter().zip(self.out.chunks_exact_mut(self.w2.len())) {
            for (v, y) in out.iter_mut().zip(self.w2) {
                *v = x * y * self.scale;
            }
        }
    }
}

/// Takes one side of the product: `<name>` or `<name>_a` and `<name>_b`. Answers it, its parts, and the rank where
/// the shapes show it.
fn side(name: &str, module: &mut Module, cx: &Context) -> Result<(Side, Vec<Tensor>, Option<u64>), AdapterError> {
    let matrix = |t: &Tensor| match t.dims() {
        [first, rest @ ..] if !rest.is_empty() => {
            t.recipe.clone().reshape(Shape::matrix(*first, rest.iter().product())).map_err(AdapterError::from)
        }
        _ => Err(cx.not_a_matrix(t)),
    };
    if let Some(whole) = module.take(name) {
        let left = matrix(&whole)?;
        let (rows, cols) = (left.shape().rows(), left.shape().row_len());
        return Ok((Side { left, right: None, rows, cols, values: Recent::new() }, vec![whole], None));
    }
    let (a, b) = (format!("{name}_a"), format!("{name}_b"));
    let a = module.need(&a, "other parameters", cx.label)?;
    let b = module.need(&b, &a.name, cx.label)?;
    let (left, right) = (matrix(&a)?, matrix(&b)?);
    if left.shape().row_len() != right.shape().rows() {
        return Err(AdapterError::Unfit {
            adapter: cx.label.to_string(),
            what: format!("tensor {}", b.name),
            cause: format!("has shape {}, which does not follow {} of {}", b.recipe.shape(), a.recipe.shape(), a.name),
        });
    }
    let (rows, cols, rank) = (left.shape().rows(), right.shape().row_len(), right.shape().rows());
    Ok((Side { left, right: Some(right), rows, cols, values: Recent::new() }, vec![a, b], Some(rank)))
}

/// Plans LoKr.
pub(super) fn lokr(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    if let Some(core) = module.take("lokr_t2") {
        return Err(refuse_core(&core, "LoKr", cx));
    }
    let (first, mut parts, first_rank) = side("lokr_w1", &mut module, cx)?;
    let (second, more, second_rank) = side("lokr_w2", &mut module, cx)?;
    parts.extend(more);
    let weight = layer(&module.name, &parts[0], cx)?;
    let size = (first.rows * second.rows, first.cols * second.cols);
    if size != (weight.outputs, weight.inputs) {
        let needs = format!("sides whose product is [{}, {}]", weight.outputs, weight.inputs);
        return Err(cx.mismatch(&parts[0], &weight.target, needs));
    }
    let (scale, rank) = scale(&module.name, &parts[0], first_rank.or(second_rank), cx)?;
    let effect = Effect::Adds(Box::new(Kronecker { first, second, scale: scale as f32 }));
    let edit = Edit::new("LoKr", Some(rank), &parts.iter().collect::<Vec<_>>(), effect);
    cx.edit(&weight.target, &module.name, Edit { as_matrix: true, ..edit });
    cx.nothing_left(&module)
}
