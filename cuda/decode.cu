// What a file holds becomes f32: src/source/element.rs and src/source/packed/ on the CPU.
#include "device.h"

// Four elements per thread, TILE_ELEMENTS per CUDA block.
template <class Source, class Decode>
DEVICE void decode_elements(const Source *source, float *values, u64 count, Decode decode) {
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < count; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 at = start + 4 * threadIdx.x; at < count && at < start + TILE_ELEMENTS; at += 4 * blockDim.x) {
                if (at + 4 <= count) {
                    Four<Source> in = *(const Four<Source> *)(source + at);
                    *(Four<float> *)(values + at) = {decode(in.v[0]), decode(in.v[1]), decode(in.v[2]), decode(in.v[3])};
                } else {
                    for (u64 i = at; i < count; ++i) values[i] = decode(source[i]);
                }
            }
        }
    }
}

DEVICE float bf16_value(u16 bits) { return __int_as_float((int)((u32)bits << 16)); }

// Bias 7, no infinity.
DEVICE float e4m3_value(u8 code) {
    u32 sign = (u32)(code & 0x80) << 24, magnitude = code & 0x7f;
    if (magnitude == 0x7f) return __int_as_float((int)(sign | 0x7fc00000));
    if (magnitude >= 8) return __int_as_float((int)(sign | (0x3c000000 + (magnitude << 20))));
    float value = __int_as_float((int)(0x3c800000 + (magnitude << 20))) - __int_as_float(0x3c800000);
    return __int_as_float((int)(sign | (u32)__float_as_int(value)));
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_bf16(const u16 *source, float *values, u64 count) {
    decode_elements(source, values, count, [](u16 bits) { return bf16_value(bits); });
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_f16(const u16 *source, float *values, u64 count) {
    decode_elements(source, values, count, [](u16 bits) { return f16_value(bits); });
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_f32(const float *source, float *values, u64 count) {
    // As integers: a NaN keeps its payload.
    decode_elements((const u32 *)source, values, count, [](u32 bits) { return __int_as_float((int)bits); });
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_i8(const u8 *source, float *values, u64 count) {
    decode_elements(source, values, count, [](u8 byte) { return (float)(signed char)byte; });
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_e4m3(const u8 *source, float *values, u64 count) {
    decode_elements(source, values, count, [](u8 code) { return e4m3_value(code); });
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_e5m2(const u8 *source, float *values, u64 count) {
    decode_elements(source, values, count, [](u8 code) { return f16_value((u32)code << 8); });
}

// The product as x86-64 has it: a NaN is the first factor's, or the second's, or has the sign bit and no payload.
DEVICE float product(float a, float b) {
    float p = a * b;
    if (p == p) return p;
    float nan = a != a ? a : b;
    return __int_as_float((int)(nan != nan ? (u32)__float_as_int(nan) | 0x400000 : 0xffc00000));
}

// `round_all` (src/source/element.rs); a NaN keeps what the type has room for, and is made quiet.
DEVICE float rounded(float v, u32 round) {
    u32 bits = (u32)__float_as_int(v);
    if (round == ROUND_BF16) return __int_as_float((int)(bf16_bits(v) << 16));
    if (round == ROUND_F16) return v == v ? f16_value(f16_of_number(bits)) : __int_as_float((int)((bits & 0xffffe000) | 0x400000));
    return v;
}

KERNEL BOUNDS(THREADS_ELEMENTS) decode_four_bit(const u8 *codes, const float *table, const float *absmax, float *values,
                                                u64 first, u64 count, u64 block, u32 round) {
    SHARED float meaning[16];
    PHASE {
        if (threadIdx.x < 16) meaning[threadIdx.x] = table[threadIdx.x];
    }
    u64 odd = first & 1, skipped = first - divide(first, block) * block;
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < count; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 at = start + 4 * threadIdx.x; at < count && at < start + TILE_ELEMENTS; at += 4 * blockDim.x) {
                u64 scale_at = divide(skipped + at, block), used = skipped + at - scale_at * block;
                Four<float> out;
                UNROLL for (int i = 0; i < 4; ++i) {
                    u64 element = odd + at + i;
                    if (at + i < count) {
                        u32 code = codes[element / 2] >> (element & 1 ? 0 : 4) & 15;
                        out.v[i] = rounded(product(meaning[code], absmax[scale_at]), round);
                    }
                    if (++used == block) scale_at += 1, used = 0;
                }
                if (at + 4 <= count) {
                    *(Four<float> *)(values + at) = out;
                } else {
                    UNROLL for (int i = 0; i < 3; ++i) {
                        if (at + i < count) values[at + i] = out.v[i];
                    }
                }
            }
        }
    }
}

KERNEL BOUNDS(THREADS_ELEMENTS) scale_blocks(float *values, const float *scales, u64 first_row, u64 rows, u64 cols,
                                             u64 block_rows, u64 block_cols, u64 scale_cols, float factor, u32 round) {
    u64 count = rows * cols, first_scale = divide(first_row, block_rows);
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < count; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 at = start + 4 * threadIdx.x; at < count && at < start + TILE_ELEMENTS; at += 4 * blockDim.x) {
                u64 row = divide(at, cols), col = at - row * cols;
                UNROLL for (int i = 0; i < 4; ++i) {
                    if (at + i < count) {
                        u64 scale_row = divide(first_row + row, block_rows) - first_scale;
                        float scale = scales[scale_row * scale_cols + divide(col, block_cols)];
                        values[at + i] = rounded(product(product(values[at + i], scale), factor), round);
                    }
                    if (++col == cols) row += 1, col = 0;
                }
            }
        }
    }
}
