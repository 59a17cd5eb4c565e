//! The largest singular values of a matrix and their vectors.
//!
//! A Golub–Kahan–Lanczos bidiagonalisation with full reorthogonalisation, in f64, continued until the wanted triplets
//! are as good as [`Until`] asks. It starts from a fixed vector, so the same matrix gives the same result.

/// When a decomposition is good enough.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// Every wanted triplet has a residual of at most this much of the largest singular value.
    Converged(f64),
    /// The squares of the wanted values have stopped to grow: one more round adds less than this part of what they
    /// leave of the matrix, whose sum of squares is `total`.
    Captured {
        /// The part.
        part: f64,
        /// Sum of squares of all elements.
        total: f64,
    },
}

/// The largest singular triplets.
pub(super) struct Triplets {
    /// Singular values, largest first.
    pub(super) values: Vec<f64>,
    /// For each, its left vector.
    pub(super) left: Vec<Vec<f64>>,
    /// For each, its right vector.
    pub(super) right: Vec<Vec<f64>>,
}

/// The scalar product, in four lanes.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0f64; 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(l, (a, b))| *l += a * b);
    }
    lanes.iter().sum()
}

/// Takes the parts along `basis` out of `v`, twice, which is enough; answers the norm of what is left.
pub(super) fn orthogonalize(v: &mut [f64], basis: &[Vec<f64>]) -> f64 {
    for _ in 0..2 {
        for b in basis {
            let along = dot(v, b);
            v.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
        }
    }
    dot(v, v).sqrt()
}

/// The `rank` largest triplets of a matrix of `rows` x `cols` that is known by its products with vectors:
/// `times(v) = W v` and `times_back(u) = W^T u`.
pub(super) fn largest(
    (rows, cols): (usize, usize),
    rank: usize,
    until: Until,
    times: impl Fn(&[f64]) -> Vec<f64>,
    times_back: impl Fn(&[f64]) -> Vec<f64>,
) -> Triplets {
    let rank = rank.min(rows).min(cols);
    // The right vectors lie on the shorter side: when there are as many as it is long, nothing is left outside.
    let most = rows.min(cols);
    let turned = rows < cols;
    let (long, short) = if turned { (cols, rows) } else { (rows, cols) };
    let times_long = |v: &[f64]| if turned { times_back(v) } else { times(v) };
    let times_short = |u: &[f64]| if turned { times(u) } else { times_back(u) };
    let (mut left, mut right): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let (mut alphas, mut betas): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |n: usize| -> Vec<f64> {
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        std::iter::repeat_with(next).take(n).collect()
    };
    let mut v = random(short);
    let norm = dot(&v, &v).sqrt();
    v.iter_mut().for_each(|x| *x /= norm);
    let mut check_at = (2 * rank + 8).min(most);
    let mut captured_before = 0f64;
    loop {
        // u = W v - beta u_before
        let mut u = times_long(&v);
        right.push(v);
        let mut alpha = orthogonalize(&mut u, &left);
        if alpha < f64::MIN_POSITIVE.sqrt() {
            (u, alpha) = (fresh(random(long), &left), 0.0);
        } else {
            u.iter_mut().for_each(|x| *x /= alpha);
        }
        alphas.push(alpha);
        // v = W^T u - alpha v
        let mut next = times_short(&u);
        left.push(u);
        let mut beta = orthogonalize(&mut next, &right);
        let steps = alphas.len();
        if steps == most || steps == check_at {
            let (small_left, values, small_right) = bidiagonal_svd(&alphas, &betas);
            let last = |k: usize| (beta * small_left[(steps - 1) * steps + k]).abs();
            let captured: f64 = values[..rank].iter().map(|s| s * s).sum();
            let done = match until {
                Until::Converged(tolerance) => (0..rank).all(|k| last(k) <= tolerance * values[0]),
                Until::Captured { part, total } => {
                    // What rounding leaves of a matrix of lower rank is nothing to wait for.
                    let rest = (total - captured).max(1e-9 * total);
                    captured - captured_before <= part * rest
                }
            };
            captured_before = captured;
            if steps == most || done {
                let (long_side, short_side) = (vectors(&left, &small_left, rank), vectors(&right, &small_right, rank));
                let (left, right) = if turned { (short_side, long_side) } else { (long_side, short_side) };
                return Triplets { values: values[..rank].to_vec(), left, right };
            }
            check_at = match until {
                Until::Converged(_) => check_at + check_at / 2,
                Until::Captured { .. } => check_at + check_at / 4 + 1,
            }
            .min(most);
        }
        if beta < f64::MIN_POSITIVE.sqrt() {
            (next, beta) = (fresh(random(short), &right), 0.0);
        } else {
            next.iter_mut().for_each(|x| *x /= beta);
        }
        betas.push(beta);
        v = next;
    }
}

/// A unit vector orthogonal to all of `basis`: where a bidiagonalisation breaks down, it goes on with one.
fn fresh(mut v: Vec<f64>, basis: &[Vec<f64>]) -> Vec<f64> {
    let norm = orthogonalize(&mut v, basis);
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

/// The first `rank` singular vectors from those of the bidiagonal form, the columns of `small`.
fn vectors(basis: &[Vec<f64>], small: &[f64], rank: usize) -> Vec<Vec<f64>> {
    let steps = basis.len();
    let combine = |k: usize| -> Vec<f64> {
        let mut out = vec![0f64; basis[0].len()];
        for (i, b) in basis.iter().enumerate() {
            out.iter_mut().zip(b).for_each(|(o, b)| *o += small[i * steps + k] * b);
        }
        out
    };
    (0..rank).map(combine).collect()
}

/// The singular values, largest first, and vectors (as columns) of an upper bidiagonal matrix, by one-sided Jacobi
/// rotations of its columns.
fn bidiagonal_svd(alphas: &[f64], betas: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let n = alphas.len();
    // Columns of B and of V, each contiguous.
    let mut b = vec![vec![0f64; n]; n];
    let mut v = vec![vec![0f64; n]; n];
    for j in 0..n {
        b[j][j] = alphas[j];
        if j > 0 {
            b[j][j - 1] = betas[j - 1];
        }
        v[j][j] = 1.0;
    }
    for _ in 0..60 {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (bp, bq) = pair(&mut b, p, q);
                let (x, y, z) = (dot(bp, bp), dot(bq, bq), dot(bp, bq));
                if z.abs() <= 1e-15 * (x * y).sqrt() || z == 0.0 {
                    continue;
                }
                rotated = true;
                let zeta = (y - x) / (2.0 * z);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                rotate(bp, bq, c, c * t);
                let (vp, vq) = pair(&mut v, p, q);
                rotate(vp, vq, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    let norms: Vec<f64> = b.iter().map(|c| dot(c, c).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let (mut left, mut right) = (vec![0f64; n * n], vec![0f64; n * n]);
    for (k, &from) in order.iter().enumerate() {
        for i in 0..n {
            left[i * n + k] = if norms[from] > 0.0 { b[from][i] / norms[from] } else { 0.0 };
            right[i * n + k] = v[from][i];
        }
    }
    (left, order.iter().map(|&i| norms[i]).collect(), right)
}

fn pair(columns: &mut [Vec<f64>], p: usize, q: usize) -> (&mut [f64], &mut [f64]) {
    let (before, after) = columns.split_at_mut(q);
    (&mut before[p], &mut after[0])
}

fn rotate(a: &mut [f64], b: &mut [f64], c: f64, s: f64) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
}
