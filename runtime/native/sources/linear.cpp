// A linear layer: activations are prepared once, then the output is cut into tasks.
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
};

void set_row(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  call.rows.set(t, call.x + t * call.columns, call.set);
}

void run_task(void* data, size_t index) { static_cast<Product*>(data)->task(index); }

}  // namespace

OrtStatus* linear(const Blocks& weights, const float* x, size_t num_tokens, bool int8, float* y, const Parallel& parallel) {
  if (num_tokens == 0) return nullptr;
  const InstructionSet& set = instructions();
  Rows rows(weights, num_tokens, int8);
  Scratch scratch;
  rows.reserve(scratch);
  if (!scratch.allocate()) return refuse("there is no memory for a linear layer of %zu tokens", num_tokens);
  rows.take(scratch);
  Call call = {set, x, weights.columns, rows};
  QWONNX_RETURN_IF_ERROR(parallel.run_if_many(set_row, num_tokens, int8 ? 8 : SIZE_MAX, &call));
  Product product(weights, rows.activations(), num_tokens, int8 ? set.multiply_int8 : set.multiply_float, y);
  return parallel.run(run_task, product.num_tasks(), &product);
}

}  // namespace qwonnx
