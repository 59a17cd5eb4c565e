//! A model on disk as named tensors: safetensors, PyTorch files, GGUF; plain and packed formats.

mod tensors;

pub use tensors::TensorSet;
