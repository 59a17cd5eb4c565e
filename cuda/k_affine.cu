// Q2_K, Q4_K, Q5_K: src/quant/k_affine.rs. A thread has a sub-block; once per super-block, a thread rounds the scales.
#include "blocks.h"
#include "search.h"

// What the threads of a super-block tell each other of their sub-blocks.
struct Found {
    float scale[THREADS], minus_min[THREADS], sum_w[THREADS];
    // Scale and minimum as a reader will see them.
    float unit[THREADS], unit_min[THREADS];
    // Rounded scales and minima.
    u8 ls[THREADS], lm[THREADS];
};

// Keeps what the search of this thread's sub-block found, and its codes.
template <int NMAX, int SUB>
DEVICE void keep(Found &found, Codes<SUB> &codes, const Affine &a, const float *line) {
    found.scale[threadIdx.x] = a.scale, found.minus_min[threadIdx.x] = a.minus_min, found.sum_w[threadIdx.x] = a.sum_w;
    codes.put([&](int i) { return a.flat ? 0 : affine_code<NMAX>(line[i], a.iscale, a.low); });
}

// The codes from what a reader will see; a scale of zero leaves those of the search.
template <int NMAX, int SUB> DEVICE void recode(const Found &found, Codes<SUB> &codes, const float *line) {
    float d = found.unit[threadIdx.x], min = found.unit_min[threadIdx.x];
    if (d != 0.0f) codes.put([=](int i) { return clamp_int(nearest_int((line[i] + min) / d), 0, NMAX); });
}

// The largest element, if one is above zero.
DEVICE float largest_or_zero(const float *v, int n) {
    float max = 0.0f;
    for (int i = 0; i < n; ++i) max = v[i] > max ? v[i] : max;
    return max;
}

// Rounds scales to 0..=63 of the largest; returns the unit.
DEVICE float round_scales(const float *scales, u8 (&codes)[8]) {
    float max = largest_or_zero(scales, 8), inverse = max > 0.0f ? 63.0f / max : 0.0f;
    UNROLL for (int i = 0; i < 8; ++i) {
        u8 code = (u8)nearest_int(inverse * scales[i]);
        codes[i] = code < 63 ? code : 63;
    }
    return max / 63.0f;
}

// Rounds scales to 0..=15 of the largest, without a limit; returns the unit.
DEVICE float round_nibbles(const float *scales, u8 (&codes)[16]) {
    float max = largest_or_zero(scales, 16);
    if (!(max > 0.0f)) {
        UNROLL for (int i = 0; i < 16; ++i) codes[i] = 0;
        return 0.0f;
    }
    float inverse = 15.0f / max;
    UNROLL for (int i = 0; i < 16; ++i) codes[i] = (u8)nearest_int(inverse * scales[i]);
    return max / 15.0f;
}

// Eight 6-bit scales and minima in 12 bytes.
DEVICE void pack_k4(const u8 *ls, const u8 *lm, u8 *out) {
    UNROLL for (int j = 0; j < 4; ++j) {
        out[j] = (u8)(ls[j] | ls[j + 4] >> 4 << 6);
        out[j + 4] = (u8)(lm[j] | lm[j + 4] >> 4 << 6);
        out[j + 8] = (u8)((ls[j + 4] & 15) | (lm[j + 4] & 15) << 4);
    }
}

// `get_scale_min_k4`: scale or minimum of sub-block `j`.
DEVICE u32 scale_k4(int j, const u8 *q) { return j < 4 ? q[j] & 63 : (q[j + 4] & 15) | q[j - 4] >> 6 << 4; }
DEVICE u32 min_k4(int j, const u8 *q) { return j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | q[j] >> 6 << 4; }

// Q4_K (NMAX 15) and Q5_K (NMAX 31).
template <int NMAX, bool WEIGHTED>
DEVICE void eight_sub_blocks(const float *values, const float *importance, u8 *blocks, u64 rows, u64 row_len,
                             Candidates search) {
    constexpr u32 BYTES = NMAX == 15 ? 144 : 176, SUPER = THREADS / 8;
    SHARED Lines<32> elements;
    SHARED Lines<WEIGHTED ? 32 : 0> weights;
    SHARED Found found;
    SHARED Codes<32> codes;
    SHARED float sigma2[SUPER];
    alignas(16) SHARED u8 out[SUPER * BYTES];
    u64 count = rows * divide(row_len, QK_K);
    for (u64 first = (u64)blockIdx.x * SUPER; first < count; first += (u64)gridDim.x * SUPER) {
        u32 n = count - first < SUPER ? (u32)(count - first) : SUPER;
        PHASE {
            load_lines(elements, values + first * QK_K, n * QK_K);
            if constexpr (WEIGHTED) load_importance(weights, importance, first * QK_K, row_len, n * QK_K);
        }
        if constexpr (WEIGHTED) {
            PHASE {
                if (threadIdx.x < n) sigma2[threadIdx.x] = 2.0f * sum_of_squares(elements, 8 * threadIdx.x, 8) / 256.0f;
            }
        }
        PHASE {
            if (threadIdx.x >= 8 * n) continue;
            float x[32];
            const float *line = elements.v[threadIdx.x];
            UNROLL for (int i = 0; i < 32; ++i) x[i] = line[i];
            Affine a;
            if constexpr (WEIGHTED) {
                float *w = weights.v[threadIdx.x];
                float square = sigma2[threadIdx.x / 8];
                UNROLL for (int i = 0; i < 32; ++i) w[i] = w[i] * sqrtf(square + x[i] * x[i]);
                a = make_qkx_quants<NMAX, false>(x, line, [w](int i) { return w[i]; }, search);
            } else {
                float average = sqrtf(sum_of_squares(elements, threadIdx.x, 1) / 32.0f);
                auto weight = [average, line](int i) { return average + fabsf(line[i]); };
                a = make_qkx_quants<NMAX, false>(x, line, weight, search);
            }
            keep<NMAX>(found, codes, a, line);
        }
        // The scales are one thread's task, the minima another's.
        PHASE {
            u32 block = threadIdx.x % SUPER, minima = threadIdx.x / SUPER;
            if (block >= n || minima > 1) continue;
            const float *numbers = (minima ? found.minus_min : found.scale) + 8 * block;
            u8 rounded[8];
            float unit;
            if constexpr (WEIGHTED) {
                unit = make_qp_quants(63, numbers, found.sum_w + 8 * block, rounded);
                // Codes of scales below zero have wrapped; Q5_K limits them, Q4_K does not.
                UNROLL for (int i = 0; i < 8; ++i) {
                    if (NMAX == 31 && rounded[i] > 63) rounded[i] = 63;
                }
            } else {
                unit = round_scales(numbers, rounded);
            }
            UNROLL for (int i = 0; i < 8; ++i) (minima ? found.lm : found.ls)[8 * block + i] = rounded[i];
            // Kept in the place of the first unit until the units are known.
            (minima ? found.unit_min : found.unit)[8 * block] = put_f16(unit, out + block * BYTES + 2 * minima);
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            u32 sub = 8 * threadIdx.x;
            u8 *packed = out + threadIdx.x * BYTES + 4;
            pack_k4(found.ls + sub, found.lm + sub, packed);
            float d = found.unit[sub], dmin = found.unit_min[sub];
            // Unpacked again: of a scale beyond six bits some are lost.
            UNROLL for (int i = 0; i < 8; ++i) {
                found.unit[sub + i] = d * (float)scale_k4(i, packed);
                found.unit_min[sub + i] = dmin * (float)min_k4(i, packed);
            }
        }
        PHASE {
            if (threadIdx.x < 8 * n) recode<NMAX>(found, codes, elements.v[threadIdx.x]);
        }
        PHASE {
            // Eight words of codes per pair of sub-blocks, and eight of fifth bits per super-block.
            for (u32 task = threadIdx.x; task < 32 * n; task += THREADS) {
                u32 block = task / 32, pair = task / 8 % 4, at = task % 8 * 4, sub = 8 * block + 2 * pair;
                u32 low = codes.word(sub, at) & 0x0f0f0f0f, high = codes.word(sub + 1, at) & 0x0f0f0f0f;
                *(u32 *)(out + block * BYTES + (BYTES - 128) + 32 * pair + at) = low | high << 4;
            }
            if constexpr (NMAX == 31) {
                for (u32 task = threadIdx.x; task < 8 * n; task += THREADS) {
                    u32 block = task / 8, at = task % 8 * 4, bits = 0;
                    UNROLL for (int k = 0; k < 8; ++k) bits |= (codes.word(8 * block + k, at) >> 4 & 0x01010101) << k;
                    *(u32 *)(out + block * BYTES + 16 + at) = bits;
                }
            }
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}

KERNEL BOUNDS(THREADS) quantize_q4_k(const float *values, const float *importance, const float *, u8 *blocks, u64 rows,
                                     u64 row_len) {
    eight_sub_blocks<15, false>(values, importance, blocks, rows, row_len, Candidates{-1.0f, 0.1f, 20});
}

KERNEL BOUNDS(THREADS) quantize_q4_k_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                             u64 rows, u64 row_len) {
    eight_sub_blocks<15, true>(values, importance, blocks, rows, row_len, WEIGHTED_SEARCH);
}

KERNEL BOUNDS(THREADS) quantize_q5_k(const float *values, const float *importance, const float *, u8 *blocks, u64 rows,
                                     u64 row_len) {
    eight_sub_blocks<31, false>(values, importance, blocks, rows, row_len, Candidates{-0.5f, 0.1f, 15});
}

KERNEL BOUNDS(THREADS) quantize_q5_k_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                             u64 rows, u64 row_len) {
    eight_sub_blocks<31, true>(values, importance, blocks, rows, row_len, WEIGHTED_SEARCH);
}

template <bool WEIGHTED>
DEVICE void sixteen_sub_blocks(const float *values, const float *importance, u8 *blocks, u64 rows, u64 row_len) {
    constexpr u32 BYTES = 84, SUPER = THREADS / 16;
    SHARED Lines<16> elements;
    SHARED Lines<WEIGHTED ? 16 : 0> weights;
    SHARED Found found;
    SHARED Codes<16> codes;
    SHARED float sigma2[SUPER];
    alignas(16) SHARED u8 out[SUPER * BYTES];
    u64 count = rows * divide(row_len, QK_K);
    for (u64 first = (u64)blockIdx.x * SUPER; first < count; first += (u64)gridDim.x * SUPER) {
        u32 n = count - first < SUPER ? (u32)(count - first) : SUPER;
        PHASE {
            load_lines(elements, values + first * QK_K, n * QK_K);
            if constexpr (WEIGHTED) load_importance(weights, importance, first * QK_K, row_len, n * QK_K);
        }
        if constexpr (WEIGHTED) {
            PHASE {
                if (threadIdx.x < n) sigma2[threadIdx.x] = sum_of_squares(elements, 16 * threadIdx.x, 16) / 256.0f;
            }
        }
        PHASE {
            if (threadIdx.x >= 16 * n) continue;
            float x[16];
            const float *line = elements.v[threadIdx.x];
            UNROLL for (int i = 0; i < 16; ++i) x[i] = line[i];
            Affine a;
            if constexpr (WEIGHTED) {
                float *w = weights.v[threadIdx.x];
                float square = sigma2[threadIdx.x / 16];
                UNROLL for (int i = 0; i < 16; ++i) w[i] = w[i] * sqrtf(square + x[i] * x[i]);
                a = make_qkx_quants<3, false>(x, line, [w](int i) { return w[i]; }, WEIGHTED_SEARCH);
            } else {
                auto weight = [line](int i) { return fabsf(line[i]); };
                a = make_qkx_quants<3, true>(x, line, weight, Candidates{-0.5f, 0.1f, 15});
            }
            keep<3>(found, codes, a, line);
        }
        PHASE {
            u32 block = threadIdx.x % SUPER, minima = threadIdx.x / SUPER;
            if (block >= n || minima > 1) continue;
            const float *numbers = (minima ? found.minus_min : found.scale) + 16 * block;
            u8 rounded[16];
            float unit;
            if constexpr (WEIGHTED) {
                unit = make_qp_quants(15, numbers, found.sum_w + 16 * block, rounded);
            } else {
                unit = round_nibbles(numbers, rounded);
            }
            UNROLL for (int i = 0; i < 16; ++i) (minima ? found.lm : found.ls)[16 * block + i] = rounded[i];
            (minima ? found.unit_min : found.unit)[16 * block] = put_f16(unit, out + block * BYTES + 80 + 2 * minima);
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            u32 sub = 16 * threadIdx.x;
            float d = found.unit[sub], dmin = found.unit_min[sub];
            UNROLL for (int i = 0; i < 16; ++i) {
                u8 both = (u8)(found.ls[sub + i] | found.lm[sub + i] << 4);
                out[threadIdx.x * BYTES + i] = both;
                found.unit[sub + i] = d * (float)(both & 15);
                found.unit_min[sub + i] = dmin * (float)(both >> 4);
            }
        }
        PHASE {
            if (threadIdx.x < 16 * n) recode<3>(found, codes, elements.v[threadIdx.x]);
        }
        PHASE {
            for (u32 task = threadIdx.x; task < 16 * n; task += THREADS) {
                *(u32 *)(out + task / 16 * BYTES + 16 + task % 16 * 4) = crumbs(codes, task / 16, task % 16);
            }
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}

KERNEL BOUNDS(THREADS) quantize_q2_k(const float *values, const float *importance, const float *, u8 *blocks, u64 rows,
                                     u64 row_len) {
    sixteen_sub_blocks<false>(values, importance, blocks, rows, row_len);
}

KERNEL BOUNDS(THREADS) quantize_q2_k_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                             u64 rows, u64 row_len) {
    sixteen_sub_blocks<true>(values, importance, blocks, rows, row_len);
}
