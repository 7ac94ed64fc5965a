// The operators of a linear-attention layer as functions of checked sizes. Every tensor is float32 and dense. A past state
// may be the same memory as its present state, and must not overlap it in another way.
#pragma once

#include "operators.h"

namespace qwonnx {

constexpr size_t MAX_KEY_DIM = 1024;  // a block of a head's state is on the stack of a thread
constexpr size_t MAX_TAPS = 16;

struct DeltaRule {
  size_t batch, num_tokens, key_heads, value_heads, key_dim, value_dim;  // key_heads divides value_heads
  float epsilon;
  const float* qkv;          // [batch, num_tokens, 2 * key_heads * key_dim + value_heads * value_dim]
  const float* b;            // [batch, num_tokens, value_heads]
  const float* a;            // as b
  const float* decay_scale;  // [value_heads]
  const float* dt_bias;      // [value_heads]
  const float* past;         // [batch, value_heads, key_dim, value_dim]
  float* present;
  float* y;  // [batch, num_tokens, value_heads * value_dim]

  size_t key_width() const { return key_heads * key_dim; }
  size_t width() const { return 2 * key_width() + value_heads * value_dim; }
};
OrtStatus* delta_rule(const DeltaRule& layer, const Parallel& parallel);

struct CausalConv {
  size_t batch, num_tokens, channels, num_taps;
  const float* x;       // [batch, num_tokens, channels]
  const float* weight;  // [channels, num_taps]
  const float* past;    // [batch, channels, num_taps - 1]
  float* present;
  float* y;  // as x
};
OrtStatus* causal_conv(const CausalConv& layer, const Parallel& parallel);

// y = x / sqrt(mean square + epsilon) * weight * silu(gate), by groups of `width`.
struct GatedNorm {
  size_t groups, width;
  float epsilon;
  const float* x;  // [groups, width]
  const float* gate;
  const float* weight;  // [width]
  float* y;
};
OrtStatus* gated_norm(const GatedNorm& layer, const Parallel& parallel);

}  // namespace qwonnx
