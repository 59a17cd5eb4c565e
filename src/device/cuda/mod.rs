//! NVIDIA GPUs: the same rows, the same bytes.
//!
//! [`kernels`] says what runs there; the kernels themselves are in `cuda/`.

pub mod kernels;
