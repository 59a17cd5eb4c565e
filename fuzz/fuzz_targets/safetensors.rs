//! Any bytes as a safetensors file: refused with an error, or all of its tensors can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod common;

fuzz_target!(|data: &[u8]| {
    let file = common::File::with(data, ".safetensors");
    if let Ok(tensors) = to_gguf::source::open_weight_file(file.path()) {
        for (name, recipe) in tensors.iter() {
            // A packed element has at least a bit; a PyTorch file may repeat what it has.
            let repeats = data.starts_with(b"PK") || data.starts_with(b"\x80");
            assert!(repeats || recipe.shape().elements() <= 8 * data.len() as u64, "{name} is longer than its file");
        }
        common::read_all(&tensors);
    }
});
