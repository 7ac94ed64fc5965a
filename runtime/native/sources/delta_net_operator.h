// Operators that are the first half of a linear-attention layer.
#pragma once

#include "api.h"

namespace qwonnx {

OrtStatus* add_delta_net_operators(OrtCustomOpDomain* domain);

}  // namespace qwonnx
