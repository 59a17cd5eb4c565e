//! Forms that work on blocks of a weight.
//!
//! * MiSS (arXiv:2409.15371), formerly Bone: one block `B` `[r, out]` is added to every run of `r` inputs:
//!   `Δ[o][j] = B[j mod r][o]`. In its `mini` form `B` has fewer outputs and repeats along them; in its `bat` form
//!   each block of the weight is multiplied: `Δ_ij = W_ij @ B_i + B_i`.
//! * C3A (arXiv:2407.19342): every block is circulant: `Δ[m b + t][n b + p] = w[m][n][(p - t) mod b] / in`.

use std::ops::Range;

use super::AdapterError;
use super::change::{self, Addend, Effect, Rewrite};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit, Weight};
use super::lazy::Recent;
use crate::recipe::{ReadError, Recipe, Scratch};

/// The layer of a kind that only trains linear ones.
fn linear(module: &str, tensor: &Tensor, cx: &Context) -> Result<Weight, AdapterError> {
    let weight = cx.weight(module, tensor)?;
    if weight.transposed || weight.target.shape().ndim() != 2 {
        return Err(cx.mismatch(tensor, &weight.target, "a linear layer"));
    }
    Ok(weight)
}

/// The same block for every run of inputs; row `o` of the delta repeats column `o mod width` of the block.
struct Repeated {
    /// `[width, r]`: the block, turned.
    block: Recipe,
    /// Its values, which are stored the other way round.
    values: Recent,
}

impl Addend for Repeated {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let (width, r) = (self.block.shape().rows(), self.block.shape().row_len() as usize);
        let cols = out.len() / (rows.end - rows.start).max(1) as usize;
        let block = self.values.get(|| {
            let mut block = vec![0f32; width as usize * r];
            self.block.rows(0..width, &mut block, scratch).map(|()| block)
        })?;
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let column = &block[(row % width) as usize * r..][..r];
            out.chunks_mut(r).for_each(|run| run.copy_from_slice(&column[..run.len()]));
        }
        Ok(())
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }
}

/// `W_ij @ B_i + B_i` added to every block.
struct Multiplied {
    /// `[out / r, r, r]`
    blocks: Recipe,
}

impl Rewrite for Multiplied {
    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let r = self.blocks.shape().row_len() as usize;
        let cols = base.shape().row_len() as usize;
        let mut block = scratch.take_floats(r * r);
        let mut sums = scratch.take_floats(r);
        let mut at = None;
        let mut result = Ok(());
        for (row, values) in rows.zip(values.chunks_exact_mut(cols)) {
            let (i, p) = (row / r as u64, (row % r as u64) as usize);
            if at != Some(i) {
                result = self.blocks.rows(i * r as u64..(i + 1) * r as u64, &mut block, scratch);
                if result.is_err() {
                    break;
                }
                at = Some(i);
            }
            for run in values.chunks_exact_mut(r) {
                sums.fill(0.0);
                for (w, b) in run.iter().zip(block.chunks_exact(r)) {
                    sums.iter_mut().zip(b).for_each(|(s, b)| *s += w * b);
                }
                for ((w, s), b) in run.iter_mut().zip(&sums).zip(&block[p * r..]) {
                    *w += s + b;
                }
            }
        }
        scratch.give_floats(block);
        scratch.give_floats(sums);
        result
    }
}

/// Plans MiSS, or Bone, whose parameter is `parameter`.
pub(super) fn miss(mut module: Module, parameter: &str, cx: &mut Context) -> Result<(), AdapterError> {
    let block = module.need(parameter, "other parameters", cx.label)?;
    let weight = linear(&module.name, &block, cx)?;
    let form = cx.config.text("init_weights").map(str::to_ascii_lowercase);
    let (rank, effect) = match (form.as_deref(), block.dims()) {
        (Some("bat"), &[n, r, c]) if r == c && r > 0 && n * r == weight.outputs && weight.inputs % r == 0 => {
            (r, Effect::Rewrites(Box::new(Multiplied { blocks: block.recipe.clone() })))
        }
        (Some("bat"), _) => {
            return Err(cx.mismatch(&block, &weight.target, "square blocks that divide it evenly"));
        }
        (form, &[r, width])
            if r > 0
                && r <= weight.inputs
                && (width == weight.outputs || form == Some("mini") && width > 0 && weight.outputs % width == 0) =>
        {
            (r, Effect::Adds(Box::new(Repeated { block: block.recipe.clone().transposed()?, values: Recent::new() })))
        }
        _ => return Err(cx.mismatch(&block, &weight.target, format!("[r, {}]", weight.outputs))),
    };
    let kind = if parameter == "bone_block" { "Bone" } else { "MiSS" };
    cx.edit(&weight.target, &module.name, Edit::new(kind, Some(rank), &[&block], effect));
    cx.nothing_left(&module)
}

/// Circulant blocks.
struct Circulant {
    /// `[out / b, in / b, b]`
    kernel: Recipe,
    inputs: f32,
    /// PEFT rounds the matrix to the model's type before it divides.
    round: fn(f32) -> f32,
}

impl Addend for Circulant {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let [_, n, b] = *self.kernel.shape().dims() else { return Ok(()) };
        let (across, size) = (n as usize, b as usize);
        let mut kernel = scratch.take_floats(across * size);
        let mut at = None;
        let mut result = Ok(());
        for (row, out) in rows.zip(out.chunks_exact_mut(across * size)) {
            let (m, t) = (row / b, (row % b) as usize);
            if at != Some(m) {
                result = self.kernel.rows(m * n..(m + 1) * n, &mut kernel, scratch);
                if result.is_err() {
                    break;
                }
                kernel.iter_mut().for_each(|v| *v = (self.round)(*v) / self.inputs);
                at = Some(m);
            }
            for (out, w) in out.chunks_exact_mut(size).zip(kernel.chunks_exact(size)) {
                out[t..].copy_from_slice(&w[..size - t]);
                out[..t].copy_from_slice(&w[size - t..]);
            }
        }
        scratch.give_floats(kernel);
        result
    }

    fn step(&self, cols: u64) -> u64 {
        change::step(cols)
    }
}

/// Plans C3A.
pub(super) fn c3a(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let kernel = module.need("c3a_kernel", "other parameters", cx.label)?;
    let weight = linear(&module.name, &kernel, cx)?;
    match *kernel.dims() {
        [m, n, b] if b > 0 && m * b == weight.outputs && n * b == weight.inputs => {}
        _ => {
            let needs = format!("[{} / b, {} / b, b]", weight.outputs, weight.inputs);
            return Err(cx.mismatch(&kernel, &weight.target, needs));
        }
    }
    let block = kernel.dims()[2];
    let effect = Effect::Adds(Box::new(Circulant {
        kernel: kernel.recipe.clone(),
        inputs: weight.inputs as f32,
        round: cx.dtype.rounding().unwrap_or(|x| x),
    }));
    // PEFT rounds the delta to the model's type before it adds it.
    let edit = Edit { rounds_addend: true, ..Edit::new("C3A", Some(block), &[&kernel], effect) };
    cx.edit(&weight.target, &module.name, edit);
    cx.nothing_left(&module)
}
