// Reading an operator's tensors: their shapes are checked before a pointer into them is used, so a graph that lies about
// its weights gets an error and no read out of bounds.
#pragma once

#include "api.h"
#include "blocks.h"

namespace qwonnx {

constexpr size_t MAX_RANK = 8;

struct Tensor {
  void* data;
  int64_t dims[MAX_RANK];
  size_t rank;
};

// An error status with a formatted message of at most 400 characters.
OrtStatus* refuse(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Fills `out`; an error names `name` if the element type is another one or the rank exceeds MAX_RANK.
OrtStatus* read_tensor(const char* name, const OrtValue* value, int element_type, Tensor& out);

// The same for a matrix whose element type is FLOAT or BFLOAT16, as `matrix` then says.
OrtStatus* read_floats(const char* name, const OrtValue* value, Tensor& out, FloatMatrix& matrix);

// A weight of one node: codes, scales and perhaps zero points, as they are in the graph's inputs from `first` on.
struct WeightTensors {
  Tensor codes, scales, zero_points;
  bool has_zero_points;
};

// Checks every size against every other and fills `out`. num_stacked 0: codes are [rows, columns * bits / 8] or
// [rows, blocks, block * bits / 8]; otherwise they are [num_stacked, rows, columns * bits / 8].
OrtStatus* read_blocks(const char* name, const WeightTensors& tensors, int64_t bits, int64_t num_stacked, Blocks& out);

// An optional attribute.
int64_t attribute(const OrtKernelInfo* info, const char* name, int64_t otherwise);
float float_attribute(const OrtKernelInfo* info, const char* name, float otherwise);

#define QWONNX_RETURN_IF_ERROR(expression)            \
  do {                                                \
    if (OrtStatus* status_ = (expression)) return status_; \
  } while (0)

}  // namespace qwonnx
