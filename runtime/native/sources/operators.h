// The two families of operators, as functions of checked tensors. Threads come from `parallel`.
#pragma once

#include "blocks.h"
#include "tensors.h"

namespace qwonnx {

// Runs work(data, i) for i < count on the session's threads and returns when all are done.
struct Parallel {
  const OrtKernelContext* context;

  OrtStatus* run(void (*work)(void*, size_t), size_t count, void* data) const {
    if (count > 1) return api.parallel_for(context, work, count, count, data);
    if (count == 1) work(data, 0);
    return nullptr;
  }
};

// y [num_tokens, weights.rows] = x [num_tokens, weights.columns] times the transpose of the weights.
OrtStatus* linear(const Blocks& weights, const float* x, size_t num_tokens, bool int8, float* y, const Parallel& parallel);

// What com.microsoft.QMoE computes for SwiGLU with alternating gate and up rows: each token goes to the top_k experts of
// its logits [num_tokens, num_experts], whose softmax over the chosen ones weights them.
struct Experts {
  Blocks gate_up;  // of the first expert: [2 * intermediate, hidden]
  Blocks down;     // [hidden, intermediate]
  size_t num_experts, top_k;
};
OrtStatus* experts(const Experts& layer, const float* x, const float* logits, size_t num_tokens, bool int8, float* y,
                   const Parallel& parallel);

}  // namespace qwonnx
