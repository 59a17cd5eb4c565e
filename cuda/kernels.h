// Every kernel: name, parameters, what it does to how many items.
//
// A kernel covers any number of items with any grid: CUDA block b takes the tiles b, b + gridDim.x, and so on.
// blockDim.x is the kernel's own (THREADS_* below); the table src/device/cuda/kernels.rs repeats it for the host.
// Parameters are pointers into device memory, counts, and floats. Arrays are row-major and begin at addresses
// that are multiples of 16; `values` are f32 rows that one kernel leaves for the next.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Threads of a CUDA block: kernels over elements and rows, merges, quantizers.
#define THREADS_ELEMENTS 256
#define THREADS_ROWS 128
#define THREADS_MERGE 256
#define THREADS_BLOCKS 128

// Elements that a CUDA block of an element kernel takes at a time.
#define TILE_ELEMENTS 1024
// Rows that a CUDA block of a row kernel takes at a time: one warp sums them, a lane each, the others load.
#define TILE_ROWS 32
// Rows and columns of a merge's tile.
#define TILE_MERGE 64
// Elements of a run of `run_squares`.
#define RUN 4096

// What values are rounded to: the numbers of GgmlType.
#define ROUND_NONE 0
#define ROUND_F16 1
#define ROUND_BF16 30

#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#endif

// --- decode.cu: what a file holds becomes values (src/source/element.rs, src/source/packed/) -------------------

// Elements; `count` of them.
KERNEL decode_bf16(const u16 *source, float *values, u64 count);
KERNEL decode_f16(const u16 *source, float *values, u64 count);
KERNEL decode_f32(const float *source, float *values, u64 count);
KERNEL decode_i8(const u8 *source, float *values, u64 count);
KERNEL decode_e4m3(const u8 *source, float *values, u64 count);
KERNEL decode_e5m2(const u8 *source, float *values, u64 count);

// Four-bit codes of a flattened matrix, the even element in the high nibble (bitsandbytes): elements
// first .. first + count, whose codes begin at byte first / 2 and whose scales at block first / block, both of
// which lie at the start of the arrays. `table` holds the 16 values of the codes, `round` is a ROUND_*.
KERNEL decode_four_bit(const u8 *codes, const float *table, const float *absmax, float *values, u64 first, u64 count,
                       u64 block, u32 round);

// values[r][c] = round(values[r][c] * scale * factor), scale = scales[(first_row + r) / block_rows -
// first_row / block_rows][c / block_cols], rows of scales being `scale_cols` long. Elements: rows * cols.
KERNEL scale_blocks(float *values, const float *scales, u64 first_row, u64 rows, u64 cols, u64 block_rows,
                    u64 block_cols, u64 scale_cols, float factor, u32 round);

// --- merge.cu: adapters (src/adapter/lowrank.rs, dora.rs) ------------------------------------------------------

// values[i][j] += scale * (sum over k in order of b[i][k] * a[k][j]); b is [rows, rank], a [rank, cols],
// and rank is not 0.
// Tiles: ceil(rows / TILE_MERGE) * ceil(cols / TILE_MERGE); where `squares` is not null, squares[tile] is the sum
// of the squares of what the tile was given.
KERNEL merge(float *values, const float *b, const float *a, double *squares, u64 rows, u64 cols, u64 rank, float scale);

// squares[run] = sum of the squares of `RUN` values. Runs: ceil(count / RUN).
KERNEL run_squares(const float *values, double *squares, u64 count);

// The same of the differences values[i] - others[i].
KERNEL run_distance(const float *values, const float *others, double *squares, u64 count);

// *first = the smallest index of a value that is infinite or not a number, if it is below *first (start with ~0).
// Elements.
KERNEL find_not_finite(const float *values, u64 *first, u64 count);

// DoRA along rows: ratios[r] = magnitudes[r] / ‖row r‖. Rows.
KERNEL row_ratios(const float *values, const float *magnitudes, float *ratios, u64 rows, u64 cols);

// values[r][c] *= ratios[r]. Elements: rows * cols.
KERNEL scale_rows(float *values, const float *ratios, u64 rows, u64 cols);

// DoRA along columns: sums[c] += squares of column c, row after row. Elements: cols.
KERNEL column_squares(const float *values, double *sums, u64 rows, u64 cols);

// ratios[c] = magnitudes[c] / sqrt(sums[c]). Elements: cols.
KERNEL column_ratios(const float *magnitudes, const double *sums, float *ratios, u64 cols);

// values[r][c] *= ratios[c]. Elements: rows * cols.
KERNEL scale_columns(float *values, const float *ratios, u64 rows, u64 cols);

// --- encode.cu: values become 16-bit elements (src/quant/plain.rs), and the statistics of whole rows ------------

// Elements.
KERNEL encode_f16(const float *values, u16 *out, u64 count);
KERNEL encode_bf16(const float *values, u16 *out, u64 count);

// sigma2[r] = mean square of row r, summed in f32 in the order of the elements. Rows.
KERNEL row_sigma2(const float *values, float *sigma2, u64 rows, u64 row_len);

// --- legacy.cu, k_affine.cu, k_symmetric.cu, iq4.cu, fp4.cu: values become blocks (src/quant/) -------------------

// Rows of `row_len` values, a whole number of blocks each, become blocks of the type, row after row. `importance`
// holds `row_len` weights and is read by the kernels whose names end in _imatrix; of these the ones of legacy.cu
// read the `sigma2` of every row. What a kernel does not read may be null. Items: blocks of the type.
#define QUANTIZER(name)                                                                                               \
    KERNEL name(const float *values, const float *importance, const float *sigma2, u8 *blocks, u64 rows, u64 row_len)

QUANTIZER(quantize_q8_0);
QUANTIZER(quantize_q4_0);
QUANTIZER(quantize_q4_0_imatrix);
QUANTIZER(quantize_q4_1);
QUANTIZER(quantize_q4_1_imatrix);
QUANTIZER(quantize_q5_0);
QUANTIZER(quantize_q5_0_imatrix);
QUANTIZER(quantize_q5_1);
QUANTIZER(quantize_q5_1_imatrix);
QUANTIZER(quantize_q2_k);
QUANTIZER(quantize_q2_k_imatrix);
QUANTIZER(quantize_q4_k);
QUANTIZER(quantize_q4_k_imatrix);
QUANTIZER(quantize_q5_k);
QUANTIZER(quantize_q5_k_imatrix);
QUANTIZER(quantize_q3_k);
QUANTIZER(quantize_q3_k_imatrix);
QUANTIZER(quantize_q6_k);
QUANTIZER(quantize_q6_k_imatrix);
QUANTIZER(quantize_iq4_nl);
QUANTIZER(quantize_iq4_nl_imatrix);
QUANTIZER(quantize_iq4_xs);
QUANTIZER(quantize_iq4_xs_imatrix);
QUANTIZER(quantize_mxfp4);

// All of them.
#define TO_GGUF_KERNELS(X)                                                                                            \
    X(decode_bf16) X(decode_f16) X(decode_f32) X(decode_i8) X(decode_e4m3) X(decode_e5m2) X(decode_four_bit)          \
    X(scale_blocks) X(merge) X(run_squares) X(run_distance) X(find_not_finite) X(row_ratios) X(scale_rows)           \
    X(column_squares) X(column_ratios) X(scale_columns) X(encode_f16) X(encode_bf16) X(row_sigma2) X(quantize_q8_0)   \
    X(quantize_q4_0) X(quantize_q4_0_imatrix) X(quantize_q4_1) X(quantize_q4_1_imatrix) X(quantize_q5_0)              \
    X(quantize_q5_0_imatrix) X(quantize_q5_1) X(quantize_q5_1_imatrix) X(quantize_q2_k) X(quantize_q2_k_imatrix)      \
    X(quantize_q4_k) X(quantize_q4_k_imatrix) X(quantize_q5_k) X(quantize_q5_k_imatrix) X(quantize_q3_k)              \
    X(quantize_q3_k_imatrix) X(quantize_q6_k) X(quantize_q6_k_imatrix) X(quantize_iq4_nl) X(quantize_iq4_nl_imatrix)  \
    X(quantize_iq4_xs) X(quantize_iq4_xs_imatrix) X(quantize_mxfp4)
