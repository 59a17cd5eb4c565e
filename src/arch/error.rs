//! What can be wrong with a model before a weight is read.

use std::path::PathBuf;

use crate::recipe::ShapeError;

/// The model cannot be described: the subject, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchError {
    /// config.json is not an object.
    #[error("{}: not a JSON object; give a model folder as transformers saves it", file.display())]
    NotAConfig {
        /// The file.
        file: PathBuf,
    },
    /// config.json names no class.
    #[error("{}: no \"architectures\"; add the model's class name, for example [\"LlamaForCausalLM\"]", file.display())]
    NoClass {
        /// The file.
        file: PathBuf,
    },
    /// No family has this class.
    #[error("{}: architecture {class} is not supported; supported are {supported}", file.display())]
    UnknownClass {
        /// The file.
        file: PathBuf,
        /// What it names.
        class: String,
        /// All class names, joined by commas.
        supported: String,
    },
    /// A key that the architecture needs is absent.
    #[error("{}: no key {keys}, which {class} needs; take the file from the original model", file.display())]
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The names under which it was looked for.
        keys: String,
        /// The model's class.
        class: String,
    },
    /// A key has a value of another kind.
    #[error("{}: {key} is {found}, but must be {needed}; correct it there", file.display())]
    IllTyped {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value in the file.
        found: String,
        /// What was expected, in words.
        needed: &'static str,
    },
    /// A value that the architecture cannot have.
    #[error("{}: {key} {problem}; {remedy}", file.display())]
    Unfit {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Tensors that no row of the family's table names.
    #[error("{class} has no place for tensor {names}; the folder may hold another architecture's weights")]
    UnknownTensors {
        /// The model's class.
        class: String,
        /// The first few names, joined by commas.
        names: String,
    },
    /// A group of experts (or heads) is not whole.
    #[error("{name} is missing, one of {count} that form {output}; the weight files are incomplete")]
    IncompleteStack {
        /// The first absent source tensor.
        name: String,
        /// Members of the group.
        count: u64,
        /// The GGUF tensor.
        output: String,
    },
    /// Two source tensors claim the same output.
    #[error("{first} and {second} both become {output}; remove one of them from the weight files")]
    Collision {
        /// One source tensor.
        first: String,
        /// The other.
        second: String,
        /// The GGUF tensor.
        output: String,
    },
    /// A tensor without a place in GGUF is not all zeros.
    #[error("tensor {name} is not zero, and llama.cpp has no place for it in {class}; a merged model cannot have it")]
    NotZero {
        /// The source tensor.
        name: String,
        /// The model's class.
        class: String,
    },
    /// A tensor that had to be looked into could not be read.
    #[error("tensor {name}: {cause}; the weight file may be damaged")]
    Unreadable {
        /// The source tensor.
        name: String,
        /// Why.
        cause: String,
    },
    /// A tensor that the architecture cannot do without.
    #[error("{class} needs tensor {name}, which the weight files do not hold; they are incomplete")]
    MissingTensor {
        /// The model's class.
        class: String,
        /// The source tensor.
        name: String,
    },
    /// A GGUF of an architecture without a family.
    #[error(
        "{}: its architecture is '{arch}', and only adapters of known architectures can be merged into a GGUF; merge \
         into the model folder instead",
        file.display()
    )]
    UnknownArchitecture {
        /// The GGUF.
        file: PathBuf,
        /// `general.architecture`.
        arch: String,
    },
    /// An adapter changes a tensor that the GGUF has no place for.
    #[error(
        "{}: has no place for {name}, which the adapter changes: {reason}; merge into the model folder instead",
        file.display()
    )]
    NotRestored {
        /// The GGUF.
        file: PathBuf,
        /// The tensor under the model's name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A tensor's shape does not allow what the architecture does with it.
    #[error("tensor {name}: {source}; compare config.json with the weights, they seem to be of different models")]
    Shape {
        /// The source tensor.
        name: String,
        /// What did not fit.
        source: ShapeError,
    },
    /// A file of the folder cannot be read or parsed.
    #[error("{}: {cause}; correct or remove it", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: String,
    },
}
