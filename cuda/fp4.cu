// MXFP4: src/quant/fp4.rs. A thread has a block of 32.
#include "blocks.h"
#include "tables.h"

// `mxfp4_exponent` (src/quant/codebook.rs): the byte of a block by its largest magnitude.
DEVICE u32 exponent_byte(float amax) {
    u32 bits = (u32)__float_as_int(amax);
    if (bits == 0 || bits >= 0x7f800000) return 0;
    // A run is an octave, so its number is at most one above the exponent's.
    u32 octave = bits < 0x00800000 ? 0 : 21 + (bits >> 23), run = octave;
    while (run < MXFP4_RUNS && MXFP4_FIRST[run] <= bits) ++run;
    return MXFP4_BYTE[run > octave ? run - 1 : octave];
}

// `ggml_e8m0_to_fp32_half`: 2^(e - 128).
DEVICE float e8m0_half(u32 e) { return __int_as_float((int)(e < 2 ? 0x00200000u << e : (e - 1) << 23)); }

// The first code whose value times `scale` is nearest to `v`.
RARE u32 nearest_code(float v, float scale) {
    u32 best = 0;
    float least = fabsf(FP4_VALUES[0] * scale - v);
    ROLLED for (u32 i = 1; i < 16; ++i) {
        float error = fabsf(FP4_VALUES[i] * scale - v);
        if (error < least) least = error, best = i;
    }
    return best;
}

// The same by comparing with what lies halfway between two values: exact while the scale, a power of two, and its
// multiples are normal.
DEVICE u32 halfway_code(float v, float scale) {
    float magnitude = fabsf(v);
    u32 code = magnitude > 0.5f * scale;
    code += magnitude > 1.5f * scale;
    code += magnitude > 2.5f * scale;
    code += magnitude > 3.5f * scale;
    code += magnitude > 5.0f * scale;
    code += magnitude > 7.0f * scale;
    code += magnitude > 10.0f * scale;
    return v < 0.0f && code ? code | 8 : code;
}

KERNEL BOUNDS(THREADS) quantize_mxfp4(const float *values, const float *, const float *, u8 *blocks, u64 rows,
                                      u64 row_len) {
    constexpr u32 BYTES = 17;
    SHARED Lines<32> elements;
    alignas(16) SHARED u8 out[THREADS * BYTES];
    u64 count = rows * divide(row_len, 32);
    for (u64 first = (u64)blockIdx.x * THREADS; first < count; first += (u64)gridDim.x * THREADS) {
        u32 n = count - first < THREADS ? (u32)(count - first) : THREADS;
        PHASE { load_lines(elements, values + first * 32, n * 32); }
        PHASE {
            if (threadIdx.x >= n) continue;
            const float *x = elements.v[threadIdx.x];
            u8 *y = out + threadIdx.x * BYTES;
            float amax = 0.0f;
            UNROLL for (int j = 0; j < 32; ++j) amax = FLOAT_MAX(amax, fabsf(x[j]));
            u32 byte = exponent_byte(amax);
            float scale = e8m0_half(byte);
            y[0] = (u8)byte;
            if (amax > 1e-30f && amax < 1e37f) {
                UNROLL for (int j = 0; j < 16; ++j) {
                    y[1 + j] = (u8)(halfway_code(x[j], scale) | halfway_code(x[j + 16], scale) << 4);
                }
            } else {
                ROLLED for (int j = 0; j < 16; ++j) {
                    y[1 + j] = (u8)(nearest_code(x[j], scale) | nearest_code(x[j + 16], scale) << 4);
                }
            }
        }
        PHASE { store_bytes(blocks + first * BYTES, out, n * BYTES); }
    }
}
