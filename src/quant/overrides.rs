//! What a user may change about a quantized file: llama-quantize's options, parsed and checked.

use std::collections::BTreeSet;

use fancy_regex::Regex;

use super::GgmlType;
use crate::gguf::Value;

/// llama-quantize's options about types and keys.
#[derive(Clone, Debug, Default)]
pub struct QuantOptions {
    /// `--pure`: one type for all, no mixture.
    pub pure: bool,
    /// `--leave-output-tensor`: `output.weight` stays as it is.
    pub leave_output_tensor: bool,
    /// `--output-tensor-type`.
    pub output_tensor_type: Option<GgmlType>,
    /// `--token-embedding-type`.
    pub token_embedding_type: Option<GgmlType>,
    /// `--tensor-type` and `--tensor-type-file`; the first that matches decides.
    pub tensor_types: Vec<TensorTypeRule>,
    /// `--override-kv`, in order.
    pub override_kv: Vec<KvOverride>,
    /// `--prune-layers`.
    pub prune_layers: BTreeSet<u32>,
    /// `--allow-requantize`.
    pub allow_requantize: bool,
    /// `--keep-split`: the output has the input's parts.
    pub keep_split: bool,
}

/// An option's value that does not say anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
#[non_exhaustive]
pub enum OptionError {
    #[error("--tensor-type '{0}' is not REGEX=TYPE; write, for example, --tensor-type attn_v=q8_0")]
    TensorType(String),
    #[error("--tensor-type '{rule}': {reason}; correct the regular expression")]
    Regex { rule: String, reason: String },
    #[error("'{0}' is not a tensor type; use one of {known}", known = weight_type_names())]
    Type(String),
    #[error(
        "--override-kv '{0}' is not KEY=TYPE:VALUE; TYPE is int, float, bool or str, as in --override-kv tokenizer.ggml.add_bos_token=bool:false"
    )]
    Kv(String),
    #[error("--override-kv '{rule}': '{value}' is not a value of type {kind}; correct it")]
    KvValue { rule: String, kind: &'static str, value: String },
    #[error("--override-kv '{rule}': the {what} has {len} bytes, and llama.cpp allows 127; shorten it")]
    KvLength { rule: String, what: &'static str, len: usize },
    #[error("--prune-layers '{0}' is not a list of layer numbers; write, for example, --prune-layers 20,21,22")]
    Prune(String),
}

/// The type that tensors may be given, by ggml's name in any case.
pub fn weight_type(name: &str) -> Result<GgmlType, OptionError> {
    GgmlType::from_name(name).filter(|&t| can_hold_weights(t)).ok_or_else(|| OptionError::Type(name.to_owned()))
}

/// Whether weights can be converted to and from a type: blocks and floats, but not integers and doubles.
pub(crate) fn can_hold_weights(kind: GgmlType) -> bool {
    kind.is_quantized() || matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
}

fn weight_type_names() -> String {
    GgmlType::all().filter(|&t| can_hold_weights(t)).map(GgmlType::name).collect::<Vec<_>>().join(", ")
}

/// Tensors whose name matches get a type.
#[derive(Clone, Debug)]
pub struct TensorTypeRule {
    text: String,
    pattern: Regex,
    /// What they get.
    pub kind: GgmlType,
}

impl TensorTypeRule {
    /// Parses `REGEX=TYPE`. The expression is lowercased, as llama-quantize does, and may match anywhere in a name.
    pub fn parse(rule: &str) -> Result<Self, OptionError> {
        // The last '=', since an expression may hold one and a type cannot.
        let (pattern, kind) = match rule.rsplit_once('=') {
            Some((p, t)) if !p.is_empty() && !t.is_empty() => (p, t),
            _ => return Err(OptionError::TensorType(rule.to_owned())),
        };
        let kind = weight_type(kind)?;
        let pattern = Regex::new(&pattern.to_ascii_lowercase())
            .map_err(|e| OptionError::Regex { rule: rule.to_owned(), reason: e.to_string() })?;
        Ok(TensorTypeRule { text: rule.to_owned(), pattern, kind })
    }

    /// Parses the text of a `--tensor-type-file`: rules between white space.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, OptionError> {
        text.split_ascii_whitespace().map(Self::parse).collect()
    }

    /// The rule as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it speaks of this tensor. An expression that backtracks beyond measure matches nothing.
    pub fn matches(&self, name: &str) -> bool {
        self.pattern.is_match(name).unwrap_or(false)
    }
}

/// A key set by the user.
#[derive(Clone, Debug, PartialEq)]
pub struct KvOverride {
    /// The key.
    pub key: String,
    /// Its value, of the type that llama-quantize writes.
    pub value: Value,
}

impl KvOverride {
    /// Parses `KEY=TYPE:VALUE` (`string_parse_kv_override`). An `int` is written without its sign and as u32, since
    /// llama-quantize writes it so.
    pub fn parse(rule: &str) -> Result<Self, OptionError> {
        let malformed = || OptionError::Kv(rule.to_owned());
        let (key, typed) = rule.split_once('=').ok_or_else(malformed)?;
        let (kind, value) = typed.split_once(':').ok_or_else(malformed)?;
        if key.is_empty() {
            return Err(malformed());
        }
        let wrong = |kind| OptionError::KvValue { rule: rule.to_owned(), kind, value: value.to_owned() };
        let short = |what, s: &str| match s.len() {
            0..=127 => Ok(()),
            len => Err(OptionError::KvLength { rule: rule.to_owned(), what, len }),
        };
        short("key", key)?;
        let value = match kind {
            "int" => {
                let v: i64 = value.parse().map_err(|_| wrong("int"))?;
                Value::U32(u32::try_from(v.unsigned_abs()).map_err(|_| wrong("int"))?)
            }
            "float" => Value::F32(value.parse::<f64>().map_err(|_| wrong("float"))? as f32),
            "bool" => Value::Bool(value.parse().map_err(|_| wrong("bool"))?),
            "str" => {
                short("value", value)?;
                Value::string(value)
            }
            _ => return Err(malformed()),
        };
        Ok(KvOverride { key: key.to_owned(), value })
    }
}

/// Parses `--prune-layers`: numbers between commas.
pub fn parse_prune_layers(list: &str) -> Result<BTreeSet<u32>, OptionError> {
    list.split(',').map(|n| n.trim().parse().map_err(|_| OptionError::Prune(list.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_search_in_lowercase() {
        let rule = TensorTypeRule::parse(r"BLK\.(1|2)\.ffn_(?!up)=Q5_k").unwrap();
        assert_eq!(rule.kind, GgmlType::Q5_K);
        assert!(rule.matches("blk.1.ffn_down.weight"));
        assert!(!rule.matches("blk.1.ffn_up.weight"));
        assert!(!rule.matches("blk.3.ffn_down.weight"));
        assert_eq!(TensorTypeRule::parse_list("a=f16\nb=q4_0  c=iq4_nl\n").unwrap().len(), 3);
    }

    #[test]
    fn values_have_the_types_that_llama_quantize_writes() {
        let value = |s: &str| KvOverride::parse(s).unwrap().value;
        assert_eq!(value("k=int:-7"), Value::U32(7));
        assert_eq!(value("k=float:0.1"), Value::F32(0.1));
        assert_eq!(value("k=bool:false"), Value::Bool(false));
        assert_eq!(value("k=str:a=b:c"), Value::string("a=b:c"));
        assert_eq!(value("k=str:"), Value::string(""));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for bad in ["attn_v", "=q8_0", "attn_v=", "attn_v=q9_k", "attn_v=i32", "attn_(v=q8_0"] {
            TensorTypeRule::parse(bad).expect_err(bad);
        }
        for bad in ["k", "k=7", "k=uint:7", "=int:7", "k=int:x", "k=int:4294967296", "k=bool:yes", "k=float:"] {
            KvOverride::parse(bad).expect_err(bad);
        }
        KvOverride::parse(&format!("k=str:{}", "x".repeat(128))).unwrap_err();
        for bad in ["", "1,", "-1", "1-3"] {
            parse_prune_layers(bad).expect_err(bad);
        }
    }
}
