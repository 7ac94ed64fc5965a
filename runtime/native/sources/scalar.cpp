// The form for every processor, and what the other instruction sets are tested against at load.
#include "arithmetic.h"
#include "blocks.h"

namespace qwonnx {
namespace {

bool always() { return true; }

// Codes are int8 in the order of columns.
void quantize(const float* x, const Blocks& weights, void* codes, float* scales, float* sums) {
  int8_t* out = static_cast<int8_t*>(codes);
  for (size_t b = 0; b < weights.num_blocks(); b++) {
    const float* values = x + b * weights.block;
    float largest = 0, not_finite = 0;
    for (unsigned i = 0; i < weights.block; i++) {
      if (magnitude(values[i]) > largest) largest = magnitude(values[i]);
      not_finite += values[i] - values[i];  // 0, or NaN for an infinity or a NaN
    }
    const bool usable = largest > 1e-35f && not_finite == 0;  // below, 127 / largest would overflow
    const float scale = largest / 127 + not_finite, inverse = usable ? 127 / largest : 0;
    int sum = 0;
    for (unsigned i = 0; i < weights.block; i++) {
      const int code = usable ? static_cast<int>(nearest(values[i] * inverse)) : 0;
      out[b * weights.block + i] = static_cast<int8_t>(code);
      sum += code;
    }
    scales[b] = scale;
    sums[b] = scale * static_cast<float>(sum);
  }
}

unsigned code_at(const uint8_t* row, size_t column, unsigned bits) {
  const size_t bit = column * bits;
  return (row[bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
}

void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t) {
  for (size_t r = first; r < last; r++) {
    const uint8_t* row = weights.codes + r * weights.row_bytes();
    for (size_t t = 0; t < num_tokens; t++) {
      const int8_t* codes = static_cast<const int8_t*>(x[t].codes);
      float total = 0;
      for (size_t b = 0; b < weights.num_blocks(); b++) {
        int dot = 0;
        for (size_t k = b * weights.block; k < (b + 1) * weights.block; k++)
          dot += static_cast<int>(code_at(row, k, weights.bits)) * codes[k];
        const float scale = weights.scales[r * weights.num_blocks() + b];
        total += scale * (x[t].scales[b] * static_cast<float>(dot) - zero_point(weights, r, b) * x[t].sums[b]);
      }
      y[t * stride + r - first] = total;
    }
  }
}

}  // namespace

namespace scalar {

void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t) {
  for (size_t r = first; r < last; r++) {
    const uint8_t* row = weights.codes + r * weights.row_bytes();
    for (size_t t = 0; t < num_tokens; t++) {
      const float* values = static_cast<const float*>(x[t].codes);
      float total = 0;
      for (size_t b = 0; b < weights.num_blocks(); b++) {
        const float zero = zero_point(weights, r, b);
        float dot = 0;
        for (size_t k = b * weights.block; k < (b + 1) * weights.block; k++)
          dot += (static_cast<float>(code_at(row, k, weights.bits)) - zero) * values[k];
        total += weights.scales[r * weights.num_blocks() + b] * dot;
      }
      y[t * stride + r - first] = total;
    }
  }
}

void swiglu(const float* gate_up, size_t count, float* out) {
  for (size_t i = 0; i < count; i++)
    out[i] = gate_up[2 * i] / (1 + exponential(-gate_up[2 * i])) * gate_up[2 * i + 1];
}

void add_scaled(float* y, const float* x, float weight, size_t count) {
  for (size_t i = 0; i < count; i++) y[i] += weight * x[i];
}

}  // namespace scalar

const InstructionSet scalar_set = {"scalar",      always,         quantize, multiply_int8, scalar::multiply_float,
                                   scalar::swiglu, scalar::add_scaled, scalar_attention};

}  // namespace qwonnx
