// Products are events with their names.
#include <stdlib.h>

void standin_library_launch(const char *name);

#define PRODUCT(name) int name() { standin_library_launch(#name); return 0; }
#define NOTHING(name) int name() { return 0; }

PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgeam)
PRODUCT(cublasSgeam)
PRODUCT(cublasScopy_v2)
PRODUCT(cublasSscal_v2)
NOTHING(cublasDestroy_v2)
NOTHING(cublasDgetrfBatched)
NOTHING(cublasDgetriBatched)
NOTHING(cublasSgetrfBatched)
NOTHING(cublasSgetriBatched)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetStream_v2)

int cublasCreate_v2(void **handle) {
    *handle = calloc(1, 64);
    return 0;
}

int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return 0;
}

const char *cublasGetStatusName(int status) { return "a status of the stand-in"; }
const char *cublasGetStatusString(int status) { return "a status of the stand-in"; }
