//! Packed weights, decoded row by row under their logical names.
//!
//! A quantized model stores `X.weight` as codes and side tables under names of the library that wrote it. Each
//! file here knows one library: it claims those tensors on the [`Shelf`] and puts one decoded tensor in their
//! place. What the decoder gives equals what the library's own dequantization gives, bit for bit, in the type that
//! the library decodes to; each file says so.

mod aqlm;
mod awq;
mod bitnet;
mod bitsandbytes;
mod compressed;
mod fields;
mod fp8;
mod gptq;
mod grid;
mod hqq;
mod modelopt;
mod mxfp4;
mod nvfp4;
mod quanto;
mod rounded;
mod strips;
mod torchao;

pub(crate) use bitsandbytes::NF4;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use safetensors::Dtype;
use serde_json::Value;

use super::folder::{StoredTensors, read_json};
use super::stored::Stored;
use super::{SourceError, TensorSet};
use crate::quant::GgmlType;
use crate::recipe::{Recipe, RowSource};
use crate::shape::Shape;
use rounded::Rounded;

/// How a library's tensors are unpacked.
type Unpack = fn(&mut Shelf) -> Result<(), SourceError>;

/// Quantization methods by their name in `quant_method`, and who unpacks them.
const METHODS: [(&str, Unpack); 15] = [
    ("bitsandbytes", bitsandbytes::unpack),
    ("gptq", gptq::unpack),
    ("auto-round", gptq::unpack_auto_round),
    ("awq", awq::unpack),
    ("hqq", hqq::unpack),
    ("fp8", fp8::unpack),
    ("mxfp8", fp8::unpack),
    ("fbgemm_fp8", fp8::unpack),
    ("compressed-tensors", compressed::unpack),
    ("modelopt", modelopt::unpack),
    ("mxfp4", mxfp4::unpack),
    ("torchao", torchao::unpack),
    ("quanto", quanto::unpack),
    ("bitnet", bitnet::unpack),
    ("aqlm", aqlm::unpack),
];

/// Methods that are known and not unpacked, and why.
const REFUSED: [(&str, &str); 12] = [
    ("eetq", "its codes are in the order of a GPU kernel, which is not published"),
    ("quip", "its codebook is a lattice of a GPU kernel"),
    ("spqr", "its sparse outliers are laid out for a GPU kernel"),
    ("vptq", "its codes index vectors in a layout of a GPU kernel"),
    ("higgs", "its codes are in the order of a GPU kernel"),
    ("fp_quant", "its weights are rotated, and its codes are in the order of a GPU kernel"),
    ("quark", "its layouts depend on the program that exported them"),
    ("exl2", "its mixed-width codes are in the order of a GPU kernel"),
    ("exl3", "its trellis codes are in the order of a GPU kernel"),
    ("sinq", "its layout is not published"),
    ("fouroversix", "its layout is not published"),
    ("gguf", "the weights are in a GGUF file; give that file itself"),
];

/// A model's tensors with packed ones decoded.
pub(super) struct Unpacked {
    /// All tensors under their logical names.
    pub(super) tensors: TensorSet,
    /// Names of those that are stored plainly.
    pub(super) plain: HashSet<String>,
    /// The method that packed the others.
    pub(super) method: Option<&'static str>,
}

/// Decodes what is packed.
pub(super) fn unpack(
    stored: &StoredTensors,
    config: &Value,
    metadata: &HashMap<String, String>,
    folder: &Path,
) -> Result<Unpacked, SourceError> {
    let quantization = quantization_config(config, folder)?;
    let slots = stored.iter().map(|(n, t)| (n.clone(), Slot::Plain(t.clone()))).collect();
    let mut shelf = Shelf {
        method: "",
        slots,
        added: Vec::new(),
        config: Value::Null,
        metadata,
        folder,
        model: model_type(config),
        strips: Arc::default(),
    };
    let name = match &quantization {
        Some(q) => method_name(q),
        None if bitsandbytes::is_present(stored) => "bitsandbytes".to_string(),
        None => return Ok(shelf.finish(None)),
    };
    shelf.config = quantization.unwrap_or(Value::Null);
    match METHODS.iter().find(|(n, _)| *n == name) {
        Some((method, unpack)) => {
            shelf.method = method;
            unpack(&mut shelf)?;
            shelf.check_codes()?;
            Ok(shelf.finish(Some(method)))
        }
        None => {
            let reason = REFUSED.iter().find(|(n, _)| *n == name).map(|(_, why)| *why);
            let cause = reason.unwrap_or("this method is not known").to_string();
            Err(SourceError::Packing { method: name, cause })
        }
    }
}

/// `quantization_config` of the model or its text part, or the file that older libraries wrote beside it.
fn quantization_config(config: &Value, folder: &Path) -> Result<Option<Value>, SourceError> {
    let places = [config.get("quantization_config"), config.pointer("/text_config/quantization_config")];
    if let Some(found) = places.into_iter().flatten().find(|v| v.is_object()) {
        return Ok(Some(found.clone()));
    }
    if let Some(found) = config.get("compression_config").filter(|v| v.is_object()) {
        return Ok(Some(with_method(found.clone(), "compressed-tensors")));
    }
    let beside = [
        ("quantize_config.json", "gptq"),
        ("quant_config.json", "awq"),
        ("hf_quant_config.json", "modelopt"),
        ("quanto_qmap.json", "quanto"),
    ];
    for (file, method) in beside {
        let path = folder.join(file);
        if path.is_file() {
            return Ok(Some(with_method(read_json(&path)?, method)));
        }
    }
    Ok(None)
}

fn with_method(mut config: Value, method: &str) -> Value {
    if let Some(map) = config.as_object_mut() {
        map.insert("quant_method".to_string(), Value::from(method));
    }
    config
}

/// `quant_method`; files of early bitsandbytes have only its switches.
fn method_name(config: &Value) -> String {
    let switch = |k| config.get(k).and_then(Value::as_bool) == Some(true);
    match config.get("quant_method").and_then(Value::as_str) {
        Some(name) if name.starts_with("bitsandbytes") => "bitsandbytes".to_string(),
        Some(name) => name.replace("auto_round", "auto-round"),
        None if switch("load_in_4bit") || switch("load_in_8bit") => "bitsandbytes".to_string(),
        None => "(no quant_method)".to_string(),
    }
}

/// The type in which the model computes: what a library decodes to when its tensors do not say.
fn model_type(config: &Value) -> GgmlType {
    named_type(config).unwrap_or(GgmlType::BF16)
}

/// The type that a config names for the model.
pub(super) fn named_type(config: &Value) -> Option<GgmlType> {
    let named = ["/dtype", "/torch_dtype", "/text_config/dtype", "/text_config/torch_dtype"];
    named.iter().find_map(|p| type_named(config.pointer(p)?.as_str()?))
}

/// Whether elements of this type are floats that a model computes with.
pub(super) fn is_plain_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// The plain type of a PyTorch name, with or without `torch.`.
fn type_named(name: &str) -> Option<GgmlType> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "bfloat16" => Some(GgmlType::BF16),
        "float16" | "half" => Some(GgmlType::F16),
        "float32" | "float" => Some(GgmlType::F32),
        _ => None,
    }
}

/// The plain type of a stored scale: what its library computes in.
fn type_of(tensor: &Stored) -> GgmlType {
    super::element::precision(tensor.dtype())
}

enum Slot {
    /// As stored, under its own name.
    Plain(Stored),
    /// Part of a packed tensor.
    Claimed,
    /// A decoded tensor in the place of its codes.
    Decoded(String, Recipe),
}

/// The tensors of a model while packed ones are being unpacked: each is claimed once.
struct Shelf<'a> {
    method: &'static str,
    slots: IndexMap<String, Slot>,
    added: Vec<(String, Recipe)>,
    /// `quantization_config`.
    config: Value,
    /// Text metadata of the weight files.
    metadata: &'a HashMap<String, String>,
    folder: &'a Path,
    /// The type in which the model computes.
    model: GgmlType,
    /// Room for what is read of transposed matrices.
    strips: Arc<strips::Store>,
}

impl Shelf<'_> {
    /// A tensor that nobody has claimed.
    fn peek(&self, name: &str) -> Option<&Stored> {
        match self.slots.get(name) {
            Some(Slot::Plain(t)) => Some(t),
            _ => None,
        }
    }

    /// Claims a tensor.
    fn take(&mut self, name: &str) -> Option<Stored> {
        let slot = self.slots.get_mut(name)?;
        match std::mem::replace(slot, Slot::Claimed) {
            Slot::Plain(t) => Some(t),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Claims a part of the packed tensor `of`; it must be there.
    fn need(&mut self, name: &str, of: &str) -> Result<Stored, SourceError> {
        let part = name.strip_prefix(of).map_or(name, |p| p.trim_start_matches(['.', '_'])).to_string();
        let part = if part.is_empty() { "weight" } else { &part };
        self.take(name).ok_or_else(|| self.wrong(of, format!("its {part} is missing")))
    }

    /// Names of unclaimed tensors that end so, with the ending cut off, in order.
    fn bases(&self, ending: &str) -> Vec<String> {
        let plain = |(n, s): (&String, &Slot)| match s {
            Slot::Plain(_) => n.strip_suffix(ending).map(str::to_string),
            _ => None,
        };
        self.slots.iter().filter_map(plain).collect()
    }

    /// Claims all tensors that end so: what the library keeps for activations, which a file of weights does not need.
    fn drop_ending(&mut self, endings: &[&str]) {
        for (name, slot) in &mut self.slots {
            if matches!(slot, Slot::Plain(_)) && endings.iter().any(|e| name.ends_with(e)) {
                *slot = Slot::Claimed;
            }
        }
    }

    /// Puts a decoded tensor in the place of `codes`.
    fn put(&mut self, codes: &str, name: &str, source: impl RowSource + 'static) -> Result<(), SourceError> {
        self.put_recipe(codes, name, Recipe::source(Arc::new(source)))
    }

    /// As [`Shelf::put`], for values in f32 that the library then rounds to `precision`.
    fn put_rounded(
        &mut self,
        codes: &str,
        name: &str,
        source: impl RowSource + 'static,
        precision: GgmlType,
    ) -> Result<(), SourceError> {
        self.put(codes, name, Rounded::new(source, precision))
    }

    fn put_recipe(&mut self, codes: &str, name: &str, recipe: Recipe) -> Result<(), SourceError> {
        if codes != name && self.peek(name).is_some() {
            return Err(self.wrong(codes, format!("the plain tensor {name} is there too")));
        }
        self.slots.insert(codes.to_string(), Slot::Decoded(name.to_string(), recipe));
        Ok(())
    }

    /// Adds a decoded tensor after all others, where llama.cpp's converter puts those whose names change.
    fn append(&mut self, name: &str, source: impl RowSource + 'static) -> Result<(), SourceError> {
        if self.peek(name).is_some() {
            return Err(self.wrong(name, "the plain tensor is there as well as the packed one"));
        }
        self.added.push((name.to_string(), Recipe::source(Arc::new(source))));
        Ok(())
    }

    /// An error about the packed tensor `name`.
    fn wrong(&self, name: &str, cause: impl Into<String>) -> SourceError {
        let near = self.slots.iter().find(|(n, _)| n.starts_with(name)).map(|(_, s)| s);
        let path = match near {
            Some(Slot::Plain(t)) => t.file().path().to_path_buf(),
            _ => PathBuf::from(self.folder),
        };
        SourceError::PackedTensor { path, tensor: name.to_string(), method: self.method, cause: cause.into() }
    }

    /// An error about the quantization method as a whole.
    fn unsupported(&self, cause: impl Into<String>) -> SourceError {
        SourceError::Packing { method: self.method.to_string(), cause: cause.into() }
    }

    fn check_shape(&self, of: &str, tensor: &Stored, dims: &[u64]) -> Result<(), SourceError> {
        if tensor.shape().dims() == dims {
            return Ok(());
        }
        let wanted = Shape::new(dims.to_vec()).map_or_else(|| "a smaller one".to_string(), |s| s.to_string());
        Err(self.wrong(of, format!("{} has shape {}, needs {wanted}", tensor.name(), tensor.shape())))
    }

    fn check_dtype(&self, of: &str, tensor: &Stored, allowed: &[Dtype]) -> Result<(), SourceError> {
        if allowed.contains(&tensor.dtype()) {
            return Ok(());
        }
        let names: Vec<String> = allowed.iter().map(Dtype::to_string).collect();
        Err(self.wrong(of, format!("{} has type {}, needs {}", tensor.name(), tensor.dtype(), names.join(" or "))))
    }

    /// The shape of the matrix (or stack of matrices) `dims`.
    fn shape(&self, of: &str, dims: impl Into<Vec<u64>>) -> Result<Shape, SourceError> {
        let dims = dims.into();
        let matrix = dims.len() >= 2;
        Shape::new(dims).filter(|_| matrix).ok_or_else(|| self.wrong(of, "has no matrix shape that can be"))
    }

    fn read<T>(&self, of: &str, result: Result<T, crate::recipe::ReadError>) -> Result<T, SourceError> {
        result.map_err(|e| self.wrong(of, e.to_string()))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(Value::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.config.get(key).and_then(Value::as_u64)
    }

    /// A weight of codes that nobody decoded would pass as a tensor of small integers: its side data is missing.
    fn check_codes(&self) -> Result<(), SourceError> {
        for (name, slot) in &self.slots {
            let Slot::Plain(tensor) = slot else { continue };
            let codes = matches!(
                tensor.dtype(),
                Dtype::U8 | Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::F8_E4M3 | Dtype::F8_E5M2
            );
            let packed_name = [".qweight", ".weight_packed", ".W_q", ".codes", "_blocks", ".weight._data"];
            if (name.ends_with(".weight") && codes && tensor.shape().ndim() >= 2)
                || packed_name.iter().any(|e| name.ends_with(e))
            {
                let cause = format!("holds codes of type {} without the scales that belong to them", tensor.dtype());
                return Err(self.wrong(name, cause));
            }
        }
        Ok(())
    }

    fn finish(self, method: Option<&'static str>) -> Unpacked {
        let mut plain = HashSet::new();
        let kept = self.slots.into_iter().filter_map(|(name, slot)| match slot {
            Slot::Plain(t) => {
                plain.insert(name.clone());
                Some((name, Recipe::source(Arc::new(t))))
            }
            Slot::Claimed => None,
            Slot::Decoded(name, recipe) => Some((name, recipe)),
        });
        let tensors = kept.chain(self.added).collect();
        Unpacked { tensors, plain, method }
    }
}
