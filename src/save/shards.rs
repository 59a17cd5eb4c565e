//! How a model's tensors are spread over files: as `huggingface_hub` does it, so that each is found in the file
//! where `save_pretrained` would have put it.

use serde_json::{Map, Value, json};

/// A tensor on its way to a shard.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Bytes of its data.
    pub bytes: u64,
    /// Tensors of the same group are views of one stored tensor when they are saved, and share a shard.
    pub group: Option<usize>,
}

/// The shard of each tensor, and how many shards there are. A tensor larger than `limit` has a shard of its own.
///
/// (`split_state_dict_into_shards_factory`: shards are filled in order; a tensor that would make the current one
/// larger than the limit begins the next; one that is larger by itself is put aside at once.)
pub fn assign(parcels: &[Parcel], limit: u64) -> (Vec<usize>, usize) {
    const NONE: usize = usize::MAX;
    let mut shard_of = vec![NONE; parcels.len()];
    // Shards in the order in which they are closed; the current one gets its number when it is.
    let (mut closed, mut current, mut filled) = (0usize, Vec::new(), 0u64);
    let mut seen = std::collections::HashSet::new();
    let close = |current: &mut Vec<usize>, shard_of: &mut Vec<usize>, closed: &mut usize| {
        current.drain(..).for_each(|i: usize| shard_of[i] = *closed);
        *closed += 1;
    };
    for (i, parcel) in parcels.iter().enumerate() {
        if parcel.group.is_some_and(|g| !seen.insert(g)) {
            continue;
        }
        let bytes = match parcel.group {
            Some(_) => parcels.iter().filter(|p| p.group == parcel.group).map(|p| p.bytes).sum(),
            None => parcel.bytes,
        };
        if bytes > limit {
            shard_of[i] = closed;
            closed += 1;
            continue;
        }
        if filled + bytes > limit {
            close(&mut current, &mut shard_of, &mut closed);
            filled = 0;
        }
        current.push(i);
        filled += bytes;
    }
    if !current.is_empty() {
        close(&mut current, &mut shard_of, &mut closed);
    }
    for i in 0..parcels.len() {
        if shard_of[i] == NONE {
            let first = parcels.iter().position(|p| p.group == parcels[i].group).unwrap_or(i);
            shard_of[i] = shard_of[first];
        }
    }
    (shard_of, closed.max(1))
}

/// The name of shard `i` of `count`.
pub fn file_name(i: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    }
}

/// `model.safetensors.index.json`: which tensor lies in which shard.
pub fn index<'a>(
    shards: impl IntoIterator<Item = (&'a str, usize)>,
    count: usize,
    bytes: u64,
    parameters: u64,
) -> String {
    let mut map: Vec<(&str, usize)> = shards.into_iter().collect();
    map.sort_unstable();
    let map: Map<String, Value> = map.into_iter().map(|(n, s)| (n.to_owned(), file_name(s, count).into())).collect();
    let index = json!({"metadata": {"total_parameters": parameters, "total_size": bytes}, "weight_map": map});
    format!("{index:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(bytes: &[(u64, Option<usize>)], limit: u64) -> (Vec<usize>, usize) {
        assign(&bytes.iter().map(|&(bytes, group)| Parcel { bytes, group }).collect::<Vec<_>>(), limit)
    }

    #[test]
    fn shards_are_filled_in_order() {
        let plain = [6, 6, 2, 6, 2, 2].map(|b| (b, None));
        assert_eq!(shards(&plain, 10), (vec![0, 1, 1, 2, 2, 2], 3));
        assert_eq!(shards(&plain, 100), (vec![0; 6], 1));
        // Larger than a shard: put aside before the one that is being filled.
        assert_eq!(shards(&[(3, None), (20, None), (3, None)], 10), (vec![1, 0, 1], 2));
        assert_eq!(shards(&[], 10), (vec![], 1));
    }

    #[test]
    fn views_of_one_tensor_stay_together() {
        let mixed = [(4, Some(1)), (4, Some(2)), (4, Some(1)), (4, Some(2)), (1, None)];
        assert_eq!(shards(&mixed, 10), (vec![0, 1, 0, 1, 1], 2));
    }

    #[test]
    fn the_index_is_sorted_and_names_files() {
        let text = index([("b", 1), ("a", 0)], 2, 8, 4);
        assert!(
            text.starts_with("{\n  \"metadata\": {\n    \"total_parameters\": 4,\n    \"total_size\": 8\n  },"),
            "{text}"
        );
        assert!(text.contains("\"a\": \"model-00001-of-00002.safetensors\",\n    \"b\""), "{text}");
    }
}
