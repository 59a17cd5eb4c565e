// The words of device.h as host C++: a phase is a loop over the threads of a CUDA block, shared memory belongs to the
// host thread that runs it. Compile without fast math and with -ffp-contract=off.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__

struct HostIndex {
    uint32_t x, y, z;
};

static thread_local HostIndex threadIdx, blockIdx, blockDim, gridDim;

// Whether phases run their threads from the last to the first.
static thread_local bool host_backwards;

// The threads of a block in turn.
struct HostThreads {
    uint32_t done = 0;

    bool next() {
        if (done == blockDim.x) return false;
        threadIdx.x = host_backwards ? blockDim.x - 1 - done : done;
        ++done;
        return true;
    }
};

#define PHASE for (HostThreads phase_; phase_.next();)
#define EACH_THREAD PHASE
#define SHARED static thread_local
#define PER_THREAD(type, name, threads) static thread_local type name[threads]
#define SLOT threadIdx.x
#define UNROLL
#define ROLLED
#define DEVICE static inline
#define METHOD inline
#define RARE static
#define BOUNDS(threads)

static inline int32_t __float_as_int(float v) {
    int32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline float __int_as_float(int32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

// a + b rounded down: exact in f64 for what is added here, a number of at most 2^8 to a half-integer of about 2^23.
static inline float __fadd_rd(float a, float b) {
    double sum = static_cast<double>(b) + std::floor(static_cast<double>(a) * 2.0) * 0.5;
    return static_cast<float>(sum);
}

// Of a number and a NaN, the number.
static inline float FLOAT_MIN(float a, float b) { return a < b || b != b ? a : b; }
static inline float FLOAT_MAX(float a, float b) { return a > b || b != b ? a : b; }

static inline void atomicMin(unsigned long long *at, unsigned long long value) {
    if (value < *at) *at = value;
}
