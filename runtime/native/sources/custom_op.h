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

}  // namespace qwonnx
