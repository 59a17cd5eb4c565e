//! The tensors that a model must have for its adapters to fit: enough to name and arrange the factors where the
//! model's weights are not at hand.

use std::ops::Range;
use std::sync::Arc;

use super::contents::Module;
use super::draft::stored_transposed;
use super::{Adapter, AdapterError, BaseInfo};
use crate::quant::GgmlType;
use crate::recipe::{ReadError, Recipe, RowSource, Scratch};
use crate::shape::Shape;
use crate::source::TensorSet;

/// A tensor of which only name and shape are known.
struct Unread {
    name: String,
    shape: Shape,
}

impl RowSource for Unread {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::F32
    }

    fn read_rows(&self, _: Range<u64>, _: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        Err(ReadError::new(&self.name, "is needed, but the base model's weights are not there; download them too"))
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}

/// The tensors that adapters change, as far as they tell: names as the adapters have them, shapes from the factors, or
/// those of tensors that were trained whole.
pub fn implied_tensors(adapters: &[(Adapter, f32)], base: &BaseInfo) -> Result<TensorSet, AdapterError> {
    let mut tensors = TensorSet::new();
    for (adapter, _) in adapters {
        for module in &adapter.contents.modules {
            let Some(dims) = weight_dims(module) else { continue };
            let transposed = stored_transposed(&module.name, base, &adapter.config)?;
            let dims = if transposed { [dims[1], dims[0]] } else { dims };
            add(&mut tensors, format!("{}.weight", module.name), Shape::matrix(dims[0], dims[1]));
        }
        for saved in &adapter.contents.saved {
            add(&mut tensors, format!("{}.{}", saved.module, saved.leaf), saved.tensor.recipe.shape().clone());
        }
    }
    Ok(tensors)
}

fn add(tensors: &mut TensorSet, name: String, shape: Shape) {
    if !tensors.contains(&name) {
        tensors.set(name.clone(), Recipe::source(Arc::new(Unread { name, shape })));
    }
}

/// Outputs and inputs of a linear layer; rows and columns of an embedding.
fn weight_dims(module: &Module) -> Option<[u64; 2]> {
    let dims = |part: &str| module.peek(part).map(|t| t.dims().to_vec());
    match (dims("lora_A").as_deref(), dims("lora_B").as_deref()) {
        (Some([_, inputs]), Some([outputs, _])) => return Some([*outputs, *inputs]),
        (None, None) => {}
        _ => return None,
    }
    match (dims("lora_embedding_A").as_deref(), dims("lora_embedding_B").as_deref()) {
        (Some([_, rows]), Some([columns, _])) => Some([*rows, *columns]),
        _ => None,
    }
}
