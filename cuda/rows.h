// Sums over whole rows in the order of their elements.
#pragma once

#include "device.h"

// Columns that lie in shared memory at a time.
#define ROW_PART 128

// Calls `finish(row, sum)` with the sum of squares of every row, taken one after another in `Sum`. The first warp
// sums a part of 32 rows, a lane each, while the others load the next part.
template <class Sum, class Finish> DEVICE void sum_rows(const float *values, u64 rows, u64 cols, Finish finish) {
    SHARED float part[2][TILE_ROWS][ROW_PART + 1];
    PER_THREAD(Sum, sums, THREADS_ROWS);
    for (u64 first_row = (u64)blockIdx.x * TILE_ROWS; first_row < rows; first_row += (u64)gridDim.x * TILE_ROWS) {
        u32 height = rows - first_row < TILE_ROWS ? (u32)(rows - first_row) : TILE_ROWS;
        EACH_THREAD { sums[SLOT] = 0; }
        for (u64 first = 0; first < cols + ROW_PART; first += ROW_PART) {
            PHASE {
                u32 loaded = (u32)(first / ROW_PART & 1);
                if (threadIdx.x >= TILE_ROWS) {
                    if (first < cols) {
                        _Pragma("unroll 8") for (u32 e = threadIdx.x - TILE_ROWS; e < height * ROW_PART;
                                                 e += THREADS_ROWS - TILE_ROWS) {
                            u32 r = e / ROW_PART, c = e % ROW_PART;
                            if (first + c < cols) part[loaded][r][c] = values[(first_row + r) * cols + first + c];
                        }
                    }
                } else if (first > 0 && threadIdx.x < height) {
                    u32 width = cols - (first - ROW_PART) < ROW_PART ? (u32)(cols - (first - ROW_PART)) : ROW_PART;
                    Sum sum = sums[SLOT];
                    _Pragma("unroll 8") for (u32 c = 0; c < width; ++c) {
                        Sum v = (Sum)part[1 - loaded][threadIdx.x][c];
                        sum = sum + v * v;
                    }
                    sums[SLOT] = sum;
                }
            }
        }
        EACH_THREAD {
            if (threadIdx.x < height) finish(first_row + threadIdx.x, sums[SLOT]);
        }
    }
}
