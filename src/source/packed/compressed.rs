//! compressed-tensors (llm-compressor, vLLM): integers and floats of several widths.
//!
//! Each tensor's own parts decide: `weight_packed` of 32-bit words are integers, of bytes four-bit floats (NVFP4
//! with a global scale that divides, MXFP4 with bare exponents); `weight` of int8 or E4M3 has a `weight_scale`.
//! `w = (q - zero) * scale`, rounded once to the type of the scale; NVFP4 and the MX formats give bf16. Equals the
//! library's `decompress` exactly.

use safetensors::Dtype;
use serde_json::Value;

use super::fields::{Layout, e2m1_pairs};
use super::grid::{Adjust, Codes, Grid, Scales, Zeros};
use super::nvfp4::Nvfp4;
use super::rounded::Rounded;
use super::{Shelf, SourceError, type_of};
use crate::quant::GgmlType;
use crate::recipe::BlockFactors;
use crate::source::stored::Stored;

/// What activations, caches and calibration leave behind.
const IGNORED: [&str; 7] = [
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
];

/// Formats whose sparse or GPU-ordered weights are not read.
const UNREAD: [&str; 5] = ["marlin-24", "sparse-24-bitmask", "sparse-bitmask", "mxfp6-pack-quantized", "mxfp6"];

/// Unpacks every weight that has a scale.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    let group_formats = shelf.config.get("config_groups").and_then(Value::as_object);
    let formats = group_formats.into_iter().flatten().filter_map(|(_, g)| g.get("format"));
    let sparse = shelf.config.pointer("/sparsity_config/format");
    let unread = formats
        .chain(shelf.config.get("format"))
        .chain(sparse)
        .filter_map(Value::as_str)
        .find(|f| UNREAD.contains(f))
        .map(str::to_string);
    if let Some(format) = unread {
        return Err(shelf.unsupported(format!("format {format} is not read")));
    }
    for module in shelf.bases(".weight_packed") {
        unpack_packed(shelf, &module)?;
    }
    for module in shelf.bases(".weight_scale") {
        unpack_plain(shelf, &module)?;
    }
    shelf.drop_ending(&IGNORED);
    Ok(())
}

/// Widths of integers that the configuration mentions, and the size of blocks.
fn widths(config: &Value) -> Vec<u32> {
    let groups = config.get("config_groups").and_then(Value::as_object);
    let bits = |g: &Value| g.pointer("/weights/num_bits").and_then(Value::as_u64).map(|b| b as u32);
    let mut found: Vec<u32> = groups.into_iter().flatten().filter_map(|(_, g)| bits(g)).collect();
    found.sort();
    found.dedup();
    found
}

fn block_of(config: &Value) -> Option<(u64, u64)> {
    let groups = config.get("config_groups").and_then(Value::as_object)?;
    let block = groups.iter().find_map(|(_, g)| g.pointer("/weights/block_structure")?.as_array().cloned())?;
    Some((block.first()?.as_u64()?, block.get(1)?.as_u64()?))
}

/// int8 or E4M3 elements.
fn unpack_plain(shelf: &mut Shelf, module: &str) -> Result<(), SourceError> {
    let name = format!("{module}.weight");
    let scale = shelf.need(&format!("{name}_scale"), &name)?;
    let codes = shelf.need(&name, &name)?;
    shelf.check_dtype(&name, &codes, &[Dtype::I8, Dtype::F8_E4M3, Dtype::F8_E5M2])?;
    let exponents = matches!(scale.dtype(), Dtype::U8 | Dtype::F8_E8M0);
    let precision = if exponents { GgmlType::BF16 } else { type_of(&scale) };
    let shape = shelf.shape(&name, codes.shape().dims())?;
    let block = block_of(&shelf.config);
    let zeros = shelf.take(&format!("{name}_zero_point"));
    if let Some(z) = &zeros
        && z.shape() != scale.shape()
    {
        return Err(shelf.wrong(&name, format!("zero points of shape {} need {}", z.shape(), scale.shape())));
    }
    let scales = Scales::fit(shelf, &name, &shape, scale, block)?;
    let groups = shelf.take(&format!("{name}_g_idx"));
    let mut grid = Grid::new(shape, Codes::Elements(codes), scales, GgmlType::F32);
    // The zero points of floats are all zero.
    grid.zeros = zeros.filter(|z| z.dtype() == Dtype::I8).map(Zeros::Elements);
    grid.groups = check_groups(shelf, &name, groups, grid.shape.row_len())?;
    shelf.put_rounded(&name, &name, grid, precision)
}

/// The two ways in which fields have been put into words, the likelier one first: narrow rows fit both. The library packs
/// without gaps from 0.18 on (`pack_to_int32`), and writes its version into the configuration.
fn layouts(config: &Value) -> [Layout; 2] {
    let version = config.get("version").and_then(Value::as_str).unwrap_or_default();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let version = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    if version >= [0, 18] { [Layout::Dense, Layout::PerWord] } else { [Layout::PerWord, Layout::Dense] }
}

fn check_groups(
    shelf: &Shelf,
    name: &str,
    groups: Option<Stored>,
    columns: u64,
) -> Result<Option<Stored>, SourceError> {
    if let Some(g) = &groups {
        shelf.check_shape(name, g, &[columns])?;
        shelf.check_dtype(name, g, &[Dtype::I32])?;
    }
    Ok(groups)
}

fn unpack_packed(shelf: &mut Shelf, module: &str) -> Result<(), SourceError> {
    let name = format!("{module}.weight");
    let packed = shelf.need(&format!("{name}_packed"), &name)?;
    let scale = shelf.need(&format!("{name}_scale"), &name)?;
    let Some(bytes) = packed.as_bytes() else { return Err(shelf.wrong(&name, "is a strided view")) };
    if packed.dtype() == Dtype::U8 {
        let mut dims = packed.shape().dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = last.saturating_mul(2);
        }
        let shape = shelf.shape(&name, dims)?;
        let global = shelf.take(&format!("{name}_global_scale"));
        shelf.take(&format!("{name}_shape"));
        let codes = Codes::Pairs(bytes.clone(), e2m1_pairs());
        let Some(global) = global else {
            let scales = Scales::fit(shelf, &name, &shape, scale, Some((1, 32)))?;
            return shelf.append(&name, Grid::new(shape, codes, scales, GgmlType::BF16));
        };
        if global.shape().elements() != 1 && global.shape().elements() != shape.dims()[0] {
            return Err(shelf.wrong(&name, format!("its global scale has shape {}", global.shape())));
        }
        let input = shelf.take(&format!("{module}.input_global_scale"));
        let read = |factor: &Stored| shelf.read(&name, factor.read_all_floats());
        let input = input.map(|i| read(&i)).transpose()?.unwrap_or(vec![1.0]);
        let factors = match (&read(&global)?[..], &input[..]) {
            (&[weight], &[input]) => {
                Some(BlockFactors { weight: 1.0 / weight, input: 1.0 / input, wide_inputs: false })
            }
            _ => None,
        };
        let scales = Scales::fit(shelf, &name, &shape, scale.clone(), Some((1, 16)))?;
        let grid = Grid::new(shape, codes, scales.adjusted(Adjust::DividedBy(global)), GgmlType::BF16);
        return shelf.append(&name, Nvfp4::new(grid, bytes, scale, factors));
    }
    shelf.check_dtype(&name, &packed, &[Dtype::I32])?;
    let stated = shelf.need(&format!("{name}_shape"), &name)?;
    if stated.shape().elements() != 2 {
        return Err(shelf.wrong(&name, format!("its weight_shape holds {} numbers, not 2", stated.shape().elements())));
    }
    // Shapes fit a float exactly: no dimension reaches 2^24.
    let stated: Vec<u64> = shelf.read(&name, stated.read_all_floats())?.iter().map(|&d| d as u64).collect();
    let shape = shelf.shape(&name, stated)?;
    let (rows, cols) = (shape.rows(), shape.row_len());
    let words = packed.shape().row_len();
    let layouts = layouts(&shelf.config);
    let fits = |b: u32| layouts.into_iter().find(|l| (1..=8).contains(&b) && l.words(b, cols) == words).map(|l| (b, l));
    let found = widths(&shelf.config).into_iter().find_map(fits);
    let Some((bits, layout)) = found.filter(|_| packed.shape().rows() == rows) else {
        let given = packed.shape();
        return Err(shelf.wrong(&name, format!("words of shape {given} do not hold {shape} in the configured width")));
    };
    let precision = type_of(&scale);
    let offset = 1i32 << (bits - 1);
    let scales = Scales::fit(shelf, &name, &shape, scale, None)?;
    let zeros = shelf.take(&format!("{name}_zero_point"));
    let groups = shelf.take(&format!("{name}_g_idx"));
    let mut grid = Grid::new(shape, Codes::Fields { bytes, bits, layout, offset }, scales, GgmlType::F32);
    if let Some(z) = zeros {
        let columns = grid.scales.columns();
        shelf.check_shape(&name, &z, &[layout.words(bits, rows), columns])?;
        let Some(bytes) = z.as_bytes() else { return Err(shelf.wrong(&name, "is a strided view")) };
        grid.zeros = Some(Zeros::Columns { bytes, bits, layout, columns, offset });
    }
    grid.groups = check_groups(shelf, &name, groups, cols)?;
    shelf.append(&name, Rounded::new(grid, precision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_librarys_version_decides_between_layouts_that_both_fit() {
        for (config, first) in [
            (json!({}), Layout::PerWord),
            (json!({"version": "0.9.4"}), Layout::PerWord),
            (json!({"version": "0.17.0"}), Layout::PerWord),
            (json!({"version": "0.18.0"}), Layout::Dense),
            (json!({"version": "1.0.0"}), Layout::Dense),
        ] {
            assert_eq!(layouts(&config)[0], first, "{config}");
        }
    }
}
