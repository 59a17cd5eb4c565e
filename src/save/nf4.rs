//! NF4 with double quantization, as bitsandbytes packs a weight.
//!
//! The weight, rounded to the model's type, is seen as one row of elements in blocks of 64:
//!
//! ```text
//! absmax[b] = max |w| of the block
//! code[i]   = the nearest of the 16 levels to w[i] / absmax[b]; a tie goes to the lower one
//! offset    = mean of absmax
//! absmax[b] - offset, in blocks of 256, is coded in 8 bits in the same way, by 256 levels
//! ```
//!
//! Equal to `bitsandbytes.functional.quantize_4bit(w, compress_statistics=True, quant_type="nf4")` on a CPU, bit
//! for bit. Three details decide: a whole block is multiplied by the reciprocal of its maximum, the shorter last
//! one is divided by it; the second level looks the nearest level up in a table of 65,536 steps; and the mean is
//! summed in the order of PyTorch's vectorized sum (eight lanes, one thread).

use std::sync::LazyLock;

/// Elements of a block.
pub(super) const BLOCK: usize = 64;

/// Blocks that share a second-level scale.
pub(super) const NESTED_BLOCK: usize = 256;

/// The smallest maximum that a block is divided by.
const TINY: f32 = 1e-38;

/// Rounding an element to the nearest of these is all that four bits can do.
pub(super) use crate::source::NF4 as LEVELS;

/// Between two levels: what is above rounds up.
static MIDPOINTS: LazyLock<[f32; 15]> = LazyLock::new(|| std::array::from_fn(|i| (LEVELS[i] + LEVELS[i + 1]) / 2.0));

/// Codes of one block or the shorter last one, two per byte with the first in the high half. Gives its maximum.
///
/// `codes` holds `values.len().div_ceil(2)` bytes. The half without an element is that of zero.
pub(super) fn quantize_block(values: &[f32], codes: &mut [u8]) -> f32 {
    let mut absmax = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut scaled = [0f32; BLOCK];
    if values.len() == BLOCK {
        let inverse = 1.0 / absmax.max(TINY);
        scaled.iter_mut().zip(values).for_each(|(s, v)| *s = (v * inverse).clamp(-1.0, 1.0));
    } else {
        absmax = absmax.max(TINY);
        scaled.iter_mut().zip(values).for_each(|(s, v)| *s = (v / absmax).clamp(-1.0, 1.0));
    }
    let mut levels = [0u8; BLOCK];
    for midpoint in MIDPOINTS.iter() {
        levels.iter_mut().zip(&scaled).for_each(|(l, s)| *l += u8::from(s > midpoint));
    }
    codes.iter_mut().zip(levels.chunks_exact(2)).for_each(|(c, pair)| *c = pair[0] << 4 | pair[1]);
    absmax
}

/// Scales after double quantization.
pub(super) struct Nested {
    /// A code for each block.
    pub(super) codes: Vec<u8>,
    /// A scale for each 256 of them.
    pub(super) scales: Vec<f32>,
    /// Their mean.
    pub(super) offset: f32,
}

/// Quantizes the maxima of all blocks.
pub(super) fn quantize_scales(mut absmax: Vec<f32>) -> Nested {
    let offset = sum(&absmax) / absmax.len() as f32;
    absmax.iter_mut().for_each(|a| *a -= offset);
    let mut nested = Nested { codes: Vec::with_capacity(absmax.len()), scales: Vec::new(), offset };
    for block in absmax.chunks(NESTED_BLOCK) {
        let scale = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        nested.scales.push(scale);
        if scale == 0.0 {
            nested.codes.resize(nested.codes.len() + block.len(), 0);
            continue;
        }
        let inverse = 1.0 / scale;
        nested.codes.extend(block.iter().map(|v| {
            let normed = (v * inverse).clamp(-1.0, 1.0);
            STEPS[((normed + 1.0) * 0.5).mul_add(65535.0, 0.5) as usize]
        }));
    }
    nested
}

/// `bitsandbytes.functional.create_dynamic_map()`: for each power of ten from 1e-6 to 1, twice as many levels as
/// for the one before, evenly spaced in 0.1..1 of it; their negatives; 0 and 1.
pub(super) static DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut map = vec![0.0, 1.0];
    for exponent in 0..7 {
        let count = (1 << exponent) + 1;
        // torch.linspace counts from the nearer end.
        let (start, end) = (0.1f32, 1f32);
        let step = (end - start) / (count - 1) as f32;
        let border = |i: usize| match i {
            i if i < count / 2 => step.mul_add(i as f32, start),
            i => step.mul_add(-((count - 1 - i) as f32), end),
        };
        let power = 10f64.powi(exponent - 6) as f32;
        for i in 0..count - 1 {
            let level = power * ((border(i) + border(i + 1)) / 2.0);
            map.extend([level, -level]);
        }
    }
    map.sort_by(f32::total_cmp);
    map.try_into().unwrap_or_else(|_| unreachable!("127 levels, their negatives, 0 and 1"))
});

/// The nearest level of the dynamic map for 65,536 evenly spaced values of -1..1.
static STEPS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let map = &*DYNAMIC_MAP;
    let mut level = 0;
    (0..65536)
        .map(|i| {
            let value = -1.0 + 2.0 * i as f32 / 65535.0;
            while level < 255 && 0.5 * (map[level] + map[level + 1]) < value {
                level += 1;
            }
            level as u8
        })
        .collect()
});

/// Lanes of the vectorized sum.
const LANES: usize = 8;

/// Vectors that are summed side by side.
const ROWS: usize = 4;

/// The sum in the order of `torch.sum` over a contiguous tensor on one thread (ATen's `cascade_sum`): four vectors
/// of eight side by side, in runs whose sums are summed in runs again; then the four, then what is left over, then
/// the lanes.
fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        let [total] = cascade::<1>(values);
        return total;
    }
    let vectors = values.len() / LANES;
    let lanes: [f32; LANES] = cascade(&values[..vectors * LANES]);
    let rest: f32 = values[vectors * LANES..].iter().fold(0.0, |t, v| t + v);
    lanes.iter().fold(rest, |t, v| t + v)
}

/// `row_sum` of vectors of `N` elements.
fn cascade<const N: usize>(values: &[f32]) -> [f32; N] {
    const LEVELS: usize = 4;
    let count = values.len() / N / ROWS;
    let bits = usize::BITS - count.max(1).next_power_of_two().leading_zeros() - 1;
    let power = 4.max(bits as usize / LEVELS);
    let step = 1 << power;
    let mut levels = [[[0f32; N]; ROWS]; LEVELS];
    let add = |into: &mut [[f32; N]; ROWS], from: &[[f32; N]; ROWS]| {
        into.iter_mut().flatten().zip(from.iter().flatten()).for_each(|(a, b)| *a += b);
    };
    for i in 0..count {
        let row: &[f32] = &values[i * ROWS * N..(i + 1) * ROWS * N];
        levels[0].iter_mut().flatten().zip(row).for_each(|(a, b)| *a += b);
        let done = i + 1;
        if done % step == 0 {
            for level in 1..LEVELS {
                let below = std::mem::replace(&mut levels[level - 1], [[0.0; N]; ROWS]);
                add(&mut levels[level], &below);
                if done & ((step - 1) << (level * power)) != 0 {
                    break;
                }
            }
        }
    }
    let [mut total, upper @ ..] = levels;
    upper.iter().for_each(|level| add(&mut total, level));
    let [mut first, others @ ..] = total;
    for rest in values[count * ROWS * N..].chunks_exact(N) {
        first.iter_mut().zip(rest).for_each(|(a, b)| *a += b);
    }
    others.iter().for_each(|row| first.iter_mut().zip(row).for_each(|(a, b)| *a += b));
    first
}

/// The most bytes that [`state`] has for a weight.
pub(super) fn state_size(dtype: &str, shape: &[u64]) -> u64 {
    // No float is longer than this one, whatever its value.
    state(dtype, shape, -1.175_494_2e-38).len() as u64
}

/// The JSON that tells a reader how to decode a weight, as Python writes it.
pub(super) fn state(dtype: &str, shape: &[u64], offset: f32) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!(
        r#"{{"quant_type": "nf4", "blocksize": {BLOCK}, "dtype": "{dtype}", "shape": [{}], "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {}}}"#,
        shape.join(", "),
        python_float(f64::from(offset))
    )
    .into_bytes()
}

/// `repr(x)` of a finite Python float: the fewest digits that read back, of those the nearest to `x` (an even last
/// digit where two are), with an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    let shortest = format!("{x:e}");
    let count = shortest.bytes().take_while(|b| *b != b'e').filter(u8::is_ascii_digit).count();
    // Both languages agree on how many digits it takes, not always on the last of them.
    let nearest = format!("{x:.*e}", count - 1);
    let scientific = if nearest.parse() == Ok(x) { nearest } else { shortest };
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |d| ("-", d));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let figures: String = digits.chars().filter(|c| *c != '.').collect();
    let text = match exponent {
        _ if x == 0.0 => "0.0".to_owned(),
        e if !(-4..16).contains(&e) => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
        e if e < 0 => format!("0.{}{figures}", "0".repeat((-e - 1) as usize)),
        e => {
            let whole = e as usize + 1;
            let padded = format!("{figures:0<width$}", width = whole + 1);
            format!("{}.{}", &padded[..whole], &padded[whole..])
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, text) in [
            (0.0, "0.0"),
            (2.0, "2.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-39, "1.5e-39"),
            (f64::from(0.131_061_55f32), "0.13106155395507812"),
            (0.0012, "0.0012"),
            (-12.5, "-12.5"),
            (100.0, "100.0"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (f64::from(2.632_489_7f32), "2.6324896812438965"),
        ] {
            assert_eq!(python_float(x), text);
        }
        for bits in (0..0x7F80_0000u32).step_by(7_654_321) {
            let offset = f32::from_bits(bits);
            assert!(state("bfloat16", &[7], offset).len() as u64 <= state_size("bfloat16", &[7]), "{offset:e}");
        }
    }

    #[test]
    fn a_tie_goes_to_the_lower_level_and_a_missing_element_is_zero() {
        let mut codes = [0; 2];
        let middle = MIDPOINTS[9];
        assert_eq!(quantize_block(&[1.0, middle, -1.0], &mut codes), 1.0);
        assert_eq!(codes, [0xF9, 0x07]);
    }

    #[test]
    fn zeros_are_coded_as_zeros() {
        let mut codes = [0; 32];
        assert_eq!(quantize_block(&[0.0; 64], &mut codes), 0.0);
        assert_eq!(codes, [0x77; 32]);
        assert_eq!(quantize_block(&[0.0; 3], &mut codes[..2]), TINY);
        let nested = quantize_scales(vec![0.5; 3]);
        assert_eq!((nested.codes, nested.scales, nested.offset), (vec![0; 3], vec![0.0], 0.5));
    }

    /// SHA-256 of `create_dynamic_map().numpy().tobytes()` in bitsandbytes 0.50.2, AVX2 or AVX-512.
    #[test]
    fn the_dynamic_map_is_that_of_bitsandbytes() {
        use sha2::{Digest, Sha256};
        let bytes: Vec<u8> = DYNAMIC_MAP.iter().flat_map(|v| v.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes)[..8].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, "e732639a65f497b4");
    }
}
