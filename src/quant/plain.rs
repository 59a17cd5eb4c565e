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
