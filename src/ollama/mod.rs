//! What Ollama runs: the Modelfile, its TEMPLATE, and the model store.
//!
//! A chat model that gets its template wrong answers badly, and one that lacks a stop token never ends. So
//! nothing here is looked up by a model's name: the model's own [`jinja`] template is run on probe
//! [`chat`]s, and what it prints says which text surrounds each message and what ends a turn ([`stops`]).
//!
//! [`infer`] turns that into a Go TEMPLATE, and [`proof`] runs both on conversations that inference did not see:
//! the Jinja in [`jinja`], the TEMPLATE in [`go`] with Ollama's rules ([`render`]). [`Modelfile`] writes what was
//! proven; [`recognise`] sees to it that Ollama finds thinking and calls in the [`answers`]. [`grammar`] reads a Modelfile as Ollama does; [`store`] and [`api`] create the model from it, and
//! [`check`] compares it with the GGUF.

pub mod answers;
pub mod api;
mod builtin;
pub mod chat;
pub mod check;
mod facts;
pub use facts::FactsError;
pub mod go;
pub mod grammar;
pub mod infer;
pub mod jinja;
mod licenses;
mod modelfile;
pub mod name;
pub mod proof;
pub mod python;
pub mod recognise;
pub mod render;
pub mod stops;
pub mod store;

pub use licenses::licenses;
pub use modelfile::{ChatInput, Command, Modelfile, ModelfileInput, Wishes, words as scope_in_words};

use chat::Dialect;
use infer::Abilities;
use jinja::ChatTemplate;

/// Runs `f` on a model's chat template and the way it wants to be spoken to; `None` if it has none that works.
fn facts_of_modelfile<T>(chat: &ChatInput, f: impl FnOnce(&ChatTemplate, &Dialect) -> T) -> Option<T> {
    let source = chat.template.as_ref()?;
    let template = ChatTemplate::new(source, chat.bos_token.as_deref(), chat.eos_token.as_deref()).ok()?;
    let abilities = Abilities::discover(&template, chat.add_bos.unwrap_or(true)).ok()?;
    Some(f(&template, &abilities.dialect))
}
