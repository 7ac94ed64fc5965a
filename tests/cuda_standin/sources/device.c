// One device, of the compute capability and the driver that the environment names.
#include <stdlib.h>
#include <string.h>

#include "cuda_runtime_api.h"
#include "memory.h"

enum { NUM_PROCESSORS = 132, SHARED_BYTES = 49152, SHARED_OPTIN_BYTES = 232448, SHARED_PROCESSOR_BYTES = 233472, L2_BYTES = 50 << 20 };

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int standin_compute_capability(void) { return number("CUDA_STANDIN_COMPUTE_CAPABILITY", 90); }

static __thread cudaError_t last_error;
static __thread int current_device;

cudaError_t standin_failed(cudaError_t error) { return last_error = error; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = number("CUDA_STANDIN_DEVICES", 1);
    return *count ? cudaSuccess : standin_failed(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    int count;
    if (cudaGetDeviceCount(&count) != cudaSuccess) return cudaErrorNoDevice;
    if (device < 0 || device >= count) return standin_failed(cudaErrorInvalidDevice);
    if (number("CUDA_STANDIN_DRIVER_VERSION", 13000) < 13000) return standin_failed(cudaErrorInsufficientDriver);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "stand-in");
    properties->major = standin_compute_capability() / 10;
    properties->minor = standin_compute_capability() % 10;
    properties->multiProcessorCount = NUM_PROCESSORS;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = SHARED_BYTES;
    properties->sharedMemPerBlockOptin = SHARED_OPTIN_BYTES;
    properties->sharedMemPerMultiprocessor = SHARED_PROCESSOR_BYTES;
    properties->reservedSharedMemPerBlock = 1024;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = 32;
    properties->totalGlobalMem = memory_total();
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->l2CacheSize = L2_BYTES;
    properties->memoryBusWidth = 5120;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_BYTES; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = NUM_PROCESSORS; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *value = standin_compute_capability() / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = standin_compute_capability() % 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_PROCESSOR_BYTES; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_OPTIN_BYTES; break;
        case cudaDevAttrL2CacheSize: *value = L2_BYTES; break;
        default: *value = 1;
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = number("CUDA_STANDIN_DRIVER_VERSION", 13000);
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        default: return "another error of the stand-in";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        default: return "another error of the stand-in";
    }
}

cudaError_t cudaGetDriverEntryPointByVersion(
    const char *symbol, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
    *function = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaErrorNotSupported;
}
