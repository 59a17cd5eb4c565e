//! LoRA on parameters that are no layers (`target_parameters`): the stacked experts of a mixture.
//!
//! For a parameter `[E, d1, d2]` the file holds `A` `[r * E, in]` and `B` `[out, r * E]`, where the expert is
//! slowest in `A` (`[E, r, in]`) and fastest in `B` (`[out, r, E]`). PEFT 0.19 and later take `(out, in)` for
//! `(d1, d2)`, except where the model multiplies from the other side (`is_transposed`); PEFT up to 0.18 always
//! took `(in, out)`. So the delta of an expert is `B_e A_e`, or its transpose.
//!
//! A model may store the stack as one tensor, or each expert's matrices on their own: then `gate_up_proj` is the
//! gate's rows above the up-projection's.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterError;
use super::change::{Addend, Effect};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit, Target};
use super::lazy::Recent;
use super::lora;
use super::lowrank::Factors;
use super::names::{Found, last_word};
use super::passes::{Squares, squares};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch, Term};
use crate::shape::Shape;

/// Parameters in the order in which their modules define them, which is the order in which PEFT nests its
/// wrappers: the first is the innermost.
const DEFINED: [&str; 6] = ["weight", "bias", "gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"];

/// Models that multiply activations by their experts' matrices from the left.
const TRANSPOSED_MODELS: [&str; 3] = ["gpt_oss", "aria", "openai_privacy_filter"];

/// The matrices of one expert that make up a stacked parameter, in the order of its rows, under the names that
/// models store them by.
const PIECES: [(&str, &[&[&str]]); 2] =
    [("gate_up_proj", &[&["gate_proj", "w1"], &["up_proj", "w3"]]), ("down_proj", &[&["down_proj", "w2"]])];

/// Stacked parameters under the names of an earlier version of their module (Granite).
const FORMER: [(&str, &str); 2] = [("gate_up_proj", "input_linear"), ("down_proj", "output_linear")];

/// A parameter as the model stores it.
enum Stored {
    /// One tensor.
    Whole(Target),
    /// For each expert, its pieces.
    Split(Vec<Vec<Target>>),
}

/// The parameters of `module` that the config targets, in the order of their wrappers.
pub(super) fn targeted(module: &str, cx: &Context) -> Result<Vec<&'static str>, AdapterError> {
    let mut found = Vec::new();
    for parameter in DEFINED {
        let full = format!("{module}.{parameter}");
        let wanted =
            cx.config.texts("target_parameters").iter().any(|t| full == *t || full.ends_with(&format!(".{t}")));
        if wanted && find(module, parameter, cx)?.is_some() {
            found.push(parameter);
        }
    }
    Ok(found)
}

/// Plans the factors of one wrapper. `wrappers` is how many the module has.
pub(super) fn plan(mut module: Module, wrappers: usize, cx: &mut Context) -> Result<(), AdapterError> {
    let a = module.need("lora_A", "lora_B", cx.label)?;
    let b = module.need("lora_B", "lora_A", cx.label)?;
    let parameters = targeted(&module.name, cx)?;
    let position = wrappers - 1 - module.depth.min(wrappers - 1);
    let parameter = match parameters.get(position) {
        Some(parameter) if parameters.len() == wrappers => *parameter,
        _ => {
            return Err(cx.config.bad(
                "target_parameters",
                format!(
                    "names {} parameters of {}, but the file has factors for {wrappers} ({})",
                    parameters.len(),
                    module.name,
                    a.name
                ),
            ));
        }
    };
    match find(&module.name, parameter, cx)? {
        None => return Err(cx.no_such_module(&module.name, parameter, &a.name)),
        Some(Stored::Whole(target)) => whole(&module.name, parameter, &a, &b, target, cx)?,
        Some(Stored::Split(experts)) => split(&module.name, parameter, &a, &b, experts, cx)?,
    }
    cx.nothing_left(&module)
}

/// How the model stores a parameter.
fn find(module: &str, parameter: &str, cx: &Context) -> Result<Option<Stored>, AdapterError> {
    if let Some(target) = cx.find(module, parameter)? {
        return Ok(Some(Stored::Whole(target)));
    }
    if let Some((_, former)) = FORMER.iter().find(|(now, _)| *now == parameter)
        && let Some((parent, "experts")) = module.rsplit_once('.')
        && let Some(target) = cx.find(&format!("{parent}.{former}"), "weight")?
    {
        return Ok(Some(Stored::Whole(target)));
    }
    let Some((_, pieces)) = PIECES.iter().find(|(name, _)| *name == parameter) else { return Ok(None) };
    let mut experts = Vec::new();
    loop {
        let mut expert = Vec::with_capacity(pieces.len());
        for names in *pieces {
            let piece = names
                .iter()
                .map(|name| format!("{module}.{}.{name}", experts.len()))
                .find(|name| matches!(cx.names.find(name, "weight"), Found::One(_)));
            let Some(piece) = piece else { break };
            expert.extend(cx.find(&piece, "weight")?);
        }
        if expert.len() < pieces.len() {
            break;
        }
        experts.push(expert);
    }
    Ok((!experts.is_empty()).then_some(Stored::Split(experts)))
}

/// The factors of a stack of experts, and which way round they are.
struct Stack {
    a: Recipe,
    b: Recipe,
    experts: u64,
    rank: u64,
    scale: f64,
    /// Whether an expert's delta is `B_e A_e`, not its transpose.
    straight: bool,
}

impl Stack {
    fn new(
        path: &str,
        a: &Tensor,
        b: &Tensor,
        (experts, d1, d2): (u64, u64, u64),
        target: &Target,
        cx: &Context,
    ) -> Result<Self, AdapterError> {
        let [ranks, inputs] = a.dims() else { return Err(cx.mismatch(a, target, "a matrix")) };
        let [outputs, b_ranks] = b.dims() else { return Err(cx.mismatch(b, target, "a matrix")) };
        let (ranks, inputs, outputs) = (*ranks, *inputs, *outputs);
        if ranks % experts != 0 || ranks == 0 {
            return Err(cx.mismatch(a, target, format!("a multiple of {experts} rows, one group for each expert")));
        }
        if *b_ranks != ranks {
            return Err(cx.mismatch(b, target, format!("{ranks} columns, the rows of lora_A")));
        }
        let fits = |straight: bool| (outputs, inputs) == if straight { (d1, d2) } else { (d2, d1) };
        let straight = match (fits(true), fits(false)) {
            (true, true) => {
                let transposed = cx.base.model_type.as_deref().is_some_and(|m| TRANSPOSED_MODELS.contains(&m));
                experts == 1 || (!transposed && cx.config.peft_version().is_some_and(|v| v >= (0, 19)))
            }
            (straight, turned) if straight || turned => straight,
            _ => return Err(cx.mismatch(a, target, format!("{d1} or {d2} columns"))),
        };
        let scale = lora::scale(path, a, ranks, experts, cx)?;
        let rank = ranks / experts;
        let b = Recipe::source(Arc::new(ByExpert::new(b.recipe.clone(), experts)?));
        Ok(Stack { a: a.recipe.clone(), b, experts, rank, scale, straight })
    }

    /// The factors for rows `rows` of expert `expert`'s delta.
    fn factors(&self, expert: u64, rows: Range<u64>) -> Result<Factors, AdapterError> {
        let count = rows.end - rows.start;
        let a = self.a.clone().slice(expert * self.rank, self.rank)?;
        let outputs = self.b.shape().rows() / self.experts;
        let b = self.b.clone().slice(expert * outputs, outputs)?;
        Ok(if self.straight {
            Factors::new(a, b.slice(rows.start, count)?, self.scale)
        } else {
            let (a, b) = (b.transposed()?, a.columns(rows.start, count)?.transposed()?);
            Factors::new(a, b, self.scale)
        })
    }
}

/// A parameter that is stored as one tensor: two dimensions are an ordinary matrix, three a stack.
fn whole(
    module: &str,
    parameter: &str,
    a: &Tensor,
    b: &Tensor,
    target: Target,
    cx: &mut Context,
) -> Result<(), AdapterError> {
    let size = match target.shape().dims() {
        [d1, d2] => (1, *d1, *d2),
        [experts, d1, d2] if target.shape().elements() > 0 => (*experts, *d1, *d2),
        _ => {
            return Err(cx.refuse(
                format!("LoRA on the parameter {module}.{parameter}"),
                format!("it has shape {}, PEFT trains matrices and stacks of them", target.shape()),
                "leave it out of target_parameters",
            ));
        }
    };
    let stack = Stack::new(&format!("{module}.{parameter}"), a, b, size, &target, cx)?;
    let rank = Some(stack.rank);
    let effect = if size.0 == 1 && target.shape().ndim() == 2 {
        Effect::LowRank(stack.factors(0, 0..size.1)?)
    } else {
        let factors = (0..size.0).map(|e| stack.factors(e, 0..size.1)).collect::<Result<_, _>>()?;
        Effect::Adds(Box::new(ExpertDeltas { factors, rows: size.1 }))
    };
    // PEFT rounds the delta of a parameter to the model's type before it adds it.
    let edit = Edit { rounds_addend: true, ..Edit::new("LoRA of experts", rank, &[a, b], effect) };
    cx.edit(&target, &format!("{module}.{parameter}"), edit);
    Ok(())
}

/// A parameter whose experts are stored one by one.
fn split(
    module: &str,
    parameter: &str,
    a: &Tensor,
    b: &Tensor,
    experts: Vec<Vec<Target>>,
    cx: &mut Context,
) -> Result<(), AdapterError> {
    let first = &experts[0];
    let rows = |pieces: &[Target]| pieces.iter().map(|p| p.shape().rows()).sum::<u64>();
    let size = (experts.len() as u64, rows(first), first[0].shape().row_len());
    let stack = Stack::new(&format!("{module}.{parameter}"), a, b, size, &first[0], cx)?;
    for (expert, pieces) in experts.iter().enumerate() {
        let mut row = 0;
        for target in pieces {
            let count = target.shape().rows();
            if target.shape().row_len() != size.2 || row + count > size.1 {
                return Err(cx.mismatch(a, target, format!("the shape of {}", first[0].name)));
            }
            let effect = Effect::LowRank(stack.factors(expert as u64, row..row + count)?);
            let path = format!("{module}.{parameter} ({})", last_word(target.name.trim_end_matches(".weight")));
            let edit = Edit { rounds_addend: true, ..Edit::new("LoRA of experts", Some(stack.rank), &[a, b], effect) };
            cx.edit(target, &path, edit);
            row += count;
        }
    }
    Ok(())
}

/// Where the matrix of one expert lies in a stack.
pub(super) struct Place {
    /// The stack.
    target: Target,
    /// Its rows, counted through all experts.
    rows: Range<u64>,
}

/// Where an adapter's module for one expert, as `experts.3.up_proj`, lies in a model that stores its experts as a
/// stack; `None` where the name or the model is of another kind.
pub(super) fn place(module: &str, cx: &Context) -> Result<Option<Place>, AdapterError> {
    let mut words = module.rsplitn(3, '.');
    let (Some(piece), Some(expert), Some(parent)) = (words.next(), words.next(), words.next()) else { return Ok(None) };
    let Ok(expert) = expert.parse::<u64>() else { return Ok(None) };
    for (parameter, pieces) in PIECES {
        let Some(part) = pieces.iter().position(|names| names.contains(&piece)) else { continue };
        let Some(Stored::Whole(target)) = find(parent, parameter, cx)? else { continue };
        let parts = pieces.len() as u64;
        let &[experts, rows, _] = target.shape().dims() else { continue };
        let transposed = cx.base.model_type.as_deref().is_some_and(|m| TRANSPOSED_MODELS.contains(&m));
        if transposed || expert >= experts || rows % parts != 0 {
            continue;
        }
        let first = expert * rows + part as u64 * (rows / parts);
        return Ok(Some(Place { rows: first..first + rows / parts, target }));
    }
    Ok(None)
}

/// Plans the factors of one expert of a stack; they are merged with those of its neighbours in one pass.
pub(super) fn plan_one(
    module: &mut Module,
    place: Place,
    a: &Tensor,
    b: &Tensor,
    cx: &mut Context,
) -> Result<(), AdapterError> {
    let Place { target, rows } = place;
    let (outputs, inputs) = (rows.end - rows.start, target.shape().row_len());
    let rank = a.dims().first().copied().unwrap_or(0);
    cx.expect(a, &target, &[rank, inputs])?;
    cx.expect(b, &target, &[outputs, rank])?;
    if let Some(magnitude) = module.peek("lora_magnitude_vector") {
        return Err(cx.refuse(
            format!("DoRA of a single expert ({})", magnitude.name),
            format!("the model stores its experts in one tensor, {}", target.name),
            "use a base model that stores every expert on its own",
        ));
    }
    let scale = lora::scale(&module.name, a, rank, 1, cx)?;
    let factors = Factors::new(a.recipe.clone(), b.recipe.clone(), scale);
    let parts = vec![a.clone(), b.clone()];
    cx.draft.add_slice(&target.name, &module.name, Slice { rows, factors, rank, parts });
    Ok(())
}

/// The change of some rows of a stack.
pub(super) struct Slice {
    pub(super) rows: Range<u64>,
    pub(super) factors: Factors,
    pub(super) rank: u64,
    pub(super) parts: Vec<Tensor>,
}

/// The changes of a stack by one adapter, each to rows of its own, in their order.
struct Slices(Vec<(Range<u64>, Factors)>);

/// One edit of all slices of a stack.
pub(super) fn together(mut slices: Vec<Slice>) -> Edit {
    slices.sort_by_key(|s| s.rows.start);
    let rank = slices.iter().map(|s| s.rank).max();
    let parts: Vec<Tensor> = slices.iter().flat_map(|s| s.parts.clone()).collect();
    let effect = Slices(slices.into_iter().map(|s| (s.rows, s.factors)).collect());
    let parts: Vec<&Tensor> = parts.iter().collect();
    Edit::new("LoRA of experts", rank, &parts, Effect::Adds(Box::new(effect)))
}

impl Slices {
    /// The product of every slice that lies in `rows`, added to its part of `values`; `between` sees the other rows.
    fn add_to(
        &self,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
        between: fn(&[f32]) -> Squares,
    ) -> Result<Squares, ReadError> {
        let cols = values.len() / (rows.end - rows.start).max(1) as usize;
        let (mut sums, mut row) = (Squares::default(), rows.start);
        let at = |row: u64| (row - rows.start) as usize * cols;
        let first = self.0.partition_point(|(own, _)| own.end <= rows.start);
        for (own, factors) in self.0[first..].iter().take_while(|(own, _)| own.start < rows.end) {
            let (start, end) = (own.start.max(rows.start), own.end.min(rows.end));
            sums += between(&values[at(row.min(start))..at(start)]);
            sums += factors.add(start - own.start..end - own.start, &mut values[at(start)..at(end)], scratch, None)?;
            row = row.max(end);
        }
        sums += between(&values[at(row)..]);
        Ok(sums)
    }
}

impl Addend for Slices {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        out.fill(0.0);
        self.add_to(rows, out, scratch, |_| Squares::default()).map(|_| ())
    }

    fn add(&self, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Option<Result<Squares, ReadError>> {
        Some(self.add_to(rows, values, scratch, |rest| Squares { before: squares(rest), added: 0.0 }))
    }
}

/// The deltas of a stack of experts, one after another.
pub(super) struct ExpertDeltas {
    pub(super) factors: Vec<Factors>,
    /// Rows of one expert.
    pub(super) rows: u64,
}

impl ExpertDeltas {
    /// The product of every expert that has rows in `rows`, added to its part of `values`.
    fn add_to(&self, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<Squares, ReadError> {
        let cols = values.len() / (rows.end - rows.start).max(1) as usize;
        let (mut row, mut rest, mut sums) = (rows.start, values, Squares::default());
        while row < rows.end {
            let (expert, first) = (row / self.rows, row % self.rows);
            let count = (self.rows - first).min(rows.end - row);
            let (piece, after) = rest.split_at_mut(count as usize * cols);
            sums += self.factors[expert as usize].add(first..first + count, piece, scratch, None)?;
            rest = after;
            row += count;
        }
        Ok(sums)
    }
}

impl Addend for ExpertDeltas {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        out.fill(0.0);
        self.add_to(rows, out, scratch).map(|_| ())
    }

    fn add(&self, rows: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Option<Result<Squares, ReadError>> {
        Some(self.add_to(rows, values, scratch))
    }

    fn terms(&self) -> Option<Vec<Term>> {
        let scale = self.factors.first()?.scale;
        let stack = |part: fn(&Factors) -> Recipe| Recipe::stack(self.factors.iter().map(part).collect()).ok();
        Some(vec![Term { a: stack(|f| f.term().a)?, b: stack(|f| f.term().b)?, scale }])
    }
}

/// `B` with the expert as the slowest dimension: `[E * out, r]` of the stored `[out, r * E]`.
struct ByExpert {
    stored: Recipe,
    experts: u64,
    shape: Shape,
    turned: Recent,
}

impl ByExpert {
    fn new(stored: Recipe, experts: u64) -> Result<Self, AdapterError> {
        let (out, ranks) = (stored.shape().rows(), stored.shape().row_len());
        Ok(ByExpert { shape: Shape::matrix(experts * out, ranks / experts), stored, experts, turned: Recent::new() })
    }
}

impl RowSource for ByExpert {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.stored.precision()
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        self.turned.copy_rows(rows, self.shape.row_len(), out, || {
            let (outputs, experts) = (self.stored.shape().rows() as usize, self.experts as usize);
            let ranks = self.stored.shape().row_len() as usize;
            let rank = ranks / experts;
            let mut turned = vec![0f32; outputs * ranks];
            let mut row = scratch.take_floats(ranks);
            for o in 0..outputs {
                self.stored.rows(o as u64..o as u64 + 1, &mut row, scratch)?;
                for (k, by_expert) in row.chunks_exact(experts).enumerate() {
                    for (e, v) in by_expert.iter().enumerate() {
                        turned[(e * outputs + o) * rank + k] = *v;
                    }
                }
            }
            scratch.give_floats(row);
            Ok(turned)
        })
    }

    fn describe(&self) -> String {
        format!("{:?}", self.stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expert_is_the_fastest_index_of_b() {
        // [out 2, r 2 * E 3]: element (o, k, e) is 100 o + 10 k + e.
        let values = (0..2).flat_map(|o| (0..2).flat_map(move |k| (0..3).map(move |e| (100 * o + 10 * k + e) as f32)));
        let stored = Recipe::constant(Shape::matrix(2, 6), values.collect()).unwrap();
        let turned = ByExpert::new(stored, 3).unwrap();
        let mut out = vec![0.0; 4];
        turned.read_rows(2..4, &mut out, &mut Scratch::default()).unwrap();
        assert_eq!(out, [1.0, 11.0, 101.0, 111.0]);
    }
}
