//! Source-name patterns: `{L}`, `{E}`, a `.*` at the end, a `*` at the start.

/// A pattern taken apart.
pub(super) struct Pattern<'a> {
    any_prefix: bool,
    pieces: Vec<Piece<'a>>,
    suffix: bool,
}

enum Piece<'a> {
    Text(&'a str),
    Block,
    Member,
}

/// What a pattern's placeholders stand for in a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    pub(super) block: Option<u64>,
    pub(super) member: Option<u64>,
    pub(super) suffix: &'a str,
}

impl<'a> Pattern<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let (any_prefix, text) = text.strip_prefix('*').map_or((false, text), |rest| (true, rest));
        let (suffix, mut rest) = text.strip_suffix(".*").map_or((false, text), |rest| (true, rest));
        let mut pieces = Vec::new();
        while let Some(at) = rest.find('{') {
            pieces.push(Piece::Text(&rest[..at]));
            pieces.push(if rest[at..].starts_with("{L}") { Piece::Block } else { Piece::Member });
            rest = &rest[at + 3..];
        }
        pieces.push(Piece::Text(rest));
        Pattern { any_prefix, pieces, suffix }
    }

    /// The values of the placeholders, where the name fits.
    pub(super) fn find(&self, name: &str) -> Option<Found<'static>> {
        let (name, suffix) = match self.suffix {
            false => (name, ""),
            true => {
                let strip = |s: &'static str| name.strip_suffix(s).map(|n| (n, s));
                strip(".weight").or_else(|| strip(".bias"))?
            }
        };
        if self.any_prefix {
            return (0..=name.len())
                .filter(|&i| name.is_char_boundary(i))
                .find_map(|i| self.fit(&name[i..]))
                .map(|(block, member)| Found { block, member, suffix });
        }
        self.fit(name).map(|(block, member)| Found { block, member, suffix })
    }

    fn fit(&self, mut name: &str) -> Option<(Option<u64>, Option<u64>)> {
        let (mut block, mut member) = (None, None);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => name = name.strip_prefix(text)?,
                Piece::Block | Piece::Member => {
                    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
                    let number: u64 = name[..digits].parse().ok()?;
                    name = &name[digits..];
                    match piece {
                        Piece::Block => block = Some(number),
                        _ => member = Some(number),
                    }
                }
            }
        }
        name.is_empty().then_some((block, member))
    }
}

/// The block that a source tensor of most decoders is in.
pub(super) fn block_of(name: &str) -> Option<u64> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// An output's name.
pub(super) fn output_name(pattern: &str, block: Option<u64>, member: Option<u64>, suffix: &str) -> String {
    let mut name = match pattern.strip_suffix(".*") {
        Some(stem) => format!("{stem}{suffix}"),
        None => pattern.to_owned(),
    };
    for (mark, number) in [("{L}", block), ("{E}", member)] {
        if let Some(number) = number {
            name = name.replace(mark, &number.to_string());
        }
    }
    name
}

/// Beginnings of tensors of other parts of multimodal models (`TextModel.filter_tensors`).
const OTHER_STARTS: &[&str] = &[
    "mlp",
    "vit.",
    "vpm.",
    "siglip2.",
    "conformer.",
    "merger.",
    "resampler.",
    "sound_encoder.",
    "sound_projection.",
    "speech_embeddings.",
];

/// Parts of names of such tensors.
const OTHER_PARTS: &[&str] = &[
    "visual.",
    "vision.",
    "audio.",
    "talker.",
    "vision_",
    "audio_",
    "token2wav.",
    "code2wav.",
    "projector.",
    "pre_mm_projector_norm",
    "image_newline",
    "view_seperator",
    "patch_embed",
    "patch_merger.",
    "patch_merge_mlp.",
    "model.connector.",
];

/// The name under which the tables know a tensor, or why no text model has it.
pub(super) fn text_name(name: &str) -> Result<String, &'static str> {
    if OTHER_STARTS.iter().any(|s| name.starts_with(s)) || OTHER_PARTS.iter().any(|p| name.contains(p)) {
        return Err("part of a vision, audio or speech model");
    }
    if name.ends_with(".rotary_emb.inv_freq") {
        return Err("RoPE frequencies, which llama.cpp computes");
    }
    if name.ends_with(".attention.masked_bias") || name.ends_with(".attention.bias") {
        return Err("an attention mask, which llama.cpp computes");
    }
    Ok(name.replace("e_score_correction_bias", "e_score_correction.bias").replace("language_model.", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_suffixes_are_found() {
        let p = Pattern::parse("model.layers.{L}.mlp.experts.{E}.up_proj.*");
        let found = p.find("model.layers.12.mlp.experts.3.up_proj.bias").unwrap();
        assert_eq!(found, Found { block: Some(12), member: Some(3), suffix: ".bias" });
        assert_eq!(output_name("blk.{L}.ffn_up_exps.*", found.block, None, found.suffix), "blk.12.ffn_up_exps.bias");
        assert!(p.find("model.layers.12.mlp.experts.3.up_proj.scale").is_none());
        assert!(p.find("model.layers.x.mlp.experts.3.up_proj.bias").is_none());
        assert!(Pattern::parse("*.attn.bias").find("h.0.attn.bias").is_some());
        assert!(Pattern::parse("a").find("ab").is_none());
    }

    #[test]
    fn tensors_of_other_modalities_are_named_so() {
        assert!(text_name("vision_tower.x.weight").is_err());
        assert_eq!(text_name("model.language_model.norm.weight").unwrap(), "model.norm.weight");
    }
}
