// GatedAttention and its forms for int8 and int4 caches, as a function of checked tensors and as operators.
#pragma once

#include "attention.h"
#include "operators.h"

namespace qwonnx {

// One step of attention: B rows of T tokens each.
struct Attention {
  CacheType type;
  size_t batch, num_tokens, num_heads, num_kv_heads, head_dim, capacity;
  const float *query, *gate;   // [B, T, num_heads * head_dim]
  const float *key, *value;    // [B, T, num_kv_heads * head_dim]
  const int64_t* past_lengths;  // [B], each at least 0 and at most capacity - T
  const float *key_scales, *value_scales;  // [num_kv_heads * head_dim]; null for float32
  const void *past_key, *past_value;  // [B, num_kv_heads, capacity, position_bytes]
  void *present_key, *present_value;  // the same buffers, or others that they do not overlap
  float* output;                      // [B, T, num_heads * head_dim]

  size_t cache_bytes() const { return batch * num_kv_heads * capacity * position_bytes(type, head_dim); }
};

OrtStatus* attention(const Attention& step, const Parallel& parallel);

// The chosen instruction set computes what the scalar form does.
bool attention_agrees();

// Adds the three operators to a domain.
OrtStatus* add_attention_operators(OrtCustomOpDomain* domain);

}  // namespace qwonnx
