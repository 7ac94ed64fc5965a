// Kernels are registered with their names, and a launch is an event with the name.
#include <stdlib.h>
#include <string.h>

#include "cuda_runtime_api.h"
#include "trace.h"

int standin_compute_capability(void);

struct registered {
    const void *function;
    const char *name;
};

static struct registered *kernels;
static size_t num_kernels, capacity;
static int is_sorted;

static int compare(const void *left, const void *right) {
    uintptr_t a = (uintptr_t)((const struct registered *)left)->function;
    uintptr_t b = (uintptr_t)((const struct registered *)right)->function;
    return (a > b) - (a < b);
}

static cudaError_t launch(const void *function) {
    if (!is_sorted) qsort(kernels, num_kernels, sizeof *kernels, compare);
    is_sorted = 1;
    struct registered key = {function, NULL};
    struct registered *found = bsearch(&key, kernels, num_kernels, sizeof *kernels, compare);
    trace(EVENT_LAUNCH, found ? found->name : "a kernel that was not registered", 0, 0);
    return cudaSuccess;
}

void standin_library_launch(const char *name) { trace(EVENT_LAUNCH, name, 0, 0); }

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launch(function);
}

cudaError_t cudaLaunchCooperativeKernel(
    const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launch(function);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *function, void **arguments) {
    return launch(function);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    return launch(kernel);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}

cudaError_t cudaLibraryLoadData(
    cudaLibrary_t *library, const void *code, enum cudaJitOption *options, void **values, unsigned num_options,
    enum cudaLibraryOption *library_options, void **library_values, unsigned num_library_options) {
    *library = calloc(1, 64);
    return cudaSuccess;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return cudaSuccess; }

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    void *handle = calloc(1, 64);
    kernels = realloc(kernels, (num_kernels + 1) * sizeof *kernels);
    if (!kernels) abort();
    capacity = num_kernels + 1;
    kernels[num_kernels++] = (struct registered){handle, strdup(name)};
    is_sorted = 0;
    *kernel = handle;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = standin_compute_capability();
    attributes->maxDynamicSharedSizeBytes = 232448;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) { return cudaSuccess; }

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value, int device) {
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int block_size, size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

static __thread dim3 pushed_grid, pushed_block;
static __thread size_t pushed_shared;
static __thread void *pushed_stream;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed_grid = grid;
    pushed_block = block;
    pushed_shared = shared;
    pushed_stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed_grid;
    *block = pushed_block;
    *shared = pushed_shared;
    *(void **)stream = pushed_stream;
    return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}

void __cudaRegisterFunction(
    void **handle, const char *function, char *device_function, const char *name, int thread_limit, void *thread_id,
    void *block_id, void *block_size, void *grid_size, int *warp_size) {
    if (num_kernels == capacity) {
        capacity = capacity ? 2 * capacity : 1 << 16;
        kernels = realloc(kernels, capacity * sizeof *kernels);
        if (!kernels) abort();
    }
    kernels[num_kernels++] = (struct registered){function, name};
    is_sorted = 0;
}

void __cudaRegisterVar(
    void **handle, char *variable, char *device_variable, const char *name, int is_external, size_t bytes, int is_constant,
    int is_global) {}
