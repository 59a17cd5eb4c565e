//! One model in several files, as `llama-gguf-split` cuts it: the keys are in the first, tensors keep their order.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{DEFAULT_ALIGNMENT, LayoutError, Metadata, TensorInfo, Value};

/// When a part is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitLimit {
    /// So many tensors in a part (`--split-max-tensors`).
    Tensors(u64),
    /// So many bytes of tensor data, padding included, in a part (`--split-max-size`); a larger tensor gets a part
    /// of its own.
    Bytes(u64),
}

/// How a model is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitRule {
    /// When a part is full.
    pub limit: SplitLimit,
    /// Whether the first part holds the keys only (`--no-tensor-first-split`).
    pub bare_first: bool,
}

/// Cuts a model into parts: the keys and the range of tensors of each. One part needs no `split.*` keys of its own
/// but gets them all the same, as from `llama-gguf-split`.
pub fn split(
    metadata: &Metadata,
    tensors: &[TensorInfo],
    rule: SplitRule,
) -> Result<Vec<(Metadata, Range<usize>)>, LayoutError> {
    let SplitRule { limit, bare_first } = rule;
    let mut ranges = Vec::new();
    if bare_first {
        ranges.push(0..0);
    }
    let (mut start, mut bytes) = (0, 0u64);
    for (i, t) in tensors.iter().enumerate() {
        let size = t
            .kind
            .row_bytes(t.shape.row_len())
            .and_then(|row| row.checked_mul(t.shape.rows()))
            .and_then(|n| n.checked_next_multiple_of(DEFAULT_ALIGNMENT))
            .ok_or_else(|| LayoutError::TooLarge { tensor: t.name.clone(), shape: t.shape.clone() })?;
        let full = match limit {
            SplitLimit::Tensors(0) | SplitLimit::Bytes(0) => return Err(LayoutError::ZeroLimit),
            SplitLimit::Tensors(n) => (i - start) as u64 == n,
            SplitLimit::Bytes(n) => i > start && bytes.saturating_add(size) > n,
        };
        if full {
            ranges.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(size);
    }
    ranges.push(start..tensors.len());

    let count = u16::try_from(ranges.len()).map_err(|_| LayoutError::TooManyParts(ranges.len()))?;
    Ok(ranges
        .into_iter()
        .zip(0u16..)
        .map(|(range, no)| {
            let mut keys = if no == 0 { metadata.clone() } else { Metadata::new() };
            // The count is known last there, so its key comes last.
            keys.set_last("split.no", Value::U16(no));
            keys.set_last("split.tensors.count", Value::I32(tensors.len() as i32));
            keys.set_last("split.count", Value::U16(count));
            (keys, range)
        })
        .collect())
}

/// The path of part `no` (from 0) of `count`: `prefix-00001-of-00003.gguf` (`llama_split_path`). A `.gguf` at the
/// end of the prefix is dropped first.
pub fn part_path(prefix: &Path, no: usize, count: usize) -> PathBuf {
    let stem = match prefix.extension() {
        Some(e) if e == "gguf" => prefix.with_extension(""),
        _ => prefix.to_owned(),
    };
    let mut name = stem.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{:05}-of-{count:05}.gguf", no + 1));
    stem.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::GgmlType;
    use crate::shape::Shape;

    fn tensors(sizes: &[u64]) -> Vec<TensorInfo> {
        let named =
            |(i, &n): (usize, &u64)| TensorInfo { name: format!("t{i}"), shape: Shape::vector(n), kind: GgmlType::F32 };
        sizes.iter().enumerate().map(named).collect()
    }

    fn rule(limit: SplitLimit) -> SplitRule {
        SplitRule { limit, bare_first: false }
    }

    fn ranges(sizes: &[u64], limit: SplitLimit) -> Vec<Range<usize>> {
        split(&Metadata::new(), &tensors(sizes), rule(limit)).unwrap().into_iter().map(|p| p.1).collect()
    }

    #[test]
    fn parts_hold_so_many_tensors_or_bytes() {
        assert_eq!(ranges(&[8; 5], SplitLimit::Tensors(2)), [0..2, 2..4, 4..5]);
        assert_eq!(ranges(&[8; 4], SplitLimit::Tensors(2)), [0..2, 2..4]);
        assert_eq!(ranges(&[8, 8, 9, 8], SplitLimit::Bytes(64)), [0..2, 2..3, 3..4]);
        assert_eq!(ranges(&[64, 8, 8, 8], SplitLimit::Bytes(64)), [0..1, 1..3, 3..4]);
    }

    #[test]
    fn only_the_first_part_has_the_models_keys() {
        let mut m = Metadata::new();
        m.set("a", Value::U8(1));
        let parts = split(&m, &tensors(&[8; 3]), rule(SplitLimit::Tensors(2))).unwrap();
        let keys = |i: usize| parts[i].0.iter().map(|(k, _)| k.to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(0), ["a", "split.no", "split.tensors.count", "split.count"]);
        assert_eq!(keys(1), ["split.no", "split.tensors.count", "split.count"]);
        assert_eq!(parts[1].0.get("split.no"), Some(&Value::U16(1)));
        assert_eq!(parts[1].0.get("split.tensors.count"), Some(&Value::I32(3)));
    }

    #[test]
    fn the_first_part_may_hold_the_keys_alone() {
        let rule = SplitRule { limit: SplitLimit::Tensors(2), bare_first: true };
        let parts = split(&Metadata::new(), &tensors(&[8; 3]), rule).unwrap();
        assert_eq!(parts.iter().map(|p| p.1.clone()).collect::<Vec<_>>(), [0..0, 0..2, 2..3]);
        assert_eq!(parts[2].0.get("split.count"), Some(&Value::U16(3)));
    }

    #[test]
    fn a_zero_limit_is_refused() {
        assert_eq!(split(&Metadata::new(), &tensors(&[8]), rule(SplitLimit::Bytes(0))), Err(LayoutError::ZeroLimit));
    }

    #[test]
    fn part_names_count_from_one() {
        assert_eq!(part_path(Path::new("d/m-Q4_K.gguf"), 0, 12), Path::new("d/m-Q4_K-00001-of-00012.gguf"));
        assert_eq!(part_path(Path::new("d/m-1.5"), 1, 2), Path::new("d/m-1.5-00002-of-00002.gguf"));
    }
}
