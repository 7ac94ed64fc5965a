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

  // The same on this thread if there are fewer than `many`: threads take longer to start than small work.
  OrtStatus* run_if_many(void (*work)(void*, size_t), size_t count, size_t many, void* data) const {
    if (count >= many) return run(work, count, data);
    for (size_t i = 0; i < count; i++) work(data, i);
    return nullptr;
  }
};

// An RMS norm before a layer; without a weight there is none.
struct Norm {
  const float* weight;
  float epsilon;
};
// y [num_tokens, weights.rows] = x [num_tokens, weights.columns], or its norm, times the transpose of the weights.
OrtStatus* linear(const Blocks& weights, const float* x, const Norm& norm, size_t num_tokens, bool int8, float* y,
                  const Parallel& parallel);

// What com.microsoft.QMoE computes for SwiGLU with alternating gate and up rows: each token goes to the top_k experts of
// its logits [num_tokens, num_experts], whose softmax over the chosen ones weights them.
struct ExpertLayer;  // expert_memory.h
struct Experts {
  Blocks gate_up;  // of the first expert: [2 * intermediate, hidden]
  Blocks down;     // [hidden, intermediate]
  size_t num_experts, top_k;
  ExpertLayer* memory;  // which of them lie in memory; null: nobody keeps account
};

// One more expert, which takes every token: what its down rows have to be multiplied with, and the weight of that.
struct SharedDown {
  const Blocks& down;
  const Activations* hidden;  // [num_tokens]
  const float* weights;       // [num_tokens]
};
// logits has `stride` floats between tokens. With a shared expert, its share and those of the others are added to y.
OrtStatus* experts(const Experts& layer, const float* x, const float* logits, size_t stride, size_t num_tokens, bool int8,
                   float* y, const Parallel& parallel, const SharedDown* shared = nullptr);

// The second half of a layer: y = s + routed experts of x + shared expert of x, with s = residual + mixed and x its RMS norm.
struct Mixture {
  Experts routed;
  Blocks shared_gate_up;  // [2 * shared intermediate, hidden]: gate rows, then up rows
  Blocks shared_down;     // [hidden, shared intermediate]
  FloatMatrix gates;      // [num_experts + 1, hidden]: the router, then the shared expert's gate
  const float* norm;      // [hidden]
  float epsilon;
};
OrtStatus* mixture(const Mixture& layer, const float* residual, const float* mixed, size_t num_tokens, bool int8, float* y,
                   const Parallel& parallel);

}  // namespace qwonnx
