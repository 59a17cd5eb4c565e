//! The searches for a scale, shared by the block types: the scalar reference.
//!
//! All are ported by name from ggml-quants.c. Sums run strictly in the order of the elements, products
//! associate to the left (`w·l·l` is `(w·l)·l`), nothing is fused; a lane kernel repeats each step per lane.

/// `GROUP_MAX_EPS`: a block whose largest element is below this is all zero.
pub(super) const GROUP_MAX_EPS: f32 = 1e-15;

/// `nearest_int`: rounds half to even by adding 1.5·2²³ and reading 23 bits of the mantissa.
///
/// It wraps beyond ±2²², and an infinity gives −2²²: both can happen, and the bytes depend on them.
#[inline(always)]
pub(super) fn nearest_int(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// A C cast of float to a small integer on x86-64: `cvttss2si`, so out of range is −2³¹, then truncation.
#[inline(always)]
pub(super) fn truncate_int(v: f32) -> i32 {
    // 2³¹ itself is out of range; −2³¹ is the value that the instruction gives anyway. NaN fails both.
    if v > -2_147_483_648.0 && v < 2_147_483_648.0 { v as i32 } else { i32::MIN }
}

/// C's `MAX(a, b)`: `b` of equals and with a NaN.
#[inline(always)]
pub(super) fn c_max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The sum of squares, in order.
#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v)
}

/// `make_qx_quants` with rmse_type 1: a scale for codes −nmax..nmax, stored as 0..2·nmax in `codes`.
///
/// The first guess maps the largest element to −nmax; 18 variations of it compete by weighted least squares.
/// Without `weights` an element weighs its square. Returns the scale, which can be negative.
pub(super) fn make_qx_quants(nmax: i32, x: &[f32], codes: &mut [u8], weights: Option<&[f32]>) -> f32 {
    let (max, amax) = signed_max(x);
    if amax < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let code = |v: f32, iscale: f32| nearest_int(iscale * v).clamp(-nmax, nmax - 1);
    let sums = |iscale: f32| {
        let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
        for (i, &v) in x.iter().enumerate() {
            let l = code(v, iscale) as f32;
            let w = weights.map_or(v * v, |w| w[i]);
            sumlx += w * v * l;
            suml2 += w * l * l;
        }
        (sumlx, suml2)
    };
    let mut best_iscale = -nmax as f32 / max;
    let (sumlx, suml2) = sums(best_iscale);
    let mut scale = if suml2 != 0.0 { sumlx / suml2 } else { 0.0 };
    let mut best = scale * sumlx;
    for step in (-9..=9).filter(|&s| s != 0) {
        let iscale = -(nmax as f32 + 0.1 * step as f32) / max;
        let (sumlx, suml2) = sums(iscale);
        if suml2 > 0.0 && sumlx * sumlx > best * suml2 {
            scale = sumlx / suml2;
            best = scale * sumlx;
            best_iscale = iscale;
        }
    }
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = (nmax + code(v, best_iscale)) as u8;
    }
    scale
}

/// `make_q3_quants` with do_rmse: a scale for codes −nmax..nmax, stored as 0..2·nmax in `codes`.
///
/// From the codes of the first guess, up to five passes move single codes while that improves the
/// least-squares fit, an element weighing its square. A block of zeros gets codes 0, not nmax.
pub(super) fn make_q3_quants(nmax: i32, x: &[f32], codes: &mut [u8]) -> f32 {
    let (max, amax) = signed_max(x);
    if amax < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    let iscale = -nmax as f32 / max;
    let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
    for (c, &v) in codes.iter_mut().zip(x) {
        let l = nearest_int(iscale * v).clamp(-nmax, nmax - 1);
        *c = (l + nmax) as u8;
        let w = v * v;
        sumlx += w * v * l as f32;
        suml2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (c, &v) in codes.iter_mut().zip(x) {
            let w = v * v;
            let old = i32::from(*c) - nmax;
            let mut slx = sumlx - w * v * old as f32;
            if slx > 0.0 {
                let mut sl2 = suml2 - w * old as f32 * old as f32;
                let new = nearest_int(v * sl2 / slx).clamp(-nmax, nmax - 1);
                if new != old {
                    slx += w * v * new as f32;
                    sl2 += w * new as f32 * new as f32;
                    if sl2 > 0.0 && slx * slx * suml2 > sumlx * sumlx * sl2 {
                        (*c, sumlx, suml2) = ((new + nmax) as u8, slx, sl2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

/// The first element of largest magnitude, and that magnitude.
#[inline(always)]
pub(super) fn signed_max(x: &[f32]) -> (f32, f32) {
    x.iter().fold((0.0, 0.0), |(max, amax), &v| if v.abs() > amax { (v, v.abs()) } else { (max, amax) })
}

/// How the candidates of an affine search are made and judged.
#[derive(Clone, Copy)]
pub(super) struct AffineSearch {
    /// Codes are 0..=nmax.
    pub(super) nmax: i32,
    /// Candidate `s` in 0..=steps tries the range nmax + rmin + rdelta·s.
    pub(super) rmin: f32,
    /// See `rmin`.
    pub(super) rdelta: f32,
    /// See `rmin`.
    pub(super) steps: i32,
    /// Judge by absolute rather than squared differences.
    pub(super) use_mad: bool,
}

impl AffineSearch {
    /// The search with an importance matrix, whatever the type.
    pub(super) const fn weighted(nmax: i32) -> Self {
        AffineSearch { nmax, rmin: -0.9, rdelta: 0.05, steps: 36, use_mad: false }
    }
}

/// `make_qkx2_quants` and `make_qkx3_quants`, which differ only for weights that are absent (never the case
/// here) and for elements that are not numbers: scale and minimum such that x ≈ scale·code − minimum.
///
/// Each candidate fixes the codes and solves the weighted least squares for scale and minimum; the minimum
/// is kept at or below zero. Returns (scale, −minimum).
pub(super) fn make_qkx_quants(s: AffineSearch, x: &[f32], weights: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |v: f32, iscale: f32, low: f32| nearest_int(iscale * (v - low)).clamp(0, s.nmax);
    let error = |iscale: f32, low: f32, scale: f32, min: f32| {
        let mut sum = 0.0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let diff = scale * code(v, iscale, low) as f32 + min - v;
            sum += w * if s.use_mad { diff.abs() } else { diff * diff };
        }
        sum
    };
    // The codes follow from these two, so they need not be kept.
    let (mut best_iscale, mut best_low) = (s.nmax as f32 / (max - min), min);
    let mut scale = 1.0 / best_iscale;
    let mut best = error(best_iscale, best_low, scale, min);
    for step in 0..=s.steps {
        // The minimum found so far moves the range of all later candidates.
        let iscale = (s.rmin + s.rdelta * step as f32 + s.nmax as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for (&v, &w) in x.iter().zip(weights) {
            let l = code(v, iscale, min) as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        if det > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this = error(iscale, min, this_scale, this_min);
            if this < best {
                (best, best_iscale, best_low) = (this, iscale, min);
                (scale, min) = (this_scale, this_min);
            }
        }
    }
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = code(v, best_iscale, best_low) as u8;
    }
    (scale, -min)
}

/// `make_qp_quants`: a scale for codes 0..=nmax of elements that are not negative.
///
/// Nine scales compete by weighted squared error, then up to five passes move single codes while that
/// improves the least-squares fit.
pub(super) fn make_qp_quants(nmax: i32, x: &[f32], codes: &mut [u8], weights: &[f32]) -> f32 {
    let max = x.iter().fold(0.0f32, |m, &v| if m > v { m } else { v });
    if max < GROUP_MAX_EPS {
        codes.fill(0);
        return 0.0;
    }
    // Codes pass through a byte in ggml too: a negative one wraps.
    let code = |v: f32, iscale: f32| nearest_int(iscale * v).min(nmax);
    let mut best_iscale = nmax as f32 / max;
    let scale = 1.0 / best_iscale;
    let mut best = 0.0f32;
    for (&v, &w) in x.iter().zip(weights) {
        let diff = v - scale * f32::from(nearest_int(best_iscale * v) as u8);
        best += w * diff * diff;
    }
    for step in (-4..=4).filter(|&s| s != 0) {
        let iscale = (0.1 * step as f32 + nmax as f32) / max;
        let scale = 1.0 / iscale;
        let mut mse = 0.0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let diff = v - scale * code(v, iscale) as f32;
            mse += w * diff * diff;
        }
        if mse < best {
            (best, best_iscale) = (mse, iscale);
        }
    }
    let (mut sumlx, mut suml2) = (0.0f32, 0.0f32);
    for ((&v, &w), c) in x.iter().zip(weights).zip(codes.iter_mut()) {
        let l = code(v, best_iscale);
        *c = l as u8;
        sumlx += w * v * l as f32;
        suml2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((&v, &w), c) in x.iter().zip(weights).zip(codes.iter_mut()) {
            let l = f32::from(*c);
            let mut slx = sumlx - w * v * l;
            let mut sl2 = suml2 - w * l * l;
            if slx > 0.0 && sl2 > 0.0 {
                let new = nearest_int(v * sl2 / slx).min(nmax);
                if new != i32::from(*c) {
                    slx += w * v * new as f32;
                    sl2 += w * new as f32 * new as f32;
                    if slx * slx * suml2 > sumlx * sumlx * sl2 {
                        (*c, sumlx, suml2) = (new as u8, slx, sl2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_to_even_and_wraps_like_ggml() {
        let cases = [(0.5, 0), (1.5, 2), (-2.5, -2), (7.49, 7), (4_194_303.0, 4_194_303), (4_194_304.0, -4_194_304)];
        for (v, want) in cases {
            assert_eq!(nearest_int(v), want, "{v}");
        }
        assert_eq!(nearest_int(f32::INFINITY), -4_194_304);
    }

    #[test]
    fn truncate_int_is_cvttss2si() {
        for (v, want) in [(2.9, 2), (-2.9, -2), (3e9, i32::MIN), (-3e9, i32::MIN), (f32::NAN, i32::MIN)] {
            assert_eq!(truncate_int(v), want, "{v}");
        }
    }
}
