//! Writes the vocabulary of a model folder as a GGUF file without tensors, for comparison with other converters.
//!
//! `cargo run --release --example tokenizer_gguf -- MODEL KIND OUT.gguf [PRE]`, KIND being a `VocabKind`.

use std::error::Error;
use std::path::PathBuf;
use to_gguf::gguf::{Layout, Metadata, Value};
use to_gguf::tokenizer::{Tokenizer, TokenizerFiles, TokenizerOptions, VocabKind};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, kind, out, rest @ ..] = args.as_slice() else { return Err("MODEL KIND OUT.gguf [PRE]".into()) };
    let kind =
        VocabKind::ALL.into_iter().find(|k| format!("{k:?}").eq_ignore_ascii_case(kind)).ok_or("no such KIND")?;
    let folders: Vec<PathBuf> = model.split(':').map(PathBuf::from).collect();
    let base = folders.last().ok_or("no MODEL")?;
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(base.join("config.json"))?)?;
    let options = TokenizerOptions { pre_tokenizer: rest.first().cloned(), kind, ..Default::default() };
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::load(&TokenizerFiles::new(folders.iter()), &config, &options)?;
    let rows = config["vocab_size"].as_u64().unwrap_or(tokenizer.vocabulary().len() as u64);
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::string("llama"));
    // What a runtime wants to see before it looks at a vocabulary.
    for (key, value) in [
        ("context_length", 512),
        ("embedding_length", 256),
        ("block_count", 1),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
    ] {
        metadata.set(format!("llama.{key}"), Value::U32(value));
    }
    metadata.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    metadata.extend(tokenizer.metadata(rows));
    let layout = Layout::new(&metadata, &[])?;
    std::fs::write(out, layout.header())?;
    eprintln!(
        "{} {:?}: {} tokens, {:?}, ends {:?}, {:.2} s",
        tokenizer.model(),
        tokenizer.pre(),
        tokenizer.vocabulary().len(),
        match tokenizer.fit(rows) {
            to_gguf::tokenizer::VocabFit::Excess { without_row, .. } => format!("{} without a row", without_row.len()),
            other => format!("{other:?}"),
        },
        tokenizer.ends(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
