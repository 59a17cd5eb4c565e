//! The vocabulary in which a family of architectures is described: [`Family`], [`Tensor`], [`Key`].
//!
//! A family is data: its class names, a table of tensors and a table of keys. Patterns speak of source tensors:
//!
//! * `{L}` is a block number (below the model's number of blocks), `{E}` a member of a stack (an expert, a head);
//! * a `.*` at the end is `.weight` or `.bias`, and the output keeps it;
//! * a `*` at the start of a dropped pattern is any prefix.
//!
//! Several rows with the same source split it; a row with a stack joins its members. What no word covers is a
//! function in the family's file ([`Op::TokenRows`], [`From::Is`], [`Key::Many`]).

use crate::gguf::{Array, Metadata, Value};
use crate::quant::GgmlType;
use crate::recipe::Recipe;
use crate::shape::Shape;
use crate::tokenizer::VocabKind;

use super::config::Config;
use super::error::ArchError;

/// A family of architectures: models that share a GGUF architecture name.
#[derive(Clone, Copy)]
pub struct Family {
    /// Class names in `architectures` of config.json.
    pub classes: &'static [&'static str],
    /// `general.architecture`.
    pub arch: &'static str,
    /// A model on the Hub that is of this family.
    pub example: &'static str,
    /// Which vocabulary the model's tokenizer files hold.
    pub vocab: VocabKind,
    /// Classes whose tensors lack a prefix that the table has.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// Beginnings of names that the table does not have.
    pub strip: &'static [&'static str],
    /// Why blocks beyond the model's number of blocks are dropped, where the weights have such.
    pub extra_blocks: Option<&'static str>,
    /// Tensors, in groups; the first row that matches decides.
    pub tensors: &'static [&'static [Tensor]],
    /// Tensors computed from the config; they come first in the file.
    pub generated: &'static [Generator],
    /// Keys that stand before `general.type`.
    pub early_keys: &'static [Key],
    /// Keys of the architecture, in file order.
    pub keys: &'static [Key],
    /// Keys after those of the tokenizer.
    pub late_keys: &'static [Key],
    /// Config values that a GGUF of the family holds under no key of the table: what its own keys say of them, for
    /// merging into the GGUF. The function it is given looks a key up, without the architecture's prefix.
    pub restored: Restored,
}

/// Config values by name, from a function that looks up a GGUF's keys.
pub type Restored = fn(&dyn std::ops::Fn(&str) -> Option<u64>) -> Vec<(&'static str, Option<u64>)>;

impl Family {
    /// A family with nothing said: the base of struct updates.
    pub const NEW: Family = Family {
        classes: &[],
        arch: "",
        example: "",
        vocab: VocabKind::Bpe,
        prefixes: &[],
        strip: &[],
        extra_blocks: None,
        tensors: &[],
        generated: &[],
        early_keys: &[],
        keys: &[],
        late_keys: &[],
        restored: |_| Vec::new(),
    };
}

/// One row of a family's table: a source tensor and what becomes of it.
#[derive(Clone, Copy)]
pub struct Tensor {
    pub(super) source: &'static str,
    pub(super) fate: Fate,
    pub(super) ops: &'static [Op],
    pub(super) when: When,
    pub(super) stack: Option<Stack>,
    pub(super) store: Option<GgmlType>,
    pub(super) duplicate: bool,
}

/// What becomes of a source tensor.
#[derive(Clone, Copy)]
pub enum Fate {
    /// The GGUF tensor of this name.
    Named(&'static str),
    /// Nothing, for this reason.
    Dropped(&'static str),
    /// Nothing if all its values are zero, otherwise an error: llama.cpp has no place for it.
    Zero(&'static str),
}

/// A source tensor that becomes a GGUF tensor.
pub const fn tensor(name: &'static str, source: &'static str) -> Tensor {
    Tensor { source, fate: Fate::Named(name), ops: &[], when: When::Always, stack: None, store: None, duplicate: false }
}

/// A source tensor that GGUF has no use for.
pub const fn dropped(source: &'static str, reason: &'static str) -> Tensor {
    Tensor {
        source,
        fate: Fate::Dropped(reason),
        ops: &[],
        when: When::Always,
        stack: None,
        store: None,
        duplicate: false,
    }
}

/// A source tensor that llama.cpp has no place for, which is no loss where it is all zeros.
pub const fn zero(source: &'static str, reason: &'static str) -> Tensor {
    Tensor {
        source,
        fate: Fate::Zero(reason),
        ops: &[],
        when: When::Always,
        stack: None,
        store: None,
        duplicate: false,
    }
}

impl Tensor {
    /// With these operations, in order (after stacking, if it is a stack).
    pub const fn ops(mut self, ops: &'static [Op]) -> Tensor {
        self.ops = ops;
        self
    }

    /// Only when this holds; otherwise the row is not there.
    pub const fn when(mut self, when: When) -> Tensor {
        self.when = when;
        self
    }

    /// One member of a stack of `count`. Rows of one block with the same `group` are written together, in table
    /// order, when the last of their members has been met.
    pub const fn stacked(mut self, group: &'static str, count: Num) -> Tensor {
        self.stack = Some(Stack { group, count });
        self
    }

    /// One of several copies: the first that the file holds is used, the others are dropped.
    pub const fn or_duplicate(mut self) -> Tensor {
        self.duplicate = true;
        self
    }

    /// Always stored in this type.
    pub const fn stored_as(mut self, store: GgmlType) -> Tensor {
        self.store = Some(store);
        self
    }
}

/// Members that form one tensor.
#[derive(Clone, Copy)]
pub struct Stack {
    /// Rows of a block that are complete together.
    pub group: &'static str,
    /// Number of members.
    pub count: Num,
}

/// When a row or key holds.
#[derive(Clone, Copy)]
pub enum When {
    /// Always.
    Always,
    /// For models with such a config.
    Model(fn(&Config) -> bool),
    /// For blocks that the function names.
    Block(fn(&Config, u64) -> bool),
}

/// A number known from the config.
#[derive(Clone, Copy)]
pub enum Num {
    /// This one.
    Lit(u64),
    /// The first of these keys that is there.
    Of(&'static [&'static str]),
    /// Computed.
    Is(fn(&Config) -> Result<u64, ArchError>),
}

impl Num {
    /// The number for a model.
    pub fn value(self, config: &Config) -> Result<u64, ArchError> {
        match self {
            Num::Lit(n) => Ok(n),
            Num::Of(names) => config.need_uint(names),
            Num::Is(f) => f(config),
        }
    }
}

/// Attention heads.
pub const HEADS: Num = Num::Of(&["n_heads", "num_attention_heads"]);

/// Key and value heads: as many as attention heads where the config does not say.
pub const KV_HEADS: Num = Num::Is(|c| match c.uint(&["n_kv_heads", "num_key_value_heads"])? {
    Some(n) => Ok(n),
    None => HEADS.value(c),
});

/// One operation on a tensor.
#[derive(Clone, Copy)]
pub enum Op {
    /// Llama's rotary row order over this many heads.
    Rope(Num),
    /// Adds a constant (norms stored as their distance from 1).
    Add(f32),
    /// `-exp(x)` (state-space decay stored as its logarithm).
    NegExp,
    /// The last two dimensions swapped.
    Transpose,
    /// Part `index` of `of` equal, contiguous parts along the last dimension but one (the only one of a vector).
    Part {
        /// Which part.
        index: u64,
        /// Of how many.
        of: u64,
    },
    /// Each of so many heads as a matrix of its rows.
    Heads(Num),
    /// `count` rows of each matrix, from `start` on.
    Rows {
        /// First row.
        start: Num,
        /// How many.
        count: Num,
    },
    /// Fused query, key and value rows in `groups` groups (so many queries, one key, one value each) as all queries,
    /// all keys, all values.
    Degroup {
        /// Groups: key and value heads.
        groups: Num,
        /// Attention heads.
        heads: Num,
    },
    /// Every `step`-th row from `start` on, within each matrix of a stack.
    Every {
        /// First row.
        start: u64,
        /// Distance between rows.
        step: u64,
    },
    /// Every `step`-th element from `start` on of each row.
    EveryColumn {
        /// First element.
        start: u64,
        /// Distance between elements.
        step: u64,
    },
    /// Without dimensions of size 1.
    Squeeze,
    /// The first rows of the embeddings, as many as the tokenizer has tokens: the number is in its files. The
    /// embeddings of a GGUF are so already.
    TokenRows(fn(&Recipe, &Place<'_>) -> Result<u64, ArchError>),
}

/// Where an operation works, for what a family computes itself.
pub struct Place<'a> {
    /// The model's hyperparameters.
    pub config: &'a Config,
    /// The source tensor.
    pub source: &'a str,
    /// The block, where the tensor is in one.
    pub block: Option<u64>,
    /// The folder of the model's tokenizer.
    pub folder: &'a std::path::Path,
}

impl Place<'_> {
    /// An error about the tensor's shape.
    pub fn shape_error(&self, source: crate::recipe::ShapeError) -> ArchError {
        ArchError::Shape { name: self.source.into(), source }
    }
}

/// Computes tensors from the config.
pub type Generator = fn(&Config) -> Result<Vec<Generated>, ArchError>;

/// A tensor computed from the config alone.
pub struct Generated {
    /// GGUF name.
    pub name: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Its values.
    pub values: Vec<f32>,
}

impl Generated {
    /// A vector.
    pub fn vector(name: &'static str, values: Vec<f32>) -> Generated {
        Generated { name, shape: Shape::vector(values.len() as u64), values }
    }
}

/// One key, or several, of an architecture. Names stand without the architecture's prefix.
#[derive(Clone, Copy)]
pub enum Key {
    /// An unsigned number.
    U32(&'static str, From),
    /// A number, or one per block where the config has an array.
    U32s(&'static str, From),
    /// A floating-point number.
    F32(&'static str, From),
    /// A truth value.
    Bool(&'static str, From),
    /// A text.
    Str(&'static str, From),
    /// `general.file_type`; its value is set when the output type is known.
    FileType,
    /// `pooling_type`, where the folder is one of sentence-transformers.
    Pooling,
    /// Keys that several families share.
    Group(&'static [Key]),
    /// Keys that are computed together.
    Many(fn(&Config, &mut Keys) -> Result<(), ArchError>),
}

/// Where a key's value comes from.
#[derive(Clone, Copy)]
pub enum From {
    /// The first of these config keys; none means no key.
    Any(&'static [&'static str]),
    /// The first of these config keys, which the architecture needs.
    Need(&'static [&'static str]),
    /// The first of these config keys, or this number.
    Or(&'static [&'static str], f64),
    /// This number.
    Lit(f64),
    /// This truth value.
    Flag(bool),
    /// This text.
    Text(&'static str),
    /// Computed; `None` means no key.
    Is(fn(&Config) -> Result<Option<serde_json::Value>, ArchError>),
}

/// The keys of one model as they are collected: names get the architecture's prefix.
pub struct Keys {
    pub(super) prefix: &'static str,
    pub(super) folder: std::path::PathBuf,
    pub(super) metadata: Metadata,
}

impl Keys {
    /// Sets `<arch>.<name>`, or the name as it is where it is one of `general.*` or `tokenizer.*`.
    ///
    /// An empty text or array is no key, as in gguf-py's writer.
    pub fn set(&mut self, name: &str, value: Value) {
        if is_empty(&value) {
            return;
        }
        if name.starts_with("general.") || name.starts_with("tokenizer.") {
            self.metadata.set(name, value);
        } else {
            self.metadata.set(format!("{}.{name}", self.prefix), value);
        }
    }

    /// Removes `<arch>.<name>`.
    pub fn remove(&mut self, name: &str) {
        self.metadata.remove(&format!("{}.{name}", self.prefix));
    }

    /// Sets an unsigned number.
    pub fn uint(&mut self, name: &str, value: u64, config: &Config) -> Result<(), ArchError> {
        let value =
            u32::try_from(value).map_err(|_| config.unfit(name, format!("is {value}"), "GGUF holds it in 32 bits"))?;
        self.set(name, Value::U32(value));
        Ok(())
    }

    /// Sets a floating-point number.
    pub fn float(&mut self, name: &str, value: f64) {
        self.set(name, Value::F32(value as f32));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(s) => s.is_empty(),
        Value::Array(Array::I32(v)) => v.is_empty(),
        Value::Array(Array::F32(v)) => v.is_empty(),
        Value::Array(Array::Bool(v)) => v.is_empty(),
        Value::Array(Array::String(v)) => v.is_empty(),
        _ => false,
    }
}
