//! What an adapter does to one tensor, and the wrapper that makes it a [`Delta`]: weights, rounding, measuring
//! and checking are the same for every form.
//!
//! With several adapters, *full deltas* are combined: `W + sum of weight_i * (merged_i(W) - W)`, in f32. A form
//! that adds needs only its addend for that; one that rewrites (a norm, a rotation) is evaluated on the
//! unmerged tensor.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;

use half::{bf16, f16};

use super::lowrank::Factors;
use super::passes::{self, Squares, squares};
use crate::quant::GgmlType;
use crate::recipe::{Delta, LowRank, ReadError, Recipe, Scratch, Term};

/// The type in which merging happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MergeDtype {
    /// In f32: nothing is rounded before the output type.
    #[default]
    F32,
    /// As PEFT merges into a model that was loaded in bf16: the sum is rounded after each adapter.
    Bf16,
    /// As PEFT merges into a model that was loaded in f16.
    F16,
}

impl MergeDtype {
    /// The type as the precision of a recipe; `None` where each tensor keeps its own.
    pub fn precision(self) -> Option<GgmlType> {
        match self {
            MergeDtype::F32 => None,
            MergeDtype::Bf16 => Some(GgmlType::BF16),
            MergeDtype::F16 => Some(GgmlType::F16),
        }
    }

    /// The rounding of one value, if there is any.
    pub fn rounding(self) -> Option<fn(f32) -> f32> {
        match self {
            MergeDtype::F32 => None,
            MergeDtype::Bf16 => Some(|x| bf16::from_f32(x).to_f32()),
            MergeDtype::F16 => Some(|x| f16::from_f32(x).to_f32()),
        }
    }
}

/// Elements of a step between passes over the same rows: few enough that the next pass finds them in a core's own
/// cache.
const STEP: u64 = 1 << 16;

/// The rows of a step, of `cols` elements each.
pub(super) fn step(cols: u64) -> u64 {
    (STEP / cols.max(1)).max(1)
}

/// A change that adds rows to rows, whatever they are.
pub(super) trait Addend: Send + Sync {
    /// Writes rows `rows` of the full delta (scaled) over `out`.
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError>;

    /// Rows of `cols` elements that are best asked for at a time: all that are wanted, unless they are cheap to begin
    /// with, and better added while they are near.
    fn step(&self, _cols: u64) -> u64 {
        u64::MAX
    }

    /// Adds rows `rows` of the delta to `values` without writing them down first; `None` for a form that cannot.
    fn add(
        &self,
        _rows: Range<u64>,
        _values: &mut [f32],
        _scratch: &mut Scratch,
    ) -> Option<Result<Squares, ReadError>> {
        None
    }

    /// The delta as products of factors, where it is one for each matrix of a stack.
    fn terms(&self) -> Option<Vec<Term>> {
        None
    }
}

/// A change that makes new rows from the tensor's own.
pub(super) trait Rewrite: Send + Sync {
    /// Turns `values`, the rows `rows` of `base`, into the merged rows.
    fn rows(&self, base: &Recipe, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch)
    -> Result<(), ReadError>;

    /// Rows of `cols` elements that are best turned at a time: all that are wanted, unless it goes over them often.
    fn step(&self, _cols: u64) -> u64 {
        u64::MAX
    }

    /// The same, measured.
    fn measured(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Squares, ReadError> {
        let mut before = scratch.take_floats(values.len());
        before.copy_from_slice(values);
        let result = self.rows(base, rows, values, scratch).map(|()| passes::compare(&before, values));
        scratch.give_floats(before);
        result
    }

    /// The difference that it makes as products of factors, where it is one.
    fn terms(&self, _base: &Recipe) -> Option<Vec<Term>> {
        None
    }

    /// The factors and magnitudes, where there is nothing else to it.
    fn low_rank(&self) -> Option<&dyn LowRank> {
        None
    }
}

/// The forms of a change.
pub(super) enum Effect {
    /// `+ scale * B @ A`.
    LowRank(Factors),
    /// `+ anything`.
    Adds(Box<dyn Addend>),
    /// Anything else.
    Rewrites(Box<dyn Rewrite>),
}

/// How much a tensor changed, gathered while its rows stream by. Rows that are evaluated twice count twice in
/// both sums, so the ratio stays right.
#[derive(Debug, Default)]
pub struct Meter {
    sums: Mutex<Sums>,
    /// The first change's to the same tensor: what it is given are the rows of the unmerged tensor.
    first: Option<Arc<Meter>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    base: f64,
    delta: f64,
    elements: u64,
}

impl Meter {
    /// The meter of a change that comes after the one that `first` measures.
    pub(super) fn after(first: Option<Arc<Meter>>) -> Self {
        Meter { sums: Mutex::default(), first }
    }

    fn sums(&self) -> Sums {
        *self.sums.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds the sums of squares of `elements` elements of the unmerged tensor and of the change to it.
    pub fn record(&self, base: f64, delta: f64, elements: u64) {
        let mut sums = self.sums.lock().unwrap_or_else(|e| e.into_inner());
        sums.base += base;
        sums.delta += delta;
        sums.elements += elements;
    }

    /// `‖Δ‖ / ‖W‖` over the rows seen so far, in the Frobenius norm; `None` before the first row. A change to a
    /// tensor of zeros is infinite.
    pub fn ratio(&self) -> Option<f64> {
        match self.sums() {
            Sums { elements: 0, .. } => None,
            Sums { delta: 0.0, .. } => Some(0.0),
            Sums { base, delta, .. } => Some((delta / self.first.as_ref().map_or(base, |m| m.sums().base)).sqrt()),
        }
    }

    /// `‖Δ‖` over the rows seen so far.
    pub fn norm(&self) -> f64 {
        self.sums().delta.sqrt()
    }
}

/// One adapter's change to one tensor.
pub(super) struct Change {
    /// What it does.
    pub(super) effect: Effect,
    /// The weight of the adapter. Low-rank factors have it in their scale.
    pub(super) weight: f32,
    /// Whether no other change comes before it: then the rows it is given are those of the unmerged tensor.
    pub(super) first: bool,
    /// Rounding after the change.
    pub(super) dtype: MergeDtype,
    /// Whether PEFT rounds what it adds before it adds it.
    pub(super) rounds_addend: bool,
    /// Measures it.
    pub(super) meter: Arc<Meter>,
    /// The adapter and the module, for messages.
    pub(super) subject: String,
    /// The tensors of the adapter that it is made of, to find the culprit of a NaN.
    pub(super) parts: Vec<Recipe>,
}

impl Change {
    fn merge(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<Squares, ReadError> {
        let round_addend = if self.rounds_addend { self.dtype.rounding() } else { None };
        match &self.effect {
            Effect::LowRank(factors) => factors.add(rows, values, scratch, round_addend),
            Effect::Adds(addend) => {
                if self.weight == 1.0
                    && round_addend.is_none()
                    && let Some(added) = addend.add(rows.clone(), values, scratch)
                {
                    return added;
                }
                let cols = base.shape().row_len();
                in_steps(cols, rows, addend.step(cols), values, |rows, values| {
                    let mut delta = scratch.take_floats(values.len());
                    let result = addend.rows(rows, &mut delta, scratch).map(|()| {
                        if self.weight != 1.0 {
                            passes::scale(&mut delta, self.weight);
                        }
                        if let Some(round) = round_addend {
                            delta.iter_mut().for_each(|d| *d = round(*d));
                        }
                        passes::add(values, &delta)
                    });
                    scratch.give_floats(delta);
                    result
                })
            }
            Effect::Rewrites(rewrite) if self.first && self.weight == 1.0 => {
                let cols = base.shape().row_len();
                in_steps(cols, rows, rewrite.step(cols), values, |rows, values| {
                    rewrite.measured(base, rows, values, scratch)
                })
            }
            Effect::Rewrites(rewrite) => {
                let mut before = scratch.take_floats(values.len());
                let known = squares(values);
                let result = self.blend(rewrite.as_ref(), base, rows, values, &mut before, scratch);
                scratch.give_floats(before);
                result.map(|added| Squares { before: known, added })
            }
        }
    }

    /// `values += weight * (rewritten - base)`.
    fn blend(
        &self,
        rewrite: &dyn Rewrite,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        before: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<f64, ReadError> {
        if self.first {
            before.copy_from_slice(values);
        } else {
            base.rows(rows.clone(), before, scratch)?;
        }
        let mut after = scratch.take_floats(values.len());
        after.copy_from_slice(before);
        let result = rewrite.rows(base, rows, &mut after, scratch).map(|()| {
            let mut sum = 0f64;
            for ((v, after), before) in values.iter_mut().zip(&after).zip(&*before) {
                let delta = self.weight * (after - before);
                *v += delta;
                sum += f64::from(delta) * f64::from(delta);
            }
            sum
        });
        scratch.give_floats(after);
        result
    }

    /// Why the merged rows are not finite: the first bad element and whose it is.
    fn explain(&self, base: &Recipe, rows: Range<u64>, values: &[f32], scratch: &mut Scratch) -> ReadError {
        let cols = base.shape().row_len().max(1) as usize;
        let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let (row, col) = (rows.start + (at / cols) as u64, at % cols);
        let mut buffer = vec![0f32; cols];
        let culprit = match base.rows(row..row + 1, &mut buffer, scratch) {
            Ok(()) if !buffer[col].is_finite() => format!("the base model has {} there", buffer[col]),
            _ => match self.parts.iter().find_map(|part| first_bad(part, scratch)) {
                Some(found) => found,
                None => "the sum is too large for its type".into(),
            },
        };
        ReadError::new(
            &self.subject,
            format!("the merged value at row {row}, column {col} is {}: {culprit}; use a sound adapter", values[at]),
        )
    }
}

impl Delta for Change {
    fn apply(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let squares = self.merge(base, rows.clone(), values, scratch)?;
        self.meter.record(squares.before, squares.added, values.len() as u64);
        if let Some(round) = self.dtype.rounding() {
            values.iter_mut().for_each(|v| *v = round(*v));
        } else if squares.finite() {
            return Ok(());
        }
        if super::check::all_finite(values) { Ok(()) } else { Err(self.explain(base, rows, values, scratch)) }
    }

    fn low_rank(&self) -> Option<&dyn LowRank> {
        match &self.effect {
            _ if self.dtype != MergeDtype::F32 => None,
            Effect::LowRank(factors) => Some(factors),
            Effect::Rewrites(rewrite) if self.first && self.weight == 1.0 => rewrite.low_rank(),
            _ => None,
        }
    }

    fn record(&self, base: f64, change: f64, elements: u64) {
        self.meter.record(base, change, elements);
    }

    fn terms(&self, base: &Recipe) -> Option<Vec<Term>> {
        let mut terms = match &self.effect {
            Effect::LowRank(factors) => return Some(vec![factors.term()]),
            Effect::Adds(addend) => addend.terms()?,
            Effect::Rewrites(rewrite) => rewrite.terms(base)?,
        };
        terms.iter_mut().for_each(|t| t.scale *= f64::from(self.weight));
        Some(terms)
    }

    fn describe(&self) -> String {
        self.subject.clone()
    }
}

/// Changes `rows`, whose values of `cols` elements each are `values`, `step` rows at a time.
pub(super) fn in_steps(
    cols: u64,
    rows: Range<u64>,
    step: u64,
    values: &mut [f32],
    mut change: impl FnMut(Range<u64>, &mut [f32]) -> Result<Squares, ReadError>,
) -> Result<Squares, ReadError> {
    let (mut sums, mut start, mut rest) = (Squares::default(), rows.start, values);
    while start < rows.end {
        let end = start.saturating_add(step).min(rows.end);
        let (values, after) = rest.split_at_mut(((end - start) * cols) as usize);
        sums += change(start..end, values)?;
        (start, rest) = (end, after);
    }
    Ok(sums)
}

/// Rounds a tensor that no adapter changes to the type that the whole model is merged in.
pub(super) struct Rounding(pub(super) fn(f32) -> f32);

impl Delta for Rounding {
    fn apply(&self, _: &Recipe, _: Range<u64>, values: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        values.iter_mut().for_each(|v| *v = self.0(*v));
        Ok(())
    }

    fn describe(&self) -> String {
        "rounding to the merge type".into()
    }
}

/// The first element of an adapter's tensor that is no finite number.
fn first_bad(part: &Recipe, scratch: &mut Scratch) -> Option<String> {
    let cols = part.shape().row_len().max(1);
    let mut row = vec![0f32; cols as usize];
    (0..part.shape().rows()).find_map(|r| {
        part.rows(r..r + 1, &mut row, scratch).ok()?;
        let col = row.iter().position(|v| !v.is_finite())?;
        Some(format!("{part:?} has {} at row {r}, column {col}", row[col]))
    })
}
