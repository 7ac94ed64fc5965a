// Operators that are the second half of a layer with experts.
#pragma once

#include "api.h"

namespace qwonnx {

OrtStatus* add_mixture_operators(OrtCustomOpDomain* domain);

}  // namespace qwonnx
