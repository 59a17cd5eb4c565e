// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: src/quant/legacy.rs. A thread has a block of 32.
#include "blocks.h"
#include "search.h"

// Bytes before the nibbles of a block: scale, minimum, fifth bits.
template <int NMAX, bool MIN> struct Nibbles {
    static constexpr bool FIFTH = NMAX == 16 || NMAX == 31;
    static constexpr u32 HEAD = MIN ? 4 : 2, BYTES = HEAD + (FIFTH ? 4 : 0) + 16;
};

// Writes what comes after scale and minimum.
template <int NMAX, bool MIN> DEVICE void put_codes(const int (&codes)[32], u8 *y) {
    typedef Nibbles<NMAX, MIN> Form;
    u16 *out = (u16 *)(y + Form::HEAD);
    if (Form::FIFTH) {
        u32 bits = 0;
        UNROLL for (int j = 0; j < 32; ++j) bits |= (u32)(codes[j] >> 4 & 1) << j;
        *out++ = (u16)bits;
        *out++ = (u16)(bits >> 16);
    }
    UNROLL for (int j = 0; j < 16; j += 2) {
        u32 low = (codes[j] & 15) | (codes[j + 16] & 15) << 4, high = (codes[j + 1] & 15) | (codes[j + 17] & 15) << 4;
        out[j / 2] = (u16)(low | high << 8);
    }
}

// Q4_0 and Q5_0 from the first element of largest magnitude.
template <int NMAX> DEVICE void symmetric(const float (&x)[32], int (&codes)[32], u8 *y) {
    float max, amax;
    signed_max(x, max, amax);
    float d = max / (float)-NMAX, id = d != 0.0f ? 1.0f / d : 0.0f;
    put_f16(d, y);
    UNROLL for (int j = 0; j < 32; ++j) {
        // Through a signed byte, as there.
        int code = (signed char)truncate_int(x[j] * id + ((float)NMAX + 0.5f));
        codes[j] = code < 2 * NMAX - 1 ? code : 2 * NMAX - 1;
    }
}

// Q4_1 and Q5_1 from the extreme elements.
template <int NMAX> DEVICE void affine(const float (&x)[32], int (&codes)[32], u8 *y) {
    float min = 3.4028234663852886e38f, max = -3.4028234663852886e38f;
    UNROLL for (int j = 0; j < 32; ++j) {
        if (x[j] < min) min = x[j];
        if (x[j] > max) max = x[j];
    }
    float d = (max - min) / (float)NMAX, id = d != 0.0f ? 1.0f / d : 0.0f;
    put_f16(d, y);
    put_f16(min, y + 2);
    UNROLL for (int j = 0; j < 32; ++j) {
        int code = truncate_int((x[j] - min) * id + 0.5f);
        // Q4_1 goes through a signed byte and is limited; Q5_1 is neither.
        if (NMAX == 15) code = (signed char)code < 15 ? (signed char)code : 15;
        codes[j] = code & 0xff;
    }
}

template <int NMAX, bool MIN, bool WEIGHTED>
DEVICE void quantize(const float *values, const float *importance, const float *sigma2, u8 *blocks, u64 rows,
                     u64 row_len) {
    typedef Nibbles<NMAX, MIN> Form;
    SHARED Lines<32> elements;
    SHARED Lines<WEIGHTED ? 32 : 0> weights;
    alignas(16) SHARED u8 out[THREADS * Form::BYTES];
    u64 per_row = divide(row_len, 32), count = rows * per_row;
    for (u64 first = (u64)blockIdx.x * THREADS; first < count; first += (u64)gridDim.x * THREADS) {
        u32 n = count - first < THREADS ? (u32)(count - first) : THREADS;
        PHASE {
            load_lines(elements, values + first * 32, n * 32);
            if constexpr (WEIGHTED) load_importance(weights, importance, first * 32, row_len, n * 32);
        }
        PHASE {
            if (threadIdx.x >= n) continue;
            float x[32];
            UNROLL for (int j = 0; j < 32; ++j) x[j] = elements.v[threadIdx.x][j];
            int codes[32];
            u8 *y = out + threadIdx.x * Form::BYTES;
            if constexpr (!WEIGHTED && MIN) affine<NMAX>(x, codes, y);
            if constexpr (!WEIGHTED && !MIN) symmetric<NMAX>(x, codes, y);
            if constexpr (WEIGHTED) {
                float square = sigma2[divide(first + threadIdx.x, per_row)];
                float *w = weights.v[threadIdx.x];
                UNROLL for (int j = 0; j < 32; ++j) w[j] = w[j] * sqrtf(square + x[j] * x[j]);
                auto weight = [w](int j) { return w[j]; };
                if constexpr (MIN) {
                    Affine found = make_qkx_quants<NMAX, false>(x, elements.v[threadIdx.x], weight, WEIGHTED_SEARCH);
                    put_f16(found.scale, y);
                    put_f16(-found.minus_min, y + 2);
                    UNROLL for (int j = 0; j < 32; ++j) {
                        codes[j] = found.flat ? 0 : affine_code<NMAX>(x[j], found.iscale, found.low);
                    }
                } else {
                    Symmetric found = make_qx_quants<NMAX, false>(x, weight);
                    put_f16(found.scale, y);
                    UNROLL for (int j = 0; j < 32; ++j) {
                        codes[j] = found.flat ? 0 : symmetric_code<NMAX>(x[j], found.iscale) + NMAX;
                    }
                }
            }
            put_codes<NMAX, MIN>(codes, y);
        }
        PHASE { store_bytes(blocks + first * Form::BYTES, out, n * Form::BYTES); }
    }
}

#define NIBBLES(name, nmax, min)                                                                                      \
    KERNEL BOUNDS(THREADS) name(const float *values, const float *importance, const float *sigma2, u8 *blocks,        \
                                u64 rows, u64 row_len) {                                                              \
        quantize<nmax, min, false>(values, importance, sigma2, blocks, rows, row_len);                                \
    }                                                                                                                 \
    KERNEL BOUNDS(THREADS) name##_imatrix(const float *values, const float *importance, const float *sigma2,          \
                                          u8 *blocks, u64 rows, u64 row_len) {                                        \
        quantize<nmax, min, true>(values, importance, sigma2, blocks, rows, row_len);                                 \
    }

NIBBLES(quantize_q4_0, 8, false)
NIBBLES(quantize_q5_0, 16, false)
NIBBLES(quantize_q4_1, 15, true)
NIBBLES(quantize_q5_1, 31, true)

// `roundf`: halves away from zero.
DEVICE float round_half_away(float v) {
    float whole = truncf(v);
    return fabsf(v - whole) >= 0.5f ? whole + copysignf(1.0f, v) : whole;
}

KERNEL BOUNDS(THREADS) quantize_q8_0(const float *values, const float *, const float *, u8 *blocks, u64 rows,
                                     u64 row_len) {
    SHARED Lines<32> elements;
    alignas(16) SHARED u8 out[THREADS * 34];
    u64 count = rows * divide(row_len, 32);
    for (u64 first = (u64)blockIdx.x * THREADS; first < count; first += (u64)gridDim.x * THREADS) {
        u32 n = count - first < THREADS ? (u32)(count - first) : THREADS;
        PHASE { load_lines(elements, values + first * 32, n * 32); }
        PHASE {
            if (threadIdx.x >= n) continue;
            float x[32], amax = 0.0f;
            UNROLL for (int j = 0; j < 32; ++j) {
                x[j] = elements.v[threadIdx.x][j];
                amax = FLOAT_MAX(amax, fabsf(x[j]));
            }
            float d = amax / 127.0f, id = d != 0.0f ? 1.0f / d : 0.0f;
            u16 *y = (u16 *)(out + threadIdx.x * 34);
            y[0] = (u16)f16_bits(d);
            UNROLL for (int j = 0; j < 32; j += 2) {
                int low = truncate_int(round_half_away(x[j] * id)), high = truncate_int(round_half_away(x[j + 1] * id));
                y[1 + j / 2] = (u16)((low & 0xff) | (high & 0xff) << 8);
            }
        }
        PHASE { store_bytes(blocks + first * 34, out, n * 34); }
    }
}
