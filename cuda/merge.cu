// Adapters: src/adapter/lowrank.rs and dora.rs on the CPU, and what reports and checks measure.
#include "rows.h"

// Products that a phase sums over.
constexpr u32 DEPTH = 16;
constexpr u32 TILE = TILE_MERGE;
// A thread has 4 x 4 elements of a tile of 16 x 16 threads.
constexpr u32 SIDE = 4;

// The sum of one double per thread, always in the same order: sixteen threads take sixteen each, then one takes those.
#define SUM_OF_THREADS(partial, out)                                                                                  \
    PHASE {                                                                                                           \
        if (threadIdx.x < THREADS_MERGE / 16) {                                                                       \
            double sum = 0.0;                                                                                         \
            for (int i = 0; i < 16; ++i) sum += partial[threadIdx.x + THREADS_MERGE / 16 * i];                        \
            partial[threadIdx.x] = sum;                                                                               \
        }                                                                                                             \
    }                                                                                                                 \
    PHASE {                                                                                                           \
        if (threadIdx.x == 0) {                                                                                       \
            double sum = 0.0;                                                                                         \
            for (int i = 0; i < THREADS_MERGE / 16; ++i) sum += partial[i];                                           \
            out = sum;                                                                                                \
        }                                                                                                             \
    }

struct Square {
    float v[SIDE][SIDE];
};

KERNEL BOUNDS(THREADS_MERGE) merge(float *values, const float *b, const float *a, double *squares, u64 rows, u64 cols,
                                   u64 rank, float scale) {
    alignas(16) SHARED float a_part[DEPTH][TILE];
    // Turned, so that a thread's four rows lie side by side; four more, so that turning meets few bank conflicts.
    alignas(16) SHARED float b_part[DEPTH][TILE + 4];
    SHARED double partial[THREADS_MERGE];
    PER_THREAD(Square, sums, THREADS_MERGE);
    u64 across = divide(cols + TILE - 1, TILE), tiles = divide(rows + TILE - 1, TILE) * across;
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        u64 tile_row = divide(tile, across), first_row = tile_row * TILE, first_col = (tile - tile_row * across) * TILE;
        EACH_THREAD { sums[SLOT] = {}; }
        for (u64 first = 0; first < rank; first += DEPTH) {
            u32 depth = rank - first < DEPTH ? (u32)(rank - first) : DEPTH;
            PHASE {
                UNROLL for (u32 i = 0; i < DEPTH * TILE / THREADS_MERGE; ++i) {
                    u32 e = threadIdx.x + i * THREADS_MERGE, k = e / TILE, c = e % TILE;
                    a_part[k][c] = k < depth && first_col + c < cols ? a[(first + k) * cols + first_col + c] : 0.0f;
                    u32 r = e / DEPTH;
                    k = e % DEPTH;
                    b_part[k][r] = k < depth && first_row + r < rows ? b[(first_row + r) * rank + first + k] : 0.0f;
                }
            }
            PHASE {
                u32 r = threadIdx.x / (TILE / SIDE) * SIDE, c = threadIdx.x % (TILE / SIDE) * SIDE;
                Square s = sums[SLOT];
                _Pragma("unroll 4") for (u32 k = 0; k < depth; ++k) {
                    Four<float> x = *(const Four<float> *)&b_part[k][r], y = *(const Four<float> *)&a_part[k][c];
                    UNROLL for (u32 i = 0; i < SIDE; ++i) {
                        UNROLL for (u32 j = 0; j < SIDE; ++j) s.v[i][j] = s.v[i][j] + x.v[i] * y.v[j];
                    }
                }
                sums[SLOT] = s;
            }
        }
        PHASE {
            u32 r = threadIdx.x / (TILE / SIDE) * SIDE, c = threadIdx.x % (TILE / SIDE) * SIDE;
            u64 col = first_col + c;
            Square s = sums[SLOT];
            float sum = 0.0f;
            UNROLL for (u32 i = 0; i < SIDE; ++i) {
                if (first_row + r + i >= rows) continue;
                float *out = values + (first_row + r + i) * cols + col;
                UNROLL for (u32 j = 0; j < SIDE; ++j) {
                    s.v[i][j] = s.v[i][j] * scale;
                    if (col + j < cols) sum = sum + s.v[i][j] * s.v[i][j];
                }
                if ((cols & 3) == 0 && col < cols) {
                    Four<float> four = *(const Four<float> *)out;
                    UNROLL for (u32 j = 0; j < SIDE; ++j) four.v[j] = four.v[j] + s.v[i][j];
                    *(Four<float> *)out = four;
                } else {
                    UNROLL for (u32 j = 0; j < SIDE; ++j) {
                        if (col + j < cols) out[j] = out[j] + s.v[i][j];
                    }
                }
            }
            partial[threadIdx.x] = (double)sum;
        }
        if (squares) {
            SUM_OF_THREADS(partial, squares[tile])
        }
    }
}

// The sums of squares of what `element` answers for the elements of a run each.
template <class Element> DEVICE void sum_runs(double *squares, u64 count, Element element) {
    SHARED double partial[THREADS_MERGE];
    for (u64 run = blockIdx.x; run * RUN < count; run += gridDim.x) {
        PHASE {
            float sum = 0.0f;
            UNROLL for (int i = 0; i < RUN / THREADS_MERGE; ++i) {
                u64 at = run * RUN + i * THREADS_MERGE + threadIdx.x;
                if (at < count) {
                    float v = element(at);
                    sum = sum + v * v;
                }
            }
            partial[threadIdx.x] = (double)sum;
        }
        SUM_OF_THREADS(partial, squares[run])
    }
}

KERNEL BOUNDS(THREADS_MERGE) run_squares(const float *values, double *squares, u64 count) {
    sum_runs(squares, count, [=](u64 at) { return values[at]; });
}

KERNEL BOUNDS(THREADS_MERGE) run_distance(const float *values, const float *others, double *squares, u64 count) {
    sum_runs(squares, count, [=](u64 at) { return values[at] - others[at]; });
}

KERNEL BOUNDS(THREADS_ELEMENTS) find_not_finite(const float *values, u64 *first, u64 count) {
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < count; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 at = start + 4 * threadIdx.x; at < count && at < start + TILE_ELEMENTS; at += 4 * blockDim.x) {
                u32 bad = 0;
                if (at + 4 <= count) {
                    Four<u32> bits = *(const Four<u32> *)(values + at);
                    UNROLL for (int i = 0; i < 4; ++i) bad |= (u32)((bits.v[i] & 0x7f800000) == 0x7f800000) << i;
                } else {
                    for (u32 i = 0; at + i < count; ++i) {
                        bad |= (u32)(((u32)__float_as_int(values[at + i]) & 0x7f800000) == 0x7f800000) << i;
                    }
                }
                if (bad) atomicMin(first, at + (bad & 1 ? 0 : bad & 2 ? 1 : bad & 4 ? 2 : 3));
            }
        }
    }
}

KERNEL BOUNDS(THREADS_ROWS) row_ratios(const float *values, const float *magnitudes, float *ratios, u64 rows, u64 cols) {
    sum_rows<double>(values, rows, cols,
                     [=](u64 row, double sum) { ratios[row] = magnitudes[row] / (float)sqrt(sum); });
}

// Elements in the way of `decode_elements`, each with its row and column.
template <class Change> DEVICE void change_elements(float *values, u64 rows, u64 cols, Change change) {
    u64 count = rows * cols;
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < count; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 at = start + 4 * threadIdx.x; at < count && at < start + TILE_ELEMENTS; at += 4 * blockDim.x) {
                u64 row = divide(at, cols), col = at - row * cols;
                UNROLL for (int i = 0; i < 4; ++i) {
                    if (at + i < count) values[at + i] = change(values[at + i], row, col);
                    if (++col == cols) row += 1, col = 0;
                }
            }
        }
    }
}

KERNEL BOUNDS(THREADS_ELEMENTS) scale_rows(float *values, const float *ratios, u64 rows, u64 cols) {
    change_elements(values, rows, cols, [=](float v, u64 row, u64) { return v * ratios[row]; });
}

KERNEL BOUNDS(THREADS_ELEMENTS) scale_columns(float *values, const float *ratios, u64 rows, u64 cols) {
    change_elements(values, rows, cols, [=](float v, u64, u64 col) { return v * ratios[col]; });
}

KERNEL BOUNDS(THREADS_ROWS) column_squares(const float *values, double *sums, u64 rows, u64 cols) {
    for (u64 start = (u64)blockIdx.x * THREADS_ROWS; start < cols; start += (u64)gridDim.x * THREADS_ROWS) {
        EACH_THREAD {
            u64 col = start + threadIdx.x;
            if (col >= cols) continue;
            double sum = sums[col];
            _Pragma("unroll 8") for (u64 row = 0; row < rows; ++row) {
                double v = (double)values[row * cols + col];
                sum = sum + v * v;
            }
            sums[col] = sum;
        }
    }
}

KERNEL BOUNDS(THREADS_ELEMENTS) column_ratios(const float *magnitudes, const double *sums, float *ratios, u64 cols) {
    for (u64 start = (u64)blockIdx.x * TILE_ELEMENTS; start < cols; start += (u64)gridDim.x * TILE_ELEMENTS) {
        EACH_THREAD {
            for (u64 col = start + threadIdx.x; col < cols && col < start + TILE_ELEMENTS; col += blockDim.x) {
                ratios[col] = magnitudes[col] / (float)sqrt(sums[col]);
            }
        }
    }
}
