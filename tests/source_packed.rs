//! Packed models decode to what the libraries that wrote them decode, bit for bit.
//!
//! The cases in `fixtures/packed` were made by `tests/oracle/packed_sources.py`; more are read from the folder that
//! `TO_GGUF_PACKED_CASES` names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use to_gguf::recipe::{Recipe, Scratch};
use to_gguf::source::{ModelFolder, open_weight_file};

fn decode(recipe: &Recipe, step: u64) -> Vec<f32> {
    let (rows, len) = (recipe.shape().rows(), recipe.shape().row_len() as usize);
    let mut out = vec![0.0; rows as usize * len];
    let mut scratch = Scratch::default();
    let mut start = 0;
    for part in out.chunks_mut(step as usize * len) {
        let end = start + (part.len() / len) as u64;
        recipe.rows(start..end, part, &mut scratch).unwrap();
        start = end;
    }
    out
}

fn check(folder: &Path) -> Vec<String> {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let model = match ModelFolder::open(folder) {
        Ok(m) => m,
        Err(e) => return vec![format!("{name}: {e}")],
    };
    let tensors = model.tensors();
    let told: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let told = told.as_object().unwrap();
    let full = folder.join("expected.safetensors");
    let full = full.is_file().then(|| open_weight_file(&full).unwrap());
    let mut wrong = Vec::new();
    for (tensor, _) in tensors.iter().filter(|(n, _)| !told.contains_key(*n)) {
        wrong.push(format!("{name}: {tensor} is not expected"));
    }
    for (tensor, told) in told {
        let Some(recipe) = tensors.get(tensor) else {
            wrong.push(format!("{name}: {tensor} is missing"));
            continue;
        };
        let shape: Vec<u64> = told["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        if recipe.shape().dims() != shape {
            wrong.push(format!("{name}: {tensor} has shape {}, expected {shape:?}", recipe.shape()));
            continue;
        }
        let values = decode(recipe, recipe.shape().rows().max(1));
        // Rows cut into any ranges equal the rows in one piece.
        for step in [1, 3] {
            let cut = decode(recipe, step);
            if cut.iter().zip(&values).any(|(a, b)| a.to_bits() != b.to_bits()) {
                wrong.push(format!("{name}: {tensor} decodes otherwise in pieces of {step} rows"));
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        if told["sha256"] == digest.as_str() {
            continue;
        }
        let mut detail = String::new();
        if let Some(full) = &full {
            let wanted = decode(full.get(tensor).unwrap(), 1);
            let differs = |(_, (a, b)): &(usize, (&f32, &f32))| a.to_bits() != b.to_bits();
            let bad = values.iter().zip(&wanted).enumerate().filter(differs).count();
            let first = values.iter().zip(&wanted).enumerate().find(differs);
            detail = format!(": {bad} of {} differ, first (ours, theirs) {first:?}", values.len());
        }
        wrong.push(format!("{name}: {tensor} has other values{detail}"));
    }
    wrong
}

#[test]
fn packed_weights_equal_what_their_libraries_decode() {
    let mut folders = vec![PathBuf::from("fixtures/packed")];
    folders.extend(std::env::var_os("TO_GGUF_PACKED_CASES").map(PathBuf::from));
    let mut count = 0;
    let mut wrong = Vec::new();
    for folder in folders {
        let mut cases: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
        cases.sort();
        for case in cases.into_iter().filter(|c| c.is_dir()) {
            count += 1;
            wrong.extend(check(&case));
        }
    }
    println!("{count} packed models checked");
    assert!(count >= 20, "only {count} cases were found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
