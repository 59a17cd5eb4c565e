//! Opening model folders of safetensors files: what is read, and what damaged files are told.

use std::fs;
use std::path::Path;

use to_gguf::recipe::Scratch;
use to_gguf::source::ModelFolder;

/// A safetensors file from a header and its data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

fn f32_tensor(name: &str, values: &[f32]) -> Vec<u8> {
    let n = values.len();
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[0,{}]}}}}"#, 4 * n);
    file(&header, bytemuck::cast_slice(values))
}

/// A folder with an empty config and these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn values(model: &ModelFolder, name: &str) -> Vec<f32> {
    let tensors = model.tensors();
    let recipe = tensors.get(name).unwrap();
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out
}

fn names(path: &Path) -> Vec<String> {
    ModelFolder::open(path).unwrap().tensors().iter().map(|(n, _)| n.to_string()).collect()
}

#[track_caller]
fn refused(files: &[(&str, &[u8])], words: &[&str]) {
    let dir = folder(files);
    let message = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

const MODEL: &str = "model.safetensors";

#[track_caller]
fn header_refused(header: &str, data: usize, words: &[&str]) {
    refused(&[(MODEL, &file(header, &vec![0; data]))], words);
}

#[test]
fn shards_without_an_index_are_read_in_file_order_and_by_name_within() {
    let header =
        r#"{"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let first = file(header, &[7, 9]);
    let dir = folder(&[
        ("model-00002-of-00002.safetensors", &f32_tensor("a", &[1.5, -2.0])),
        ("model-00001-of-00002.safetensors", &first),
        ("consolidated.safetensors", b"not looked at"),
    ]);
    assert_eq!(names(dir.path()), ["b", "z", "a"]);
    let model = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(values(&model, "a"), [1.5, -2.0]);
    assert_eq!(values(&model, "z"), [7.0]);
    assert_eq!(values(&model, "b"), [9.0]);
}

#[test]
fn an_index_decides_which_shards_belong_to_the_model() {
    let dir = folder(&[
        ("model.safetensors.index.json", br#"{"weight_map": {"a": "part.safetensors"}}"#),
        ("part.safetensors", &f32_tensor("a", &[1.0])),
        ("model-old.safetensors", &f32_tensor("b", &[1.0])),
    ]);
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn the_fixture_opens_and_a_window_equals_the_crop_of_its_rows() {
    let model = ModelFolder::open("fixtures/shakespeare-llama").unwrap();
    let tensors = model.tensors();
    let mut scratch = Scratch::default();
    for (_, recipe) in tensors.iter().filter(|(_, r)| r.shape().ndim() == 2) {
        let (rows, cols) = (recipe.shape().rows(), recipe.shape().row_len());
        let mut whole = vec![0.0; (rows * cols) as usize];
        recipe.rows(0..rows, &mut whole, &mut scratch).unwrap();
        let transposed = recipe.clone().transposed().unwrap();
        let mut turned = vec![0.0; (3 * rows) as usize];
        transposed.rows(5..8, &mut turned, &mut scratch).unwrap();
        for (i, x) in turned.iter().enumerate() {
            let (c, r) = (5 + i / rows as usize, i % rows as usize);
            assert_eq!(x.to_bits(), whole[r * cols as usize + c].to_bits());
        }
    }
    assert!(model.size_bytes() > 0 && model.file("tokenizer.json").is_some());
}

#[test]
fn overlapping_ranges_are_refused() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    header_refused(header, 6, &["tensor b", "overlaps", "a"]);
}

#[test]
fn a_hole_between_ranges_is_refused() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}}"#;
    header_refused(header, 10, &["tensor b", "2 unclaimed bytes"]);
    header_refused(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 9, &["5 unclaimed bytes"]);
}

#[test]
fn a_shape_that_does_not_fit_its_range_is_refused() {
    header_refused(r#"{"a":{"dtype":"F16","shape":[3,2],"data_offsets":[0,10]}}"#, 10, &["tensor a", "needs 12", "10"]);
    let huge = r#"{"a":{"dtype":"F16","shape":[9223372036854775807,4],"data_offsets":[0,10]}}"#;
    header_refused(huge, 10, &["tensor a", "overflows"]);
    header_refused(r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[4,2]}}"#, 4, &["tensor a", "before it starts"]);
}

#[test]
fn a_truncated_file_says_how_much_is_missing() {
    header_refused(r#"{"a":{"dtype":"U8","shape":[400],"data_offsets":[0,400]}}"#, 9, &["truncated", "400"]);
    refused(&[(MODEL, &file(r#"{"a":{}}"#, &[])[..12])], &["truncated"]);
    refused(&[(MODEL, &[1, 2, 3])], &["truncated", MODEL]);
}

#[test]
fn a_name_twice_an_unknown_type_and_bad_json_are_refused() {
    let t = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    header_refused(&format!("{{{t},{t}}}"), 4, &["tensor a occurs twice"]);
    header_refused(r#"{"a":{"dtype":"Q9","shape":[4],"data_offsets":[0,4]}}"#, 4, &["tensor a", "Q9"]);
    header_refused(r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, 8, &["tensor a", "C64", "bf16"]);
    header_refused("{\"a\":", 0, &["not valid"]);
    header_refused("[]", 0, &["not valid"]);
}

#[test]
fn what_is_no_weight_file_is_recognised() {
    refused(&[(MODEL, b"")], &["empty"]);
    refused(
        &[(MODEL, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")],
        &["Git LFS", "git lfs pull"],
    );
    refused(&[(MODEL, b"<!DOCTYPE html><html><body>Sign in</body></html>")], &["HTML"]);
    refused(&[(MODEL, b"Entry not found")], &["error message"]);
    refused(&[(MODEL, b"just some words that are no weights")], &["text"]);
    refused(&[(MODEL, &[0xFF; 64])], &["not a safetensors file"]);
}

#[test]
fn a_missing_shard_is_named() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let a = f32_tensor("a", &[1.0]);
    let named = ("model.safetensors.index.json", &index[..]);
    refused(&[named, ("model-1.safetensors", &a)], &["model-2.safetensors", "missing"]);
    refused(&[("model-00001-of-00002.safetensors", &a)], &["model-00002-of-00002.safetensors", "missing"]);
    let c = f32_tensor("c", &[1.0]);
    refused(&[named, ("model-1.safetensors", &a), ("model-2.safetensors", &c)], &["tensor b", "in no shard"]);
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let index = br#"{"weight_map": {"a": "m.safetensors"}}"#;
    let header =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let named = ("model.safetensors.index.json", &index[..]);
    refused(&[named, ("m.safetensors", &file(header, &[0; 2]))], &["tensor b", "not in the index"]);
    refused(
        &[("model.safetensors.index.json", br#"{"weight_map": {"a": "../m.safetensors"}}"#)],
        &["not a file of this folder"],
    );
    refused(&[("model.safetensors.index.json", b"{}")], &["no weight_map"]);
}

#[test]
fn one_name_in_two_shards_must_have_one_shape() {
    let (a, longer) = (f32_tensor("a", &[1.0]), f32_tensor("a", &[1.0, 2.0]));
    refused(&[("model-a.safetensors", &a), ("model-b.safetensors", &longer)], &["tensor a", "[1]", "[2]"]);
    let again = f32_tensor("a", &[5.0]);
    let dir = folder(&[("model-a.safetensors", &a), ("model-b.safetensors", &again)]);
    assert_eq!(values(&ModelFolder::open(dir.path()).unwrap(), "a"), [5.0]);
}

#[test]
fn folders_without_a_model_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ModelFolder::open(dir.path()).unwrap_err().to_string().contains("no config.json"));
    refused(&[], &["no weights", "model*.safetensors"]);
    refused(&[("consolidated.safetensors", b"x")], &["Mistral"]);
    let dir = folder(&[]);
    fs::write(dir.path().join("config.json"), "{\"a\": 1,}").unwrap();
    assert!(ModelFolder::open(dir.path()).unwrap_err().to_string().contains("config.json"));
}
