//! Stands in for the crate of this name, which `cust` and `cust_raw` call from their build scripts.
//!
//! The real one looks for a CUDA toolkit, fails without one, and links `libcuda`. to-gguf defines the driver's
//! entry points itself and opens the driver when it is first called (`src/device/cuda/driver.rs`), so there is
//! nothing to find, and the same binary runs with a driver and without.

/// Does nothing: nothing is needed to build.
pub fn include_cuda() {}
