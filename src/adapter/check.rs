//! The merge check: every merged value is a finite number, before and after it is cast to its output type.
//!
//! Before the cast a change checks its own rows. After it, the encoded bytes are looked at: of plain types here, of
//! block types by the quantizer, whose scales are f16 and may overflow as well.

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
    pulp::Arch::new().dispatch(|| {
        values
            .chunks(4096)
            .all(|run| run.iter().fold(0u32, |bad, v| bad | u32::from(v.to_bits() & EXPONENT == EXPONENT)) == 0)
    })
}

/// Whether every encoded element of a plain type is finite; other types pass.
pub fn encoded_finite(ty: GgmlType, bytes: &[u8]) -> bool {
    match ty {
        GgmlType::F16 => none(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        GgmlType::BF16 => none(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        GgmlType::F32 => none(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        _ => true,
    }
}

/// Whether no element is `bad`. Looks at whole runs, without branches.
fn none<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
    let (elements, _) = bytes.as_chunks::<N>();
    pulp::Arch::new().dispatch(|| elements.chunks(4096).all(|run| !run.iter().fold(false, |found, b| found | bad(*b))))
}

/// Finds the first of `row_len` values a row, the first row being `first_row`, that is not finite or does not stay so
/// in the plain type `output`.
///
/// # Errors
/// Where it is, why, and what to do.
pub fn check_rows(values: &[f32], row_len: usize, first_row: u64, output: GgmlType) -> Result<(), NotFinite> {
    let cast = |v: f32| match output {
        GgmlType::F16 => f16::from_f32(v).to_f32(),
        GgmlType::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    };
    let Some(at) = values.iter().position(|v| !cast(*v).is_finite()) else { return Ok(()) };
    let value = values[at];
    let cause = if value.is_finite() {
        format!(
            "the merged value {value:e} is too large for {output}; choose --quant f32, or bf16 if it is f16 that overflows"
        )
    } else {
        format!("the merged value is {value}; the model or the adapter is damaged: use an intact copy")
    };
    let row_len = row_len.max(1);
    Err(NotFinite { row: first_row + (at / row_len) as u64, column: at % row_len, cause })
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

    #[test]
    fn encoded_numbers_are_seen_to_overflow() {
        let encoded = |ty, value: f32| {
            let values = [1.0, -2.0, value, 0.0];
            let mut bytes = vec![0; 4 * ty_bytes(ty)];
            crate::quant::quantize_rows(ty, &values, 4, None, &mut bytes).unwrap();
            encoded_finite(ty, &bytes)
        };
        assert!(encoded(GgmlType::F16, 65504.0) && !encoded(GgmlType::F16, 65520.0));
        assert!(encoded(GgmlType::BF16, 3.3e38) && !encoded(GgmlType::BF16, f32::MAX));
        assert!(encoded(GgmlType::F32, f32::MAX) && !encoded(GgmlType::F32, f32::NAN));
    }

    fn ty_bytes(ty: GgmlType) -> usize {
        if ty == GgmlType::F32 { 4 } else { 2 }
    }
}
