#include "custom_op.h"

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

}  // namespace qwonnx
