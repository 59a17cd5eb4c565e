//! PyTorch files: values equal to PyTorch's, and what is refused. Fixtures by `tests/oracle/torch_files.py`.

use std::fs;
use std::path::Path;

use to_gguf::recipe::Scratch;
use to_gguf::source::{ModelFolder, TensorSet, open_weight_file};

fn values(tensors: &TensorSet, name: &str) -> Vec<u32> {
    let recipe = tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    recipe.rows(0..recipe.shape().rows(), &mut out, &mut Scratch::default()).unwrap();
    out.into_iter().map(f32::to_bits).collect()
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter_model.bin");
    fs::write(&path, bytes).unwrap();
    let message = open_weight_file(&path).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    for word in words.iter().chain(&["adapter_model.bin"]) {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new("fixtures/torch").join(name)).unwrap()
}

#[test]
fn both_forms_and_a_wrapped_checkpoint_give_the_values_of_pytorch() {
    let expected = open_weight_file(Path::new("fixtures/torch/expected.safetensors")).unwrap();
    for file in ["zip.bin", "legacy.bin", "checkpoint.pth"] {
        let tensors = open_weight_file(&Path::new("fixtures/torch").join(file)).unwrap();
        assert_eq!(tensors.len(), expected.len(), "{file}");
        assert_eq!(tensors.iter().next().unwrap().0, "zz.f32", "{file}: the order is that of the file");
        for (name, recipe) in expected.iter() {
            assert_eq!(tensors.get(name).unwrap().shape(), recipe.shape(), "{file}: {name}");
            assert_eq!(values(&tensors, name), values(&expected, name), "{file}: {name}");
        }
    }
}

#[test]
fn rows_and_windows_of_views_equal_the_whole() {
    let tensors = open_weight_file(Path::new("fixtures/torch/zip.bin")).unwrap();
    for name in ["view", "transposed", "step", "expanded", "permuted", "far"] {
        let recipe = tensors.get(name).unwrap();
        let (rows, cols) = (recipe.shape().rows(), recipe.shape().row_len());
        let whole = values(&tensors, name);
        for row in 0..rows {
            let mut out = vec![0.0; cols as usize];
            recipe.rows(row..row + 1, &mut out, &mut Scratch::default()).unwrap();
            let bits: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
            assert_eq!(bits, whole[(row * cols) as usize..((row + 1) * cols) as usize], "{name} row {row}");
        }
        let columns = recipe.clone().columns(1, 1).unwrap();
        let mut out = vec![0.0; rows as usize];
        columns.rows(0..rows, &mut out, &mut Scratch::default()).unwrap();
        let second = whole.iter().skip(1).step_by(cols as usize);
        assert!(out.iter().map(|x| x.to_bits()).eq(second.copied()), "{name}");
    }
}

#[test]
fn a_model_folder_of_pytorch_files_knows_its_aliases() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::copy("fixtures/torch/zip.bin", dir.path().join("pytorch_model.bin")).unwrap();
    let model = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(model.tensors().len(), 18);
    assert!(model.aliases().is_empty(), "{:?}", model.aliases());
}

#[test]
fn code_is_refused_by_name_and_never_run() {
    refused(&fixture("code.bin"), &["print", "not a tensor or a plain container", "safetensors"]);
}

#[test]
fn truncated_files_are_refused() {
    let zip = fixture("zip.bin");
    refused(&zip[..zip.len() - 700], &["damaged"]);
    let legacy = fixture("legacy.bin");
    refused(&legacy[..legacy.len() - 10], &["truncated"]);
    refused(&legacy[..300], &["damaged"]);
}

#[test]
fn other_files_are_refused() {
    refused(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x04evil.", &["did not write"]);
    let mut tar = vec![0u8; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    refused(&tar, &["tar"]);
    refused(b"PK\x03\x04 and nothing else", &["damaged"]);
}

#[test]
fn a_storage_that_ends_too_early_names_the_tensor() {
    // The offset of a view, raised beyond its storage: BININT1 10 before the size (3, 5) of "view".
    let mut zip = fixture("zip.bin");
    let at = zip.windows(6).position(|w| w == [b'K', 10, b'K', 3, b'K', 5]).unwrap();
    zip[at + 1] = 60;
    refused(&zip, &["tensor view", "beyond its storage"]);
}

/// Random files of `tests/oracle/torch_wide.py`: those with a sibling in safetensors have its values, cut off anywhere they
/// are refused, and so are those made to do harm.
#[test]
fn random_files_have_the_values_of_pytorch_and_hostile_ones_are_refused() {
    let Some(folder) = std::env::var_os("TO_GGUF_TORCH_CASES") else {
        println!("skipped: TO_GGUF_TORCH_CASES is not set to a folder that tests/oracle/torch_wide.py wrote");
        return;
    };
    let mut wrong = Vec::new();
    let mut counts = [0; 3];
    for file in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
        let expected = file.with_extension("safetensors");
        if file.is_dir() || file == expected {
            continue;
        }
        let expected = open_weight_file(&expected).unwrap();
        let tensors = match open_weight_file(&file) {
            Ok(tensors) => tensors,
            Err(e) => {
                wrong.push(e.to_string());
                continue;
            }
        };
        let same = |(name, recipe): (&str, &to_gguf::recipe::Recipe)| {
            tensors.get(name).is_some_and(|t| t.shape() == recipe.shape())
                && values(&tensors, name) == values(&expected, name)
        };
        if tensors.len() != expected.len() || !expected.iter().all(same) {
            wrong.push(format!("{}: other names, shapes or values", file.display()));
        }
        counts[0] += 1;
        let bytes = fs::read(&file).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cut = dir.path().join("cut.bin");
        for i in 0..40 {
            fs::write(&cut, &bytes[..bytes.len() * i / 40]).unwrap();
            counts[1] += 1;
            match open_weight_file(&cut) {
                Ok(_) => wrong.push(format!("{} opens, cut off at {i}/40", file.display())),
                Err(e) if e.to_string().contains('\n') => wrong.push(e.to_string()),
                Err(_) => {}
            }
        }
    }
    for file in fs::read_dir(Path::new(&folder).join("refused")).unwrap().map(|e| e.unwrap().path()) {
        counts[2] += 1;
        match open_weight_file(&file) {
            Ok(tensors) if !tensors.is_empty() => wrong.push(format!("{} opens", file.display())),
            Err(e) if e.to_string().contains('\n') => wrong.push(e.to_string()),
            _ => {}
        }
    }
    println!("{} files equal, {} cuts and {} hostile files refused", counts[0], counts[1], counts[2]);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
