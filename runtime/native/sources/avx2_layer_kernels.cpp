// Eight floats at once, with fused multiply-adds.
#if defined(__x86_64__)
#include "layer_kernels_of.h"

namespace qwonnx {

const LayerKernels avx2_layer_kernels = LayerKernelsOf<8, 2>::table();

}  // namespace qwonnx
#endif
