// The second half of a layer, in four steps: norms and quantised rows by token; the router's scores and the shared expert's
// gate and up rows, side by side; then the routed experts, whose last step also multiplies the shared expert's down rows
// (experts.cpp). One token waits for all threads three times in all.
#include "arithmetic.h"
#include "layer_kernels.h"
#include "operators.h"
#include "rows.h"

namespace qwonnx {
namespace {

constexpr size_t ROUTER_ROWS = 16;    // of a task
constexpr size_t SHARED_COLUMNS = 32;  // of the shared expert's hidden values, of a task
constexpr size_t TILE = 64;           // tokens

struct Call {
  const InstructionSet& set;
  const LayerKernels& kernels;
  const Mixture& layer;
  const float* residual;
  const float* mixed;
  float* y;
  size_t num_tokens;
  Multiply multiply;
  Rows& rows;         // of x, for the shared expert
  Rows& hidden_rows;  // of hidden
  float* x = nullptr;        // [num_tokens, hidden]
  float* scores = nullptr;   // [num_tokens, num_experts + 1]
  float* hidden = nullptr;   // [num_tokens, shared intermediate]
  float* opening = nullptr;  // [num_tokens]

  size_t width() const { return layer.shared_down.rows; }
  size_t intermediate() const { return layer.shared_down.columns; }
  size_t num_scores() const { return layer.routed.num_experts + 1; }
  size_t router_tasks() const { return (num_scores() + ROUTER_ROWS - 1) / ROUTER_ROWS; }
  size_t stripes() const { return (intermediate() + SHARED_COLUMNS - 1) / SHARED_COLUMNS; }
  size_t tiles() const { return (num_tokens + TILE - 1) / TILE; }
};

void norm_token(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  const size_t at = t * call.width();
  call.kernels.add_norm(call.residual + at, call.mixed + at, call.layer.norm, call.layer.epsilon, call.width(), call.y + at,
                        call.x + at);
  call.rows.set(t, call.x + at, call.set);
}

void score(const Call& call, size_t first) {
  const size_t left = call.num_scores() - first, rows = left < ROUTER_ROWS ? left : ROUTER_ROWS;
  call.kernels.products(call.layer.gates, first, rows, call.width(), call.x, call.num_tokens, call.scores + first,
                        call.num_scores());
}

void shared_stripe(const Call& call, size_t stripe, size_t token) {
  const size_t first = stripe * SHARED_COLUMNS, left = call.intermediate() - first;
  const size_t columns = left < SHARED_COLUMNS ? left : SHARED_COLUMNS;
  const size_t count = call.num_tokens - token < TILE ? call.num_tokens - token : TILE;
  alignas(64) float gate[TILE * SHARED_COLUMNS], up[TILE * SHARED_COLUMNS], ones[SHARED_COLUMNS];
  for (float& one : ones) one = 1;
  const Blocks& weights = call.layer.shared_gate_up;
  const Activations* x = call.rows.activations() + token;
  call.multiply(weights, first, first + columns, x, count, gate, SHARED_COLUMNS, 0);
  const size_t up_first = call.intermediate() + first;
  call.multiply(weights, up_first, up_first + columns, x, count, up, SHARED_COLUMNS, 0);
  for (size_t i = 0; i < count; i++)
    call.kernels.gate(up + i * SHARED_COLUMNS, 1, ones, gate + i * SHARED_COLUMNS, columns,
                      call.hidden + (token + i) * call.intermediate() + first);
}

void score_or_stripe(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const size_t router = call.router_tasks();
  if (index < router) return score(call, index * ROUTER_ROWS);
  shared_stripe(call, (index - router) % call.stripes(), (index - router) / call.stripes() * TILE);
}

void set_hidden(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  call.hidden_rows.set(t, call.hidden + t * call.intermediate(), call.set);
  call.opening[t] = 1 / (1 + exponential(-call.scores[t * call.num_scores() + call.layer.routed.num_experts]));
}

}  // namespace

OrtStatus* mixture(const Mixture& layer, const float* residual, const float* mixed, size_t num_tokens, bool int8, float* y,
                   const Parallel& parallel) {
  if (num_tokens == 0) return nullptr;
  const InstructionSet& set = instructions();
  Rows rows(layer.shared_gate_up, num_tokens, int8), hidden_rows(layer.shared_down, num_tokens, int8);
  Call call = {set,        layer_kernels(), layer, residual, mixed, y, num_tokens, int8 ? set.multiply_int8 : set.multiply_float,
               rows, hidden_rows};
  Scratch scratch;
  scratch.reserve(num_tokens, call.width() * sizeof(float));
  scratch.reserve(num_tokens, call.num_scores() * sizeof(float));
  scratch.reserve(num_tokens, call.intermediate() * sizeof(float));
  scratch.reserve(num_tokens, sizeof(float));
  rows.reserve(scratch);
  hidden_rows.reserve(scratch);
  if (!scratch.allocate()) return refuse("there is no memory for the experts of %zu tokens", num_tokens);
  call.x = scratch.take<float>(num_tokens * call.width());
  call.scores = scratch.take<float>(num_tokens * call.num_scores());
  call.hidden = scratch.take<float>(num_tokens * call.intermediate());
  call.opening = scratch.take<float>(num_tokens);
  rows.take(scratch);
  hidden_rows.take(scratch);
  QWONNX_RETURN_IF_ERROR(parallel.run_if_many(norm_token, num_tokens, 8, &call));
  QWONNX_RETURN_IF_ERROR(parallel.run(score_or_stripe, call.router_tasks() + call.stripes() * call.tiles(), &call));
  QWONNX_RETURN_IF_ERROR(parallel.run_if_many(set_hidden, num_tokens, 8, &call));
  const SharedDown shared = {layer.shared_down, hidden_rows.activations(), call.opening};
  return experts(layer.routed, call.x, call.scores, call.num_scores(), num_tokens, int8, y, parallel, &shared);
}

}  // namespace qwonnx
