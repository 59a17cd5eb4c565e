//! Any bytes as a vocabulary's files: refused with an error, or keys for a GGUF file.
//!
//! The first byte picks the family's rule, the second the file that the bytes are; after a byte 0xff, which no text
//! holds, follow `tokenizer_config.json` and, after another, `special_tokens_map.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use to_gguf::tokenizer::{Tokenizer, TokenizerFiles, TokenizerOptions, VocabKind, saved_files};

mod common;

/// Ways to store a vocabulary; the second file of a pair is what follows the first 0xff.
const FILES: [[&str; 3]; 7] = [
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    ["tokenizer.model", "tokenizer_config.json", "added_tokens.json"],
    ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"],
    ["spiece.model", "tokenizer_config.json", "special_tokens_map.json"],
    ["tekken.json", "tokenizer_config.json", "special_tokens_map.json"],
    ["vocab.json", "merges.txt", "tokenizer_config.json"],
    ["vocab.txt", "tokenizer_config.json", "special_tokens_map.json"],
];

fuzz_target!(|data: &[u8]| {
    let [kind, pick, bytes @ ..] = data else { return };
    let names = FILES[usize::from(*pick) % FILES.len()];
    // A SentencePiece model is binary, so its part is the last.
    let mut parts: Vec<&[u8]> = bytes.splitn(names.len(), |&b| b == 0xff).collect();
    if names[0].ends_with(".model") {
        parts = bytes.rsplitn(names.len(), |&b| b == 0xff).collect();
        let last = parts.pop().unwrap_or_default();
        parts.insert(0, last);
    }
    let files: Vec<(&str, &[u8])> = names.into_iter().zip(parts).collect();
    let folder = common::Folder::with(&files);
    let options = TokenizerOptions {
        kind: VocabKind::ALL[usize::from(*kind) % VocabKind::ALL.len()],
        // Recognising one runs a foreign library over the file; it is not what is tested here.
        pre_tokenizer: Some("llama-bpe".into()),
        ..TokenizerOptions::default()
    };
    let config = serde_json::json!({"vocab_size": 64, "bos_token_id": 1, "eos_token_id": [2, 3]});
    let files = TokenizerFiles::new([folder.path()]);
    let _ = saved_files(&files, &to_gguf::source::TOKENIZER_FILES);
    if let Ok(tokenizer) = Tokenizer::load(&files, &config, &options) {
        for rows in [0, 64, 70] {
            tokenizer.metadata(rows);
            tokenizer.fit(rows);
        }
        tokenizer.ends();
        tokenizer.added_tokens().count();
    }
});
