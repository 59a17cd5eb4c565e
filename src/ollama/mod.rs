//! What Ollama runs: the Modelfile, its TEMPLATE, and the model store.
//!
//! A chat model that gets its template wrong answers badly, and one that lacks a stop token never ends. So
//! nothing here is looked up by a model's name: the model's own [`jinja`] template is run on probe
//! [`chat`]s, and what it prints says which text surrounds each message and what ends a turn ([`stops`]).

pub mod chat;
pub mod go;
pub mod infer;
pub mod jinja;
mod modelfile;
pub mod proof;
pub mod python;
pub mod render;
pub mod stops;

pub use modelfile::{ChatInput, Command, Modelfile, ModelfileInput};
