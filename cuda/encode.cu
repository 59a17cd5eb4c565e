// f32 becomes 16-bit elements, src/quant/plain.rs on the CPU; and what quantizers need to know of whole rows.
#include "rows.h"

template <class Encode> DEVICE void encode_elements(const float *values, u16 *out, u64 count, Encode encode) {
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < count; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 at = start + 4 * threadIdx.x; at < count && at < start + TILE_ELEMENTS; at += 4 * blockDim.x) {
                if (at + 4 <= count) {
                    Four<float> in = *(const Four<float> *)(values + at);
                    *(Four<u16> *)(out + at) = {(u16)encode(in.v[0]), (u16)encode(in.v[1]), (u16)encode(in.v[2]),
                                                (u16)encode(in.v[3])};
                } else {
                    for (u64 i = at; i < count; ++i) out[i] = (u16)encode(values[i]);
                }
            }
        }
    }
}

KERNEL BOUNDS(THREADS_ELEMENTS) encode_f16(const float *values, u16 *out, u64 count) {
    encode_elements(values, out, count, [](float v) { return f16_bits(v); });
}

KERNEL BOUNDS(THREADS_ELEMENTS) encode_bf16(const float *values, u16 *out, u64 count) {
    encode_elements(values, out, count, [](float v) { return bf16_bits(v); });
}

KERNEL BOUNDS(THREADS_ROWS) row_sigma2(const float *values, float *sigma2, u64 rows, u64 row_len) {
    sum_rows<float>(values, rows, row_len, [=](u64 row, float sum) { sigma2[row] = sum / (float)row_len; });
}
