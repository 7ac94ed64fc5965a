// What all kernels of attention share around their products: the query of a row, the positions that rows see, and the
// running softmax, in which rows are lanes.
#pragma once

#include "attention_vectors.h"

namespace qwonnx {
namespace {

// 1 / sqrt(number) by Newton's method: sqrt() is in libm, which the library does not link.
float reciprocal_root(size_t number) {
  double root = 1;
  const double square = static_cast<double>(number);
  while (root * root < square) root *= 2;
  for (int i = 0; i < 8; i++) root = (root + square / root) / 2;
  return static_cast<float>(1 / root);
}

// Number d of a row's query, times the scale of the keys, 1 / sqrt(head_dim) and log2(e).
struct Query {
  const float *at, *scales;
  float factor;

  Query(const AttentionHead& head, size_t row, float factor)
      : at(head.query + row / head.group * head.token_stride + row % head.group * head.head_dim),
        scales(head.key_scales),
        factor(factor) {}
  float operator()(size_t d) const { return at[d] * (scales ? scales[d] * factor : factor); }
  Floats numbers(size_t d) const { return load(at + d) * load(scales + d); }  // of codes, without the factor
};

// How many of the positions of a block V vectors of rows see.
template <int V>
struct Seen {
  Floats ends[V];        // by each row
  size_t by_all, by_any;

  Seen(const AttentionHead& head, size_t first_row, size_t last_row, size_t position, size_t count)
      : by_all(count), by_any(count) {
    if (head.past + first_row / head.group + 1 >= position + count) {  // most blocks
      for (int v = 0; v < V; v++) ends[v] = all(static_cast<float>(count));
      return;
    }
    by_any = 0;
    alignas(64) float lanes[V * LANES];
    for (size_t lane = 0; lane < V * LANES; lane++) {
      const size_t row = first_row + lane < last_row ? first_row + lane : last_row - 1;
      const size_t sees = head.past + row / head.group + 1;
      const size_t end = sees <= position ? 0 : sees - position < count ? sees - position : count;
      lanes[lane] = static_cast<float>(end);
      if (end < by_all) by_all = end;
      if (end > by_any) by_any = end;
    }
    for (int v = 0; v < V; v++) ends[v] = load(lanes + v * LANES);
  }
};

// Scores [seen.by_any, V * LANES] become weights; what was summed before is to be multiplied by `scale`.
template <int V>
void soften(const Seen<V>& seen, float* scores, float* maxima, float* totals, Floats* scale) {
  for (int v = 0; v < V; v++) {
    const Floats before = load(maxima + v * LANES);
    Floats most = before, number = all(0);
    for (size_t n = 0; n < seen.by_any; n++, number = number + 1.0f) {
      float* at = scores + (n * V + v) * LANES;
      if (n >= seen.by_all) store(at, where(number < seen.ends[v], load(at), all(LOWEST)));
      most = larger(load(at), most);
    }
    scale[v] = power_of_two(before - most);
    Floats total = load(totals + v * LANES) * scale[v];
    number = all(0);
    for (size_t n = 0; n < seen.by_any; n++, number = number + 1.0f) {
      float* at = scores + (n * V + v) * LANES;
      const Floats is = load(at);
      Floats weight = power_of_two(is - most) + (is - is);  // NaN if the score is not finite
      if (n >= seen.by_all) weight = where(number < seen.ends[v], weight, all(0));
      total = total + weight;
      store(at, weight);
    }
    store(maxima + v * LANES, most);
    store(totals + v * LANES, total);
  }
}

// The last position that any row of a part sees, plus one.
size_t last_seen(const AttentionHead& head, const AttentionPart& part) {
  const size_t sees = head.past + (part.first_row + part.num_rows - 1) / head.group + 1;
  return part.last < sees ? part.last : sees;
}

void begin(size_t lanes, float* maxima, float* totals) {
  for (size_t i = 0; i < lanes; i++) maxima[i] = LOWEST, totals[i] = 0;
}

}  // namespace
}  // namespace qwonnx
