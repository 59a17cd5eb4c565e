//! What an adapter changes of a model, and a GGUF of it has no place for.
//!
//! Gemma's and Command-R's head is the embeddings, in llama.cpp. An adapter of the embeddings alone leaves the head as it
//! was in training, which such a file cannot say: it gets what PEFT's own merge gives, where both are one tensor, and a
//! warning. What an adapter teaches the head itself would be lost, which is refused.

use super::ConvertError;
use crate::adapter::{MergeSummary, is_head};
use crate::arch;

/// Looks for changes among the tensors that were left out. `tied` is what the model's configuration says of its head.
pub(super) fn check(
    arch: &str,
    dropped: &[(String, &'static str)],
    tied: Option<bool>,
    merge: &mut MergeSummary,
) -> Result<(), ConvertError> {
    let untied = merge.untied_head.take_if(|head| dropped.iter().any(|(name, _)| name == head));
    let changed = |name: &str| merge.changes.iter().any(|c| c.tensor == name);
    let lost: Vec<&(String, &str)> = dropped.iter().filter(|(name, _)| changed(name)).collect();
    if let Some((head, _)) = lost.iter().find(|(name, _)| is_head(module(name))) {
        return Err(ConvertError::NoHead { tensor: head.clone(), arch: arch.into() });
    }
    let mut warnings = Vec::new();
    if let Some((first, reason)) = lost.first() {
        let count = lost.len();
        warnings.push(format!("{count} changed tensors have no place in a GGUF of {arch}, such as {first}: {reason}"));
    }
    let own = || dropped.iter().map(|(name, _)| name).find(|name| is_head(module(name)));
    if let Some(head) = &untied {
        warnings.push(without_head(head, arch));
    } else if let Some(head) = own().filter(|_| tied == Some(false)) {
        warnings.push(format!("llama.cpp has no place for {head} in {arch}: the embeddings are the head instead"));
    }
    merge.warnings.extend(warnings);
    Ok(())
}

/// The warning for a merged model folder, whose head a GGUF of it could not hold.
pub(super) fn warn_of_head(class: &str, merge: &MergeSummary) -> Option<String> {
    let arch = arch::family(class)?.arch;
    let head = merge.untied_head.as_ref().filter(|_| !arch::has_head(arch))?;
    Some(format!("{}; the folder holds both", without_head(head, arch)))
}

fn without_head(head: &str, arch: &str) -> String {
    format!(
        "llama.cpp has no place for {head} in {arch}: the adapter's change of the embeddings changes the head of a GGUF \
         too, as in the model that PEFT merges"
    )
}

/// The module that a tensor belongs to.
fn module(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::TensorChange;

    const DROPPED: &str = "the same as the embeddings";

    fn merged(changed: &[&str], untied: Option<&str>) -> MergeSummary {
        let change = |tensor: &&str| TensorChange {
            tensor: tensor.to_string(),
            adapter: "a".into(),
            module: module(tensor).into(),
            kind: "LoRA",
            rank: Some(8),
            meter: Default::default(),
        };
        MergeSummary {
            changes: changed.iter().map(change).collect(),
            untied_head: untied.map(str::to_string),
            ..MergeSummary::default()
        }
    }

    #[test]
    fn a_head_that_changes_is_refused_and_one_that_stays_is_told() {
        let dropped = [("lm_head.weight".to_string(), DROPPED), ("vision.w".to_string(), "no text")];
        let mut embeddings = merged(&["model.embed_tokens.weight"], Some("lm_head.weight"));
        check("gemma2", &dropped, Some(true), &mut embeddings).unwrap();
        assert!(embeddings.warnings.len() == 1 && embeddings.warnings[0].contains("as in the model that PEFT merges"));
        assert_eq!(embeddings.untied_head, None);

        let mut head = merged(&["lm_head.weight"], Some("lm_head.weight"));
        let error = check("gemma2", &dropped, Some(true), &mut head).unwrap_err().to_string();
        assert!(
            error.contains("lm_head.weight") && error.contains("gemma2") && error.contains("merged_16bit"),
            "{error}"
        );

        let mut vision = merged(&["vision.w"], None);
        check("gemma3", &dropped[1..], Some(true), &mut vision).unwrap();
        assert!(vision.warnings[0].starts_with("1 changed tensors have no place"), "{:?}", vision.warnings);

        let mut plain = merged(&[], None);
        check("gemma", &dropped, Some(true), &mut plain).unwrap();
        assert!(plain.warnings.is_empty());
        check("gemma", &dropped, Some(false), &mut plain).unwrap();
        assert!(plain.warnings[0].contains("the embeddings are the head"));
    }

    #[test]
    fn a_merged_folder_is_told_of_too() {
        let merge = merged(&[], Some("lm_head.weight"));
        assert!(warn_of_head("Gemma2ForCausalLM", &merge).is_some_and(|w| w.contains("the folder holds both")));
        assert_eq!(warn_of_head("LlamaForCausalLM", &merge), None);
    }
}
