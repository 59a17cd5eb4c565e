//! The merge check: every merged value is a finite number, before and after it is cast to its output type.

use half::{bf16, f16};

use crate::quant::GgmlType;

/// A value that is not finite, or would not be after the cast.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("row {row}, column {column}: {cause}")]
pub struct NotFinite {
    /// Row of the tensor.
    pub row: u64,
    /// Column of the row.
    pub column: usize,
    /// What is wrong with it, and what to do.
    pub cause: String,
}

/// Whether every value is finite. One pass without branches.
pub fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values
        .chunks(4096)
        .all(|run| run.iter().fold(0u32, |bad, v| bad | u32::from(v.to_bits() & EXPONENT == EXPONENT)) == 0)
}

/// Checks rows of `row_len` values, the first of them row `first_row`, that are about to be written as
/// `output`: every value is finite, and stays so in f16 and bf16. Block types scale their blocks, whose
/// scales are f16 as well: a value beyond `65504 * 127` cannot be held by any.
pub fn check_rows(values: &[f32], row_len: usize, first_row: u64, output: GgmlType) -> Result<(), NotFinite> {
    let limit = match output {
        GgmlType::F16 => 65520.0,
        GgmlType::F32 => f32::INFINITY,
        GgmlType::BF16 => f32::INFINITY,
        _ => 65504.0 * 128.0,
    };
    let inside = all_finite(values)
        && (limit == f32::INFINITY || values.iter().fold(0f32, |m, v| m.max(v.abs())) < limit)
        && (output != GgmlType::BF16 || values.iter().all(|v| bf16::from_f32(*v).is_finite()));
    if inside {
        return Ok(());
    }
    let overflows = |v: f32| match output {
        GgmlType::F16 => !f16::from_f32(v).is_finite(),
        GgmlType::BF16 => !bf16::from_f32(v).is_finite(),
        _ => v.abs() >= limit,
    };
    match values.iter().position(|v| !v.is_finite() || overflows(*v)) {
        None => Ok(()),
        Some(at) => {
            let value = values[at];
            let cause = if value.is_finite() {
                format!("{value:e} is too large for {output:?}; choose bf16 or f32 for this tensor")
            } else {
                format!("the value is {value}; the model or the adapter is damaged")
            };
            let row_len = row_len.max(1);
            Err(NotFinite { row: first_row + (at / row_len) as u64, column: at % row_len, cause })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_value_is_named() {
        let mut values = vec![1.0; 12];
        assert_eq!(check_rows(&values, 4, 8, GgmlType::F16), Ok(()));
        values[6] = 70000.0;
        let e = check_rows(&values, 4, 8, GgmlType::F16).unwrap_err();
        assert_eq!((e.row, e.column), (9, 2));
        assert_eq!(check_rows(&values, 4, 8, GgmlType::BF16), Ok(()));
        values[6] = f32::MAX;
        assert!(check_rows(&values, 4, 0, GgmlType::BF16).is_err(), "it rounds to infinity");
        values[6] = f32::NAN;
        assert!(check_rows(&values, 4, 0, GgmlType::F32).unwrap_err().cause.contains("NaN"));
    }
}
