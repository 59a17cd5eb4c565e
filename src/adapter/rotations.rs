//! Forms that rotate the inputs of a layer: every row `w` of the weight becomes `R w`.
//!
//! * OFT (arXiv:2306.07280): `R` is block-diagonal, each block the Cayley transform of a skew matrix.
//! * BOFT (arXiv:2311.06243): `R` is a product of such matrices, each between a permutation and its inverse
//!   (a butterfly), and every output has a scale.
//! * HRA (arXiv:2405.17484): `R` is a product of Householder reflections, or one reflection through the span of
//!   all vectors (`apply_GS`).

use std::ops::Range;

use super::AdapterError;
use super::change::{self, Effect, Rewrite};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit, Weight};
use super::lazy::Recent;
use super::passes;
use crate::recipe::{ReadError, Recipe, Scratch};

mod cayley;
mod turn;

use cayley::{cayley, neumann};
use turn::{Reflect, rotate, stride};

/// The layer of a kind that only trains linear ones.
fn linear(module: &str, tensor: &Tensor, cx: &Context) -> Result<Weight, AdapterError> {
    let weight = cx.weight(module, tensor)?;
    if weight.transposed || weight.target.shape().ndim() != 2 {
        return Err(cx.mismatch(tensor, &weight.target, "a linear layer"));
    }
    Ok(weight)
}

/// How a skew matrix becomes a rotation.
#[derive(Clone, Copy, Debug)]
enum Transform {
    /// `(I + Q)^-1 (I - Q)`.
    Cayley,
    /// The first terms of its Neumann series.
    Neumann(u64),
}

/// `blockdiag(R)` applied to every row.
struct BlockRotation {
    /// `[blocks or 1, n (n - 1) / 2]`: the upper triangles.
    triangles: Recipe,
    size: usize,
    transform: Transform,
    /// COFT: the largest norm of a skew matrix.
    limit: Option<f64>,
    /// Whether rows become `w R` instead of `R w`: embeddings are rotated as activations are.
    from_right: bool,
    /// For each block, the matrix whose row `c` is added `w[c]` times, as [`rotate`] takes it.
    matrices: Recent,
}

impl BlockRotation {
    fn compute(&self, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let n = self.size;
        let (blocks, length) = (self.triangles.shape().rows(), self.triangles.shape().row_len() as usize);
        let mut matrices = Vec::with_capacity(blocks as usize * n * stride(n));
        let mut triangle = vec![0f32; length];
        for block in 0..blocks {
            self.triangles.rows(block..block + 1, &mut triangle, scratch)?;
            let mut skew = vec![0f64; n * n];
            let mut next = triangle.iter();
            for i in 0..n {
                for j in i + 1..n {
                    let v = f64::from(next.next().copied().unwrap_or(0.0));
                    skew[i * n + j] = v;
                    skew[j * n + i] = -v;
                }
            }
            if let Some(limit) = self.limit {
                let norm = skew.iter().map(|v| v * v).sum::<f64>().sqrt();
                if norm > limit {
                    skew.iter_mut().for_each(|v| *v *= limit / norm);
                }
            }
            let rotation = match self.transform {
                Transform::Cayley => cayley(&skew, n),
                Transform::Neumann(terms) => neumann(&skew, n, terms),
            };
            let Some(rotation) = rotation else {
                return Err(ReadError::new(format!("{:?}", self.triangles), "its Cayley transform does not exist"));
            };
            for c in 0..n {
                let place = |j: usize| if self.from_right { c * n + j } else { j * n + c };
                matrices.extend((0..n).map(|j| rotation[place(j)] as f32));
                matrices.resize(matrices.len().next_multiple_of(stride(n)), 0.0);
            }
        }
        Ok(matrices)
    }
}

impl Rewrite for BlockRotation {
    fn rows(&self, base: &Recipe, _: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let matrices = self.matrices.get(|| self.compute(scratch))?;
        rotate(values, base.shape().row_len() as usize, &matrices, self.size, None, scratch);
        Ok(())
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }
}

/// Plans OFT, of a linear layer or an embedding.
pub(super) fn oft(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    if let Some(old) = module.take("oft_r") {
        return Err(cx.refuse(
            format!("an OFT adapter of PEFT before 0.16 ({})", old.name),
            "its blocks are parametrised differently",
            "load it with that version of PEFT and save the merged model",
        ));
    }
    let (r, from_right) = match module.take("oft_R") {
        Some(r) => (r, false),
        None => (module.need("oft_embedding_R", "other parameters", cx.label)?, true),
    };
    let weight = linear(&module.name, &r, cx)?;
    let [blocks, length] = *r.dims() else { return Err(cx.mismatch(&r, &weight.target, "a matrix")) };
    // length = n (n - 1) / 2
    let size = ((1.0 + (1.0 + 8.0 * length as f64).sqrt()) / 2.0).round() as u64;
    let shared = cx.config.flag("block_share")?;
    let covered = if shared { blocks == 1 && weight.inputs % size.max(1) == 0 } else { blocks * size == weight.inputs };
    if size * size.saturating_sub(1) / 2 != length || size == 0 || !covered {
        let needs = format!("blocks that cover {} columns", weight.inputs);
        return Err(cx.mismatch(&r, &weight.target, needs));
    }
    let transform = if cx.config.flag("use_cayley_neumann")? {
        Transform::Neumann(cx.config.count("num_cayley_neumann_terms")?.unwrap_or(5))
    } else {
        Transform::Cayley
    };
    let limit = match cx.config.flag("coft")? {
        true => Some(cx.config.number("eps")?.unwrap_or(6e-5) / (blocks as f64).sqrt()),
        false => None,
    };
    let effect = Effect::Rewrites(Box::new(BlockRotation {
        triangles: r.recipe.clone(),
        size: size as usize,
        transform,
        limit,
        from_right,
        matrices: Recent::new(),
    }));
    cx.edit(&weight.target, &module.name, Edit::new("OFT", Some(size), &[&r], effect));
    cx.nothing_left(&module)
}

/// Butterfly factors, applied one after another, and a scale for each output.
struct Butterfly {
    /// `[factors, blocks, n, n]`
    skews: Recipe,
    /// `[outputs, 1]`
    scales: Recipe,
    matrices: Recent,
}

impl Butterfly {
    fn compute(&self, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let n = self.skews.shape().row_len() as usize;
        let matrices = self.skews.shape().rows() as usize / n;
        let mut out = Vec::with_capacity(matrices * n * stride(n));
        let mut data = vec![0f32; n * n];
        for m in 0..matrices as u64 {
            self.skews.rows(m * n as u64..(m + 1) * n as u64, &mut data, scratch)?;
            let half = |i: usize, j: usize| 0.5 * (f64::from(data[i * n + j]) - f64::from(data[j * n + i]));
            let skew: Vec<f64> = (0..n * n).map(|at| half(at / n, at % n)).collect();
            let Some(rotation) = cayley(&skew, n) else {
                return Err(ReadError::new(format!("{:?}", self.skews), "its Cayley transform does not exist"));
            };
            for c in 0..n {
                out.extend((0..n).map(|j| rotation[j * n + c] as f32));
                out.resize(out.len().next_multiple_of(stride(n)), 0.0);
            }
        }
        Ok(out)
    }
}

impl Rewrite for Butterfly {
    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let matrices = self.matrices.get(|| self.compute(scratch))?;
        let dims = self.skews.shape().dims();
        let (factors, blocks, n) = (dims[0] as usize, dims[1] as usize, dims[3] as usize);
        let cols = base.shape().row_len() as usize;
        let mut scales = scratch.take_floats((rows.end - rows.start) as usize);
        self.scales.rows(rows, &mut scales, scratch)?;
        for (i, matrices) in matrices.chunks_exact(blocks * n * stride(n)).enumerate() {
            let permutation = cayley::butterfly_permutation(cols, blocks >> i, n / 2, factors - 1);
            let mut places = vec![0; cols];
            permutation.iter().enumerate().for_each(|(from, &to)| places[to] = from);
            rotate(values, cols, matrices, n, Some(&places), scratch);
        }
        for (row, scale) in values.chunks_exact_mut(cols).zip(&scales) {
            passes::scale(row, *scale);
        }
        scratch.give_floats(scales);
        Ok(())
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }
}

/// Plans BOFT.
pub(super) fn boft(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let r = module.need("boft_R", "other parameters", cx.label)?;
    let s = module.need("boft_s", "boft_R", cx.label)?;
    let weight = linear(&module.name, &r, cx)?;
    match *r.dims() {
        [factors, blocks, n, m]
            if n == m
                && factors > 0
                && blocks * n == weight.inputs
                && (factors == 1 || n % 2 == 0 && factors < 32 && blocks % (1 << (factors - 1)) == 0) => {}
        _ => {
            let needs = format!("factors of square blocks that cover {} columns", weight.inputs);
            return Err(cx.mismatch(&r, &weight.target, needs));
        }
    }
    cx.expect(&s, &weight.target, &[weight.outputs, 1])?;
    let block = r.dims()[2];
    let effect = Effect::Rewrites(Box::new(Butterfly {
        skews: r.recipe.clone(),
        scales: s.recipe.clone(),
        matrices: Recent::new(),
    }));
    cx.edit(&weight.target, &module.name, Edit::new("BOFT", Some(block), &[&r, &s], effect));
    cx.nothing_left(&module)
}

/// Reflections of every row.
struct Reflections {
    /// `[inputs, r]`
    u: Recipe,
    /// Whether the vectors are made orthogonal and reflect together.
    together: bool,
    vectors: Recent,
}

impl Reflections {
    /// The unit vectors, one after another.
    fn compute(&self, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let (inputs, r) = (self.u.shape().rows() as usize, self.u.shape().row_len() as usize);
        let mut u = vec![0f32; inputs * r];
        self.u.rows(0..inputs as u64, &mut u, scratch)?;
        let mut vectors: Vec<Vec<f64>> =
            (0..r).map(|k| (0..inputs).map(|i| f64::from(u[i * r + k])).collect()).collect();
        for k in 0..r {
            let (before, rest) = vectors.split_at_mut(k);
            let v = &mut rest[0];
            if self.together {
                for w in before.iter() {
                    let along: f64 = w.iter().zip(&*v).map(|(a, b)| a * b).sum();
                    v.iter_mut().zip(w).for_each(|(v, w)| *v -= along * w);
                }
            }
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            v.iter_mut().for_each(|v| *v /= norm);
        }
        Ok(vectors.into_iter().flatten().map(|v| v as f32).collect())
    }
}

impl Rewrite for Reflections {
    fn rows(&self, base: &Recipe, _: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let vectors = self.vectors.get(|| self.compute(scratch))?;
        pulp::Arch::new().dispatch(Reflect { values, cols: base.shape().row_len() as usize, vectors: &vectors });
        Ok(())
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }
}

/// Plans HRA.
pub(super) fn hra(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let u = module.need("hra_u", "other parameters", cx.label)?;
    let weight = linear(&module.name, &u, cx)?;
    let rank = u.dims().last().copied().unwrap_or(0);
    cx.expect(&u, &weight.target, &[weight.inputs, rank])?;
    let together = cx.config.flag("apply_GS")?;
    let effect = Effect::Rewrites(Box::new(Reflections { u: u.recipe.clone(), together, vectors: Recent::new() }));
    cx.edit(&weight.target, &module.name, Edit::new("HRA", Some(rank), &[&u], effect));
    cx.nothing_left(&module)
}
