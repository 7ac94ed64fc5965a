// Sixteen floats at once, with fused multiply-adds; twice 16 columns, so that sums do not wait for each other.
#if defined(__x86_64__)
#include "layer_kernels_of.h"

namespace qwonnx {

const LayerKernels avx512_layer_kernels = LayerKernelsOf<16, 2>::table();

}  // namespace qwonnx
#endif
