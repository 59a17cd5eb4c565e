//! Any bytes as a GGUF file: it is refused with an error or read, all of its tensors too; never a panic, and never
//! more memory than a small multiple of the file. The same file is inspected, compared with itself, planned for a
//! mixture, and taken back to the tensors of the model that it was made of.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use to_gguf::gguf::{GgufFile, diff, inspect};
use to_gguf::quant::{FileType, QuantName, QuantOptions, QuantPlan};
use to_gguf::source::GgufModel;

mod common;

fuzz_target!(|data: &[u8]| {
    let file = common::File::with(data, ".gguf");
    let opened = GgufFile::open(file.path());
    assert_eq!(inspect(file.path(), true).is_ok(), opened.is_ok());
    let Ok(gguf) = opened else { return };
    for tensor in gguf.tensors() {
        assert!(tensor.bytes <= data.len() as u64, "{} is longer than its file", tensor.name);
        let mut bytes = vec![0; tensor.bytes as usize];
        gguf.read_rows(tensor, 0..tensor.shape.rows(), &mut bytes).expect("what the header promises is there");
    }
    assert!(diff(file.path(), file.path()).expect("what can be opened can be compared").identical);

    let model = GgufModel::open(file.path()).expect("as before");
    common::read_all(&model.tensors());
    let options = QuantOptions { allow_requantize: true, ..QuantOptions::default() };
    for name in [QuantName::Type(FileType::Q4_K_M), QuantName::Copy] {
        let _ = QuantPlan::new(model.metadata(), &model.source_tensors(), name, &options, None);
    }
    if let Ok(restored) = to_gguf::arch::restore(file.path(), model.metadata(), &model.tensors(), &|_| true) {
        common::read_all(restored.tensors());
        let changed: HashSet<&str> = restored.tensors().iter().map(|(name, _)| name).collect();
        if let Ok(tensors) = restored.convert(restored.tensors(), &changed, None) {
            common::read_all(&tensors.into_iter().map(|t| (t.name, t.recipe)).collect());
        }
    }
});
