// The gated delta rule. For each token, S being a head's state [key_dim, value_dim]:
//
//   S = decay * S;  S = S + key (beta * (value - key S));  y = query S
//
// One token: a task is a head, whose state comes from memory once and goes back once. Chunks: queries and keys are normalised
// first, side by side for each key head; then a task is a head's block of columns, kept in the L1 cache for all tokens,
// which come in pairs.
//
// In a chunk the decay is not multiplied into the state at each token: `decay` is the factor by which the buffer is too
// large, and new keys are divided by it. It is multiplied in when it leaves the range in which that loses nothing.
#include "arithmetic.h"
#include "layer_kernels.h"
#include "layers.h"
#include "scratch.h"

#include <string.h>

namespace qwonnx {
namespace {

constexpr float LEAST_DECAY = 1.0f / (1 << 20), MOST_DECAY = 1 << 20;
constexpr size_t TOKENS = 16;  // normalised by one task: a multiple of two

struct Gates {
  float decay, beta;
};

// Of a pair of tokens of one key head.
struct PairDots {
  float second_key, query;  // times the first key
};

struct Call {
  const LayerKernels& kernels;
  const DeltaRule& layer;
  size_t blocks;           // of columns, of a head
  size_t room;             // tokens: an even number, and two more, whose keys are zero
  float* keys = nullptr;   // [batch, key_heads, room, key and query, key_dim]
  PairDots* dots = nullptr;  // [batch, key_heads, room / 2]
  Gates* gates = nullptr;  // [batch, value_heads, room]
};

// log(1 + exp(x))
float softplus(float x) {
  const float y = exponential(-magnitude(x));
  const float z = y / (2 + y), z2 = z * z;  // log(1 + y) = 2 atanh(z), and z is at most 1/3
  float series = 1.0f / 13;
  series = series * z2 + 1.0f / 11;
  series = series * z2 + 1.0f / 9;
  series = series * z2 + 1.0f / 7;
  series = series * z2 + 1.0f / 5;
  series = series * z2 + 1.0f / 3;
  series = series * z2 + 1;
  return (x > 0 ? x : 0) + 2 * z * series + (x - x);  // the last term: NaN for what is not finite
}

Gates gates_of(const DeltaRule& layer, size_t token, size_t head) {
  const size_t at = token * layer.gate_stride + head;
  const float x = layer.a[at] + layer.dt_bias[head];
  return {exponential(layer.decay_scale[head] * softplus(x)), 1 / (1 + exponential(-layer.b[at]))};
}

// The unit key, and the unit query divided by sqrt(key_dim), of a token's key head.
void normalise(const Call& call, size_t token, size_t key_head, float* key, float* query) {
  const DeltaRule& layer = call.layer;
  const float* q = layer.qkv + token * layer.width() + key_head * layer.key_dim;
  const float* k = q + layer.key_width();
  const LayerKernels& kernels = call.kernels;
  const float key_square = kernels.dot(k, k, layer.key_dim) + layer.epsilon;
  const float query_square = kernels.dot(q, q, layer.key_dim) + layer.epsilon;
  kernels.scale(k, 1 / __builtin_sqrtf(key_square), layer.key_dim, key);
  kernels.scale(q, 1 / __builtin_sqrtf(query_square * static_cast<float>(layer.key_dim)), layer.key_dim, query);
}

void one_token(void* data, size_t head_of_batch) {
  const Call& call = *static_cast<Call*>(data);
  const DeltaRule& layer = call.layer;
  const size_t row = head_of_batch / layer.value_heads, head = head_of_batch % layer.value_heads;
  alignas(64) float keys[2 * MAX_KEY_DIM];
  normalise(call, row, head / (layer.value_heads / layer.key_heads), keys, keys + layer.key_dim);
  const Gates gates = gates_of(layer, row, head);
  const size_t size = layer.key_dim * layer.value_dim;
  const DeltaStep step = {layer.key_dim,
                          layer.value_dim,
                          gates.decay,
                          gates.beta,
                          keys,
                          keys + layer.key_dim,
                          layer.qkv + row * layer.width() + 2 * layer.key_width() + head * layer.value_dim,
                          layer.y + head_of_batch * layer.value_dim};
  // The thread will probably take the next head, too.
  const float* next = head_of_batch + 1 < layer.batch * layer.value_heads ? layer.past + (head_of_batch + 1) * size : nullptr;
  call.kernels.delta_once(step, layer.past + head_of_batch * size, layer.present + head_of_batch * size, next);
}

// Tokens of one row: keys, queries and their products for every key head, gates for every value head. What follows the last
// token is a token that changes nothing.
void prepare_tokens(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const DeltaRule& layer = call.layer;
  const size_t tasks = (call.room + TOKENS - 1) / TOKENS, row = index / tasks, first = index % tasks * TOKENS;
  const size_t last = call.room - first < TOKENS ? call.room : first + TOKENS, dim = layer.key_dim;
  for (size_t t = first; t < last; t++) {
    const size_t token = row * layer.num_tokens + t;
    for (size_t h = row * layer.key_heads; h < (row + 1) * layer.key_heads; h++) {
      float* key = call.keys + (h * call.room + t) * 2 * dim;
      if (t < layer.num_tokens)
        normalise(call, token, h - row * layer.key_heads, key, key + dim);
      else
        memset(key, 0, 2 * dim * sizeof(float));
      if (t % 2)
        call.dots[(h * call.room + t) / 2] = {call.kernels.dot(key, key - 2 * dim, dim),
                                              call.kernels.dot(key - dim, key - 2 * dim, dim)};
    }
    for (size_t h = 0; h < layer.value_heads; h++)
      call.gates[(row * layer.value_heads + h) * call.room + t] =
          t < layer.num_tokens ? gates_of(layer, token, h) : Gates{1, 0};
  }
}

void many_tokens(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const DeltaRule& layer = call.layer;
  const LayerKernels& kernels = call.kernels;
  const size_t head_of_batch = index / call.blocks;
  const size_t key_head = head_of_batch / (layer.value_heads / layer.key_heads);  // of the batch, too
  const size_t row = head_of_batch / layer.value_heads, head = head_of_batch % layer.value_heads;
  const size_t width = kernels.width, first = index % call.blocks * width, dim = layer.key_dim;
  const size_t stride = layer.value_dim, columns = stride - first < width ? stride - first : width;
  const size_t in_state = head_of_batch * dim * stride + first;
  const float* keys = call.keys + key_head * call.room * 2 * dim;
  const Gates* gates = call.gates + head_of_batch * call.room;
  const size_t y_stride = layer.value_heads * stride;
  const float* values = layer.qkv + row * layer.num_tokens * layer.width() + 2 * layer.key_width() + head * stride + first;
  float* y = layer.y + row * layer.num_tokens * y_stride + head * stride + first;
  alignas(64) float buffer[MAX_KEY_DIM * MAX_WIDTH], first_delta[MAX_WIDTH] = {}, second_delta[MAX_WIDTH] = {};
  const float* const deltas[2] = {first_delta, second_delta};
  alignas(64) PairSums sums;
  kernels.delta_first(layer.past + in_state, stride, dim, columns, keys, buffer, sums);
  float decay = 1;
  for (size_t t = 0; t < layer.num_tokens; t += 2) {
    const Gates now = gates[t], then = gates[t + 1];
    const PairDots dots = call.dots[(key_head * call.room + t) / 2];
    const float first_decay = decay * now.decay, second_decay = first_decay * then.decay;
    const bool keep = first_decay >= LEAST_DECAY && first_decay <= MOST_DECAY && second_decay >= LEAST_DECAY &&
                      second_decay <= MOST_DECAY;
    const bool whole = t + 1 < layer.num_tokens;
    const float* value = values + t * layer.width();
    float added[MAX_WIDTH];
    for (size_t c = 0; c < columns; c++) {
      const float delta = now.beta * (value[c] - first_decay * sums.remembered[0][c]);
      const float remembered = second_decay * sums.remembered[1][c] + dots.second_key * then.decay * delta;
      const float second = whole ? then.beta * (value[layer.width() + c] - remembered) : 0;
      added[c] = dots.query * delta;
      first_delta[c] = keep ? delta / first_decay : delta * then.decay;
      second_delta[c] = keep ? second / second_decay : second;
    }
    kernels.delta_pair(buffer, dim, keep ? 1 : second_decay, keys + t * 2 * dim, deltas, sums);
    decay = keep ? second_decay : 1;
    for (size_t c = 0; c < columns; c++) y[t * y_stride + c] = first_decay * sums.before[c] + added[c];
    if (whole)
      for (size_t c = 0; c < columns; c++) y[(t + 1) * y_stride + c] = decay * sums.after[c];
  }
  kernels.delta_store(buffer, dim, decay, layer.present + in_state, stride, columns);
}

}  // namespace

void delta_rule_head(const DeltaRule& layer, size_t head_of_batch) {
  Call call = {layer_kernels(), layer, 0, 0};
  one_token(&call, head_of_batch);
}

OrtStatus* delta_rule(const DeltaRule& layer, const Parallel& parallel) {
  const size_t heads = layer.batch * layer.value_heads, key_heads = layer.batch * layer.key_heads;
  if (layer.num_tokens == 0) {
    if (layer.present != layer.past)
      memcpy(layer.present, layer.past, heads * layer.key_dim * layer.value_dim * sizeof(float));
    return nullptr;
  }
  const LayerKernels& kernels = layer_kernels();
  Call call = {kernels, layer, (layer.value_dim + kernels.width - 1) / kernels.width, (layer.num_tokens + 1) / 2 * 2 + 2};
  if (layer.num_tokens == 1 && layer.value_dim <= MAX_ONCE) return parallel.run(one_token, heads, &call);
  Scratch scratch;
  scratch.reserve(key_heads * call.room, 2 * layer.key_dim * sizeof(float));
  scratch.reserve(key_heads * call.room / 2, sizeof(PairDots));
  scratch.reserve(heads * call.room, sizeof(Gates));
  if (!scratch.allocate()) return refuse("there is no memory for the delta rule of %zu tokens", layer.num_tokens);
  call.keys = scratch.take<float>(key_heads * call.room * 2 * layer.key_dim);
  call.dots = scratch.take<PairDots>(key_heads * call.room / 2);
  call.gates = scratch.take<Gates>(heads * call.room);
  QWONNX_RETURN_IF_ERROR(parallel.run(prepare_tokens, layer.batch * ((call.room + TOKENS - 1) / TOKENS), &call));
  return parallel.run(many_tokens, heads * call.blocks, &call);
}

}  // namespace qwonnx
