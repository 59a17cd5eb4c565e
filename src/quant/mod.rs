//! What a row becomes: block types, the choice among them, and importance matrices.

mod types;

pub use types::GgmlType;
