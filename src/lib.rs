//! to-gguf turns a Hugging Face model and its adapters into files that llama.cpp and Ollama run.
//!
//! One idea carries the program: **an output tensor is a [`recipe`] over source tensors, evaluated a few
//! rows at a time.** Nothing is ever materialised whole. Read the rooms in the order in which data flows:
//!
//! 1. [`source`] opens a model folder or a GGUF file as named tensors; only headers are read.
//! 2. [`adapter`] knows which of those tensors an adapter changes, and how.
//! 3. [`arch`] names the tensors as GGUF does and says how each is rearranged; [`tokenizer`] does the same
//!    for the vocabulary.
//! 4. [`plan`] decides every name, type, shape and offset of the result, so that sizes and errors are known
//!    before a weight is read.
//! 5. [`stream`] evaluates recipes in row chunks on a [`device`], which encodes them with [`quant`].
//! 6. [`gguf`] and [`save`] are the files that the rows go to; [`ollama`] writes what stands beside them.
//!
//! [`cli`] describes the command line and words the messages; it is the only room that prints.

pub mod adapter;
pub mod arch;
pub mod cli;
pub mod convert;
pub mod device;
pub mod gguf;
pub mod ollama;
pub mod plan;
pub mod quant;
pub mod recipe;
pub mod report;
pub mod save;
pub mod shape;
pub mod source;
pub mod stream;
pub mod tokenizer;
