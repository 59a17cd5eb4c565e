//! Giving every source tensor its place: the tables of a family applied to the names that a model has.
//!
//! Outputs stand in the order in which `convert_hf_to_gguf` writes them: generated tensors, then the source's order,
//! a stack where its group's last member was met. Every source tensor is claimed once or dropped with a reason;
//! anything else is an error.

use std::collections::HashMap;
use std::path::Path;

use indexmap::IndexMap;

use super::config::Config;
use super::error::ArchError;
use super::factors;
use super::pattern::{self, Found, Pattern};
use super::spec::{Family, Fate, Op, Place, Tensor, When};
use super::stored::{ConvertedTensor, Stored};
use crate::recipe::{Elementwise, Recipe, RowMap, Scratch, ShapeError};
use crate::shape::Shape;
use crate::source::TensorSet;

/// What became of a model's tensors.
pub(super) struct Claimed {
    pub(super) tensors: Vec<ConvertedTensor>,
    pub(super) dropped: Vec<(String, &'static str)>,
    /// Tensors whose inputs are to keep 16 bits.
    pub(super) wide_inputs: Vec<String>,
}

/// A row with its source pattern taken apart.
pub(super) struct Row<'a> {
    pattern: Pattern<'a>,
    pub(super) tensor: &'a Tensor,
}

/// A family's rows, as they hold for one model.
pub(super) struct Table<'a> {
    config: &'a Config,
    pub(super) rows: Vec<Row<'a>>,
    blocks: u64,
}

impl<'a> Table<'a> {
    pub(super) fn new(family: &Family, config: &'a Config) -> Result<Self, ArchError> {
        let rows = family.tensors.iter().flat_map(|table| table.iter());
        let rows = rows.map(|tensor| Row { pattern: Pattern::parse(tensor.source), tensor }).collect();
        Ok(Table { config, rows, blocks: config.blocks()? })
    }

    /// The rows whose source is of this name, by number. The first decides; the others that have the very same
    /// source split it.
    pub(super) fn find(&self, name: &str) -> Vec<(usize, Found<'static>)> {
        let found = self.rows.iter().enumerate().filter_map(|(i, row)| Some((i, row.pattern.find(name)?)));
        found.filter(|(i, found)| self.holds(*i, found.block)).collect()
    }

    /// Whether a row holds for a block.
    pub(super) fn holds(&self, row: usize, block: Option<u64>) -> bool {
        let holds = match self.rows[row].tensor.when {
            When::Always => true,
            When::Model(f) => f(self.config),
            When::Block(f) => block.is_some_and(|b| f(self.config, b)),
        };
        holds && block.is_none_or(|b| b < self.blocks)
    }
}

/// Members of a group of stacks that have been met: per row index, by member number.
#[derive(Default)]
struct Group {
    rows: IndexMap<(usize, &'static str), Members>,
    met: u64,
}

#[derive(Default)]
struct Members {
    by_number: HashMap<u64, (String, Recipe)>,
    count: u64,
}

/// Gives the tensors of `source` their places. `folder` is the tokenizer's; without one, they are those of a GGUF,
/// which has its computed tensors already.
pub(super) fn claim(
    family: &Family,
    config: &Config,
    source: &TensorSet,
    folder: Option<&Path>,
) -> Result<Claimed, ArchError> {
    let mut claims = Claims {
        config,
        table: Table::new(family, config)?,
        strip: family.strip,
        extra_blocks: family.extra_blocks,
        folder,
        out: Claimed { tensors: Vec::new(), dropped: Vec::new(), wide_inputs: Vec::new() },
        by_name: HashMap::new(),
        groups: HashMap::new(),
        unknown: Vec::new(),
    };
    for generate in family.generated.iter().filter(|_| folder.is_some()) {
        for made in generate(config)? {
            let recipe = Recipe::constant(made.shape, made.values)
                .map_err(|source| ArchError::Shape { name: made.name.into(), source })?;
            claims.push(made.name.to_owned(), recipe, None, Vec::new())?;
        }
    }
    let prefix = family.prefixes.iter().find(|(class, _)| *class == config.class()).map_or("", |(_, p)| *p);
    for (name, recipe) in source.iter() {
        claims.take(name, prefix, recipe)?;
    }
    let mut claimed = claims.finish()?;
    factors::part(&mut claimed, config, source)?;
    Ok(claimed)
}

struct Claims<'a> {
    config: &'a Config,
    table: Table<'a>,
    strip: &'static [&'static str],
    extra_blocks: Option<&'static str>,
    folder: Option<&'a Path>,
    out: Claimed,
    by_name: HashMap<String, usize>,
    groups: HashMap<(u64, &'static str), Group>,
    unknown: Vec<String>,
}

impl Claims<'_> {
    /// Finds the rows of one source tensor and applies them.
    fn take(&mut self, source: &str, prefix: &str, recipe: &Recipe) -> Result<(), ArchError> {
        let name = match pattern::text_name(source) {
            Ok(name) => {
                let name = self.strip.iter().find_map(|s| name.strip_prefix(s)).unwrap_or(&name);
                format!("{prefix}{name}")
            }
            Err(reason) => {
                self.out.dropped.push((source.into(), reason));
                return Ok(());
            }
        };
        if let Some(reason) = self.extra_blocks
            && pattern::block_of(&name).is_some_and(|b| b >= self.table.blocks)
        {
            self.out.dropped.push((source.into(), reason));
            return Ok(());
        }
        let found = self.table.find(&name);
        let Some(&(first, _)) = found.first() else {
            self.unknown.push(source.into());
            return Ok(());
        };
        match self.table.rows[first].tensor.fate {
            Fate::Named(_) => {}
            Fate::Zero(_) if !is_zero(source, recipe)? => {
                return Err(ArchError::NotZero { name: source.into(), class: self.config.class().into() });
            }
            Fate::Dropped(reason) | Fate::Zero(reason) => {
                self.out.dropped.push((source.into(), reason));
                return Ok(());
            }
        }
        let text = self.table.rows[first].tensor.source;
        for (i, found) in found {
            let tensor = self.table.rows[i].tensor;
            let Fate::Named(output) = tensor.fate else { continue };
            if tensor.source != text {
                continue;
            }
            match tensor.stack {
                None => self.emit(tensor, output, &found, source, recipe.clone(), vec![source.to_owned()])?,
                Some(stack) => {
                    let count = stack.count.value(self.config)?;
                    let group = self.groups.entry((found.block.unwrap_or(0), stack.group)).or_default();
                    let members = group.rows.entry((i, found.suffix)).or_default();
                    members.count = count;
                    let number = found.member.unwrap_or(0);
                    if number < count && members.by_number.insert(number, (source.into(), recipe.clone())).is_none() {
                        group.met += 1;
                    } else {
                        self.unknown.push(source.into());
                    }
                }
            }
        }
        self.flush()
    }

    /// Writes the groups of stacks that are whole.
    fn flush(&mut self) -> Result<(), ArchError> {
        let whole: Vec<(u64, &'static str)> =
            self.groups.iter().filter(|(key, group)| self.is_whole(key.1, group)).map(|(key, _)| *key).collect();
        for key in whole {
            let Some(mut group) = self.groups.remove(&key) else { continue };
            group.rows.sort_keys();
            for ((i, suffix), mut members) in group.rows {
                let tensor = self.table.rows[i].tensor;
                let Fate::Named(output) = tensor.fate else { continue };
                let found = Found { block: Some(key.0), member: None, suffix };
                let mut parts = Vec::new();
                let mut sources = Vec::new();
                for n in 0..members.count {
                    if let Some((source, recipe)) = members.by_number.remove(&n) {
                        parts.push(recipe);
                        sources.push(source);
                    }
                }
                let first = sources.first().cloned().unwrap_or_default();
                let recipe = Recipe::stack(parts).map_err(|source| shape_error(&first, source))?;
                self.emit(tensor, output, &found, &first, recipe, sources)?;
            }
        }
        Ok(())
    }

    /// Whether all rows of a group have all their members. Every row of the group counts, also one of which
    /// nothing has been met, in one suffix at least.
    fn is_whole(&self, name: &str, group: &Group) -> bool {
        let needed = self.table.rows.iter().filter(|r| r.tensor.stack.is_some_and(|s| s.group == name)).count();
        let mut met: Vec<usize> = group.rows.keys().map(|(i, _)| *i).collect();
        met.sort_unstable();
        met.dedup();
        met.len() == needed && group.met == group.rows.values().map(|m| m.count).sum::<u64>()
    }

    /// Applies a row's operations and adds the output.
    fn emit(
        &mut self,
        tensor: &Tensor,
        output: &str,
        found: &Found<'_>,
        source: &str,
        mut recipe: Recipe,
        sources: Vec<String>,
    ) -> Result<(), ArchError> {
        let folder = self.folder.unwrap_or(Path::new(""));
        let place = Place { config: self.config, source, block: found.block, folder };
        for op in tensor.ops {
            if matches!(op, Op::TokenRows(_)) && self.folder.is_none() {
                continue;
            }
            recipe = apply(*op, recipe, &place)?;
        }
        let name = pattern::output_name(output, found.block, found.member, found.suffix);
        if tensor.duplicate && self.by_name.contains_key(&name) {
            self.out.dropped.push((source.into(), "a copy of a tensor that the file has under another name"));
            return Ok(());
        }
        self.push(name, recipe, tensor.store, sources)
    }

    fn push(
        &mut self,
        name: String,
        recipe: Recipe,
        store: Option<crate::quant::GgmlType>,
        source: Vec<String>,
    ) -> Result<(), ArchError> {
        if let Some(&other) = self.by_name.get(&name) {
            let first = self.out.tensors[other].source.first().cloned().unwrap_or_else(|| "a computed tensor".into());
            let second = source.first().cloned().unwrap_or_default();
            return Err(ArchError::Collision { first, second, output: name });
        }
        self.by_name.insert(name.clone(), self.out.tensors.len());
        let stored =
            match store.or_else(|| recipe.native().filter(|_| Stored::of(&name, recipe.shape()) != Stored::F32)) {
                Some(t) => Stored::Fixed(t),
                None => Stored::of(&name, recipe.shape()),
            };
        self.out.tensors.push(ConvertedTensor { name, recipe, stored, source, whole: None });
        Ok(())
    }

    /// All tensors have been met: nothing may be left over. Packed blocks that are copied come first: the converter
    /// writes them while it still reads headers.
    fn finish(mut self) -> Result<Claimed, ArchError> {
        if !self.unknown.is_empty() {
            const SHOWN: usize = 5;
            let mut names = self.unknown[..self.unknown.len().min(SHOWN)].join(", ");
            if self.unknown.len() > SHOWN {
                names += &format!(" and {} more", self.unknown.len() - SHOWN);
            }
            return Err(ArchError::UnknownTensors { class: self.config.class().into(), names });
        }
        let mut keys: Vec<_> = self.groups.keys().copied().collect();
        keys.sort_unstable();
        for (block, name) in keys {
            for (i, row) in self.table.rows.iter().enumerate() {
                let Some(stack) = row.tensor.stack.filter(|s| s.group == name) else { continue };
                let Fate::Named(output) = row.tensor.fate else { continue };
                let count = stack.count.value(self.config)?;
                let group = &self.groups[&(block, name)];
                let suffixes: Vec<&str> = group.rows.keys().filter(|k| k.0 == i).map(|k| k.1).collect();
                let suffix = suffixes.first().copied().unwrap_or(".weight");
                let members = group.rows.get(&(i, suffix)).map(|m| &m.by_number);
                if let Some(n) = (0..count).find(|n| members.is_none_or(|m| !m.contains_key(n))) {
                    return Err(ArchError::IncompleteStack {
                        name: pattern::output_name(row.tensor.source, Some(block), Some(n), suffix),
                        count,
                        output: pattern::output_name(output, Some(block), None, suffix),
                    });
                }
            }
        }
        self.out.tensors.sort_by_key(|t| !matches!(t.stored, Stored::Fixed(ty) if t.recipe.native() == Some(ty)));
        Ok(self.out)
    }
}

fn shape_error(name: &str, source: ShapeError) -> ArchError {
    ArchError::Shape { name: name.into(), source }
}

/// Whether a small tensor holds zeros only.
fn is_zero(name: &str, recipe: &Recipe) -> Result<bool, ArchError> {
    let mut scratch = Scratch::default();
    let mut row = vec![0.0; recipe.shape().row_len() as usize];
    for i in 0..recipe.shape().rows() {
        recipe
            .rows(i..i + 1, &mut row, &mut scratch)
            .map_err(|e| ArchError::Unreadable { name: name.into(), cause: e.to_string() })?;
        if row.iter().any(|&x| x != 0.0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Rows per matrix: the last dimension but one, the only one of a vector.
pub(super) fn matrix_rows(recipe: &Recipe) -> u64 {
    let dims = recipe.shape().dims();
    match dims.len() {
        0 => 1,
        1 => dims[0],
        n => dims[n - 2],
    }
}

/// `take` rows of each matrix, from `start` on, `step` apart.
fn within(recipe: Recipe, start: u64, step: u64, take: u64) -> Result<Recipe, ShapeError> {
    let dims = recipe.shape().dims().to_vec();
    if dims.len() < 3 {
        let count = take;
        return recipe.select(RowMap::Stride { start, step }, count);
    }
    let of = matrix_rows(&recipe);
    let count = recipe.shape().rows() / of.max(1) * take;
    let mut shape = dims;
    let n = shape.len();
    shape[n - 2] = take;
    let selected = recipe.select(RowMap::Within { of, start, step, take }, count)?;
    match Shape::new(shape) {
        Some(shape) => selected.reshape(shape),
        None => Ok(selected),
    }
}

/// The words of the vocabulary.
fn apply(op: Op, recipe: Recipe, place: &Place<'_>) -> Result<Recipe, ArchError> {
    let made = match op {
        Op::Rope(heads) => recipe.rope_permuted(heads.value(place.config)?),
        Op::Add(c) => Ok(recipe.map(Elementwise::Add(c))),
        Op::NegExp => Ok(recipe.map(Elementwise::NegExp)),
        Op::Transpose => recipe.transposed(),
        Op::Part { index, of } => {
            let rows = matrix_rows(&recipe);
            if !rows.is_multiple_of(of) {
                let odd = Shape::vector(rows);
                return Err(place.shape_error(ShapeError::Unfit {
                    subject: place.source.into(),
                    shape: recipe.shape().clone(),
                    operation: "splitting",
                    needs: format!("{of} equal parts of {odd} rows"),
                }));
            }
            within(recipe, index * (rows / of), 1, rows / of)
        }
        Op::Heads(heads) => {
            let heads = heads.value(place.config)?;
            let (rows, width) = (recipe.shape().rows(), recipe.shape().row_len());
            match Shape::new([heads, rows.checked_div(heads).unwrap_or(0), width]) {
                Some(shape) => recipe.reshape(shape),
                None => Ok(recipe),
            }
        }
        Op::Rows { start, count } => within(recipe, start.value(place.config)?, 1, count.value(place.config)?),
        Op::Degroup { groups, heads } => degroup(recipe, groups.value(place.config)?, heads.value(place.config)?),
        Op::Every { start, step } => {
            let rows = matrix_rows(&recipe);
            within(recipe, start, step, rows.saturating_sub(start).div_ceil(step))
        }
        Op::EveryColumn { start, step } => every_column(recipe, start, step),
        Op::Squeeze => {
            let dims: Vec<u64> = recipe.shape().dims().iter().copied().filter(|&d| d != 1).collect();
            match Shape::new(dims) {
                Some(shape) => recipe.reshape(shape),
                None => Ok(recipe),
            }
        }
        Op::TokenRows(count) => {
            let count = count(&recipe, place)?;
            recipe.slice(0, count)
        }
    };
    made.map_err(|source| place.shape_error(source))
}

/// Every `step`-th element of each row: the elements as rows of one, chosen within each.
fn every_column(recipe: Recipe, start: u64, step: u64) -> Result<Recipe, ShapeError> {
    let mut dims = recipe.shape().dims().to_vec();
    let width = recipe.shape().row_len();
    let take = width.saturating_sub(start).div_ceil(step);
    let rows = recipe.shape().rows();
    let elements = recipe.shape().elements();
    if let Some(last) = dims.last_mut() {
        *last = take;
    }
    let singles = recipe.reshape(Shape::matrix(elements, 1))?;
    let chosen = singles.select(RowMap::Within { of: width, start, step, take }, rows * take)?;
    match Shape::new(dims) {
        Some(shape) => chosen.reshape(shape),
        None => Ok(chosen),
    }
}

/// Rows of `groups` groups of queries, one key and one value each, in the order queries, keys, values.
fn degroup(recipe: Recipe, groups: u64, heads: u64) -> Result<Recipe, ShapeError> {
    let order = degrouped_order(&recipe, groups, heads)?;
    let rows = order.len() as u64;
    recipe.select(RowMap::Gather(order.into()), rows)
}

/// The source row of every row of [`Op::Degroup`].
pub(super) fn degrouped_order(recipe: &Recipe, groups: u64, heads: u64) -> Result<Vec<u64>, ShapeError> {
    let rows = if recipe.shape().ndim() == 1 { recipe.shape().elements() } else { recipe.shape().rows() };
    let queries = heads.checked_div(groups).unwrap_or(0);
    let head = rows.checked_div(groups * (queries + 2)).unwrap_or(0);
    if head == 0 || !heads.is_multiple_of(groups) || head * groups * (queries + 2) != rows {
        return Err(ShapeError::Unfit {
            subject: format!("{recipe:?}"),
            shape: recipe.shape().clone(),
            operation: "regrouping query, key and value",
            needs: format!("rows of {heads} + 2 x {groups} equal heads"),
        });
    }
    let heads_of =
        |from: u64, to: u64| (0..groups).flat_map(move |g| (from..to).map(move |h| (g * (queries + 2) + h) * head));
    let order = heads_of(0, queries)
        .chain(heads_of(queries, queries + 1))
        .chain(heads_of(queries + 1, queries + 2))
        .flat_map(|first| first..first + head);
    Ok(order.collect())
}
