#include "custom_op.h"

#include "tensors.h"

#include <stdlib.h>

namespace qwonnx {
namespace {

int one(const OrtCustomOp*) { return 1; }
int zero_for_index(const OrtCustomOp*, size_t) { return 0; }  // required; default memory

}  // namespace

void finish(NamedOp& op, const char* name, decltype(OrtCustomOp::create_kernel_v2) create,
            decltype(OrtCustomOp::compute_v2) compute) {
  op.name = name;
  op.get_name = [](const OrtCustomOp* self) { return static_cast<const NamedOp*>(self)->name; };
  op.get_execution_provider = [](const OrtCustomOp*) { return static_cast<const char*>(nullptr); };
  op.destroy = free;
  if (!op.get_input_characteristic) op.get_input_characteristic = zero_for_index;
  op.get_output_characteristic = op.get_input_memory_type = zero_for_index;
  op.get_variadic_input_min_arity = op.get_variadic_input_homogeneity = one;
  op.get_variadic_output_min_arity = op.get_variadic_output_homogeneity = one;
  op.create_kernel_v2 = create;
  op.compute_v2 = compute;
  op.version = 17;
}

bool constant_inputs(const OrtKernelInfo* info, size_t first, size_t count, const OrtValue** values) {
  for (size_t i = first; i < count; i++) {
    int is_constant = 0;
    if (OrtStatus* status = api.get_constant_input(info, i, &is_constant, &values[i])) {
      api.release_status(status);
      return false;
    }
    if (!is_constant || !values[i]) return false;
  }
  return true;
}

OrtStatus* get_inputs(OrtKernelContext* context, size_t first, size_t count, const void* const* checked,
                      const OrtValue** values, bool& same) {
  for (size_t i = 0; i < count; i++) {
    QWONNX_RETURN_IF_ERROR(api.get_input(context, i, &values[i]));
    if (!values[i]) return refuse("input %zu is missing", i);
    if (i < first || !same) continue;
    void* at = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(const_cast<OrtValue*>(values[i]), &at));
    same = at == checked[i];
  }
  return nullptr;
}

}  // namespace qwonnx
