//! optimum-quanto: int8, float8, int4 and int2.
//!
//! Eight bits: `w = q * scale[row]`, rounded once. Four and two bits: the matrix is reshaped to groups
//! `[n / g, g]`, whose rows are cut into bands, the first band in the lowest bits of each byte;
//! `w = round(round(q * scale) - shift)`. Equals the library's `dequantize` exactly. How long the rows are is not in the
//! file, except where a group is a row.

use std::ops::Range;

use safetensors::Dtype;

use super::grid::{Codes, Grid, Scales};
use super::{Shelf, SourceError, type_of};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::element;
use crate::source::stored::Stored;

/// Unpacks both forms.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for name in shelf.bases("._data._data") {
        unpack_grouped(shelf, &name)?;
    }
    for name in shelf.bases("._data") {
        let codes = shelf.need(&format!("{name}._data"), &name)?;
        let scale = shelf.need(&format!("{name}._scale"), &name)?;
        shelf.check_dtype(&name, &codes, &[Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E5M2])?;
        let precision = type_of(&scale);
        let shape = shelf.shape(&name, codes.shape().dims())?;
        let scales = Scales::fit(shelf, &name, &shape, scale, None)?;
        let grid = Grid::new(shape, Codes::Elements(codes), scales, precision);
        shelf.put(&format!("{name}._data"), &name, grid)?;
    }
    shelf.drop_ending(&[".input_scale", ".output_scale"]);
    Ok(())
}

/// Bits of a weight from `quanto_qmap.json`: `{"module": {"weights": "qint4"}}`.
fn bits_of(shelf: &Shelf, name: &str) -> Option<u32> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let kind = shelf.config.get(module).and_then(|m| m.get("weights")).or_else(|| shelf.config.get("weights"));
    match kind.and_then(|k| k.as_str())? {
        "qint4" | "int4" => Some(4),
        "qint2" | "int2" => Some(2),
        _ => None,
    }
}

fn unpack_grouped(shelf: &mut Shelf, name: &str) -> Result<(), SourceError> {
    let place = format!("{name}._data._data");
    let codes = shelf.need(&place, name)?;
    let scale = shelf.need(&format!("{name}._scale"), name)?;
    let shift = shelf.need(&format!("{name}._shift"), name)?;
    shelf.check_dtype(name, &codes, &[Dtype::U8])?;
    let &[band, group] = codes.shape().dims() else {
        return Err(shelf.wrong(name, format!("codes of shape {} are no matrix", codes.shape())));
    };
    let groups = scale.shape().elements();
    let Some(bits) = bits_of(shelf, name) else {
        return Err(shelf.wrong(name, "quanto_qmap.json does not say whether its codes have 4 or 2 bits"));
    };
    let per = u64::from(8 / bits);
    if groups == 0 || shift.shape().elements() != groups || groups.div_ceil(per) != band {
        let (c, s) = (codes.shape(), scale.shape());
        return Err(shelf.wrong(name, format!("codes {c} of {bits} bits do not fit scales {s}")));
    }
    let dims = logical_dims(shelf, name, groups, group)?;
    let shape = shelf.shape(name, dims)?;
    let precision = type_of(&scale);
    let integer_shift = matches!(shift.dtype(), Dtype::I8 | Dtype::U8);
    shelf.put(&place, name, Grouped { shape, precision, codes, scale, shift, bits, band, group, integer_shift })
}

/// Columns of a group for rows of `columns`, as the library chooses them: 128, or less by 32 until it divides the row; whole
/// rows where they are short or nothing divides them.
fn group_of(columns: u64) -> u64 {
    [128, 96, 64, 32].into_iter().find(|g| columns > 128 && columns.is_multiple_of(*g)).unwrap_or(columns)
}

/// `[rows, columns]` of a weight of `groups` of `group` columns. The file does not hold them, the library takes them from
/// the model's code. They are those that the bias or the layer's place in the model says, if the library cuts such rows
/// into such groups; and groups that it cuts no rows into are rows.
fn logical_dims(shelf: &Shelf, name: &str, groups: u64, group: u64) -> Result<[u64; 2], SourceError> {
    if group_of(group) == group && !matches!(group, 32 | 64 | 96 | 128) {
        return Ok([groups, group]);
    }
    let elements = groups.saturating_mul(group);
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let told = match shelf.peek(&format!("{module}.bias")) {
        Some(bias) => Some(Told::Rows(bias.shape().elements())),
        None => by_role(shelf, module),
    };
    let Some(told) = told else {
        let cause = format!(
            "of {name} the file holds groups of {group} columns but not the number of rows, and neither a bias nor the layer's \
             name and the model's config.json tell it"
        );
        return Err(shelf.unsupported(cause));
    };
    let (what, count) = match told {
        Told::Rows(n) => ("rows", n),
        Told::Columns(n) => ("columns", n),
    };
    let other = elements.checked_div(count).filter(|n| n * count == elements).unwrap_or(0);
    let dims = match told {
        Told::Rows(rows) => [rows, other],
        Told::Columns(columns) => [other, columns],
    };
    if other == 0 || group_of(dims[1]) != group {
        let cause = format!("{name}: {groups} groups of {group} columns are no matrix of {count} {what}");
        return Err(shelf.unsupported(cause));
    }
    Ok(dims)
}

/// One of a matrix's dimensions; the number of elements gives the other.
enum Told {
    Rows(u64),
    Columns(u64),
}

/// Layers that read the residual stream, by the last word of their names: they have as many columns as it is wide.
const READERS: [&str; 24] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "Wqkv",
    "W_pack",
    "query_key_value",
    "in_proj",
    "q_a_proj",
    "kv_a_proj_with_mqa",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "gate",
    "router",
    "shared_expert_gate",
    "fc1",
    "fc_in",
    "c_fc",
    "dense_h_to_4h",
    "w1",
    "w3",
    "wi_0",
    "wi_1",
];

/// Layers that write to it: they have as many rows.
const WRITERS: [&str; 10] =
    ["o_proj", "out_proj", "down_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "c_proj", "w2", "wo"];

/// What the layer's place in the model says, by its name and the model's configuration.
fn by_role(shelf: &Shelf, module: &str) -> Option<Told> {
    let text = std::fs::read(shelf.folder.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let config = config.get("text_config").unwrap_or(&config);
    let get = |keys: &[&str]| keys.iter().find_map(|k| config.get(*k)?.as_u64());
    let hidden = get(&["hidden_size", "n_embd", "d_model"]);
    match module.rsplit('.').next()? {
        "lm_head" | "embed_out" => get(&["vocab_size"]).map(Told::Rows),
        "q_b_proj" => get(&["q_lora_rank"]).map(Told::Columns),
        "kv_b_proj" => get(&["kv_lora_rank"]).map(Told::Columns),
        role if READERS.contains(&role) => hidden.map(Told::Columns),
        role if WRITERS.contains(&role) => hidden.map(Told::Rows),
        _ => None,
    }
}

struct Grouped {
    shape: Shape,
    precision: GgmlType,
    codes: Stored,
    scale: Stored,
    shift: Stored,
    bits: u32,
    band: u64,
    group: u64,
    integer_shift: bool,
}

/// Elements that are read in one step.
const STEP: u64 = 1 << 16;

impl Grouped {
    /// The elements from `at` on, whose fields are at bit `by` of the bytes of `line`. Scales and shifts begin with group
    /// `group`.
    #[inline(always)]
    fn decode(&self, line: &[u8], by: u32, at: u64, group: u64, [scales, shifts]: [&[f32]; 2], out: &mut [f32]) {
        let mask = (1u8 << self.bits) - 1;
        out.iter_mut().zip(line).for_each(|(x, &b)| *x = f32::from(b >> by & mask));
        let (mut at, mut rest) = (at, out);
        while !rest.is_empty() {
            let run = ((self.group - at % self.group) as usize).min(rest.len());
            let (out, behind) = rest.split_at_mut(run);
            let g = (at / self.group - group) as usize;
            if self.integer_shift {
                out.iter_mut().for_each(|x| *x = (*x - shifts[g]) * scales[g]);
            } else {
                out.iter_mut().for_each(|x| *x *= scales[g]);
                element::round_all(self.precision, out);
                out.iter_mut().for_each(|x| *x -= shifts[g]);
            }
            element::round_all(self.precision, out);
            at += run as u64;
            rest = behind;
        }
    }
}

impl RowSource for Grouped {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        self.precision
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], scratch: &mut Scratch) -> Result<(), ReadError> {
        if out.is_empty() {
            return Ok(());
        }
        let len = self.shape.row_len();
        let (start, end) = (rows.start * len, rows.end * len);
        let groups = start / self.group..(end - 1) / self.group + 1;
        let count = (groups.end - groups.start) as usize;
        let (mut scales, mut shifts) = (scratch.take_floats(count), scratch.take_floats(count));
        self.scale.read_floats(groups.clone(), &mut scales, scratch)?;
        self.shift.read_floats(groups.clone(), &mut shifts, scratch)?;
        let mut line = scratch.take_bytes(STEP.min(end - start) as usize);
        let mut at = start;
        while at < end {
            // A run within one band of the grouped matrix: bytes that follow one another, one shift.
            let band = at / (self.group * self.band);
            let first = at - band * self.group * self.band;
            let run = (self.group * self.band - first).min(end - at).min(STEP);
            let line = &mut line[..run as usize];
            self.codes.read_elements(first..first + run, line)?;
            let part = &mut out[(at - start) as usize..(at - start + run) as usize];
            let by = self.bits * band as u32;
            pulp::Arch::new().dispatch(|| self.decode(line, by, at, groups.start, [&scales, &shifts], part));
            at += run;
        }
        scratch.give_bytes(line);
        scratch.give_floats(scales);
        scratch.give_floats(shifts);
        Ok(())
    }

    fn describe(&self) -> String {
        self.codes.describe()
    }
}
