//! Eight-bit floats with scales beside them: transformers' `fp8` (DeepSeek, Qwen, Mistral), `mxfp8`, `fbgemm_fp8`.
//!
//! `w = round_to_model_dtype(f32(q) * f32(scale))`; the scale covers the tensor, a row, or a block of
//! `weight_block_size`, and multiplies even where it is called `scale_inv`. Scales may be UE8M0 exponents. Equals
//! transformers' `Fp8Dequantize` exactly; ragged edges use the same index.

use safetensors::Dtype;

use super::fields::e2m1_pairs;
use super::grid::{Codes, Grid, Scales};
use super::{Shelf, SourceError};
use crate::quant::GgmlType;

/// Side tensors of activations and caches.
const IGNORED: [&str; 8] = [
    ".activation_scale",
    "_activation_scale",
    ".input_scale",
    ".input_scale_ub",
    ".qscale_act",
    ".k_scale",
    ".v_scale",
    ".output_scale",
];

/// Endings of scales, and what makes of them the name of their weight.
const SCALES: [(&str, &str); 5] = [
    ("_scale_inv", ""),
    (".weight_scale", ".weight"),
    (".qscale_weight", ".weight"),
    (".scale", ".weight"),
    ("_proj_scale", "_proj"),
];

/// Unpacks every weight that has a scale.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    shelf.drop_ending(&IGNORED);
    let block = match shelf.config.get("weight_block_size").and_then(|b| b.as_array()).map(Vec::as_slice) {
        Some([rows, cols]) => rows.as_u64().zip(cols.as_u64()),
        _ => (shelf.method == "mxfp8").then_some((1, 32)),
    };
    for (ending, weight_ending) in SCALES {
        for base in shelf.bases(ending) {
            let name = format!("{base}{weight_ending}");
            // A bare `scale` may belong to a norm or a gate; the longer names only go with packed weights.
            let certain = ending.contains("scale_inv") || ending.contains("weight");
            let codes = match shelf.peek(&name) {
                Some(codes) if certain || codes.width() == 1 => codes,
                None if certain => {
                    let scale = format!("{base}{ending}");
                    return Err(shelf.wrong(&scale, format!("its weight {name} is missing")));
                }
                _ => continue,
            };
            let block = match codes.dtype() {
                Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => block,
                Dtype::I8 | Dtype::U8 => Some((1, 32)),
                other => return Err(shelf.wrong(&name, format!("has a scale, but type {other}"))),
            };
            let scale = shelf.need(&format!("{base}{ending}"), &name)?;
            let codes = shelf.need(&name, &name)?;
            let mut dims = codes.shape().dims().to_vec();
            let codes = match (codes.dtype(), dims.last_mut()) {
                // Experts in four bits: E2M1, the low nibble first.
                (Dtype::I8 | Dtype::U8, Some(last)) => {
                    *last *= 2;
                    let Some(bytes) = codes.as_bytes() else { return Err(shelf.wrong(&name, "is a strided view")) };
                    Codes::Pairs(bytes, e2m1_pairs())
                }
                _ => Codes::Elements(codes),
            };
            let shape = shelf.shape(&name, dims)?;
            let scales = Scales::fit(shelf, &name, &shape, scale, block)?;
            let model = shelf.model;
            shelf.put_rounded(&name, &name, Grid::new(shape, codes, scales, GgmlType::F32), model)?;
        }
    }
    Ok(())
}
