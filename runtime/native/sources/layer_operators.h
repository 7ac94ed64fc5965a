// The operators of a linear-attention layer as ONNX Runtime sees them.
#pragma once

#include "api.h"

namespace qwonnx {

// Adds GatedDeltaRule, CausalConv and GatedRMSNorm.
OrtStatus* add_layer_operators(OrtCustomOpDomain* domain);

// The chosen instruction set computes what the plain form does.
bool layer_kernels_agree();

}  // namespace qwonnx
