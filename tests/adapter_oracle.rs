//! Every form of adapter against PEFT's own merge (PEFT 0.21.2, torch 2.15). `tests/oracle/adapters.py` makes the
//! cases: with `--pack` the small ones in fixtures/adapters/, which always run, otherwise the large set, whose
//! folder TO_GGUF_ADAPTER_CASES names; without it that test says that it did not run.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use to_gguf::adapter::{Adapter, BaseInfo, MergeDtype, MergeOptions, apply};
use to_gguf::recipe::{Recipe, Scratch};
use to_gguf::source::{ModelFolder, open_weight_file};

/// Largest difference between ours and the reference, in units of the tensor's largest value.
const TOLERANCE: f64 = 1e-6;

/// Share of the elements of changed tensors that may differ in a 16-bit merge: sums of another order fall on the other side of a
/// rounding boundary now and then.
const ROUNDED_DIFFERENTLY: f64 = 1e-3;

fn values(recipe: &Recipe) -> Vec<f32> {
    let mut out = vec![0.0; recipe.shape().elements() as usize];
    // Rows in uneven pieces, so that a form that depends on the chunk would show.
    let (rows, cols) = (recipe.shape().rows(), recipe.shape().row_len());
    let mut scratch = Scratch::default();
    let mut start = 0;
    for step in (0..).map(|i| 1 + i % 7) {
        if start >= rows {
            break;
        }
        let end = rows.min(start + step);
        let piece = &mut out[(start * cols) as usize..(end * cols) as usize];
        recipe.rows(start..end, piece, &mut scratch).unwrap_or_else(|e| panic!("{e}"));
        start = end;
    }
    out
}

/// The worst tensor of a case, or what went wrong.
fn run(case: &Path) -> Result<(f64, String, usize), String> {
    let text = std::fs::read_to_string(case.join("case.json")).map_err(|e| e.to_string())?;
    let settings: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let dtype = match settings["dtype"].as_str() {
        Some("bf16") => MergeDtype::Bf16,
        Some("f16") => MergeDtype::F16,
        _ => MergeDtype::F32,
    };
    let mut adapters = Vec::new();
    for entry in settings["adapters"].as_array().into_iter().flatten() {
        let folder = case.join(entry[0].as_str().unwrap_or_default());
        let adapter = Adapter::open(&folder, None).map_err(|e| e.to_string())?;
        adapters.push((adapter, entry[1].as_f64().unwrap_or(1.0) as f32));
    }
    let model = ModelFolder::open(case.join("model")).map_err(|e| e.to_string())?;
    let reference = case.join("reference/model.safetensors");
    let mut reference = open_weight_file(&reference).map_err(|e| e.to_string())?;
    // A packed case holds what the merge changed; the rest must be as it was.
    for (name, recipe) in model.tensors().iter() {
        if !reference.contains(name) && settings["packed"] == true {
            reference.set(name, recipe.clone());
        }
    }
    let mut ours = model.tensors();
    let base = BaseInfo::new("model", model.config());
    let summary = apply(&adapters, &mut ours, &base, &MergeOptions { dtype }).map_err(|e| e.to_string())?;
    let mut worst = (0f64, String::new());
    let (mut compared, mut rounded, mut elements) = (0, 0, 0);
    let changed: HashSet<&str> = summary.changes.iter().map(|c| c.tensor.as_str()).collect();
    for (name, reference) in reference.iter() {
        let mine = ours.get(name).or_else(|| {
            let tied = name == "lm_head.weight";
            let embedding = ["model.embed_tokens.weight", "transformer.wte.weight"];
            embedding.iter().find_map(|e| ours.get(e)).filter(|_| tied)
        });
        let Some(mine) = mine else { return Err(format!("no {name}")) };
        if mine.shape() != reference.shape() {
            return Err(format!("{name}: ours is {}, the reference {}", mine.shape(), reference.shape()));
        }
        let (a, b) = (values(mine), values(reference));
        compared += 1;
        let error = if dtype == MergeDtype::F32 {
            let largest = b.iter().fold(0f64, |m, x| m.max(f64::from(x.abs()))).max(f64::MIN_POSITIVE);
            a.iter().zip(&b).fold(0f64, |m, (x, y)| m.max((f64::from(*x) - f64::from(*y)).abs())) / largest
        } else {
            let differ = a.iter().zip(&b).filter(|(x, y)| x.to_bits() != y.to_bits()).count();
            // A tied head has the embedding's name here.
            if changed.contains(name) || !ours.contains(name) {
                (rounded, elements) = (rounded + differ, elements + a.len());
            } else if differ > 0 {
                return Err(format!("{differ} elements of {name}, which no adapter changes"));
            }
            differ as f64 / a.len() as f64
        };
        if error > worst.0 || error.is_nan() {
            worst = (error, name.to_string());
        }
    }
    if dtype != MergeDtype::F32 {
        worst = (rounded as f64 / elements.max(1) as f64, format!("{rounded} of {elements} elements"));
    }
    if summary.changes.is_empty() {
        return Err("nothing changed".into());
    }
    if let Some(name) = &summary.untied_head
        && !ours.contains(name)
    {
        return Err(format!("{name} was promised"));
    }
    let limit = if dtype == MergeDtype::F32 { TOLERANCE } else { ROUNDED_DIFFERENTLY };
    if worst.0 > limit || worst.0.is_nan() {
        return Err(format!("{:.2e} in {}", worst.0, worst.1));
    }
    Ok((worst.0, worst.1, compared))
}

#[test]
fn every_form_equals_the_merge_of_peft() {
    let Ok(folder) = std::env::var("TO_GGUF_ADAPTER_CASES") else {
        eprintln!("skipped: TO_GGUF_ADAPTER_CASES does not name the cases that tests/oracle/adapters.py makes");
        return;
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    report(
        entries
            .filter_map(Result::ok)
            .filter(|e| e.path().join("case.json").is_file())
            .map(|e| (e.file_name().to_string_lossy().into_owned(), run(&e.path())))
            .collect(),
    );
}

/// Spreads a packed case into the files that it was made of.
fn unpack(file: &Path, folder: &Path) {
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    for (path, text) in header.metadata().as_ref().unwrap() {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let packed = text.replacen('{', "{\"packed\": true, ", 1);
        std::fs::write(&path, if path.ends_with("case.json") { &packed } else { text }).unwrap();
    }
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts: BTreeMap<&str, Vec<(&str, TensorView)>> = BTreeMap::new();
    let tensors: Vec<(String, TensorView)> = all.tensors();
    for (name, tensor) in &tensors {
        let (part, name) = name.split_once('/').unwrap();
        std::fs::create_dir_all(folder.join(part)).unwrap();
        if name.ends_with(".bin") {
            std::fs::write(folder.join(part).join(name), tensor.data()).unwrap();
        } else {
            parts.entry(part).or_default().push((name, tensor.clone()));
        }
    }
    for (part, tensors) in parts {
        let name = if part.starts_with("adapter") { "adapter_model.safetensors" } else { "model.safetensors" };
        std::fs::write(folder.join(part).join(name), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }
}

#[test]
fn packed_cases_equal_the_merge_of_peft() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters");
    let mut results = BTreeMap::new();
    for entry in std::fs::read_dir(&fixtures).unwrap().filter_map(Result::ok) {
        let folder = tempfile::tempdir().unwrap();
        unpack(&entry.path(), folder.path());
        results.insert(entry.file_name().to_string_lossy().into_owned(), run(folder.path()));
    }
    assert!(results.len() >= 44, "only {} cases", results.len());
    report(results);
}

/// Prints a line for each case; fails if any did.
fn report(results: BTreeMap<String, Result<(f64, String, usize), String>>) {
    let mut failed = 0;
    for (name, result) in &results {
        match result {
            Ok((error, tensor, compared)) => {
                eprintln!("{name:32} ok      {error:.1e} of {compared} tensors ({tensor})")
            }
            Err(cause) => {
                failed += 1;
                eprintln!("{name:32} FAILED  {cause}");
            }
        }
    }
    eprintln!("{} of {} cases agree with PEFT", results.len() - failed, results.len());
    assert!(failed == 0 && !results.is_empty());
}
