//! Vocabularies from model folders: the fixture against llama.cpp's converter, small tokenizers of every kind,
//! and one clear error per kind of damage.

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use to_gguf::gguf::{Array, Metadata, Value};
use to_gguf::tokenizer::{
    Special, Tokenizer, TokenizerError, TokenizerFiles, TokenizerOptions, VocabExtras, VocabFit, VocabKind,
};

type Folder = tempfile::TempDir;

fn folder(files: &[(&str, &Json)]) -> Folder {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn load(dir: &Path, config: &Json, kind: VocabKind) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::load(&TokenizerFiles::new([dir]), config, &TokenizerOptions { kind, ..Default::default() })
}

/// A byte-level BPE tokenizer over a few letters.
fn byte_level() -> Json {
    json!({
        "added_tokens": [
            {"id": 6, "content": "<s>", "normalized": false, "special": true},
            {"id": 7, "content": "<|tool|>", "normalized": false, "special": false},
            {"id": 8, "content": "\u{2581}x", "normalized": true, "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5}, "merges": ["a b", "ab c"]},
    })
}

/// A SentencePiece BPE tokenizer as transformers saves it.
fn sentencepiece() -> Json {
    json!({
        "added_tokens": [
            {"id": 0, "content": "<unk>", "normalized": false, "special": true},
            {"id": 1, "content": "<s>", "normalized": false, "special": true},
            {"id": 9, "content": "<tool>", "normalized": false, "special": false},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁a": 7, "▁ab": 8},
            "merges": [["a", "b"], ["▁", "a"], ["▁", "ab"], ["▁a", "b"]]},
    })
}

fn strings<'a>(metadata: &'a Metadata, key: &str) -> Vec<&'a str> {
    match metadata.get(key) {
        Some(Value::Array(Array::String(items))) => items.iter().map(|s| std::str::from_utf8(s).unwrap()).collect(),
        other => panic!("{key}: {other:?}"),
    }
}

fn types(metadata: &Metadata) -> Vec<i32> {
    match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Array(Array::I32(items))) => items.clone(),
        other => panic!("{other:?}"),
    }
}

fn scores(metadata: &Metadata) -> Vec<f32> {
    match metadata.get("tokenizer.ggml.scores") {
        Some(Value::Array(Array::F32(items))) => items.clone(),
        other => panic!("{other:?}"),
    }
}

/// The bytes that stand for an array in a GGUF file, hashed as fixtures/reference.json does.
fn fingerprint(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut head = |element: u32, n: usize| {
        bytes.extend_from_slice(&9u32.to_le_bytes());
        bytes.extend_from_slice(&element.to_le_bytes());
        bytes.extend_from_slice(&(n as u64).to_le_bytes());
    };
    let (name, n) = match value {
        Value::Array(Array::String(items)) => {
            head(8, items.len());
            for item in items {
                bytes.extend_from_slice(&(item.len() as u64).to_le_bytes());
                bytes.extend_from_slice(item);
            }
            ("str", items.len())
        }
        Value::Array(Array::I32(items)) => {
            head(5, items.len());
            items.iter().for_each(|i| bytes.extend_from_slice(&i.to_le_bytes()));
            ("i32", items.len())
        }
        other => panic!("{other:?}"),
    };
    let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("{name}[{n}] sha256:{hex}")
}

#[test]
fn the_fixture_has_the_converters_keys_in_its_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let read = |p: &str| serde_json::from_slice::<Json>(&std::fs::read(root.join(p)).unwrap()).unwrap();
    let reference = &read("reference.json")["bf16"]["keys"];
    let config = read("shakespeare-llama/config.json");
    let adapter_then_base = [root.join("shakespeare-lora"), root.join("shakespeare-llama")];
    let options = TokenizerOptions { kind: VocabKind::Llama, ..Default::default() };
    let tokenizer = Tokenizer::load(&TokenizerFiles::new(adapter_then_base), &config, &options).unwrap();
    let metadata = tokenizer.metadata(2048);
    let wanted: Vec<(&String, &Json)> =
        reference.as_object().unwrap().iter().filter(|(k, _)| k.starts_with("tokenizer.")).collect();
    let keys: Vec<&str> = metadata.iter().map(|(k, _)| k).collect();
    assert_eq!(keys, wanted.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>());
    for (key, want) in wanted {
        let value = metadata.get(key).unwrap();
        let got = match value {
            Value::Array(_) => json!(["arr", fingerprint(value)]),
            Value::U32(v) => json!(["u32", v]),
            Value::Bool(v) => json!(["bool", v]),
            other => json!(["str", other.as_str().unwrap()]),
        };
        assert_eq!(&got, want, "{key}");
    }
    assert_eq!(tokenizer.ends(), [(4, "<|eot_id|>".to_owned())]);
}

#[test]
fn byte_level_tokens_types_merges_and_padding() {
    let dir = folder(&[("tokenizer.json", &byte_level()), ("tokenizer_config.json", &json!({"bos_token": "<s>"}))]);
    let tokenizer = load(dir.path(), &json!({"model_type": "gpt2"}), VocabKind::Bpe).unwrap();
    let metadata = tokenizer.metadata(11);
    assert_eq!(
        strings(&metadata, "tokenizer.ggml.tokens"),
        ["a", "b", "c", "ab", "abc", "Ġ", "<s>", "<|tool|>", " x", "[PAD9]", "[PAD10]"]
    );
    assert_eq!(types(&metadata), [1, 1, 1, 1, 1, 1, 3, 3, 4, 5, 5]);
    assert_eq!(strings(&metadata, "tokenizer.ggml.merges"), ["a b", "ab c"]);
    assert_eq!(metadata.get("tokenizer.ggml.pre"), Some(&Value::string("gpt-2")));
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Value::U32(6)));
    assert_eq!(metadata.get("tokenizer.ggml.scores"), None);
}

#[test]
fn merges_as_pairs_equal_merges_as_lines_and_spaces_become_letters() {
    let mut pairs = byte_level();
    pairs["model"]["merges"] = json!([["a", "b"], ["ab", "c"], ["a", " "]]);
    pairs["model"]["vocab"][" "] = json!(9);
    pairs["model"]["vocab"]["a "] = json!(10);
    let dir = folder(&[("tokenizer.json", &pairs)]);
    let tokenizer = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap();
    assert_eq!(tokenizer.merges(), ["a b", "ab c", "a Ġ"]);
}

#[test]
fn tokens_that_only_the_configuration_names_join_the_vocabulary_where_there_is_a_row() {
    let config = json!({
        "added_tokens_decoder": {"6": {"content": "<s>", "special": true}, "9": {"content": "<new>", "special": false}},
        "pad_token": {"content": "<p>", "__type": "AddedToken"},
        "eos_token": "abc",
    });
    let dir = folder(&[("tokenizer.json", &byte_level()), ("tokenizer_config.json", &config)]);
    let tokenizer = load(dir.path(), &json!({"vocab_size": 12}), VocabKind::Bpe).unwrap();
    let metadata = tokenizer.metadata(12);
    assert_eq!(strings(&metadata, "tokenizer.ggml.tokens")[9..], ["<new>", "<p>", "[PAD11]"]);
    // A named special token is a control token, though tokenizer.json has it as an ordinary piece.
    assert_eq!(types(&metadata)[4], 3);
    let crowded = load(dir.path(), &json!({"vocab_size": 10}), VocabKind::Bpe).unwrap();
    assert_eq!(crowded.fit(10), VocabFit::Exact);
}

#[test]
fn sentencepiece_scores_come_from_the_merges() {
    let dir = folder(&[("tokenizer.json", &sentencepiece()), ("tokenizer_config.json", &json!({"bos_token": "<s>"}))]);
    let tokenizer = load(dir.path(), &json!({}), VocabKind::Llama).unwrap();
    let metadata = tokenizer.metadata(12);
    assert_eq!(tokenizer.model(), "llama");
    assert_eq!(tokenizer.pre(), Some("default"));
    let expected = [-1000.0, -1000.0, 0.0, -4.0, -4.0, -4.0, 0.0, -1.0, -2.0, -1000.0, -10000.0, -10000.0];
    assert_eq!(scores(&metadata), expected);
    assert_eq!(types(&metadata), [3, 3, 6, 1, 1, 1, 1, 1, 1, 4, 5, 5]);
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), None);
}

#[test]
fn a_tokenizer_that_prepends_nothing_says_so() {
    let mut json = sentencepiece();
    json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let dir = folder(&[("tokenizer.json", &json)]);
    let metadata = load(dir.path(), &json!({}), VocabKind::SpmOrBpe).unwrap().metadata(10);
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(false)));
}

#[test]
fn a_list_of_eos_ids_is_not_lost() {
    let dir =
        folder(&[("tokenizer.json", &byte_level()), ("generation_config.json", &json!({"eos_token_id": [7, 8]}))]);
    let config = json!({"bos_token_id": 6, "eos_token_id": [6, 7]});
    let tokenizer = load(dir.path(), &config, VocabKind::Bpe).unwrap();
    let metadata = tokenizer.metadata(9);
    assert_eq!(metadata.get("tokenizer.ggml.eos_token_id"), Some(&Value::U32(7)));
    assert_eq!(metadata.get("tokenizer.ggml.eot_token_id"), Some(&Value::U32(8)));
    let ends: Vec<u32> = tokenizer.ends().iter().map(|(id, _)| *id).collect();
    assert_eq!(ends, [7, 8, 6]);
    // A single eos, and a tokenizer's own, win as they do in the converter.
    let single = load(dir.path(), &json!({"eos_token_id": 8}), VocabKind::Bpe).unwrap();
    assert_eq!(single.special(Special::Eos), Some(8));
    assert_eq!(single.special(Special::Eot), None);
}

#[test]
fn the_post_processor_beats_the_configuration() {
    let config = json!({"bos_token": "<s>", "eos_token": "<|tool|>", "add_bos_token": false, "add_eos_token": true});
    let dir = folder(&[("tokenizer.json", &byte_level()), ("tokenizer_config.json", &config)]);
    let tokenizer = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap();
    assert_eq!((tokenizer.adds(Special::Bos), tokenizer.adds(Special::Eos)), (Some(true), Some(true)));
    let mut plain = byte_level();
    plain["post_processor"] = Json::Null;
    let dir = folder(&[("tokenizer.json", &plain), ("tokenizer_config.json", &config)]);
    assert_eq!(load(dir.path(), &json!({}), VocabKind::Bpe).unwrap().adds(Special::Bos), Some(false));
}

#[test]
fn chat_templates_are_found_in_every_place() {
    let template = |files: &[(&str, Json)]| {
        let mut all = vec![("tokenizer.json", byte_level())];
        all.extend_from_slice(files);
        let all: Vec<(&str, &Json)> = all.iter().map(|(n, v)| (*n, v)).collect();
        load(folder(&all).path(), &json!({}), VocabKind::Bpe).unwrap().chat_templates().clone()
    };
    let in_config = ("tokenizer_config.json", json!({"chat_template": "config"}));
    let json_file = ("chat_template.json", json!({"chat_template": "json"}));
    assert_eq!(template(&[in_config, json_file.clone()]).default.as_deref(), Some("config"));
    assert_eq!(template(&[json_file]).default.as_deref(), Some("json"));
    let list = json!([{"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}]);
    let named = template(&[("tokenizer_config.json", json!({"chat_template": list}))]);
    assert_eq!(named.default.as_deref(), Some("d"));
    assert_eq!(named.named, [("tool_use".to_owned(), "t".to_owned())]);

    let dir = folder(&[("tokenizer.json", &byte_level()), ("tokenizer_config.json", &json!({"bos_token": "<s>"}))]);
    std::fs::write(dir.path().join("chat_template.jinja"), "jinja").unwrap();
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(dir.path().join("additional_chat_templates/rag.jinja"), "rag").unwrap();
    let metadata = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap().metadata(9);
    assert_eq!(metadata.get("tokenizer.chat_template"), Some(&Value::string("jinja")));
    assert_eq!(metadata.get("tokenizer.chat_template.rag"), Some(&Value::string("rag")));
    assert_eq!(strings(&metadata, "tokenizer.chat_templates"), ["rag"]);
}

#[test]
fn an_adapters_tokenizer_wins_and_its_size_is_reported() {
    let mut grown = byte_level();
    grown["added_tokens"].as_array_mut().unwrap().push(json!({"id": 9, "content": "<end>", "special": true}));
    let (base, adapter) = (folder(&[("tokenizer.json", &byte_level())]), folder(&[("tokenizer.json", &grown)]));
    std::fs::write(base.path().join("chat_template.jinja"), "base").unwrap();
    let files = TokenizerFiles::new([adapter.path(), base.path()]);
    let tokenizer = Tokenizer::load(&files, &json!({}), &TokenizerOptions::default()).unwrap();
    assert_eq!(tokenizer.fit(10), VocabFit::Exact);
    assert_eq!(tokenizer.fit(16), VocabFit::Padded { tokens: 10, rows: 16 });
    assert_eq!(tokenizer.fit(9), VocabFit::Excess { tokens: 10, rows: 9, without_row: vec!["<end>".into()] });
    assert_eq!(strings(&tokenizer.metadata(9), "tokenizer.ggml.tokens").len(), 9);
    assert_eq!(tokenizer.chat_templates().default.as_deref(), Some("base"));
    assert_eq!(files.home(), Some(adapter.path()));
}

#[test]
fn a_given_pre_tokenizer_replaces_the_recognised_one() {
    let mut odd = byte_level();
    odd["pre_tokenizer"] = json!({"type": "Whitespace"});
    odd["model"]["byte_fallback"] = json!(null);
    let dir = folder(&[("tokenizer.json", &odd)]);
    let load = |name: Option<&str>| {
        let pre_tokenizer = name.map(str::to_owned);
        let options = TokenizerOptions { pre_tokenizer, kind: VocabKind::Bpe, ..Default::default() };
        Tokenizer::load(&TokenizerFiles::new([dir.path()]), &json!({}), &options)
    };
    assert_eq!(load(Some("qwen2")).unwrap().pre(), Some("qwen2"));
    assert!(matches!(load(Some("nonsense")), Err(TokenizerError::UnknownPreName { .. })));
}

#[test]
fn wordpiece_marks_words() {
    let json = json!({
        "added_tokens": [{"id": 0, "content": "[CLS]", "special": true}, {"id": 1, "content": "[SEP]", "special": true}],
        "normalizer": {"type": "BertNormalizer", "lowercase": true, "strip_accents": null},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
            "pair": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}},
                {"Sequence": {"id": "B"}}, {"SpecialToken": {"id": "[SEP]"}}]},
        "model": {"type": "WordPiece", "vocab": {"[CLS]": 0, "[SEP]": 1, "play": 2, "##ing": 3}},
    });
    let config = json!({"cls_token": "[CLS]", "sep_token": "[SEP]"});
    let dir = folder(&[("tokenizer.json", &json), ("tokenizer_config.json", &config)]);
    let metadata = load(dir.path(), &json!({"type_vocab_size": 2}), VocabKind::WordPiece).unwrap().metadata(5);
    assert_eq!(strings(&metadata, "tokenizer.ggml.tokens"), ["[CLS]", "[SEP]", "▁play", "ing", "▁[PAD4]"]);
    assert_eq!(metadata.iter().next(), Some(("tokenizer.ggml.token_type_count", &Value::U32(2))));
    // The converter's add_sep means a separator beside the eos, which BERT's pairs do not have.
    for (key, adds) in [("bos", true), ("eos", true), ("sep", false)] {
        assert_eq!(metadata.get(&format!("tokenizer.ggml.add_{key}_token")), Some(&Value::Bool(adds)), "{key}");
    }
    assert_eq!(metadata.get("tokenizer.ggml.normalizer.lowercase"), Some(&Value::Bool(true)));
    assert_eq!(metadata.get("tokenizer.ggml.normalizer.strip_accents"), None);
}

#[test]
fn unigram_keeps_scores_and_the_character_map() {
    let json = json!({
        "added_tokens": [{"id": 0, "content": "<pad>", "special": true}, {"id": 1, "content": "<unk>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": "AQID"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 1, "vocab": [["<pad>", 0.0], ["<unk>", 0.0], ["▁a", -1.5]]},
    });
    let dir = folder(&[("tokenizer.json", &json)]);
    let metadata = load(dir.path(), &json!({}), VocabKind::T5).unwrap().metadata(3);
    assert_eq!(metadata.get("tokenizer.ggml.model"), Some(&Value::string("t5")));
    assert_eq!(scores(&metadata), [0.0, 0.0, -1.5]);
    assert_eq!(types(&metadata), [3, 2, 1]);
    let map = Value::Array(Array::U8(vec![1, 2, 3]));
    assert_eq!(metadata.get("tokenizer.ggml.precompiled_charsmap"), Some(&map));
    for key in ["add_space_prefix", "remove_extra_whitespaces"] {
        assert_eq!(metadata.get(&format!("tokenizer.ggml.{key}")), Some(&Value::Bool(true)), "{key}");
    }
}

#[test]
fn a_folder_of_old_has_vocab_json_and_merges_txt() {
    let dir = folder(&[
        ("vocab.json", &json!({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3})),
        ("tokenizer_config.json", &json!({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})),
    ]);
    std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
    let tokenizer = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap();
    assert_eq!((tokenizer.pre(), tokenizer.merges()), (Some("gpt-2"), &["a b".to_owned()][..]));
    assert_eq!(types(&tokenizer.metadata(4)), [1, 1, 1, 3]);
    assert_eq!(tokenizer.special(Special::Eos), Some(3));
    let config = json!({"tokenizer_class": "MysteryTokenizer"}).to_string();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let message = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap_err().to_string();
    assert!(message.contains("MysteryTokenizer") && message.contains("--pre-tokenizer"), "{message}");
}

#[test]
fn a_folder_of_old_has_vocab_txt() {
    let dir = folder(&[("tokenizer_config.json", &json!({"cls_token": "[CLS]", "sep_token": "[SEP]"}))]);
    std::fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\nplay\n##ing\n").unwrap();
    let metadata = load(dir.path(), &json!({}), VocabKind::WordPiece).unwrap().metadata(6);
    assert_eq!(strings(&metadata, "tokenizer.ggml.tokens")[2..], ["[CLS]", "[SEP]", "▁play", "ing"]);
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Value::U32(2)));
    assert_eq!(metadata.get("tokenizer.ggml.normalizer.lowercase"), Some(&Value::Bool(true)));
}

#[test]
fn a_family_fills_in_what_its_files_leave_open() {
    let extras = VocabExtras {
        roles: &[(Special::Eot, "<|tool|>"), (Special::Bos, "abc"), (Special::Eom, "not there")],
        control: &["c"],
        add_bos: Some(false),
        add_space_prefix: Some(false),
    };
    let dir = folder(&[("tokenizer.json", &byte_level()), ("tokenizer_config.json", &json!({"bos_token": "<s>"}))]);
    let options = TokenizerOptions { kind: VocabKind::Bpe, extras, ..Default::default() };
    let tokenizer = Tokenizer::load(&TokenizerFiles::new([dir.path()]), &json!({}), &options).unwrap();
    let metadata = tokenizer.metadata(9);
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Value::U32(6)));
    assert_eq!(metadata.get("tokenizer.ggml.eot_token_id"), Some(&Value::U32(7)));
    assert_eq!(metadata.get("tokenizer.ggml.eom_token_id"), None);
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(false)));
    assert_eq!(types(&metadata)[2], 3);
}

#[test]
fn gemma_4_keeps_the_merges_and_one_score() {
    let dir = folder(&[("tokenizer.json", &sentencepiece())]);
    let tokenizer = load(dir.path(), &json!({}), VocabKind::Gemma4).unwrap();
    let metadata = tokenizer.metadata(10);
    assert_eq!((tokenizer.model(), tokenizer.pre(), tokenizer.merges().len()), ("gemma4", None, 4));
    assert!(scores(&metadata).iter().all(|s| *s == -1000.0));
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(false)));
}

/// Damage, and what the message must say.
#[test]
fn damage_is_one_clear_error() {
    type Damage = fn(&mut Json);
    let cases: &[(&str, Damage, &[&str])] = &[
        ("no model", |j| *j = json!({}), &["model"]),
        ("no vocabulary", |j| j["model"] = json!({"type": "BPE"}), &["vocab"]),
        ("unknown model", |j| j["model"]["type"] = json!("Magic"), &["model.type", "Magic"]),
        ("word level", |j| j["model"]["type"] = json!("WordLevel"), &["WordLevel"]),
        ("an id that is text", |j| j["model"]["vocab"]["a"] = json!("0"), &["invalid type"]),
        ("a negative id", |j| j["model"]["vocab"]["a"] = json!(-1), &["-1"]),
        ("an enormous id", |j| j["model"]["vocab"]["a"] = json!(4_000_000_000u32), &["\"a\"", "4000000000"]),
        ("one id twice", |j| j["model"]["vocab"]["a"] = json!(1), &["id 1", "\"a\"", "\"b\""]),
        ("an added token over a piece", |j| j["added_tokens"][0]["id"] = json!(2), &["id 2", "\"c\"", "\"<s>\""]),
        ("a merge of three", |j| j["model"]["merges"][1] = json!("a b c"), &["merge 1", "a b c"]),
        ("a merge of a number", |j| j["model"]["merges"][1] = json!(3), &["merge"]),
        ("a merge of nothing known", |j| j["model"]["merges"][1] = json!("a z"), &["merge 1", "\"z\""]),
        ("a merge into nothing known", |j| j["model"]["merges"][1] = json!("b c"), &["merge 1", "\"bc\""]),
        ("no splitting", |j| j["pre_tokenizer"] = Json::Null, &["pre-tokenizer", "--pre-tokenizer"]),
        ("added tokens that are none", |j| j["added_tokens"] = json!(3), &["invalid type"]),
    ];
    for (name, damage, words) in cases {
        let mut json = byte_level();
        damage(&mut json);
        let dir = folder(&[("tokenizer.json", &json)]);
        let message = load(dir.path(), &json!({}), VocabKind::Bpe).expect_err(name).to_string();
        assert!(message.contains("tokenizer.json") && !message.contains('\n'), "{name}: {message}");
        assert!(words.iter().all(|w| message.contains(w)), "{name}: {message}");
        assert!(message.contains("; "), "{name} has no remedy: {message}");
    }
}

#[test]
fn missing_and_unreadable_files_are_named() {
    let dir = folder(&[]);
    let message = load(dir.path(), &json!({}), VocabKind::Llama).unwrap_err().to_string();
    assert!(message.contains("no tokenizer") && message.contains("tokenizer.model"), "{message}");
    let dir = folder(&[("tokenizer_config.json", &json!([])), ("tokenizer.json", &byte_level())]);
    let message = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json") && message.contains("an array"), "{message}");
    for (bytes, words) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "SentencePiece"),
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "SentencePiece"),
    ] {
        let dir = folder(&[]);
        std::fs::write(dir.path().join("tokenizer.model"), bytes).unwrap();
        let message = load(dir.path(), &json!({}), VocabKind::Llama).unwrap_err().to_string();
        assert!(message.contains("tokenizer.model") && message.contains(words), "{message}");
    }
    let dir = folder(&[("tokenizer.json", &byte_level())]);
    std::fs::write(dir.path().join("chat_template.jinja"), b"\xff\xfe").unwrap();
    let message = load(dir.path(), &json!({}), VocabKind::Bpe).unwrap_err().to_string();
    assert!(message.contains("chat_template.jinja") && message.contains("UTF-8"), "{message}");
}

/// Replaces a value somewhere in a JSON tree.
fn mutate(value: &mut Json, path: &[usize], with: &Json) {
    let Some((first, rest)) = path.split_first() else {
        *value = with.clone();
        return;
    };
    match value {
        Json::Object(map) if !map.is_empty() => {
            let index = first % map.len();
            mutate(map.values_mut().nth(index).unwrap(), rest, with);
        }
        Json::Array(list) if !list.is_empty() => {
            let index = first % list.len();
            mutate(&mut list[index], rest, with);
        }
        other => *other = with.clone(),
    }
}

fn any_json() -> impl Strategy<Value = Json> {
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        (0..20u32).prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        "[a-z<>|▁# ]{0,6}".prop_map(Json::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!({"type": "Sequence", "processors": [], "pretokenizers": [], "normalizers": []})),
        Just(json!({"SpecialToken": {"id": "<s>"}})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_tokenizer_json_makes_a_panic(
        spm in any::<bool>(),
        changes in prop::collection::vec((prop::collection::vec(0..12usize, 0..6), any_json()), 1..4),
        config in any_json(),
        rows in 0..40u64,
    ) {
        let mut json = if spm { sentencepiece() } else { byte_level() };
        for (path, with) in &changes {
            mutate(&mut json, path, with);
        }
        let tokenizer_config = json!({"bos_token": config, "chat_template": "x", "added_tokens_decoder": {"3": config}});
        let dir = folder(&[("tokenizer.json", &json), ("tokenizer_config.json", &tokenizer_config)]);
        for kind in VocabKind::ALL {
            match load(dir.path(), &json!({"eos_token_id": config, "vocab_size": rows}), kind) {
                Ok(tokenizer) => {
                    let metadata = tokenizer.metadata(rows);
                    prop_assert_eq!(strings(&metadata, "tokenizer.ggml.tokens").len() as u64, rows);
                    prop_assert_eq!(types(&metadata).len() as u64, rows);
                }
                Err(e) => prop_assert!(!e.to_string().contains('\n'), "{}", e),
            }
        }
    }

    #[test]
    fn no_tokenizer_model_makes_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = folder(&[]);
        std::fs::write(dir.path().join("tokenizer.model"), &bytes).unwrap();
        for kind in [VocabKind::Llama, VocabKind::T5] {
            if let Ok(tokenizer) = load(dir.path(), &json!({}), kind) {
                tokenizer.metadata(7);
            }
        }
    }
}
