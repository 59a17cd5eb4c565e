//! The CUDA quantizers against the scalar reference, bit for bit: compiled as host C++, so without a GPU.

#[path = "common/rows.rs"]
mod data;
#[path = "common/kernels.rs"]
mod host;
#[path = "common/host_gpu.rs"]
mod host_gpu;

use data::Kind;
use host::{Arg, Buffer, Geometry, Machine};
use proptest::prelude::*;
use to_gguf::device::cuda::kernels::{self, ROW_SIGMA2};
use to_gguf::quant::{Engine, GgmlType, ImatrixRule, QuantError, first_bad_block, quantize_rows_with};

/// Types with a kernel, without and with an importance matrix.
fn quantizers() -> Vec<(GgmlType, bool)> {
    let with = |ty: GgmlType| -> &[bool] {
        if ty.imatrix_rule() == Some(ImatrixRule::Optional) { &[false, true] } else { &[false] }
    };
    let types = GgmlType::all().filter(|ty| kernels::quantizer(*ty, false).is_some());
    types.flat_map(|ty| with(ty).iter().map(move |with| (ty, *with))).collect()
}

/// What a kernel makes of rows.
fn encode(
    machine: &Machine,
    ty: GgmlType,
    values: &[f32],
    row_len: usize,
    imatrix: Option<&[f32]>,
    geometry: Geometry,
) -> Vec<u8> {
    let quantizer = kernels::quantizer(ty, imatrix.is_some()).expect("a kernel");
    let rows = (values.len() / row_len) as u64;
    let blocks = rows * row_len as u64 / ty.geometry().elements;
    let values = Buffer::of(values);
    let importance = imatrix.map(Buffer::of);
    let mut sigma2 = Buffer::new(rows as usize * 4);
    if quantizer.row_sigma2 {
        let arguments = &mut [Arg::In(&values), Arg::Out(&mut sigma2), Arg::U64(rows), Arg::U64(row_len as u64)];
        machine.launch(ROW_SIGMA2, rows, geometry, arguments);
    }
    let mut out = Buffer::new((blocks * ty.geometry().bytes) as usize);
    let arguments = &mut [
        Arg::In(&values),
        importance.as_ref().map_or(Arg::Null, Arg::In),
        if quantizer.row_sigma2 { Arg::In(&sigma2) } else { Arg::Null },
        Arg::Out(&mut out),
        Arg::U64(rows),
        Arg::U64(row_len as u64),
    ];
    machine.launch(quantizer.kernel, blocks, geometry, arguments);
    out.get().to_vec()
}

/// The reference's bytes of each row, or the block whose scale overflows; the same of the kernel's bytes.
fn outcomes(
    ty: GgmlType,
    values: &[f32],
    row_len: usize,
    imatrix: Option<&[f32]>,
    bytes: &[u8],
) -> Vec<[Result<Vec<u8>, usize>; 2]> {
    let row_bytes = ty.row_bytes(row_len as u64).expect("whole blocks") as usize;
    let rows = values.chunks(row_len).zip(bytes.chunks(row_bytes));
    rows.map(|(row, bytes)| {
        let mut out = vec![0; row_bytes];
        let reference = match quantize_rows_with(Engine::Reference, ty, row, row_len, imatrix, &mut out) {
            Ok(()) => Ok(out),
            Err(QuantError::ScaleNotFinite { block, .. }) => Err(block),
            Err(e) => panic!("{ty}: {e}"),
        };
        [reference, first_bad_block(ty, bytes).map_or_else(|| Ok(bytes.to_vec()), Err)]
    })
    .collect()
}

fn compare(machine: &Machine, ty: GgmlType, with: bool, what: &str, values: &[f32], row_len: usize, seed: u64) {
    let imatrix = with.then(|| data::imatrix(seed, row_len));
    let geometry = Geometry::ALL[seed as usize % 4];
    let bytes = encode(machine, ty, values, row_len, imatrix.as_deref(), geometry);
    for (row, [want, got]) in outcomes(ty, values, row_len, imatrix.as_deref(), &bytes).into_iter().enumerate() {
        let block = ty.geometry().bytes as usize;
        let differs = |(a, b): (&Vec<u8>, &Vec<u8>)| a.chunks(block).zip(b.chunks(block)).position(|(a, b)| a != b);
        let at = want.as_ref().ok().zip(got.as_ref().ok()).and_then(differs);
        assert!(
            want == got,
            "{ty}, imatrix {with}, {what}, row {row} of {row_len}, {geometry:?}: block {at:?} differs"
        );
    }
}

fn every_kind(part: usize) {
    let Some(machine) = Machine::open() else { return };
    for (i, (ty, with)) in quantizers().into_iter().enumerate().filter(|(i, _)| i % 2 == part) {
        let block = ty.geometry().elements as usize;
        // More than a tile of every kernel, and a part of one.
        let shapes = [(1, 3), (if block == 32 { 37 } else { 5 }, 11)];
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for (blocks, rows) in shapes {
                let row_len = blocks * block;
                let seed = (i + k + rows) as u64;
                let values = data::rows(kind, seed, row_len * rows);
                compare(machine, ty, with, &format!("{kind:?}"), &values, row_len, seed);
            }
        }
    }
}

#[test]
fn quantizers_equal_the_reference_on_every_kind_of_rows() {
    every_kind(0);
}

#[test]
fn quantizers_equal_the_reference_on_every_kind_of_rows_continued() {
    every_kind(1);
}

#[test]
fn the_grid_and_the_order_of_threads_change_nothing() {
    let Some(machine) = Machine::open() else { return };
    for (ty, with) in quantizers() {
        let row_len = 768;
        let values = data::rows(Kind::HeavyTailed, 5, row_len * 13);
        let imatrix = with.then(|| data::imatrix(5, row_len));
        let bytes =
            |grid, backwards| encode(machine, ty, &values, row_len, imatrix.as_deref(), Geometry { grid, backwards });
        let want = bytes(None, false);
        for grid in [Some(1), Some(2), Some(5), Some(1000), None] {
            for backwards in [false, true] {
                assert!(bytes(grid, backwards) == want, "{ty}, imatrix {with}, grid {grid:?}, backwards {backwards}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any finite elements, any weights.
    #[test]
    fn quantizers_equal_the_reference_on_anything(
        bits in proptest::collection::vec(any::<u32>(), 512),
        spread in 0u32..32,
        weights in proptest::collection::vec(0.0f32..10.0, 256),
    ) {
        let Some(machine) = Machine::open() else { return Ok(()) };
        // Few exponents make ordinary blocks, many make every corner.
        let exponents = 0x807f_ffff | (0x7f80_0000u32 >> spread) & 0x7f80_0000;
        let finite = |b: u32| f32::from_bits(b & exponents | 0x3000_0000 & !(exponents << 1));
        let values: Vec<f32> = bits.iter().map(|b| finite(*b)).map(|v| if v.is_finite() { v } else { 1.0 }).collect();
        for (ty, with) in quantizers() {
            let imatrix = with.then_some(&weights[..]);
            let bytes = encode(machine, ty, &values, 256, imatrix, Geometry::ALL[spread as usize % 4]);
            for [want, got] in outcomes(ty, &values, 256, imatrix, &bytes) {
                prop_assert!(want == got, "{}, imatrix {}", ty, with);
            }
        }
    }
}
