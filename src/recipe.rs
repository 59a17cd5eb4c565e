//! The recipe: placeholder until the spine lands.
