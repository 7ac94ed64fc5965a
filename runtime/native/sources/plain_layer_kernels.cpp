// Four floats at once: what every processor has. 64-bit ARM has its registers and multiply-adds by default.
#include "layer_kernels_of.h"

namespace qwonnx {

const LayerKernels plain_layer_kernels = LayerKernelsOf<4, 4>::table();

}  // namespace qwonnx
