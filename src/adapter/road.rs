//! RoAd (arXiv:2409.00119): pairs of outputs are rotated and stretched, in groups as rotary embeddings have them:
//! output `i` becomes `c_i y_i ∓ s_i y_p`, where `p` is `i`'s place in the other half of its group, with the minus in
//! the first half. `c = α cos θ` and `s = α sin θ`; the variant says which of them share a `θ`.

use std::ops::Range;

use super::AdapterError;
use super::change::{Effect, Rewrite};
use super::contents::{Module, Tensor};
use super::draft::{Context, Edit};
use super::lazy::Lazy;
use crate::recipe::{ReadError, Recipe, Scratch};
use crate::shape::Shape;

/// How many angles there are, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// One for each pair.
    Pairs,
    /// One for each output.
    Outputs,
    /// Two for each output: one for the cosine, one for the sine.
    Terms,
}

/// The rotation of a layer's outputs.
#[derive(Clone)]
struct Rotation {
    /// `[1, n]`
    theta: Recipe,
    /// `[1, n]`
    alpha: Recipe,
    variant: Variant,
    /// Outputs of a group.
    group: usize,
    outputs: usize,
    /// PEFT rounds the matrix of the rotation to the model's type.
    round: fn(f32) -> f32,
}

/// The factors of each output: of itself, and of its partner with the sign.
type Terms = Vec<(f32, f32)>;

impl Rotation {
    fn terms(&self, scratch: &mut Scratch) -> Result<Terms, ReadError> {
        let count = self.theta.shape().elements() as usize;
        let (mut theta, mut alpha) = (vec![0f32; count], vec![0f32; count]);
        self.theta.rows(0..1, &mut theta, scratch)?;
        self.alpha.rows(0..1, &mut alpha, scratch)?;
        let half = self.group / 2;
        let terms = (0..self.outputs).map(|i| {
            let (group, at) = (i / self.group, i % self.group);
            let (cosine, sine) = match self.variant {
                Variant::Pairs => (group * half + at % half, group * half + at % half),
                Variant::Outputs => (i, i),
                Variant::Terms => (2 * group * self.group + at, (2 * group + 1) * self.group + at),
            };
            let sign = if at < half { -1.0 } else { 1.0 };
            let (own, other) = (alpha[cosine] * theta[cosine].cos(), sign * alpha[sine] * theta[sine].sin());
            ((self.round)(own), (self.round)(other))
        });
        Ok(terms.collect())
    }

    /// The output that `i` is rotated with, and how many outputs from `i` on have theirs side by side.
    fn partner(&self, i: usize) -> (usize, usize) {
        let half = self.group / 2;
        let at = i % self.group;
        let partner = if at < half { i + half } else { i - half };
        (partner, half - at % half)
    }
}

/// A weight `[outputs, inputs]`.
struct Rows {
    rotation: Rotation,
    terms: Lazy<Terms>,
}

impl Rewrite for Rows {
    fn rows(
        &self,
        base: &Recipe,
        rows: Range<u64>,
        values: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ReadError> {
        let terms = self.terms.get(|| self.rotation.terms(scratch))?;
        let cols = base.shape().row_len() as usize;
        let mut partners = scratch.take_floats(values.len());
        let (mut row, mut result) = (rows.start, Ok(()));
        while row < rows.end && result.is_ok() {
            let (partner, run) = self.rotation.partner(row as usize);
            let run = (run as u64).min(rows.end - row);
            let at = (row - rows.start) as usize * cols;
            let into = &mut partners[at..at + run as usize * cols];
            result = base.rows(partner as u64..partner as u64 + run, into, scratch);
            row += run;
        }
        let each = values.chunks_exact_mut(cols).zip(partners.chunks_exact(cols)).zip(&terms[rows.start as usize..]);
        for ((own, other), (cosine, sine)) in each {
            own.iter_mut().zip(other).for_each(|(v, o)| *v = cosine * *v + sine * o);
        }
        scratch.give_floats(partners);
        result
    }
}

/// A bias `[outputs]`.
struct Bias(Rotation);

impl Rewrite for Bias {
    fn rows(&self, _: &Recipe, _: Range<u64>, values: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let terms = self.0.terms(scratch)?;
        let before = values.to_vec();
        for (i, (v, (cosine, sine))) in values.iter_mut().zip(terms).enumerate() {
            *v = cosine * before[i] + sine * before[self.0.partner(i).0];
        }
        Ok(())
    }
}

/// Plans RoAd.
pub(super) fn road(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let theta = module.need("road_theta", "other parameters", cx.label)?;
    let alpha = module.need("road_alpha", "road_theta", cx.label)?;
    let weight = cx.weight(&module.name, &theta)?;
    if weight.transposed || weight.target.shape().ndim() != 2 {
        return Err(cx.mismatch(&theta, &weight.target, "a linear layer"));
    }
    let outputs = weight.outputs;
    let (variant, count) = match cx.config.text("variant").unwrap_or("road_1") {
        "road_1" => (Variant::Pairs, outputs / 2),
        "road_2" => (Variant::Outputs, outputs),
        "road_4" => (Variant::Terms, 2 * outputs),
        other => return Err(cx.config.bad("variant", format!("is {other:?}, not road_1, road_2 or road_4"))),
    };
    let group = cx.config.count("group_size")?.unwrap_or(64);
    if group == 0 || group % 2 != 0 || outputs % group != 0 {
        let cause = format!("is {group}, which does not part the {outputs} outputs of {} into pairs", module.name);
        return Err(cx.config.bad("group_size", cause));
    }
    cx.expect(&theta, &weight.target, &[count])?;
    cx.expect(&alpha, &weight.target, &[count])?;
    let row = |tensor: &Tensor| tensor.recipe.clone().reshape(Shape::matrix(1, count));
    let rotation = Rotation {
        theta: row(&theta)?,
        alpha: row(&alpha)?,
        variant,
        group: group as usize,
        outputs: outputs as usize,
        round: cx.dtype.rounding().unwrap_or(|x| x),
    };
    let edit = |effect| Edit::new("RoAd", None, &[&theta, &alpha], effect);
    let rows = Rows { rotation: rotation.clone(), terms: Lazy::default() };
    cx.edit(&weight.target, &module.name, edit(Effect::Rewrites(Box::new(rows))));
    if let Some(bias) = cx.find(&module.name, "bias")? {
        cx.edit(&bias, &module.name, edit(Effect::Rewrites(Box::new(Bias(rotation)))));
    }
    cx.nothing_left(&module)
}
