// What every kernel is written with, and the numbers that must come out as they do on x86-64.
//
// A kernel is a sequence of phases: `PHASE { .. }` runs its body in every thread and ends in a barrier, so that a
// later phase reads from shared memory what an earlier one left there. Nothing else crosses phases but what
// PER_THREAD declares. Written so, the same source compiles as host C++ (host/host_cuda.h), where a phase is a loop
// over the threads of the CUDA block. A body leaves a phase by `continue`, never by `break` or `return`.
#pragma once

#ifdef __CUDACC__
#define PHASE for (int phase_ = 0; phase_ < 1; ++phase_, __syncthreads())
// A phase that needs no barrier after it.
#define EACH_THREAD for (int phase_ = 0; phase_ < 1; ++phase_)
#define SHARED __shared__
// A variable `name[SLOT]` of every thread that lives through phases.
#define PER_THREAD(type, name, threads) type name[1]
#define SLOT 0
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
// For what is rarely taken: code of its own, out of the way.
#define RARE static __device__ __noinline__
#define BOUNDS(threads) __launch_bounds__(threads)
#define FLOAT_MIN fminf
#define FLOAT_MAX fmaxf
#else
#include "host/host_cuda.h"
#endif

#include "kernels.h"

// Four elements that are loaded and stored at once.
template <class T> struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

// Quotient and remainder are several times cheaper in 32 bits.
DEVICE u64 divide(u64 a, u64 b) { return ((a | b) >> 32) == 0 ? (u64)((u32)a / (u32)b) : a / b; }

// 2 to the power 23 and a half of it: added to a float below 2^22, it leaves the nearest integer in the mantissa.
#define MAGIC 12582912.0f

// `nearest_int` (src/quant/search.rs): halves to even, wraps beyond 2^22, infinity gives -2^22. The NaN that x86-64
// computes has an empty payload and so gives 0; a GPU's has a full one.
DEVICE int nearest_int(float v) {
    float t = v + MAGIC;
    return t == t ? (__float_as_int(t) & 0x7fffff) - 0x400000 : 0;
}

// The same as a float, for |v| < 2^21.
DEVICE float nearest(float v) { return (v + MAGIC) - MAGIC; }

// `truncate_int` (src/quant/search.rs): what the x86-64 instruction gives, also out of range.
DEVICE int truncate_int(float v) { return v > -2147483648.0f && v < 2147483648.0f ? (int)v : (int)0x80000000; }

DEVICE int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// Of finite numbers; the sign of a zero that comes out does not matter to any caller.
DEVICE float clamp(float v, float low, float high) { return FLOAT_MIN(FLOAT_MAX(v, low), high); }

// What `half` and F16C make of a finite or infinite number: nearest, ties to even. NaN is the caller's business.
DEVICE u32 f16_of_number(u32 bits) {
    u32 sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) return sign | 0x7c00; // 65536 and more
    if (magnitude >= 0x38800000) {                     // 2^-14: normal
        u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
        return sign | ((rounded - 0x38000000) >> 13); // 65520 and more carry into infinity
    }
    // The unit is 2^-24: adding a half leaves the rounded number of units in the mantissa.
    return sign | (u32)(__float_as_int(__int_as_float(magnitude) + 0.5f) - 0x3f000000);
}

// f32 -> f16 as `f16_bits` (src/quant/plain.rs): a NaN keeps the top of its payload, or gets payload 1.
DEVICE u32 f16_bits(float v) {
    u32 bits = (u32)__float_as_int(v);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        u32 payload = bits >> 13 & 0x3ff;
        return (bits >> 16 & 0x8000) | 0x7c00 | (payload ? payload : 1);
    }
    return f16_of_number(bits);
}

// f16 -> f32, exact; a NaN becomes quiet, as in hardware.
DEVICE float f16_value(u32 half) {
    u32 sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) {
        return __int_as_float((int)(sign | 0x7f800000 | magnitude << 13 | (magnitude > 0x7c00 ? 0x400000 : 0)));
    }
    if (magnitude >= 0x400) return __int_as_float((int)(sign | (0x38000000 + (magnitude << 13))));
    float value = __int_as_float((int)(0x38800000 + (magnitude << 13))) - __int_as_float(0x38800000);
    return __int_as_float((int)(sign | (u32)__float_as_int(value)));
}

// f32 -> bf16: nearest, ties to even; a NaN is made quiet.
DEVICE u32 bf16_bits(float v) {
    u32 bits = (u32)__float_as_int(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 64;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
