//! Any bytes as blocks of any type: they decode, and what they decode to is encoded alike by every engine.
//!
//! The first byte picks the type, the second the importance matrix.
#![no_main]

use libfuzzer_sys::fuzz_target;
use to_gguf::quant::{Engine, GgmlType, ImatrixRule, dequantize_rows, quantize_rows_with};

fuzz_target!(|data: &[u8]| {
    let [pick, weights, bytes @ ..] = data else { return };
    let encoders: Vec<GgmlType> = GgmlType::all().filter(|ty| ty.imatrix_rule().is_some()).collect();
    let ty = encoders[usize::from(*pick) % encoders.len()];
    let g = ty.geometry();
    let blocks = bytes.len() / g.bytes as usize;
    let bytes = &bytes[..blocks * g.bytes as usize];
    let row_len = g.elements as usize;
    let mut values = vec![0.0f32; blocks * row_len];
    dequantize_rows(ty, bytes, row_len, &mut values).expect("whole blocks decode");

    let importance: Vec<f32> = (0..row_len).map(|i| ((i as u8 ^ *weights) & 31) as f32).collect();
    let with = match ty.imatrix_rule() {
        Some(ImatrixRule::Required) => true,
        Some(ImatrixRule::Optional) => *weights != 0,
        _ => false,
    };
    let imatrix = with.then_some(&importance[..]);
    let (mut want, mut got) = (vec![0u8; bytes.len()], vec![0u8; bytes.len()]);
    let outcome = quantize_rows_with(Engine::Reference, ty, &values, row_len, imatrix, &mut want);
    for engine in &Engine::available()[1..] {
        let other = quantize_rows_with(*engine, ty, &values, row_len, imatrix, &mut got);
        // Errors may hold NaN, which equals nothing.
        assert_eq!(other.is_ok(), outcome.is_ok(), "{ty} by {engine}");
        assert!(outcome.is_err() || got == want, "{ty} by {engine} is not the reference");
    }
});
