// Routed experts, in five steps: route and quantise every token; sort the pairs (token, chosen expert) by expert; gate
// and up rows with SwiGLU, one task for a stripe of rows of an expert; quantise; down rows, one task for a stripe of
// output columns over all experts in their order. No two tasks write one place, and sums have one order.
#include "arithmetic.h"
#include "expert_memory.h"
#include "operators.h"
#include "scratch.h"

#include <string.h>

namespace qwonnx {
namespace {

constexpr size_t STRIPE = 64;  // rows
constexpr size_t TILE = 64;    // tokens

struct Call {
  const InstructionSet& set;
  const Experts& layer;
  const float* x;
  const float* logits;
  size_t stride;  // of logits
  float* y;
  const SharedDown* shared;
  size_t num_tokens, num_pairs;
  bool int8;
  Multiply multiply;
  // By token
  Activations* tokens = nullptr;
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  float* sums = nullptr;
  // By token and choice
  uint32_t* chosen = nullptr;
  float* chosen_weights = nullptr;
  // By expert: where its pairs begin; the experts that have pairs, in order
  size_t* first_pair = nullptr;
  size_t* used = nullptr;
  size_t num_used = 0;
  // By pair, sorted by expert
  size_t* token_of = nullptr;
  float* weight_of = nullptr;
  Activations* gathered = nullptr;
  float* hidden = nullptr;  // [num_pairs, intermediate]
  uint8_t* hidden_codes = nullptr;
  float* hidden_scales = nullptr;
  float* hidden_sums = nullptr;
  Activations* hidden_activations = nullptr;
  size_t up_stripes = 0;

  size_t intermediate() const { return layer.down.columns; }
};

// The top_k largest logits, largest first, of equal ones the first. NaN never wins, and any k indices are valid.
void choose(const float* logits, size_t num_experts, size_t top_k, uint32_t* chosen, float* weights) {
  size_t count = 0;
  for (size_t e = 0; e < num_experts; e++) {
    const float value = logits[e];
    if (count == top_k && !(value > weights[count - 1])) continue;
    size_t at = count < top_k ? count++ : count - 1;
    for (; at > 0 && value > weights[at - 1]; at--) {
      weights[at] = weights[at - 1];
      chosen[at] = chosen[at - 1];
    }
    weights[at] = value;
    chosen[at] = static_cast<uint32_t>(e);
  }
  const float largest = weights[0];
  float total = 0;
  for (size_t i = 0; i < top_k; i++) total += weights[i] = exponential(weights[i] - largest);
  for (size_t i = 0; i < top_k; i++) weights[i] /= total;
}

void route_token(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  const size_t k = call.layer.top_k;
  choose(call.logits + t * call.stride, call.layer.num_experts, k, call.chosen + t * k,
         call.chosen_weights + t * k);
  const Blocks& weights = call.layer.gate_up;
  const float* x = call.x + t * weights.columns;
  if (!call.int8) {
    call.tokens[t] = {x, nullptr, nullptr};
    return;
  }
  const size_t blocks = weights.num_blocks(), bytes = activation_bytes(weights.columns);
  call.set.quantize(x, weights, call.codes + t * bytes, call.scales + t * blocks, call.sums + t * blocks);
  call.tokens[t] = {call.codes + t * bytes, call.scales + t * blocks, call.sums + t * blocks};
}

void sort_pairs(Call& call) {
  const size_t num_experts = call.layer.num_experts, k = call.layer.top_k;
  memset(call.first_pair, 0, (num_experts + 2) * sizeof(size_t));
  for (size_t j = 0; j < call.num_pairs; j++) call.first_pair[call.chosen[j] + 2]++;
  for (size_t e = 0; e < num_experts; e++) {
    if (call.first_pair[e + 2]) call.used[call.num_used++] = e;
    call.first_pair[e + 2] += call.first_pair[e + 1];
  }
  // first_pair[e + 1] is now where expert e begins, and moves to its end while its pairs are placed.
  for (size_t j = 0; j < call.num_pairs; j++) {
    const size_t at = call.first_pair[call.chosen[j] + 1]++;
    call.token_of[at] = j / k;
    call.weight_of[at] = call.chosen_weights[j];
    call.gathered[at] = call.tokens[j / k];
  }
}

void gate_up_stripe(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const size_t expert = call.used[index / call.up_stripes];
  const Blocks weights = call.layer.gate_up.in_stack(expert);
  const size_t first = index % call.up_stripes * STRIPE;
  const size_t last = weights.rows - first < STRIPE ? weights.rows : first + STRIPE;
  alignas(64) float products[TILE * STRIPE];
  const size_t end = call.first_pair[expert + 1];
  for (size_t pair = call.first_pair[expert]; pair < end; pair += TILE) {
    const size_t count = end - pair < TILE ? end - pair : TILE;
    call.multiply(weights, first, last, call.gathered + pair, count, products, STRIPE, 0);
    for (size_t i = 0; i < count; i++)
      call.set.swiglu(products + i * STRIPE, (last - first) / 2, call.hidden + (pair + i) * call.intermediate() + first / 2);
  }
}

void quantize_hidden(void* data, size_t pair) {
  const Call& call = *static_cast<Call*>(data);
  const Blocks& weights = call.layer.down;
  const float* x = call.hidden + pair * weights.columns;
  const size_t blocks = weights.num_blocks(), bytes = activation_bytes(weights.columns);
  call.set.quantize(x, weights, call.hidden_codes + pair * bytes, call.hidden_scales + pair * blocks,
                    call.hidden_sums + pair * blocks);
  call.hidden_activations[pair] = {call.hidden_codes + pair * bytes, call.hidden_scales + pair * blocks,
                                   call.hidden_sums + pair * blocks};
}

void down_stripe(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const size_t width = call.layer.down.rows, first = index * STRIPE;
  const size_t last = width - first < STRIPE ? width : first + STRIPE;
  if (!call.shared)
    for (size_t t = 0; t < call.num_tokens; t++) memset(call.y + t * width + first, 0, (last - first) * sizeof(float));
  alignas(64) float products[TILE * STRIPE];
  for (size_t u = 0; u < call.num_used; u++) {
    const size_t expert = call.used[u], end = call.first_pair[expert + 1];
    const Blocks weights = call.layer.down.in_stack(expert);
    // The stripe of one expert is short: what follows is the same stripe of the next one.
    const size_t ahead = u + 1 < call.num_used ? (call.used[u + 1] - expert) * width : 0;
    for (size_t pair = call.first_pair[expert]; pair < end; pair += TILE) {
      const size_t count = end - pair < TILE ? end - pair : TILE;
      call.multiply(weights, first, last, call.hidden_activations + pair, count, products, STRIPE,
                    static_cast<ptrdiff_t>(ahead));
      for (size_t i = 0; i < count; i++)
        call.set.add_scaled(call.y + call.token_of[pair + i] * width + first, products + i * STRIPE,
                            call.weight_of[pair + i], last - first);
    }
  }
  if (!call.shared) return;
  for (size_t t = 0; t < call.num_tokens; t += TILE) {
    const size_t count = call.num_tokens - t < TILE ? call.num_tokens - t : TILE;
    call.multiply(call.shared->down, first, last, call.shared->hidden + t, count, products, STRIPE, 0);
    for (size_t i = 0; i < count; i++)
      call.set.add_scaled(call.y + (t + i) * width + first, products + i * STRIPE, call.shared->weights[t + i], last - first);
  }
}

OrtStatus* for_each(void (*work)(void*, size_t), size_t count, Call& call, const Parallel& parallel) {
  if (count >= 16) return parallel.run(work, count, &call);
  for (size_t i = 0; i < count; i++) work(&call, i);
  return nullptr;
}

}  // namespace

OrtStatus* experts(const Experts& layer, const float* x, const float* logits, size_t stride, size_t num_tokens, bool int8,
                   float* y, const Parallel& parallel, const SharedDown* shared) {
  if (num_tokens == 0) return nullptr;
  size_t pairs = 0;
  if (__builtin_mul_overflow(num_tokens, layer.top_k, &pairs)) return refuse("too many tokens");
  const InstructionSet& set = instructions();
  const size_t up_bytes = int8 ? activation_bytes(layer.gate_up.columns) : 0;
  const size_t up_blocks = int8 ? layer.gate_up.num_blocks() : 0;
  const size_t down_bytes = int8 ? activation_bytes(layer.down.columns) : 0;
  const size_t down_blocks = int8 ? layer.down.num_blocks() : 0;
  Scratch scratch;
  scratch.reserve(num_tokens, sizeof(Activations));
  scratch.reserve(num_tokens, up_bytes);
  scratch.reserve(num_tokens, up_blocks * sizeof(float));
  scratch.reserve(num_tokens, up_blocks * sizeof(float));
  scratch.reserve(pairs, sizeof(uint32_t));
  scratch.reserve(pairs, sizeof(float));
  scratch.reserve(layer.num_experts + 2, sizeof(size_t));
  scratch.reserve(layer.num_experts, sizeof(size_t));
  scratch.reserve(pairs, sizeof(size_t));
  scratch.reserve(pairs, sizeof(float));
  scratch.reserve(pairs, sizeof(Activations));
  scratch.reserve(pairs, layer.down.columns * sizeof(float));
  scratch.reserve(pairs, down_bytes);
  scratch.reserve(pairs, down_blocks * sizeof(float));
  scratch.reserve(pairs, down_blocks * sizeof(float));
  scratch.reserve(pairs, sizeof(Activations));
  if (!scratch.allocate()) return refuse("there is no memory for the experts of %zu tokens", num_tokens);
  Call call = {set,        layer, x,    logits, stride, y, shared,
               num_tokens, pairs, int8, int8 ? set.multiply_int8 : set.multiply_float};
  call.tokens = scratch.take<Activations>(num_tokens);
  call.codes = scratch.take<uint8_t>(num_tokens * up_bytes);
  call.scales = scratch.take<float>(num_tokens * up_blocks);
  call.sums = scratch.take<float>(num_tokens * up_blocks);
  call.chosen = scratch.take<uint32_t>(pairs);
  call.chosen_weights = scratch.take<float>(pairs);
  call.first_pair = scratch.take<size_t>(layer.num_experts + 2);
  call.used = scratch.take<size_t>(layer.num_experts);
  call.token_of = scratch.take<size_t>(pairs);
  call.weight_of = scratch.take<float>(pairs);
  call.gathered = scratch.take<Activations>(pairs);
  call.hidden = scratch.take<float>(pairs * layer.down.columns);
  call.hidden_codes = scratch.take<uint8_t>(pairs * down_bytes);
  call.hidden_scales = scratch.take<float>(pairs * down_blocks);
  call.hidden_sums = scratch.take<float>(pairs * down_blocks);
  call.hidden_activations = scratch.take<Activations>(pairs);
  call.up_stripes = (layer.gate_up.rows + STRIPE - 1) / STRIPE;
  QWONNX_RETURN_IF_ERROR(for_each(route_token, num_tokens, call, parallel));
  sort_pairs(call);
  if (layer.memory) {
    const ExpertNeed need = {call.used, call.num_used, call.first_pair, num_tokens};
    QWONNX_RETURN_IF_ERROR(need_experts(*layer.memory, need, parallel));
  }
  QWONNX_RETURN_IF_ERROR(parallel.run(gate_up_stripe, call.num_used * call.up_stripes, &call));
  if (int8) {
    QWONNX_RETURN_IF_ERROR(for_each(quantize_hidden, pairs, call, parallel));
  } else {
    for (size_t j = 0; j < pairs; j++)
      call.hidden_activations[j] = {call.hidden + j * layer.down.columns, nullptr, nullptr};
  }
  return parallel.run(down_stripe, (layer.down.rows + STRIPE - 1) / STRIPE, &call);
}

}  // namespace qwonnx
