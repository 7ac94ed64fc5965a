// Operators that compute what attention takes.
#pragma once

#include "api.h"

namespace qwonnx {

OrtStatus* add_attention_inputs_operators(OrtCustomOpDomain* domain);

}  // namespace qwonnx
