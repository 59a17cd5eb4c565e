//! Codes of a few bits, turned into floats.

use std::sync::LazyLock;

/// The values of two codes in a byte, for every byte: eight bytes are fetched at once.
pub(super) type PairTable = [[f32; 2]; 256];

/// E2M1, the four-bit float of the OCP microscaling formats.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Two values per byte, the low nibble first.
pub(super) fn low_first(values: &[f32; 16]) -> PairTable {
    std::array::from_fn(|b| [values[b & 15], values[b >> 4]])
}

/// Two values per byte, the high nibble first.
pub(super) fn high_first(values: &[f32; 16]) -> PairTable {
    std::array::from_fn(|b| [values[b >> 4], values[b & 15]])
}

/// E2M1 pairs, low nibble first.
pub(super) fn e2m1_pairs() -> &'static PairTable {
    static TABLE: LazyLock<PairTable> = LazyLock::new(|| low_first(&E2M1));
    &TABLE
}

/// Pairs of signed four-bit integers, low nibble first.
pub(super) fn int4_pairs() -> &'static PairTable {
    static TABLE: LazyLock<PairTable> =
        LazyLock::new(|| low_first(&std::array::from_fn(|q| ((q as i32) ^ 8) as f32 - 8.0)));
    &TABLE
}

/// Decodes pairs: `out` is twice as long as `bytes`.
#[inline(always)]
pub(super) fn decode_pairs(table: &PairTable, bytes: &[u8], out: &mut [f32]) {
    let (pairs, _) = out.as_chunks_mut::<2>();
    for (pair, &b) in pairs.iter_mut().zip(bytes) {
        *pair = table[b as usize];
    }
}

/// Unsigned fields of `bits` in a run of little-endian 32-bit words, least significant first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Layout {
    /// One stream of bits over all words; a field may cross a border.
    Dense,
    /// As many whole fields per word as fit; spare high bits.
    PerWord,
}

impl Layout {
    /// Words that `count` fields take.
    pub(super) fn words(self, bits: u32, count: u64) -> u64 {
        match self {
            Layout::Dense => (count * u64::from(bits)).div_ceil(32),
            Layout::PerWord => count.div_ceil(u64::from(32 / bits)),
        }
    }

    /// Field `i` of the words that `word` gives.
    pub(super) fn field(self, bits: u32, i: u64, word: impl Fn(u64) -> u32) -> u32 {
        let mask = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
        match self {
            Layout::PerWord => {
                let per = u64::from(32 / bits);
                word(i / per) >> (i % per * u64::from(bits)) & mask
            }
            Layout::Dense => {
                let at = i * u64::from(bits);
                let (k, shift) = (at / 32, (at % 32) as u32);
                let low = word(k) >> shift;
                let high = if shift + bits > 32 { word(k + 1) << (32 - shift) } else { 0 };
                (low | high) & mask
            }
        }
    }
}

/// Word `k` of a run of little-endian words; 0 beyond its end.
pub(super) fn word(bytes: &[u8], k: u64) -> u32 {
    let at = k as usize * 4;
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Decodes fields minus `offset` from the words of one row.
pub(super) fn decode_fields(layout: Layout, bits: u32, offset: i32, bytes: &[u8], out: &mut [f32]) {
    pulp::Arch::new().dispatch(Fields { layout, bits, offset, bytes, out });
}

struct Fields<'a> {
    layout: Layout,
    bits: u32,
    offset: i32,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl pulp::WithSimd for Fields<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Fields { layout, bits, offset, bytes, out } = self;
        let words = bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w));
        if layout == Layout::Dense || 32 % bits == 0 {
            return decode_words(bits, offset, words, out);
        }
        for (i, x) in out.iter_mut().enumerate() {
            *x = (layout.field(bits, i as u64, |k| word(bytes, k)) as i32 - offset) as f32;
        }
    }
}

/// Decodes fields minus `offset` from a stream of bits that begins with the first word. Call it where vectors of the
/// machine may be used.
#[inline(always)]
pub(super) fn decode_words(bits: u32, offset: i32, words: impl Iterator<Item = u32>, out: &mut [f32]) {
    match bits {
        1 => whole_words::<1>(offset, words, out),
        2 => whole_words::<2>(offset, words, out),
        4 => whole_words::<4>(offset, words, out),
        8 => whole_words::<8>(offset, words, out),
        _ => crossing_words(bits, offset, words, out),
    }
}

/// Fields none of which lies in two words.
#[inline(always)]
fn whole_words<const BITS: usize>(offset: i32, mut words: impl Iterator<Item = u32>, out: &mut [f32]) {
    let mask = (1u32 << BITS) - 1;
    let field = |word: u32, i: usize| ((word >> (i * BITS) & mask) as i32 - offset) as f32;
    let mut parts = out.chunks_exact_mut(32 / BITS);
    for (part, word) in parts.by_ref().zip(words.by_ref()) {
        part.iter_mut().enumerate().for_each(|(i, x)| *x = field(word, i));
    }
    if let (rest @ [_, ..], Some(word)) = (parts.into_remainder(), words.next()) {
        rest.iter_mut().enumerate().for_each(|(i, x)| *x = field(word, i));
    }
}

/// Fields of any width up to 16 bits.
#[inline(always)]
fn crossing_words(bits: u32, offset: i32, mut words: impl Iterator<Item = u32>, out: &mut [f32]) {
    let mask = (1u64 << bits) - 1;
    let (mut held, mut count) = (0u64, 0);
    for x in out {
        if count < bits {
            held |= u64::from(words.next().unwrap_or(0)) << count;
            count += 32;
        }
        *x = ((held & mask) as i32 - offset) as f32;
        held >>= bits;
        count -= bits;
    }
}

/// Columns that are decoded before they are turned into rows: a cache line of each row.
pub(super) const TURNED: usize = 16;

/// Columns of a strip of `count` rows, each column's values lying together, become rows of `row_len` from column
/// `first` on.
#[inline(always)]
pub(super) fn turn(columns: &[f32], count: usize, first: usize, row_len: usize, out: &mut [f32]) {
    let width = columns.len() / count;
    for (r, row) in out.chunks_exact_mut(row_len).enumerate() {
        for (x, column) in row[first..first + width].iter_mut().zip(columns.chunks_exact(count)) {
            *x = column[r];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_fields_cross_word_borders() {
        // 0, 1, 2, .. 7, 0, .. as three-bit fields, least significant first.
        let mut stream = [0u8; 12];
        for i in 0..32usize {
            for b in 0..3 {
                let at = i * 3 + b;
                stream[at / 8] |= ((i >> b & 1) as u8) << (at % 8);
            }
        }
        let mut out = [0.0; 32];
        decode_fields(Layout::Dense, 3, 4, &stream, &mut out);
        assert!(out.iter().enumerate().all(|(i, &x)| x == (i % 8) as f32 - 4.0), "{out:?}");
        assert_eq!((Layout::Dense.words(3, 32), Layout::PerWord.words(3, 32)), (3, 4));
    }
}
