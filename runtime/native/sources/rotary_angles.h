// Cosines and sines of rotary embedding for the positions of a step.
#pragma once

#include "operators.h"

namespace qwonnx {

// With three positions a token, and a row of factors for each: angle = sum over axes of position * frequency * factor, in
// float32, as a graph of standard operators computes it. Angles of 2 ** 31 and more have no cosine here, but NaN.
struct RotaryAngles {
  size_t num_tokens, half;
  const int64_t* positions;  // [3, num_tokens]
  const float* frequencies;  // [half]
  const float* axes;         // [3, half]
  float factor;              // of both outputs
  float* cos;                // [num_tokens, half]
  float* sin;
};
OrtStatus* rotary_angles(const RotaryAngles& step, const Parallel& parallel);

OrtStatus* add_rotary_angles_operator(OrtCustomOpDomain* domain);

}  // namespace qwonnx
