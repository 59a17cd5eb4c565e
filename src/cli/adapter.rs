//! Options of adapter-only output, described and read.

use clap::{Args, ValueEnum};

use super::Usage;
use crate::convert::{self, AdapterSave};

/// Options of `--save-method lora`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapter-only output (--save-method lora)")]
pub(super) struct AdapterArgs {
    /// What an adapter is saved as
    #[arg(long, value_name = "FORMAT", default_value = "peft")]
    pub format: AdapterFormat,
    /// Which adapter, where a folder holds several; also when merging
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// Write adapter_model.bin instead of adapter_model.safetensors
    #[arg(long)]
    pub no_safe_serialization: bool,
    /// Whether to save the embedding and the head beside the factors; auto: where the adapter targets them or the
    /// vocabulary was resized
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub save_embedding_layers: SaveEmbeddings,
}

impl AdapterArgs {
    /// How the adapter is saved.
    pub(super) fn method(&self) -> Result<AdapterSave, Usage> {
        if self.format == AdapterFormat::Gguf && self.no_safe_serialization {
            return Err(Usage("--no-safe-serialization: is about --format peft; leave it out".into()));
        }
        let embeddings = match self.save_embedding_layers {
            SaveEmbeddings::Auto => convert::SaveEmbeddings::Auto,
            SaveEmbeddings::Yes => convert::SaveEmbeddings::Yes,
            SaveEmbeddings::No => convert::SaveEmbeddings::No,
        };
        Ok(AdapterSave { format: self.format.into(), safe: !self.no_safe_serialization, embeddings })
    }
}

/// What an adapter is saved as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum AdapterFormat {
    /// A folder as PEFT saves it
    Peft,
    /// A GGUF for llama.cpp's --lora and Ollama's ADAPTER
    Gguf,
}

impl From<AdapterFormat> for convert::AdapterFormat {
    fn from(format: AdapterFormat) -> Self {
        match format {
            AdapterFormat::Peft => convert::AdapterFormat::Peft,
            AdapterFormat::Gguf => convert::AdapterFormat::Gguf,
        }
    }
}

/// Whether the embedding and the head are saved with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SaveEmbeddings {
    /// By PEFT's rule
    Auto,
    /// Always
    Yes,
    /// Only as modules_to_save
    No,
}
