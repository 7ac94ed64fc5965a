// What the adapters of rows add to a projection: every row has a slot, and slot 0 adds nothing.
#pragma once

#include "operators.h"

namespace qwonnx {

struct AddAdapters {
  const float* base;  // [num_rows, num_tokens, outputs]
  const float* x;     // [num_rows, num_tokens, inputs]
  float* y;           // as base
  const int64_t* slots;   // [num_rows], each below num_slots
  const float* adapters;  // [num_slots, width, rank]; behind `offset` rows, [inputs, rank] and then [rank, outputs]
  size_t num_rows, num_tokens, inputs, outputs;
  size_t num_slots, width, rank, offset;
};
OrtStatus* add_adapters(const AddAdapters& step, const Parallel& parallel);

OrtStatus* add_add_adapters_operator(OrtCustomOpDomain* domain);

}  // namespace qwonnx
