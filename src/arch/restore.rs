//! From a GGUF back to the tensors that it was made of, so that an adapter of the original model can be merged
//! into it: merging is a property of the original's tensor names.
//!
//! Nothing here knows a name. The family's table is read from right to left: which rows make a GGUF tensor, and what
//! undoes their operations ([`undo`]). The merged tensors then take the table's ordinary way ([`claim`]); only those
//! that an adapter changed are taken from there, all others stay as the file has them, to the byte.
//!
//! A GGUF tensor may be made in several ways, as experts that are stored one by one or in one tensor. The way is
//! taken whose names the adapter uses, otherwise the first in the table. What cannot be undone (a logarithm, rows that
//! were left out) has no original, and an adapter of it is refused by name, as one of any module that is not there.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::claim::{Table, claim};
use super::config::Config;
use super::error::ArchError;
use super::pattern::{Found, Pattern, output_name};
use super::spec::{Family, Fate, From, Key, Op};
use super::stored::ConvertedTensor;
use super::undo::undo;
use crate::gguf::{Array, Metadata, Value};
use crate::recipe::{Recipe, ShapeError};
use crate::shape::Shape;
use crate::source::TensorSet;

/// A GGUF as the model that it was made of, as far as its tensors tell.
pub struct Restored {
    family: &'static Family,
    config: Config,
    tensors: TensorSet,
}

/// A way in which GGUF tensors were made of one source tensor, or of the members of a stack.
struct Way {
    /// The sources, in the order of the stack.
    sources: Vec<String>,
    /// Row numbers in the table, and the GGUF tensors that they make.
    rows: Vec<(usize, String)>,
    stacked: bool,
}

/// Finds the original tensors of a GGUF. `tensors` are the file's; `wanted` says whether an adapter changes a source
/// tensor of a name.
///
/// # Errors
/// [`ArchError::UnknownArchitecture`] for one without a family, and what is wrong with its keys.
pub fn restore(
    file: &Path,
    metadata: &Metadata,
    tensors: &TensorSet,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Restored, ArchError> {
    let arch = metadata.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let Some(family) = super::FAMILIES.iter().copied().find(|f| f.arch == arch) else {
        return Err(ArchError::UnknownArchitecture { file: file.into(), arch: arch.into() });
    };
    let config = Config::new(&config_of(family, metadata, tensors), file)?;
    let table = Table::new(family, &config)?;

    let mut ways: Vec<(usize, Way)> = Vec::new();
    for (position, (name, recipe)) in tensors.iter().enumerate() {
        for way in ways_to(name, recipe, &table, &config, tensors)? {
            ways.push((position, spelled(way, family, wanted)));
        }
    }
    // Those that an adapter names come first, and of each output's the first is taken.
    ways.sort_by_key(|(_, way)| !way.sources.iter().any(|s| wanted(s)));
    let mut made: HashSet<String> = HashSet::new();
    let mut originals: Vec<(usize, String, Recipe)> = Vec::new();
    for (position, way) in ways {
        if way.rows.iter().any(|(_, output)| made.contains(output)) {
            continue;
        }
        let Some(parts) = original(&way, &table, &config, tensors)? else { continue };
        made.extend(way.rows.into_iter().map(|(_, output)| output));
        originals.extend(way.sources.into_iter().zip(parts).map(|(source, recipe)| (position, source, recipe)));
    }
    originals.sort_by_key(|(position, ..)| *position);
    let tensors = originals.into_iter().map(|(_, source, recipe)| (source, recipe)).collect();
    Ok(Restored { family, config, tensors })
}

impl Restored {
    /// The original tensors under their own names.
    pub fn tensors(&self) -> &TensorSet {
        &self.tensors
    }

    /// What the GGUF tells of the original's config.json; `model_type` is the family's name.
    pub fn config(&self) -> Json {
        json!({ "model_type": self.family.arch.replace('-', "_") })
    }

    /// The GGUF tensors that are made of the changed ones among `merged`. `head` is an output head that merging
    /// parted from the embeddings: it is left out where llama.cpp takes none.
    ///
    /// # Errors
    /// [`ArchError::NotRestored`] where a changed tensor has no place in the GGUF.
    pub fn convert(
        &self,
        merged: &TensorSet,
        changed: &HashSet<&str>,
        head: Option<&str>,
    ) -> Result<Vec<ConvertedTensor>, ArchError> {
        let claimed = claim(self.family, &self.config, merged, None)?;
        let is_new = |source: &String| changed.contains(source.as_str()) || head == Some(source);
        let tensors: Vec<ConvertedTensor> =
            claimed.tensors.into_iter().filter(|t| t.source.iter().any(is_new)).collect();
        let placed: HashSet<&str> = tensors.iter().flat_map(|t| t.source.iter().map(String::as_str)).collect();
        match changed.iter().find(|name| !placed.contains(*name)) {
            None => Ok(tensors),
            Some(name) => {
                let reason = claimed.dropped.iter().find(|(dropped, _)| dropped == name).map(|(_, reason)| *reason);
                Err(ArchError::NotRestored {
                    file: self.config.file().into(),
                    name: (*name).into(),
                    reason: reason.unwrap_or("the table of its family does not name it").into(),
                })
            }
        }
    }
}

/// All ways in which the family makes a GGUF tensor, in the order of the table.
fn ways_to(
    name: &str,
    recipe: &Recipe,
    table: &Table<'_>,
    config: &Config,
    tensors: &TensorSet,
) -> Result<Vec<Way>, ArchError> {
    let mut ways = Vec::new();
    for (i, row) in table.rows.iter().enumerate() {
        let Fate::Named(output) = row.tensor.fate else { continue };
        let Some(found) = Pattern::parse(output).find(name).filter(|found| table.holds(i, found.block)) else {
            continue;
        };
        let source = |member| output_name(row.tensor.source, found.block, member, found.suffix);
        let sources: Vec<String> = match row.tensor.stack {
            None => vec![source(None)],
            Some(stack) => {
                let count = stack.count.value(config)?;
                // Of an empty tensor, the number of members is a mere claim.
                if recipe.shape().dims().first() != Some(&count) || recipe.shape().elements() == 0 {
                    continue;
                }
                (0..count).map(|n| source(Some(n))).collect()
            }
        };
        // Going forward, the first row that fits a name decides: it must be one of these.
        let rows: Vec<(usize, Found<'static>)> = sources.first().map(|s| table.find(s)).unwrap_or_default();
        let same = |i: &usize| table.rows[*i].tensor.source == row.tensor.source;
        if !rows.first().is_some_and(|(first, _)| same(first)) {
            continue;
        }
        let rows: Vec<(usize, String)> = rows
            .into_iter()
            .filter(|(i, _)| same(i))
            .filter_map(|(i, found)| match table.rows[i].tensor.fate {
                Fate::Named(output) => Some((i, output_name(output, found.block, None, found.suffix))),
                _ => None,
            })
            .collect();
        if rows.iter().all(|(_, output)| tensors.contains(output)) {
            ways.push(Way { sources, rows, stacked: row.tensor.stack.is_some() });
        }
    }
    Ok(ways)
}

/// The way with its sources under the names that the adapter uses, where the table leaves beginnings of names out.
fn spelled(way: Way, family: &Family, wanted: &dyn Fn(&str) -> bool) -> Way {
    if way.sources.iter().any(|s| wanted(s)) {
        return way;
    }
    let with = |prefix: &str| way.sources.iter().map(|s| format!("{prefix}{s}")).collect::<Vec<_>>();
    match family.strip.iter().map(|p| with(p)).find(|sources| sources.iter().any(|s| wanted(s))) {
        Some(sources) => Way { sources, ..way },
        None => way,
    }
}

/// The source tensors of a way; `None` where the file does not hold all of them.
fn original(
    way: &Way,
    table: &Table<'_>,
    config: &Config,
    tensors: &TensorSet,
) -> Result<Option<Vec<Recipe>>, ArchError> {
    let pieces: Vec<(&[Op], Recipe)> = way
        .rows
        .iter()
        .filter_map(|(i, output)| Some((table.rows[*i].tensor.ops, tensors.get(output)?.clone())))
        .collect();
    let shape_error = |source: ShapeError| ArchError::Shape { name: way.rows[0].1.clone(), source };
    let Some(whole) = undo(pieces, config, &shape_error)? else { return Ok(None) };
    if !way.stacked {
        return Ok(Some(vec![whole]));
    }
    let members = (0..way.sources.len() as u64).map(|n| {
        let dims = whole.shape().dims()[1..].to_vec();
        let member = whole.clone().slice(n, 1)?;
        match Shape::new(dims) {
            Some(shape) => member.reshape(shape),
            None => Ok(member),
        }
    });
    members.collect::<Result<Vec<_>, _>>().map(Some).map_err(shape_error)
}

/// The config values that the tables' numbers are made of, from the keys that the family writes of them.
fn config_of(family: &Family, metadata: &Metadata, tensors: &TensorSet) -> Json {
    let value = |name: &str| metadata.get(&format!("{}.{name}", family.arch));
    let mut config = Map::new();
    for (name, number) in (family.restored)(&|name| value(name).and_then(Value::as_u64)) {
        if let Some(number) = number {
            config.insert(name.into(), number.into());
        }
    }
    for table in [family.early_keys, family.keys] {
        collect(table, &|name| value(name).and_then(json_of), &mut config);
    }
    config.insert("architectures".into(), json!(family.classes[..1]));
    config.insert("num_hidden_layers".into(), value("block_count").and_then(json_of).unwrap_or_default());
    config.insert("tie_word_embeddings".into(), (!tensors.contains("output.weight")).into());
    Json::Object(config)
}

/// Gives the config keys of a table the values that a GGUF has for them. The first to name a config key decides.
fn collect(table: &[Key], value: &dyn Fn(&str) -> Option<Json>, config: &mut Map<String, Json>) {
    for key in table {
        let (name, from) = match *key {
            Key::Group(table) => {
                collect(table, value, config);
                continue;
            }
            Key::U32(name, from)
            | Key::U32s(name, from)
            | Key::F32(name, from)
            | Key::Bool(name, from)
            | Key::Str(name, from) => (name, from),
            Key::FileType | Key::Pooling | Key::Many(_) => continue,
        };
        let (From::Any(names) | From::Need(names) | From::Or(names, _)) = from else { continue };
        if let Some(value) = value(name) {
            for name in names {
                config.entry(*name).or_insert_with(|| value.clone());
            }
        }
    }
}

fn json_of(value: &Value) -> Option<Json> {
    match value {
        Value::Array(Array::I32(list)) => Some(list.clone().into()),
        Value::Array(Array::U32(list)) => Some(list.clone().into()),
        Value::F32(x) => Some((*x).into()),
        Value::Bool(b) => Some((*b).into()),
        Value::String(_) => value.as_str().map(Json::from),
        other => other.as_u64().map(Json::from),
    }
}
