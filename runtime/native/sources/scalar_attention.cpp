// For every processor: vectors that compilers make of what they may use.
#define QWONNX_LANES 4
#define QWONNX_ACCUMULATORS 12
#include "attention_kernels.h"

namespace qwonnx {

const AttentionKernels scalar_attention = {attend, finish, quantize};

}  // namespace qwonnx
