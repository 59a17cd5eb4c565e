//! The searches of `search.rs` with one sub-block per lane, for vectors of any width.
//!
//! Vector `x[i]` holds element i of each sub-block, so a sum runs over `i` in the scalar order, lane by lane.
//! `B` vectors are searched at once only so that one's chain of additions hides in another's.
//! The codes of a candidate are not kept: they follow from the numbers that each search returns.

use super::lanes::Vector;
use super::search::{AffineSearch, GROUP_MAX_EPS};

/// What `make_qkx2_quants` finds for a vector of sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Affine<L: Vector> {
    /// x ≈ scale·code − minus_min.
    pub(super) scale: L::F32,
    /// See `scale`.
    pub(super) minus_min: L::F32,
    /// The codes are those of iscale·(x − low).
    pub(super) iscale: L::F32,
    /// See `iscale`.
    pub(super) low: L::F32,
    /// The sum of the weights.
    pub(super) sum_w: L::F32,
    /// Lanes without a range: their codes are zero.
    pub(super) flat: L::Mask,
    /// Lanes that left the range where lanes and reference agree: use the reference.
    pub(super) unsafe_lanes: L::Mask,
}

/// The code 0..=nmax of an element, as a float.
#[inline(always)]
pub(super) fn affine_code<L: Vector>(l: L, v: L::F32, iscale: L::F32, low: L::F32, nmax: L::F32) -> L::F32 {
    l.clamp(l.nearest(iscale * (v - low)), l.splat(0.0), nmax)
}

/// `make_qkx_quants` for `B` vectors of sub-blocks of `N` elements.
#[inline(always)]
pub(super) fn make_qkx_quants<L: Vector, const N: usize, const B: usize>(
    l: L,
    s: AffineSearch,
    x: &[[L::F32; N]; B],
    w: &[[L::F32; N]; B],
) -> [Affine<L>; B] {
    let zero = l.splat(0.0);
    let nmax = l.splat(s.nmax as f32);
    let (mut min, mut max, mut sum_w, mut sum_x) = ([zero; B], [zero; B], [zero; B], [zero; B]);
    for b in 0..B {
        (min[b], max[b], sum_w[b], sum_x[b]) = (x[b][0], x[b][0], w[b][0], w[b][0] * x[b][0]);
    }
    for i in 1..N {
        for b in 0..B {
            min[b] = l.min(x[b][i], min[b]);
            max[b] = l.max(x[b][i], max[b]);
            sum_w[b] = sum_w[b] + w[b][i];
            sum_x[b] = sum_x[b] + w[b][i] * x[b][i];
        }
    }
    let smallest = min;
    let mut best = [zero; B];
    let mut found = [Affine {
        scale: zero,
        minus_min: zero,
        iscale: zero,
        low: zero,
        sum_w: zero,
        flat: l.lt(zero, zero),
        unsafe_lanes: l.lt(zero, zero),
    }; B];
    for b in 0..B {
        // This order keeps a minimum of −0.
        min[b] = l.min(zero, min[b]);
        found[b].flat = !l.lt(min[b], max[b]);
        found[b].low = min[b];
        found[b].sum_w = sum_w[b];
        found[b].iscale = nmax / (max[b] - min[b]);
        found[b].scale = l.splat(1.0) / found[b].iscale;
        found[b].unsafe_lanes = out_of_range(l, found[b].iscale, min[b], smallest[b], max[b]);
    }
    for i in 0..N {
        for b in 0..B {
            let code = affine_code(l, x[b][i], found[b].iscale, min[b], nmax);
            best[b] = best[b] + w[b][i] * deviation(l, s, found[b].scale * code + min[b] - x[b][i]);
        }
    }
    let mut codes = [[zero; N]; B];
    for step in 0..=s.steps {
        let range = l.splat(s.rmin + s.rdelta * step as f32 + s.nmax as f32);
        let mut iscale = [zero; B];
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([zero; B], [zero; B], [zero; B]);
        for b in 0..B {
            iscale[b] = range / (max[b] - min[b]);
            let bad = out_of_range(l, iscale[b], min[b], smallest[b], max[b]);
            found[b].unsafe_lanes = found[b].unsafe_lanes | bad;
        }
        for i in 0..N {
            for b in 0..B {
                let code = affine_code(l, x[b][i], iscale[b], min[b], nmax);
                codes[b][i] = code;
                let wl = w[b][i] * code;
                sum_l[b] = sum_l[b] + wl;
                sum_l2[b] = sum_l2[b] + wl * code;
                sum_xl[b] = sum_xl[b] + wl * x[b][i];
            }
        }
        let (mut solvable, mut this_scale, mut this_min) = ([l.lt(zero, zero); B], [zero; B], [zero; B]);
        for b in 0..B {
            let det = sum_w[b] * sum_l2[b] - sum_l[b] * sum_l[b];
            solvable[b] = l.lt(zero, det);
            let scale = (sum_w[b] * sum_xl[b] - sum_x[b] * sum_l[b]) / det;
            let offset = (sum_l2[b] * sum_x[b] - sum_l[b] * sum_xl[b]) / det;
            let above = l.lt(zero, offset);
            this_min[b] = l.select(above, zero, offset);
            this_scale[b] = scale;
            if l.any(above) {
                this_scale[b] = l.select(above, sum_xl[b] / sum_l2[b], scale);
            }
        }
        let mut error = [zero; B];
        for i in 0..N {
            for b in 0..B {
                let diff = this_scale[b] * codes[b][i] + this_min[b] - x[b][i];
                error[b] = error[b] + w[b][i] * deviation(l, s, diff);
            }
        }
        for b in 0..B {
            let better = solvable[b] & l.lt(error[b], best[b]);
            best[b] = l.select(better, error[b], best[b]);
            found[b].iscale = l.select(better, iscale[b], found[b].iscale);
            found[b].low = l.select(better, min[b], found[b].low);
            found[b].scale = l.select(better, this_scale[b], found[b].scale);
            min[b] = l.select(better, this_min[b], min[b]);
        }
    }
    for b in 0..B {
        let flat = found[b].flat;
        // Where the range is empty nothing above means anything but the starting minimum.
        let first_min = l.min(zero, smallest[b]);
        found[b].scale = l.select(flat, zero, found[b].scale);
        found[b].minus_min = negate(l, l.select(flat, first_min, min[b]));
        found[b].unsafe_lanes = found[b].unsafe_lanes & !flat;
    }
    found
}

/// |diff| or diff².
#[inline(always)]
fn deviation<L: Vector>(l: L, s: AffineSearch, diff: L::F32) -> L::F32 {
    if s.use_mad { l.abs(diff) } else { diff * diff }
}

/// Lanes where some iscale·(x − low) may lie beyond ±2²¹ or be no number, so that `nearest` is not
/// `nearest_int`. Subtraction and product are monotone, so the extreme elements decide.
#[inline(always)]
fn out_of_range<L: Vector>(l: L, iscale: L::F32, low: L::F32, smallest: L::F32, largest: L::F32) -> L::Mask {
    let reach = l.max(l.abs(iscale * (smallest - low)), l.abs(iscale * (largest - low)));
    // Of NaN and a number max gives the second; so ask both.
    !(l.lt(reach, l.splat(2_097_152.0)) & l.lt(l.abs(iscale * (smallest - low)), l.splat(2_097_152.0)))
}

/// Flips the sign.
#[inline(always)]
fn negate<L: Vector>(l: L, v: L::F32) -> L::F32 {
    l.from_bits(l.to_bits(v) ^ l.splat_i(i32::MIN))
}

/// What `make_qx_quants` finds for a vector of sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<L: Vector> {
    /// x ≈ scale·code.
    pub(super) scale: L::F32,
    /// The codes are those of iscale·x.
    pub(super) iscale: L::F32,
    /// Lanes whose elements are all but zero: their codes, as stored, are zero.
    pub(super) flat: L::Mask,
}

/// The code −nmax..nmax of an element, as a float. `low` is −nmax, `high` nmax − 1.
#[inline(always)]
pub(super) fn symmetric_code<L: Vector>(l: L, v: L::F32, iscale: L::F32, low: L::F32, high: L::F32) -> L::F32 {
    l.clamp(l.nearest(iscale * v), low, high)
}

/// The first element of largest magnitude, and that magnitude, lane by lane.
#[inline(always)]
pub(super) fn signed_max<L: Vector, const N: usize>(l: L, x: &[L::F32; N]) -> (L::F32, L::F32) {
    let (mut max, mut amax) = (l.splat(0.0), l.splat(0.0));
    for v in x {
        let larger = l.lt(amax, l.abs(*v));
        max = l.select(larger, *v, max);
        amax = l.select(larger, l.abs(*v), amax);
    }
    (max, amax)
}

/// `make_qx_quants` with rmse_type 1 for `B` vectors of sub-blocks of `N` elements. Elements are finite and
/// no code can leave ±(nmax + 1), so every lane agrees with the reference.
#[inline(always)]
pub(super) fn make_qx_quants<L: Vector, const N: usize, const B: usize>(
    l: L,
    nmax: i32,
    x: &[[L::F32; N]; B],
    w: &[[L::F32; N]; B],
) -> [Symmetric<L>; B] {
    let zero = l.splat(0.0);
    let mut search = SymmetricSearch {
        nmax,
        x,
        w,
        wx: [[zero; N]; B],
        max: [zero; B],
        best: [zero; B],
        found: [Symmetric { scale: zero, iscale: zero, flat: l.lt(zero, zero) }; B],
    };
    for b in 0..B {
        let (signed, amax) = signed_max(l, &x[b]);
        search.max[b] = signed;
        search.found[b].flat = l.lt(amax, l.splat(GROUP_MAX_EPS));
        for i in 0..N {
            search.wx[b][i] = w[b][i] * x[b][i];
        }
    }
    // The first guess, then its variations in their order. Up to 0.4 beyond it no code falls below −nmax.
    for step in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4] {
        search.attempt::<false>(l, step);
    }
    for step in 5..=9 {
        search.attempt::<true>(l, step);
    }
    for f in &mut search.found {
        f.scale = l.select(f.flat, zero, f.scale);
    }
    search.found
}

/// The state of [`make_qx_quants`].
struct SymmetricSearch<'a, L: Vector, const N: usize, const B: usize> {
    nmax: i32,
    x: &'a [[L::F32; N]; B],
    w: &'a [[L::F32; N]; B],
    wx: [[L::F32; N]; B],
    max: [L::F32; B],
    best: [L::F32; B],
    found: [Symmetric<L>; B],
}

impl<L: Vector, const N: usize, const B: usize> SymmetricSearch<'_, L, N, B> {
    /// Tries the scale that maps the largest element to −(nmax + step/10). `LOW`: codes may fall below −nmax.
    #[inline(always)]
    fn attempt<const LOW: bool>(&mut self, l: L, step: i32) {
        let zero = l.splat(0.0);
        let (low, high) = (l.splat(-self.nmax as f32), l.splat((self.nmax - 1) as f32));
        let range = l.splat(-(self.nmax as f32 + 0.1 * step as f32));
        let (mut sumlx, mut suml2, mut iscale) = ([zero; B], [zero; B], [range; B]);
        for (iscale, max) in iscale.iter_mut().zip(self.max) {
            *iscale = *iscale / max;
        }
        for i in 0..N {
            for b in 0..B {
                let mut code = l.min(l.nearest(iscale[b] * self.x[b][i]), high);
                if LOW {
                    code = l.max(code, low);
                }
                sumlx[b] = sumlx[b] + self.wx[b][i] * code;
                suml2[b] = suml2[b] + self.w[b][i] * code * code;
            }
        }
        for b in 0..B {
            let (best, found) = (&mut self.best[b], &mut self.found[b]);
            let scale = sumlx[b] / suml2[b];
            let (better, scale) = if step == 0 {
                (l.eq(zero, zero), l.select(l.eq(suml2[b], zero), zero, scale))
            } else {
                (l.lt(zero, suml2[b]) & l.lt(*best * suml2[b], sumlx[b] * sumlx[b]), scale)
            };
            *best = l.select(better, scale * sumlx[b], *best);
            found.scale = l.select(better, scale, found.scale);
            found.iscale = l.select(better, iscale[b], found.iscale);
        }
    }
}

/// What `make_q3_quants` finds for a vector of sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Refined<L: Vector> {
    /// x ≈ scale·code.
    pub(super) scale: L::F32,
    /// Lanes where another pass would move a code, or might.
    pub(super) unsettled: L::Mask,
}

/// `make_q3_quants` with do_rmse for `B` vectors of sub-blocks of `N` elements, with up to `PASSES` passes. Lanes
/// that have settled stay as they are while others move on.
///
/// Most sub-blocks settle at once, some in one pass, and an element that moves changes the sums for the next:
/// a pass is a long chain of operations, but to see that it would change nothing is not. So no pass at all, or
/// one, and the question who has settled; then the others again with more.
#[inline(always)]
pub(super) fn make_q3_quants<L: Vector, const N: usize, const B: usize, const PASSES: usize>(
    l: L,
    nmax: i32,
    x: &[[L::F32; N]; B],
) -> [Refined<L>; B] {
    let zero = l.splat(0.0);
    let (low, high) = (l.splat(-nmax as f32), l.splat((nmax - 1) as f32));
    let (mut sumlx, mut suml2) = ([zero; B], [zero; B]);
    let (mut w, mut wx, mut codes) = ([[zero; N]; B], [[zero; N]; B], [[zero; N]; B]);
    let mut flat = [l.lt(zero, zero); B];
    for b in 0..B {
        let (max, amax) = signed_max(l, &x[b]);
        flat[b] = l.lt(amax, l.splat(GROUP_MAX_EPS));
        // Codes of zero for lanes without a scale, and nothing moves them.
        let iscale = l.select(flat[b], zero, low / max);
        for i in 0..N {
            let code = l.min(l.nearest(iscale * x[b][i]), high);
            codes[b][i] = code;
            w[b][i] = x[b][i] * x[b][i];
            wx[b][i] = w[b][i] * x[b][i];
            sumlx[b] = sumlx[b] + wx[b][i] * code;
            suml2[b] = suml2[b] + w[b][i] * code * code;
        }
    }
    let mut active = [true; B];
    for _ in 0..PASSES {
        let mut changed = [l.lt(zero, zero); B];
        for i in 0..N {
            for b in 0..B {
                if !active[b] {
                    continue;
                }
                let old = codes[b][i];
                let slx = sumlx[b] - wx[b][i] * old;
                let sl2 = suml2[b] - w[b][i] * old * old;
                let new = refined_code(l, nmax, x[b][i], slx, sl2);
                let moves = l.lt(zero, slx) & !(l.eq(new, old) | flat[b]);
                let slx = slx + wx[b][i] * new;
                let sl2 = sl2 + w[b][i] * new * new;
                let better = l.lt(sumlx[b] * sumlx[b] * sl2, slx * slx * suml2[b]);
                let take = moves & l.lt(zero, sl2) & better;
                codes[b][i] = l.select(take, new, old);
                sumlx[b] = l.select(take, slx, sumlx[b]);
                suml2[b] = l.select(take, sl2, suml2[b]);
                changed[b] = changed[b] | take;
            }
        }
        let mut any = false;
        for b in 0..B {
            active[b] = active[b] && l.any(changed[b]);
            any |= active[b];
        }
        if !any {
            break;
        }
    }
    let mut found = [Refined { scale: zero, unsettled: l.lt(zero, zero) }; B];
    for b in 0..B {
        let usable = l.lt(zero, suml2[b]) & !flat[b];
        found[b].scale = l.select(usable, sumlx[b] / suml2[b], zero);
        if PASSES < MOST_PASSES {
            for i in 0..N {
                let old = codes[b][i];
                let slx = sumlx[b] - wx[b][i] * old;
                let sl2 = suml2[b] - w[b][i] * old * old;
                let moves = l.lt(zero, slx) & !l.eq(refined_code(l, nmax, x[b][i], slx, sl2), old);
                found[b].unsettled = found[b].unsettled | moves;
            }
            found[b].unsettled = found[b].unsettled & !flat[b];
        }
    }
    found
}

/// Passes after which `make_q3_quants` stops.
pub(super) const MOST_PASSES: usize = 5;

/// The code that fits an element best, given the sums over the others.
#[inline(always)]
fn refined_code<L: Vector>(l: L, nmax: i32, v: L::F32, slx: L::F32, sl2: L::F32) -> L::F32 {
    // Far out of range where slx is tiny: only the integer form wraps as the reference does.
    let code = l.nearest_int(v * sl2 / slx);
    l.to_f32(l.max_i(l.min_i(code, l.splat_i(nmax - 1)), l.splat_i(-nmax)))
}

/// `make_qp_quants` for a vector of sub-blocks of `N` elements, which can be negative: the scale, and the codes as
/// the bytes 0..=255 that they are in ggml. Lanes that have settled stay as they are while others move on.
#[inline(always)]
pub(super) fn make_qp_quants<L: Vector, const N: usize>(
    l: L,
    nmax: i32,
    x: &[L::F32; N],
    w: &[L::F32; N],
) -> (L::F32, [L::F32; N]) {
    let zero = l.splat(0.0);
    let mut max = zero;
    for &v in x {
        max = l.max(max, v);
    }
    let flat = l.lt(max, l.splat(GROUP_MAX_EPS));
    let highest = l.splat_i(nmax);
    let mut best_iscale = l.splat(nmax as f32) / max;
    let scale = l.splat(1.0) / best_iscale;
    let mut best = zero;
    for i in 0..N {
        // Codes pass through a byte in ggml: a negative one wraps.
        let code = l.to_f32(l.nearest_int(best_iscale * x[i]) & l.splat_i(255));
        let diff = x[i] - scale * code;
        best = best + w[i] * diff * diff;
    }
    for step in [-4, -3, -2, -1, 1, 2, 3, 4] {
        let iscale = l.splat(0.1 * step as f32 + nmax as f32) / max;
        let scale = l.splat(1.0) / iscale;
        let mut error = zero;
        for i in 0..N {
            let code = l.to_f32(l.min_i(l.nearest_int(iscale * x[i]), highest));
            let diff = x[i] - scale * code;
            error = error + w[i] * diff * diff;
        }
        let better = l.lt(error, best);
        best = l.select(better, error, best);
        best_iscale = l.select(better, iscale, best_iscale);
    }
    let (mut codes, mut wx) = ([zero; N], [zero; N]);
    let (mut sumlx, mut suml2) = (zero, zero);
    for i in 0..N {
        let code = l.min_i(l.nearest_int(best_iscale * x[i]), highest);
        let level = l.to_f32(code);
        wx[i] = w[i] * x[i];
        sumlx = sumlx + wx[i] * level;
        suml2 = suml2 + w[i] * level * level;
        codes[i] = l.to_f32(code & l.splat_i(255));
    }
    for pass in 0..5 {
        let mut changed = l.lt(zero, zero);
        for i in 0..N {
            let old = codes[i];
            let slx = sumlx - wx[i] * old;
            let sl2 = suml2 - w[i] * old * old;
            let new = l.min_i(l.nearest_int(x[i] * sl2 / slx), highest);
            let level = l.to_f32(new);
            let moves = l.lt(zero, slx) & l.lt(zero, sl2) & !l.eq(level, old);
            // At first some lane nearly always moves; later hardly any, and the branch is foreseen.
            if pass >= 1 && !l.any(moves) {
                continue;
            }
            let slx = slx + wx[i] * level;
            let sl2 = sl2 + w[i] * level * level;
            let take = moves & l.lt(sumlx * sumlx * sl2, slx * slx * suml2);
            codes[i] = l.select(take, l.to_f32(new & l.splat_i(255)), old);
            sumlx = l.select(take, slx, sumlx);
            suml2 = l.select(take, sl2, suml2);
            changed = changed | take;
        }
        if !l.any(changed) {
            break;
        }
    }
    for code in &mut codes {
        *code = l.select(flat, zero, *code);
    }
    (l.select(l.lt(zero, suml2) & !flat, sumlx / suml2, zero), codes)
}
