//! torchao, as transformers writes it to safetensors: `X._weight_qdata`, `_scale`, `_zero_point`.
//!
//! The file's metadata says per weight which class it is and which type it decodes to. Int8 and E4M3:
//! `w = round((q - zero) * scale[r / b0][c / b1])`. Int4 (plain): signed nibbles, the low one first,
//! `w = q * scale[g][r] + zero[g][r]`. int8, grouped int8, fp8 and intx equal the library's `dequantize` exactly;
//! int4 follows its published layout.

use safetensors::Dtype;
use serde_json::Value;

use super::fields::int4_pairs;
use super::grid::{Codes, Grid, Scales, Zeros};
use super::{Shelf, SourceError, type_named};
use crate::quant::GgmlType;

/// Unpacks every `_weight_qdata`.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for base in shelf.bases("_weight_qdata") {
        unpack_weight(shelf, &base)?;
    }
    Ok(())
}

/// Class and decoded type of a weight, from the metadata.
fn class_of(shelf: &Shelf, name: &str) -> Option<(String, Option<GgmlType>)> {
    let entry: Value = serde_json::from_str(shelf.metadata.get(name)?).ok()?;
    let class = entry.get("_type")?.as_str()?.to_string();
    let dtype = entry.pointer("/_data/dtype").map(|d| d.as_str().or_else(|| d.get("_data")?.as_str()));
    Some((class, dtype.flatten().and_then(type_named)))
}

fn unpack_weight(shelf: &mut Shelf, base: &str) -> Result<(), SourceError> {
    let name = format!("{base}weight");
    let place = format!("{base}_weight_qdata");
    let Some((class, precision)) = class_of(shelf, &name) else {
        return Err(shelf.wrong(&name, "the file's metadata does not say of which torchao class it is"));
    };
    let codes = shelf.need(&place, &name)?;
    let scale = shelf.need(&format!("{base}_weight_scale"), &name)?;
    let zeros = shelf.take(&format!("{base}_weight_zero_point"));
    if shelf.take(&format!("{base}_weight_act_pre_scale")).is_some() {
        return Err(shelf.wrong(&name, "its inputs are scaled first (act_pre_scale), which a weight alone cannot hold"));
    }
    let model = shelf.model;
    let precision = precision.unwrap_or(if class == "Int4Tensor" { super::type_of(&scale) } else { model });
    let grid = match class.as_str() {
        "Int8Tensor" | "Float8Tensor" | "IntxUnpackedToInt8Tensor" => {
            shelf.check_dtype(&name, &codes, &[Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E5M2])?;
            let shape = shelf.shape(&name, codes.shape().dims())?;
            if let Some(z) = &zeros
                && z.shape().elements() != scale.shape().elements()
            {
                return Err(
                    shelf.wrong(&name, format!("zero points {} do not fit scales {}", z.shape(), scale.shape()))
                );
            }
            let scales = Scales::fit(shelf, &name, &shape, scale, None)?;
            let mut grid = Grid::new(shape, Codes::Elements(codes), scales, precision);
            grid.zeros = zeros.map(Zeros::Elements);
            grid
        }
        "Int4Tensor" => {
            shelf.check_dtype(&name, &codes, &[Dtype::I8, Dtype::U8])?;
            let &[out, half] = codes.shape().dims() else {
                return Err(shelf.wrong(&name, format!("codes of shape {} are no matrix", codes.shape())));
            };
            let shape = shelf.shape(&name, [out, half.saturating_mul(2)])?;
            let groups = scale.shape().dims().first().copied().unwrap_or(0);
            let Some(zeros) = zeros.filter(|z| z.shape() == scale.shape()) else {
                return Err(shelf.wrong(&name, "its zero points are missing or do not fit its scales"));
            };
            if scale.shape().dims() != [groups, out] || groups == 0 || shape.row_len() % groups != 0 {
                return Err(shelf.wrong(&name, format!("scales of shape {} do not fit {shape}", scale.shape())));
            }
            let Some(bytes) = codes.as_bytes() else { return Err(shelf.wrong(&name, "is a strided view")) };
            let group = shape.row_len() / groups;
            let scales = Scales::turned(scale, out, groups, group);
            let mut grid = Grid::new(shape, Codes::Pairs(bytes, int4_pairs()), scales, precision);
            grid.zeros = Some(Zeros::Added(zeros));
            grid
        }
        other => return Err(shelf.wrong(&name, format!("weights of torchao's class {other} are not read"))),
    };
    shelf.put(&place, &name, grid)
}
