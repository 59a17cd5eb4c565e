// IQ4_NL and IQ4_XS: src/quant/iq4.rs. A thread has 32 elements: a block, or a sub-block of eight.
#include "blocks.h"
#include "search.h"
#include "tables.h"

// The values of the codes are integers, so codes change only at multiples of a half: between two of them every number
// has one nearest code. A number's half is found by adding 1.5 * 2^22, whose neighbours are halves, and rounding down.
constexpr u32 HALVES = 512;
constexpr float MAGIC_HALVES = 6291456.0f;

struct Nearest {
    float value[HALVES];
    u8 code[HALVES];

    // The place of v. NaN counts as the largest number.
    static METHOD u32 half(float v) {
        return (u32)__float_as_int(__fadd_rd(clamp_number(v), MAGIC_HALVES)) % HALVES;
    }

    static METHOD float clamp_number(float v) {
        return FLOAT_MAX(FLOAT_MIN(v, IQ4_VALUES[15]), IQ4_VALUES[0] - 1.0f);
    }

    METHOD float value_of(float v) const { return value[half(v)]; }
    METHOD u32 code_of(float v) const { return code[half(v)]; }

    // Every thread fills its part.
    METHOD void fill() {
        for (u32 place = threadIdx.x; place < HALVES; place += THREADS) {
            float v = 0.5f * (float)((int)(place ^ HALVES / 2) - (int)HALVES / 2);
            u32 nearest = 0;
            // Of two that are equally near, the upper one.
            while (nearest < 15 && !(v - IQ4_VALUES[nearest] < IQ4_VALUES[nearest + 1] - v)) ++nearest;
            value[place] = IQ4_VALUES[nearest];
            code[place] = (u8)nearest;
        }
    }
};

// The scale of 32 elements, 0 when they count as zero: the one that puts the largest magnitude on code 0, or on what
// -7..7 steps make of it, whichever fits best by weighted least squares.
template <class Weight> DEVICE float search_scale(const Nearest &nearest, const float (&x)[32], Weight weight) {
    float max, amax;
    signed_max(x, max, amax);
    if (amax < GROUP_MAX_EPS) return 0.0f;
    float d = 0.0f, best = 0.0f;
    ROLLED for (int i = 0; i < 16; ++i) {
        float inverse = i == 0 ? 1.0f / (-max / IQ4_VALUES[0]) : ((float)(i - 8) + IQ4_VALUES[0]) / max;
        float sumqx = 0.0f, sumq2 = 0.0f;
        UNROLL for (int j = 0; j < 32; ++j) {
            float q = nearest.value_of(inverse * x[j]), wq = weight(j) * q;
            sumqx = sumqx + wq * x[j];
            sumq2 = sumq2 + wq * q;
        }
        if (i == 0) {
            d = sumq2 > 0.0f ? sumqx / sumq2 : 0.0f;
            best = d * sumqx;
        } else if (sumq2 > 0.0f && sumqx * sumqx > best * sumq2) {
            d = sumqx / sumq2;
            best = d * sumqx;
        }
    }
    return d;
}

DEVICE float inverse_or_zero(float v) { return v != 0.0f ? 1.0f / v : 0.0f; }

// The sixteen bytes of codes, at an even address.
DEVICE void put_codes(const Nearest &nearest, const float *line, float inverse, u8 *y) {
    UNROLL for (int word = 0; word < 4; ++word) {
        u32 bits = 0;
        UNROLL for (int k = 0; k < 4; ++k) {
            int j = 4 * word + k;
            u32 low = nearest.code_of(inverse * line[j]), high = nearest.code_of(inverse * line[j + 16]);
            bits |= (low | high << 4) << 8 * k;
        }
        put_word(y + 4 * word, bits);
    }
}

template <bool WEIGHTED>
DEVICE void iq4_nl(const float *values, const float *importance, u8 *blocks, u64 rows, u64 row_len) {
    constexpr u32 BYTES = 18;
    SHARED Nearest nearest;
    SHARED Lines<32> elements;
    SHARED Lines<WEIGHTED ? 32 : 0> weights;
    alignas(16) SHARED u8 out[THREADS * BYTES];
    u64 count = rows * divide(row_len, 32);
    PHASE { nearest.fill(); }
    for (u64 first = (u64)blockIdx.x * THREADS; first < count; first += (u64)gridDim.x * THREADS) {
        u32 n = count - first < THREADS ? (u32)(count - first) : THREADS;
        PHASE {
            load_lines(elements, values + first * 32, n * 32);
            if constexpr (WEIGHTED) load_importance(weights, importance, first * 32, row_len, n * 32);
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            float x[32], d;
            UNROLL for (int i = 0; i < 32; ++i) x[i] = elements.v[threadIdx.x][i];
            if constexpr (WEIGHTED) {
                float *w = weights.v[threadIdx.x];
                float sigma2 = sum_of_squares(elements, threadIdx.x, 1) * (2.0f / 32.0f);
                UNROLL for (int i = 0; i < 32; ++i) w[i] = w[i] * sqrtf(sigma2 + x[i] * x[i]);
                d = search_scale(nearest, x, [w](int i) { return w[i]; });
            } else {
                d = search_scale(nearest, x, [&x](int i) { return x[i] * x[i]; });
            }
            u8 *y = out + threadIdx.x * BYTES;
            put_f16(d, y);
            put_codes(nearest, elements.v[threadIdx.x], inverse_or_zero(d), y + 2);
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}

KERNEL BOUNDS(THREADS) quantize_iq4_nl(const float *values, const float *importance, const float *, u8 *blocks,
                                       u64 rows, u64 row_len) {
    iq4_nl<false>(values, importance, blocks, rows, row_len);
}

KERNEL BOUNDS(THREADS) quantize_iq4_nl_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                               u64 rows, u64 row_len) {
    iq4_nl<true>(values, importance, blocks, rows, row_len);
}

template <bool WEIGHTED>
DEVICE void iq4_xs(const float *values, const float *importance, u8 *blocks, u64 rows, u64 row_len) {
    constexpr u32 BYTES = 136, SUPER = THREADS / 8;
    SHARED Nearest nearest;
    SHARED Lines<32> elements;
    SHARED Lines<WEIGHTED ? 32 : 0> weights;
    SHARED float sigma2[SUPER], scales[THREADS], inverse[THREADS];
    alignas(16) SHARED u8 out[SUPER * BYTES];
    u64 count = rows * divide(row_len, QK_K);
    PHASE { nearest.fill(); }
    for (u64 first = (u64)blockIdx.x * SUPER; first < count; first += (u64)gridDim.x * SUPER) {
        u32 n = count - first < SUPER ? (u32)(count - first) : SUPER;
        PHASE {
            load_lines(elements, values + first * QK_K, n * QK_K);
            if constexpr (WEIGHTED) load_importance(weights, importance, first * QK_K, row_len, n * QK_K);
        }
        if constexpr (WEIGHTED) {
            PHASE {
                if (threadIdx.x < n) {
                    sigma2[threadIdx.x] = sum_of_squares(elements, 8 * threadIdx.x, 8) * (2.0f / 256.0f);
                }
            }
        }
        PHASE {
            if (threadIdx.x >= 8 * n) continue;
            float x[32];
            UNROLL for (int i = 0; i < 32; ++i) x[i] = elements.v[threadIdx.x][i];
            if constexpr (WEIGHTED) {
                float *w = weights.v[threadIdx.x];
                float square = sigma2[threadIdx.x / 8];
                UNROLL for (int i = 0; i < 32; ++i) w[i] = w[i] * sqrtf(square + x[i] * x[i]);
                scales[threadIdx.x] = search_scale(nearest, x, [w](int i) { return w[i]; });
            } else {
                scales[threadIdx.x] = search_scale(nearest, x, [&x](int i) { return x[i] * x[i]; });
            }
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            const float *found = scales + 8 * threadIdx.x;
            u8 *y = out + threadIdx.x * BYTES;
            float max = 0.0f;
            UNROLL for (int i = 0; i < 8; ++i) max = fabsf(found[i]) > fabsf(max) ? found[i] : max;
            float d = -max / 32.0f, id = inverse_or_zero(d);
            put_f16(d, y);
            u32 high = 0, low = 0;
            UNROLL for (int i = 0; i < 8; ++i) {
                int l = clamp_int(nearest_int(id * found[i]), -32, 31);
                // By the unit as it is, not as a reader will see it.
                inverse[8 * threadIdx.x + i] = inverse_or_zero(d * (float)l);
                high |= (u32)(l + 32) >> 4 << 2 * i;
                low |= ((u32)(l + 32) & 15) << 4 * i;
            }
            *(u16 *)(y + 2) = (u16)high;
            *(u32 *)(y + 4) = low;
        }
        PHASE {
            if (threadIdx.x >= 8 * n) continue;
            u8 *y = out + threadIdx.x / 8 * BYTES + 8 + threadIdx.x % 8 * 16;
            put_codes(nearest, elements.v[threadIdx.x], inverse[threadIdx.x], y);
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}

KERNEL BOUNDS(THREADS) quantize_iq4_xs(const float *values, const float *importance, const float *, u8 *blocks,
                                       u64 rows, u64 row_len) {
    iq4_xs<false>(values, importance, blocks, rows, row_len);
}

KERNEL BOUNDS(THREADS) quantize_iq4_xs_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                               u64 rows, u64 row_len) {
    iq4_xs<true>(values, importance, blocks, rows, row_len);
}
