// Q3_K and Q6_K: src/quant/k_symmetric.rs. A thread has a sub-block of 16; once per super-block, a thread rounds the
// scales.
#include "blocks.h"
#include "search.h"

constexpr u32 SUPER = THREADS / 16;

// What the threads of a super-block tell each other of their sub-blocks.
struct Scales {
    float scale[THREADS], sum_w[THREADS];
    // The scale as a reader will see it.
    float unit[THREADS];
    // Whether a super-block is all zero.
    bool nothing[SUPER];
};

// The codes from what a reader will see; a scale of zero leaves those of the search.
template <int NMAX> DEVICE void recode(const Scales &found, Codes<16> &codes, const float *line) {
    float d = found.unit[threadIdx.x];
    if (d != 0.0f) {
        codes.put([=](int i) { return clamp_int(nearest_int(line[i] / d), -NMAX, NMAX - 1) + NMAX; });
    }
}

template <bool WEIGHTED>
DEVICE void q6_k(const float *values, const float *importance, u8 *blocks, u64 rows, u64 row_len) {
    constexpr u32 BYTES = 210;
    SHARED Lines<16> elements;
    SHARED Lines<WEIGHTED ? 16 : 0> weights;
    SHARED Scales found;
    SHARED Codes<16> codes;
    alignas(16) SHARED u8 out[SUPER * BYTES];
    u64 count = rows * divide(row_len, QK_K);
    for (u64 first = (u64)blockIdx.x * SUPER; first < count; first += (u64)gridDim.x * SUPER) {
        u32 n = count - first < SUPER ? (u32)(count - first) : SUPER;
        PHASE {
            load_lines(elements, values + first * QK_K, n * QK_K);
            if constexpr (WEIGHTED) load_importance(weights, importance, first * QK_K, row_len, n * QK_K);
        }
        PHASE {
            if (threadIdx.x >= 16 * n) continue;
            float x[16];
            UNROLL for (int i = 0; i < 16; ++i) x[i] = elements.v[threadIdx.x][i];
            Symmetric s;
            if constexpr (WEIGHTED) {
                const float *w = weights.v[threadIdx.x];
                s = make_qx_quants<32, false>(x, [w](int i) { return w[i]; });
            } else {
                s = make_qx_quants<32, false>(x, [&x](int i) { return x[i] * x[i]; });
            }
            found.scale[threadIdx.x] = s.scale;
            codes.put([&](int i) { return s.flat ? 0 : symmetric_code<32>(x[i], s.iscale) + 32; });
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            float scales[16], max, amax;
            UNROLL for (int i = 0; i < 16; ++i) scales[i] = found.scale[16 * threadIdx.x + i];
            signed_max(scales, max, amax);
            found.nothing[threadIdx.x] = amax < GROUP_MAX_EPS;
            float iscale = -128.0f / max, d = put_f16(1.0f / iscale, out + threadIdx.x * BYTES + 208);
            UNROLL for (int i = 0; i < 16; ++i) {
                int scale = nearest_int(iscale * scales[i]);
                scale = (signed char)(scale < 127 ? scale : 127);
                out[threadIdx.x * BYTES + 192 + i] = (u8)scale;
                found.unit[16 * threadIdx.x + i] = d * (float)scale;
            }
        }
        PHASE {
            if (threadIdx.x < 16 * n) recode<32>(found, codes, elements.v[threadIdx.x]);
        }
        PHASE {
            // Of each 128 elements, 16 words of four low bits and 8 of two high bits.
            for (u32 task = threadIdx.x; task < 48 * n; task += THREADS) {
                u32 block = task / 48, half = task % 48 / 24, word = task % 24, at = word % 8 * 4;
                u8 *y = out + block * BYTES;
                // Word `at` of the quarters k = 0..4 of this half.
                u32 q[4];
                UNROLL for (int k = 0; k < 4; ++k) {
                    q[k] = codes.word(16 * block + 8 * half + 2 * k + at / 16, at % 16);
                }
                if (word < 16) {
                    u32 low = word < 8 ? q[0] : q[1], high = word < 8 ? q[2] : q[3];
                    put_word(y + 64 * half + 4 * word, (low & 0x0f0f0f0f) | (high & 0x0f0f0f0f) << 4);
                } else {
                    u32 bits = 0;
                    UNROLL for (int k = 0; k < 4; ++k) bits |= (q[k] >> 4 & 0x03030303) << 2 * k;
                    put_word(y + 128 + 32 * half + at, bits);
                }
            }
        }
        PHASE {
            for (u32 at = threadIdx.x; at < n * BYTES; at += THREADS) {
                if (found.nothing[at / BYTES]) out[at] = 0;
            }
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}

KERNEL BOUNDS(THREADS) quantize_q6_k(const float *values, const float *importance, const float *, u8 *blocks, u64 rows,
                                     u64 row_len) {
    q6_k<false>(values, importance, blocks, rows, row_len);
}

KERNEL BOUNDS(THREADS) quantize_q6_k_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                             u64 rows, u64 row_len) {
    q6_k<true>(values, importance, blocks, rows, row_len);
}

// Rounds scales so that the largest is -32, plus 32; returns the unit. Zeros stay zero bits.
DEVICE float q3_scales(const float (&scales)[16], u8 (&ls)[16]) {
    float max, amax;
    signed_max(scales, max, amax);
    float iscale = -32.0f / max;
    UNROLL for (int i = 0; i < 16; ++i) {
        // Through a signed byte, as there.
        int code = clamp_int((signed char)nearest_int(iscale * scales[i]), -32, 31);
        ls[i] = max == 0.0f ? 0 : (u8)(code + 32);
    }
    return max == 0.0f ? 0.0f : 1.0f / iscale;
}

template <bool WEIGHTED>
DEVICE void q3_k(const float *values, const float *importance, u8 *blocks, u64 rows, u64 row_len) {
    constexpr u32 BYTES = 110;
    SHARED Lines<16> elements;
    SHARED Lines<WEIGHTED ? 16 : 0> weights;
    SHARED Scales found;
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
                if (threadIdx.x < n) {
                    sigma2[threadIdx.x] = 2.0f * sum_of_squares(elements, 16 * threadIdx.x, 16) / 256.0f;
                }
            }
        }
        PHASE {
            if (threadIdx.x >= 16 * n) continue;
            float x[16];
            UNROLL for (int i = 0; i < 16; ++i) x[i] = elements.v[threadIdx.x][i];
            if constexpr (WEIGHTED) {
                float *w = weights.v[threadIdx.x];
                float square = sigma2[threadIdx.x / 16], sum = 0.0f;
                UNROLL for (int i = 0; i < 16; ++i) {
                    w[i] = w[i] * sqrtf(square + x[i] * x[i]);
                    sum = sum + w[i];
                }
                found.sum_w[threadIdx.x] = sum;
                Symmetric s = make_qx_quants<4, false>(x, [w](int i) { return w[i]; });
                found.scale[threadIdx.x] = s.scale;
                codes.put([&](int i) { return s.flat ? 0 : symmetric_code<4>(x[i], s.iscale) + 4; });
            } else {
                int found_codes[16];
                found.scale[threadIdx.x] = make_q3_quants<4>(x, found_codes);
                codes.put([&](int i) { return found_codes[i]; });
            }
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            float scales[16], d;
            u8 ls[16];
            UNROLL for (int i = 0; i < 16; ++i) scales[i] = found.scale[16 * threadIdx.x + i];
            if constexpr (WEIGHTED) {
                const float *sums = found.sum_w + 16 * threadIdx.x;
                Symmetric s = make_qx_quants<32, true>(scales, [sums](int i) { return sums[i]; });
                UNROLL for (int i = 0; i < 16; ++i) {
                    ls[i] = s.flat ? 0 : (u8)(symmetric_code<32>(scales[i], s.iscale) + 32);
                }
                d = s.scale;
            } else {
                d = q3_scales(scales, ls);
            }
            u8 *y = out + threadIdx.x * BYTES;
            d = put_f16(d, y + 108);
            // Low nibbles, then the two high bits of scale j in byte 8 + j % 4.
            UNROLL for (int j = 0; j < 8; ++j) y[96 + j] = (u8)((ls[j] & 15) | ls[j + 8] << 4);
            UNROLL for (int j = 0; j < 4; ++j) {
                y[104 + j] = (u8)(ls[j] >> 4 | ls[j + 4] >> 4 << 2 | ls[j + 8] >> 4 << 4 | ls[j + 12] >> 4 << 6);
            }
            // The scales of a block of zeros are zero bits, which a reader takes for -32.
            UNROLL for (int i = 0; i < 16; ++i) found.unit[16 * threadIdx.x + i] = d * (float)((int)ls[i] - 32);
        }
        PHASE {
            if (threadIdx.x < 16 * n) recode<4>(found, codes, elements.v[threadIdx.x]);
        }
        PHASE {
            // Eight words of third bits, sixteen of two low bits.
            for (u32 task = threadIdx.x; task < 24 * n; task += THREADS) {
                u32 block = task / 24, word = task % 24;
                u8 *y = out + block * BYTES + 4 * word;
                if (word >= 8) {
                    put_word(y, crumbs(codes, block, word - 8));
                    continue;
                }
                u32 at = word * 4, bits = 0;
                UNROLL for (int k = 0; k < 8; ++k) {
                    bits |= (codes.word(16 * block + 2 * k + at / 16, at % 16) >> 2 & 0x01010101) << k;
                }
                put_word(y, bits);
            }
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}

KERNEL BOUNDS(THREADS) quantize_q3_k(const float *values, const float *importance, const float *, u8 *blocks, u64 rows,
                                     u64 row_len) {
    q3_k<false>(values, importance, blocks, rows, row_len);
}

KERNEL BOUNDS(THREADS) quantize_q3_k_imatrix(const float *values, const float *importance, const float *, u8 *blocks,
                                             u64 rows, u64 row_len) {
    q3_k<true>(values, importance, blocks, rows, row_len);
}
