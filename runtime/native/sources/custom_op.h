// What all operators have in common for ONNX Runtime.
#pragma once

#include "api.h"

namespace qwonnx {

struct NamedOp : OrtCustomOp {
  const char* name;
};

// The last step of making an operator, which was zeroed and has got its own members: sets the others. Its inputs are
// required, unless get_input_characteristic was set. The version comes at the very end, so it marks a finished operator.
void finish(NamedOp& op, const char* name, decltype(OrtCustomOp::create_kernel_v2) create,
            decltype(OrtCustomOp::compute_v2) compute);

// Weights that are constant are checked once, when a node is created. Both are about the inputs `first` to `count` - 1.
//
// Whether all of them are constant; then `values` has them.
bool constant_inputs(const OrtKernelInfo* info, size_t first, size_t count, const OrtValue** values);
// All inputs of a call, none of which may be missing. `same` stays true if the ones from `first` on lie at the addresses
// `checked`, where they were at creation.
OrtStatus* get_inputs(OrtKernelContext* context, size_t first, size_t count, const void* const* checked,
                      const OrtValue** values, bool& same);

}  // namespace qwonnx
