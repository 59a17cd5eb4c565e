//! Any bytes as a `config.json`, over the tensors of a known model: refused with an error, or a plan of the GGUF file
//! whose rows can be read. The first byte picks the model among `fixtures/arch`.
#![no_main]

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use to_gguf::arch::{ArchInput, convert};
use to_gguf::quant::GgmlType;
use to_gguf::recipe::{ReadError, Recipe, RowSource, Scratch};
use to_gguf::shape::Shape;
use to_gguf::source::TensorSet;

mod common;

/// A tensor of zeros.
struct Zeros(String, Shape);

impl RowSource for Zeros {
    fn shape(&self) -> &Shape {
        &self.1
    }

    fn precision(&self) -> GgmlType {
        GgmlType::BF16
    }

    fn read_rows(&self, _: Range<u64>, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        out.fill(0.0);
        Ok(())
    }

    fn describe(&self) -> String {
        self.0.clone()
    }
}

/// The tensors of every model in `fixtures/arch`, in the order of their files' names.
static MODELS: LazyLock<Vec<TensorSet>> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/arch"));
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("the fixtures are there").flatten().map(|e| e.path()).collect();
    files.sort();
    files.iter().map(|file| tensors(&std::fs::read(file).expect("a fixture can be read"))).collect()
});

/// Tensors from lines such as `lm_head.weight BF16 [128256,256]`.
fn tensors(fixture: &[u8]) -> TensorSet {
    let fixture: serde_json::Value = serde_json::from_slice(fixture).expect("a fixture is JSON");
    let lines = fixture["source"].as_array().expect("a fixture lists its tensors");
    let tensor = |line: &serde_json::Value| {
        let mut words = line.as_str().expect("a line").split(' ');
        let (name, shape) = (words.next().expect("a name"), words.nth(1).expect("a shape"));
        let dims: Vec<u64> = shape.trim_matches(['[', ']']).split(',').flat_map(str::parse).collect();
        let shape = Shape::new(dims).expect("a shape");
        (name.to_owned(), Recipe::source(Arc::new(Zeros(name.to_owned(), shape))))
    };
    lines.iter().map(tensor).collect()
}

fuzz_target!(|data: &[u8]| {
    let [pick, text @ ..] = data else { return };
    let Ok(config) = serde_json::from_slice(text) else { return };
    let tensors = &MODELS[usize::from(*pick) % MODELS.len()];
    let nowhere = Path::new("/nonexistent");
    let input = ArchInput {
        config: &config,
        config_file: &nowhere.join("config.json"),
        tensors,
        folder: nowhere,
        tokenizer_folder: nowhere,
        name: None,
    };
    if let Ok(converted) = convert(&input) {
        common::read_all(&converted.tensors.into_iter().map(|t| (t.name, t.recipe)).collect());
    }
});
