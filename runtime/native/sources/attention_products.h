// The two products of attention, for many rows and for few.
//
// Many rows: rows are lanes, in tiles of one to four vectors. Numbers of keys and values are broadcast, so nothing is
// summed across lanes; a block of keys and values is converted to floats once for all tiles.
//
// Few rows (at most 8): dimensions are lanes, and four rows are computed at once. Codes are converted in registers.
// Blocks further on are fetched, because memory is what limits.
#pragma once

#include "attention_vectors.h"

namespace qwonnx {
namespace {

// ---- many rows ----

constexpr size_t LINE = 64;
constexpr size_t SEGMENT = 64;  // dimensions between which some of the next block is fetched

// Fetches the next block into the L2 cache, a little at a time: a fetch of all at once would hold up the arithmetic.
struct Ahead {
  const uint8_t *keys, *values;
  size_t lines, each, done;  // of keys, and of values

  __attribute__((always_inline)) void some() {
    const size_t end = lines - done < each ? lines : done + each;
    for (; done < end; done++) {
      __builtin_prefetch(keys + done * LINE, 0, 2);
      __builtin_prefetch(values + done * LINE, 0, 2);
    }
  }
};

// scores[n, lane] = sum over d of keys[n, d] * queries[d, lane] for K keys and V vectors of lanes.
template <int K, int V>
INLINE void score_keys(const float* queries, const float* keys, size_t stride, size_t head_dim, float* scores,
                       Ahead& ahead) {
  Floats sums[K][V];
  UNROLL for (int k = 0; k < K; k++)
    UNROLL for (int v = 0; v < V; v++) sums[k][v] = all(0);
  for (size_t d = 0; d < head_dim;) {
    ahead.some();
    const size_t end = head_dim - d < SEGMENT ? head_dim : d + SEGMENT;
    for (; d < end; d++) {
      Floats query[V];
      UNROLL for (int v = 0; v < V; v++) query[v] = load(queries + (d * V + v) * LANES);
      UNROLL for (int k = 0; k < K; k++) {
        const Floats key = all(keys[k * stride + d]);
        UNROLL for (int v = 0; v < V; v++) sums[k][v] = key * query[v] + sums[k][v];
      }
    }
  }
  UNROLL for (int k = 0; k < K; k++)
    UNROLL for (int v = 0; v < V; v++) store(scores + (k * V + v) * LANES, sums[k][v]);
}

template <int V>
constexpr size_t most_keys() {
  return ACCUMULATORS / V > 12 ? 12 : ACCUMULATORS / V;
}

template <int V>
void score_many(const float* queries, const float* keys, size_t stride, size_t head_dim, size_t count, float* scores,
                Ahead& ahead) {
  constexpr int MOST = most_keys<V>();
  size_t n = 0;
  for (; n + MOST <= count; n += MOST)
    score_keys<MOST, V>(queries, keys + n * stride, stride, head_dim, scores + n * V * LANES, ahead);
  for (; n + 4 <= count; n += 4)
    score_keys<4, V>(queries, keys + n * stride, stride, head_dim, scores + n * V * LANES, ahead);
  for (; n < count; n++) score_keys<1, V>(queries, keys + n * stride, stride, head_dim, scores + n * V * LANES, ahead);
}

// sums[d, lane] = sums[d, lane] * scale[lane] + sum over n of weights[n, lane] * values[n, d] for D dimensions.
template <int D, int V>
INLINE void add_dims(const float* weights, const float* values, size_t stride, size_t count, const Floats* scale,
                     float* sums) {
  Floats totals[D][V];
  UNROLL for (int d = 0; d < D; d++)
    UNROLL for (int v = 0; v < V; v++) totals[d][v] = load(sums + (d * V + v) * LANES) * scale[v];
  for (size_t n = 0; n < count; n++, values += stride) {
    Floats weight[V];
    UNROLL for (int v = 0; v < V; v++) weight[v] = load(weights + (n * V + v) * LANES);
    UNROLL for (int d = 0; d < D; d++) {
      const Floats value = all(values[d]);
      UNROLL for (int v = 0; v < V; v++) totals[d][v] = value * weight[v] + totals[d][v];
    }
  }
  UNROLL for (int d = 0; d < D; d++)
    UNROLL for (int v = 0; v < V; v++) store(sums + (d * V + v) * LANES, totals[d][v]);
}

template <int V>
void add_many(const float* weights, const float* values, size_t stride, size_t head_dim, size_t count,
              const Floats* scale, float* sums) {
  constexpr int MOST = ACCUMULATORS / V > 12 ? 12 : ACCUMULATORS / V;
  size_t d = 0;
  for (; d + MOST <= head_dim; d += MOST)
    add_dims<MOST, V>(weights, values + d, stride, count, scale, sums + d * V * LANES);
  for (; d + 4 <= head_dim; d += 4) add_dims<4, V>(weights, values + d, stride, count, scale, sums + d * V * LANES);
  for (; d < head_dim; d++) add_dims<1, V>(weights, values + d, stride, count, scale, sums + d * V * LANES);
}

// ---- few rows ----

constexpr size_t FOUR = 4;  // rows that are computed at once
constexpr size_t FEW_POSITIONS = 9;  // of a block: with what is fetched meanwhile they stay in the L1 cache

static inline size_t pairs_of(size_t head_dim) { return (head_dim + PAIR - 1) / PAIR; }

// One pair of a position that is shorter than its last pair: zeros follow, and nothing is read there.
template <CacheType TYPE>
INLINE void copy_last(const uint8_t* position, size_t pair, size_t bytes, uint8_t* out) {
  constexpr size_t each = pair_bytes<TYPE>();
  const size_t count = bytes - pair * each;
  for (size_t i = 0; i < each; i++)
    out[i] = i < count ? position[pair * each + i] : TYPE == CacheType::INT4 ? 0x88 : 0;  // codes of zero
}

// Adds one pair of dimensions to the sums of K keys and four rows.
template <CacheType TYPE, int K>
INLINE void multiply_four(const float* queries, const uint8_t* keys, size_t bytes, Floats (*sums)[FOUR]) {
  UNROLL for (int half = 0; half < 2; half++) {
    Floats key[K];
    UNROLL for (int k = 0; k < K; k++) key[k] = load_half<TYPE>(keys + k * bytes, half);
    UNROLL for (size_t r = 0; r < FOUR; r++) {
      const Floats query = load(queries + (r * 2 + half) * LANES);
      UNROLL for (int k = 0; k < K; k++) sums[k][r] = key[k] * query + sums[k][r];
    }
  }
}

// scores[k * stride + r] for K keys and four rows; queries are [pair, 4, 2, LANES].
template <CacheType TYPE, int K>
INLINE void score_four(const float* queries, const uint8_t* keys, size_t bytes, size_t num_pairs, float* scores,
                       size_t stride, const uint8_t* next) {
  constexpr size_t each = pair_bytes<TYPE>();
  Floats sums[K][FOUR];
  UNROLL for (int k = 0; k < K; k++)
    UNROLL for (size_t r = 0; r < FOUR; r++) sums[k][r] = all(0);
  const size_t whole = bytes / each;
  size_t p = 0;
  for (; p < whole; p++, queries += FOUR * PAIR) {
    if (next && p * each % LINE == 0)
      UNROLL for (int k = 0; k < K; k++)
        UNROLL for (size_t line = 0; line < each; line += LINE) prefetch(next + k * bytes + p * each + line);
    multiply_four<TYPE, K>(queries, keys + p * each, bytes, sums);
  }
  if (p < num_pairs) {
    uint8_t last[K * each];
    for (int k = 0; k < K; k++) copy_last<TYPE>(keys + k * bytes, p, bytes, last + k * each);
    multiply_four<TYPE, K>(queries, last, each, sums);
  }
  UNROLL for (int k = 0; k < K; k++) sum_four(sums[k], scores + k * stride);
}

// Scores [count, stride] of `fours` times four rows. Positions from `next` on are fetched meanwhile.
template <CacheType TYPE>
void score_few(const float* queries, size_t fours, const uint8_t* keys, size_t head_dim, size_t count, float* scores,
               size_t stride, const uint8_t* next) {
  const size_t bytes = position_bytes(TYPE, head_dim), num_pairs = pairs_of(head_dim);
  const size_t each = num_pairs * FOUR * PAIR;
  constexpr int MOST = TYPE == CacheType::INT4 ? 2 : 3;  // int4 needs registers to take codes apart
  size_t n = 0;
  for (; n + MOST <= count; n += MOST)
    for (size_t f = 0; f < fours; f++)
      score_four<TYPE, MOST>(queries + f * each, keys + n * bytes, bytes, num_pairs, scores + n * stride + f * FOUR,
                             stride, f ? nullptr : next + n * bytes);
  for (; n < count; n++)
    for (size_t f = 0; f < fours; f++)
      score_four<TYPE, 1>(queries + f * each, keys + n * bytes, bytes, num_pairs, scores + n * stride + f * FOUR,
                          stride, f ? nullptr : next + n * bytes);
}

// sums [pair, 4, 2, LANES] = sums * scale + weights [count, stride] times one pair of values, for four rows.
template <CacheType TYPE>
INLINE void add_four(const float* weights, size_t stride, const uint8_t* values, size_t bytes, size_t count,
                     const float* scale, float* sums, const uint8_t* next) {
  Floats totals[FOUR][2];
  UNROLL for (size_t r = 0; r < FOUR; r++)
    UNROLL for (int half = 0; half < 2; half++) totals[r][half] = load(sums + (r * 2 + half) * LANES) * scale[r];
  constexpr size_t fetched = pair_bytes<TYPE>() > LINE ? pair_bytes<TYPE>() : LINE;  // bytes for each position
  for (size_t n = 0; n < count; n++, values += bytes, weights += stride) {
    if (next)
      UNROLL for (size_t line = 0; line < fetched; line += LINE) prefetch(next + n * fetched + line);
    const Floats value[2] = {load_half<TYPE>(values, 0), load_half<TYPE>(values, 1)};
    UNROLL for (size_t r = 0; r < FOUR; r++) {
      const Floats weight = all(weights[r]);
      UNROLL for (int half = 0; half < 2; half++) totals[r][half] = value[half] * weight + totals[r][half];
    }
  }
  UNROLL for (size_t r = 0; r < FOUR; r++)
    UNROLL for (int half = 0; half < 2; half++) store(sums + (r * 2 + half) * LANES, totals[r][half]);
}

// Positions from `next` on are fetched meanwhile.
template <CacheType TYPE>
void add_few(const float* weights, size_t stride, size_t fours, const uint8_t* values, size_t head_dim, size_t count,
             const float* scale, float* sums, const uint8_t* next) {
  constexpr size_t each = pair_bytes<TYPE>();
  const size_t bytes = position_bytes(TYPE, head_dim), num_pairs = pairs_of(head_dim);
  for (size_t p = 0; p < num_pairs; p++) {
    const uint8_t* at = values + p * each;
    size_t step = bytes;
    uint8_t last[FEW_POSITIONS * each];
    if ((p + 1) * each > bytes) {
      for (size_t n = 0; n < count; n++) copy_last<TYPE>(values + n * bytes, p, bytes, last + n * each);
      at = last;
      step = each;
    }
    const uint8_t* fetched = p * each % LINE == 0 ? next + p * each * count : nullptr;
    for (size_t f = 0; f < fours; f++)
      add_four<TYPE>(weights + f * FOUR, stride, at, step, count, scale + f * FOUR,
                     sums + (f * num_pairs + p) * FOUR * PAIR, f ? nullptr : fetched);
  }
}

}  // namespace
}  // namespace qwonnx
