// What the operators of a linear-attention layer compute, apart from shapes and threads: one table for each width of
// registers. Everything is float32.
#pragma once

#include <stddef.h>

#include "blocks.h"

namespace qwonnx {

constexpr size_t MAX_WIDTH = 32;       // columns of a block
constexpr size_t MAX_ONCE = 512;       // columns of a state that delta_once takes
constexpr size_t MAX_ADAPTED = 8;      // tokens that adapt takes
constexpr size_t MAX_ADAPTER_RANK = 256;

struct DeltaStep {
  size_t rows, columns;
  float decay, beta;
  const float* key;    // [rows]
  const float* query;  // [rows]
  const float* value;  // [columns]
  float* y;            // [columns]
};

struct PairSums {
  float before[MAX_WIDTH];         // query of the first token * buffer, before the pair
  float after[MAX_WIDTH];          // query of the second one * buffer, after the pair
  float remembered[2][MAX_WIDTH];  // keys of the next two tokens * buffer
};

// The two factors of what an adapter adds to a matrix.
struct LowRank {
  const float* down;  // [inputs, rank]
  const float* up;    // [rank, outputs]
  size_t inputs, rank, outputs;
};

struct LayerKernels {
  // ---- The gated delta rule of one token. present = decay * past + key * delta, with the right delta, and y = query *
  // present; past and present are [rows, columns]. `next` is what the caller expects to need then, or null: as many bytes
  // are fetched from there.
  void (*delta_once)(const DeltaStep& step, const float* past, float* present, const float* next);

  // ---- The same for chunks, by `width` columns of a head's state, which do not depend on each other, and by two tokens.

  size_t width;
  // buffer [rows, width] = state [rows, stride], of which `columns` are there and the rest is zeros; sums as in PairSums.
  void (*delta_first)(const float* state, size_t stride, size_t rows, size_t columns, const float* keys, float* buffer,
                      PairSums& sums);
  // buffer = factor * buffer + key 0 * delta 0 + key 1 * delta 1. A factor of 1 is not multiplied. keys are those of four
  // tokens, key and query, [4, 2, rows]; the last two are those of the next pair.
  void (*delta_pair)(float* buffer, size_t rows, float factor, const float* keys, const float* const deltas[2],
                     PairSums& sums);
  // state = factor * buffer
  void (*delta_store)(const float* buffer, size_t rows, float factor, float* state, size_t stride, size_t columns);

  // ---- Rows
  float (*dot)(const float* x, const float* y, size_t count);
  // y = factor * x
  void (*scale)(const float* x, float factor, size_t count, float* y);
  // columns[j * stride + i] = rows[i * each + j], and the other way round; each is small.
  void (*to_columns)(const float* rows, size_t count, size_t each, float* columns, size_t stride);
  void (*to_rows)(const float* const* columns, size_t count, size_t each, float* rows);
  // y[c] = silu(sum over j of inputs[j][c] * taps[j * stride + c])
  void (*convolve)(const float* const* inputs, const float* taps, size_t stride, size_t num_taps, size_t count, float* y);
  // sum = x + skip; normed = sum / sqrt(mean square of sum + epsilon) * weight. Without skip and sum, both null, x is normed.
  void (*add_norm)(const float* x, const float* skip, const float* weight, float epsilon, size_t count, float* sum,
                   float* normed);
  // y = x / sqrt(mean square + epsilon) * weight, of which the first `half` values and as many behind them are then rotated:
  // (a, b) becomes (a * cos - b * sin, b * cos + a * sin). y may be x.
  void (*norm_rotate)(const float* x, const float* weight, float epsilon, size_t count, const float* cos, const float* sin,
                      size_t half, float* y);
  // y[t * stride + r] = weights[first + r] * x[t] for r < rows; weights have `columns`, and x is [tokens, columns]. What lies
  // behind the rows is fetched. Equal values have equal products, whatever their type.
  void (*products)(const FloatMatrix& weights, size_t first, size_t rows, size_t columns, const float* x, size_t tokens,
                   float* y, size_t stride);
  // y[t] = base[t] + x[t] * down * up for `tokens` tokens, at most MAX_ADAPTED. down is [inputs, rank], up [rank, outputs].
  void (*adapt)(const LowRank& matrices, const float* const* x, const float* const* base, float* const* y, size_t tokens);
  // y = x * factor * weight * silu(gate)
  void (*gate)(const float* x, float factor, const float* weight, const float* gate, size_t count, float* y);
};

extern const LayerKernels plain_layer_kernels;
#if defined(__x86_64__)
extern const LayerKernels avx2_layer_kernels;
extern const LayerKernels avx512_layer_kernels;
#endif

// Of the chosen instruction set.
const LayerKernels& layer_kernels();

}  // namespace qwonnx
