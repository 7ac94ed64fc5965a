// The table of layer_kernels.h for registers of N floats. A file for each instruction set includes this and instantiates it.
//
// Chunks: a head's state is cut into blocks of columns that stay in the L1 cache, with all their rows, for all tokens. A pass
// over the block takes two tokens: the rows are read by the first token's query, updated, and read by the second token's
// query and by the next two keys, so that each element is loaded and stored once for six multiply-adds. What the first
// token adds to the sums of the second is small and is added by the caller. The chunked form of the rule (products of
// matrices over 16 to 64 tokens) needs 3.5 to 4 multiply-adds for each element and token where this needs 3.
#pragma once

#include "lanes.h"
#include "layer_kernels.h"

namespace qwonnx {
namespace {

template <int N, int V>
struct LayerKernelsOf {
  using L = Lanes<N>;
  using F = typename L::Floats;
  static constexpr size_t WIDTH = N * V;

  static_assert(WIDTH <= MAX_WIDTH, "PairSums is too narrow");

  // R rows from `row` on: sums += keys of the rows * rows.
  template <int R>
  LANES_INLINE void recall(const DeltaStep& step, const float* past, size_t row, const float* next, float* sums) {
    F keys[R];
    for (int r = 0; r < R; r++) keys[r] = L::all(step.key[row + r]);
    past += row * step.columns;
    size_t c = 0;
    for (; c + N <= step.columns; c += N) {
      F sum = L::load(sums + c);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sum += keys[r] * L::load(past + r * step.columns + c);
      L::store(sums + c, sum);
      if (c % 16 == 0) fetch<R>(next, row, step.columns, c);
    }
    for (; c < step.columns; c++)
      for (int r = 0; r < R; r++) sums[c] += step.key[row + r] * past[r * step.columns + c];
  }

  // R rows: present = decay * past + key * delta; y += query * present.
  template <int R>
  LANES_INLINE void update(const DeltaStep& step, const float* past, float* present, size_t row, const float* next,
                           const float* delta) {
    F keys[R], queries[R];
    for (int r = 0; r < R; r++) {
      keys[r] = L::all(step.key[row + r]);
      queries[r] = L::all(step.query[row + r]);
    }
    const F decay = L::all(step.decay);
    past += row * step.columns;
    present += row * step.columns;
    size_t c = 0;
    for (; c + N <= step.columns; c += N) {
      F sum = L::load(step.y + c);
      const F d = L::load(delta + c);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const F s = L::load(past + r * step.columns + c) * decay + keys[r] * d;
        L::store(present + r * step.columns + c, s);
        sum += queries[r] * s;
      }
      L::store(step.y + c, sum);
      if (c % 16 == 0) fetch<R>(next, row, step.columns, c);
    }
    for (; c < step.columns; c++)
      for (int r = 0; r < R; r++) {
        const float s = past[r * step.columns + c] * step.decay + step.key[row + r] * delta[c];
        present[r * step.columns + c] = s;
        step.y[c] += step.query[row + r] * s;
      }
  }

  // Half as many lines as the R rows have in 16 columns. Not needed for one row at the end.
  template <int R>
  LANES_INLINE void fetch(const float* next, size_t row, size_t columns, size_t c) {
    if (!next) return;
    for (int r = 0; r < R / 2; r++) __builtin_prefetch(next + (row / 2 + r) * columns + c, 1, 2);
  }

  static void delta_once(const DeltaStep& step, const float* past, float* present, const float* next) {
    alignas(64) float delta[MAX_ONCE];  // first what the state remembers
    for (size_t c = 0; c < step.columns; c++) delta[c] = step.y[c] = 0;
    const size_t half = step.rows / 2 * step.columns;
    size_t row = 0;
    for (; row + 4 <= step.rows; row += 4) recall<4>(step, past, row, next, delta);
    for (; row < step.rows; row++) recall<1>(step, past, row, nullptr, delta);
    for (size_t c = 0; c < step.columns; c++) delta[c] = step.beta * (step.value[c] - step.decay * delta[c]);
    for (row = 0; row + 4 <= step.rows; row += 4) update<4>(step, past, present, row, next ? next + half : next, delta);
    for (; row < step.rows; row++) update<1>(step, past, present, row, nullptr, delta);
  }

  static void delta_first(const float* state, size_t stride, size_t rows, size_t columns, const float* keys,
                          float* buffer, PairSums& sums) {
    F first[V] = {}, second[V] = {};
    if (columns < WIDTH) memset(buffer, 0, rows * WIDTH * sizeof(float));
    for (size_t i = 0; i < rows; i++, buffer += WIDTH) {
      memcpy(buffer, state + i * stride, columns * sizeof(float));
      const F k0 = L::all(keys[i]), k1 = L::all(keys[2 * rows + i]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        const F s = L::load(buffer + v * N);
        first[v] += k0 * s;
        second[v] += k1 * s;
      }
    }
    for (int v = 0; v < V; v++) {
      L::store(sums.remembered[0] + v * N, first[v]);
      L::store(sums.remembered[1] + v * N, second[v]);
    }
  }

  template <bool MULTIPLY>
  LANES_INLINE void pair(float* buffer, size_t rows, float factor, const float* keys, const float* const deltas[2],
                         PairSums& sums) {
    F before[V] = {}, after[V] = {}, first[V] = {}, second[V] = {}, d0[V], d1[V];
    for (int v = 0; v < V; v++) {
      d0[v] = L::load(deltas[0] + v * N);
      d1[v] = L::load(deltas[1] + v * N);
    }
    const float *key0 = keys, *query0 = keys + rows, *key1 = keys + 2 * rows, *query1 = keys + 3 * rows,
                *key2 = keys + 4 * rows, *key3 = keys + 6 * rows;
    for (size_t i = 0; i < rows; i++, buffer += WIDTH) {
      F s[V];
      const auto each = [&](const float* x, auto&& work) __attribute__((always_inline)) {
        const F value = L::all(x[i]);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) work(v, value);
      };
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) s[v] = L::load(buffer + v * N);
      each(query0, [&](int v, F q) __attribute__((always_inline)) { before[v] += q * s[v]; });
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
        if (MULTIPLY) s[v] *= factor;
      each(key0, [&](int v, F k) __attribute__((always_inline)) { s[v] += k * d0[v]; });
      each(key1, [&](int v, F k) __attribute__((always_inline)) { s[v] += k * d1[v]; });
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) L::store(buffer + v * N, s[v]);
      each(query1, [&](int v, F q) __attribute__((always_inline)) { after[v] += q * s[v]; });
      each(key2, [&](int v, F k) __attribute__((always_inline)) { first[v] += k * s[v]; });
      each(key3, [&](int v, F k) __attribute__((always_inline)) { second[v] += k * s[v]; });
    }
    for (int v = 0; v < V; v++) {
      L::store(sums.before + v * N, before[v]);
      L::store(sums.after + v * N, after[v]);
      L::store(sums.remembered[0] + v * N, first[v]);
      L::store(sums.remembered[1] + v * N, second[v]);
    }
  }

  static void delta_pair(float* buffer, size_t rows, float factor, const float* keys, const float* const deltas[2],
                         PairSums& sums) {
    if (factor == 1) return pair<false>(buffer, rows, factor, keys, deltas, sums);
    pair<true>(buffer, rows, factor, keys, deltas, sums);
  }

  static void delta_store(const float* buffer, size_t rows, float factor, float* state, size_t stride,
                          size_t columns) {
    for (size_t i = 0; i < rows; i++) scale(buffer + i * WIDTH, factor, columns, state + i * stride);
  }

  static float dot(const float* x, const float* y, size_t count) {
    F sums[2] = {};
    size_t i = 0;
    for (; i + 2 * N <= count; i += 2 * N)
      for (int h = 0; h < 2; h++) sums[h] += L::load(x + i + h * N) * L::load(y + i + h * N);
    float total = L::sum(sums[0] + sums[1]);
    for (; i < count; i++) total += x[i] * y[i];
    return total;
  }

  static void scale(const float* x, float factor, size_t count, float* y) {
    size_t i = 0;
    for (; i + N <= count; i += N) L::store(y + i, L::load(x + i) * factor);
    for (; i < count; i++) y[i] = x[i] * factor;
  }

  // E numbers a row, or `each` of them if E is 0: with E known, compilers turn these loops into shuffles.
  template <size_t E>
  LANES_INLINE void to_columns_by(const float* __restrict rows, size_t count, size_t each, float* __restrict columns,
                                  size_t stride) {
    for (size_t i = 0; i < count; i++)
      for (size_t j = 0; j < (E ? E : each); j++) columns[j * stride + i] = rows[i * (E ? E : each) + j];
  }

  static void to_columns(const float* rows, size_t count, size_t each, float* columns, size_t stride) {
    if (each == 3) return to_columns_by<3>(rows, count, each, columns, stride);
    if (each == 4) return to_columns_by<4>(rows, count, each, columns, stride);
    to_columns_by<0>(rows, count, each, columns, stride);
  }

  static void to_rows(const float* const* columns, size_t count, size_t each, float* __restrict rows) {
    if (each == 3) {
      const float *__restrict a = columns[0], *__restrict b = columns[1], *__restrict c = columns[2];
      for (size_t i = 0; i < count; i++) {
        rows[3 * i] = a[i];
        rows[3 * i + 1] = b[i];
        rows[3 * i + 2] = c[i];
      }
      return;
    }
    for (size_t i = 0; i < count; i++)
      for (size_t j = 0; j < each; j++) rows[i * each + j] = columns[j][i];
  }

  // K taps, or num_taps of them if K is 0.
  template <size_t K>
  LANES_INLINE void convolve_by(const float* const* inputs, const float* taps, size_t stride, size_t num_taps,
                                size_t count, float* y) {
    const size_t each = K ? K : num_taps;
    size_t c = 0;
    for (; c + N <= count; c += N) {
      F sum = {};
      for (size_t j = 0; j < each; j++) sum += L::load(inputs[j] + c) * L::load(taps + j * stride + c);
      L::store(y + c, L::silu(sum));
    }
    for (; c < count; c++) {
      float sum = 0;
      for (size_t j = 0; j < each; j++) sum += inputs[j][c] * taps[j * stride + c];
      y[c] = silu(sum);
    }
  }

  static void convolve(const float* const* inputs, const float* taps, size_t stride, size_t num_taps, size_t count,
                       float* y) {
    if (num_taps == 4) return convolve_by<4>(inputs, taps, stride, num_taps, count, y);
    convolve_by<0>(inputs, taps, stride, num_taps, count, y);
  }

  template <bool ADD>
  LANES_INLINE void add_norm_by(const float* x, const float* skip, const float* weight, float epsilon, size_t count,
                                float* sum, float* normed) {
    F squares[2] = {};
    size_t i = 0;
    for (; i + 2 * N <= count; i += 2 * N)
      for (int h = 0; h < 2; h++) {
        F value = L::load(x + i + h * N);
        if (ADD) {
          value += L::load(skip + i + h * N);
          L::store(sum + i + h * N, value);
        }
        squares[h] += value * value;
      }
    float total = L::sum(squares[0] + squares[1]);
    for (; i < count; i++) {
      const float value = ADD ? x[i] + skip[i] : x[i];
      if (ADD) sum[i] = value;
      total += value * value;
    }
    const float factor = 1 / __builtin_sqrtf(total / static_cast<float>(count) + epsilon);
    const float* from = ADD ? sum : x;
    for (i = 0; i + N <= count; i += N) L::store(normed + i, L::load(from + i) * factor * L::load(weight + i));
    for (; i < count; i++) normed[i] = from[i] * factor * weight[i];
  }

  static void add_norm(const float* x, const float* skip, const float* weight, float epsilon, size_t count, float* sum,
                       float* normed) {
    if (skip) return add_norm_by<true>(x, skip, weight, epsilon, count, sum, normed);
    add_norm_by<false>(x, skip, weight, epsilon, count, sum, normed);
  }

  static void norm_rotate(const float* x, const float* weight, float epsilon, size_t count, const float* cos,
                          const float* sin, size_t half, float* y) {
    const float factor = 1 / __builtin_sqrtf(dot(x, x, count) / static_cast<float>(count) + epsilon);
    size_t i = 0;
    for (; i + N <= half; i += N) {
      const F a = L::load(x + i) * factor * L::load(weight + i), c = L::load(cos + i), s = L::load(sin + i);
      const F b = L::load(x + half + i) * factor * L::load(weight + half + i);
      L::store(y + i, a * c - b * s);
      L::store(y + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
      const float a = x[i] * factor * weight[i], b = x[half + i] * factor * weight[half + i];
      y[i] = a * cos[i] - b * sin[i];
      y[half + i] = b * cos[i] + a * sin[i];
    }
    for (i = 2 * half; i + N <= count; i += N) L::store(y + i, L::load(x + i) * factor * L::load(weight + i));
    for (; i < count; i++) y[i] = x[i] * factor * weight[i];
  }

  // The last columns, of both types by one code: compilers may round their products otherwise in another one.
  __attribute__((noinline)) static float rest(const float* weights, const float* x, size_t count) {
    float sum = 0;
    for (size_t i = 0; i < count; i++) sum += weights[i] * x[i];
    return sum;
  }
  LANES_INLINE float rest(const Bfloat16* weights, const float* x, size_t count) {
    float values[4 * N];
    for (size_t i = 0; i < count; i++) values[i] = as_float(weights[i]);
    return rest(values, x, count);
  }

  // R rows times T tokens. One row is a stream of memory, and needs several chains of sums; more rows stay in the cache.
  template <int R, int T, typename W>
  LANES_INLINE void product_tile(const W* weights, size_t columns, const float* x, float* y, size_t stride) {
    constexpr int CHAINS = R * T < 4 ? 4 : 1;
    constexpr size_t AHEAD = 4096 / sizeof(W), LINE = 64 / sizeof(W);
    F sums[CHAINS][R][T] = {};
    size_t c = 0;
    for (; c + CHAINS * N <= columns; c += CHAINS * N) {
      if (R == 1)
        for (size_t line = 0; line < CHAINS * N; line += LINE) __builtin_prefetch(weights + c + line + AHEAD, 0, 3);
#pragma GCC unroll 4
      for (int chain = 0; chain < CHAINS; chain++) {
        F values[T];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) values[t] = L::load(x + t * columns + c + chain * N);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const F weight = L::load(weights + r * columns + c + chain * N);
#pragma GCC unroll 4
          for (int t = 0; t < T; t++) sums[chain][r][t] += weight * values[t];
        }
      }
    }
    for (int t = 0; t < T; t++)
      for (int r = 0; r < R; r++) {
        F total = sums[0][r][t];
        for (int chain = 1; chain < CHAINS; chain++) total += sums[chain][r][t];
        float product = L::sum(total);
        if (c < columns) product += rest(weights + r * columns + c, x + t * columns + c, columns - c);
        y[t * stride + r] = product;
      }
  }

  template <typename W>
  LANES_INLINE void products_of(const W* weights, size_t rows, size_t columns, const float* x, size_t tokens, float* y,
                                size_t stride) {
    size_t t = 0;
    for (; t + 3 <= tokens; t += 3) {
      size_t r = 0;
      for (; r + 4 <= rows; r += 4)
        product_tile<4, 3>(weights + r * columns, columns, x + t * columns, y + t * stride + r, stride);
      for (; r < rows; r++)
        product_tile<1, 3>(weights + r * columns, columns, x + t * columns, y + t * stride + r, stride);
    }
    for (; t < tokens; t++)
      for (size_t r = 0; r < rows; r++)
        product_tile<1, 1>(weights + r * columns, columns, x + t * columns, y + t * stride + r, stride);
  }

  static void products(const FloatMatrix& weights, size_t first, size_t rows, size_t columns, const float* x, size_t tokens,
                       float* y, size_t stride) {
    if (weights.is_bfloat16)
      return products_of(static_cast<const Bfloat16*>(weights.values) + first * columns, rows, columns, x, tokens, y, stride);
    products_of(static_cast<const float*>(weights.values) + first * columns, rows, columns, x, tokens, y, stride);
  }

  // low[t * rank + r] = x[t] * down, and then y = base + low * up, for T tokens.
  template <int T>
  LANES_INLINE void adapt_tokens(const LowRank& matrices, const float* const* x, const float* const* base, float* const* y) {
    alignas(64) float low[T * MAX_ADAPTER_RANK];
    const size_t rank = matrices.rank, inputs = matrices.inputs, outputs = matrices.outputs;
    size_t r = 0;
    for (; r + N <= rank; r += N) {
      const float* down = matrices.down + r;
      F even[T] = {}, odd[T] = {};
      size_t k = 0;
      for (; k + 2 <= inputs; k += 2, down += 2 * rank) {
        const F first = L::load(down), second = L::load(down + rank);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          even[t] += L::all(x[t][k]) * first;
          odd[t] += L::all(x[t][k + 1]) * second;
        }
      }
      for (int t = 0; t < T; t++) {
        if (k < inputs) even[t] += L::all(x[t][k]) * L::load(down);
        L::store(low + t * rank + r, even[t] + odd[t]);
      }
    }
    for (; r < rank; r++)
      for (int t = 0; t < T; t++) {
        float sum = 0;
        for (size_t k = 0; k < inputs; k++) sum += x[t][k] * matrices.down[k * rank + r];
        low[t * rank + r] = sum;
      }
    size_t c = 0;
    for (; c + 2 * N <= outputs; c += 2 * N) {
      F left[T], right[T];
      for (int t = 0; t < T; t++) {
        left[t] = L::load(base[t] + c);
        right[t] = L::load(base[t] + c + N);
      }
      const float* up = matrices.up + c;
      for (r = 0; r < rank; r++, up += outputs) {
        const F first = L::load(up), second = L::load(up + N);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const F factor = L::all(low[t * rank + r]);
          left[t] += factor * first;
          right[t] += factor * second;
        }
      }
      for (int t = 0; t < T; t++) {
        L::store(y[t] + c, left[t]);
        L::store(y[t] + c + N, right[t]);
      }
    }
    for (; c < outputs; c++)
      for (int t = 0; t < T; t++) {
        float sum = base[t][c];
        for (r = 0; r < rank; r++) sum += low[t * rank + r] * matrices.up[r * outputs + c];
        y[t][c] = sum;
      }
  }

  static void adapt(const LowRank& matrices, const float* const* x, const float* const* base, float* const* y,
                    size_t tokens) {
    size_t t = 0;
    for (; t + 4 <= tokens; t += 4) adapt_tokens<4>(matrices, x + t, base + t, y + t);
    for (; t < tokens; t++) adapt_tokens<1>(matrices, x + t, base + t, y + t);
  }

  static void gate(const float* x, float factor, const float* weight, const float* gate, size_t count, float* y) {
    size_t i = 0;
    for (; i + N <= count; i += N)
      L::store(y + i, L::load(x + i) * factor * L::load(weight + i) * L::silu(L::load(gate + i)));
    for (; i < count; i++) y[i] = x[i] * factor * weight[i] * silu(gate[i]);
  }

  static constexpr LayerKernels table() {
    return {delta_once, WIDTH, delta_first, delta_pair, delta_store, dot, scale, to_columns, to_rows, convolve,
            add_norm, norm_rotate, products, adapt, gate};
  }
};

}  // namespace
}  // namespace qwonnx
