//! In which type a converted tensor is stored (`ModelBase.prepare_tensors` of the converter).

use super::pattern::Pattern;
use crate::quant::GgmlType;
use crate::recipe::Recipe;
use crate::shape::Shape;

/// An output tensor: its name, how to compute it, and how it is stored.
#[derive(Clone, Debug)]
pub struct ConvertedTensor {
    /// GGUF name.
    pub name: String,
    /// The expression over source tensors.
    pub recipe: Recipe,
    /// How it is stored.
    pub stored: Stored,
    /// Source tensors it is made of; none for a computed one.
    pub source: Vec<String>,
    /// The values with their factor, where the recipe gives blocks and another tensor the factor.
    pub whole: Option<Recipe>,
}

/// How a tensor's type follows from the output type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Always in F32.
    F32,
    /// In the output type.
    FollowsOutput,
    /// In the output type, but not in a ternary one: embeddings and output.
    FollowsOutputUnlessTernary,
    /// Always in this type.
    Fixed(GgmlType),
}

/// Weights that are stored in F32 whatever their shape.
const ALWAYS_F32: &[&str] = &[
    "position_embd.weight",
    "token_types.weight",
    "blk.{L}.ffn_gate_inp.weight",
    "blk.{L}.ffn_gate_inp_shexp.weight",
    "blk.{L}.ssm_conv1d.weight",
    "blk.{L}.ssm_conv1d_q.weight",
    "blk.{L}.ssm_conv1d_k.weight",
    "blk.{L}.ssm_conv1d_v.weight",
    "blk.{L}.shortconv.conv.weight",
    "blk.{L}.time_mix_first.weight",
    "blk.{L}.time_mix_w1.weight",
    "blk.{L}.time_mix_w2.weight",
    "blk.{L}.time_mix_decay_w1.weight",
    "blk.{L}.time_mix_decay_w2.weight",
    "blk.{L}.time_mix_lerp_fused.weight",
    "blk.{L}.altup_correct_coef.weight",
    "blk.{L}.altup_predict_coef.weight",
    "blk.{L}.indexer.proj.weight",
];

/// Weights that a ternary file stores in F16.
const NEVER_TERNARY: &[&str] = &[
    "token_embd.weight",
    "per_layer_token_embd.weight",
    "output.weight",
    "altup_router.weight",
    "blk.{L}.altup_router.weight",
    "blk.{L}.laurel_l.weight",
    "blk.{L}.laurel_r.weight",
];

impl Stored {
    /// The rule for a tensor of this name and shape.
    pub fn of(name: &str, shape: &Shape) -> Stored {
        let one_of = |patterns: &[&str]| patterns.iter().any(|p| Pattern::parse(p).find(name).is_some());
        let weight = [".weight", ".lora_a", ".lora_b"].iter().any(|s| name.ends_with(s));
        if shape.ndim() <= 1 || name.ends_with("_norm.weight") || !weight || one_of(ALWAYS_F32) {
            Stored::F32
        } else if one_of(NEVER_TERNARY) {
            Stored::FollowsOutputUnlessTernary
        } else {
            Stored::FollowsOutput
        }
    }
}

impl ConvertedTensor {
    /// The type in a file of output type `output` (F32, F16, BF16, Q8_0, TQ1_0 or TQ2_0). A row that is no whole
    /// number of blocks is stored in F16.
    pub fn stored_type(&self, output: GgmlType) -> GgmlType {
        let wanted = match self.stored {
            Stored::F32 => return GgmlType::F32,
            Stored::Fixed(t) => return t,
            Stored::FollowsOutputUnlessTernary if matches!(output, GgmlType::TQ1_0 | GgmlType::TQ2_0) => {
                return GgmlType::F16;
            }
            Stored::FollowsOutput | Stored::FollowsOutputUnlessTernary => output,
        };
        if wanted.row_bytes(self.recipe.shape().row_len()).is_some() { wanted } else { GgmlType::F16 }
    }
}

/// The output type for `auto`: that of the first matrix in F16 or BF16, F16 where there is none. Of a packed model, these
/// are the matrices as they are stored: codes do not count, scales do.
pub fn guess_output_type<'a>(matrices: impl IntoIterator<Item = (&'a str, GgmlType)>) -> GgmlType {
    matrices
        .into_iter()
        .filter(|(name, _)| super::pattern::text_name(name).is_ok())
        .map(|(_, kind)| kind)
        .find(|t| matches!(t, GgmlType::F16 | GgmlType::BF16))
        .unwrap_or(GgmlType::F16)
}
