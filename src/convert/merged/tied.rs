//! Tensors that a file holds twice because the model ties them: transformers loads one and saves one.

use crate::adapter;
use crate::convert::ConvertError;
use crate::source::{ModelFolder, TensorSet};

/// Tensors that are another one again, and which: names of the same bytes in a PyTorch file, and the head of a tied
/// model where it equals the embedding. Of several names the input embedding's stays.
pub(super) fn second_copies(base: &ModelFolder, tensors: &TensorSet) -> Result<Vec<(String, String)>, ConvertError> {
    let mut copies = Vec::new();
    for names in base.aliases() {
        let is_input = |n: &&&str| n.starts_with("shared.") || (n.contains("embed") && !n.contains("embed_out"));
        let Some(kept) = names.iter().find(is_input).or(names.first()) else { continue };
        copies.extend(names.iter().filter(|n| *n != kept).map(|n| ((*n).to_owned(), (*kept).to_owned())));
    }
    let config = base.config();
    let tied = [&config["tie_word_embeddings"], &config["text_config"]["tie_word_embeddings"]];
    if tied.iter().any(|t| t.as_bool() == Some(true))
        && let Some((embedding, head)) = adapter::embedding_and_head(tensors)
        && let (Some(one), Some(other)) = (tensors.get(&embedding), tensors.get(&head))
        && !copies.iter().any(|(copy, _)| *copy == head || *copy == embedding)
        && one.equals(other).map_err(|cause| ConvertError::Copy { tensor: head.clone(), cause })?
    {
        copies.push((head, embedding));
    }
    Ok(copies)
}
