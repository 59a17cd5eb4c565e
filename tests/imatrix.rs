//! What is promised about importance matrices: both formats, per-expert means, the keys that llama-quantize writes,
//! and clear refusals.

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use to_gguf::gguf::{Layout, Metadata, TensorInfo, Value};
use to_gguf::quant::{
    GgmlType, Imatrix, ImatrixError, ImatrixFilter, Importance, QuantName, QuantOptions, QuantPlan, QuantPlanError,
    SourceTensor,
};
use to_gguf::shape::Shape;

/// A GGUF imatrix with F32 tensors given as (name, dimensions, values).
fn gguf(tensors: &[(&str, [u64; 2], &[f32])]) -> Vec<u8> {
    let mut m = Metadata::new();
    m.set("general.type", Value::string("imatrix"));
    m.set("imatrix.datasets", Value::strings(["wiki.txt", "code.txt"]));
    m.set("imatrix.chunk_count", Value::U32(7));
    m.set("imatrix.chunk_size", Value::U32(512));
    let infos: Vec<_> = tensors
        .iter()
        .map(|(name, dims, _)| TensorInfo {
            name: (*name).into(),
            shape: Shape::new(dims.to_vec()).unwrap(),
            kind: GgmlType::F32,
        })
        .collect();
    let layout = Layout::new(&m, &infos).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.file_size() as usize, 0);
    for (i, (_, _, values)) in tensors.iter().enumerate() {
        let (at, len) = layout.place(i);
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes[at as usize..(at + len) as usize].copy_from_slice(&data);
    }
    bytes
}

/// A `.dat` imatrix with entries (name, calls, values) and what follows them.
fn dat(entries: &[(&str, i32, &[f32])], tail: &[u8]) -> Vec<u8> {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, calls, values) in entries {
        out.extend_from_slice(&(name.len() as i32).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&calls.to_le_bytes());
        out.extend_from_slice(&(values.len() as i32).to_le_bytes());
        values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
    }
    out.extend_from_slice(tail);
    out
}

fn written(dir: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join("x.imatrix");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn open(bytes: &[u8], filter: &ImatrixFilter) -> Result<Imatrix, ImatrixError> {
    let dir = TempDir::new().unwrap();
    Imatrix::open(written(&dir, bytes), filter)
}

fn refusal(bytes: &[u8]) -> String {
    let said = open(bytes, &ImatrixFilter::All).expect_err("it opened").to_string();
    assert!(said.contains("; "), "no remedy in {said:?}");
    said.split_once("x.imatrix: ").expect("the file is not named").1.to_owned()
}

#[test]
fn a_gguf_matrix_has_the_mean_of_each_expert() {
    let bytes = gguf(&[
        ("a.weight.in_sum2", [3, 2], &[2.0, 4.0, 9.0, 9.0, 3.0, 6.0]),
        // Counts are rounded, and an expert that no token reached weighs all columns alike.
        ("a.weight.counts", [3, 1], &[2.2, 0.0, 2.5]),
    ]);
    let m = open(&bytes, &ImatrixFilter::All).unwrap();
    assert_eq!(m.len_for("a.weight"), Some(6));
    assert_eq!(m.weights_for("a.weight", 2, 0), Some(&[1.0, 2.0][..]));
    assert_eq!(m.weights_for("a.weight", 2, 1), Some(&[1.0, 1.0][..]));
    assert_eq!(m.weights_for("a.weight", 2, 2), Some(&[1.0, 2.0][..]));
    assert_eq!(m.weights_for("a.weight", 2, 3), None);
    assert_eq!(m.weights_for("b.weight", 2, 0), None);
}

#[test]
fn a_dat_matrix_is_divided_by_its_calls() {
    let tail = [&9i32.to_le_bytes()[..], &4i32.to_le_bytes(), b"wiki"].concat();
    let bytes = dat(&[("a", 2, &[2.0, 4.0]), ("b", 0, &[5.0])], &tail);
    let m = open(&bytes, &ImatrixFilter::All).unwrap();
    assert_eq!(m.weights_for("a", 2, 0), Some(&[1.0, 2.0][..]));
    assert_eq!(m.weights_for("b", 1, 0), Some(&[5.0][..]));
    let keys = m.keys();
    assert_eq!(
        keys[1..],
        [
            ("quantize.imatrix.dataset", Value::string("wiki")),
            ("quantize.imatrix.entries_count", Value::U32(2)),
            ("quantize.imatrix.chunks_count", Value::U32(9)),
        ]
    );
}

#[test]
fn the_first_dat_files_have_no_tail() {
    let m = open(&dat(&[("a", 1, &[1.0])], &[]), &ImatrixFilter::All).unwrap();
    assert_eq!(
        m.keys().iter().map(|k| k.0).collect::<Vec<_>>(),
        ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    );
}

#[test]
fn filters_match_parts_of_names() {
    let bytes = dat(&[("blk.0.attn_v.weight", 1, &[1.0]), ("blk.0.ffn_up.weight", 1, &[1.0])], &[]);
    let only = |f: ImatrixFilter| open(&bytes, &f).unwrap();
    let include = only(ImatrixFilter::Include(vec!["attn".into()]));
    assert!(include.len() == 1 && include.len_for("blk.0.attn_v.weight").is_some());
    let exclude = only(ImatrixFilter::Exclude(vec!["attn".into()]));
    assert!(exclude.len() == 1 && exclude.len_for("blk.0.ffn_up.weight").is_some());
    let typo = open(&bytes, &ImatrixFilter::Exclude(vec!["atn".into()]));
    assert!(matches!(typo, Err(ImatrixError::NoMatch { option: "--exclude-weights", .. })));
}

/// `fixtures/shakespeare.imatrix.gguf`, and what gguf-py reads of it.
#[test]
fn the_fixture_is_read_as_llama_quantize_reads_it() {
    let m = Imatrix::open("fixtures/shakespeare.imatrix.gguf", &ImatrixFilter::All).unwrap();
    assert_eq!(m.len(), 28);
    assert_eq!(m.len_for("blk.0.ffn_down.weight"), Some(768));
    assert_eq!(m.keys()[0], ("quantize.imatrix.file", Value::string("fixtures/shakespeare.imatrix.gguf")));
}

#[test]
fn damaged_matrices_are_refused_by_name() {
    let one = |name: &str| gguf(&[(name, [1, 1], &[1.0])]);
    let mut no_key = gguf(&[("a.in_sum2", [1, 1], &[1.0]), ("a.counts", [1, 1], &[1.0])]);
    let at = no_key.windows(18).position(|w| w == b"imatrix.chunk_size").unwrap();
    no_key[at] = b'I';
    for (bytes, words) in [
        (vec![], "truncated: the number of entries needs 4 bytes, and 0 are left"),
        (0i32.to_le_bytes().to_vec(), "not an importance matrix (the number of entries is 0)"),
        (b"PK\x03\x04 and so on".to_vec(), "not an importance matrix (the length of the name of entry 0 is"),
        (dat(&[("a", 1, &[])], &[]), "not an importance matrix (the number of values of 'a' is 0)"),
        (
            dat(&[("a", 1, &[1.0, 2.0])], &[])[..20].to_vec(),
            "truncated: the values of 'a' needs 8 bytes, and 3 are left",
        ),
        (dat(&[("a", 1, &[1.0])], &[1, 2]), "truncated: the number of chunks needs 4 bytes, and 2 are left"),
        (dat(&[("a", 1, &[1.0])], &[0; 9]), "1 bytes follow the end of the data"),
        (dat(&[("a", 1, &[f32::NAN])], &[]), "tensor 'a' has the weight NaN at 0"),
        (one("a.weight"), "not an importance matrix (it has no tensor"),
        (one("a.in_sum2"), "tensor 'a' has .in_sum2 but no .counts"),
        (one("a.counts"), "tensor 'a' has .counts but no .in_sum2"),
        (no_key, "the key 'imatrix.chunk_size' is missing"),
        (
            gguf(&[("a.in_sum2", [1, 3], &[1.0; 3]), ("a.counts", [1, 2], &[1.0; 2])]),
            "tensor 'a' has 3 sums for 2 counts",
        ),
    ] {
        let said = refusal(&bytes);
        assert!(said.starts_with(words), "expected {words:?}\n but said {said:?}");
    }
}

/// The plan checks the matrix against the model before any work starts.
#[test]
fn a_matrix_of_another_model_is_refused_with_both_sizes() {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::string("llama"));
    metadata.set("llama.block_count", Value::U32(1));
    let shape = Shape::matrix(4, 256);
    let tensors = ["token_embd.weight", "blk.0.ffn_up.weight"].map(|name| SourceTensor {
        name,
        shape: &shape,
        kind: GgmlType::BF16,
        part: 0,
    });
    let plan = |target: &str, m: &Imatrix| {
        let target = QuantName::from_name(target).unwrap();
        QuantPlan::new(&metadata, &tensors, target, &QuantOptions::default(), Some(m))
    };

    let short = open(&dat(&[("blk.0.ffn_up.weight", 1, &[1.0; 255])], &[]), &ImatrixFilter::All).unwrap();
    let wrong = QuantPlanError::WeightCount { tensor: "blk.0.ffn_up.weight".into(), found: 255, needed: 256 };
    assert_eq!(plan("q4_k_m", &short).unwrap_err(), wrong);

    // The embedding's weights are left out where they do not fit, as llama-quantize does.
    let entries: [(&str, i32, &[f32]); 2] = [("token_embd.weight", 1, &[1.0]), ("blk.0.ffn_up.weight", 1, &[1.0; 256])];
    let fits = plan("q4_k_m", &open(&dat(&entries, &[]), &ImatrixFilter::All).unwrap()).unwrap();
    assert_eq!(fits.decisions.iter().map(|d| d.weighted).collect::<Vec<_>>(), [false, true]);

    let other = open(&dat(&[("other", 1, &[1.0])], &[]), &ImatrixFilter::All).unwrap();
    let missing = QuantPlanError::MissingWeights { tensor: "blk.0.ffn_up.weight".into(), kind: GgmlType::IQ2_XXS };
    assert_eq!(plan("iq2_xxs", &other).unwrap_err(), missing);
    assert_eq!(plan("q4_k_m", &other).unwrap().without_importance, ["token_embd.weight", "blk.0.ffn_up.weight"]);
}

proptest! {
    #[test]
    fn no_damage_makes_the_readers_panic(at in 0usize..300, byte in any::<u8>(), cut in 0usize..300, legacy: bool) {
        let mut bytes = if legacy {
            dat(&[("blk.0.attn_v.weight", 3, &[1.0; 8]), ("b", 1, &[2.0; 4])], &[1, 0, 0, 0, 2, 0, 0, 0, b'x', b'y'])
        } else {
            gguf(&[("a.in_sum2", [2, 4], &[1.0; 8]), ("a.counts", [2, 1], &[1.0; 2])])
        };
        let n = bytes.len();
        bytes[at % n] = byte;
        bytes.truncate(n - cut % n);
        let _ = open(&bytes, &ImatrixFilter::All);
    }
}
