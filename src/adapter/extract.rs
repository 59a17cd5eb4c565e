//! A LoRA from the difference of two models: for every linear layer the best product of its rank, `D ~ B A`, by a
//! truncated singular value decomposition `D ~ U S V^T`, with `B = U sqrt(S)` and `A = sqrt(S) V^T`.
//!
//! One difference at a time is held, in f32; products with it are summed in f64.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use fancy_regex::Regex;
use indexmap::IndexMap;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::draft::head_of;
use super::lazy::Lazy;
use super::names;
use super::peft::{PeftAdapter, PeftTensor};
use super::singular::{self, Until};
use super::{AdapterError, BaseInfo};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::TensorSet;

/// Blocks in which products with the transposed difference are summed: a fixed number, so that the sum does not
/// depend on the threads.
const BLOCKS: usize = 16;

/// How much one more round of the decomposition may still add, as a part of what is left.
const PART: f64 = 1e-3;

/// What an adapter of a given rank holds of the difference of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct Captured {
    /// The module.
    pub module: String,
    /// Its rank.
    pub rank: u64,
    /// The part of the difference's sum of squares that is in the product, 0 to 1.
    pub energy: f64,
}

/// An adapter made of a difference.
#[derive(Debug)]
pub struct Extracted {
    /// The adapter; its factors are computed when they are read.
    pub adapter: PeftAdapter,
    /// Filled while factors are computed, in their order.
    pub captured: Arc<Mutex<Vec<Captured>>>,
    /// Tensors that differ and are not in the adapter, each with the reason.
    pub left_out: Vec<(String, String)>,
}

/// Compares two models and plans the adapter from `base` to `tuned`. Reads the tensors that are equal, and of the
/// others up to the first difference.
///
/// # Errors
/// Models that are not of the same architecture.
pub fn extract(
    base: (&TensorSet, &BaseInfo),
    tuned: (&TensorSet, &BaseInfo),
    rank: u64,
    target: Option<&Regex>,
) -> Result<Extracted, AdapterError> {
    let mut plan = Plan {
        rank,
        target,
        transposing: base.1,
        captured: Arc::default(),
        factors: IndexMap::new(),
        whole: IndexMap::new(),
        left_out: Vec::new(),
    };
    let (tensors, names) = (base.0, names::Names::new(base.0));
    for (name, after) in tuned.0.iter() {
        let before = match tensors.get(name) {
            Some(before) => before.clone(),
            None => {
                let head = names.embedding().filter(|e| head_of(e) == name && base.1.tie_word_embeddings);
                match head.and_then(|e| tensors.get(e)) {
                    Some(embedding) => embedding.clone(),
                    None => return Err(foreign(base.1, tuned.1, format!("{name}, which the base does not have"))),
                }
            }
        };
        plan.compare(name, &before, after, (base.1, tuned.1))?;
    }
    if let Some((missing, _)) = tensors.iter().find(|(name, _)| !tuned.0.contains(name)) {
        let tied = names.head() == Some(missing) && tuned.1.tie_word_embeddings;
        if !tied {
            return Err(foreign(base.1, tuned.1, format!("no {missing}, which the base has")));
        }
    }
    // The head of a tied model is a module of its own for PEFT, and would stay the base's.
    if let Some(embedding) = names.embedding()
        && names.head().is_none()
        && base.1.tie_word_embeddings
        && let Some(trained) = plan.whole.get(embedding).cloned()
    {
        plan.whole.entry(head_of(embedding)).or_insert(trained);
    }
    plan.finish(tensors)
}

fn foreign(base: &BaseInfo, tuned: &BaseInfo, what: String) -> AdapterError {
    AdapterError::Unfit {
        adapter: tuned.name.clone(),
        what: format!("not a fine-tune of {}", base.name),
        cause: format!("it has {what}; give two models of the same architecture"),
    }
}

struct Plan<'a> {
    rank: u64,
    target: Option<&'a Regex>,
    transposing: &'a BaseInfo,
    captured: Arc<Mutex<Vec<Captured>>>,
    /// By module: rank, and the factors `A`, `B`.
    factors: IndexMap<String, (u64, Recipe, Recipe)>,
    /// Tensors saved whole, by name.
    whole: IndexMap<String, Recipe>,
    left_out: Vec<(String, String)>,
}

impl Plan<'_> {
    fn compare(
        &mut self,
        name: &str,
        before: &Recipe,
        after: &Recipe,
        (base, tuned): (&BaseInfo, &BaseInfo),
    ) -> Result<(), AdapterError> {
        let module = name.strip_suffix(".weight");
        let vocabulary = module.is_some_and(|m| names::is_embedding(m) || names::is_head(m));
        let same_shape = before.shape() == after.shape();
        let fits = same_shape || (vocabulary && before.shape().row_len() == after.shape().row_len());
        if !fits {
            let what = format!("{name} of shape {}, where the base has {}", after.shape(), before.shape());
            return Err(foreign(base, tuned, what));
        }
        if same_shape && before.equals(after)? {
            return Ok(());
        }
        let wanted = self.target.is_none_or(|t| t.is_match(module.unwrap_or(name)).unwrap_or(false));
        let reason = match (module, after.shape().dims()) {
            _ if !wanted => "--target does not match it",
            (Some(_), _) if vocabulary => {
                self.whole.insert(name.to_owned(), after.clone());
                return Ok(());
            }
            (Some(module), [_]) if names::last_word(module).contains("norm") || module.contains("ln_") => {
                self.whole.insert(name.to_owned(), after.clone());
                return Ok(());
            }
            (Some(module), [rows, cols]) if !is_position(module) => {
                let rank = self.rank.min(*rows).min(*cols);
                self.difference(module, before.clone(), after.clone(), rank)?;
                return Ok(());
            }
            (Some(_), [_, _]) => "positions are no linear layer",
            (_, [_]) => "a vector, and not of a norm: LoRA has no place for it",
            _ => "no matrix of a linear layer: LoRA has no place for it",
        };
        self.left_out.push((name.to_owned(), reason.to_owned()));
        Ok(())
    }

    fn difference(&mut self, module: &str, before: Recipe, after: Recipe, rank: u64) -> Result<(), AdapterError> {
        let (rows, cols) = (before.shape().rows(), before.shape().row_len());
        let shared = Arc::new(Difference {
            module: module.to_owned(),
            before,
            after,
            rank,
            factors: Lazy::default(),
            captured: self.captured.clone(),
        });
        let factor = |side, shape| Recipe::source(Arc::new(Factor { shared: shared.clone(), side, shape }));
        let mut a = factor(Side::Right, Shape::matrix(rank, cols));
        let mut b = factor(Side::Left, Shape::matrix(rows, rank));
        if self.transposed(module)? {
            (a, b) = (b.transposed()?, a.transposed()?);
        }
        self.factors.insert(module.to_owned(), (rank, a, b));
        Ok(())
    }

    fn transposed(&self, module: &str) -> Result<bool, AdapterError> {
        super::draft::stored_transposed(module, self.transposing, &super::AdapterConfig::empty())
    }

    fn finish(self, tensors: &TensorSet) -> Result<Extracted, AdapterError> {
        let mut settings = Map::new();
        let transposed = match self.factors.keys().next() {
            Some(first) => self.transposed(first)?,
            None => false,
        };
        let pattern: Map<String, Value> = self
            .factors
            .iter()
            .filter(|(_, (rank, ..))| *rank != self.rank)
            .map(|(module, (rank, ..))| (module.replace('.', "\\."), (*rank).into()))
            .collect();
        let modules: Vec<&str> = self.factors.keys().map(String::as_str).collect();
        let whole: Vec<&str> = self.whole.keys().filter_map(|n| n.strip_suffix(".weight")).collect();
        let all: Vec<&str> = tensors.iter().filter_map(|(n, _)| n.strip_suffix(".weight")).collect();
        for (key, value) in [
            ("base_model_name_or_path", Value::Null),
            ("peft_type", "LORA".into()),
            ("r", self.rank.into()),
            ("lora_alpha", self.rank.into()),
            ("rank_pattern", Value::Object(pattern.clone())),
            ("alpha_pattern", Value::Object(pattern)),
            ("target_modules", json!(words(&modules, &all))),
            ("modules_to_save", if whole.is_empty() { Value::Null } else { json!(words(&whole, &all)) }),
            ("fan_in_fan_out", transposed.into()),
            ("bias", "none".into()),
            ("lora_dropout", json!(0.0)),
            ("init_lora_weights", true.into()),
            ("use_rslora", false.into()),
            ("use_dora", false.into()),
            ("inference_mode", true.into()),
        ] {
            settings.insert(key.into(), value);
        }
        let mut out = IndexMap::new();
        for (module, (_, a, b)) in self.factors {
            out.insert(format!("base_model.model.{module}.lora_A.weight"), PeftTensor::Values(a));
            out.insert(format!("base_model.model.{module}.lora_B.weight"), PeftTensor::Values(b));
        }
        for (name, recipe) in self.whole {
            out.insert(format!("base_model.model.{name}"), PeftTensor::Values(recipe));
        }
        let adapter = PeftAdapter { settings, tensors: out };
        Ok(Extracted { adapter, captured: self.captured, left_out: self.left_out })
    }
}

fn is_position(module: &str) -> bool {
    ["wpe", "embed_positions", "position_embeddings"].contains(&names::last_word(module))
}

/// Names for a list of modules: the last word where all modules of the model with that word are meant, otherwise the
/// whole name.
fn words(modules: &[&str], all: &[&str]) -> Vec<String> {
    let count = |list: &[&str], word: &str| list.iter().filter(|m| names::last_word(m) == word).count();
    let mut words: Vec<String> = modules
        .iter()
        .map(|m| {
            let word = names::last_word(m);
            // PEFT compares the ends of names, so a word must not be the end of another.
            let alone = all.iter().all(|m| names::last_word(m) == word || !m.ends_with(word));
            if alone && count(modules, word) >= count(all, word) { word.to_owned() } else { (*m).to_owned() }
        })
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// The difference of one tensor, and its factors once they are computed.
struct Difference {
    module: String,
    before: Recipe,
    after: Recipe,
    rank: u64,
    factors: Lazy<(Vec<f32>, Vec<f32>)>,
    captured: Arc<Mutex<Vec<Captured>>>,
}

impl Difference {
    /// `U sqrt(S)` and `sqrt(S) V^T`.
    fn decompose(&self, scratch: &mut Scratch) -> Result<(Vec<f32>, Vec<f32>), ReadError> {
        let (rows, cols) = (self.before.shape().rows() as usize, self.before.shape().row_len() as usize);
        let mut d = vec![0f32; rows * cols];
        self.after.rows(0..rows as u64, &mut d, scratch)?;
        let step = ((1 << 18) / cols.max(1)).max(1);
        let mut before = Vec::new();
        for (i, d) in d.chunks_mut(step * cols).enumerate() {
            before.resize(d.len(), 0f32);
            let first = (i * step) as u64;
            self.before.rows(first..first + (d.len() / cols) as u64, &mut before, scratch)?;
            d.iter_mut().zip(&before).for_each(|(d, b)| *d -= b);
        }
        let total: f64 = d.par_chunks(1 << 16).map(squares).collect::<Vec<f64>>().iter().sum();
        if !total.is_finite() {
            return Err(ReadError::new(&self.module, "the difference of the two models is not finite; one is damaged"));
        }
        let until = Until::Captured { part: PART, total };
        let found = singular::largest(
            (rows, cols),
            self.rank as usize,
            until,
            |v| d.par_chunks_exact(cols).map(|row| product(row, v)).collect(),
            |u| from_left(&d, cols, u),
        );
        let energy = found.values.iter().map(|s| s * s).sum::<f64>() / total;
        let captured = Captured { module: self.module.clone(), rank: self.rank, energy: energy.min(1.0) };
        self.captured.lock().unwrap_or_else(|e| e.into_inner()).push(captured);
        let roots: Vec<f64> = found.values.iter().map(|s| s.sqrt()).collect();
        let left = |i: usize| found.left.iter().zip(&roots).map(move |(u, s)| (u[i] * s) as f32);
        let b = (0..rows).flat_map(left).collect();
        let a = found.right.iter().zip(&roots).flat_map(|(v, s)| v.iter().map(move |v| (v * s) as f32)).collect();
        Ok((b, a))
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}

fn product(row: &[f32], v: &[f64]) -> f64 {
    let mut lanes = [0f64; 8];
    for (w, v) in row.chunks(8).zip(v.chunks(8)) {
        lanes.iter_mut().zip(w.iter().zip(v)).for_each(|(l, (w, v))| *l += f64::from(*w) * v);
    }
    lanes.iter().sum()
}

/// `D^T u`: sums of blocks of rows, then the sum of those in order.
fn from_left(d: &[f32], cols: usize, u: &[f64]) -> Vec<f64> {
    let per = u.len().div_ceil(BLOCKS).max(1);
    let sums: Vec<Vec<f64>> = d
        .par_chunks(per * cols)
        .zip(u.par_chunks(per))
        .map(|(d, u)| {
            let mut out = vec![0f64; cols];
            for (row, u) in d.chunks_exact(cols).zip(u) {
                out.iter_mut().zip(row).for_each(|(o, w)| *o += u * f64::from(*w));
            }
            out
        })
        .collect();
    let mut sums = sums.into_iter();
    let mut out = sums.next().unwrap_or_else(|| vec![0f64; cols]);
    for sum in sums {
        out.iter_mut().zip(&sum).for_each(|(o, s)| *o += s);
    }
    out
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

/// One factor of a difference, computed when its first row is read.
struct Factor {
    shared: Arc<Difference>,
    side: Side,
    shape: Shape,
}

impl RowSource for Factor {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::F32
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        let factors = self.shared.factors.get(|| self.shared.decompose(scratch))?;
        let values = match self.side {
            Side::Left => &factors.0,
            Side::Right => &factors.1,
        };
        let cols = self.shape.row_len();
        out.copy_from_slice(&values[(rows.start * cols) as usize..(rows.end * cols) as usize]);
        Ok(())
    }

    fn describe(&self) -> String {
        format!("a factor of the difference of {}", self.shared.module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    fn decomposed(values: Vec<f32>, (rows, cols): (u64, u64), rank: u64) -> f64 {
        let shape = Shape::matrix(rows, cols);
        let before = Recipe::constant(shape.clone(), vec![0.0; values.len()]).unwrap();
        let after = Recipe::constant(shape, values).unwrap();
        let captured = Arc::<Mutex<Vec<Captured>>>::default();
        let factors = Lazy::default();
        let d = Difference { module: "m".into(), before, after, rank, factors, captured: captured.clone() };
        d.decompose(&mut Scratch::default()).unwrap();
        captured.lock().unwrap()[0].energy
    }

    #[test]
    fn a_matrix_of_the_rank_is_captured_whole() {
        let (b, a) = (noise(40 * 3, 1), noise(3 * 24, 2));
        let product = (0..40 * 24).map(|x| (0..3).map(|k| b[x / 24 * 3 + k] * a[k * 24 + x % 24]).sum()).collect();
        assert!(decomposed(product, (40, 24), 3) > 1.0 - 1e-9);
    }

    /// Against the whole decomposition of the same matrix: all ranks at once.
    #[test]
    fn a_flat_spectrum_is_captured_nearly_as_well_as_can_be() {
        let values = noise(120 * 90, 3);
        let whole = singular::largest(
            (120, 90),
            90,
            Until::Converged(1e-12),
            |v| values.chunks_exact(90).map(|row| product(row, v)).collect(),
            |u| from_left(&values, 90, u),
        );
        let total = squares(&values);
        let best: f64 = whole.values[..8].iter().map(|s| s * s).sum::<f64>() / total;
        let found = decomposed(values, (120, 90), 8);
        let (error, least) = ((1.0 - found).sqrt(), (1.0 - best).sqrt());
        assert!(error <= 1.01 * least, "{error} {least}");
    }
}
