// The searches for a scale: src/quant/search.rs, where the bytes are defined, and lane_search.rs.
//
// Sums run over the elements of a sub-block in order, products associate to the left, nothing is fused. A thread has
// a sub-block in registers: loops over elements are unrolled, loops over candidates are not. The codes of the best
// candidate are not kept: they follow from the numbers that a search returns.
#pragma once

#include "device.h"

// A block whose largest element is below this is all zero.
constexpr float GROUP_MAX_EPS = 1e-15f;

// The first element of largest magnitude, and that magnitude.
template <int N> DEVICE void signed_max(const float (&x)[N], float &max, float &amax) {
    max = 0.0f, amax = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        if (fabsf(x[i]) > amax) max = x[i], amax = fabsf(x[i]);
    }
}

// What `make_qx_quants` finds: x ≈ scale * code with the codes of `iscale`, or nothing but zeros.
struct Symmetric {
    float scale, iscale;
    bool flat;
};

// The code -NMAX..NMAX of an element.
template <int NMAX> DEVICE int symmetric_code(float v, float iscale) {
    return clamp_int(nearest_int(iscale * v), -NMAX, NMAX - 1);
}

// `make_qx_quants` with rmse_type 1. ANY says that elements may be infinite or no numbers; without it no code leaves
// NMAX + 1, so it is found as a float.
template <int NMAX, bool ANY, int N, class Weight>
DEVICE Symmetric make_qx_quants(const float (&x)[N], Weight weight) {
    float max, amax;
    signed_max(x, max, amax);
    Symmetric found = {0.0f, 0.0f, amax < GROUP_MAX_EPS};
    if (found.flat) return found;
    float best = 0.0f;
    ROLLED for (int i = 0; i < 19; ++i) {
        // The first guess, then its variations.
        int step = i == 0 ? 0 : i < 10 ? i - 10 : i - 9;
        float iscale = -((float)NMAX + 0.1f * (float)step) / max, sumlx = 0.0f, suml2 = 0.0f;
        UNROLL for (int j = 0; j < N; ++j) {
            float l = ANY ? (float)symmetric_code<NMAX>(x[j], iscale)
                          : clamp(nearest(iscale * x[j]), (float)-NMAX, (float)(NMAX - 1));
            float w = weight(j), v = x[j];
            sumlx = sumlx + w * v * l;
            suml2 = suml2 + w * l * l;
        }
        if (i == 0) {
            found.scale = suml2 != 0.0f ? sumlx / suml2 : 0.0f;
            found.iscale = iscale;
            best = found.scale * sumlx;
        } else if (suml2 > 0.0f && sumlx * sumlx > best * suml2) {
            found.scale = sumlx / suml2;
            found.iscale = iscale;
            best = found.scale * sumlx;
        }
    }
    return found;
}

// `make_q3_quants` with do_rmse: codes -NMAX..NMAX, stored as 0..2 * NMAX; where all is zero they are 0. An element
// weighs its square.
template <int NMAX, int N> DEVICE float make_q3_quants(const float (&x)[N], int (&codes)[N]) {
    float max, amax;
    signed_max(x, max, amax);
    if (amax < GROUP_MAX_EPS) {
        UNROLL for (int i = 0; i < N; ++i) codes[i] = 0;
        return 0.0f;
    }
    float iscale = (float)-NMAX / max, sumlx = 0.0f, suml2 = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        int code = symmetric_code<NMAX>(x[i], iscale);
        codes[i] = code + NMAX;
        float w = x[i] * x[i], l = (float)code;
        sumlx = sumlx + w * x[i] * l;
        suml2 = suml2 + w * l * l;
    }
    bool changed = true;
    ROLLED for (int pass = 0; pass < 5 && changed; ++pass) {
        changed = false;
        UNROLL for (int i = 0; i < N; ++i) {
            float w = x[i] * x[i], old = (float)(codes[i] - NMAX);
            float slx = sumlx - w * x[i] * old;
            if (slx > 0.0f) {
                float sl2 = suml2 - w * old * old;
                int code = clamp_int(nearest_int(x[i] * sl2 / slx), -NMAX, NMAX - 1);
                if (code != codes[i] - NMAX) {
                    float l = (float)code;
                    slx = slx + w * x[i] * l;
                    sl2 = sl2 + w * l * l;
                    if (sl2 > 0.0f && slx * slx * suml2 > sumlx * sumlx * sl2) {
                        codes[i] = code + NMAX;
                        sumlx = slx, suml2 = sl2;
                        changed = true;
                    }
                }
            }
        }
    }
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}

// How the candidates of an affine search are made: candidate s in 0..=steps tries the range NMAX + rmin + rdelta * s.
struct Candidates {
    float rmin, rdelta;
    int steps;
};

// The search with an importance matrix, whatever the type.
#define WEIGHTED_SEARCH Candidates{-0.9f, 0.05f, 36}

// What `make_qkx_quants` finds: x ≈ scale * code - minus_min with the codes of iscale * (x - low), or a range of nothing.
struct Affine {
    float scale, minus_min, iscale, low, sum_w;
    bool flat;
};

// The code 0..=NMAX of an element.
template <int NMAX> DEVICE int affine_code(float v, float iscale, float low) {
    return clamp_int(nearest_int(iscale * (v - low)), 0, NMAX);
}

// The same as a float; exact while |iscale * (v - low)| < 2^21.
template <int NMAX> DEVICE float near_code(float v, float iscale, float low) {
    return clamp(nearest(iscale * (v - low)), 0.0f, (float)NMAX);
}

// Whether some iscale * (x - low) may lie beyond 2^21 or be no number. Difference and product are monotone, so the
// extreme elements decide.
DEVICE bool out_of_range(float iscale, float low, float smallest, float largest) {
    return !(fabsf(iscale * (smallest - low)) < 2097152.0f && fabsf(iscale * (largest - low)) < 2097152.0f);
}

// |diff| or diff².
template <bool MAD> DEVICE float deviation(float diff) { return MAD ? fabsf(diff) : diff * diff; }

// `make_qkx_quants` for any finite elements: as it is written, from memory, for the few that need it.
template <int NMAX, bool MAD, class Weight> RARE Affine careful_affine(const float *x, int n, Weight w, Candidates s) {
    float min = x[0], max = x[0], sum_w = w(0), sum_x = sum_w * x[0];
    ROLLED for (int i = 1; i < n; ++i) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w = sum_w + w(i);
        sum_x = sum_x + w(i) * x[i];
    }
    if (min > 0.0f) min = 0.0f;
    if (max <= min) return {0.0f, -min, 0.0f, 0.0f, sum_w, true};
    Affine found = {0.0f, 0.0f, (float)NMAX / (max - min), min, sum_w, false};
    found.scale = 1.0f / found.iscale;
    float best = 0.0f;
    ROLLED for (int i = 0; i < n; ++i) {
        float l = (float)affine_code<NMAX>(x[i], found.iscale, found.low);
        best = best + w(i) * deviation<MAD>(found.scale * l + min - x[i]);
    }
    ROLLED for (int step = 0; step <= s.steps; ++step) {
        float iscale = (s.rmin + s.rdelta * (float)step + (float)NMAX) / (max - min);
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
        ROLLED for (int i = 0; i < n; ++i) {
            float l = (float)affine_code<NMAX>(x[i], iscale, min), wl = w(i) * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        float det = sum_w * sum_l2 - sum_l * sum_l;
        if (!(det > 0.0f)) continue;
        float this_scale = (sum_w * sum_xl - sum_x * sum_l) / det, this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        if (this_min > 0.0f) this_min = 0.0f, this_scale = sum_xl / sum_l2;
        float error = 0.0f;
        ROLLED for (int i = 0; i < n; ++i) {
            float l = (float)affine_code<NMAX>(x[i], iscale, min);
            error = error + w(i) * deviation<MAD>(this_scale * l + this_min - x[i]);
        }
        if (error < best) {
            best = error;
            found.iscale = iscale, found.low = min;
            found.scale = this_scale, min = this_min;
        }
    }
    found.minus_min = -min;
    return found;
}

// `make_qkx_quants`: each candidate fixes the codes and solves the weighted least squares for scale and minimum, which
// is kept at or below zero. `x` are the elements, and lie in `memory` too.
template <int NMAX, bool MAD, int N, class Weight>
DEVICE Affine make_qkx_quants(const float (&x)[N], const float *memory, Weight w, Candidates s) {
    float smallest = x[0], largest = x[0], sum_w = w(0), sum_x = sum_w * x[0];
    UNROLL for (int i = 1; i < N; ++i) {
        if (x[i] < smallest) smallest = x[i];
        if (x[i] > largest) largest = x[i];
        sum_w = sum_w + w(i);
        sum_x = sum_x + w(i) * x[i];
    }
    float min = smallest > 0.0f ? 0.0f : smallest;
    if (largest <= min) return {0.0f, -min, 0.0f, 0.0f, sum_w, true};
    Affine found = {0.0f, 0.0f, (float)NMAX / (largest - min), min, sum_w, false};
    found.scale = 1.0f / found.iscale;
    bool careful = out_of_range(found.iscale, min, smallest, largest);
    float best = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        float l = near_code<NMAX>(x[i], found.iscale, min);
        best = best + w(i) * deviation<MAD>(found.scale * l + min - x[i]);
    }
    ROLLED for (int step = 0; step <= s.steps; ++step) {
        float iscale = (s.rmin + s.rdelta * (float)step + (float)NMAX) / (largest - min);
        careful |= out_of_range(iscale, min, smallest, largest);
        float codes[N], sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
        UNROLL for (int i = 0; i < N; ++i) {
            float l = codes[i] = near_code<NMAX>(x[i], iscale, min), wl = w(i) * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        float det = sum_w * sum_l2 - sum_l * sum_l;
        if (!(det > 0.0f)) continue;
        float this_scale = (sum_w * sum_xl - sum_x * sum_l) / det, this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        if (this_min > 0.0f) this_min = 0.0f, this_scale = sum_xl / sum_l2;
        float error = 0.0f;
        UNROLL for (int i = 0; i < N; ++i) {
            error = error + w(i) * deviation<MAD>(this_scale * codes[i] + this_min - x[i]);
        }
        if (error < best) {
            best = error;
            found.iscale = iscale, found.low = min;
            found.scale = this_scale, min = this_min;
        }
    }
    if (careful) return careful_affine<NMAX, MAD>(memory, N, w, s);
    found.minus_min = -min;
    return found;
}

// `make_qp_quants`: a scale for codes 0..=nmax of `N` elements that are not negative, by their weighted error, then up
// to five passes that move single codes. Elements may be infinite or no numbers.
template <int N> DEVICE float make_qp_quants(int nmax, const float *elements, const float *weights, u8 (&codes)[N]) {
    float x[N], w[N], max = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        x[i] = elements[i], w[i] = weights[i];
        max = max > x[i] ? max : x[i];
    }
    if (max < GROUP_MAX_EPS) {
        UNROLL for (int i = 0; i < N; ++i) codes[i] = 0;
        return 0.0f;
    }
    float best_iscale = (float)nmax / max, best = 0.0f;
    float first_scale = 1.0f / best_iscale;
    UNROLL for (int i = 0; i < N; ++i) {
        // Through a byte, as there: a negative code wraps.
        float diff = x[i] - first_scale * (float)(u8)nearest_int(best_iscale * x[i]);
        best = best + w[i] * diff * diff;
    }
    ROLLED for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        float iscale = (0.1f * (float)step + (float)nmax) / max, scale = 1.0f / iscale, mse = 0.0f;
        UNROLL for (int i = 0; i < N; ++i) {
            int code = nearest_int(iscale * x[i]);
            float diff = x[i] - scale * (float)(code < nmax ? code : nmax);
            mse = mse + w[i] * diff * diff;
        }
        if (mse < best) best = mse, best_iscale = iscale;
    }
    float sumlx = 0.0f, suml2 = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        int code = nearest_int(best_iscale * x[i]);
        code = code < nmax ? code : nmax;
        codes[i] = (u8)code;
        float l = (float)code;
        sumlx = sumlx + w[i] * x[i] * l;
        suml2 = suml2 + w[i] * l * l;
    }
    bool changed = true;
    ROLLED for (int pass = 0; pass < 5 && changed; ++pass) {
        changed = false;
        UNROLL for (int i = 0; i < N; ++i) {
            float l = (float)codes[i];
            float slx = sumlx - w[i] * x[i] * l, sl2 = suml2 - w[i] * l * l;
            if (slx > 0.0f && sl2 > 0.0f) {
                int code = nearest_int(x[i] * sl2 / slx);
                code = code < nmax ? code : nmax;
                if (code != (int)codes[i]) {
                    l = (float)code;
                    slx = slx + w[i] * x[i] * l;
                    sl2 = sl2 + w[i] * l * l;
                    if (slx * slx * suml2 > sumlx * sumlx * sl2) {
                        codes[i] = (u8)code;
                        sumlx = slx, suml2 = sl2;
                        changed = true;
                    }
                }
            }
        }
    }
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}
