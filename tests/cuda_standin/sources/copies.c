// Allocation, copies and clears. A copy checks that its addresses are of the memory that its kind names.
#include <stdlib.h>
#include <string.h>

#include "cuda_runtime_api.h"
#include "memory.h"
#include "trace.h"

cudaError_t standin_failed(cudaError_t error);

static cudaError_t allocate(void **pointer, size_t bytes, enum memory_kind kind) {
    return memory_allocate(pointer, bytes, kind) ? cudaSuccess : standin_failed(cudaErrorMemoryAllocation);
}

static cudaError_t release(void *pointer, enum memory_kind kind) {
    if (memory_free(pointer, kind)) return cudaSuccess;
    trace(EVENT_REFUSAL, "free of an address that was not allocated so", 0, 0);
    return standin_failed(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) { return allocate(pointer, bytes, MEMORY_DEVICE); }
cudaError_t cudaFree(void *pointer) { return release(pointer, MEMORY_DEVICE); }
cudaError_t cudaMallocHost(void **pointer, size_t bytes) { return allocate(pointer, bytes, MEMORY_PINNED); }
cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) { return allocate(pointer, bytes, MEMORY_PINNED); }
cudaError_t cudaFreeHost(void *pointer) { return release(pointer, MEMORY_PINNED); }
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return release(pointer, MEMORY_DEVICE); }

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
    return allocate(pointer, bytes, MEMORY_DEVICE);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
    *pool = calloc(1, 64);
    return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
    free(pool);
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
    *(uint64_t *)value = 0;
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes) { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = memory_free_bytes();
    *total = memory_total();
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    switch (memory_of(pointer, 1)) {
        case MEMORY_DEVICE: attributes->type = cudaMemoryTypeDevice; break;
        case MEMORY_PINNED: attributes->type = cudaMemoryTypeHost; break;
        default: attributes->type = cudaMemoryTypeUnregistered;
    }
    attributes->devicePointer = attributes->type == cudaMemoryTypeDevice ? (void *)pointer : NULL;
    attributes->hostPointer = attributes->type == cudaMemoryTypeHost ? (void *)pointer : NULL;
    return cudaSuccess;
}

static int is_right(const void *pointer, size_t bytes, int on_device) {
    return (memory_of(pointer, bytes) == MEMORY_DEVICE) == on_device;
}

// Rows of `width` bytes, `height` of them.
static cudaError_t copy(
    void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width, size_t height, int kind) {
    if (!width || !height) return cudaSuccess;
    if (target_pitch < width || source_pitch < width) return standin_failed(cudaErrorInvalidValue);
    if (kind != cudaMemcpyDefault) {
        int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
        int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
        if (!is_right(target, (height - 1) * target_pitch + width, to_device) ||
            !is_right(source, (height - 1) * source_pitch + width, from_device)) {
            trace(EVENT_REFUSAL, "copy between addresses that are not of its kind", kind, width * height);
            return standin_failed(cudaErrorInvalidValue);
        }
    }
    trace(EVENT_COPY, NULL, kind, width * height);
    if (!is_capturing())
        for (size_t row = 0; row < height; row++)
            memmove((char *)target + row * target_pitch, (const char *)source + row * source_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind) {
    trace(EVENT_SYNCHRONIZE, NULL, 0, 0);
    return copy(target, bytes, source, bytes, bytes, 1, kind);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(target, bytes, source, bytes, bytes, 1, kind);
}

cudaError_t cudaMemcpy2DAsync(
    void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width, size_t height,
    enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(target, target_pitch, source, source_pitch, width, height, kind);
}

cudaError_t cudaMemcpyFromSymbol(void *target, const void *symbol, size_t bytes, size_t offset, enum cudaMemcpyKind kind) {
    memset(target, 0, bytes);
    return cudaSuccess;
}

static cudaError_t clear(void *pointer, int value, size_t bytes) {
    if (!bytes) return cudaSuccess;
    if (memory_of(pointer, bytes) != MEMORY_DEVICE) {
        trace(EVENT_REFUSAL, "clear of an address that is not the device's", 0, bytes);
        return standin_failed(cudaErrorInvalidValue);
    }
    trace(EVENT_CLEAR, NULL, 0, bytes);
    if (!is_capturing()) memset(pointer, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *pointer, int value, size_t bytes) { return clear(pointer, value, bytes); }
cudaError_t cudaMemsetAsync(void *pointer, int value, size_t bytes, cudaStream_t stream) { return clear(pointer, value, bytes); }

cudaError_t cudaMemset2DAsync(
    void *pointer, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
    for (size_t row = 0; row < height; row++) {
        cudaError_t error = clear((char *)pointer + row * pitch, value, width);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
