//! File types: the names users type, llama.cpp's number for each, and the block type each is made of.

use super::GgmlType;

/// A file type of llama.cpp (`enum llama_ftype`) that a model can be quantized to. The discriminant is the value of
/// `general.file_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)] // llama.cpp's own names
#[repr(u32)]
pub enum FileType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 7,
    Q5_0 = 8,
    Q5_1 = 9,
    Q2_K = 10,
    Q3_K_S = 11,
    Q3_K_M = 12,
    Q3_K_L = 13,
    Q4_K_S = 14,
    Q4_K_M = 15,
    Q5_K_S = 16,
    Q5_K_M = 17,
    Q6_K = 18,
    IQ2_XXS = 19,
    IQ2_XS = 20,
    Q2_K_S = 21,
    IQ3_XS = 22,
    IQ3_XXS = 23,
    IQ1_S = 24,
    IQ4_NL = 25,
    IQ3_S = 26,
    IQ3_M = 27,
    IQ2_S = 28,
    IQ2_M = 29,
    IQ4_XS = 30,
    IQ1_M = 31,
    BF16 = 32,
    TQ1_0 = 36,
    TQ2_0 = 37,
    MXFP4_MOE = 38,
    Q1_0 = 40,
    Q2_0 = 41,
}

/// `general.file_type` of NVFP4 files (`LLAMA_FTYPE_MOSTLY_NVFP4`), to which llama.cpp does not quantize.
pub const MOSTLY_NVFP4: u32 = 39;

/// One row per file type: name, and the type of a tensor that no rule of the mixture changes
/// (`llama_ftype_get_default_type`).
const TABLE: &[(FileType, &str, GgmlType)] = {
    use FileType as F;
    use GgmlType as T;
    &[
        (F::F32, "F32", T::F32),
        (F::F16, "F16", T::F16),
        (F::BF16, "BF16", T::BF16),
        (F::Q8_0, "Q8_0", T::Q8_0),
        (F::Q6_K, "Q6_K", T::Q6_K),
        (F::Q5_K_M, "Q5_K_M", T::Q5_K),
        (F::Q5_K_S, "Q5_K_S", T::Q5_K),
        (F::Q5_1, "Q5_1", T::Q5_1),
        (F::Q5_0, "Q5_0", T::Q5_0),
        (F::Q4_K_M, "Q4_K_M", T::Q4_K),
        (F::Q4_K_S, "Q4_K_S", T::Q4_K),
        (F::Q4_1, "Q4_1", T::Q4_1),
        (F::Q4_0, "Q4_0", T::Q4_0),
        (F::IQ4_NL, "IQ4_NL", T::IQ4_NL),
        (F::IQ4_XS, "IQ4_XS", T::IQ4_XS),
        (F::MXFP4_MOE, "MXFP4_MOE", T::MXFP4),
        (F::Q3_K_L, "Q3_K_L", T::Q3_K),
        (F::Q3_K_M, "Q3_K_M", T::Q3_K),
        (F::Q3_K_S, "Q3_K_S", T::Q3_K),
        (F::IQ3_M, "IQ3_M", T::IQ3_S),
        (F::IQ3_S, "IQ3_S", T::IQ3_S),
        (F::IQ3_XS, "IQ3_XS", T::IQ3_S),
        (F::IQ3_XXS, "IQ3_XXS", T::IQ3_XXS),
        (F::Q2_K, "Q2_K", T::Q2_K),
        (F::Q2_K_S, "Q2_K_S", T::Q2_K),
        (F::Q2_0, "Q2_0", T::Q2_0),
        (F::IQ2_M, "IQ2_M", T::IQ2_S),
        (F::IQ2_S, "IQ2_S", T::IQ2_XS),
        (F::IQ2_XS, "IQ2_XS", T::IQ2_XS),
        (F::IQ2_XXS, "IQ2_XXS", T::IQ2_XXS),
        (F::TQ2_0, "TQ2_0", T::TQ2_0),
        (F::TQ1_0, "TQ1_0", T::TQ1_0),
        (F::IQ1_M, "IQ1_M", T::IQ1_M),
        (F::IQ1_S, "IQ1_S", T::IQ1_S),
        (F::Q1_0, "Q1_0", T::Q1_0),
    ]
};

/// Names that stand for another: llama-quantize's own, then Unsloth's.
const ALIASES: &[(&str, FileType)] = &[
    ("Q3_K", FileType::Q3_K_M),
    ("Q4_K", FileType::Q4_K_M),
    ("Q5_K", FileType::Q5_K_M),
    ("FAST_QUANTIZED", FileType::Q8_0),
    ("QUANTIZED", FileType::Q4_K_M),
];

impl FileType {
    fn entry(self) -> &'static (FileType, &'static str, GgmlType) {
        TABLE.iter().find(|e| e.0 == self).expect("every file type has its row in TABLE")
    }

    /// All file types, roughly from the largest files to the smallest.
    pub fn all() -> impl Iterator<Item = FileType> {
        TABLE.iter().map(|e| e.0)
    }

    /// llama-quantize's name, in capitals.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// The file type of a name or alias in any case, or of llama.cpp's number in digits.
    pub fn from_name(name: &str) -> Option<Self> {
        let named = TABLE.iter().map(|e| (e.1, e.0)).chain(ALIASES.iter().copied());
        let by_name = named.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, t)| t).next();
        by_name.or_else(|| FileType::from_id(name.parse().ok()?))
    }

    /// The file type of a `general.file_type`.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|e| e.0 as u32 == id).map(|e| e.0)
    }

    /// The type of a tensor that no rule of the mixture changes.
    pub fn base_type(self) -> GgmlType {
        self.entry().2
    }
}

impl std::fmt::Display for FileType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What `--quant` can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantName {
    /// The source's own 16- or 32-bit type: `auto`, or Unsloth's `not_quantized`.
    Auto,
    /// Every tensor as it is, in llama-quantize's order: `COPY`.
    Copy,
    /// A file type.
    Type(FileType),
    /// Unsloth's Q2_K_L: Q2_K, with output and token embedding as Q8_0.
    Q2KL,
}

impl QuantName {
    /// What a name in any case asks for.
    pub fn from_name(name: &str) -> Option<Self> {
        let is = |n: &str| name.eq_ignore_ascii_case(n);
        if is("auto") || is("not_quantized") {
            Some(QuantName::Auto)
        } else if is("copy") {
            Some(QuantName::Copy)
        } else if is("q2_k_l") {
            Some(QuantName::Q2KL)
        } else {
            FileType::from_name(name).map(QuantName::Type)
        }
    }

    /// The name as it stands in file names.
    pub fn name(self) -> &'static str {
        match self {
            QuantName::Auto => "AUTO",
            QuantName::Copy => "COPY",
            QuantName::Type(t) => t.name(),
            QuantName::Q2KL => "Q2_K_L",
        }
    }

    /// All names that mean something different, for help and error texts.
    pub fn all_names() -> Vec<&'static str> {
        let mut names: Vec<_> = FileType::all().map(FileType::name).collect();
        names.extend(["Q2_K_L", "COPY", "auto"]);
        names
    }
}

impl std::fmt::Display for QuantName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_35_and_each_has_its_row() {
        assert_eq!(FileType::all().count(), 35);
        for t in FileType::all() {
            assert_eq!(FileType::from_name(&t.name().to_lowercase()), Some(t));
            assert_eq!(FileType::from_id(t as u32), Some(t));
            assert_eq!(FileType::from_name(&(t as u32).to_string()), Some(t));
        }
    }

    #[test]
    fn aliases_mean_what_their_makers_say() {
        assert_eq!(QuantName::from_name("q4_k"), Some(QuantName::Type(FileType::Q4_K_M)));
        assert_eq!(QuantName::from_name("quantized"), Some(QuantName::Type(FileType::Q4_K_M)));
        assert_eq!(QuantName::from_name("fast_quantized"), Some(QuantName::Type(FileType::Q8_0)));
        assert_eq!(QuantName::from_name("not_quantized"), Some(QuantName::Auto));
        assert_eq!(QuantName::from_name("Q2_K_L"), Some(QuantName::Q2KL));
        assert_eq!(QuantName::from_name("Q9_K"), None);
        assert_eq!(QuantName::from_name("39"), None);
    }
}
