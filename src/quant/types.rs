//! The block types of ggml: identity, geometry and functions of each, in one table.

use super::lanes::{self, Isa};
use super::{
    Rows, fp4, grid_lanes, grid_search, iq1, iq1_lanes, iq2, iq3, iq4, k_affine, k_affine_lanes, k_symmetric, legacy,
    plain, ternary,
};

/// A tensor element type of GGUF, by ggml's name. The discriminant is the number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)] // ggml's own names
#[repr(u32)]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// Elements and bytes of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Elements in a block; a row is a whole number of blocks.
    pub elements: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

/// What a type does with an importance matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImatrixRule {
    /// It has no use for one.
    Ignored,
    /// It weighs errors by one if there is one.
    Optional,
    /// It cannot be made without one.
    Required,
}

/// Where the bytes of a block hold a float that must be finite (`ggml_validate_row_data`).
#[derive(Clone, Copy)]
#[allow(dead_code)] // some families have none or their own
pub(super) enum Scales {
    /// Nowhere: every pattern of bits is a number.
    Any,
    /// f16 scales at these offsets.
    F16(&'static [usize]),
    /// The element is a BF16.
    BF16,
    /// The element is an F32.
    F32,
    /// Whatever this function looks at: whether the block is sound.
    Sound(fn(&[u8]) -> bool),
}

/// Encodes one row: elements, the weights of its columns, the encoded bytes.
pub(super) type Quantizer = fn(&[f32], Option<&[f32]>, &mut [u8]);
/// Encodes whole rows on an instruction set (`lanes::run`).
pub(super) type LaneQuantizer = fn(Isa, Rows<'_>, &mut [u8]);
/// Decodes any number of blocks.
pub(super) type Dequantizer = fn(&[u8], &mut [f32]);

/// The functions of a type, all in its family's file.
pub(super) struct Codec {
    /// What it does with an importance matrix.
    pub(super) imatrix: ImatrixRule,
    /// The reference, which defines the bytes.
    pub(super) reference: Quantizer,
    /// The kernel over lanes, if it has one.
    pub(super) lanes: Option<LaneQuantizer>,
    /// The decoder.
    pub(super) dequantize: Dequantizer,
    scales: Scales,
    block_bytes: usize,
}

impl Codec {
    /// The first block that `ggml_validate_row_data` refuses.
    pub(super) fn first_bad_block(&self, bytes: &[u8]) -> Option<usize> {
        let half = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let blocks = bytes.chunks_exact(self.block_bytes);
        match self.scales {
            Scales::Any => None,
            Scales::F16(at) => {
                at.iter().filter_map(|&at| blocks.clone().position(|b| half(b, at) & 0x7c00 == 0x7c00)).min()
            }
            Scales::BF16 => blocks.clone().position(|b| half(b, 0) & 0x7f80 == 0x7f80),
            Scales::F32 => blocks.clone().position(|b| half(b, 2) & 0x7f80 == 0x7f80),
            Scales::Sound(sound) => blocks.clone().position(|b| !sound(b)),
        }
    }
}

/// A type: identity, geometry and functions.
struct Entry {
    ty: GgmlType,
    name: &'static str,
    elements: u64,
    bytes: u64,
    /// `None`: numbers that are copied as they are.
    codec: Option<Codec>,
}

/// A type with functions: elements and bytes of a block, imatrix rule, reference, lanes, decoder, scales.
#[allow(clippy::too_many_arguments)] // a row of the table
const fn block(
    ty: GgmlType,
    name: &'static str,
    elements: u64,
    bytes: u64,
    imatrix: ImatrixRule,
    reference: Quantizer,
    lanes: Option<LaneQuantizer>,
    dequantize: Dequantizer,
    scales: Scales,
) -> Entry {
    let codec = Codec { imatrix, reference, lanes, dequantize, scales, block_bytes: bytes as usize };
    Entry { ty, name, elements, bytes, codec: Some(codec) }
}

/// A type that is only ever copied.
const fn copied(ty: GgmlType, name: &'static str, elements: u64, bytes: u64) -> Entry {
    Entry { ty, name, elements, bytes, codec: None }
}

/// One row per type, in the order of their numbers.
#[rustfmt::skip]
static TABLE: &[Entry] = {
    use GgmlType::*;
    use ImatrixRule::*;
    &[
        block(F32, "F32", 1, 4, Ignored, plain::f32_to_bytes, None, plain::f32_from_bytes, Scales::F32),
        block(F16, "F16", 1, 2, Ignored, plain::f32_to_f16, None, plain::f16_to_f32, Scales::F16(&[0])),
        block(Q4_0, "Q4_0", 32, 18, Optional, legacy::q4_0, Some(lanes::run::<legacy::Q4_0>), legacy::dequantize_q4_0, Scales::F16(&[0])),
        block(Q4_1, "Q4_1", 32, 20, Optional, legacy::q4_1, Some(lanes::run::<legacy::Q4_1>), legacy::dequantize_q4_1, Scales::F16(&[0, 2])),
        block(Q5_0, "Q5_0", 32, 22, Optional, legacy::q5_0, Some(lanes::run::<legacy::Q5_0>), legacy::dequantize_q5_0, Scales::F16(&[0])),
        block(Q5_1, "Q5_1", 32, 24, Optional, legacy::q5_1, Some(lanes::run::<legacy::Q5_1>), legacy::dequantize_q5_1, Scales::F16(&[0, 2])),
        block(Q8_0, "Q8_0", 32, 34, Ignored, legacy::q8_0, Some(lanes::run::<legacy::Q8_0>), legacy::dequantize_q8_0, Scales::F16(&[0])),
        block(Q2_K, "Q2_K", 256, 84, Optional, k_affine::q2_k, Some(lanes::run::<k_affine_lanes::Q2_K>), k_affine::dequantize_q2_k, Scales::F16(&[80, 82])),
        block(Q3_K, "Q3_K", 256, 110, Optional, k_symmetric::q3_k, Some(lanes::run::<k_symmetric::Q3_K>), k_symmetric::dequantize_q3_k, Scales::F16(&[108])),
        block(Q4_K, "Q4_K", 256, 144, Optional, k_affine::q4_k, Some(lanes::run::<k_affine_lanes::Q4_K>), k_affine::dequantize_q4_k, Scales::F16(&[0, 2])),
        block(Q5_K, "Q5_K", 256, 176, Optional, k_affine::q5_k, Some(lanes::run::<k_affine_lanes::Q5_K>), k_affine::dequantize_q5_k, Scales::F16(&[0, 2])),
        block(Q6_K, "Q6_K", 256, 210, Optional, k_symmetric::q6_k, Some(lanes::run::<k_symmetric::Q6_K>), k_symmetric::dequantize_q6_k, Scales::F16(&[208])),
        block(IQ2_XXS, "IQ2_XXS", 256, 66, Required, grid_search::reference::<iq2::IQ2_XXS, 8, 32>, Some(lanes::run::<grid_lanes::OverLanes<iq2::IQ2_XXS, 8, 32>>), iq2::dequantize_iq2_xxs, Scales::F16(&[0])),
        block(IQ2_XS, "IQ2_XS", 256, 74, Required, grid_search::reference::<iq2::IQ2_XS, 8, 16>, Some(lanes::run::<grid_lanes::OverLanes<iq2::IQ2_XS, 8, 16>>), iq2::dequantize_iq2_xs, Scales::F16(&[0])),
        block(IQ3_XXS, "IQ3_XXS", 256, 98, Optional, grid_search::reference::<iq3::IQ3_XXS, 4, 32>, Some(lanes::run::<grid_lanes::OverLanes<iq3::IQ3_XXS, 4, 32>>), iq3::dequantize_iq3_xxs, Scales::F16(&[0])),
        block(IQ1_S, "IQ1_S", 256, 50, Required, iq1::reference::<32, iq1::IQ1_S>, Some(lanes::run::<iq1_lanes::OverLanes<iq1::IQ1_S, 32>>), iq1::dequantize_iq1_s, Scales::F16(&[0])),
        block(IQ4_NL, "IQ4_NL", 32, 18, Optional, iq4::iq4_nl, Some(lanes::run::<iq4::IQ4_NL>), iq4::dequantize_iq4_nl, Scales::F16(&[0])),
        block(IQ3_S, "IQ3_S", 256, 110, Optional, grid_search::reference::<iq3::IQ3_S, 4, 32>, Some(lanes::run::<grid_lanes::OverLanes<iq3::IQ3_S, 4, 32>>), iq3::dequantize_iq3_s, Scales::F16(&[0])),
        block(IQ2_S, "IQ2_S", 256, 82, Optional, grid_search::reference::<iq2::IQ2_S, 8, 16>, Some(lanes::run::<grid_lanes::OverLanes<iq2::IQ2_S, 8, 16>>), iq2::dequantize_iq2_s, Scales::F16(&[0])),
        block(IQ4_XS, "IQ4_XS", 256, 136, Optional, iq4::iq4_xs, Some(lanes::run::<iq4::IQ4_XS>), iq4::dequantize_iq4_xs, Scales::F16(&[0])),
        copied(I8, "I8", 1, 1),
        copied(I16, "I16", 1, 2),
        copied(I32, "I32", 1, 4),
        copied(I64, "I64", 1, 8),
        copied(F64, "F64", 1, 8),
        block(IQ1_M, "IQ1_M", 256, 56, Optional, iq1::reference::<16, iq1::IQ1_M>, Some(lanes::run::<iq1_lanes::OverLanes<iq1::IQ1_M, 16>>), iq1::dequantize_iq1_m, Scales::Sound(iq1::iq1_m_is_sound)),
        block(BF16, "BF16", 1, 2, Ignored, plain::f32_to_bf16, None, plain::bf16_to_f32, Scales::BF16),
        block(TQ1_0, "TQ1_0", 256, 54, Ignored, ternary::tq1_0, None, ternary::dequantize_tq1_0, Scales::F16(&[52])),
        block(TQ2_0, "TQ2_0", 256, 66, Ignored, ternary::tq2_0, None, ternary::dequantize_tq2_0, Scales::F16(&[64])),
        block(MXFP4, "MXFP4", 32, 17, Ignored, fp4::mxfp4, Some(lanes::run::<fp4::MXFP4>), fp4::dequantize_mxfp4, Scales::Sound(fp4::mxfp4_is_sound)),
        block(NVFP4, "NVFP4", 64, 36, Ignored, fp4::nvfp4, None, fp4::dequantize_nvfp4, Scales::Any),
        block(Q1_0, "Q1_0", 128, 18, Ignored, legacy::q1_0, Some(lanes::run::<legacy::Q1_0>), legacy::dequantize_q1_0, Scales::F16(&[0])),
        block(Q2_0, "Q2_0", 64, 18, Ignored, legacy::q2_0, Some(lanes::run::<legacy::Q2_0>), legacy::dequantize_q2_0, Scales::F16(&[0])),
    ]
};

impl GgmlType {
    fn entry(self) -> &'static Entry {
        TABLE.iter().find(|e| e.ty == self).expect("every type has its row in TABLE")
    }

    /// All types, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|e| e.ty)
    }

    /// ggml's name, in capitals.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The type of a name in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|e| e.name.eq_ignore_ascii_case(name)).map(|e| e.ty)
    }

    /// The type of a number in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|e| e.ty as u32 == id).map(|e| e.ty)
    }

    /// Elements and bytes of one block.
    pub fn geometry(self) -> Geometry {
        let e = self.entry();
        Geometry { elements: e.elements, bytes: e.bytes }
    }

    /// Bytes of a row of `elements`, or `None` when that is not a whole number of blocks (or overflows `u64`).
    pub fn row_bytes(self, elements: u64) -> Option<u64> {
        let g = self.geometry();
        if elements.is_multiple_of(g.elements) { (elements / g.elements).checked_mul(g.bytes) } else { None }
    }

    /// The functions of the type, for all but the numbers that are only ever copied.
    pub(super) fn codec(self) -> Option<&'static Codec> {
        self.entry().codec.as_ref()
    }

    /// What the type does with an importance matrix; `None` for types without an encoder.
    pub fn imatrix_rule(self) -> Option<ImatrixRule> {
        self.codec().map(|c| c.imatrix)
    }

    /// Bits per element.
    pub fn bits_per_weight(self) -> f64 {
        let g = self.geometry();
        g.bytes as f64 * 8.0 / g.elements as f64
    }

    /// Whether the type holds blocks of codes and scales rather than plain numbers.
    pub fn is_quantized(self) -> bool {
        use GgmlType::*;
        !matches!(self, F32 | F16 | BF16 | F64 | I8 | I16 | I32 | I64)
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
