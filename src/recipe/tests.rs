//! One property for every word of the vocabulary: rows cut into any ranges equal the rows in one piece, and
//! both equal a plain model of the word over nested indices.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Delta, Elementwise, NotLowRank, ReadError, Recipe, RowMap, RowSource, Scratch, Term};
use crate::quant::GgmlType;
use crate::shape::Shape;

/// A tensor in memory whose elements count up from `first`.
struct Counting {
    shape: Shape,
    first: f32,
}

impl RowSource for Counting {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::F32
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        let start = rows.start * self.shape.row_len();
        out.iter_mut().enumerate().for_each(|(i, x)| *x = self.first + (start + i as u64) as f32);
        Ok(())
    }

    fn describe(&self) -> String {
        "counting".to_owned()
    }
}

fn counting(dims: &[u64], first: f32) -> Recipe {
    Recipe::source(Arc::new(Counting { shape: Shape::new(dims).unwrap(), first }))
}

fn whole(recipe: &Recipe) -> Vec<f32> {
    let mut out = vec![f32::NAN; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out
}

fn pieces(recipe: &Recipe, step: u64) -> Vec<f32> {
    let (rows, len) = (recipe.shape().rows(), recipe.shape().row_len());
    let mut scratch = Scratch::default();
    let mut all = Vec::new();
    for start in (0..rows).step_by(step as usize) {
        let end = (start + step).min(rows);
        let mut out = vec![f32::NAN; ((end - start) * len) as usize];
        recipe.rows(start..end, &mut out, &mut scratch).unwrap();
        all.extend(out);
    }
    all
}

/// Applies one word, chosen by number, where the shape allows it.
fn word(input: Recipe, which: u8, a: u64, b: u64) -> Recipe {
    let dims = input.shape().dims().to_vec();
    let rows = input.shape().rows();
    let attempt = match which {
        0 => input.clone().transposed(),
        1 => input.clone().slice(a % (dims[0] + 1), b % (dims[0] + 1 - a % (dims[0] + 1))),
        2 => {
            let len = input.shape().row_len();
            input.clone().columns(a % (len + 1), b % (len + 1 - a % (len + 1)))
        }
        3 => input.clone().rope_permuted(a % 4 + 1),
        4 => {
            let order: Vec<u64> = (0..rows).map(|i| (i * (2 * a + 1) + b) % rows.max(1)).collect();
            input.clone().select(RowMap::Gather(order.into()), rows)
        }
        5 => Recipe::concat(vec![input.clone(), input.clone().map(Elementwise::Add(0.5))]),
        6 => Recipe::stack(vec![input.clone(), input.clone(), input.clone()]),
        7 => Ok(input.clone().map(Elementwise::Scale(2.0))),
        8 => input.clone().select(RowMap::Stride { start: a % 2, step: 2 }, rows / 2),
        _ => {
            let n = input.shape().elements();
            let width = (1..=a % 7 + 1).rev().find(|w| n.is_multiple_of(*w)).unwrap_or(1);
            input.clone().reshape(Shape::matrix(n / width, width))
        }
    };
    attempt.unwrap_or(input)
}

proptest! {
    #[test]
    fn rows_in_pieces_equal_rows_at_once(
        dims in prop::collection::vec(1u64..7, 1..4),
        words in prop::collection::vec((0u8..10, 0u64..9, 0u64..9), 0..5),
        step in 1u64..9,
    ) {
        let recipe = words.iter().fold(counting(&dims, 1.0), |r, &(w, a, b)| word(r, w, a, b));
        prop_assume!(recipe.shape().elements() < 50_000);
        prop_assert_eq!(pieces(&recipe, step), whole(&recipe));
    }

    #[test]
    fn windows_equal_columns_of_whole_rows(
        words in prop::collection::vec((0u8..10, 0u64..9, 0u64..9), 0..4),
        start in 0u64..5,
    ) {
        let recipe = words.iter().fold(counting(&[4, 6], 1.0), |r, &(w, a, b)| word(r, w, a, b));
        let len = recipe.shape().row_len();
        prop_assume!(start < len && recipe.shape().ndim() > 0);
        let expected: Vec<f32> =
            whole(&recipe).chunks_exact(len as usize).flat_map(|r| r[start as usize..].to_vec()).collect();
        prop_assert_eq!(whole(&recipe.clone().columns(start, len - start).unwrap()), expected);
    }
}

/// A product of two counting matrices that is added.
struct Product {
    a: Recipe,
    b: Recipe,
}

impl Delta for Product {
    fn apply(&self, _: &Recipe, rows: Range<u64>, values: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        let (a, b) = (whole(&self.a), whole(&self.b));
        let (rank, cols) = (self.a.shape().rows() as usize, self.a.shape().row_len() as usize);
        for (row, values) in rows.zip(values.chunks_exact_mut(cols)) {
            for (j, v) in values.iter_mut().enumerate() {
                *v += (0..rank).map(|k| b[row as usize * rank + k] * a[k * cols + j]).sum::<f32>();
            }
        }
        Ok(())
    }

    fn terms(&self, _: &Recipe) -> Option<Vec<Term>> {
        Some(vec![Term { a: self.a.clone(), b: self.b.clone(), scale: 1.0 }])
    }

    fn describe(&self) -> String {
        "a product".into()
    }
}

/// What the terms of a recipe add up to.
fn added(terms: Vec<Term>, recipe: &Recipe) -> Vec<f32> {
    let sum = Term::sum(terms, 1.0).unwrap();
    let (a, b, rank, cols) = (whole(&sum.a), whole(&sum.b), sum.rank() as usize, recipe.shape().row_len() as usize);
    let height = if recipe.shape().ndim() > 2 { recipe.shape().dims()[1] as usize } else { usize::MAX };
    let at = |i: usize, j: usize| {
        let a = &a[if sum.a.shape().ndim() > 2 { i / height * rank * cols } else { 0 }..];
        (0..rank).map(|k| b[i * rank + k] * a[k * cols + j]).sum::<f32>()
    };
    (0..recipe.shape().rows() as usize).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
}

proptest! {
    /// Factors go the way of the weights: the product of what comes out is what merging added.
    #[test]
    fn factors_are_arranged_as_the_merged_weights_are(
        (rows, cols, rank) in (1u64..7, 1u64..7, 1u64..4),
        words in prop::collection::vec((0u8..10, 0u64..9, 0u64..9), 0..4),
    ) {
        let base = Recipe::constant(Shape::matrix(rows, cols), vec![0.0; (rows * cols) as usize]).unwrap();
        let product = Product { a: counting(&[rank, cols], 1.0), b: counting(&[rows, rank], -2.0) };
        let apply = |r: Recipe| words.iter().fold(r, |r, &(w, a, b)| word(r, w, a, b));
        let (merged, plain) = (apply(base.clone().merged(vec![Arc::new(product)])), apply(base));
        prop_assume!(merged.shape().elements() < 5_000 && (2..=3).contains(&merged.shape().ndim()));
        // Reshapes that mix rows and columns have no factors, and say so.
        if let Ok(terms) = merged.low_rank() {
            let want: Vec<f32> = whole(&merged).iter().zip(whole(&plain)).map(|(m, p)| m - p).collect();
            prop_assert_eq!(added(terms, &merged), want);
        }
    }
}

#[test]
fn factors_of_matrices_without_rows_are_no_arrangement() {
    let product = Product { a: counting(&[1, 2], 1.0), b: counting(&[1, 1], 1.0) };
    let base = Recipe::constant(Shape::matrix(1, 2), vec![0.0; 2]).unwrap();
    let none = base.merged(vec![Arc::new(product)]).select(RowMap::Stride { start: 0, step: 2 }, 0).unwrap();
    let stack = Recipe::stack(vec![none.clone(), none.clone(), none]).unwrap();
    for (start, len) in [(0, 0), (0, 2), (1, 1)] {
        let part = stack.clone().slice(start, len).unwrap();
        assert!(matches!(part.low_rank(), Err(NotLowRank::Arrangement { .. })), "{start} {len}");
    }
}

#[test]
fn transposing_swaps_the_last_two_dimensions() {
    let t = counting(&[2, 2, 3], 0.0).transposed().unwrap();
    assert_eq!(t.shape().dims(), [2, 3, 2]);
    assert_eq!(whole(&t), [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
}

#[test]
fn the_rotary_permutation_interleaves_the_halves_of_each_head() {
    let p = counting(&[8, 1], 0.0).rope_permuted(2).unwrap();
    assert_eq!(whole(&p), [0., 2., 1., 3., 4., 6., 5., 7.]);
    let bias = counting(&[8], 0.0).rope_permuted(1).unwrap();
    assert_eq!(whole(&bias), [0., 4., 1., 5., 2., 6., 3., 7.]);
}

#[test]
fn ill_shaped_recipes_cannot_be_built() {
    assert!(counting(&[5], 0.0).rope_permuted(1).is_err());
    assert!(counting(&[4, 2], 0.0).slice(3, 2).is_err());
    assert!(counting(&[4, 2], 0.0).columns(1, 2).is_err());
    assert!(counting(&[4, 2], 0.0).reshape(Shape::vector(7)).is_err());
    assert!(counting(&[4], 0.0).transposed().is_err());
    assert!(Recipe::concat(vec![counting(&[4, 2], 0.0), counting(&[4, 3], 0.0)]).is_err());
    assert!(Recipe::stack(vec![counting(&[4, 2], 0.0), counting(&[2, 4], 0.0)]).is_err());
    assert!(counting(&[4, 2], 0.0).select(RowMap::Stride { start: 1, step: 2 }, 3).is_err());
}
