//! The engine over real sinks: the same bytes for any threads and chunk sizes, and errors that name the tensor.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::device::Cpu;
use crate::gguf::{GgufFile, Layout, Metadata, TensorInfo};
use crate::quant::GgmlType;
use crate::recipe::{Delta, ReadError, RowSource, Scratch};
use crate::save::{GgufSink, GgufTarget, OutputSet};
use crate::shape::Shape;

/// Sines, so that no two rows are alike; fails at a row where told to.
struct Waves {
    shape: Shape,
    broken_row: Option<u64>,
}

impl RowSource for Waves {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::BF16
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        if self.broken_row.is_some_and(|r| rows.contains(&r)) {
            return Err(ReadError::new("waves", "the file ends early"));
        }
        let start = rows.start * self.shape.row_len();
        out.iter_mut().enumerate().for_each(|(i, x)| *x = ((start + i as u64) as f32 * 0.37).sin());
        Ok(())
    }

    fn describe(&self) -> String {
        "waves".to_owned()
    }
}

struct Silent;

impl Progress for Silent {
    fn advance(&self, _: &str, _: u64) {}
}

fn stream(name: &str, dims: &[u64], broken_row: Option<u64>) -> Stream {
    let shape = Shape::new(dims).unwrap();
    Stream { name: name.to_owned(), recipe: Recipe::source(Arc::new(Waves { shape, broken_row })) }
}

fn write(streams: &[Stream], types: &[GgmlType], threads: usize, memory: Option<u64>) -> Result<Vec<u8>, StreamError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let infos: Vec<TensorInfo> = streams
        .iter()
        .zip(types)
        .map(|(s, &kind)| TensorInfo { name: s.name.clone(), shape: s.recipe.shape().clone(), kind })
        .collect();
    let layout = Layout::new(&Metadata::new(), &infos).unwrap();
    let outputs = OutputSet::create(&[(path.clone(), layout.file_size())], false).unwrap();
    let targets: Vec<GgufTarget> =
        types.iter().enumerate().map(|(stream, &ty)| GgufTarget { stream, ty, importance: None }).collect();
    let rows: Vec<u64> = streams.iter().map(|s| s.recipe.shape().rows()).collect();
    let sink = GgufSink::new(outputs.file(0), &layout, &targets, &rows, streams.len()).unwrap();
    let settings = Settings { threads, max_memory: memory, interrupted: &AtomicBool::new(false) };
    run(streams, &[&sink], &Cpu, &settings, &Silent)?;
    outputs.commit().unwrap();
    GgufFile::open(&path).unwrap();
    Ok(std::fs::read(&path).unwrap())
}

#[test]
fn bytes_do_not_depend_on_threads_or_chunks() {
    let streams = [stream("a", &[100, 256], None), stream("b", &[7], None), stream("c", &[3, 5, 64], None)];
    let types = [GgmlType::Q4_K, GgmlType::F32, GgmlType::Q8_0];
    let reference = write(&streams, &types, 1, None).unwrap();
    for (threads, memory) in [(1, Some(1)), (3, None), (4, Some(40_000))] {
        assert!(write(&streams, &types, threads, memory).unwrap() == reference, "{threads} threads, {memory:?}");
    }
}

#[test]
fn a_failing_tensor_is_named_and_no_file_appears() {
    let streams = [stream("a", &[100, 32], None), stream("b", &[100, 32], Some(99))];
    let error = write(&streams, &[GgmlType::F16, GgmlType::F16], 2, Some(5_000)).unwrap_err();
    assert_eq!(error.to_string(), "tensor 'b': waves: the file ends early");
}

/// Adds a number to one element.
struct Spike {
    row: u64,
    value: f32,
}

impl Delta for Spike {
    fn apply(&self, base: &Recipe, rows: Range<u64>, values: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        if rows.contains(&self.row) {
            values[((self.row - rows.start) * base.shape().row_len() + 3) as usize] = self.value;
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "a spike".to_owned()
    }
}

#[test]
fn merged_values_that_the_output_type_cannot_hold_are_named() {
    let merged = |value| {
        let plain = stream("a", &[100, 32], None);
        let recipe = plain.recipe.merged(vec![Arc::new(Spike { row: 77, value })]).reshape(Shape::matrix(50, 64));
        [Stream { name: plain.name, recipe: recipe.unwrap() }]
    };
    let told = |value, ty| write(&merged(value), &[ty], 2, Some(5_000)).map(|_| ()).map_err(|e| e.to_string());
    let words = |told: Result<(), String>, words: &[&str]| {
        let told = told.unwrap_err();
        assert!(words.iter().all(|w| told.contains(w)), "{told}");
    };
    words(told(70_000.0, GgmlType::F16), &["tensor 'a'", "row 38, column 35", "7e4 is too large for F16", "--quant"]);
    words(told(f32::MAX, GgmlType::BF16), &["tensor 'a'", "row 38, column 35", "too large for BF16"]);
    words(told(f32::NAN, GgmlType::F32), &["tensor 'a'", "row 38, column 35", "NaN", "intact"]);
    words(told(1e38, GgmlType::Q8_0), &["tensor 'a'", "row 38", "scale of Q8_0 block 1", "BF16"]);
    words(told(f32::INFINITY, GgmlType::Q4_0), &["tensor 'a'", "row 38 has inf at column 35"]);
    for ty in [GgmlType::F32, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0] {
        assert_eq!(told(70_000.0, ty), Ok(()), "{ty}");
    }
}
