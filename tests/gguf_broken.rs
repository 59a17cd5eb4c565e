//! What `inspect` and `diff` do with files that are broken, or are no GGUF at all: one line that names the file, exit
//! status 1, nothing on stdout; never a panic.

mod common;

use std::path::{Path, PathBuf};

use common::{Run, to_gguf};
use tempfile::TempDir;
use to_gguf::gguf::{DiffError, diff, inspect};

/// A key or a tensor as bytes: its name with its length before it, and what follows.
fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u64).to_le_bytes(), name.as_bytes(), rest].concat()
}

/// A tensor's description; `ne` fastest first.
fn tensor(name: &str, ne: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> = ne.iter().flat_map(|n| n.to_le_bytes()).collect();
    let (count, kind) = ((ne.len() as u32).to_le_bytes(), kind.to_le_bytes());
    named(name, &[&count, &dims[..], &kind, &offset.to_le_bytes()].concat())
}

/// A file of these keys and tensors, with 128 bytes of data.
fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    let counts = [(tensors.len() as u64).to_le_bytes(), (keys.len() as u64).to_le_bytes()].concat();
    let mut bytes = [b"GGUF\x03\0\0\0", &counts[..], &keys.concat(), &tensors.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(32) + 128, 7);
    bytes
}

fn arch() -> Vec<u8> {
    named("general.architecture", b"\x08\0\0\0\x05\0\0\0\0\0\0\0llama")
}

fn good() -> Vec<u8> {
    let numbers = named("numbers", b"\x09\0\0\0\x06\0\0\0\x02\0\0\0\0\0\0\0\0\0\x80\x3f\0\0\xc0\x7f");
    file(&[arch(), numbers], &[tensor("a", &[8, 2], 0, 0), tensor("b", &[32], 8, 64)])
}

/// The sample with bytes from `at` on replaced.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = good();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn written(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[track_caller]
fn refused(run: &Run, name: &str, words: &str) {
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (1, "", 1), "{name}: {}", run.stderr);
    let line = run.error_line();
    assert!(line.contains(name) && line.contains(words), "{words:?} is not in: {line}");
}

#[test]
fn every_kind_of_damage_is_one_line_from_inspect_and_from_diff() {
    let dir = TempDir::new().unwrap();
    written(&dir, "good.gguf", &good());
    std::fs::create_dir(dir.path().join("folder.gguf")).unwrap();
    let huge = [0xff; 8];
    let one = |tensors: &[Vec<u8>]| file(&[arch()], tensors);
    let keys = |keys: &[Vec<u8>]| file(keys, &[tensor("a", &[8], 0, 0)]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.gguf", vec![], "is empty"),
        ("short.gguf", b"GG".to_vec(), "not a GGUF file (it begins with [47, 47])"),
        ("magic.gguf", b"GGUF".to_vec(), "truncated: the version"),
        ("safetensors.gguf", b"\x10\0\0\0\0\0\0\0{}".to_vec(), "not a GGUF file"),
        ("ggml.gguf", b"lmgg\x01\0\0\0".to_vec(), "not a GGUF file"),
        ("html.gguf", b"<!DOCTYPE html>".to_vec(), "not a GGUF file"),
        ("lower.gguf", with(0, b"gguf"), "not a GGUF file"),
        ("big.gguf", with(4, b"\0\0\0\x03"), "big-endian"),
        ("v1.gguf", with(4, b"\x01"), "version 1 is not supported"),
        ("v4.gguf", with(4, b"\x04"), "version 4 is not supported"),
        ("tensors.gguf", with(8, &huge), "the number of tensors is 18446744073709551615"),
        ("keys.gguf", with(16, &huge), "the number of keys is 18446744073709551615"),
        ("more-tensors.gguf", with(8, b"\x03"), "more.gguf"),
        ("key-length.gguf", with(24, &huge), "the length of key number 0"),
        ("key-type.gguf", keys(&[named("k", b"\x0d\0\0\0\0\0\0\0\0\0\0\0")]), "unknown value type 13"),
        ("key-twice.gguf", keys(&[arch(), arch()]), "'general.architecture' stands there twice"),
        ("key-empty.gguf", keys(&[named("", b"\0\0\0\0\0")]), "key number 0 is empty"),
        ("array.gguf", keys(&[named("k", &[b"\x09\0\0\0\x06\0\0\0", &huge[..]].concat())]), "the array of key 'k'"),
        ("array-type.gguf", keys(&[named("k", b"\x09\0\0\0\x0e\0\0\0\x01\0\0\0\0\0\0\0\0")]), "unknown value type 14"),
        ("align.gguf", keys(&[named("general.alignment", b"\x04\0\0\0\x30\0\0\0")]), "power of two"),
        ("align-type.gguf", keys(&[named("general.alignment", b"\x0a\0\0\0\x20\0\0\0\0\0\0\0")]), "power of two"),
        ("dims.gguf", one(&[tensor("a", &[1; 5], 0, 0)]), "5 dimensions"),
        ("type.gguf", one(&[tensor("a", &[8], 4, 0)]), "type number 4, which ggml has removed"),
        ("type-new.gguf", one(&[tensor("a", &[8], 1000, 0)]), "type number 1000"),
        ("ragged.gguf", one(&[tensor("a", &[33], 8, 0)]), "rows that are not whole blocks of 32"),
        ("overflow.gguf", one(&[tensor("a", &[1 << 40, 1 << 40], 0, 0)]), "overflows 64 bits"),
        ("zero-overflow.gguf", one(&[tensor("a", &[0, 1 << 40, 1 << 40], 0, 0)]), "overflows 64 bits"),
        ("long.gguf", one(&[tensor("a", &[1 << 40], 0, 0)]), "truncated: tensor 'a' needs"),
        ("beyond.gguf", one(&[tensor("a", &[8], 0, 1 << 40)]), "truncated: tensor 'a' needs"),
        ("wraps.gguf", one(&[tensor("a", &[8], 0, u64::MAX - 31)]), "tensor 'a'"),
        ("misaligned.gguf", one(&[tensor("a", &[8], 0, 4)]), "begins at 4, which is not a multiple of 32"),
        ("overlap.gguf", one(&[tensor("a", &[16], 0, 0), tensor("b", &[8], 0, 32)]), "'a' and 'b' overlap"),
        ("same.gguf", one(&[tensor("a", &[8], 0, 0), tensor("b", &[8], 0, 0)]), "overlap"),
        ("twice.gguf", one(&[tensor("a", &[8], 0, 0), tensor("a", &[8], 0, 32)]), "the tensor 'a' is there twice"),
        ("part.gguf", keys(&[named("split.count", b"\x02\0\0\0\x02\0")]), "rename the parts"),
    ];
    let mut files: Vec<(&str, &str)> = vec![("folder.gguf", "directory"), ("missing.gguf", "No such file")];
    for (name, bytes, words) in &cases {
        written(&dir, name, bytes);
        files.push((name, if *words == "more.gguf" { "" } else { words }));
    }
    for (name, words) in files {
        refused(&to_gguf(dir.path(), ["inspect", name]), name, words);
        refused(&to_gguf(dir.path(), ["inspect", "--json", name]), name, words);
        refused(&to_gguf(dir.path(), ["diff", "good.gguf", name]), name, words);
        refused(&to_gguf(dir.path(), ["diff", "--json", name, "good.gguf"]), name, words);
    }
    assert_eq!(to_gguf(dir.path(), ["inspect", "good.gguf"]).code, 0);
    assert_eq!(to_gguf(dir.path(), ["diff", "good.gguf", "good.gguf"]).code, 0);
}

#[test]
fn a_file_cut_anywhere_is_refused_and_a_byte_changed_anywhere_harms_nobody() {
    let dir = TempDir::new().unwrap();
    let whole = good();
    let a = written(&dir, "a.gguf", &whole);
    for len in 0..whole.len() - 30 {
        let cut = written(&dir, "cut.gguf", &whole[..len]);
        let words = inspect(&cut, true).expect_err("it is cut").to_string();
        assert!(words.contains("cut.gguf: ") && !words.contains('\n'), "{len}: {words}");
        assert!(matches!(diff(&a, &cut), Err(DiffError::Gguf(_))), "{len}");
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let changed = written(&dir, "changed.gguf", &bytes);
            if let Ok(found) = diff(&a, &changed) {
                assert_eq!(found.identical, bytes == whole, "byte {at} is {value}");
                serde_json::to_string(&found).unwrap();
                serde_json::to_string(&inspect(&changed, true).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn names_from_a_file_cannot_write_to_the_terminal() {
    let dir = TempDir::new().unwrap();
    let evil = "x\u{1b}[2J\nerror: no";
    let keys = [named("general.architecture", b"\x08\0\0\0\x04\0\0\0\0\0\0\0a\x1b\nb"), named(evil, b"\0\0\0\0\x01")];
    written(&dir, "evil.gguf", &file(&keys, &[tensor(evil, &[8], 0, 0)]));
    written(&dir, "ragged.gguf", &file(&[], &[tensor(evil, &[33], 8, 0)]));
    written(&dir, "good.gguf", &good());
    for args in [vec!["inspect", "evil.gguf"], vec!["diff", "evil.gguf", "good.gguf"], vec!["inspect", "ragged.gguf"]] {
        let run = to_gguf(dir.path(), &args);
        assert!(!run.stdout.contains('\u{1b}') && !run.stdout.contains("\nerror"), "{args:?}: {}", run.stdout);
        assert!(!run.stderr.contains('\u{1b}') && run.stderr.lines().count() <= 1, "{args:?}: {}", run.stderr);
    }
}

#[test]
fn a_diff_of_two_files_names_every_way_in_which_they_differ() {
    let dir = TempDir::new().unwrap();
    written(&dir, "good.gguf", &good());
    let aligned = named("general.alignment", b"\x04\0\0\0\x40\0\0\0");
    let (a, b) = (tensor("a", &[8, 2], 0, 0), tensor("b", &[32], 8, 64));
    let numbers = || named("numbers", b"\x09\0\0\0\x06\0\0\0\x02\0\0\0\0\0\0\0\0\0\x80\x3f\0\0\xc0\x7f");
    let mut tail = good();
    tail.extend([0; 32]);
    let mut nan = good();
    let end = nan.len();
    nan[end - 128..end - 124].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut wider = file(&[arch(), numbers(), aligned], &[a.clone(), b.clone()]);
    wider.extend([0; 32]);
    for (bytes, words) in [
        (file(&[numbers(), arch()], &[a.clone(), b.clone()]), "order  the keys stand in another order"),
        (file(&[arch()], &[a.clone(), b.clone()]), "key    numbers: arr[f32] [1.0,\"NaN\"] | missing"),
        (file(&[arch(), numbers()], &[b.clone(), a.clone()]), "order  the tensors stand in another order"),
        (file(&[arch(), numbers()], std::slice::from_ref(&a)), "tensor b: Q8_0 [32] | missing"),
        (file(&[arch(), numbers()], &[tensor("a", &[16], 0, 0), b.clone()]), "tensor a: F32 [8, 2] | F32 [16]"),
        (
            file(&[arch(), numbers()], &[tensor("a", &[8, 2], 1, 0), b.clone()]),
            "tensor a: F32 [8, 2] | F16 [8, 2]  rmse",
        ),
        (wider, "layout alignment: 32 and 64"),
        (with(4, b"\x02"), "layout format version: 3 and 2"),
        (tail, "layout file size: "),
        (nan, "tensor a: F32 [8, 2]  1 of 16 blocks differ, the first at 0  rmse NaN"),
    ] {
        written(&dir, "other.gguf", &bytes);
        let run = to_gguf(dir.path(), [Path::new("diff"), Path::new("good.gguf"), Path::new("other.gguf")]);
        assert_eq!((run.code, run.stderr.as_str()), (1, ""), "{words}");
        assert!(run.stdout.contains(words), "{words:?} is not in\n{}", run.stdout);
        let json = to_gguf(dir.path(), ["diff", "--json", "good.gguf", "other.gguf"]);
        let json_says: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!((json.code, &json_says["identical"]), (1, &serde_json::Value::Bool(false)));
    }
}

#[test]
fn an_empty_tensor_with_countless_rows_takes_no_memory() {
    let dir = TempDir::new().unwrap();
    let numbers = ["block_count", "context_length", "embedding_length"]
        .map(|key| named(&format!("llama.{key}"), b"\x04\0\0\0\x20\0\0\0"));
    let keys = [&[arch()][..], &numbers].concat();
    let tensors = [tensor("blk.0.attn_q.weight", &[0, 1 << 60], 0, 0), tensor("token_embd.weight", &[32], 0, 0)];
    written(&dir, "rows.gguf", &file(&keys, &tensors));
    for quant in ["copy", "q8_0", "f32"] {
        let run = to_gguf(dir.path(), ["rows.gguf", "--quant", quant, "-o", "out.gguf", "--force"]);
        assert_eq!(run.code, 0, "{quant}: {}", run.stderr);
        assert!(std::fs::metadata(dir.path().join("out.gguf")).unwrap().len() < 1024);
    }
}
