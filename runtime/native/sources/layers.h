// The operators of linear attention, and what attention takes, as functions of checked sizes. Every tensor is float32 and dense. A
// past state may be the same memory as its present state, and must not overlap it in another way.
#pragma once

#include "operators.h"

namespace qwonnx {

constexpr size_t MAX_KEY_DIM = 1024;  // a block of a head's state is on the stack of a thread
constexpr size_t MAX_TAPS = 16;

struct DeltaRule {
  size_t batch, num_tokens, key_heads, value_heads, key_dim, value_dim;  // key_heads divides value_heads
  float epsilon;
  const float* qkv;          // [batch, num_tokens, 2 * key_heads * key_dim + value_heads * value_dim]
  const float* b;            // [batch, num_tokens, value_heads], with gate_stride floats between tokens
  const float* a;            // as b
  size_t gate_stride;
  const float* decay_scale;  // [value_heads]
  const float* dt_bias;      // [value_heads]
  const float* past;         // [batch, value_heads, key_dim, value_dim]
  float* present;
  float* y;  // [batch, num_tokens, value_heads * value_dim]

  size_t key_width() const { return key_heads * key_dim; }
  size_t width() const { return 2 * key_width() + value_heads * value_dim; }
};
OrtStatus* delta_rule(const DeltaRule& layer, const Parallel& parallel);
// One head of one row, for num_tokens 1 and value_dim of at most MAX_ONCE; heads count on from row to row.
void delta_rule_head(const DeltaRule& layer, size_t head_of_batch);

struct CausalConv {
  size_t batch, num_tokens, channels, num_taps;
  const float* x;       // [batch, num_tokens, channels]
  const float* weight;  // [channels, num_taps]
  const float* past;    // [batch, channels, num_taps - 1]
  float* present;
  float* y;  // as x
};
OrtStatus* causal_conv(const CausalConv& layer, const Parallel& parallel);
// `count` channels of one row, for num_tokens 1.
void causal_conv_channels(const CausalConv& layer, size_t row, size_t first, size_t count);

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
void gated_norm_groups(const GatedNorm& layer, size_t first, size_t count);

// The first half of a linear-attention layer up to its output projection: the RMS norm of h, its projections, the
// convolution of qkv, the delta rule and the gated norm.
struct DeltaNet {
  Blocks qkv, z;             // as of `rule` and `out_norm`, from hidden columns
  FloatMatrix gates;         // [2 * value_heads, hidden]: of b, then of a
  const float* norm;         // [hidden]
  float norm_epsilon;
  const float* h;            // [batch, num_tokens, hidden]
  CausalConv conv;           // without x and y
  DeltaRule rule;            // without qkv, b, a and y
  const float* out_norm;     // [value_dim]
  float out_norm_epsilon;
  float* y;                  // [batch, num_tokens, value_heads * value_dim]
};
OrtStatus* delta_net(const DeltaNet& layer, bool int8, const Parallel& parallel);

// What attention takes, from the input of its layer: the RMS norm of h, its projections, and for each head of query and key
// a norm and a rotation. Tokens are those of all rows.
struct AttentionInputs {
  size_t num_tokens, num_heads, num_kv_heads, head_dim;
  size_t half;          // of the rotated values of a head
  Blocks q;             // [num_heads * 2 * head_dim, hidden]: the query of a head, then its gate
  Blocks k, v;          // [num_kv_heads * head_dim, hidden]
  const float* norm;    // [hidden]
  const float* q_norm;  // [head_dim]
  const float* k_norm;
  float norm_epsilon, q_epsilon, k_epsilon;
  const float* h;    // [num_tokens, hidden]
  const float* cos;  // [num_tokens, half]
  const float* sin;
  float* query;  // [num_tokens, num_heads * head_dim]
  float* key;    // [num_tokens, num_kv_heads * head_dim]
  float* value;
  float* gate;  // as query
};
OrtStatus* attention_inputs(const AttentionInputs& layer, bool int8, const Parallel& parallel);

}  // namespace qwonnx
