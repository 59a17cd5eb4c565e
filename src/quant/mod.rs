//! What a row becomes: block types, the choice among them, and importance matrices.
//!
//! [`quantize_rows`] and [`dequantize_rows`] are the way in. A type is one row of the table in `types.rs`
//! (number, name, geometry, imatrix rule, functions); the functions live in its family's file:
//!
//! * `plain.rs`: F32, F16, BF16, and the row operations for 16-bit data;
//! * `legacy.rs`: blocks with one scale: Q1_0, Q2_0, Q4_0 … Q8_0;
//! * `k_affine.rs`, `k_symmetric.rs`: super-blocks of 256 with (Q2_K, Q4_K, Q5_K) and without (Q3_K, Q6_K) minima;
//! * `iq4.rs`: 4-bit codes of uneven values; `iq3.rs`, `iq2.rs`, `iq1.rs`: points of the grids in `codebook.rs`,
//!   the first two by the search in `grid_search.rs`;
//! * `ternary.rs`: TQ1_0, TQ2_0; `fp4.rs`: MXFP4, NVFP4.
//!
//! Each family holds its *reference*, plain Rust over slices and the specification of the bytes, and beside it
//! a kernel over `lanes`, which must equal the reference bit for bit. What the bytes depend on: strictly
//! sequential sums, no fused multiply-add, the rounding of each conversion, and which f16 is read back.
//!
//! What type a tensor gets is decided by `filetype.rs`, `mixture.rs` (llama.cpp's rules), `overrides.rs` (the
//! user's) and `quantplan.rs` (a whole file).

mod codebook;
mod filetype;
mod fp4;
mod grid_ends;
mod grid_exact;
mod grid_lanes;
mod grid_lists;
mod grid_nearest;
mod grid_runs;
mod grid_search;
mod grid_tries;
mod imatrix;
mod iq1;
mod iq1_lanes;
mod iq1_split;
mod iq2;
mod iq3;
mod iq4;
mod k_affine;
mod k_affine_lanes;
mod k_symmetric;
mod lane_search;
mod lanes;
mod legacy;
pub mod mixture;
mod overrides;
mod plain;
mod quantplan;
mod search;
mod ternary;
mod types;

pub use filetype::{FileType, MOSTLY_NVFP4, QuantName};
pub use imatrix::{Imatrix, ImatrixError, ImatrixFilter};
pub use lanes::Isa;
pub use mixture::UnknownLayer;
pub(crate) use overrides::can_hold_weights;
pub use overrides::{KvOverride, OptionError, QuantOptions, TensorTypeRule, parse_prune_layers, weight_type};
pub use plain::{decode_bf16, decode_f16, encode_bf16, encode_f16};
pub use quantplan::{Decision, Fallback, Importance, QuantPlan, QuantPlanError, SourceTensor};
pub use types::{Geometry, GgmlType, ImatrixRule};

/// A whole number of rows, and what is known about their columns.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The elements, row after row.
    pub values: &'a [f32],
    /// Elements of one row: a whole number of blocks.
    pub row_len: usize,
    /// The importance of each column, `row_len` long.
    pub imatrix: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// The rows one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        self.values.chunks_exact(self.row_len)
    }
}

/// Why rows cannot be quantized or dequantized.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A type without an encoder here: integers and F64 are only ever copied.
    #[error("{ty} holds plain numbers that are copied, not quantized; choose a float or block type")]
    NotAnEncoding {
        /// The type that was asked for.
        ty: GgmlType,
    },
    /// A row does not divide into blocks.
    #[error(
        "a row of {row_len} elements does not divide into {ty} blocks of {block}; choose a type with smaller blocks"
    )]
    RowNotBlocks {
        /// The type that was asked for.
        ty: GgmlType,
        /// Elements of the row.
        row_len: usize,
        /// Elements of a block.
        block: usize,
    },
    /// The values are not a whole number of rows, or the output does not have their size.
    #[error(
        "{ty} rows of {row_len} elements: {elements} elements go with {expected} bytes, not {bytes}; pass whole rows"
    )]
    Size {
        /// The type that was asked for.
        ty: GgmlType,
        /// Elements of the row.
        row_len: usize,
        /// Elements given (or asked for).
        elements: usize,
        /// Bytes that whole rows of them take.
        expected: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// The type cannot be made without an importance matrix.
    #[error("{ty} needs an importance matrix; pass --imatrix FILE or choose a larger type")]
    ImatrixRequired {
        /// The type that was asked for.
        ty: GgmlType,
    },
    /// The importance matrix does not have one weight per column.
    #[error(
        "the importance matrix has {actual} weights for rows of {expected} columns; use the one computed for this model"
    )]
    ImatrixLength {
        /// Columns of the tensor.
        expected: usize,
        /// Weights given.
        actual: usize,
    },
    /// A weight of the importance matrix is not a number.
    #[error("the importance matrix has {value} at column {column}; compute it again")]
    ImatrixNotFinite {
        /// The column.
        column: usize,
        /// Its weight.
        value: f32,
    },
    /// An element is infinite or not a number: no block type can represent it.
    #[error("row {row} has {value} at column {column}; the model's weights are damaged: use an intact copy")]
    NotFinite {
        /// The row among those given.
        row: usize,
        /// The column.
        column: usize,
        /// The element.
        value: f32,
    },
    /// The elements are finite, but a block's scale leaves the range of f16 (llama-quantize's row validation).
    #[error("row {row}: the scale of {ty} block {block} is out of range; keep this tensor as F16, BF16 or F32")]
    ScaleNotFinite {
        /// The type that was asked for.
        ty: GgmlType,
        /// The row among those given.
        row: usize,
        /// The block within the row.
        block: usize,
    },
}

impl QuantError {
    /// The same error about rows that begin at row `first` of a tensor.
    pub fn from_row(mut self, first: usize) -> Self {
        if let QuantError::NotFinite { row, .. } | QuantError::ScaleNotFinite { row, .. } = &mut self {
            *row += first;
        }
        self
    }
}

/// Which code computes the bytes. All give the same; the default is the fastest that this CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The scalar reference, which defines the bytes.
    Reference,
    /// The lane kernels on one instruction set; types without a kernel use the reference.
    Lanes(Isa),
}

impl Engine {
    /// Every engine that this CPU can run, the reference first.
    pub fn available() -> Vec<Engine> {
        std::iter::once(Engine::Reference).chain(Isa::available().into_iter().map(Engine::Lanes)).collect()
    }
}

impl Default for Engine {
    fn default() -> Self {
        Engine::Lanes(Isa::best())
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Engine::Reference => f.write_str("reference"),
            Engine::Lanes(isa) => f.write_str(isa.name()),
        }
    }
}

/// Encodes whole rows as `ty`, byte for byte as llama.cpp's `ggml_quantize_chunk` does on x86-64.
///
/// `imatrix` holds one weight per column; types that have no use for it ignore it. `out` must have exactly the
/// encoded size. For block types every element must be finite, and so must every scale that results.
pub fn quantize_rows(
    ty: GgmlType,
    values: &[f32],
    row_len: usize,
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    quantize_rows_with(Engine::default(), ty, values, row_len, imatrix, out)
}

/// [`quantize_rows`] by a chosen engine.
pub fn quantize_rows_with(
    engine: Engine,
    ty: GgmlType,
    values: &[f32],
    row_len: usize,
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let (row_bytes, codec) = check_sizes(ty, row_len, values.len(), out.len())?;
    let imatrix = match (codec.imatrix, imatrix) {
        (ImatrixRule::Ignored, _) => None,
        (ImatrixRule::Required, None) => return Err(QuantError::ImatrixRequired { ty }),
        (_, given) => given,
    };
    if let Some(weights) = imatrix {
        if weights.len() != row_len {
            return Err(QuantError::ImatrixLength { expected: row_len, actual: weights.len() });
        }
        if let Some((column, &value)) = weights.iter().enumerate().find(|(_, w)| !w.is_finite()) {
            return Err(QuantError::ImatrixNotFinite { column, value });
        }
    }
    if values.is_empty() {
        return Ok(());
    }
    if !ty.is_quantized() {
        (codec.reference)(values, None, out);
        return Ok(());
    }
    // Slices of rows that stay in the cache between the check, the search and the validation.
    let slice = (SLICE_ELEMENTS / row_len).next_multiple_of(8).max(8);
    for (part, (rows, out)) in values.chunks(slice * row_len).zip(out.chunks_mut(slice * row_bytes)).enumerate() {
        check_finite(rows, row_len, part * slice)?;
        match (engine, codec.lanes) {
            (Engine::Lanes(isa), Some(kernel)) => kernel(isa, Rows { values: rows, row_len, imatrix }, out),
            _ => {
                for (row, out) in rows.chunks_exact(row_len).zip(out.chunks_exact_mut(row_bytes)) {
                    (codec.reference)(row, imatrix, out);
                }
            }
        }
        for (i, row) in out.chunks_exact(row_bytes).enumerate() {
            if let Some(block) = codec.first_bad_block(row) {
                return Err(QuantError::ScaleNotFinite { ty, row: part * slice + i, block });
            }
        }
    }
    Ok(())
}

/// Elements that one pass handles: 128 KiB of f32, within a second-level cache.
const SLICE_ELEMENTS: usize = 1 << 15;

/// Decodes whole rows of `ty` to f32 as ggml's `dequantize_row_*` do. Any bytes are accepted.
pub fn dequantize_rows(ty: GgmlType, blocks: &[u8], row_len: usize, out: &mut [f32]) -> Result<(), QuantError> {
    let (_, codec) = check_sizes(ty, row_len, out.len(), blocks.len())?;
    (codec.dequantize)(blocks, out);
    Ok(())
}

/// The first block of encoded rows whose scale is infinite or not a number (`ggml_validate_row_data`).
///
/// For F16, BF16 and F32 a block is one element.
pub fn first_bad_block(ty: GgmlType, bytes: &[u8]) -> Option<usize> {
    ty.codec().and_then(|c| c.first_bad_block(bytes))
}

/// The bytes of a row and the type's functions, once all sizes are known to fit.
fn check_sizes(
    ty: GgmlType,
    row_len: usize,
    elements: usize,
    bytes: usize,
) -> Result<(usize, &'static types::Codec), QuantError> {
    let codec = ty.codec().ok_or(QuantError::NotAnEncoding { ty })?;
    let block = ty.geometry().elements as usize;
    let row_bytes = match ty.row_bytes(row_len as u64) {
        Some(n) if row_len > 0 => n as usize,
        _ => return Err(QuantError::RowNotBlocks { ty, row_len, block }),
    };
    let expected = elements / row_len * row_bytes;
    if !elements.is_multiple_of(row_len) || bytes != expected {
        return Err(QuantError::Size { ty, row_len, elements, expected, bytes });
    }
    Ok((row_bytes, codec))
}

/// Names the first element that is infinite or not a number.
fn check_finite(values: &[f32], row_len: usize, first_row: usize) -> Result<(), QuantError> {
    const EXPONENT: u32 = 0x7f80_0000;
    let largest = values.iter().fold(0, |max, v| (v.to_bits() & EXPONENT).max(max));
    if largest != EXPONENT {
        return Ok(());
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(QuantError::NotFinite { row: first_row + i / row_len, column: i % row_len, value: values[i] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_rows_are_named() {
        let mut values = vec![0.5; 96];
        let mut out = vec![0; 102];
        values[70] = f32::NAN;
        let refused = quantize_rows(GgmlType::Q8_0, &values, 32, None, &mut out).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "row 2 has NaN at column 6; the model's weights are damaged: use an intact copy"
        );
        values[70] = 3e38;
        for engine in Engine::available() {
            let refused = quantize_rows_with(engine, GgmlType::Q8_0, &values, 32, None, &mut out).unwrap_err();
            assert_eq!(refused, QuantError::ScaleNotFinite { ty: GgmlType::Q8_0, row: 2, block: 0 });
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let values = [1.0; 64];
        let refused = quantize_rows(GgmlType::Q4_K, &values, 64, None, &mut [0; 144]).unwrap_err();
        assert_eq!(refused, QuantError::RowNotBlocks { ty: GgmlType::Q4_K, row_len: 64, block: 256 });
        let refused = quantize_rows(GgmlType::Q4_0, &values, 64, None, &mut [0; 35]).unwrap_err();
        assert!(matches!(refused, QuantError::Size { expected: 36, bytes: 35, .. }));
        let refused = quantize_rows(GgmlType::Q4_0, &values, 0, None, &mut []).unwrap_err();
        assert!(matches!(refused, QuantError::RowNotBlocks { row_len: 0, .. }));
        let refused = quantize_rows(GgmlType::Q4_0, &values, 32, Some(&[1.0; 64]), &mut [0; 36]).unwrap_err();
        assert_eq!(refused, QuantError::ImatrixLength { expected: 32, actual: 64 });
        let refused = quantize_rows(GgmlType::I32, &values, 32, None, &mut [0; 256]).unwrap_err();
        assert_eq!(refused, QuantError::NotAnEncoding { ty: GgmlType::I32 });
        let refused = dequantize_rows(GgmlType::Q8_0, &[0; 33], 32, &mut [0.0; 32]).unwrap_err();
        assert!(matches!(refused, QuantError::Size { expected: 34, bytes: 33, .. }));
        assert_eq!(quantize_rows(GgmlType::Q4_0, &[], 32, None, &mut []), Ok(()));
    }
}
