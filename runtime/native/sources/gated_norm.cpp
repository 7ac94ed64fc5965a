// RMS norm by groups, times a weight, times SiLU of a gate.
#include "layer_kernels.h"
#include "layers.h"

namespace qwonnx {
namespace {

constexpr size_t FLOATS = 8192;  // of a task

struct Call {
  const GatedNorm& layer;
  size_t each;  // groups of a task
};

void norm_groups(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const size_t first = index * call.each, left = call.layer.groups - first;
  gated_norm_groups(call.layer, first, left < call.each ? left : call.each);
}

}  // namespace

void gated_norm_groups(const GatedNorm& layer, size_t first, size_t count) {
  const LayerKernels& kernels = layer_kernels();
  for (size_t group = first; group < first + count; group++) {
    const float* x = layer.x + group * layer.width;
    const float mean = kernels.dot(x, x, layer.width) / static_cast<float>(layer.width);
    kernels.gate(x, 1 / __builtin_sqrtf(mean + layer.epsilon), layer.weight, layer.gate + group * layer.width, layer.width,
                 layer.y + group * layer.width);
  }
}

OrtStatus* gated_norm(const GatedNorm& layer, const Parallel& parallel) {
  if (layer.groups == 0) return nullptr;
  const size_t each = layer.width < FLOATS ? FLOATS / layer.width : 1;
  Call call = {layer, each};
  return parallel.run(norm_groups, (layer.groups + each - 1) / each, &call);
}

}  // namespace qwonnx
