//! Rotations from skew matrices, and the permutations of a butterfly. All in f64: blocks are small.

/// `(I + Q)^-1 (I - Q)` of an `n × n` matrix, by elimination with row exchanges; `None` where `I + Q` is singular,
/// which it is for no finite skew `Q`.
pub(super) fn cayley(skew: &[f64], n: usize) -> Option<Vec<f64>> {
    let identity = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
    let mut left: Vec<f64> = (0..n * n).map(|at| identity(at / n, at % n) + skew[at]).collect();
    let mut right: Vec<f64> = (0..n * n).map(|at| identity(at / n, at % n) - skew[at]).collect();
    for col in 0..n {
        let pivot = (col..n).max_by(|&a, &b| left[a * n + col].abs().total_cmp(&left[b * n + col].abs()))?;
        if left[pivot * n + col] == 0.0 || !left[pivot * n + col].is_finite() {
            return None;
        }
        for j in 0..n {
            left.swap(col * n + j, pivot * n + j);
            right.swap(col * n + j, pivot * n + j);
        }
        let scale = 1.0 / left[col * n + col];
        for j in 0..n {
            left[col * n + j] *= scale;
            right[col * n + j] *= scale;
        }
        for row in (0..n).filter(|&row| row != col) {
            let factor = left[row * n + col];
            if factor != 0.0 {
                for j in 0..n {
                    left[row * n + j] -= factor * left[col * n + j];
                    right[row * n + j] -= factor * right[col * n + j];
                }
            }
        }
    }
    Some(right)
}

/// PEFT's series for the Cayley transform: `I + 2Q + 2Q² + .. + Q^(terms - 1)`, whose last term has no factor.
pub(super) fn neumann(skew: &[f64], n: usize, terms: u64) -> Option<Vec<f64>> {
    let mut sum: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    let add = |sum: &mut Vec<f64>, power: &[f64], factor: f64| {
        sum.iter_mut().zip(power).for_each(|(s, p)| *s += factor * p);
    };
    if terms > 1 {
        add(&mut sum, skew, 2.0);
    }
    if terms > 2 {
        let mut power = product(skew, skew, n);
        add(&mut sum, &power, 2.0);
        for _ in 3..terms.saturating_sub(1).min(1000) {
            power = product(&power, skew, n);
            add(&mut sum, &power, 2.0);
        }
        power = product(&power, skew, n);
        add(&mut sum, &power, 1.0);
    }
    sum.iter().all(|v| v.is_finite()).then_some(sum)
}

fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0f64; n * n];
    for (row, out) in a.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        for (x, b) in row.iter().zip(b.chunks_exact(n)) {
            out.iter_mut().zip(b).for_each(|(o, b)| *o += x * b);
        }
    }
    out
}

/// Where the elements of a row go before the blocks of a butterfly factor (`block_butterfly_perm` of PEFT): `n`
/// elements in `blocks` runs; within a run, pieces of `piece` elements, those at even places first. With no
/// further factor nothing moves.
pub(super) fn butterfly_permutation(n: usize, blocks: usize, piece: usize, factors: usize) -> Vec<usize> {
    if factors == 0 || blocks == 0 || piece == 0 {
        return (0..n).collect();
    }
    let run = n / blocks;
    let pieces = run / piece;
    let order: Vec<usize> = (0..pieces).step_by(2).chain((1..pieces).step_by(2)).collect();
    (0..n)
        .map(|i| {
            let (start, within) = (i / run * run, i % run);
            start + order[within / piece] * piece + within % piece
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cayley_transform_is_a_rotation() {
        let n = 5;
        let mut skew = vec![0f64; n * n];
        for i in 0..n {
            for j in i + 1..n {
                skew[i * n + j] = (i as f64 + 1.0) / (j as f64 + 2.0);
                skew[j * n + i] = -skew[i * n + j];
            }
        }
        let r = cayley(&skew, n).unwrap();
        let turned: Vec<f64> = (0..n * n).map(|at| r[(at % n) * n + at / n]).collect();
        let unit = product(&r, &turned, n);
        for (at, v) in unit.iter().enumerate() {
            let expected = if at / n == at % n { 1.0 } else { 0.0 };
            assert!((v - expected).abs() < 1e-12, "{v} at {at}");
        }
    }

    #[test]
    fn butterflies_permute_as_in_peft() {
        // block_butterfly_perm(16, 2, 2, 1) of PEFT 0.21.
        let expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
        assert_eq!(butterfly_permutation(16, 2, 2, 1), expected);
        assert_eq!(butterfly_permutation(4, 2, 1, 0), [0, 1, 2, 3]);
    }
}
