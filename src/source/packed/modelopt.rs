//! NVIDIA ModelOpt: FP8 and NVFP4.
//!
//! FP8: `w = q * scale`, both in the model's type, rounded once. NVFP4: E2M1 pairs, the low nibble first, an E4M3
//! scale per 16 elements and one f32 factor `weight_scale_2` per tensor, which multiplies:
//! `w = round(E2M1[q] * f32(scale * scale_2))`. Equals `FP8QTensor` and `NVFP4QTensor` exactly.

use safetensors::Dtype;

use super::fields::e2m1_pairs;
use super::grid::{Adjust, Codes, Grid, Scales};
use super::rounded::Rounded;
use super::{Shelf, SourceError};
use crate::quant::GgmlType;

/// What activations and caches leave behind.
const IGNORED: [&str; 5] = [".input_scale", ".k_scale", ".v_scale", ".output_scale", "._amax"];

/// Unpacks every weight that has a scale.
pub(super) fn unpack(shelf: &mut Shelf) -> Result<(), SourceError> {
    for (ending, what) in
        [(".pre_quant_scale", "inputs that are scaled first"), (".svdquant_lora_a", "SVDQuant factors")]
    {
        if let Some(module) = shelf.bases(ending).first() {
            return Err(shelf.wrong(module, format!("needs {what} ({ending}), which a weight alone cannot hold")));
        }
    }
    shelf.drop_ending(&IGNORED);
    let model = shelf.model;
    for module in shelf.bases(".weight_scale") {
        let name = format!("{module}.weight");
        let scale = shelf.need(&format!("{name}_scale"), &name)?;
        let factor = shelf.take(&format!("{name}_scale_2"));
        let codes = shelf.need(&name, &name)?;
        let mut dims = codes.shape().dims().to_vec();
        let grid = match (codes.dtype(), factor) {
            (Dtype::F8_E4M3, None) => {
                let shape = shelf.shape(&name, dims)?;
                let fit = || Scales::fit(shelf, &name, &shape, scale.clone(), None);
                let (rounded, plain) = (fit()?.adjusted(Adjust::Round(model)), fit()?);
                let grid = |scales| Grid::new(shape.clone(), Codes::Elements(codes.clone()), scales, GgmlType::F32);
                let both = Rounded::beside(grid(rounded), grid(plain), model);
                shelf.put(&name, &name, both)?;
                continue;
            }
            (Dtype::U8, Some(factor)) => {
                if let Some(last) = dims.last_mut() {
                    *last = last.saturating_mul(2);
                }
                let shape = shelf.shape(&name, dims)?;
                if factor.shape().elements() != 1 && factor.shape().elements() != shape.dims()[0] {
                    return Err(shelf.wrong(&name, format!("weight_scale_2 has shape {}", factor.shape())));
                }
                let Some(bytes) = codes.as_bytes() else { return Err(shelf.wrong(&name, "is a strided view")) };
                let scales = Scales::fit(shelf, &name, &shape, scale, Some((1, 16)))?.adjusted(Adjust::Times(factor));
                Grid::new(shape, Codes::Pairs(bytes, e2m1_pairs()), scales, model)
            }
            (dtype, _) => {
                return Err(shelf.wrong(&name, format!("weights of type {dtype} are not read, only FP8 and NVFP4")));
            }
        };
        shelf.put(&name, &name, grid)?;
    }
    Ok(())
}
