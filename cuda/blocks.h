// How rows come into shared memory and blocks leave it.
//
// A CUDA block of quantizer threads takes as many sub-blocks as it has threads. Their elements lie in shared memory
// one sub-block per line, lines of odd length, so that threads that walk along their lines meet no bank conflicts.
#pragma once

#include "device.h"

#define THREADS THREADS_BLOCKS
// Elements of a super-block.
#define QK_K 256

// One line of `SUB` elements per thread.
template <int SUB> struct Lines {
    float v[THREADS][SUB + 1];
};

// Copies `count` elements, a whole number of fours, into lines.
template <int SUB> DEVICE void load_lines(Lines<SUB> &lines, const float *values, u32 count) {
    for (u32 e = 4 * threadIdx.x; e < count; e += 4 * THREADS) {
        Four<float> four = *(const Four<float> *)(values + e);
        UNROLL for (int i = 0; i < 4; ++i) lines.v[e / SUB][e % SUB + i] = four.v[i];
    }
}

// The same from the weights of columns: `first` is the number of the first element among all rows.
template <int SUB>
DEVICE void load_importance(Lines<SUB> &lines, const float *importance, u64 first, u64 row_len, u32 count) {
    for (u32 e = 4 * threadIdx.x; e < count; e += 4 * THREADS) {
        u64 at = first + e;
        Four<float> four = *(const Four<float> *)(importance + (at - divide(at, row_len) * row_len));
        UNROLL for (int i = 0; i < 4; ++i) lines.v[e / SUB][e % SUB + i] = four.v[i];
    }
}

// The codes of every thread's sub-block of `SUB`, a byte each; the lines are of odd length here too, in words.
template <int SUB> struct Codes {
    alignas(4) u8 v[THREADS][SUB + 4];

    // Writes this thread's codes.
    template <class Code> METHOD void put(Code code) {
        UNROLL for (int i = 0; i < SUB; i += 4) {
            u32 word = 0;
            UNROLL for (int k = 0; k < 4; ++k) word |= (u32)code(i + k) << 8 * k;
            *(u32 *)&v[threadIdx.x][i] = word;
        }
    }

    // The four codes from element `at` of sub-block `sub`.
    METHOD u32 word(u32 sub, u32 at) const { return *(const u32 *)&v[sub][at]; }
};

// Two bits of each code of super-block `block`: of each 128 elements, four quarters side by side. Word 0..16.
DEVICE u32 crumbs(const Codes<16> &codes, u32 block, u32 word) {
    u32 half = word / 8, at = word % 8 * 4, bits = 0;
    UNROLL for (int k = 0; k < 4; ++k) {
        bits |= (codes.word(16 * block + 8 * half + 2 * k + at / 16, at % 16) & 0x03030303) << 2 * k;
    }
    return bits;
}

// A word at an even address.
DEVICE void put_word(u8 *at, u32 word) {
    ((u16 *)at)[0] = (u16)word;
    ((u16 *)at)[1] = (u16)(word >> 16);
}

// Copies `count` bytes to where blocks go, an address that is a multiple of 4.
DEVICE void store_bytes(u8 *to, const u8 *from, u32 count) {
    for (u32 word = threadIdx.x; word < count / 4; word += THREADS) ((u32 *)to)[word] = ((const u32 *)from)[word];
    u32 rest = count / 4 * 4 + threadIdx.x;
    if (rest < count) to[rest] = from[rest];
}

// A scale as a reader will see it, and its two bytes.
DEVICE float put_f16(float v, u8 *at) {
    u32 bits = f16_bits(v);
    *(u16 *)at = (u16)bits;
    return f16_value(bits);
}

// The sum of squares of the elements of `n` lines in order.
template <int SUB> DEVICE float sum_of_squares(const Lines<SUB> &lines, u32 first, u32 n) {
    float sum = 0.0f;
    ROLLED for (u32 line = 0; line < n; ++line) {
        UNROLL for (int i = 0; i < SUB; ++i) {
            float v = lines.v[first + line][i];
            sum = sum + v * v;
        }
    }
    return sum;
}
