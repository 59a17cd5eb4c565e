//! Any bytes as a safetensors file: refused with an error, or all of its tensors can be read.
//!
//! `cargo +nightly fuzz run safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use to_gguf::recipe::Scratch;

mod common;

fuzz_target!(|data: &[u8]| {
    let file = common::File::with(data);
    let path = file.path().with_extension("safetensors");
    std::fs::rename(file.path(), &path).expect("a file can be renamed");
    if let Ok(tensors) = to_gguf::source::open_weight_file(&path) {
        for (name, recipe) in tensors.iter() {
            // A packed element has at least a bit.
            assert!(recipe.shape().elements() <= 8 * data.len() as u64, "{name} is longer than its file");
            let mut out = vec![0.0; recipe.shape().elements() as usize];
            let _ = recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default());
        }
    }
    let _ = std::fs::remove_file(&path);
});
