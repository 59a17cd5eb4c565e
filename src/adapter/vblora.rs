//! VB-LoRA (arXiv:2405.15179): both factors are put together from a bank of vectors that all layers share.
//!
//! Every piece of a factor is a mixture of the `topk` vectors whose logits are largest, with the softmax of those as
//! weights. The file holds all logits, or (`save_only_topk_weights`) the chosen indices and all weights but the last.
//! `A` `[r, in]` has its pieces along the rows, `B` `[out, r]` along the columns; `Δ = B @ A`.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterError;
use super::change::Effect;
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit, Weight};
use super::lazy::Recent;
use super::lowrank::Factors;
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;

/// How a factor's mixtures are stored, both `[pieces, ..]`.
enum Choice {
    /// Logits of all vectors, and how many count.
    Logits(Recipe, usize),
    /// Indices of the vectors, and the weights of all but the last of them.
    Chosen(Recipe, Recipe),
}

/// Pieces `[n, length]` of a factor, each a mixture of vectors.
struct Mixtures {
    choice: Choice,
    /// `[vectors, length]`
    bank: Recipe,
    shape: Shape,
    values: Recent,
}

impl Mixtures {
    fn compute(&self, scratch: &mut Scratch) -> Result<Vec<f32>, ReadError> {
        let (vectors, length) = (self.bank.shape().rows(), self.bank.shape().row_len() as usize);
        let mut bank = vec![0f32; vectors as usize * length];
        self.bank.rows(0..vectors, &mut bank, scratch)?;
        let mut values = vec![0f32; self.shape.elements() as usize];
        for (piece, out) in (0..self.shape.rows()).zip(values.chunks_exact_mut(length)) {
            for (vector, weight) in self.weights(piece, scratch)? {
                if vector as u64 >= vectors {
                    let cause = format!("chooses a vector that the bank of {vectors} does not have; restore the file");
                    return Err(ReadError::new(self.describe(), cause));
                }
                out.iter_mut().zip(&bank[vector * length..]).for_each(|(v, x)| *v += weight * x);
            }
        }
        Ok(values)
    }

    /// The vectors of a piece and their weights.
    fn weights(&self, piece: u64, scratch: &mut Scratch) -> Result<Vec<(usize, f32)>, ReadError> {
        match &self.choice {
            Choice::Logits(logits, topk) => {
                let mut row = vec![0f32; logits.shape().row_len() as usize];
                logits.rows(piece..piece + 1, &mut row, scratch)?;
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|&i, &j| row[j].total_cmp(&row[i]));
                order.truncate(*topk);
                let largest = order.first().map_or(0.0, |&i| row[i]);
                let total: f32 = order.iter().map(|&i| (row[i] - largest).exp()).sum();
                Ok(order.into_iter().map(|i| (i, (row[i] - largest).exp() / total)).collect())
            }
            Choice::Chosen(indices, weights) => {
                let mut chosen = vec![0f32; indices.shape().row_len() as usize];
                indices.rows(piece..piece + 1, &mut chosen, scratch)?;
                let mut all = vec![0f32; weights.shape().row_len() as usize];
                weights.rows(piece..piece + 1, &mut all, scratch)?;
                all.push(1.0 - all.iter().sum::<f32>());
                let index = |i: f32| if i < 0.0 { usize::MAX } else { i as usize };
                Ok(chosen.into_iter().map(index).zip(all).collect())
            }
        }
    }
}

impl RowSource for Mixtures {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.bank.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.values.copy_rows(rows, self.shape.row_len(), out, || self.compute(scratch))
    }

    fn describe(&self) -> String {
        match &self.choice {
            Choice::Logits(logits, _) => format!("{logits:?}"),
            Choice::Chosen(indices, _) => format!("{indices:?}"),
        }
    }
}

/// Takes one factor's mixtures, `[first, second]` pieces of them, from the module: its pieces, and the tensors.
fn mixtures(
    name: &str,
    (first, second): (u64, u64),
    bank: &Tensor,
    module: &mut Module,
    weight: &Weight,
    cx: &Context,
) -> Result<(Recipe, Vec<Tensor>), AdapterError> {
    let &[vectors, length] = bank.dims() else { return Err(cx.mismatch(bank, &weight.target, "a matrix of vectors")) };
    let pieces = first * second;
    let flat = |tensor: &Tensor, last: u64| {
        cx.expect(tensor, &weight.target, &[first, second, last])?;
        tensor.recipe.clone().reshape(Shape::matrix(pieces, last)).map_err(AdapterError::from)
    };
    let topk = cx.config.count("topk")?.unwrap_or(2);
    if topk == 0 || topk > vectors {
        return Err(cx.config.bad("topk", format!("is {topk}, but the bank has {vectors} vectors")));
    }
    let (choice, parts) = match module.take(name) {
        Some(logits) => (Choice::Logits(flat(&logits, vectors)?, topk as usize), vec![logits]),
        None => {
            let (indices, weights) = (format!("{name}_topk_indices"), format!("{name}_topk_weights"));
            let indices = module.need(&indices, "other parameters", cx.label)?;
            let weights = module.need(&weights, &indices.name, cx.label)?;
            let count = indices.dims().last().copied().unwrap_or(0).max(1);
            (Choice::Chosen(flat(&indices, count)?, flat(&weights, count - 1)?), vec![indices, weights])
        }
    };
    let shape = Shape::matrix(pieces, length);
    let recipe = Recipe::source(Arc::new(Mixtures { choice, bank: bank.recipe.clone(), shape, values: Recent::new() }));
    Ok((recipe, parts))
}

/// Plans VB-LoRA.
pub(super) fn vblora(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let Some(bank) = cx.shared("vblora_vector_bank", &mut module) else {
        return Err(AdapterError::Missing {
            adapter: cx.label.to_string(),
            module: module.name.clone(),
            has: "vblora_logits".into(),
            needs: "vblora_vector_bank".into(),
        });
    };
    let known = ["vblora_logits_A", "vblora_logits_A_topk_indices"];
    let Some(known) = known.iter().find_map(|name| module.peek(name)).cloned() else {
        return Err(AdapterError::Missing {
            adapter: cx.label.to_string(),
            module: module.name.clone(),
            has: "other parameters".into(),
            needs: known[0].into(),
        });
    };
    let weight = cx.weight(&module.name, &known)?;
    let length = bank.dims().last().copied().unwrap_or(0);
    let rank = known.dims().first().copied().unwrap_or(0);
    if length == 0 || weight.inputs % length != 0 || weight.outputs % length != 0 {
        return Err(cx.mismatch(&bank, &weight.target, "vectors whose length divides both sides"));
    }
    let (across, down) = (weight.inputs / length, weight.outputs / length);
    let (a, mut parts) = mixtures("vblora_logits_A", (rank, across), &bank, &mut module, &weight, cx)?;
    let (b, more) = mixtures("vblora_logits_B", (down, rank), &bank, &mut module, &weight, cx)?;
    parts.extend(more);
    let a = a.reshape(Shape::matrix(rank, weight.inputs))?;
    // Pieces `[down, rank, length]`: turned within each, they are rows of B.
    let Some(pieces) = Shape::new([down, rank, length]) else {
        return Err(cx.mismatch(&known, &weight.target, "a rank that a file can have"));
    };
    let b = b.reshape(pieces)?.transposed()?.reshape(Shape::matrix(weight.outputs, rank))?;
    let (a, b) = if weight.transposed { (b.transposed()?, a.transposed()?) } else { (a, b) };
    let effect = Effect::LowRank(Factors::new(a, b, 1.0));
    parts.push(bank);
    let edit = Edit::new("VB-LoRA", Some(rank), &parts.iter().collect::<Vec<_>>(), effect);
    cx.edit(&weight.target, &module.name, edit);
    cx.nothing_left(&module)
}
