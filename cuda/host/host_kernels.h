// The kernels compiled as host C++: what a test or the software driver needs to run them.
#pragma once

#include <cstdint>

struct HostKernel {
    const char *name;
    // One letter per parameter: p pointer, u 32-bit count, U 64-bit count, f float.
    const char *parameters;
    // Runs all CUDA blocks of a launch of grid x block threads, one after another. `arguments` are addresses of the
    // arguments, as cuLaunchKernel takes them. Threads run in their order, or from the last to the first: a result
    // that depends on that is a race.
    void (*run)(uint32_t grid, uint32_t block, int backwards, void **arguments);
};

extern "C" const HostKernel to_gguf_kernels[];
extern "C" const uint32_t to_gguf_kernel_count;
