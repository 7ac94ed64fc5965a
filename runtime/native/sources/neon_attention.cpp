// 64-bit ARM: 32 registers hold 24 sums.
#if defined(__aarch64__)
#define QWONNX_LANES 4
#define QWONNX_ACCUMULATORS 24
#include "attention_kernels.h"

namespace qwonnx {

const AttentionKernels neon_attention = {attend, finish, quantize};

}  // namespace qwonnx
#endif
