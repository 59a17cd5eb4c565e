//! Mixtures: which tensor of a model gets which block type under a file type.
//!
//! A port of the rules of `llama-quant.cpp` at llama.cpp 0.5.0 (`tensor_allows_quantization`,
//! `llama_tensor_get_type_impl`, `tensor_type_fallback`, `tensor_requires_imatrix`). Tensors must come in
//! llama-quantize's order, since some rules count the tensors of a kind seen so far.

use super::{FileType, GgmlType};
use crate::gguf::{Array, Metadata, Value};

/// What a model's keys say that the mixtures depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub arch: String,
    /// Layers, counted as llama.cpp's loader does (`n_layer_all`).
    pub layers: u32,
    /// `expert_count`; 0 for a dense model.
    pub experts: u32,
    /// Query heads per key-value head in the first layer; 0 where it has none.
    pub gqa: u32,
    /// Whether llama.cpp takes it for a "70B" model, whose value projections are small and worth more bits.
    pub is_70b: bool,
}

impl ModelFacts {
    /// Reads the facts as `llama_model_base::load_hparams` does.
    pub fn of(metadata: &Metadata) -> Self {
        let arch = metadata.get("general.architecture").and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| {
            let value = metadata.get(&format!("{arch}.{key}")).and_then(Value::as_u64);
            value.map(|v| u32::try_from(v).unwrap_or(u32::MAX))
        };
        // A projector's keys are not read at all there.
        if arch == "clip" {
            return ModelFacts { arch, layers: 0, experts: 0, gqa: 0, is_70b: false };
        }
        let per_layer = |key: &str| first_number(metadata.get(&format!("{arch}.{key}"))?);
        let blocks = number("block_count").unwrap_or(0);
        let n_layer = blocks.saturating_sub(number("nextn_predict_layers").unwrap_or(0));
        let layers = match arch.as_str() {
            "nanbeige" => n_layer.saturating_mul(number("num_loops").unwrap_or(1).max(1)).max(blocks),
            // Its adapters' router is one more attention layer at the end.
            "graniteswitch" => n_layer + 1,
            _ => blocks,
        };
        let experts = number("expert_count").unwrap_or(0);
        let heads = per_layer("attention.head_count").unwrap_or(0);
        let kv_heads = per_layer("attention.head_count_kv").unwrap_or(heads);
        let is_70b = match arch.as_str() {
            "llama" | "llama-embed" => n_layer == 80 && experts != 8 && heads != kv_heads,
            "qwen2" | "deci" | "olmo" => n_layer == 80,
            "jais2" => n_layer == 68,
            _ => false,
        };
        ModelFacts { arch, layers, experts, gqa: heads.checked_div(kv_heads).unwrap_or(0), is_70b }
    }
}

/// A number, or the first of an array of them.
fn first_number(value: &Value) -> Option<u32> {
    let n = match value {
        Value::Array(Array::U32(a)) => u64::from(*a.first()?),
        Value::Array(Array::I32(a)) => u64::try_from(*a.first()?).ok()?,
        other => other.as_u64()?,
    };
    u32::try_from(n).ok()
}

/// The broad kinds of tensors that the rules speak of (`tensor_category`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// `output.weight`.
    Output,
    /// `token_embd.weight`, `per_layer_token_embd.weight`.
    TokenEmbd,
    /// Attention values, alone or fused with other projections (`attn_qkv`, `attn_v`, `attn_kv_b`).
    Values,
    /// Attention keys.
    Keys,
    /// Attention queries.
    Queries,
    /// The attention's output projection.
    AttnOutput,
    /// Up projections, of experts too.
    FfnUp,
    /// Gates, of experts too.
    FfnGate,
    /// Down projections, of experts too.
    FfnDown,
    /// Anything else.
    Other,
}

impl Category {
    /// The category of a tensor name: the first that matches.
    pub fn of(name: &str) -> Self {
        const PARTS: &[(&str, Category)] = &[
            ("attn_qkv.weight", Category::Values),
            ("attn_kv_b.weight", Category::Values),
            ("attn_v.weight", Category::Values),
            ("attn_k.weight", Category::Keys),
            ("attn_q.weight", Category::Queries),
            ("attn_output.weight", Category::AttnOutput),
            ("ffn_up", Category::FfnUp),
            ("ffn_gate", Category::FfnGate),
            ("ffn_down", Category::FfnDown),
        ];
        match name {
            "output.weight" => Category::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Category::TokenEmbd,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Category::Other, |p| p.1),
        }
    }
}

/// Parts of names of tensors that stay as they are: norms, gates, convolutions, positions and other small ones.
const KEPT_PARTS: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// The same for GLM5-Next only.
const KEPT_PARTS_GLM5_NEXT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

/// Whether a tensor of this name and this many dimensions may change its type at all.
pub fn allows_quantization(arch: &str, name: &str, dims: usize) -> bool {
    // The C++ compares a failed search with a length that underflows, so every name of five bytes passes as well.
    let is_weight = name.ends_with("weight") || name.len() == 5;
    dims >= 2
        && is_weight
        && !matches!(name, "position_embd.weight" | "token_types.weight")
        && !KEPT_PARTS.iter().any(|part| name.contains(part))
        && !(arch == "glm5-next" && KEPT_PARTS_GLM5_NEXT.iter().any(|part| name.contains(part)))
}

/// Whether a tensor of this type is garbage without an importance matrix.
pub fn requires_imatrix(name: &str, kind: GgmlType, file_type: FileType) -> bool {
    use GgmlType::*;
    match kind {
        _ if matches!(name, "token_embd.weight" | "per_layer_token_embd.weight" | "output.weight") => false,
        IQ3_XXS | IQ2_XXS | IQ2_XS | IQ2_S | IQ1_M | IQ1_S => true,
        Q2_K => file_type == FileType::Q2_K_S,
        _ => false,
    }
}

/// The type for a row length that is not whole blocks of the one chosen; `None` where there is none (Q1_0, NVFP4).
pub fn fallback(kind: GgmlType, row: u64) -> Option<GgmlType> {
    use GgmlType::*;
    let fits = |t: GgmlType| row.is_multiple_of(t.geometry().elements);
    if fits(kind) {
        return Some(kind);
    }
    let smaller = match kind {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other if other.geometry().elements <= 32 => other,
        _ => return None,
    };
    Some(if fits(smaller) { smaller } else { F16 })
}

/// A tensor whose name should say its layer, and does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the layer of tensor '{tensor}' is not one of the model's {layers}; a mixture of experts needs names that begin with blk.N."
)]
pub struct UnknownLayer {
    /// The tensor.
    pub tensor: String,
    /// `block_count`.
    pub layers: u32,
}

/// The mixture of one file: hands out types in tensor order.
#[derive(Clone, Debug)]
pub struct Mixture<'a> {
    facts: &'a ModelFacts,
    file_type: FileType,
    has_imatrix: bool,
    /// No `output.weight`: the token embedding is the output too.
    tied: bool,
    output_type: Option<GgmlType>,
    /// Attention value tensors in the model, and those seen so far.
    n_values: u32,
    i_values: u32,
    i_down: u32,
    i_gate: u32,
    i_up: u32,
}

impl<'a> Mixture<'a> {
    /// A mixture for a model of these tensor names. `output_type` is what the user wants the output to be.
    pub fn new<'n>(
        facts: &'a ModelFacts,
        file_type: FileType,
        has_imatrix: bool,
        output_type: Option<GgmlType>,
        names: impl Iterator<Item = &'n str>,
    ) -> Self {
        let (mut tied, mut n_values) = (true, 0);
        for name in names {
            match Category::of(name) {
                Category::Output => tied = false,
                Category::Values => n_values += 1,
                _ => {}
            }
        }
        let seen = 0;
        Mixture {
            facts,
            file_type,
            has_imatrix,
            tied,
            output_type,
            n_values,
            i_values: seen,
            i_down: seen,
            i_gate: seen,
            i_up: seen,
        }
    }

    /// The file type.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// The type of the next tensor, given in GGUF order of dimensions, before any fallback for its shape.
    pub fn choose(&mut self, name: &str, ne: &[u64]) -> Result<GgmlType, UnknownLayer> {
        use FileType as F;
        use GgmlType::*;
        let ftype = self.file_type;
        let base = ftype.base_type();
        let category = Category::of(name);
        let arch = self.facts.arch.as_str();
        let glm5_wide = ["attn_q_a", "attn_q_b", "nextn.eh_proj"];
        if arch == "glm5-next" && glm5_wide.iter().any(|part| name.contains(part)) {
            return Ok(Q8_0);
        }
        let low_bit = matches!(ftype, F::IQ2_XXS | F::IQ2_XS | F::IQ2_S | F::IQ2_M | F::IQ1_S | F::IQ1_M);
        let row = ne.first().copied().unwrap_or(1);

        if category == Category::Output || (self.tied && category == Category::TokenEmbd) {
            return Ok(match self.output_type {
                Some(kind) => kind,
                None if ftype == F::MXFP4_MOE || arch == "falcon" => Q8_0,
                None if !row.is_multiple_of(base.geometry().elements) => Q8_0,
                None if low_bit || ftype == F::IQ3_XXS => Q5_K,
                None if base == Q8_0 => Q8_0,
                None => Q6_K,
            });
        }
        if ftype == F::MXFP4_MOE {
            let expert = matches!(category, Category::FfnUp | Category::FfnGate | Category::FfnDown);
            let stacked = ne.get(2).is_some_and(|&n| n > 1);
            return Ok(if stacked && (arch != "bailingmoe3" || expert) { MXFP4 } else { Q8_0 });
        }
        match category {
            Category::TokenEmbd => Ok(match ftype {
                F::IQ2_XXS | F::IQ2_XS | F::IQ1_S | F::IQ1_M => Q2_K,
                F::IQ2_S | F::IQ2_M | F::IQ3_XXS => IQ3_S,
                F::TQ1_0 | F::TQ2_0 | F::Q2_0 => Q4_K,
                _ => base,
            }),
            _ if low_bit => Ok(self.choose_low_bit(category, base)),
            Category::Values => Ok(self.choose_values(base)),
            Category::Keys if self.facts.experts == 8 => Ok(Q8_0),
            Category::Keys | Category::Queries => Ok(match ftype {
                F::IQ3_XS => IQ3_XXS,
                F::IQ3_XXS => IQ2_S,
                _ => base,
            }),
            Category::FfnDown => self.choose_ffn_down(name, base),
            Category::AttnOutput => Ok(self.choose_attn_output(base)),
            Category::FfnGate => {
                let i = self.layer(self.i_gate, name)?;
                self.i_gate += 1;
                Ok(self.choose_gate_or_up(i, base))
            }
            Category::FfnUp => {
                let i = self.layer(self.i_up, name)?;
                self.i_up += 1;
                Ok(self.choose_gate_or_up(i, base))
            }
            Category::Output | Category::Other => Ok(base),
        }
    }

    /// IQ1 and IQ2 files: what hurts most is kept at more bits.
    fn choose_low_bit(&mut self, category: Category, base: GgmlType) -> GgmlType {
        use FileType as F;
        use GgmlType::*;
        let is_2_s_or_m = matches!(self.file_type, F::IQ2_S | F::IQ2_M);
        let more = if is_2_s_or_m { IQ3_S } else { Q2_K };
        match category {
            Category::Values => {
                self.i_values += 1;
                if self.facts.gqa >= 4 || self.facts.experts >= 4 { Q4_K } else { more }
            }
            Category::Keys if self.facts.experts == 8 => Q4_K,
            Category::FfnDown => {
                let i = self.i_down;
                self.i_down += 1;
                if i < self.facts.layers / 8 { more } else { base }
            }
            Category::AttnOutput => match self.file_type {
                _ if self.facts.experts == 8 => Q5_K,
                F::IQ1_S | F::IQ1_M => IQ2_XXS,
                _ if is_2_s_or_m => IQ3_S,
                _ => base,
            },
            _ => base,
        }
    }

    fn choose_values(&mut self, base: GgmlType) -> GgmlType {
        use FileType as F;
        use GgmlType::*;
        let wide = self.facts.gqa >= 4;
        let i = self.i_values;
        self.i_values += 1;
        let kind = match self.file_type {
            F::Q2_K => {
                if wide {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            F::Q2_K_S if wide => Q4_K,
            F::IQ3_XXS if wide => Q4_K,
            F::IQ3_XXS => {
                if self.has_imatrix {
                    IQ3_XXS
                } else {
                    IQ3_S
                }
            }
            F::IQ3_XS | F::IQ3_S if wide => Q4_K,
            F::IQ3_M => Q4_K,
            F::Q3_K_M => {
                if i < 2 {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            F::Q3_K_L => Q5_K,
            F::IQ4_NL | F::IQ4_XS if wide => Q5_K,
            F::Q4_K_M | F::Q5_K_M if more_bits(i, self.n_values) => Q6_K,
            F::Q4_K_S if i < 4 => Q5_K,
            _ => base,
        };
        if self.facts.experts == 8 {
            // Small beside the experts, so its bits are cheap.
            return Q8_0;
        }
        match kind {
            Q3_K | Q4_K if self.facts.is_70b => Q5_K,
            other => other,
        }
    }

    fn choose_ffn_down(&mut self, name: &str, base: GgmlType) -> Result<GgmlType, UnknownLayer> {
        use FileType as F;
        use GgmlType::*;
        let n = self.facts.layers;
        let i = self.layer(self.i_down, name)?;
        self.i_down += 1;
        let falcon = self.facts.arch == "falcon";
        let first_eighth = i < n / 8;
        let more = more_bits(i, n);
        Ok(match self.file_type {
            F::Q2_K => Q3_K,
            F::Q2_K_S if first_eighth => Q4_K,
            F::IQ3_XXS if !self.has_imatrix => {
                if first_eighth {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            F::Q3_K_M if i < n / 16 => Q5_K,
            F::Q3_K_M => {
                if !falcon || more {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            F::IQ3_M if first_eighth || (self.facts.experts == 8 && more) => Q4_K,
            F::Q3_K_L => {
                if falcon {
                    Q4_K
                } else {
                    Q5_K
                }
            }
            F::Q4_K_M if falcon => {
                if i < n / 16 {
                    Q6_K
                } else if more {
                    Q5_K
                } else {
                    Q4_K
                }
            }
            F::Q4_K_M | F::Q5_K_M if more => Q6_K,
            F::IQ4_NL | F::IQ4_XS if first_eighth && !self.has_imatrix => Q5_K,
            F::Q4_K_S if first_eighth && !falcon => Q5_K,
            // With an imatrix, the first layers can go wrong without a minimum per block.
            F::Q4_0 if first_eighth && self.has_imatrix => Q4_1,
            F::Q5_0 if first_eighth && self.has_imatrix => Q5_1,
            _ => base,
        })
    }

    fn choose_attn_output(&self, base: GgmlType) -> GgmlType {
        use FileType as F;
        use GgmlType::*;
        if self.facts.arch == "falcon" {
            return if self.file_type == F::Q3_K_L { Q4_K } else { base };
        }
        if self.facts.experts == 8 {
            return match self.file_type {
                F::Q2_K
                | F::IQ3_XS
                | F::IQ3_XXS
                | F::Q3_K_S
                | F::Q3_K_M
                | F::IQ4_NL
                | F::Q4_K_S
                | F::Q4_K_M
                | F::IQ3_S
                | F::IQ3_M
                | F::IQ4_XS => Q5_K,
                _ => base,
            };
        }
        match self.file_type {
            F::Q2_K => Q3_K,
            F::IQ3_XXS => IQ3_S,
            F::Q3_K_M | F::IQ3_M => Q4_K,
            F::Q3_K_L => Q5_K,
            _ => base,
        }
    }

    fn choose_gate_or_up(&self, i: u32, base: GgmlType) -> GgmlType {
        let n = self.facts.layers;
        let middle = i >= n / 8 && u64::from(i) < 7 * u64::from(n) / 8;
        if self.file_type == FileType::IQ3_XS && middle { GgmlType::IQ3_XXS } else { base }
    }

    /// The layer that a rule means: how many of the kind were seen or, in a mixture of experts, where their order is
    /// not that of the layers, what the name says.
    fn layer(&self, seen: u32, name: &str) -> Result<u32, UnknownLayer> {
        if self.facts.experts <= 1 {
            return Ok(seen);
        }
        let layers = self.facts.layers;
        layer_of(name)
            .and_then(|i| u32::try_from(i).ok())
            .filter(|&i| i < layers)
            .ok_or_else(|| UnknownLayer { tensor: name.to_owned(), layers })
    }
}

/// Whether layer i of n is among the first or last eighth, or every third between (`use_more_bits`).
fn more_bits(i: u32, n: u32) -> bool {
    let (i, n) = (i64::from(i), i64::from(n));
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// N of a name that begins with `blk.N`.
pub fn layer_of(name: &str) -> Option<i32> {
    let rest = name.strip_prefix("blk.")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, Value)]) -> ModelFacts {
        let mut m = Metadata::new();
        for (k, v) in pairs {
            m.set(*k, v.clone());
        }
        ModelFacts::of(&m)
    }

    #[test]
    fn facts_come_from_the_architectures_keys() {
        let f = facts(&[
            ("general.architecture", Value::string("llama")),
            ("llama.block_count", Value::U32(80)),
            ("llama.attention.head_count", Value::U32(64)),
            ("llama.attention.head_count_kv", Value::Array(Array::I32(vec![8; 80]))),
        ]);
        assert_eq!((f.layers, f.gqa, f.experts, f.is_70b), (80, 8, 0, true));
    }

    #[test]
    fn a_layer_without_keys_has_no_gqa() {
        let f = facts(&[
            ("general.architecture", Value::string("jamba")),
            ("jamba.attention.head_count", Value::U32(32)),
            ("jamba.attention.head_count_kv", Value::Array(Array::U32(vec![0, 8]))),
        ]);
        assert_eq!(f.gqa, 0);
    }

    #[test]
    fn a_fallback_fits_its_row() {
        for kind in GgmlType::all().filter(|t| t.is_quantized()) {
            for row in [1, 32, 64, 96, 100, 128, 256, 288] {
                match fallback(kind, row) {
                    Some(t) => assert!(row.is_multiple_of(t.geometry().elements), "{kind} {row} -> {t}"),
                    None => assert!(matches!(kind, GgmlType::Q1_0 | GgmlType::NVFP4), "{kind} {row}"),
                }
            }
        }
        assert_eq!(fallback(GgmlType::Q4_K, 96), Some(GgmlType::Q5_0));
        assert_eq!(fallback(GgmlType::Q4_K, 100), Some(GgmlType::F16));
        assert_eq!(fallback(GgmlType::Q8_0, 100), Some(GgmlType::F16));
    }

    #[test]
    fn names_tell_their_layer() {
        assert_eq!(layer_of("blk.12.ffn_down.weight"), Some(12));
        assert_eq!(layer_of("v.blk.12.ffn_down.weight"), None);
        assert_eq!(layer_of("blk.x"), None);
    }
}
