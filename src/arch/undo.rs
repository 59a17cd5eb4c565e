//! What undoes the operations of a table: the source tensor from all that was made of it.

use super::claim::{degrouped_order, matrix_rows};
use super::config::Config;
use super::error::ArchError;
use super::spec::Op;
use crate::recipe::{Elementwise, Recipe, RowMap, ShapeError};
use crate::shape::Shape;

/// The tensor that each of these operations was applied to, from their results; `None` where they do not say all of
/// it.
pub(super) fn undo(
    results: Vec<(&[Op], Recipe)>,
    config: &Config,
    error: &dyn Fn(ShapeError) -> ArchError,
) -> Result<Option<Recipe>, ArchError> {
    let mut parts = Vec::new();
    let mut before: &[Op] = &[];
    let several = results.len() > 1;
    for (ops, mut recipe) in results {
        let at = ops.iter().position(is_part);
        let after = at.map_or(if several { ops } else { &[] }, |at| &ops[at + 1..]);
        for op in after.iter().rev() {
            match step_back(*op, recipe, config, error)? {
                Some(earlier) => recipe = earlier,
                None => return Ok(None),
            }
        }
        match at {
            Some(at) => {
                before = &ops[..at];
                parts.push((ops[at], recipe));
            }
            // The whole of the source went into this result.
            None if several => return Ok(Some(recipe)),
            None => return whole(ops, recipe, config, error),
        }
    }
    match joined(parts, config, error)? {
        Some(recipe) => whole(before, recipe, config, error),
        None => Ok(None),
    }
}

/// Undoes operations that keep every element.
fn whole(
    ops: &[Op],
    mut recipe: Recipe,
    config: &Config,
    error: &dyn Fn(ShapeError) -> ArchError,
) -> Result<Option<Recipe>, ArchError> {
    for op in ops.iter().rev() {
        match step_back(*op, recipe, config, error)? {
            Some(earlier) => recipe = earlier,
            None => return Ok(None),
        }
    }
    Ok(Some(recipe))
}

/// Whether an operation takes a part of its tensor.
fn is_part(op: &Op) -> bool {
    matches!(op, Op::Part { .. } | Op::Rows { .. } | Op::Every { .. } | Op::EveryColumn { .. })
}

fn step_back(
    op: Op,
    recipe: Recipe,
    config: &Config,
    error: &dyn Fn(ShapeError) -> ArchError,
) -> Result<Option<Recipe>, ArchError> {
    let earlier = match op {
        Op::Rope(heads) => recipe.rope_restored(heads.value(config)?),
        Op::Add(c) => Ok(recipe.map(Elementwise::Add(-c))),
        Op::Transpose => recipe.transposed(),
        Op::Heads(_) => match *recipe.shape().dims() {
            [heads, rows, width] => recipe.reshape(Shape::matrix(heads * rows, width)),
            _ => return Ok(None),
        },
        Op::Degroup { groups, heads } => {
            let order = degrouped_order(&recipe, groups.value(config)?, heads.value(config)?).map_err(error)?;
            let mut inverse = vec![0; order.len()];
            for (to, from) in order.iter().enumerate() {
                inverse[*from as usize] = to as u64;
            }
            let rows = inverse.len() as u64;
            recipe.select(RowMap::Gather(inverse.into()), rows)
        }
        // The tensor without these dimensions, or with these rows only, gives the same result.
        Op::Squeeze | Op::TokenRows(_) => Ok(recipe),
        Op::NegExp => return Ok(None),
        Op::Part { .. } | Op::Rows { .. } | Op::Every { .. } | Op::EveryColumn { .. } => return Ok(None),
    };
    earlier.map(Some).map_err(error)
}

/// The tensor of which these operations took these parts; `None` where a part is missing.
fn joined(
    parts: Vec<(Op, Recipe)>,
    config: &Config,
    error: &dyn Fn(ShapeError) -> ArchError,
) -> Result<Option<Recipe>, ArchError> {
    // Where each part begins, how far its rows lie apart, and how many parts there must be.
    let mut placed = Vec::with_capacity(parts.len());
    let mut columns = false;
    for (op, recipe) in parts {
        let place = match op {
            Op::Part { index, of } => (index * matrix_rows(&recipe), 1, Some(of)),
            Op::Rows { start, count } if count.value(config)? == matrix_rows(&recipe) => {
                (start.value(config)?, 1, None)
            }
            Op::Every { start, step } => (start, step, Some(step)),
            Op::EveryColumn { start, step } => {
                columns = true;
                (start, step, Some(step))
            }
            _ => return Ok(None),
        };
        placed.push((place, recipe));
    }
    placed.sort_by_key(|((start, ..), _)| *start);
    let mut end = 0;
    let number = placed.len() as u64;
    for ((start, step, needed), recipe) in &placed {
        if *start != end || needed.is_some_and(|n| n != number) {
            return Ok(None);
        }
        end += if *step == 1 { matrix_rows(recipe) } else { 1 };
    }
    let apart = placed.first().map_or(1, |((_, step, _), _)| *step);
    let recipes = placed.into_iter().map(|(_, recipe)| recipe).collect();
    let whole = match (apart, columns) {
        (1, _) => one_after_another(recipes),
        (_, false) => in_turn(recipes),
        (_, true) => columns_in_turn(recipes),
    };
    whole.map(Some).map_err(error)
}

/// Parts of matrices, one below the other within each matrix of a stack.
fn one_after_another(parts: Vec<Recipe>) -> Result<Recipe, ShapeError> {
    let [matrices, _, width] = *parts[0].shape().dims() else { return Recipe::concat(parts) };
    let mut pieces = Vec::with_capacity(parts.len() * matrices as usize);
    for matrix in 0..matrices {
        for part in &parts {
            let rows = matrix_rows(part);
            pieces.push(part.clone().slice(matrix, 1)?.reshape(Shape::matrix(rows, width))?);
        }
    }
    let rows = parts.iter().map(matrix_rows).sum();
    reshaped(Recipe::concat(pieces)?, vec![matrices, rows, width])
}

/// Rows of the parts in turn.
fn in_turn(parts: Vec<Recipe>) -> Result<Recipe, ShapeError> {
    let mut dims = parts[0].shape().dims().to_vec();
    let at = dims.len().saturating_sub(2);
    let number = parts.len() as u64;
    dims[at] *= number;
    let width = if dims.len() == 1 { 1 } else { parts[0].shape().row_len() };
    let rows = parts[0].shape().elements() / width.max(1);
    let flat = parts.into_iter().map(|p| p.reshape(Shape::matrix(rows, width))).collect::<Result<Vec<_>, _>>()?;
    let turned = Recipe::concat(flat)?.select(RowMap::Interleave { parts: number, rows }, number * rows)?;
    reshaped(turned, dims)
}

/// Elements of the parts' rows in turn.
fn columns_in_turn(parts: Vec<Recipe>) -> Result<Recipe, ShapeError> {
    let mut dims = parts[0].shape().dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last *= parts.len() as u64;
    }
    let singles = |p: Recipe| {
        let n = p.shape().elements();
        p.reshape(Shape::vector(n))
    };
    let flat = parts.into_iter().map(singles).collect::<Result<Vec<_>, _>>()?;
    reshaped(in_turn(flat)?, dims)
}

fn reshaped(recipe: Recipe, dims: Vec<u64>) -> Result<Recipe, ShapeError> {
    match Shape::new(dims) {
        Some(shape) => recipe.reshape(shape),
        None => Ok(recipe),
    }
}
