// What ONNX Runtime's CUDA kernels ask of cuDNN for a sum over an axis. Descriptors are empty, and nothing is computed.
#include <stdlib.h>

static int create(void **object) {
    *object = calloc(1, 64);
    return 0;
}

static int destroy(void *object) {
    free(object);
    return 0;
}

int cudnnCreate(void **handle) { return create(handle); }
int cudnnDestroy(void *handle) { return destroy(handle); }
int cudnnSetStream() { return 0; }
int cudnnCreateTensorDescriptor(void **descriptor) { return create(descriptor); }
int cudnnDestroyTensorDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnSetTensorNdDescriptor() { return 0; }
int cudnnCreateReduceTensorDescriptor(void **descriptor) { return create(descriptor); }
int cudnnDestroyReduceTensorDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnSetReduceTensorDescriptor() { return 0; }
int cudnnReduceTensor() { return 0; }

int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *from, void *to, size_t *bytes) {
    *bytes = 0;
    return 0;
}

int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *from, void *to, size_t *bytes) {
    *bytes = 0;
    return 0;
}
