//! The bytes of every block type, on every engine, against committed hashes; and the engines against each other.
//!
//! The hashes in `fixtures/quant_hashes.txt` were made by the reference and are llama.cpp's: with `NODE_LLAMA` set
//! (see `oracle/mod.rs`) its own code is hashed too. A new type: `QUANT_GOLDEN=write NODE_LLAMA=… cargo test
//! --release --test quant_golden`.

#[path = "common/rows.rs"]
mod data;
mod oracle;

use data::{Kind, Random};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use to_gguf::quant::{Engine, GgmlType, ImatrixRule, QuantError, dequantize_rows, quantize_rows_with};

const HASHES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/quant_hashes.txt");
/// By `tests/oracle/dequantize.py`, of llama.cpp's decoders and of PyPI gguf's.
const DECODED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dequantize_hashes.txt");
const HEADER: &str = "\
# type, importance matrix, SHA-256 of its blocks over the rows of tests/common/rows.rs (all kinds, seed = row count)
# made by the scalar reference; equal to libggml-base.so of @node-llama-cpp/linux-x64 3.22.1 (llama.cpp 0.5.0)
";

fn encoders() -> impl Iterator<Item = (GgmlType, bool)> {
    GgmlType::all().flat_map(|ty| {
        let with: &[bool] = match ty.imatrix_rule() {
            None => &[],
            Some(ImatrixRule::Ignored) => &[false],
            Some(ImatrixRule::Optional) => &[false, true],
            Some(ImatrixRule::Required) => &[true],
        };
        with.iter().map(move |&with| (ty, with))
    })
}

/// The hash of all kinds of rows; a row that is refused counts as its number.
fn hash(ty: GgmlType, with_imatrix: bool, encode: impl Fn(&[f32], usize, Option<&[f32]>, &mut [u8]) -> bool) -> String {
    let g = ty.geometry();
    let mut hash = Sha256::new();
    for kind in Kind::ALL {
        for (blocks, rows) in [(1, 3), (5, 4), (9, 3)] {
            let row_len = g.elements as usize * blocks;
            let values = data::rows(kind, rows as u64, row_len * rows);
            let weights = data::imatrix(rows as u64, row_len);
            let mut out = vec![0; blocks * g.bytes as usize];
            for (i, row) in values.chunks(row_len).enumerate() {
                if encode(row, row_len, with_imatrix.then_some(&weights), &mut out) {
                    hash.update(&out);
                } else {
                    hash.update([i as u8]);
                }
            }
        }
    }
    hex(hash.finalize())
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().fold(String::new(), |mut hex, b| {
        write!(hex, "{b:02x}").expect("a string grows");
        hex
    })
}

fn engine_hash(engine: Engine, ty: GgmlType, with_imatrix: bool) -> String {
    hash(ty, with_imatrix, |row, row_len, imatrix, out| {
        match quantize_rows_with(engine, ty, row, row_len, imatrix, out) {
            Ok(()) => true,
            Err(QuantError::ScaleNotFinite { .. }) => false,
            Err(e) => panic!("{ty} by {engine}: {e}"),
        }
    })
}

#[test]
fn the_bytes_are_the_committed_ones_on_every_engine() {
    let line = |ty: GgmlType, with: bool, hash: &str| format!("{ty} {} {hash}", if with { "imatrix" } else { "none" });
    if std::env::var("QUANT_GOLDEN").is_ok_and(|v| v == "write") {
        let lines = encoders().map(|(ty, with)| line(ty, with, &engine_hash(Engine::Reference, ty, with)) + "\n");
        std::fs::write(HASHES, HEADER.to_string() + &lines.collect::<String>()).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(HASHES).expect("fixtures/quant_hashes.txt");
    let ggml = oracle::Ggml::open();
    for (ty, with) in encoders() {
        for engine in Engine::available() {
            let got = line(ty, with, &engine_hash(engine, ty, with));
            assert!(committed.lines().any(|l| l == got), "{engine}: not in fixtures/quant_hashes.txt: {got}");
        }
        // The grid types assert, and so abort, where a block overflows: `quant_oracle.rs` compares what they can do.
        if let Some(ggml) = ggml.as_ref().filter(|_| ty.is_quantized() && !ty.name().starts_with("IQ")) {
            let theirs = hash(ty, with, |row, row_len, imatrix, out| {
                ggml.quantize(ty, row, row_len, imatrix, out);
                to_gguf::quant::first_bad_block(ty, out).is_none()
            });
            let got = line(ty, with, &theirs);
            assert!(committed.lines().any(|l| l == got), "llama.cpp: not in fixtures/quant_hashes.txt: {got}");
        }
    }
}

/// `random_bytes` of `tests/oracle/dequantize.py`: SplitMix64, little-endian.
fn random_bytes(seed: u64, n: usize) -> Vec<u8> {
    let word = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (1..).flat_map(word).take(n).collect()
}

#[test]
fn every_pattern_of_bits_decodes_to_the_committed_values() {
    let committed = std::fs::read_to_string(DECODED).expect("fixtures/dequantize_hashes.txt");
    let committed: Vec<_> =
        committed.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(' ')).collect();
    assert_eq!(committed.len(), 27, "25 block types and two floats");
    for (name, want) in committed {
        let ty = GgmlType::from_name(name).expect("a type");
        let g = ty.geometry();
        let blocks = if g.elements > 1 { 4096 } else { 1 << 17 };
        let bytes = random_bytes(ty as u64, blocks * g.bytes as usize);
        let mut values = vec![0.0; blocks * g.elements as usize];
        dequantize_rows(ty, &bytes, values.len() / 16, &mut values).expect("sizes fit");
        // What a NaN carries beyond being one is not defined: llama.cpp's decoders differ in it among themselves.
        let bits: Vec<u8> =
            values.iter().flat_map(|v| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() }.to_le_bytes()).collect();
        assert_eq!(hex(Sha256::digest(&bits)), want, "{ty} decodes otherwise than llama.cpp");
    }
}

#[test]
fn no_bytes_make_a_decoder_panic() {
    let mut r = Random(3);
    for ty in GgmlType::all().filter(|ty| ty.imatrix_rule().is_some()) {
        let g = ty.geometry();
        let mut values = vec![0.0; g.elements as usize * 64];
        let mut bytes = vec![0u8; g.bytes as usize * 64];
        for round in 0..20 {
            bytes.iter_mut().for_each(|b| *b = if round == 0 { 0xff } else { r.bits() as u8 });
            dequantize_rows(ty, &bytes, g.elements as usize * 8, &mut values).expect("sizes fit");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any finite elements, any weights: the lanes write what the reference writes.
    #[test]
    fn engines_agree_on_anything(
        bits in proptest::collection::vec(any::<u32>(), 512),
        spread in 0u32..32,
        weights in proptest::collection::vec(0.0f32..10.0, 256),
    ) {
        // Few exponents make ordinary blocks, many make every corner.
        let exponents = 0x807f_ffff | (0x7f80_0000u32 >> spread) & 0x7f80_0000;
        let finite = |b: u32| f32::from_bits(b & exponents | 0x3000_0000 & !(exponents << 1));
        let values: Vec<f32> = bits.iter().map(|b| finite(*b)).map(|v| if v.is_finite() { v } else { 1.0 }).collect();
        for (ty, with) in encoders() {
            let imatrix = with.then_some(&weights[..]);
            let bytes = 512 / ty.geometry().elements as usize * ty.geometry().bytes as usize;
            let mut want = vec![0; bytes];
            let outcome = quantize_rows_with(Engine::Reference, ty, &values, 256, imatrix, &mut want);
            for engine in &Engine::available()[1..] {
                let mut got = vec![0; bytes];
                prop_assert_eq!(&quantize_rows_with(*engine, ty, &values, 256, imatrix, &mut got), &outcome);
                prop_assert!(got == want, "{} by {}", ty, engine);
            }
        }
    }
}
