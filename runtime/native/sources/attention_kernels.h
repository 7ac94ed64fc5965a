// The kernels of attention. See attention_vectors.h for what a file defines before it includes this one.
//
// Block of positions after block: scores, the running softmax that scales what was summed before, values by weights. In
// the softmax rows are lanes. Scales of keys are multiplied into the queries and those of values into the result, so
// that codes need none. Where an instruction set has products of codes, those are used for them (attention_codes.h).
#pragma once

#include "attention_codes.h"
#include "attention_products.h"
#include "attention_softmax.h"

namespace qwonnx {
namespace {

constexpr size_t MAX_FEW = 8;  // rows
constexpr size_t MAX_VECTORS = ACCUMULATORS == 12 || LANES == 16 ? 2 : 4;  // of a tile

size_t lanes_of(size_t num_rows) { return (num_rows + LANES - 1) / LANES * LANES; }

// ---- few rows ----

template <CacheType TYPE, int V>
void attend_few(const AttentionHead& head, const AttentionPart& part, float* workspace, float* state) {
  constexpr size_t LANES_HERE = V * LANES;
  const size_t head_dim = head.head_dim, num_pairs = pairs_of(head_dim), fours = (part.num_rows + FOUR - 1) / FOUR;
  const size_t bytes = position_bytes(TYPE, head_dim), size = fours * num_pairs * FOUR * PAIR;
  float *queries = workspace, *sums = queries + size, *scores = sums + size;
  float *maxima = scores + FEW_POSITIONS * LANES_HERE, *totals = maxima + LANES_HERE;
  begin(LANES_HERE, maxima, totals);
  memset(sums, 0, size * sizeof(float));
  memset(queries, 0, size * sizeof(float));
  memset(scores, 0, FEW_POSITIONS * LANES_HERE * sizeof(float));  // lanes without a row
  const float factor = reciprocal_root(head_dim) * LOG2_E;
  // Where number `place` of pair p of a row lies among queries and sums.
  const auto offset = [num_pairs](size_t row, size_t p, size_t place) {
    return ((row / FOUR * num_pairs + p) * FOUR + row % FOUR) * PAIR + place;
  };
  for (size_t row = 0; row < part.num_rows; row++) {
    const Query query(head, part.first_row + row, factor);
    for (size_t p = 0; p < num_pairs; p++)
      for (size_t place = 0; place < PAIR; place++) {
        const size_t d = p * PAIR + pair_dim<TYPE>(place);
        if (d < head_dim) queries[offset(row, p, place)] = query(d);
      }
  }
  const size_t last = last_seen(head, part);
  for (size_t position = part.first; position < last; position += FEW_POSITIONS) {
    const size_t count = last - position < FEW_POSITIONS ? last - position : FEW_POSITIONS;
    const Seen<V> seen(head, part.first_row, part.first_row + part.num_rows, position, count);
    const uint8_t *keys = head.keys + position * bytes, *values = head.values + position * bytes;
    score_few<TYPE>(queries, fours, keys, head_dim, count, scores, LANES_HERE, values);
    Floats scale[V];
    soften<V>(seen, scores, maxima, totals, scale);
    alignas(64) float scales[LANES_HERE];
    for (int v = 0; v < V; v++) store(scales + v * LANES, scale[v]);
    add_few<TYPE>(scores, LANES_HERE, fours, values, head_dim, count, scales, sums, keys + count * bytes);
  }
  for (size_t row = 0; row < part.num_rows; row++) {
    state[row] = maxima[row];
    state[part.num_rows + row] = totals[row];
    float* out = state + 2 * part.num_rows + row * head_dim;
    for (size_t p = 0; p < num_pairs; p++)
      for (size_t place = 0; place < PAIR; place++) {
        const size_t d = p * PAIR + pair_dim<TYPE>(place);
        if (d < head_dim) out[d] = sums[offset(row, p, place)];
      }
  }
}

// ---- many rows ----

// A block of positions as floats, converted into `room` or where it lies.
struct Block {
  const float* at;
  size_t stride;
};

template <CacheType TYPE>
void widen_position(const uint8_t* at, size_t bytes, size_t num_pairs, float* out) {
  constexpr size_t each = pair_bytes<TYPE>();
  for (size_t p = 0; p < num_pairs; p++, out += PAIR) {
    const uint8_t* pair = at + p * each;
    uint8_t last[each];
    if ((p + 1) * each > bytes) {
      copy_last<TYPE>(at, p, bytes, last);
      pair = last;
    }
    for (int half = 0; half < 2; half++) store(out + half * LANES, load_half<TYPE>(pair, half));
  }
}

// With int4 the numbers of a pair are in the order of pair_dim().
template <CacheType TYPE>
Block widen_block(const uint8_t* at, size_t count, size_t head_dim, float* room) {
  const size_t bytes = position_bytes(TYPE, head_dim), stride = padded_dim(head_dim), num_pairs = pairs_of(head_dim);
  for (size_t n = 0; n < count; n++) {
    widen_position<TYPE>(at + n * bytes, bytes, num_pairs, room + n * stride);
  }
  return {room, stride};
}

// Vectors of the next tile of a part that has `left` vectors still to come.
size_t tile_vectors(size_t left) { return left >= 4 && MAX_VECTORS >= 4 ? 4 : left >= 2 ? 2 : 1; }

// Rows [first, first + V * LANES) over one block; queries and sums are [dims, V * LANES].
template <int V>
void attend_tile(const AttentionHead& head, size_t first_row, size_t last_row, size_t position, size_t count,
                 const float* queries, float* maxima, float* totals, float* sums, Block keys, Block values, size_t dims,
                 float* scores, Ahead& ahead) {
  const Seen<V> seen(head, first_row, last_row, position, count);
  if (seen.by_any == 0) return;
  score_many<V>(queries, keys.at, keys.stride, dims, seen.by_any, scores, ahead);
  Floats scale[V];
  soften<V>(seen, scores, maxima, totals, scale);
  add_many<V>(scores, values.at, values.stride, dims, seen.by_any, scale, sums);
}

// How many lines of a block are fetched at a time while the tiles of a block are computed.
size_t lines_each(size_t lanes, size_t dims, size_t bytes) {
  const size_t vectors = tile_vectors(lanes / LANES), tiles = (lanes / LANES + vectors - 1) / vectors;
  const size_t keys = vectors == 4 ? most_keys<MAX_VECTORS>() : vectors == 2 ? most_keys<2>() : most_keys<1>();
  return bytes / LINE / (tiles * (POSITIONS / keys) * ((dims + SEGMENT - 1) / SEGMENT)) + 1;
}

template <CacheType TYPE>
void attend_many(const AttentionHead& head, const AttentionPart& part, float* workspace, float* state) {
  const size_t head_dim = head.head_dim, bytes = position_bytes(TYPE, head_dim), lanes = lanes_of(part.num_rows);
  const size_t last_row = part.first_row + part.num_rows;
  // int4 has its numbers in another order within a pair, so whole pairs are needed.
  const size_t dims = TYPE == CacheType::INT4 ? pairs_of(head_dim) * PAIR : head_dim;
  float* queries = workspace;
  float* sums = queries + padded_dim(head_dim) * MAX_ROWS;
  float* key_room = sums + padded_dim(head_dim) * MAX_ROWS;
  float* value_room = key_room + padded_dim(head_dim) * POSITIONS;
  float* scores = value_room + padded_dim(head_dim) * POSITIONS;
  float *maxima = scores + POSITIONS * MAX_ROWS, *totals = maxima + MAX_ROWS;
  begin(lanes, maxima, totals);
  memset(sums, 0, dims * lanes * sizeof(float));
  memset(queries, 0, dims * lanes * sizeof(float));
  const float factor = reciprocal_root(head_dim) * LOG2_E;
  const auto dim_at = [](size_t d) { return d / PAIR * PAIR + pair_dim<TYPE>(d % PAIR); };
  for (size_t vector = 0, vectors; vector < lanes / LANES; vector += vectors) {
    vectors = tile_vectors(lanes / LANES - vector);
    for (size_t i = 0; i < vectors * LANES && vector * LANES + i < part.num_rows; i++) {
      const Query query(head, part.first_row + vector * LANES + i, factor);
      float* out = queries + vector * LANES * dims + i;
      for (size_t d = 0; d < dims; d++)
        if (dim_at(d) < head_dim) out[d * vectors * LANES] = query(dim_at(d));
    }
  }
  const size_t last = last_seen(head, part);
  const size_t each = lines_each(lanes, dims, POSITIONS * bytes);
  for (size_t position = part.first; position < last; position += POSITIONS) {
    const size_t count = last - position < POSITIONS ? last - position : POSITIONS;
    const uint8_t* at = head.keys + position * bytes;
    const Block keys = TYPE == CacheType::FLOAT32 ? Block{reinterpret_cast<const float*>(at), head_dim}
                                                  : widen_block<TYPE>(at, count, head_dim, key_room);
    // Floats too: values are read down their columns, where a stride of a power of two would fill few cache sets.
    const Block values = widen_block<TYPE>(head.values + position * bytes, count, head_dim, value_room);
    Ahead ahead = {at + count * bytes, head.values + (position + count) * bytes, count * bytes / LINE, each, 0};
    for (size_t vector = 0, vectors; vector < lanes / LANES; vector += vectors) {
      vectors = tile_vectors(lanes / LANES - vector);
      const size_t lane = vector * LANES;
      const auto attend = vectors == 4 ? attend_tile<MAX_VECTORS> : vectors == 2 ? attend_tile<2> : attend_tile<1>;
      attend(head, part.first_row + lane, last_row, position, count, queries + lane * dims, maxima + lane,
             totals + lane, sums + lane * dims, keys, values, dims, scores, ahead);
    }
  }
  for (size_t vector = 0, vectors; vector < lanes / LANES; vector += vectors) {
    vectors = tile_vectors(lanes / LANES - vector);
    for (size_t i = 0; i < vectors * LANES && vector * LANES + i < part.num_rows; i++) {
      const size_t row = vector * LANES + i;
      const float* from = sums + vector * LANES * dims + i;
      float* out = state + 2 * part.num_rows + row * head_dim;
      for (size_t d = 0; d < dims; d++)
        if (dim_at(d) < head_dim) out[dim_at(d)] = from[d * vectors * LANES];
      state[row] = maxima[row];
      state[part.num_rows + row] = totals[row];
    }
  }
}

template <CacheType TYPE>
void attend_rows(const AttentionHead& head, const AttentionPart& part, float* workspace, float* state) {
  if (takes_codes(TYPE, head.head_dim)) return attend_codes<TYPE>(head, part, workspace, state);
  constexpr int most = LANES < MAX_FEW ? MAX_FEW / LANES : 1;  // vectors of few rows
  if (part.num_rows > MAX_FEW) return attend_many<TYPE>(head, part, workspace, state);
  if (part.num_rows > LANES) return attend_few<TYPE, most>(head, part, workspace, state);
  attend_few<TYPE, 1>(head, part, workspace, state);
}

void attend(const AttentionHead& head, const AttentionPart& part, float* workspace, float* state) {
  switch (head.type) {
    case CacheType::FLOAT32: return attend_rows<CacheType::FLOAT32>(head, part, workspace, state);
    case CacheType::INT8: return attend_rows<CacheType::INT8>(head, part, workspace, state);
    case CacheType::INT4: return attend_rows<CacheType::INT4>(head, part, workspace, state);
  }
}

// ---- the end ----

void finish(const AttentionHead& head, const AttentionPart& rows, const float* states, size_t num_states, size_t stride,
            size_t first_row, size_t last_row) {
  const size_t head_dim = head.head_dim;
  for (size_t row = first_row; row < last_row; row++) {
    float most = LOWEST;
    for (size_t s = 0; s < num_states; s++)
      if (states[s * stride + row] > most) most = states[s * stride + row];
    const auto weight_of = [=](size_t s) { return power_of_two(all(states[s * stride + row] - most)); };
    Floats total = all(0);
    for (size_t s = 0; s < num_states; s++) total = total + weight_of(s) * states[s * stride + rows.num_rows + row];
    const Floats share = 1.0f / total;
    const size_t of_part = rows.first_row + row;
    const size_t place = of_part / head.group * head.token_stride + of_part % head.group * head_dim;
    float* out = head.output + place;
    for (size_t s = 0; s < num_states; s++) {
      const Floats weight = weight_of(s) * share;
      const float* sums = states + s * stride + 2 * rows.num_rows + row * head_dim;
      for (size_t d = 0; d < head_dim; d += LANES) {
        Floats value = load_first(sums + d, head_dim - d) * weight;
        if (s) value = value + load_first(out + d, head_dim - d);
        store_first(out + d, head_dim - d, value);
      }
    }
    for (size_t d = 0; d < head_dim; d += LANES) {
      const size_t left = head_dim - d;
      Floats value = load_first(out + d, left) * sigmoid(load_first(head.gate + place + d, left));
      if (head.value_scales) value = value * load_first(head.value_scales + d, left);
      store_first(out + d, left, value);
    }
  }
}

// ---- new positions ----

void quantize(CacheType type, const float* x, const float* scales, size_t head_dim, uint8_t* codes) {
  const float low = type == CacheType::INT8 ? -128.0f : -8.0f, high = type == CacheType::INT8 ? 127.0f : 7.0f;
  for (size_t from = 0; from < head_dim; from += LANES) {
    const size_t dims = head_dim - from < LANES ? head_dim - from : LANES;
    const Floats scaled = load_first(x + from, dims) * (1.0f / load_first(scales + from, dims));
    float results[LANES];
    // Clipping before rounding gives the same codes, and rounding needs small numbers.
    const Floats above = where(scaled > low, scaled, all(low));
    store(results, whole(where(above < high, above, all(high))));
    if (type == CacheType::INT8)
      for (size_t d = 0; d < dims; d++) codes[from + d] = static_cast<uint8_t>(static_cast<int8_t>(results[d]));
    else
      for (size_t d = 0; d < dims; d += 2)
        codes[(from + d) / 2] =
            static_cast<uint8_t>((static_cast<int>(results[d]) + 8) | ((static_cast<int>(results[d + 1]) + 8) << 4));
  }
}

}  // namespace
}  // namespace qwonnx
