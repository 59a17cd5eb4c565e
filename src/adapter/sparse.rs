//! Forms with few trained numbers at known places.
//!
//! * SHiRA (arXiv:2406.13175): single elements of the weight, at indices that the file holds.
//! * FourierFT (arXiv:2405.03003): single coefficients of the delta's two-dimensional spectrum; where they lie
//!   follows from a seed. `Δ = scaling * Re(ifft2(S))`.

use std::f64::consts::TAU;
use std::ops::Range;
use std::sync::Arc;

use rustfft::num_complex::Complex64;
use rustfft::{Fft, FftPlanner};

use super::AdapterError;
use super::change::{Addend, Effect};
use super::contents::Module;
use super::draft::{Context, Edit};
use super::lazy::Lazy;
use crate::recipe::{ReadError, Recipe, Scratch};

mod permutation;

/// Elements of a matrix, by row.
struct Elements {
    /// `[2, n]`: rows, then columns. Whole numbers below 2^24 are exact in f32; a larger index is refused.
    indices: Recipe,
    /// `[n]`
    values: Recipe,
    rows: u64,
    cols: u64,
    sorted: Lazy<Vec<(u64, u32, f32)>>,
}

impl Elements {
    fn sort(&self, scratch: &mut Scratch) -> Result<Vec<(u64, u32, f32)>, ReadError> {
        let n = self.values.shape().elements() as usize;
        let mut places = vec![0f32; 2 * n];
        self.indices.rows(0..2, &mut places, scratch)?;
        let mut values = vec![0f32; n];
        self.values.rows(0..1, &mut values, scratch)?;
        let (rows, cols) = places.split_at(n);
        let inside = |place: f32, limit: u64| place >= 0.0 && (place as u64) < limit && place.fract() == 0.0;
        if let Some(i) = (0..n).find(|&i| !inside(rows[i], self.rows) || !inside(cols[i], self.cols)) {
            return Err(ReadError::new(
                format!("{:?}", self.indices),
                format!("element {i} lies at [{}, {}] of a [{}, {}] weight", rows[i], cols[i], self.rows, self.cols),
            ));
        }
        let mut sorted: Vec<(u64, u32, f32)> =
            rows.iter().zip(cols).zip(&values).map(|((r, c), v)| (*r as u64, *c as u32, *v)).collect();
        sorted.sort_by_key(|(row, col, _)| (*row, *col));
        Ok(sorted)
    }
}

impl Addend for Elements {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let sorted = self.sorted.get(|| self.sort(scratch))?;
        out.fill(0.0);
        let first = sorted.partition_point(|(row, ..)| *row < rows.start);
        for (row, col, value) in sorted[first..].iter().take_while(|(row, ..)| *row < rows.end) {
            out[((row - rows.start) * self.cols) as usize + *col as usize] += value;
        }
        Ok(())
    }
}

/// The largest index that the decoded f32 holds exactly.
const EXACT: u64 = 1 << 24;

/// Plans SHiRA.
pub(super) fn shira(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let values = module.need("shira_weight", "other parameters", cx.label)?;
    let Some(indices) = module.take("shira_indices") else {
        return Err(cx.refuse(
            format!("SHiRA without indices ({})", values.name),
            "the file does not say which elements were trained",
            "save the adapter with PEFT 0.16 or later, which writes shira_indices",
        ));
    };
    let weight = cx.weight(&module.name, &values)?;
    let n = values.recipe.shape().elements();
    cx.expect(&indices, &weight.target, &[2, n])?;
    let (rows, cols) = weight.target.matrix();
    if weight.transposed || rows.max(cols) > EXACT {
        return Err(cx.mismatch(&values, &weight.target, "a linear layer"));
    }
    let effect = Effect::Adds(Box::new(Elements {
        indices: indices.recipe.clone(),
        values: values.recipe.clone(),
        rows,
        cols,
        sorted: Lazy::default(),
    }));
    cx.edit(&weight.target, &module.name, Edit::new("SHiRA", None, &[&values, &indices], effect));
    cx.nothing_left(&module)
}

/// A delta with a sparse spectrum.
struct Spectrum {
    coefficients: Recipe,
    /// For each coefficient its row and column in the spectrum of the tensor as it is stored.
    places: Vec<(u32, u32)>,
    rows: u64,
    cols: usize,
    scale: f64,
    inverse: Arc<dyn Fft<f64>>,
    values: Lazy<Vec<f32>>,
}

impl Addend for Spectrum {
    fn rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let values = self.values.get(|| {
            let mut values = vec![0f32; self.places.len()];
            self.coefficients.rows(0..1, &mut values, scratch)?;
            Ok(values)
        })?;
        let scale = self.scale / (self.rows as f64 * self.cols as f64);
        let mut line = vec![Complex64::default(); self.cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            line.fill(Complex64::default());
            for ((u, v), s) in self.places.iter().zip(&*values) {
                // The product stays exact below 2^64; its remainder keeps the angle's precision.
                let turn = u64::from(*u) * row % self.rows;
                line[*v as usize] += Complex64::from_polar(f64::from(*s), TAU * turn as f64 / self.rows as f64);
            }
            self.inverse.process(&mut line);
            out.iter_mut().zip(&line).for_each(|(o, l)| *o = (l.re * scale) as f32);
        }
        Ok(())
    }
}

/// Plans FourierFT.
pub(super) fn fourierft(mut module: Module, cx: &mut Context) -> Result<(), AdapterError> {
    let spectrum = module.need("fourierft_spectrum", "other parameters", cx.label)?;
    let weight = cx.weight(&module.name, &spectrum)?;
    let (inputs, outputs) = (weight.inputs, weight.outputs);
    let n = spectrum.recipe.shape().elements();
    if weight.target.shape().ndim() != 2 || spectrum.recipe.shape().ndim() != 1 || n > inputs * outputs {
        return Err(cx.mismatch(&spectrum, &weight.target, format!("at most {} coefficients", inputs * outputs)));
    }
    let seed = cx.config.count("random_loc_seed")?.unwrap_or(777);
    let Some(places) = permutation::first(inputs * outputs, n as usize, seed) else {
        return Err(cx.refuse(
            format!("FourierFT of {}", module.name),
            "the weight is too large for the random permutation that places its coefficients",
            "merge this adapter with PEFT",
        ));
    };
    let place = |at: u64| {
        let (output, input) = ((at / inputs) as u32, (at % inputs) as u32);
        if weight.transposed { (input, output) } else { (output, input) }
    };
    let (rows, cols) = weight.target.matrix();
    let effect = Effect::Adds(Box::new(Spectrum {
        coefficients: spectrum.recipe.clone(),
        places: places.into_iter().map(place).collect(),
        rows,
        cols: cols as usize,
        scale: cx.config.number("scaling")?.unwrap_or(150.0),
        inverse: FftPlanner::new().plan_fft_inverse(cols as usize),
        values: Lazy::default(),
    }));
    cx.edit(&weight.target, &module.name, Edit::new("FourierFT", Some(n), &[&spectrum], effect));
    cx.nothing_left(&module)
}
