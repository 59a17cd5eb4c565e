//! What is promised about GGUF files: what is written reads back equal, and a damaged file is refused by name.

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use to_gguf::gguf::{
    Array, GgufError, GgufFile, Layout, Metadata, SplitLimit, SplitRule, TensorInfo, Value, part_path, split,
};
use to_gguf::quant::GgmlType;
use to_gguf::shape::Shape;

fn tensor(name: &str, dims: &[u64], kind: GgmlType) -> TensorInfo {
    TensorInfo { name: name.into(), shape: Shape::new(dims).unwrap(), kind }
}

/// A whole file, its data counting up from the tensor's index.
fn file(metadata: &Metadata, tensors: &[TensorInfo]) -> Vec<u8> {
    let layout = Layout::new(metadata, tensors).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    for i in 0..layout.len() {
        let (at, len) = layout.place(i);
        for k in 0..len {
            bytes[(at + k) as usize] = (i as u64 + k) as u8;
        }
    }
    bytes
}

fn sample() -> Vec<u8> {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string("llama"));
    m.set("tokens", Value::strings(["a", "bc", ""]));
    file(&m, &[tensor("first.weight", &[2, 32], GgmlType::Q4_0), tensor("second", &[5], GgmlType::F32)])
}

fn written(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Opens a file with these bytes and gives the error's words, without the folder.
fn refusal(bytes: &[u8]) -> String {
    let dir = TempDir::new().unwrap();
    let path = written(&dir, "x.gguf", bytes);
    let words = GgufFile::open(&path).expect_err("it opened").to_string();
    words.replace(dir.path().to_str().unwrap(), "").replace("/x.gguf", "x.gguf")
}

/// The sample with the first occurrence of some bytes replaced by as many others.
fn with(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = sample();
    let at = bytes.windows(from.len()).position(|w| w == from).expect("not in the sample");
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn rows_are_read_as_they_are_stored() {
    let dir = TempDir::new().unwrap();
    let f = GgufFile::open(written(&dir, "x.gguf", &sample())).unwrap();
    let t = f.tensor("first.weight").unwrap();
    assert_eq!((t.kind, t.shape.dims(), t.bytes), (GgmlType::Q4_0, &[2, 32][..], 36));
    let mut row = [0; 18];
    f.read_rows(t, 1..2, &mut row).unwrap();
    assert_eq!(row.to_vec(), (18..36).collect::<Vec<u8>>());
    assert!(matches!(f.read_rows(t, 1..3, &mut [0; 36]), Err(GgufError::Rows { end: 3, rows: 2, .. })));
    assert!(matches!(f.read_rows(t, 0..2, &mut [0; 35]), Err(GgufError::Buffer { needed: 36, given: 35, .. })));
}

#[test]
fn a_file_that_shrank_after_opening_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir, "x.gguf", &sample());
    let f = GgufFile::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let t = f.tensor("second").unwrap();
    assert!(matches!(f.read_rows(t, 0..1, &mut [0; 20]), Err(GgufError::Truncated { size: 100, .. })));
}

#[test]
fn damaged_files_are_refused_by_name() {
    let key = |n: u8| [&[n, 0, 0, 0, 0, 0, 0, 0][..], b"general.architecture"].concat();
    for (bytes, words) in [
        (b"GGU".to_vec(), "x.gguf: not a GGUF file"),
        (b"PK\x03\x04 and so on".to_vec(), "x.gguf: not a GGUF file"),
        (with(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), "x.gguf: a big-endian GGUF"),
        (with(b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0"), "x.gguf: GGUF version 1 is not supported"),
        (
            with(b"GGUF\x03\0\0\0\x02", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff"),
            "x.gguf: the number of tensors is 1099511627775, more than",
        ),
        (with(&key(20), &[255; 8]), "x.gguf: the length of key number 0 is 18446744073709551615, more than"),
        (
            with(b"general.architecture\x08", b"general.architecture\x0d"),
            "x.gguf: the key 'general.architecture' has the unknown value type 13",
        ),
        (with(b"llama", b"\xff\xff\xff\xff\xff"), ""),
        (with(b"tokens", b"tok\xffns"), "x.gguf: key number 1 is not UTF-8"),
        (
            with(b"tokens\x09\0\0\0\x08\0\0\0\x03\0\0\0\0", b"tokens\x09\0\0\0\x08\0\0\0\xff\xff\xff\xff\x7f"),
            "x.gguf: the length of the array of key 'tokens' is 549755813887, more than",
        ),
        (
            with(b"tokens\x09\0\0\0\x08\0\0\0\x03\0\0\0\0", b"tokens\x09\0\0\0\x08\0\0\0\xff\xff\xff\x03\0"),
            "x.gguf: truncated: the array of key 'tokens' needs",
        ),
        (with(b"first.weight\x02", b"first.weight\x05"), "x.gguf: tensor 'first.weight' has 5 dimensions"),
        (
            with(b"first.weight\x02\0\0\0\x20", b"first.weight\x02\0\0\0\x21"),
            "x.gguf: tensor 'first.weight' [2, 33] of type Q4_0 has rows that are not whole blocks of 32",
        ),
        (
            with(
                b"\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
                b"\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\xff",
            ),
            "x.gguf: the shape [32, 18374686479671623682] of tensor 'first.weight' overflows",
        ),
        (
            with(
                b"\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
                b"\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\x01\0\0\0\0",
            ),
            "x.gguf: truncated: tensor 'first.weight' needs 301989924 bytes",
        ),
        (
            with(b"\x02\0\0\0\0\0\0\0\0\0\0\0\x06\0\0\0", b"\x04\0\0\0"),
            "x.gguf: tensor 'first.weight' has the type number 4, which ggml has removed",
        ),
        (
            with(b"\x02\0\0\0\0\0\0\0\0\0\0\0\x06\0\0\0", b"\x09\0\0\0"),
            "x.gguf: tensor 'first.weight' has the type number 9, which ggml does not store in files",
        ),
        (
            with(b"\0\0\0\0\x40\0\0\0\0\0\0\0", b"\0\0\0\0\x41\0\0\0\0\0\0\0"),
            "x.gguf: tensor 'second' begins at 65, which is not a multiple of 32",
        ),
        (
            with(b"\0\0\0\0\x40\0\0\0\0\0\0\0", b"\0\0\0\0\x20\0\0\0\0\0\0\0"),
            "x.gguf: the data of the tensors 'first.weight' and 'second' overlap",
        ),
    ] {
        if words.is_empty() {
            // A string value may hold any bytes.
            let dir = TempDir::new().unwrap();
            GgufFile::open(written(&dir, "x.gguf", &bytes)).unwrap();
            continue;
        }
        let said = refusal(&bytes);
        assert!(said.starts_with(words), "expected {words:?}\n but said {said:?}");
        assert!(said.contains(';') || said.contains("bytes at offset"), "no remedy in {said:?}");
    }
}

#[test]
fn duplicates_are_refused() {
    let mut m = Metadata::new();
    m.set("key.a", Value::U8(1));
    m.set("key.b", Value::U8(1));
    let mut bytes = file(&m, &[tensor("t.a", &[1], GgmlType::F32), tensor("t.b", &[1], GgmlType::F32)]);
    let at = bytes.windows(3).position(|w| w == b"t.b").unwrap();
    bytes[at + 2] = b'a';
    assert!(refusal(&bytes).starts_with("x.gguf: the tensor 't.a' is there twice"));
    let at = bytes.windows(5).position(|w| w == b"key.b").unwrap();
    bytes[at + 4] = b'a';
    assert!(refusal(&bytes).starts_with("x.gguf: the key 'key.a' stands there twice"));
}

#[test]
fn no_truncation_goes_unnoticed() {
    let bytes = sample();
    let dir = TempDir::new().unwrap();
    let data_end = bytes.len() - 12; // the last tensor has 20 bytes of a padded 32
    for len in 0..data_end {
        GgufFile::open(written(&dir, "x.gguf", &bytes[..len])).expect_err("a truncated file opened");
    }
    GgufFile::open(written(&dir, "x.gguf", &bytes[..data_end])).unwrap();
}

#[test]
fn deep_nesting_is_refused() {
    let mut deep = Array::U8(vec![1]);
    for _ in 0..4 {
        deep = Array::Array(vec![deep]);
    }
    let mut m = Metadata::new();
    m.set("deep", Value::Array(deep));
    assert!(refusal(&file(&m, &[])).starts_with("x.gguf: the array of key 'deep' is nested more than 4 deep"));
}

fn write_parts(dir: &TempDir) -> Vec<PathBuf> {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string("llama"));
    let tensors: Vec<_> = (0..5).map(|i| tensor(&format!("t{i}"), &[8], GgmlType::F32)).collect();
    let parts = split(&m, &tensors, SplitRule { limit: SplitLimit::Tensors(2), bare_first: false }).unwrap();
    let count = parts.len();
    let write = |(i, (keys, range)): (usize, (Metadata, std::ops::Range<usize>))| {
        let path = part_path(&dir.path().join("m.gguf"), i, count);
        std::fs::write(&path, file(&keys, &tensors[range])).unwrap();
        path
    };
    parts.into_iter().enumerate().map(write).collect()
}

#[test]
fn the_parts_of_a_split_model_open_as_one() {
    let dir = TempDir::new().unwrap();
    let parts = write_parts(&dir);
    let f = GgufFile::open(&parts[0]).unwrap();
    assert_eq!(f.parts().len(), 3);
    assert_eq!(
        f.tensors().iter().map(|t| (t.name.as_str(), t.part)).collect::<Vec<_>>(),
        [("t0", 0), ("t1", 0), ("t2", 1), ("t3", 1), ("t4", 2)]
    );
    let mut bytes = [0; 32];
    f.read_rows(f.tensor("t3").unwrap(), 0..1, &mut bytes).unwrap();
    assert_eq!(bytes[0], 1);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dir = TempDir::new().unwrap();
    let parts = write_parts(&dir);
    let said = |p: &PathBuf| GgufFile::open(p).unwrap_err();
    assert!(
        matches!(said(&parts[1]), GgufError::NotFirstPart { no: 1, count: 3, expected, .. } if expected == parts[0])
    );
    std::fs::copy(&parts[2], &parts[1]).unwrap();
    assert!(matches!(said(&parts[0]), GgufError::PartNumber { no: 1, count: 3, .. }));
    std::fs::remove_file(&parts[1]).unwrap();
    assert!(matches!(said(&parts[0]), GgufError::Io { path, .. } if path == parts[1]));
    let renamed = dir.path().join("other.gguf");
    std::fs::rename(&parts[0], &renamed).unwrap();
    assert!(matches!(said(&renamed), GgufError::PartName { no: 0, count: 3, .. }));
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        text.clone().prop_map(Value::string),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300f64..1e300).prop_map(Value::F64),
        proptest::collection::vec(text, 0..9).prop_map(Value::strings),
        proptest::collection::vec(any::<bool>(), 0..9).prop_map(|v| Value::Array(Array::Bool(v))),
        proptest::collection::vec(any::<i32>(), 0..70_000).prop_map(|v| Value::Array(Array::I32(v))),
        proptest::collection::vec(any::<u16>(), 0..9)
            .prop_map(|v| Value::Array(Array::Array(vec![Array::U16(v), Array::F64(vec![0.5])]))),
    ]
}

fn any_tensor() -> impl Strategy<Value = (Vec<u64>, GgmlType)> {
    let kinds = GgmlType::all().collect::<Vec<_>>();
    (proptest::collection::vec(0u64..4, 0..4), proptest::sample::select(kinds)).prop_map(|(mut dims, kind)| {
        if let Some(last) = dims.last_mut() {
            *last *= kind.geometry().elements;
        }
        if dims.is_empty() && kind.geometry().elements > 1 {
            dims.push(kind.geometry().elements);
        }
        (dims, kind)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_reads_back_equal(
        values in proptest::collection::vec(any_value(), 0..8),
        shapes in proptest::collection::vec(any_tensor(), 0..8),
        alignment in prop_oneof![Just(None), Just(Some(8u32)), Just(Some(64))],
    ) {
        let mut m = Metadata::new();
        for (i, v) in values.into_iter().enumerate() {
            m.set(format!("key.{i}"), v);
        }
        if let Some(a) = alignment {
            m.set("general.alignment", Value::U32(a));
        }
        let tensors: Vec<_> =
            shapes.iter().enumerate().map(|(i, (dims, kind))| tensor(&format!("t.{i}"), dims, *kind)).collect();
        let bytes = file(&m, &tensors);
        let dir = TempDir::new().unwrap();
        let f = GgufFile::open(written(&dir, "x.gguf", &bytes)).unwrap();
        prop_assert_eq!(f.metadata(), &m);
        prop_assert_eq!(f.parts()[0].size, bytes.len() as u64);
        prop_assert_eq!(f.tensors().len(), tensors.len());
        for (i, (read, meant)) in f.tensors().iter().zip(&tensors).enumerate() {
            prop_assert_eq!((&read.name, &read.shape, read.kind), (&meant.name, &meant.shape, meant.kind));
            let mut data = vec![0; read.bytes as usize];
            f.read_rows(read, 0..read.shape.rows(), &mut data).unwrap();
            prop_assert!(data.iter().enumerate().all(|(k, &b)| b == (i + k) as u8));
        }
    }

    #[test]
    fn no_damage_makes_the_reader_panic(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
        let mut bytes = sample();
        let n = bytes.len();
        bytes[at % n] = byte;
        bytes.truncate(n - cut % n);
        let dir = TempDir::new().unwrap();
        let _ = GgufFile::open(written(&dir, "x.gguf", &bytes));
    }
}

/// A file that ggml wrote: laid out again from what was read, its header is the same to the byte.
#[test]
fn the_layout_equals_ggmls() {
    let path = "fixtures/shakespeare.imatrix.gguf";
    let f = GgufFile::open(path).unwrap();
    let infos: Vec<_> =
        f.tensors().iter().map(|t| TensorInfo { name: t.name.clone(), shape: t.shape.clone(), kind: t.kind }).collect();
    let layout = Layout::new(f.metadata(), &infos).unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(layout.header(), &bytes[..layout.header().len()]);
    assert_eq!(layout.file_size(), bytes.len() as u64);
    for (i, t) in f.tensors().iter().enumerate() {
        assert_eq!(layout.place(i), (t.offset, t.bytes));
    }
}
