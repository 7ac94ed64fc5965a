// What attention takes, in two steps: norms and quantised rows by token; then stripes of all projections side by side, each
// written where its output has it. The task that finishes the last stripe of a head, for some tokens, norms and rotates the
// head there, while it is in the cache. So one token waits for all threads once.
#include "layer_kernels.h"
#include "layers.h"
#include "product.h"
#include "rows.h"

namespace qwonnx {
namespace {

constexpr size_t TILE = Product::TILE;

// One head's rows of one of the projections.
struct Part {
  const Blocks& weights;
  const Rows& rows;
  size_t first;            // row of the weights
  float* y;                // [num_tokens, stride]
  size_t stride;
  size_t normed;           // which of the heads that are normed
  const float* norm;       // null: it is not normed
  float epsilon;
};

struct Call {
  const InstructionSet& set;
  const LayerKernels& kernels;
  const AttentionInputs& layer;
  Multiply multiply;
  size_t stripe, stripes;  // rows, and how many of them a part has
  const Rows* rows[3];     // of x, for q, k and v, which may be the same
  float* x;                // [num_tokens, hidden]
  uint32_t* left;          // [tiles, normed heads]: stripes that are not finished

  size_t hidden() const { return layer.q.columns; }
  size_t tiles() const { return (layer.num_tokens + TILE - 1) / TILE; }
  size_t num_parts() const { return 2 * (layer.num_heads + layer.num_kv_heads); }
  size_t num_normed() const { return layer.num_heads + layer.num_kv_heads; }

  Part part(size_t index) const {
    const size_t dim = layer.head_dim, width = layer.num_heads * dim, kv_width = layer.num_kv_heads * dim;
    if (index < 2 * layer.num_heads) {
      const size_t head = index / 2;
      if (index % 2) return {layer.q, *rows[0], index * dim, layer.gate + head * dim, width, 0, nullptr, 0};
      return {layer.q, *rows[0], index * dim, layer.query + head * dim, width, head, layer.q_norm, layer.q_epsilon};
    }
    const size_t head = (index - 2 * layer.num_heads) % layer.num_kv_heads, first = head * dim;
    if (index >= 2 * layer.num_heads + layer.num_kv_heads)
      return {layer.v, *rows[2], first, layer.value + first, kv_width, 0, nullptr, 0};
    return {layer.k, *rows[1], first, layer.key + first, kv_width, layer.num_heads + head, layer.k_norm, layer.k_epsilon};
  }
};

void norm_row(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  float* x = call.x + t * call.hidden();
  call.kernels.add_norm(call.layer.h + t * call.hidden(), nullptr, call.layer.norm, call.layer.norm_epsilon, call.hidden(), nullptr,
                        x);
  for (size_t i = 0; i < 3; i++)
    if ((i < 1 || call.rows[i] != call.rows[0]) && (i < 2 || call.rows[i] != call.rows[1])) call.rows[i]->set(t, x, call.set);
}

void project(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const AttentionInputs& layer = call.layer;
  const size_t start = index % call.stripes * call.stripe, tile = index / call.stripes / call.num_parts();
  const Part part = call.part(index / call.stripes % call.num_parts());
  const size_t end = layer.head_dim - start < call.stripe ? layer.head_dim : start + call.stripe;
  const size_t first_token = tile * TILE;
  const size_t count = layer.num_tokens - first_token < TILE ? layer.num_tokens - first_token : TILE;
  float* y = part.y + first_token * part.stride;
  call.multiply(part.weights, part.first + start, part.first + end, part.rows.activations() + first_token, count, y + start,
                part.stride, 0);
  if (!part.norm || __atomic_sub_fetch(call.left + tile * call.num_normed() + part.normed, 1, __ATOMIC_ACQ_REL)) return;
  for (size_t t = 0; t < count; t++, y += part.stride) {
    const size_t angle = (first_token + t) * layer.half;
    call.kernels.norm_rotate(y, part.norm, part.epsilon, layer.head_dim, layer.cos + angle, layer.sin + angle, layer.half, y);
  }
}

}  // namespace

OrtStatus* attention_inputs(const AttentionInputs& layer, bool int8, const Parallel& parallel) {
  const size_t num_tokens = layer.num_tokens;
  if (num_tokens == 0) return nullptr;
  const InstructionSet& set = instructions();
  const size_t stripe = stripe_rows(layer.q, layer.head_dim, num_tokens);
  Rows q_rows(layer.q, num_tokens, int8), k_rows(layer.k, num_tokens, int8), v_rows(layer.v, num_tokens, int8);
  Rows* const of_k = alike(layer.k, layer.q) ? &q_rows : &k_rows;
  Rows* const of_v = alike(layer.v, layer.q) ? &q_rows : alike(layer.v, layer.k) ? of_k : &v_rows;
  Call call = {set,
               layer_kernels(),
               layer,
               int8 ? set.multiply_int8 : set.multiply_float,
               stripe,
               (layer.head_dim + stripe - 1) / stripe,
               {&q_rows, of_k, of_v},
               nullptr,
               nullptr};
  Scratch scratch;
  q_rows.reserve(scratch);
  if (of_k == &k_rows) k_rows.reserve(scratch);
  if (of_v == &v_rows) v_rows.reserve(scratch);
  scratch.reserve(num_tokens, call.hidden() * sizeof(float));
  scratch.reserve(call.tiles(), call.num_normed() * sizeof(uint32_t));
  if (!scratch.allocate()) return refuse("there is no memory for the inputs of attention of %zu tokens", num_tokens);
  q_rows.take(scratch);
  if (of_k == &k_rows) k_rows.take(scratch);
  if (of_v == &v_rows) v_rows.take(scratch);
  call.x = scratch.take<float>(num_tokens * call.hidden());
  call.left = scratch.take<uint32_t>(call.tiles() * call.num_normed());
  for (size_t i = 0; i < call.tiles() * call.num_normed(); i++) call.left[i] = static_cast<uint32_t>(call.stripes);
  QWONNX_RETURN_IF_ERROR(parallel.run_if_many(norm_row, num_tokens, 8, &call));
  return parallel.run(project, call.tiles() * call.num_parts() * call.stripes, &call);
}

}  // namespace qwonnx
