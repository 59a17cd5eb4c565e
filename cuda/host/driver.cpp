// The software driver: a stand-in for libcuda that runs the kernels, compiled for the host, behind the calls that the
// program makes through cust. It is stricter than a GPU, so that what passes here does not rely on luck:
//
// * Asynchronous work is only queued, and runs when somebody waits. What a copy will overwrite on the host is spoiled
//   at once, what it will read is read late: code that does not wait gets wrong bytes.
// * Device memory lies between pages that nobody may touch and begins with rubbish; copies and pointer arguments must
//   lie in one live allocation of the current context, host memory of asynchronous copies must be pinned.
// * Every kernel of a module must have the parameters that its C++ signature has.
// * What is not given back when the program ends is a leak.
//
// A breach is told on stderr, "software driver: ...", and makes the program end with status 86. The environment:
//
//   SOFT_CUDA_DEVICES=1       number of GPUs            SOFT_CUDA_VERSION=12000    CUDA version of the driver
//   SOFT_CUDA_MEMORY=BYTES    of each GPU               SOFT_CUDA_CAPABILITY=90    compute capability, times ten
//   SOFT_CUDA_FAIL=CALL:N=CODE[,...]   the N-th such call (N+: from there on) answers CODE; CALL "kernel" stands for
//                                      the execution of a kernel, which spoils its context as on a GPU; the CODE -1
//                                      of cuStreamSynchronize leaves out the wait and answers success
//   SOFT_CUDA_LOG=FILE        at the end: how often each call was made, and each kernel ran
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "host_kernels.h"

namespace {

enum Code : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
};

constexpr int BREACH = 86;
constexpr uint8_t RUBBISH = 0xA5;

std::atomic<int> breaches{0};

int breach(const std::string &what, int code) {
    fprintf(stderr, "software driver: %s\n", what.c_str());
    ++breaches;
    return code;
}

uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

// --- failures on demand and counts of calls ----------------------------------------------------------------------

struct Failure {
    std::string call;
    uint64_t from;
    bool onwards;
    int code;
};

std::mutex counting;
std::map<std::string, uint64_t> calls;

std::vector<Failure> read_failures() {
    std::vector<Failure> failures;
    const char *text = getenv("SOFT_CUDA_FAIL");
    std::string rest = text ? text : "";
    while (!rest.empty()) {
        std::string one = rest.substr(0, rest.find(','));
        rest = one.size() < rest.size() ? rest.substr(one.size() + 1) : "";
        size_t colon = one.find(':'), equals = one.find('=');
        if (colon == std::string::npos || equals == std::string::npos) {
            breach("SOFT_CUDA_FAIL: cannot read " + one, 0);
            continue;
        }
        std::string place = one.substr(colon + 1, equals - colon - 1);
        bool onwards = !place.empty() && place.back() == '+';
        failures.push_back({one.substr(0, colon), strtoull(place.c_str(), nullptr, 10), onwards,
                            atoi(one.c_str() + equals + 1)});
    }
    return failures;
}

// Counts a call; what it is to answer, if it is to fail.
int counted(const char *call) {
    static const std::vector<Failure> failures = read_failures();
    std::lock_guard<std::mutex> lock(counting);
    uint64_t n = ++calls[call];
    for (const Failure &f : failures)
        if (f.call == call && (n == f.from || (f.onwards && n > f.from))) return f.code;
    return SUCCESS;
}

// --- what there is -----------------------------------------------------------------------------------------------

struct Context;

// Device or pinned memory: `bytes` that end where a page begins that nobody may touch, as far as alignment allows.
struct Memory {
    Context *context;
    uint8_t *mapping;
    size_t mapped;
    uint8_t *data;
    size_t bytes;
};

struct Kernel {
    const HostKernel *host;
    uint32_t max_threads;
};

struct Module {
    Context *context;
    std::map<std::string, Kernel> kernels;
};

struct Work {
    // A copy or a filling: host memory it reads or writes, and how.
    enum Kind { UPLOAD, DOWNLOAD, FILL, LAUNCH } kind;
    uint8_t *to = nullptr;
    const uint8_t *from = nullptr;
    size_t bytes = 0;
    uint8_t byte = 0;
    // A launch.
    const Kernel *kernel = nullptr;
    uint32_t grid = 0, block = 0;
    std::vector<uint64_t> arguments;
};

struct Stream {
    Context *context;
    std::vector<Work> queue;
};

struct Context {
    int device;
    int retained = 0;
    // The code that every call answers once a kernel has failed.
    std::atomic<int> spoilt{0};
    size_t used = 0;
};

std::recursive_mutex state;
bool initialized = false;
std::vector<std::unique_ptr<Context>> contexts;
std::map<uint8_t *, Memory> device_memory, pinned_memory;
std::set<Module *> modules;
std::set<Stream *> streams;
thread_local Context *current = nullptr;
std::atomic<uint64_t> launches{0};

using Lock = std::lock_guard<std::recursive_mutex>;

size_t total_memory() { return number("SOFT_CUDA_MEMORY", uint64_t{1} << 30); }

Memory allocate(Context *context, size_t bytes) {
    const size_t page = 4096, padded = (bytes + 15) / 16 * 16, whole = (padded + page - 1) / page * page;
    Memory m{context, nullptr, whole + 2 * page, nullptr, bytes};
    m.mapping = static_cast<uint8_t *>(
        mmap(nullptr, m.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (m.mapping == MAP_FAILED) abort();
    memset(m.mapping, RUBBISH, m.mapped);
    mprotect(m.mapping, page, PROT_NONE);
    mprotect(m.mapping + page + whole, page, PROT_NONE);
    m.data = m.mapping + page + whole - padded;
    return m;
}

void release(const Memory &m, const char *kind) {
    const uint8_t *first = m.mapping + 4096, *end = m.mapping + m.mapped - 4096;
    for (const uint8_t *p = first; p < end; ++p)
        if ((p < m.data || p >= m.data + m.bytes) && *p != RUBBISH) {
            breach(std::string("bytes beside ") + kind + " memory were written", 0);
            break;
        }
    munmap(m.mapping, m.mapped);
}

// The allocation that holds the bytes, if one does.
const Memory *holder(const std::map<uint8_t *, Memory> &memory, const void *at, size_t bytes) {
    uint8_t *first = static_cast<uint8_t *>(const_cast<void *>(at));
    auto next = memory.upper_bound(first);
    if (next == memory.begin()) return nullptr;
    const Memory &m = std::prev(next)->second;
    return first + bytes <= m.data + m.bytes ? &m : nullptr;
}

bool in_use(const Memory &m) {
    auto within = [&](const void *p) { return p >= m.data && p < m.data + (m.bytes ? m.bytes : 1); };
    for (const Stream *s : streams)
        for (const Work &w : s->queue) {
            if (within(w.to) || within(w.from)) return true;
            for (uint64_t a : w.arguments)
                if (within(reinterpret_cast<const void *>(a))) return true;
        }
    return false;
}

void report() {
    Lock lock(state);
    for (const auto &c : contexts) {
        if (c->retained) breach("leak: a context of GPU " + std::to_string(c->device), 0);
    }
    if (!device_memory.empty()) breach("leak: " + std::to_string(device_memory.size()) + " device buffers", 0);
    if (!pinned_memory.empty()) breach("leak: " + std::to_string(pinned_memory.size()) + " pinned buffers", 0);
    if (!modules.empty()) breach("leak: " + std::to_string(modules.size()) + " modules", 0);
    if (!streams.empty()) breach("leak: " + std::to_string(streams.size()) + " streams", 0);
    if (const char *path = getenv("SOFT_CUDA_LOG"))
        if (FILE *log = fopen(path, "w")) {
            for (const auto &c : calls) fprintf(log, "%s %llu\n", c.first.c_str(), (unsigned long long)c.second);
            fclose(log);
        }
    if (breaches) {
        fflush(nullptr);
        _exit(BREACH);
    }
}

// The start of every call: counted, failed on demand, refused without a context that works.
#define CALL(name)                                                                                                    \
    if (int code = counted(name)) return code;                                                                        \
    Lock lock(state);                                                                                                 \
    if (!initialized) return breach(name " before cuInit", NOT_INITIALIZED);
#define CALL_IN_CONTEXT(name)                                                                                         \
    CALL(name)                                                                                                        \
    if (!current) return breach(name " on a thread without a context", INVALID_CONTEXT);                              \
    if (current->spoilt) return current->spoilt;

// --- PTX ---------------------------------------------------------------------------------------------------------

// The parameters of an entry as letters of HostKernel: what a pointer and a 64-bit count share is 'U'.
std::string ptx_letters(const std::string &parameters) {
    std::string letters;
    for (size_t at = 0; (at = parameters.find(".param", at)) != std::string::npos; at += 6) {
        size_t kind = parameters.find('.', at + 6);
        std::string type = parameters.substr(kind, parameters.find_first_of(" \t", kind) - kind);
        letters += type == ".u64" || type == ".b64" ? 'U' : type == ".u32" || type == ".b32" ? 'u'
                 : type == ".f32"                    ? 'f'
                                                     : '?';
    }
    return letters;
}

int load(const std::string &ptx, Module &module) {
    int major = 0, minor = 0, target = 0;
    size_t version = ptx.find("\n.version "), sm = ptx.find("\n.target sm_");
    if (version == std::string::npos || sm == std::string::npos) return INVALID_PTX;
    sscanf(ptx.c_str() + version, "\n.version %d.%d", &major, &minor);
    sscanf(ptx.c_str() + sm, "\n.target sm_%d", &target);
    // PTX ISA 8.0 came with CUDA 12.0, 7.x with 11.x.
    uint64_t knows = number("SOFT_CUDA_VERSION", 12000) / 1000 - 4;
    if (static_cast<uint64_t>(major) > knows) return UNSUPPORTED_PTX_VERSION;
    if (static_cast<uint64_t>(target) > number("SOFT_CUDA_CAPABILITY", 90)) return INVALID_PTX;
    for (size_t at = 0; (at = ptx.find(".entry ", at)) != std::string::npos;) {
        size_t open = ptx.find('(', at), close = ptx.find(')', open), body = ptx.find('{', close);
        std::string name = ptx.substr(at + 7, open - at - 7);
        std::string directives = ptx.substr(close, body - close);
        at = body;
        Kernel kernel{nullptr, 1024};
        for (uint32_t i = 0; i < to_gguf_kernel_count; ++i)
            if (name == to_gguf_kernels[i].name) kernel.host = &to_gguf_kernels[i];
        if (!kernel.host) return breach("the PTX has " + name + ", which no source has", INVALID_PTX);
        std::string wanted = kernel.host->parameters, found = ptx_letters(ptx.substr(open, close - open));
        for (char &letter : wanted)
            if (letter == 'p') letter = 'U';
        if (wanted != found)
            return breach(name + " has parameters " + wanted + ", its PTX " + found + ": compile it again", INVALID_PTX);
        size_t limit = directives.find(".maxntid ");
        if (limit != std::string::npos) kernel.max_threads = atoi(directives.c_str() + limit + 9);
        module.kernels[name] = kernel;
    }
    return SUCCESS;
}

// --- running -----------------------------------------------------------------------------------------------------

int run(Context *context, std::vector<Work> &queue) {
    for (Work &w : queue) {
        if (context->spoilt) break;
        switch (w.kind) {
            case Work::UPLOAD:
            case Work::DOWNLOAD: memcpy(w.to, w.from, w.bytes); break;
            case Work::FILL: memset(w.to, w.byte, w.bytes); break;
            case Work::LAUNCH:
                counted((std::string("kernel ") + w.kernel->host->name).c_str());
                if (int code = counted("kernel")) {
                    context->spoilt = code;
                    break;
                }
                std::vector<void *> addresses;
                for (uint64_t &a : w.arguments) addresses.push_back(&a);
                // Every other launch with its threads the other way round: no result may depend on their order.
                w.kernel->host->run(w.grid, w.block, launches++ & 1, addresses.data());
        }
    }
    queue.clear();
    return context->spoilt;
}

} // namespace

// --- the calls ---------------------------------------------------------------------------------------------------

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) {
    if (int code = counted("cuInit")) return code;
    Lock lock(state);
    uint64_t devices = number("SOFT_CUDA_DEVICES", 1);
    if (!devices) return NO_DEVICE;
    if (!initialized) {
        for (uint64_t i = 0; i < devices; ++i) {
            contexts.emplace_back(new Context);
            contexts.back()->device = static_cast<int>(i);
        }
        atexit(report);
        initialized = true;
    }
    return SUCCESS;
}

API cuDriverGetVersion(int *version) {
    *version = static_cast<int>(number("SOFT_CUDA_VERSION", 12000));
    return counted("cuDriverGetVersion");
}

namespace {
struct Known {
    int code;
    const char *name, *text;
};
const Known KNOWN[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    // A code of a later driver than cust knows.
    {12345, "CUDA_ERROR_OF_THE_FUTURE", "nobody has heard of it"},
};
const Known *known(int code) {
    for (const Known &k : KNOWN)
        if (k.code == code) return &k;
    return nullptr;
}
} // namespace

API cuGetErrorName(int code, const char **text) {
    const Known *k = known(code);
    *text = k ? k->name : nullptr;
    return k ? SUCCESS : INVALID_VALUE;
}

API cuGetErrorString(int code, const char **text) {
    const Known *k = known(code);
    *text = k ? k->text : nullptr;
    return k ? SUCCESS : INVALID_VALUE;
}

API cuDeviceGetCount(int *count) {
    CALL("cuDeviceGetCount")
    *count = static_cast<int>(contexts.size());
    return SUCCESS;
}

API cuDeviceGet(int *device, int ordinal) {
    CALL("cuDeviceGet")
    if (ordinal < 0 || static_cast<size_t>(ordinal) >= contexts.size()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API cuDeviceGetName(char *name, int length, int device) {
    CALL("cuDeviceGetName")
    snprintf(name, length, "Software GPU %d", device);
    return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, int) {
    CALL("cuDeviceTotalMem_v2")
    *bytes = total_memory();
    return SUCCESS;
}

API cuDeviceGetAttribute(int *value, int attribute, int) {
    CALL("cuDeviceGetAttribute")
    int capability = static_cast<int>(number("SOFT_CUDA_CAPABILITY", 90));
    switch (attribute) {
        case 75: *value = capability / 10; return SUCCESS;
        case 76: *value = capability % 10; return SUCCESS;
        default: return breach("attribute " + std::to_string(attribute) + " is not modelled", INVALID_VALUE);
    }
}

API cuDevicePrimaryCtxRetain(Context **context, int device) {
    CALL("cuDevicePrimaryCtxRetain")
    *context = contexts[device].get();
    ++(*context)->retained;
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    CALL("cuDevicePrimaryCtxRelease_v2")
    Context *context = contexts[device].get();
    if (!context->retained) return breach("a context is released twice", INVALID_CONTEXT);
    if (--context->retained || !context->spoilt) return SUCCESS;
    // With a context that failed goes all that was made in it.
    for (auto *memory : {&device_memory, &pinned_memory})
        for (auto it = memory->begin(); it != memory->end();) {
            if (it->second.context == context) munmap(it->second.mapping, it->second.mapped);
            it = it->second.context == context ? memory->erase(it) : std::next(it);
        }
    for (auto it = streams.begin(); it != streams.end();) it = (*it)->context == context ? streams.erase(it) : std::next(it);
    for (auto it = modules.begin(); it != modules.end();) it = (*it)->context == context ? modules.erase(it) : std::next(it);
    return SUCCESS;
}

API cuCtxSetCurrent(Context *context) {
    CALL("cuCtxSetCurrent")
    current = context;
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    CALL_IN_CONTEXT("cuMemGetInfo_v2")
    *total = total_memory();
    *free = *total - current->used;
    return SUCCESS;
}

API cuModuleLoadDataEx(Module **module, const void *image, unsigned, int *, void **) {
    CALL_IN_CONTEXT("cuModuleLoadDataEx")
    std::unique_ptr<Module> loaded(new Module{current, {}});
    if (int code = load(static_cast<const char *>(image), *loaded)) return code;
    modules.insert(*module = loaded.release());
    return SUCCESS;
}

API cuModuleUnload(Module *module) {
    CALL_IN_CONTEXT("cuModuleUnload")
    if (!modules.count(module) || module->context != current)
        return breach("a module is unloaded twice or in another context", INVALID_HANDLE);
    modules.erase(module);
    delete module;
    return SUCCESS;
}

API cuModuleGetFunction(const Kernel **function, Module *module, const char *name) {
    CALL_IN_CONTEXT("cuModuleGetFunction")
    if (!modules.count(module)) return breach("a function of no module", INVALID_HANDLE);
    auto found = module->kernels.find(name);
    if (found == module->kernels.end()) return NOT_FOUND;
    *function = &found->second;
    return SUCCESS;
}

API cuMemAlloc_v2(uint8_t **memory, size_t bytes) {
    CALL_IN_CONTEXT("cuMemAlloc_v2")
    if (!bytes) return INVALID_VALUE;
    if (current->used + bytes > total_memory()) return OUT_OF_MEMORY;
    Memory m = allocate(current, bytes);
    current->used += bytes;
    device_memory[*memory = m.data] = m;
    return SUCCESS;
}

API cuMemFree_v2(uint8_t *memory) {
    CALL_IN_CONTEXT("cuMemFree_v2")
    auto found = device_memory.find(memory);
    if (found == device_memory.end()) return breach("device memory is freed twice", INVALID_VALUE);
    if (found->second.context != current) return breach("device memory is freed in another context", INVALID_VALUE);
    if (in_use(found->second)) return breach("device memory is freed while work on it is queued", INVALID_VALUE);
    current->used -= found->second.bytes;
    release(found->second, "device");
    device_memory.erase(found);
    return SUCCESS;
}

API cuMemAllocHost_v2(uint8_t **memory, size_t bytes) {
    CALL_IN_CONTEXT("cuMemAllocHost_v2")
    if (!bytes) return INVALID_VALUE;
    Memory m = allocate(current, bytes);
    pinned_memory[*memory = m.data] = m;
    return SUCCESS;
}

API cuMemFreeHost(uint8_t *memory) {
    CALL_IN_CONTEXT("cuMemFreeHost")
    auto found = pinned_memory.find(memory);
    if (found == pinned_memory.end()) return breach("pinned memory is freed twice", INVALID_VALUE);
    if (in_use(found->second)) return breach("pinned memory is freed while work on it is queued", INVALID_VALUE);
    release(found->second, "pinned");
    pinned_memory.erase(found);
    return SUCCESS;
}

API cuStreamCreateWithPriority(Stream **stream, unsigned, int) {
    CALL_IN_CONTEXT("cuStreamCreateWithPriority")
    streams.insert(*stream = new Stream{current, {}});
    return SUCCESS;
}

API cuStreamDestroy_v2(Stream *stream) {
    CALL_IN_CONTEXT("cuStreamDestroy_v2")
    if (!streams.count(stream)) return breach("a stream is destroyed twice", INVALID_HANDLE);
    if (!stream->queue.empty()) breach("a stream is destroyed with work queued", 0);
    streams.erase(stream);
    delete stream;
    return SUCCESS;
}

namespace {
// Whether work may be queued: the stream is one of the current context.
int queueable(Stream *stream, const char *call) {
    if (!streams.count(stream)) return breach(std::string(call) + " on no stream", INVALID_HANDLE);
    if (stream->context != current) return breach(std::string(call) + " on a stream of another context", INVALID_HANDLE);
    return SUCCESS;
}

Work copy(Work::Kind kind, uint8_t *to, const uint8_t *from, size_t bytes) {
    Work w;
    w.kind = kind, w.to = to, w.from = from, w.bytes = bytes;
    return w;
}

int queued(Stream *stream, Work work) {
    stream->queue.push_back(std::move(work));
    return SUCCESS;
}

// Whether the current context has the device memory.
bool on_device(const void *at, size_t bytes) {
    const Memory *m = holder(device_memory, at, bytes);
    return m && m->context == current;
}
} // namespace

API cuMemcpyHtoDAsync_v2(uint8_t *to, const uint8_t *from, size_t bytes, Stream *stream) {
    CALL_IN_CONTEXT("cuMemcpyHtoDAsync_v2")
    if (int code = queueable(stream, "an upload")) return code;
    if (!on_device(to, bytes)) return breach("an upload leaves its buffer", INVALID_VALUE);
    if (!holder(pinned_memory, from, bytes)) return breach("an upload from memory that is not pinned", INVALID_VALUE);
    return queued(stream, copy(Work::UPLOAD, to, from, bytes));
}

API cuMemcpyDtoHAsync_v2(uint8_t *to, const uint8_t *from, size_t bytes, Stream *stream) {
    CALL_IN_CONTEXT("cuMemcpyDtoHAsync_v2")
    if (int code = queueable(stream, "a download")) return code;
    if (!on_device(from, bytes)) return breach("a download leaves its buffer", INVALID_VALUE);
    if (!holder(pinned_memory, to, bytes)) return breach("a download to memory that is not pinned", INVALID_VALUE);
    memset(to, RUBBISH, bytes);
    return queued(stream, copy(Work::DOWNLOAD, to, from, bytes));
}

API cuMemsetD8Async(uint8_t *to, unsigned char byte, size_t bytes, Stream *stream) {
    CALL_IN_CONTEXT("cuMemsetD8Async")
    if (int code = queueable(stream, "a filling")) return code;
    if (!on_device(to, bytes)) return breach("a filling leaves its buffer", INVALID_VALUE);
    Work w = copy(Work::FILL, to, nullptr, bytes);
    w.byte = byte;
    return queued(stream, std::move(w));
}

API cuLaunchKernel(const Kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, Stream *stream, void **arguments, void **) {
    CALL_IN_CONTEXT("cuLaunchKernel")
    if (int code = queueable(stream, "a launch")) return code;
    if (!grid_x || !block_x || grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared)
        return breach(std::string(kernel->host->name) + ": no kernel is launched so", INVALID_VALUE);
    if (block_x > kernel->max_threads) return LAUNCH_OUT_OF_RESOURCES;
    Work w = copy(Work::LAUNCH, nullptr, nullptr, 0);
    w.kernel = kernel, w.grid = grid_x, w.block = block_x;
    for (size_t i = 0; kernel->host->parameters[i]; ++i) {
        const char letter = kernel->host->parameters[i];
        uint64_t value = 0;
        memcpy(&value, arguments[i], letter == 'p' || letter == 'U' ? 8 : 4);
        if (letter == 'p' && value && !on_device(reinterpret_cast<void *>(value), 0))
            return breach(std::string(kernel->host->name) + ": argument " + std::to_string(i) +
                              " is no device memory of this context",
                          ILLEGAL_ADDRESS);
        w.arguments.push_back(value);
    }
    return queued(stream, std::move(w));
}

API cuStreamSynchronize(Stream *stream) {
    if (int code = counted("cuStreamSynchronize")) {
        // The code -1 stands for a wait that was forgotten; any other, for a stream whose work came to nothing.
        if (code == -1) return SUCCESS;
        Lock lock(state);
        if (streams.count(stream)) stream->queue.clear();
        return code;
    }
    std::vector<Work> queue;
    {
        Lock lock(state);
        if (!current) return breach("waiting on a thread without a context", INVALID_CONTEXT);
        if (current->spoilt) {
            if (streams.count(stream)) stream->queue.clear();
            return current->spoilt;
        }
        if (int code = queueable(stream, "waiting")) return code;
        queue.swap(stream->queue);
    }
    // Without the lock, so that threads compute side by side.
    return run(current, queue);
}
