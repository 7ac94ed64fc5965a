// A linear layer, perhaps with a norm before it: activations are prepared once, then the output is cut into tasks.
#include "layer_kernels.h"
#include "operators.h"
#include "product.h"
#include "rows.h"

namespace qwonnx {
namespace {

struct Call {
  const InstructionSet& set;
  const float* x;
  size_t columns;
  const Rows& rows;
  const Norm& norm;
  float* normed;  // as x; null without a norm
};

void set_row(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  const float* x = call.x + t * call.columns;
  if (call.normed) {
    float* normed = call.normed + t * call.columns;
    layer_kernels().add_norm(x, nullptr, call.norm.weight, call.norm.epsilon, call.columns, nullptr, normed);
    x = normed;
  }
  call.rows.set(t, x, call.set);
}

void run_task(void* data, size_t index) { static_cast<Product*>(data)->task(index); }

}  // namespace

OrtStatus* linear(const Blocks& weights, const float* x, const Norm& norm, size_t num_tokens, bool int8, float* y,
                  const Parallel& parallel) {
  if (num_tokens == 0) return nullptr;
  const InstructionSet& set = instructions();
  Rows rows(weights, num_tokens, int8);
  Scratch scratch;
  rows.reserve(scratch);
  if (norm.weight) scratch.reserve(num_tokens, weights.columns * sizeof(float));
  if (!scratch.allocate()) return refuse("there is no memory for a linear layer of %zu tokens", num_tokens);
  rows.take(scratch);
  Call call = {set, x, weights.columns, rows, norm, norm.weight ? scratch.take<float>(num_tokens * weights.columns) : nullptr};
  QWONNX_RETURN_IF_ERROR(parallel.run_if_many(set_row, num_tokens, int8 || norm.weight ? 8 : SIZE_MAX, &call));
  Product product(weights, rows.activations(), num_tokens, int8 ? set.multiply_int8 : set.multiply_float, y);
  return parallel.run(run_task, product.num_tasks(), &product);
}

}  // namespace qwonnx
