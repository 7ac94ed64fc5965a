// RotaryAngles(position_ids int64 [3, B, T], frequencies [half], axes [3, 1, 1, half]): factor -> cos, sin [B, T, half]
//
// export/targets/cpu_functions.py defines it. Every size is checked when the node runs.
#include <stdlib.h>
#include <string.h>

#include "custom_op.h"
#include "rotary_angles.h"

namespace qwonnx {
namespace {

constexpr int INT64 = 7;  // ONNXTensorElementDataType

enum Input { POSITION_IDS, FREQUENCIES, AXES, NUM_INPUTS };
const char* const names[NUM_INPUTS] = {"position_ids", "frequencies", "axes"};

struct Kernel {
  float factor;
};

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->factor = float_attribute(info, "factor", 1);
  *out = kernel;
  return nullptr;
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  Tensor in[NUM_INPUTS];
  for (size_t i = 0; i < NUM_INPUTS; i++) {
    const OrtValue* value = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_input(context, i, &value));
    QWONNX_RETURN_IF_ERROR(read_tensor(names[i], value, i == POSITION_IDS ? INT64 : FLOAT, in[i]));
  }
  const Tensor &positions = in[POSITION_IDS], &frequencies = in[FREQUENCIES], &axes = in[AXES];
  if (positions.rank != 3 || positions.dims[0] != 3) return refuse("position_ids are not three for each token");
  if (frequencies.rank != 1) return refuse("frequencies have %zu dimensions", frequencies.rank);
  const int64_t batch = positions.dims[1], tokens = positions.dims[2], half = frequencies.dims[0];
  const int64_t shape[4] = {3, 1, 1, half};
  if (axes.rank != 4 || memcmp(axes.dims, shape, sizeof shape))
    return refuse("axes are not [3, 1, 1, %lld]", static_cast<long long>(half));
  const int64_t outputs[3] = {batch, tokens, half};
  RotaryAngles step = {static_cast<size_t>(batch) * static_cast<size_t>(tokens),
                       static_cast<size_t>(half),
                       static_cast<const int64_t*>(positions.data),
                       static_cast<const float*>(frequencies.data),
                       static_cast<const float*>(axes.data),
                       static_cast<Kernel*>(data)->factor,
                       nullptr,
                       nullptr};
  float** const values[2] = {&step.cos, &step.sin};
  for (size_t i = 0; i < 2; i++) {
    OrtValue* output = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_output(context, i, outputs, 3, &output));
    QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(output, reinterpret_cast<void**>(values[i])));
  }
  return step.num_tokens && half ? rotary_angles(step, {context}) : nullptr;
}

NamedOp operator_;

}  // namespace

OrtStatus* add_rotary_angles_operator(OrtCustomOpDomain* domain) {
  if (!operator_.version) {
    operator_.get_input_type = [](const OrtCustomOp*, size_t index) { return index == POSITION_IDS ? INT64 : FLOAT; };
    operator_.get_input_count = [](const OrtCustomOp*) { return static_cast<size_t>(NUM_INPUTS); };
    operator_.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
    operator_.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(2); };
    finish(operator_, "RotaryAngles", create, compute);
  }
  return api.custom_op_domain_add(domain, &operator_);
}

}  // namespace qwonnx
