//! Every block type, with and without an importance matrix, against llama.cpp's own functions: byte for byte.
//!
//! `NODE_LLAMA=… cargo test --release --test quant_oracle -- --nocapture`. More data or fewer types:
//! `QUANT_ORACLE_ELEMENTS=10000000 QUANT_ORACLE_TYPES=Q4_K,Q6_K QUANT_ORACLE_SEED=7`.

#[path = "common/rows.rs"]
mod data;
mod oracle;

use data::{Kind, Random};
use oracle::Ggml;
use to_gguf::quant::{Engine, GgmlType, ImatrixRule, QuantError, dequantize_rows, first_bad_block, quantize_rows_with};

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name} is a number, not {v}")))
}

fn types() -> Vec<GgmlType> {
    let wanted = std::env::var("QUANT_ORACLE_TYPES").unwrap_or_default();
    let has_encoder = |ty: &GgmlType| ty.is_quantized() && ty.imatrix_rule().is_some();
    let all = GgmlType::all().filter(has_encoder);
    all.filter(|ty| wanted.is_empty() || wanted.split(',').any(|w| w.eq_ignore_ascii_case(ty.name()))).collect()
}

/// The first differing block, with its bytes and elements.
fn assert_same_blocks(ty: GgmlType, what: &str, values: &[f32], got: &[u8], want: &[u8]) {
    let g = ty.geometry();
    let (elements, bytes) = (g.elements as usize, g.bytes as usize);
    let differing = || got.chunks(bytes).zip(want.chunks(bytes)).enumerate().filter(|(_, (a, b))| a != b);
    if let Some((i, (a, b))) = differing().next() {
        panic!(
            "{what}: {} of {} blocks differ, first {i}\n  ours   {a:02x?}\n  oracle {b:02x?}\n  values {:?}",
            differing().count(),
            want.len() / bytes,
            &values[i * elements..][..elements],
        );
    }
}

/// Whether the type's codes are points of a grid.
fn is_grid_type(ty: GgmlType) -> bool {
    ["IQ1", "IQ2", "IQ3"].contains(&&ty.name()[..3])
}

/// Rows of `kind` with every engine; returns the elements compared.
fn compare(ggml: &Ggml, ty: GgmlType, kind: Kind, seed: u64, budget: usize) -> usize {
    let block = ty.geometry().elements as usize;
    let mut r = Random(seed);
    let mut compared = 0;
    while compared < budget {
        let row_len = block * [1, 2, 3, 4, 5, 7, 8, 9, 16, 17][r.below(10)];
        let rows = 1 + r.below(19);
        let seed = r.bits();
        let mut values = data::rows(kind, seed, row_len * rows);
        if is_grid_type(ty) {
            // ggml aborts where the error of every neighbour overflows; what it gives below that is compared.
            let near = values.iter_mut().filter(|v| v.abs() > 1e9);
            near.for_each(|v| *v *= (-98.0f32).exp2());
        }
        let weights = data::imatrix(seed, row_len);
        let mut want = vec![0; values.len() / block * ty.geometry().bytes as usize];
        for imatrix in [None, Some(&weights[..])] {
            if imatrix.is_none() && ty.imatrix_rule() == Some(ImatrixRule::Required) {
                continue;
            }
            ggml.quantize(ty, &values, row_len, imatrix, &mut want);
            for engine in Engine::available() {
                let what = format!("{ty} {kind:?} seed {seed} {rows}x{row_len} imatrix {} {engine}", imatrix.is_some());
                let mut got = vec![0xa5; want.len()];
                match quantize_rows_with(engine, ty, &values, row_len, imatrix, &mut got) {
                    Ok(()) => assert_same_blocks(ty, &what, &values, &got, &want),
                    Err(QuantError::ScaleNotFinite { row, .. }) => {
                        let bad = first_bad_block(ty, &want).unwrap_or_else(|| panic!("{what}: refused, not by ggml"));
                        assert_eq!(row, bad * block / row_len, "{what}");
                        // The bytes are written before they are judged: compare them too, row by row.
                        let row_bytes = want.len() / rows;
                        for (x, (got, want)) in
                            values.chunks(row_len).zip(got.chunks_mut(row_bytes).zip(want.chunks(row_bytes)))
                        {
                            let result = quantize_rows_with(engine, ty, x, row_len, imatrix, got);
                            assert_eq!(result.is_ok(), first_bad_block(ty, want).is_none(), "{what}: {result:?}");
                            assert_same_blocks(ty, &what, x, got, want);
                        }
                    }
                    Err(e) => panic!("{what}: {e}"),
                }
            }
        }
        compared += values.len();
    }
    compared
}

#[test]
fn every_block_equals_llama_cpp() {
    let Some(ggml) = Ggml::open() else { return };
    let budget = number("QUANT_ORACLE_ELEMENTS", 130_000) / Kind::ALL.len();
    let seed = number("QUANT_ORACLE_SEED", 1) as u64;
    for ty in types() {
        let n: usize = Kind::ALL.iter().map(|&kind| compare(&ggml, ty, kind, seed, budget)).sum();
        println!("{ty}: {n} elements, 0 differing blocks, engines {:?}", names());
    }
}

fn names() -> Vec<String> {
    Engine::available().iter().map(Engine::to_string).collect()
}

#[test]
fn every_pattern_of_bits_decodes_as_in_llama_cpp() {
    let Some(ggml) = Ggml::open() else { return };
    let mut r = Random(number("QUANT_ORACLE_SEED", 1) as u64);
    for ty in types().into_iter().chain([GgmlType::F16, GgmlType::BF16]) {
        let g = ty.geometry();
        let row_len = (4096 / g.elements * g.elements) as usize;
        for _ in 0..50 {
            let mut bytes = vec![0u8; row_len / g.elements as usize * g.bytes as usize];
            bytes.iter_mut().for_each(|b| *b = r.bits() as u8);
            let (mut got, mut want) = (vec![0.0f32; row_len], vec![0.0f32; row_len]);
            dequantize_rows(ty, &bytes, row_len, &mut got).expect("sizes fit");
            ggml.dequantize(ty, &bytes, &mut want);
            for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                assert!(same, "{ty} element {i}: {a} is not {b}");
            }
        }
        println!("{ty}: random bytes decode alike");
    }
}
