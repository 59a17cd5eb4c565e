//! What is promised about the plan of a quantized file: every tensor of every model shape in `fixtures/mixtures` gets
//! the type that llama.cpp gives it, under all file types, with and without an imatrix; the header is the same byte
//! for byte under its options; and the fixture's own tensors get theirs.
//! `tests/oracle/mixture.py` and `quantize_options.py` make the goldens and say how.

use std::collections::HashMap;
use std::fmt::Write;

use to_gguf::gguf::{Layout, TensorInfo, Value};
use to_gguf::quant::{
    FileType, GgmlType, Importance, KvOverride, QuantName, QuantOptions, QuantPlan, QuantPlanError, SourceTensor,
    TensorTypeRule, weight_type,
};
use to_gguf::shape::Shape;

#[path = "common/models.rs"]
mod models;
use models::{Model, json, short_hash};

/// An imatrix with weights for every tensor.
struct Complete {
    lengths: HashMap<String, u64>,
    keys: Vec<(&'static str, Value)>,
}

impl Complete {
    fn of(model: &Model) -> Self {
        Complete { lengths: model.imatrix_lengths(), keys: Vec::new() }
    }
}

impl Importance for Complete {
    fn len_for(&self, tensor: &str) -> Option<u64> {
        self.lengths.get(tensor).copied()
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        self.keys.clone()
    }
}

/// A file type as the goldens name it, and the imatrix where it asks for one.
fn target<'a>(key: &str, imatrix: &'a Complete) -> (QuantName, Option<&'a dyn Importance>) {
    let (name, imatrix) = match key.strip_suffix("+imatrix") {
        Some(name) => (name, Some(imatrix as &dyn Importance)),
        None => (key, None),
    };
    (QuantName::Type(FileType::from_name(name).unwrap()), imatrix)
}

#[test]
fn every_tensor_gets_llama_cpps_type() {
    let checked = compare("fixtures/mixtures");
    assert!(checked > 1800, "only {checked} mixtures were compared");
}

/// As many more as `mixture.py random` makes: `MIXTURES` is the folder that it wrote.
#[test]
fn every_tensor_of_random_models_gets_llama_cpps_type() {
    match std::env::var("MIXTURES") {
        Ok(folder) => println!("{} mixtures of {folder} are llama.cpp's", compare(&folder)),
        Err(_) => eprintln!("SKIPPED: set MIXTURES to a folder of tests/oracle/mixture.py to compare random models"),
    }
}

/// Compares the choices for a folder's models with its goldens; answers how many plans were compared.
fn compare(folder: &str) -> usize {
    let goldens = json(&format!("{folder}/goldens.json"));
    let models = json(&format!("{folder}/models.json"));
    assert!(!models.is_empty() && models.keys().eq(goldens.keys()));
    let options = QuantOptions { allow_requantize: true, ..QuantOptions::default() };
    let mut checked = 0;
    for (name, description) in &models {
        let model = Model::of(description);
        let complete = Complete::of(&model);
        for (key, want) in goldens[name].as_object().unwrap().iter().filter(|(key, _)| *key != "header") {
            let (target, imatrix) = target(key, &complete);
            let plan = match QuantPlan::new(&model.metadata, &model.sources(), target, &options, imatrix) {
                Ok(plan) => plan,
                Err(QuantPlanError::RaggedRow { .. }) if want == "error" => continue,
                // A dry run of llama.cpp's goes on without the imatrix that the real one would demand.
                Err(QuantPlanError::NeedsImatrix { .. }) if imatrix.is_none() => continue,
                Err(e) => panic!("{name} {key}: {e}"),
            };
            let lines = plan.decisions.iter().fold(String::new(), |mut s, d| {
                writeln!(s, "{} {}", d.name, d.to).unwrap();
                s
            });
            if short_hash(lines.as_bytes()) != *want {
                let ours = std::env::temp_dir().join("to-gguf-mixture.txt");
                std::fs::write(&ours, lines).unwrap();
                panic!("{name} {key} differs: compare {} with mixture.py dump {name} {key}", ours.display());
            }
            checked += 1;
        }
    }
    checked
}

#[test]
fn headers_equal_those_of_gguf_py() {
    let goldens = json("fixtures/mixtures/goldens.json");
    for (name, description) in &json("fixtures/mixtures/models.json") {
        let model = Model::of(description);
        let layout = Layout::new(&model.metadata, &model.tensors).unwrap();
        assert_eq!(short_hash(layout.header()), goldens[name]["header"], "{name}");
    }
}

/// `fixtures/reference.json` says what llama-quantize made of the fixture.
#[test]
fn the_fixture_gets_its_reference_types() {
    let reference = json("fixtures/reference.json");
    let mut model = Model { metadata: to_gguf::gguf::Metadata::new(), tensors: Vec::new() };
    for (key, v) in reference["bf16"]["keys"].as_object().unwrap() {
        match (v[0].as_str().unwrap(), &v[1]) {
            ("u32", v) => model.metadata.set(key, Value::U32(v.as_u64().unwrap() as u32)),
            ("str", v) => model.metadata.set(key, Value::string(v.as_str().unwrap())),
            _ => {}
        }
    }
    for (name, t) in reference["bf16"]["tensors"].as_object().unwrap() {
        let dims: Vec<u64> = t[1].as_array().unwrap().iter().rev().map(|n| n.as_u64().unwrap()).collect();
        let kind = GgmlType::from_name(t[0].as_str().unwrap()).unwrap();
        model.tensors.push(TensorInfo { name: name.clone(), shape: Shape::new(dims).unwrap(), kind });
    }
    let complete = Complete::of(&model);
    for (key, want) in reference["quantized"].as_object().unwrap() {
        let (target, imatrix) = target(key, &complete);
        let plan = QuantPlan::new(&model.metadata, &model.sources(), target, &QuantOptions::default(), imatrix);
        let Some(want) = want.as_object() else {
            assert!(matches!(plan, Err(QuantPlanError::NeedsImatrix { .. })), "{key}");
            continue;
        };
        let plan = plan.unwrap();
        let got = plan.decisions.iter().map(|d| (d.name.as_str(), d.to.name()));
        assert!(got.eq(want.iter().map(|(name, t)| (name.as_str(), t[0].as_str().unwrap()))), "{key}");
    }
}

/// Every case of `quantize_options.py`: key order, tensor order, names, types, offsets and size.
#[test]
fn headers_equal_llama_quantizes_under_its_options() {
    let goldens = json("fixtures/mixtures/options.json");
    let cases = goldens["cases"].as_object().unwrap();
    assert!(cases.len() >= 28);
    let mut wrong = Vec::new();
    for (case, golden) in cases {
        let given = &golden["options"];
        let list = |key: &str| -> Vec<&str> {
            given[key].as_array().map_or(Vec::new(), |a| a.iter().map(|s| s.as_str().unwrap()).collect())
        };
        let kind = |key: &str| given[key].as_str().map(|name| weight_type(name).unwrap());
        let flag = |key: &str| given[key].as_bool().unwrap_or(false);
        let numbers = given["prune_layers"].as_array().cloned().unwrap_or_default();
        let options = QuantOptions {
            pure: flag("pure"),
            leave_output_tensor: flag("leave_output_tensor"),
            output_tensor_type: kind("output_tensor_type"),
            token_embedding_type: kind("token_embedding_type"),
            tensor_types: list("tensor_type").into_iter().map(|r| TensorTypeRule::parse(r).unwrap()).collect(),
            override_kv: list("override_kv").into_iter().map(|r| KvOverride::parse(r).unwrap()).collect(),
            prune_layers: numbers.iter().map(|n| n.as_u64().unwrap() as u32).collect(),
            ..QuantOptions::default()
        };
        let model = Model::of(&goldens["models"][golden["model"].as_str().unwrap()]);
        let mut imatrix = Complete::of(&model);
        if let Some(i) = given["imatrix"].as_object() {
            let text = |s: &str| Value::string(&s.as_bytes()[..s.len().min(127)]);
            imatrix.keys.push(("quantize.imatrix.file", text(i["file"].as_str().unwrap())));
            if let Some(d) = i.get("dataset") {
                imatrix.keys.push(("quantize.imatrix.dataset", text(d.as_str().unwrap())));
            }
            imatrix.keys.push(("quantize.imatrix.entries_count", Value::U32(model.tensors.len() as u32)));
            if let Some(n) = i.get("chunks") {
                imatrix.keys.push(("quantize.imatrix.chunks_count", Value::U32(n.as_u64().unwrap() as u32)));
            }
        }
        let imatrix = given["imatrix"].is_object().then_some(&imatrix as &dyn Importance);
        let target = QuantName::from_name(golden["file_type"].as_str().unwrap()).unwrap();
        let plan = QuantPlan::new(&model.metadata, &model.sources(), target, &options, imatrix).unwrap();
        let tensors: Vec<_> = plan
            .decisions
            .iter()
            .map(|d| TensorInfo { name: d.name.clone(), shape: d.shape.clone(), kind: d.to })
            .collect();
        let layout = Layout::new(&plan.metadata, &tensors).unwrap();
        if short_hash(layout.header()) != golden["header"] || layout.file_size() != golden["size"].as_u64().unwrap() {
            let ours = std::env::temp_dir().join(format!("to-gguf-header-{case}.gguf"));
            std::fs::write(&ours, layout.header()).unwrap();
            wrong.push(format!("{case}: compare {} with quantize_options.py header {case} OUT", ours.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn tiny() -> Model {
    Model::of(&json("fixtures/mixtures/options.json")["models"]["tiny-tied"])
}

#[test]
fn impossible_wishes_are_refused_with_a_remedy() {
    let mut model = tiny();
    let plan = |model: &Model, name: &str, options: &QuantOptions| {
        let target = QuantName::from_name(name).unwrap();
        QuantPlan::new(&model.metadata, &model.sources(), target, options, None)
    };
    let refusal = |model: &Model, name: &str, options: &QuantOptions| {
        let said = plan(model, name, options).unwrap_err().to_string();
        assert!(said.contains("; "), "no remedy in {said:?}");
        said
    };
    let plain = QuantOptions::default();
    assert!(refusal(&model, "iq2_xxs", &plain).starts_with("tensor 'blk.0.attn_k.weight' would be IQ2_XXS, which is"));
    let prune = QuantOptions { prune_layers: [9].into(), ..QuantOptions::default() };
    assert!(refusal(&model, "q8_0", &prune).starts_with("the model has no layer 9 to prune (its last is 3)"));

    let experts = |rules: &[&str]| QuantOptions {
        override_kv: rules.iter().map(|r| KvOverride::parse(r).unwrap()).collect(),
        ..QuantOptions::default()
    };
    let (some, more) = ("llama.expert_count=int:8", "llama.expert_used_count=int:9");
    assert!(
        refusal(&model, "q8_0", &experts(&[some])).starts_with("--override-kv: llama.expert_count would be 8 with")
    );
    assert!(refusal(&model, "q8_0", &experts(&[more])).contains("llama.expert_used_count 9"));
    assert!(refusal(&model, "q8_0", &experts(&[some, more])).contains("no more than there are"));
    plan(&model, "q8_0", &experts(&[some, "llama.expert_used_count=int:2"])).unwrap();
    plan(&model, "q8_0", &experts(&["llama.expert_count=int:0"])).unwrap();

    let rules = vec![TensorTypeRule::parse("nothing=q8_0").unwrap(), TensorTypeRule::parse("ffn=q8_0").unwrap()];
    let unused = QuantOptions { tensor_types: rules, ..QuantOptions::default() };
    assert_eq!(plan(&model, "q4_k_m", &unused).unwrap().unused_rules, ["nothing=q8_0"]);

    let up = model.tensors.iter().position(|t| t.name == "blk.1.ffn_up.weight").unwrap();
    model.tensors[up].kind = GgmlType::Q8_0;
    assert!(refusal(&model, "q4_k_m", &plain).starts_with("tensor 'blk.1.ffn_up.weight' is Q8_0 already"));
    let allowed = QuantOptions { allow_requantize: true, ..QuantOptions::default() };
    plan(&model, "q4_k_m", &allowed).unwrap();
    plan(&model, "q8_0", &plain).unwrap();
    model.tensors[up].kind = GgmlType::I32;
    assert!(refusal(&model, "q4_k_m", &allowed).starts_with("tensor 'blk.1.ffn_up.weight' has type I32, which cannot"));
    model.tensors[up].kind = GgmlType::BF16;
    model.tensors[up].shape = Shape::matrix(4, 100);
    let fallback = plan(&model, "q6_k", &plain).unwrap().fallbacks;
    assert_eq!(
        fallback.iter().map(|f| (f.row, f.wanted, f.got)).collect::<Vec<_>>(),
        [(100, GgmlType::Q6_K, GgmlType::F16)]
    );
    assert!(refusal(&model, "q1_0", &plain).contains("'blk.1.ffn_up.weight' has rows of 100, and Q1_0 needs"));
}

#[test]
fn kept_parts_are_those_of_the_input() {
    let model = tiny();
    let mut sources = model.sources();
    let n = sources.len();
    for (i, s) in sources.iter_mut().enumerate() {
        s.part = 2 * i / n;
    }
    let options = QuantOptions { keep_split: true, ..QuantOptions::default() };
    let target = QuantName::from_name("q8_0").unwrap();
    let plan = QuantPlan::new(&model.metadata, &sources, target, &options, None).unwrap();
    let parts = plan.parts();
    assert_eq!(parts.len(), 2);
    assert!(parts[1].1.clone().all(|i| sources[plan.decisions[i].source].part == 1));
    let keys: Vec<_> = parts[1].0.iter().map(|(k, _)| k).collect();
    assert_eq!(keys, ["split.no", "split.count", "split.tensors.count"]);
    let source: Vec<&SourceTensor<'_>> = plan.decisions.iter().map(|d| &sources[d.source]).collect();
    assert!(source.is_sorted_by_key(|s| s.part));
}

#[test]
fn q2_k_l_is_unsloths() {
    let model = tiny();
    let plan = |name: &str| {
        let target = QuantName::from_name(name).unwrap();
        QuantPlan::new(&model.metadata, &model.sources(), target, &QuantOptions::default(), None).unwrap()
    };
    let (large, plain) = (plan("q2_k_l"), plan("q2_k"));
    for (l, p) in large.decisions.iter().zip(&plain.decisions) {
        let forced = l.name == "token_embd.weight";
        assert_eq!(l.to, if forced { GgmlType::Q8_0 } else { p.to }, "{}", l.name);
    }
    assert_eq!(large.metadata, plain.metadata);
}
