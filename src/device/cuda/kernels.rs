//! The kernels of `cuda/`: names, launch geometry, and which types have a quantizer.
//!
//! `cuda/kernels.h` says what each one reads and writes. A kernel accepts any grid, since its CUDA blocks stride
//! over the tiles; [`Kernel::grid`] is one tile each. The number of threads of a CUDA block is fixed.

use crate::quant::GgmlType;

/// A source file of `cuda/`, compiled to PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the files' names
pub enum Module {
    Decode,
    Merge,
    Encode,
    Legacy,
    KAffine,
    KSymmetric,
    Iq4,
    Fp4,
}

impl Module {
    /// All of them.
    pub const ALL: [Module; 8] = [
        Module::Decode,
        Module::Merge,
        Module::Encode,
        Module::Legacy,
        Module::KAffine,
        Module::KSymmetric,
        Module::Iq4,
        Module::Fp4,
    ];

    /// The PTX that a driver compiles for its GPU: ISA 8.0 for compute capability 7.5 and later.
    pub fn ptx(self) -> &'static str {
        match self {
            Module::Decode => include_str!("../../../cuda/ptx/decode.ptx"),
            Module::Merge => include_str!("../../../cuda/ptx/merge.ptx"),
            Module::Encode => include_str!("../../../cuda/ptx/encode.ptx"),
            Module::Legacy => include_str!("../../../cuda/ptx/legacy.ptx"),
            Module::KAffine => include_str!("../../../cuda/ptx/k_affine.ptx"),
            Module::KSymmetric => include_str!("../../../cuda/ptx/k_symmetric.ptx"),
            Module::Iq4 => include_str!("../../../cuda/ptx/iq4.ptx"),
            Module::Fp4 => include_str!("../../../cuda/ptx/fp4.ptx"),
        }
    }
}

/// A kernel and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Its name in the PTX.
    pub name: &'static str,
    /// Where it is.
    pub module: Module,
    /// Threads of a CUDA block, in x: no other number works.
    pub threads: u32,
    /// Items (elements, rows, runs, blocks of a type; `cuda/kernels.h` says which) that a CUDA block takes at a time.
    pub per_block: u64,
}

impl Kernel {
    /// CUDA blocks in x for so many items: enough that none takes a second tile, within what a driver accepts.
    pub fn grid(&self, items: u64) -> u32 {
        items.div_ceil(self.per_block).clamp(1, i32::MAX as u64) as u32
    }
}

const fn kernel(name: &'static str, module: Module, threads: u32, per_block: u64) -> Kernel {
    Kernel { name, module, threads, per_block }
}

const fn elements(name: &'static str, module: Module) -> Kernel {
    kernel(name, module, 256, 1024)
}

/// Source elements to f32.
pub const DECODE_BF16: Kernel = elements("decode_bf16", Module::Decode);
/// Source elements to f32.
pub const DECODE_F16: Kernel = elements("decode_f16", Module::Decode);
/// Source elements to f32.
pub const DECODE_F32: Kernel = elements("decode_f32", Module::Decode);
/// Source elements to f32.
pub const DECODE_I8: Kernel = elements("decode_i8", Module::Decode);
/// Source elements to f32.
pub const DECODE_E4M3: Kernel = elements("decode_e4m3", Module::Decode);
/// Source elements to f32.
pub const DECODE_E5M2: Kernel = elements("decode_e5m2", Module::Decode);
/// NF4 and FP4 of bitsandbytes to f32.
pub const DECODE_FOUR_BIT: Kernel = elements("decode_four_bit", Module::Decode);
/// Scales over blocks of a matrix, and the rounding after them.
pub const SCALE_BLOCKS: Kernel = elements("scale_blocks", Module::Decode);

/// `values += scale * b @ a`. Items are tiles: [`merge_tiles`].
pub const MERGE: Kernel = kernel("merge", Module::Merge, 256, 1);
/// Sums of squares, for reports. Items are runs: [`RUN`] values each.
pub const RUN_SQUARES: Kernel = kernel("run_squares", Module::Merge, 256, 1);
/// Sums of squares of the differences of two sets of values, as [`RUN_SQUARES`].
pub const RUN_DISTANCE: Kernel = kernel("run_distance", Module::Merge, 256, 1);
/// Looks for values that no block type can hold.
pub const FIND_NOT_FINITE: Kernel = elements("find_not_finite", Module::Merge);
/// DoRA's magnitude over norm of each row. Items are rows.
pub const ROW_RATIOS: Kernel = kernel("row_ratios", Module::Merge, 128, 32);
/// Multiplies rows.
pub const SCALE_ROWS: Kernel = elements("scale_rows", Module::Merge);
/// Adds the squares of columns to running sums. Items are columns.
pub const COLUMN_SQUARES: Kernel = kernel("column_squares", Module::Merge, 128, 128);
/// DoRA's magnitude over norm of each column. Items are columns.
pub const COLUMN_RATIOS: Kernel = elements("column_ratios", Module::Merge);
/// Multiplies columns.
pub const SCALE_COLUMNS: Kernel = elements("scale_columns", Module::Merge);

/// f32 to F16.
pub const ENCODE_F16: Kernel = elements("encode_f16", Module::Encode);
/// f32 to BF16.
pub const ENCODE_BF16: Kernel = elements("encode_bf16", Module::Encode);
/// The mean square of whole rows. Items are rows.
pub const ROW_SIGMA2: Kernel = kernel("row_sigma2", Module::Encode, 128, 32);

/// Values in a run of [`RUN_SQUARES`].
pub const RUN: u64 = 4096;

/// Rows and columns of a tile of [`MERGE`].
const MERGE_TILE: u64 = 64;

/// Tiles of a merge of `rows` rows of `cols`.
pub fn merge_tiles(rows: u64, cols: u64) -> u64 {
    rows.div_ceil(MERGE_TILE) * cols.div_ceil(MERGE_TILE)
}

/// A kernel that encodes rows as blocks. Items are blocks of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantizer {
    /// What to launch.
    pub kernel: Kernel,
    /// Whether it reads what [`ROW_SIGMA2`] leaves.
    pub row_sigma2: bool,
}

/// One row per type: number of blocks that a CUDA block takes, kernel, kernel with importance.
struct Entry {
    ty: GgmlType,
    module: Module,
    per_block: u64,
    plain: &'static str,
    /// `None`: the type ignores importance, or its kernel does not exist.
    weighted: Option<&'static str>,
    row_sigma2: bool,
}

#[rustfmt::skip]
static QUANTIZERS: &[Entry] = {
    use GgmlType::*;
    use Module::*;
    &[
        Entry { ty: Q8_0, module: Legacy, per_block: 128, plain: "quantize_q8_0", weighted: None, row_sigma2: false },
        Entry { ty: Q4_0, module: Legacy, per_block: 128, plain: "quantize_q4_0", weighted: Some("quantize_q4_0_imatrix"), row_sigma2: true },
        Entry { ty: Q4_1, module: Legacy, per_block: 128, plain: "quantize_q4_1", weighted: Some("quantize_q4_1_imatrix"), row_sigma2: true },
        Entry { ty: Q5_0, module: Legacy, per_block: 128, plain: "quantize_q5_0", weighted: Some("quantize_q5_0_imatrix"), row_sigma2: true },
        Entry { ty: Q5_1, module: Legacy, per_block: 128, plain: "quantize_q5_1", weighted: Some("quantize_q5_1_imatrix"), row_sigma2: true },
        Entry { ty: Q2_K, module: KAffine, per_block: 8, plain: "quantize_q2_k", weighted: Some("quantize_q2_k_imatrix"), row_sigma2: false },
        Entry { ty: Q4_K, module: KAffine, per_block: 16, plain: "quantize_q4_k", weighted: Some("quantize_q4_k_imatrix"), row_sigma2: false },
        Entry { ty: Q5_K, module: KAffine, per_block: 16, plain: "quantize_q5_k", weighted: Some("quantize_q5_k_imatrix"), row_sigma2: false },
        Entry { ty: Q3_K, module: KSymmetric, per_block: 8, plain: "quantize_q3_k", weighted: Some("quantize_q3_k_imatrix"), row_sigma2: false },
        Entry { ty: Q6_K, module: KSymmetric, per_block: 8, plain: "quantize_q6_k", weighted: Some("quantize_q6_k_imatrix"), row_sigma2: false },
        Entry { ty: IQ4_NL, module: Iq4, per_block: 128, plain: "quantize_iq4_nl", weighted: Some("quantize_iq4_nl_imatrix"), row_sigma2: false },
        Entry { ty: IQ4_XS, module: Iq4, per_block: 16, plain: "quantize_iq4_xs", weighted: Some("quantize_iq4_xs_imatrix"), row_sigma2: false },
        Entry { ty: MXFP4, module: Fp4, per_block: 128, plain: "quantize_mxfp4", weighted: None, row_sigma2: false },
    ]
};

/// The kernel that encodes rows as `ty`, with or without an importance matrix (which a type may ignore).
/// `None`: rows of this type are encoded on the CPU.
pub fn quantizer(ty: GgmlType, importance: bool) -> Option<Quantizer> {
    let entry = QUANTIZERS.iter().find(|e| e.ty == ty)?;
    let weighted = entry.weighted.filter(|_| importance);
    Some(Quantizer {
        kernel: kernel(weighted.unwrap_or(entry.plain), entry.module, 128, entry.per_block),
        row_sigma2: entry.row_sigma2 && weighted.is_some(),
    })
}
