// AddAdapters(y [B, T, N], x [B, T, K], slots int64 [B], adapters [num_slots, width, rank]): offset -> [B, T, N]
//
// export/operators/op_bodies.py defines it. Every size is checked when the node runs, and so is every slot.
#include <stdlib.h>

#include "add_adapters.h"
#include "custom_op.h"
#include "layer_kernels.h"

namespace qwonnx {
namespace {

constexpr int INT64 = 7;  // ONNXTensorElementDataType

enum Input { Y, X, SLOTS, ADAPTERS, NUM_INPUTS };
const char* const names[NUM_INPUTS] = {"y", "x", "slots", "adapters"};

struct Kernel {
  int64_t offset;
};

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->offset = attribute(info, "offset", -1);
  *out = kernel;
  return nullptr;
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  Tensor in[NUM_INPUTS];
  for (size_t i = 0; i < NUM_INPUTS; i++) {
    const OrtValue* value = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_input(context, i, &value));
    QWONNX_RETURN_IF_ERROR(read_tensor(names[i], value, i == SLOTS ? INT64 : FLOAT, in[i]));
  }
  const Tensor &y = in[Y], &x = in[X], &slots = in[SLOTS], &adapters = in[ADAPTERS];
  if (y.rank != 3 || x.rank != 3 || y.dims[0] != x.dims[0] || y.dims[1] != x.dims[1])
    return refuse("y and x are not of the same tokens");
  if (slots.rank != 1 || slots.dims[0] != y.dims[0]) return refuse("there is not one slot for each row");
  if (adapters.rank != 3) return refuse("adapters have %zu dimensions", adapters.rank);
  const int64_t offset = static_cast<Kernel*>(data)->offset, inputs = x.dims[2], outputs = y.dims[2];
  const int64_t num_slots = adapters.dims[0], width = adapters.dims[1], rank = adapters.dims[2];
  if (offset < 0 || offset > width || inputs > width - offset || outputs > width - offset - inputs)
    return refuse("adapters are %lld wide, and %lld and %lld numbers are read at %lld", static_cast<long long>(width),
                  static_cast<long long>(inputs), static_cast<long long>(outputs), static_cast<long long>(offset));
  if (rank > static_cast<int64_t>(MAX_ADAPTER_RANK))
    return refuse("adapters of rank %lld: at most %zu", static_cast<long long>(rank), MAX_ADAPTER_RANK);
  const int64_t* slot = static_cast<const int64_t*>(slots.data);
  for (int64_t row = 0; row < slots.dims[0]; row++)
    if (slot[row] < 0 || slot[row] >= (num_slots ? num_slots : 1))
      return refuse("slot %lld of %lld", static_cast<long long>(slot[row]), static_cast<long long>(num_slots));
  OrtValue* output = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_output(context, 0, y.dims, 3, &output));
  void* result = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(output, &result));
  const AddAdapters step = {static_cast<const float*>(y.data),
                            static_cast<const float*>(x.data),
                            static_cast<float*>(result),
                            slot,
                            static_cast<const float*>(adapters.data),
                            static_cast<size_t>(y.dims[0]),
                            static_cast<size_t>(y.dims[1]),
                            static_cast<size_t>(inputs),
                            static_cast<size_t>(outputs),
                            static_cast<size_t>(num_slots ? num_slots : 1),
                            static_cast<size_t>(width),
                            static_cast<size_t>(rank),
                            static_cast<size_t>(offset)};
  return add_adapters(step, {context});
}

NamedOp operator_;

}  // namespace

OrtStatus* add_add_adapters_operator(OrtCustomOpDomain* domain) {
  if (!operator_.version) {
    operator_.get_input_type = [](const OrtCustomOp*, size_t index) { return index == SLOTS ? INT64 : FLOAT; };
    operator_.get_input_count = [](const OrtCustomOp*) { return static_cast<size_t>(NUM_INPUTS); };
    operator_.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
    operator_.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(1); };
    finish(operator_, "AddAdapters", create, compute);
  }
  return api.custom_op_domain_add(domain, &operator_);
}

}  // namespace qwonnx
