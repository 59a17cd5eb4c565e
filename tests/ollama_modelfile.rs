//! The grammar of Modelfiles, on the inputs and results of Ollama's own parser tests (`parser/parser_test.go`,
//! Ollama 0.33), recorded as data.

use serde_json::Value as Json;
use to_gguf::ollama::grammar::{GrammarError, decode, parse};

const CASES: &str = include_str!("data/modelfile_grammar.json");

/// What a file parses to, or the kind of its refusal, as the data has it.
fn outcome(bytes: &[u8]) -> Json {
    match parse(&decode(bytes)) {
        Ok(commands) => commands.iter().map(|c| Json::from(vec![c.name.as_str(), c.args.as_str()])).collect(),
        Err(GrammarError::NoFrom) => "no FROM".into(),
        Err(GrammarError::Command { .. }) => "command".into(),
        Err(GrammarError::Role { .. }) => "role".into(),
        Err(GrammarError::End { .. }) => "end".into(),
        Err(other) => other.to_string().into(),
    }
}

#[test]
fn files_parse_as_ollama_parses_them_in_every_encoding() {
    let cases: Vec<Json> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 60);
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let expected = if case["error"].is_null() { &case["commands"] } else { &case["error"] };
        assert_eq!(outcome(text.as_bytes()), *expected, "{text:?}");
        let marked: Vec<u8> = ['\u{feff}'].into_iter().chain(text.chars()).collect::<String>().into_bytes();
        assert_eq!(outcome(&marked), *expected, "{text:?} with a byte order mark");
        let units = || std::iter::once(0xfeff).chain(text.encode_utf16());
        let little: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        assert_eq!(outcome(&little), *expected, "{text:?} as UTF-16, little endian");
        assert_eq!(outcome(&big), *expected, "{text:?} as UTF-16, big endian");
    }
}
