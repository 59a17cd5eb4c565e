//! Any bytes as a GGUF file: it is refused with an error or read, all of its tensors too; never a panic, and never
//! more memory than a small multiple of the file.
//!
//! `cargo +nightly fuzz run gguf`.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod common;

fuzz_target!(|data: &[u8]| {
    let file = common::File::with(data);
    let Ok(gguf) = to_gguf::gguf::GgufFile::open(file.path()) else { return };
    for tensor in gguf.tensors() {
        assert!(tensor.bytes <= data.len() as u64, "{} is longer than its file", tensor.name);
        let mut bytes = vec![0; tensor.bytes as usize];
        gguf.read_rows(tensor, 0..tensor.shape.rows(), &mut bytes).expect("what the header promises is there");
    }
});
