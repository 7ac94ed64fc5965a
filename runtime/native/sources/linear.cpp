// A linear layer: activations are prepared once, then the output is cut into stripes of rows (and tiles of tokens), small
// enough that many threads share a single token and large enough that fetching ahead stays inside a stripe.
#include "operators.h"
#include "scratch.h"

namespace qwonnx {
namespace {

constexpr size_t STRIPE_BYTES = 128 << 10;
constexpr size_t ROWS = 16;  // a stripe's rows are a multiple of an instruction set's panel
constexpr size_t MAX_TILE = 128;  // tokens

struct Call {
  const InstructionSet& set;
  const Blocks& weights;
  const float* x;
  float* y;
  size_t num_tokens, stripe, num_stripes, tile;
  Multiply multiply;
  Activations* activations;
  uint8_t* codes;
  float* scales;
  float* sums;
};

void quantize_token(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  const size_t blocks = call.weights.num_blocks(), bytes = activation_bytes(call.weights.columns);
  call.set.quantize(call.x + t * call.weights.columns, call.weights, call.codes + t * bytes, call.scales + t * blocks,
                    call.sums + t * blocks);
  call.activations[t] = {call.codes + t * bytes, call.scales + t * blocks, call.sums + t * blocks};
}

void multiply_stripe(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const size_t first = index % call.num_stripes * call.stripe, token = index / call.num_stripes * call.tile;
  const size_t last = call.weights.rows - first < call.stripe ? call.weights.rows : first + call.stripe;
  const size_t count = call.num_tokens - token < call.tile ? call.num_tokens - token : call.tile;
  call.multiply(call.weights, first, last, call.activations + token, count, call.y + token * call.weights.rows + first,
                call.weights.rows, 0);
}

}  // namespace

OrtStatus* linear(const Blocks& weights, const float* x, size_t num_tokens, bool int8, float* y, const Parallel& parallel) {
  if (num_tokens == 0) return nullptr;
  const InstructionSet& set = instructions();
  Scratch scratch;
  scratch.reserve(num_tokens, sizeof(Activations));
  if (int8) {
    scratch.reserve(num_tokens, activation_bytes(weights.columns));
    scratch.reserve(num_tokens, weights.num_blocks() * sizeof(float));
    scratch.reserve(num_tokens, weights.num_blocks() * sizeof(float));
  }
  if (!scratch.allocate()) return refuse("there is no memory for a linear layer of %zu tokens", num_tokens);
  size_t stripe = STRIPE_BYTES / weights.row_bytes() / ROWS * ROWS;
  if (stripe > weights.rows / 8) stripe = weights.rows / 8 / ROWS * ROWS;
  if (num_tokens > 1 && stripe > 4 * ROWS) stripe = 4 * ROWS;
  if (stripe < ROWS) stripe = ROWS;
  Call call = {set, weights, x, y, num_tokens, stripe, (weights.rows + stripe - 1) / stripe,
               num_tokens < MAX_TILE ? num_tokens : MAX_TILE, int8 ? set.multiply_int8 : set.multiply_float,
               scratch.take<Activations>(num_tokens), nullptr, nullptr, nullptr};
  if (int8) {
    call.codes = scratch.take<uint8_t>(num_tokens * activation_bytes(weights.columns));
    call.scales = scratch.take<float>(num_tokens * weights.num_blocks());
    call.sums = scratch.take<float>(num_tokens * weights.num_blocks());
    if (num_tokens < 8)
      for (size_t t = 0; t < num_tokens; t++) quantize_token(&call, t);
    else
      QWONNX_RETURN_IF_ERROR(parallel.run(quantize_token, num_tokens, &call));
  } else {
    for (size_t t = 0; t < num_tokens; t++) call.activations[t] = {x + t * weights.columns, nullptr, nullptr};
  }
  return parallel.run(multiply_stripe, call.num_stripes * ((num_tokens + call.tile - 1) / call.tile), &call);
}

}  // namespace qwonnx
