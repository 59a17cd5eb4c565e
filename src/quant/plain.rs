//! F32, F16 and BF16: plain numbers, little-endian in files. Also the row operations for 16-bit data.
//!
//! * f16 → f32 and bf16 → f32 are exact; payloads of NaN are kept.
//! * f32 → f16 rounds to nearest, ties to even. A NaN keeps the top of its payload, as numpy's conversion does.
//! * f32 → bf16 rounds to nearest, ties to even; a NaN is made quiet (`ggml_compute_fp32_to_bf16`, gguf-py).

use half::slice::HalfFloatSliceExt;

/// f32 → f16 bits, nearest even; a NaN keeps the ten top bits of its payload, or becomes payload 1.
pub(super) fn f16_bits(v: f32) -> u16 {
    if v.is_nan() {
        let bits = v.to_bits();
        let payload = (bits >> 13 & 0x3ff) as u16;
        return (bits >> 16 & 0x8000) as u16 | 0x7c00 | payload.max(1);
    }
    half::f16::from_f32(v).to_bits()
}

/// The f16 at the start of `bytes` as f32.
pub(super) fn f16_at(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Writes `v` as f16 at the start of `out` and returns what a reader will see.
pub(super) fn put_f16(v: f32, out: &mut [u8]) -> f32 {
    let bits = f16_bits(v);
    out[..2].copy_from_slice(&bits.to_le_bytes());
    half::f16::from_bits(bits).to_f32()
}

fn bf16_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    if v.is_nan() {
        return (bits >> 16) as u16 | 64;
    }
    ((bits + (0x7fff + (bits >> 16 & 1))) >> 16) as u16
}

/// bf16, little-endian, to f32. As many elements as both slices hold.
pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, v) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *v = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

/// f16, little-endian, to f32. As many elements as both slices hold.
pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    // Through a buffer on the stack: the bytes may lie at any address.
    let mut halves = [half::f16::ZERO; 256];
    for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
        let n = (bytes.len() / 2).min(out.len());
        for (b, h) in bytes.as_chunks::<2>().0.iter().zip(&mut halves) {
            *h = half::f16::from_le_bytes(*b);
        }
        halves[..n].convert_to_f32_slice(&mut out[..n]);
    }
}

/// f32 to bf16, little-endian: nearest even, NaN made quiet. As many elements as both slices hold.
pub fn encode_bf16(values: &[f32], out: &mut [u8]) {
    for (v, b) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        *b = bf16_bits(*v).to_le_bytes();
    }
}

/// f32 to f16, little-endian: nearest even, NaN payloads as numpy's. As many elements as both slices hold.
pub fn encode_f16(values: &[f32], out: &mut [u8]) {
    let mut halves = [half::f16::ZERO; 256];
    for (values, out) in values.chunks(256).zip(out.chunks_mut(512)) {
        let n = values.len().min(out.len() / 2);
        halves[..n].convert_from_f32_slice(&values[..n]);
        let any_nan = values.iter().fold(false, |any, v| any | v.is_nan());
        if any_nan {
            for (v, h) in values.iter().zip(&mut halves) {
                *h = half::f16::from_bits(f16_bits(*v));
            }
        }
        for (h, b) in halves[..n].iter().zip(out.as_chunks_mut::<2>().0) {
            *b = h.to_le_bytes();
        }
    }
}

pub(super) fn f32_to_bytes(values: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (v, b) in values.iter().zip(out.as_chunks_mut::<4>().0) {
        *b = v.to_le_bytes();
    }
}

pub(super) fn f32_from_bytes(bytes: &[u8], out: &mut [f32]) {
    for (b, v) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *v = f32::from_le_bytes(*b);
    }
}

pub(super) fn f32_to_f16(values: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    encode_f16(values, out);
}

pub(super) fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    decode_f16(bytes, out);
}

pub(super) fn f32_to_bf16(values: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    encode_bf16(values, out);
}

pub(super) fn bf16_to_f32(bytes: &[u8], out: &mut [f32]) {
    decode_bf16(bytes, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_a_round_trip_and_every_bf16_too() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0.0; 65536];
        let mut back = vec![0; all.len()];
        decode_f16(&all, &mut values);
        encode_f16(&values, &mut back);
        for bits in 0..=u16::MAX {
            let i = usize::from(bits) * 2;
            let got = u16::from_le_bytes([back[i], back[i + 1]]);
            // Hardware makes a NaN quiet when it widens it.
            let nan = bits & 0x7c00 == 0x7c00 && bits & 0x3ff != 0;
            assert_eq!(got, if nan { got & 0xfc00 | bits & 0x3ff | got & 0x200 } else { bits }, "{bits:04x}");
        }
        decode_bf16(&all, &mut values);
        encode_bf16(&values, &mut back);
        for bits in 0..=u16::MAX {
            let i = usize::from(bits) * 2;
            let nan = bits & 0x7fff > 0x7f80;
            assert_eq!(u16::from_le_bytes([back[i], back[i + 1]]), if nan { bits | 64 } else { bits });
        }
    }

    #[test]
    fn halves_round_to_even_and_nan_keeps_its_payload() {
        for (bits, f16, bf16) in [
            (0x3f80_1000, 0x3c00, 0x3f80), // 1 + 2^-11: a tie for f16, to even
            (0x3f80_3000, 0x3c02, 0x3f80),
            (0x3f80_8000, 0x3c04, 0x3f80), // a tie for bf16
            (0x3f81_8000, 0x3c0c, 0x3f82),
            (0x477f_efff, 0x7bff, 0x4780),
            (0x477f_f000, 0x7c00, 0x4780),
            (0x3300_0000, 0x0000, 0x3300),
            (0x3300_0001, 0x0001, 0x3300),
            (0x7f80_0001, 0x7c01, 0x7fc0),
            (0xffc0_2000, 0xfe01, 0xffc0),
        ] {
            let v = f32::from_bits(bits);
            assert_eq!((f16_bits(v), bf16_bits(v)), (f16, bf16), "{bits:08x}");
            let mut both = [0; 4];
            encode_f16(&[v], &mut both[..2]);
            encode_bf16(&[v], &mut both[2..]);
            assert_eq!(both, [f16 as u8, (f16 >> 8) as u8, bf16 as u8, (bf16 >> 8) as u8]);
        }
    }
}
