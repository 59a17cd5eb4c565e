//! Element types of weight files: decoding to f32, and the plain type that keeps every value.
//!
//! Eight-bit floats: E4M3FN has bias 7, no infinity and NaN at 0x7F and 0xFF; E5M2 is the upper half of an f16;
//! UE8M0 is a bare exponent, 2^(b - 127) (OCP MX specification). The FNUZ forms have one more bias, no negative
//! zero, and NaN at 0x80.

use std::sync::LazyLock;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;

use crate::quant::GgmlType;

/// Whether the program decodes elements of this type.
pub(super) fn is_known(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::C64)
}

/// The plain floating-point type that holds every value of the element type. What has none (integers, f64)
/// becomes F32, as in llama.cpp's converter, which computes all but f16 and f32 in f32.
pub(super) fn precision(dtype: Dtype) -> GgmlType {
    match dtype {
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => {
            GgmlType::BF16
        }
        _ => GgmlType::F32,
    }
}

/// Decodes little-endian elements. `bytes` holds exactly `out.len()` of them.
pub(super) fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::BF16 => {
            pulp::Arch::new().dispatch(|| each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))
        }
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
            _ => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        },
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        Dtype::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        Dtype::I8 => pulp::Arch::new().dispatch(|| each(bytes, out, |[b]| f32::from(b as i8))),
        Dtype::BOOL => each(bytes, out, |[b]| f32::from(u8::from(b != 0))),
        Dtype::F8_E4M3 => by_table(bytes, out, e4m3_table()),
        Dtype::F8_E5M2 => each(bytes, out, |[b]| f16::from_bits(u16::from(b) << 8).to_f32()),
        Dtype::F8_E8M0 => each(bytes, out, |[b]| e8m0(b)),
        Dtype::F8_E4M3FNUZ => each(bytes, out, |[b]| fnuz(b, 3)),
        Dtype::F8_E5M2FNUZ => each(bytes, out, |[b]| fnuz(b, 2)),
        _ => each(bytes, out, |[b]| f32::from(b)),
    }
}

#[inline(always)]
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (x, &b) in out.iter_mut().zip(elements) {
        *x = decode(b);
    }
}

fn by_table(bytes: &[u8], out: &mut [f32], table: &[f32; 256]) {
    for (x, &b) in out.iter_mut().zip(bytes) {
        *x = table[b as usize];
    }
}

/// The values of all E4M3FN bytes.
pub(super) fn e4m3_table() -> &'static [f32; 256] {
    static TABLE: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|b| e4m3(b as u8)));
    &TABLE
}

fn e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(b >> 3 & 15), f32::from(b & 7));
    let magnitude = match (exponent, b & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The value of a UE8M0 scale: `2^(b - 127)`, NaN for 255.
pub(super) fn e8m0(b: u8) -> f32 {
    match b {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(b) << 23),
    }
}

/// The FNUZ forms with `mantissa` bits: bias `2^(exponent bits - 1)`, 0x80 is NaN.
fn fnuz(b: u8, mantissa_bits: u32) -> f32 {
    if b == 0x80 {
        return f32::NAN;
    }
    let bias = 1i32 << (6 - mantissa_bits);
    let exponent = i32::from((b & 0x7F) >> mantissa_bits);
    let one = f32::from(1u8 << mantissa_bits);
    let mantissa = f32::from(b & ((1 << mantissa_bits) - 1));
    let scale = -(mantissa_bits as i32) - bias;
    let magnitude =
        if exponent == 0 { mantissa * 2f32.powi(scale + 1) } else { (one + mantissa) * 2f32.powi(scale + exponent) };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Rounds every value to the nearest of `precision` (F16 or BF16), ties to even; F32 changes nothing.
#[inline(always)]
pub(crate) fn round_all(precision: GgmlType, values: &mut [f32]) {
    match precision {
        GgmlType::BF16 => pulp::Arch::new().dispatch(|| values.iter_mut().for_each(|x| *x = to_bf16(*x))),
        GgmlType::F16 => {
            let mut halves = [f16::ZERO; 256];
            for part in values.chunks_mut(256) {
                let halves = &mut halves[..part.len()];
                halves.convert_from_f32_slice(part);
                halves.convert_to_f32_slice(part);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    f32::from_bits(kept & 0xFFFF_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: Dtype, bytes: &[u8]) -> f32 {
        let mut out = [0.0];
        decode(dtype, bytes, &mut out);
        out[0]
    }

    #[test]
    fn eight_bit_floats_have_their_published_values() {
        assert_eq!(one(Dtype::F8_E4M3, &[0x7E]), 448.0);
        assert_eq!(one(Dtype::F8_E4M3, &[0x01]), 2f32.powi(-9));
        assert_eq!(one(Dtype::F8_E4M3, &[0xB8]), -1.0);
        assert!(one(Dtype::F8_E4M3, &[0xFF]).is_nan());
        assert_eq!(one(Dtype::F8_E5M2, &[0x7B]), 57344.0);
        assert_eq!(one(Dtype::F8_E8M0, &[127]), 1.0);
        assert_eq!(one(Dtype::F8_E8M0, &[0]), 2f32.powi(-127));
        assert_eq!(one(Dtype::F8_E4M3FNUZ, &[0x7F]), 240.0);
        assert_eq!(one(Dtype::F8_E5M2FNUZ, &[0x7F]), 57344.0);
        assert_eq!(one(Dtype::F8_E4M3FNUZ, &[0x01]), 2f32.powi(-10));
    }

    #[test]
    fn rounding_is_to_nearest_with_ties_to_even() {
        let bits = [0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x7F7F_FFFF, 0x7F80_0001, 0x8000_8000, 0xFF80_0000u32];
        for (precision, round) in [
            (GgmlType::BF16, (|x| half::bf16::from_f32(x).to_f32()) as fn(f32) -> f32),
            (GgmlType::F16, |x| f16::from_f32(x).to_f32()),
        ] {
            let mut values = bits.map(f32::from_bits);
            round_all(precision, &mut values);
            for (x, b) in values.iter().zip(bits) {
                let wanted = round(f32::from_bits(b));
                assert!(x.to_bits() == wanted.to_bits() || x.is_nan() && wanted.is_nan(), "{b:x}: {x}");
            }
        }
    }

    #[test]
    fn wide_numbers_round_to_the_nearest_f32() {
        assert_eq!(one(Dtype::F64, &0.1f64.to_le_bytes()), 0.1f32);
        assert_eq!(one(Dtype::I64, &(-16_777_217i64).to_le_bytes()), -16_777_216.0);
    }
}
