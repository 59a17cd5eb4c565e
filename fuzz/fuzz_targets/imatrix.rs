//! Any bytes as an importance matrix of either format: refused with an error, or finite weights.
//!
//! Files that begin with `GGUF` go to one reader, all others to the older one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use to_gguf::quant::{Imatrix, ImatrixFilter};

mod common;

fuzz_target!(|data: &[u8]| {
    let file = common::File::with(data, "");
    if let Ok(imatrix) = Imatrix::open(file.path(), &ImatrixFilter::All) {
        assert!(!imatrix.is_empty(), "a matrix of nothing");
    }
});
