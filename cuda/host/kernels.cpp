// All kernels in one library, behind the table of host_kernels.h.
//
//     c++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared cuda/host/kernels.cpp -o libkernels.so
//
// One translation unit: every source keeps its helpers in a namespace of its own here; the kernels have C linkage.
#include "host_cuda.h"

#include "../device.h"
#include "../rows.h"
#include "../blocks.h"
#include "../search.h"
#include "../tables.h"

namespace decode_file {
#include "../decode.cu"
}
namespace merge_file {
#include "../merge.cu"
}
namespace encode_file {
#include "../encode.cu"
}
namespace legacy_file {
#include "../legacy.cu"
}
namespace k_affine_file {
#include "../k_affine.cu"
}
namespace k_symmetric_file {
#include "../k_symmetric.cu"
}
namespace iq4_file {
#include "../iq4.cu"
}
namespace fp4_file {
#include "../fp4.cu"
}

#include "host_kernels.h"

#include <cstddef>
#include <utility>

namespace {

// The letter of a parameter.
template <class T> struct Letter;
template <class T> struct Letter<T *> {
    static constexpr char value = 'p';
};
template <> struct Letter<u32> {
    static constexpr char value = 'u';
};
template <> struct Letter<u64> {
    static constexpr char value = 'U';
};
template <> struct Letter<float> {
    static constexpr char value = 'f';
};

// A kernel as a table has it, made from its C++ type.
template <class... T> struct Signature {
    static constexpr char letters[] = {Letter<T>::value..., 0};

    template <std::size_t... I>
    static void call(void (*kernel)(T...), void **arguments, std::index_sequence<I...>) {
        kernel(*static_cast<T *>(arguments[I])...);
    }

    static void run(void (*kernel)(T...), uint32_t grid, uint32_t block, int backwards, void **arguments) {
        host_backwards = backwards != 0;
        gridDim = {grid, 1, 1};
        blockDim = {block, 1, 1};
        for (uint32_t i = 0; i < grid; ++i) {
            blockIdx = {i, 0, 0};
            call(kernel, arguments, std::index_sequence_for<T...>());
        }
    }
};

template <class... T> constexpr Signature<T...> signature_of(void (*)(T...)) { return {}; }

} // namespace

#define ENTRY(name)                                                                                                   \
    {#name, decltype(signature_of(name))::letters, [](uint32_t grid, uint32_t block, int backwards, void **arguments) { \
         decltype(signature_of(name))::run(name, grid, block, backwards, arguments);                                  \
     }},

extern "C" const HostKernel to_gguf_kernels[] = {TO_GGUF_KERNELS(ENTRY)};
extern "C" const uint32_t to_gguf_kernel_count = sizeof to_gguf_kernels / sizeof to_gguf_kernels[0];
