// A product of rows of activations with a matrix, cut into tasks: stripes of rows, small enough that many threads share a
// single token and large enough that fetching ahead stays inside a stripe; for chunks, tiles of tokens too.
#pragma once

#include "blocks.h"

namespace qwonnx {

// Rows of a task's stripe, at most `most` of them.
static inline size_t stripe_rows(const Blocks& weights, size_t most, size_t num_tokens) {
  constexpr size_t BYTES = 128 << 10;
  constexpr size_t ROWS = 16;  // a stripe's rows are a multiple of an instruction set's panel
  size_t stripe = BYTES / weights.row_bytes() / ROWS * ROWS;
  if (stripe > most) stripe = most / ROWS * ROWS;
  if (num_tokens > 1 && stripe > 4 * ROWS) stripe = 4 * ROWS;
  return stripe < ROWS ? ROWS : stripe;
}

class Product {
 public:
  static constexpr size_t TILE = 128;  // tokens

  // y [num_tokens, weights.rows]
  Product(const Blocks& weights, const Activations* x, size_t num_tokens, Multiply multiply, float* y)
      : weights_(weights), x_(x), num_tokens_(num_tokens), multiply_(multiply), y_(y) {
    stripe_ = stripe_rows(weights, weights.rows / 8, num_tokens);
    num_stripes_ = (weights.rows + stripe_ - 1) / stripe_;
  }

  size_t num_tasks() const { return num_stripes_ * ((num_tokens_ + TILE - 1) / TILE); }

  void task(size_t index) const {
    const size_t first = index % num_stripes_ * stripe_, token = index / num_stripes_ * TILE;
    const size_t last = weights_.rows - first < stripe_ ? weights_.rows : first + stripe_;
    const size_t count = num_tokens_ - token < TILE ? num_tokens_ - token : TILE;
    multiply_(weights_, first, last, x_ + token, count, y_ + token * weights_.rows + first, weights_.rows, 0);
  }

 private:
  const Blocks& weights_;
  const Activations* x_;
  size_t num_tokens_;
  Multiply multiply_;
  float* y_;
  size_t stripe_, num_stripes_;
};

}  // namespace qwonnx
