// Attention over codes with products of whole numbers, for instruction sets that have them (QWONNX_CODE_PRODUCTS).
//
// A row's scaled query is rounded to 16 bits, relative to its largest number; the weights of a block of positions are
// rounded to 15 bits, relative to the row's largest in the block. Codes are widened to 16 bits, so one instruction
// multiplies twice as many of them as a vector has floats, and adds neighbours. Scores add dimensions in pairs; values
// add positions in pairs. Sums are exact. Rows are computed eight at a time.
//
// What rounding does, with scores in units of their exponent (base 2):
//  - Number d of a query is off by at most 1/2 of most / 32767, where most is the largest magnitude of query times scale.
//    So a score is off by at most most * (sum of its key's |codes|) * factor / 65534. The codes of the key are themselves
//    rounded by up to 1/2, uniformly: as root mean squares, this error is (most / rms of the query) * (rms of codes) /
//    32767 of theirs, which is below 16 * 127 / 32767 = 1/16 for 256 dimensions, and 1/160 for a normal query.
//  - A weight is off by at most 1 / 65534 of the largest of its block, and totals are those of the rounded weights. So the
//    output stays a mean of values. As root mean squares, this error is below 127 / 32767 * sqrt(48) = 1/37 of what
//    rounding values to codes does.
#pragma once

#include "attention_softmax.h"

namespace qwonnx {
namespace {

#if !defined(QWONNX_CODE_PRODUCTS)  // without instructions that are faster than products of floats

constexpr bool takes_codes(CacheType, size_t) { return false; }
template <CacheType TYPE>
void attend_codes(const AttentionHead&, const AttentionPart&, float*, float*) {}

#else

constexpr size_t EIGHT = 8;             // rows that are computed at once
constexpr size_t SHORTS = 2 * LANES;    // of a vector
constexpr size_t STRIDE = LANES;        // of scores: a vector for each position, whose lanes are rows or nothing
constexpr size_t CODE_LINE = 64;        // bytes that are fetched at once
constexpr float ROUNDER = 12582912.0f;  // added to a small number, it leaves a whole number in the low bits
constexpr float MOST_SHORT = 32767;
static_assert(LANES >= EIGHT && POSITIONS % 2 == 0, "a vector holds eight rows, and positions are paired");

// Codes are taken in groups of SHORTS bytes: of int8 one vector, of int4 two, the even dimensions and the odd ones.
template <CacheType TYPE>
constexpr size_t group_vectors() {
  return TYPE == CacheType::INT4 ? 2 : 1;
}
template <CacheType TYPE>
constexpr size_t group_dims() {
  return group_vectors<TYPE>() * SHORTS;
}

// A score is at most 128 * 32767 * head_dim.
constexpr size_t MAX_CODE_DIM = 512;

constexpr bool takes_codes(CacheType type, size_t head_dim) {
  return type != CacheType::FLOAT32 && head_dim <= MAX_CODE_DIM &&
         head_dim % (type == CacheType::INT4 ? group_dims<CacheType::INT4>() : group_dims<CacheType::INT8>()) == 0;
}

// The dimension of number `place` of vector `vector`, in the order of a position's groups.
template <CacheType TYPE>
constexpr size_t code_dim(size_t vector, size_t place) {
  return TYPE == CacheType::INT4 ? vector / 2 * group_dims<TYPE>() + 2 * place + vector % 2 : vector * SHORTS + place;
}

// Codes of int4 are too large by this; it is taken from sums.
template <CacheType TYPE>
constexpr int32_t too_large() {
  return TYPE == CacheType::INT4 ? 8 : 0;
}

INLINE Integers load_whole(const int32_t* at) {
  Integers value;
  memcpy(&value, at, sizeof value);
  return value;
}
INLINE void store_whole(int32_t* at, Integers value) { memcpy(at, &value, sizeof value); }
INLINE Integers all_whole(int32_t value) { return value - Integers{}; }
INLINE Shorts load_shorts(const int16_t* at) {
  Shorts value;
  memcpy(&value, at, sizeof value);
  return value;
}
INLINE void store_shorts(int16_t* at, Shorts value) { memcpy(at, &value, sizeof value); }

template <CacheType TYPE>
INLINE void load_group(const uint8_t* at, Shorts* out) {
  if (TYPE == CacheType::INT8) {
    out[0] = widen_signed(at);
  } else {
    const Shorts bytes = widen_unsigned(at);
    out[0] = bytes & 15;
    out[group_vectors<TYPE>() - 1] = bytes >> 4;
  }
}

// Eight rows over a block of positions.
struct Eight {
  alignas(64) float factors[STRIDE];   // a score is (its whole number - bias) * factor
  alignas(64) int32_t biases[STRIDE];
  alignas(64) float maxima[STRIDE];    // of the running softmax
  alignas(64) float totals[STRIDE];
  alignas(64) float before[STRIDE];    // what sums of earlier blocks are multiplied by
  alignas(64) float units[STRIDE];     // what the whole weights of this block are multiplied by
  alignas(64) int32_t whole_totals[STRIDE];             // sums of whole weights of this block
  alignas(64) int32_t weights[POSITIONS / 2 * STRIDE];  // of two positions each, the first one in the low half
  size_t num_positions;                                 // of this block that any row sees
};

// ---- queries ----

// Queries are [vector][rows][SHORTS], so that the rows' numbers for one vector of codes follow each other.
template <CacheType TYPE>
void round_query(const Query& query, size_t head_dim, size_t row, size_t rows, float factor, int16_t* queries,
                 Eight& eight) {
  alignas(64) float numbers[MAX_CODE_DIM];
  alignas(64) int32_t whole_numbers[MAX_CODE_DIM];
  Floats most = all(0), strays = all(0);
  for (size_t d = 0; d < head_dim; d += LANES) {
    const Floats number = query.numbers(d);
    most = larger(larger(number, -number), most);
    strays = strays + (number - number);  // NaN if one is not finite
    store(numbers + d, number);
  }
  float lanes[LANES], largest = 0, stray = 0;
  store(lanes, most);
  for (size_t lane = 0; lane < LANES; lane++) largest = lanes[lane] > largest ? lanes[lane] : largest;
  store(lanes, strays);
  for (size_t lane = 0; lane < LANES; lane++) stray += lanes[lane];
  eight.factors[row] = largest / MOST_SHORT * factor + stray;
  // A smaller one has no effect on any weight, and its inverse might not be finite. Then the query is zero.
  if (!(largest > 1e-30f) || stray != 0) return;
  const float inverse = MOST_SHORT / largest;
  Integers total = all_whole(0);
  for (size_t d = 0; d < head_dim; d += LANES) {
    const Floats rounded = load(numbers + d) * inverse + ROUNDER;
    const Integers number = (reinterpret_cast<Integers>(rounded) & 0x7fffff) - 0x400000;
    total = total + number;
    store_whole(whole_numbers + d, number);
  }
  int32_t whole_lanes[LANES], sum = 0;
  store_whole(whole_lanes, total);
  for (size_t lane = 0; lane < LANES; lane++) sum += whole_lanes[lane];
  for (size_t vector = 0; vector < head_dim / SHORTS; vector++)
    for (size_t place = 0; place < SHORTS; place++)
      queries[(vector * rows + row) * SHORTS + place] =
          static_cast<int16_t>(whole_numbers[code_dim<TYPE>(vector, place)]);
  eight.biases[row] = too_large<TYPE>() * sum;
}

// ---- scores ----

// scores[k * STRIDE + row] of R rows (4 or 8) for K keys.
template <CacheType TYPE, size_t K, size_t R>
INLINE void score_keys_of(const int16_t* queries, const uint8_t* keys, size_t bytes, int32_t* scores) {
  constexpr size_t VECTORS = group_vectors<TYPE>();
  Integers sums[K][R];
  UNROLL for (size_t k = 0; k < K; k++)
    UNROLL for (size_t r = 0; r < R; r++) sums[k][r] = all_whole(0);
  for (size_t at = 0; at < bytes; at += SHORTS, queries += VECTORS * R * SHORTS) {
    Shorts codes[K][VECTORS];
    UNROLL for (size_t k = 0; k < K; k++) load_group<TYPE>(keys + k * bytes + at, codes[k]);
    UNROLL for (size_t v = 0; v < VECTORS; v++)
      UNROLL for (size_t r = 0; r < R; r++) {
        const Shorts query = load_shorts(queries + (v * R + r) * SHORTS);
        UNROLL for (size_t k = 0; k < K; k++) sums[k][r] = add_products(sums[k][r], codes[k][v], query);
      }
  }
  UNROLL for (size_t k = 0; k < K; k++) sum_lanes<R>(sums[k], scores + k * STRIDE);
}

// Positions from `next` on are fetched meanwhile.
template <CacheType TYPE, size_t R>
void score_codes(const int16_t* queries, const uint8_t* keys, size_t bytes, size_t count, int32_t* scores,
                 const uint8_t* next) {
  constexpr size_t MOST = ACCUMULATORS / R < 3 ? 1 : TYPE == CacheType::INT4 ? 2 : 3;
  size_t n = 0;
  for (; n + MOST <= count; n += MOST) {
    if (next)
      for (size_t at = 0; at < MOST * bytes; at += CODE_LINE) prefetch(next + n * bytes + at);
    score_keys_of<TYPE, MOST, R>(queries, keys + n * bytes, bytes, scores + n * STRIDE);
  }
  for (; n < count; n++) score_keys_of<TYPE, 1, R>(queries, keys + n * bytes, bytes, scores + n * STRIDE);
}

// ---- weights ----

// Scores [seen.by_any, STRIDE] become the weights of a block. `room` is as large as the scores, as floats.
void soften_codes(const Seen<1>& seen, const int32_t* scores, float* room, Eight& eight) {
  const Floats factor = load(eight.factors), before = load(eight.maxima);
  const Integers bias = load_whole(eight.biases);
  Floats highest = all(LOWEST), number = all(0);
  for (size_t n = 0; n < seen.by_any; n++, number = number + 1.0f) {
    Floats score = __builtin_convertvector(load_whole(scores + n * STRIDE) - bias, Floats) * factor;
    if (n >= seen.by_all) score = where(number < seen.ends[0], score, all(LOWEST));
    store(room + n * STRIDE, score);
    highest = larger(score, highest);
  }
  const Floats most = larger(highest, before);
  Floats strays = all(0);
  Integers total = all_whole(0);
  number = all(0);
  const auto weight_of = [&](size_t n) {
    const Floats score = load(room + n * STRIDE);
    strays = strays + (score - score);  // NaN if it is not finite
    const Floats rounded = power_of_two(score - highest) * MOST_SHORT + ROUNDER;
    Integers weight = reinterpret_cast<Integers>(rounded) & 0x7fff;
    if (n >= seen.by_all) weight = weight & (number < seen.ends[0]);
    number = number + 1.0f;
    total = total + weight;
    return weight;
  };
  size_t n = 0;
  for (; n + 2 <= seen.by_any; n += 2) {
    const Integers first = weight_of(n);
    store_whole(eight.weights + n / 2 * STRIDE, first | weight_of(n + 1) << 16);
  }
  if (n < seen.by_any) store_whole(eight.weights + n / 2 * STRIDE, weight_of(n));
  const Floats unit = power_of_two(highest - most) * (1 / MOST_SHORT), scale = power_of_two(before - most);
  store(eight.before, scale);
  store(eight.units, unit);
  store(eight.maxima, most);
  store_whole(eight.whole_totals, total);
  store(eight.totals, load(eight.totals) * scale + __builtin_convertvector(total, Floats) * unit + strays);
}

// ---- values ----

// One group of two positions as pairs: [vector][2][LANES pairs].
template <CacheType TYPE>
INLINE void widen_pair(const uint8_t* first, const uint8_t* second, int16_t* out) {
  constexpr size_t VECTORS = group_vectors<TYPE>();
  Shorts one[VECTORS], two[VECTORS];
  load_group<TYPE>(first, one);
  load_group<TYPE>(second, two);
  UNROLL for (size_t v = 0; v < VECTORS; v++) {
    store_shorts(out + 2 * v * SHORTS, interleave_low(one[v], two[v]));
    store_shorts(out + (2 * v + 1) * SHORTS, interleave_high(one[v], two[v]));
  }
}

// One group of a block's values, [pair][vector][2][LANES pairs]. Positions from `next` on are fetched meanwhile.
template <CacheType TYPE>
void widen_group(const uint8_t* values, size_t bytes, size_t count, int16_t* out, const uint8_t* next) {
  constexpr size_t STEP = group_vectors<TYPE>() * 2 * SHORTS;
  size_t n = 0;
  for (; n + 4 <= count; n += 4, values += 4 * bytes, out += 2 * STEP) {
    for (size_t at = 0; at < 4 * SHORTS; at += CODE_LINE) prefetch(next + n * SHORTS + at);
    widen_pair<TYPE>(values, values + bytes, out);
    widen_pair<TYPE>(values + 2 * bytes, values + 3 * bytes, out + STEP);
  }
  for (; n < count; n += 2, values += 2 * bytes, out += STEP)
    widen_pair<TYPE>(values, n + 1 < count ? values + bytes : values, out);  // the weight of a lacking one is zero
}

// sums [2][EIGHT][LANES] of R rows for one vector of widen_group().
template <CacheType TYPE, size_t R>
INLINE void add_vector(const Eight& eight, size_t row, const int16_t* pairs, float* sums) {
  constexpr size_t STEP = group_vectors<TYPE>() * 2 * SHORTS;
  Integers totals[R][2];
  UNROLL for (size_t r = 0; r < R; r++) {
    totals[r][0] = all_whole(-too_large<TYPE>() * eight.whole_totals[row + r]);
    totals[r][1] = totals[r][0];
  }
  const int32_t* weights = eight.weights + row;
  for (size_t n = 0; n < eight.num_positions; n += 2, pairs += STEP, weights += STRIDE) {
    const Shorts low = load_shorts(pairs), high = load_shorts(pairs + SHORTS);
    UNROLL for (size_t r = 0; r < R; r++) {
      const Shorts weight = reinterpret_cast<Shorts>(all_whole(weights[r]));
      totals[r][0] = add_products(totals[r][0], low, weight);
      totals[r][1] = add_products(totals[r][1], high, weight);
    }
  }
  UNROLL for (size_t r = 0; r < R; r++)
    UNROLL for (size_t half = 0; half < 2; half++) {
      float* at = sums + (half * EIGHT + row + r) * LANES;
      const Floats added = __builtin_convertvector(totals[r][half], Floats) * eight.units[row + r];
      store(at, load(at) * eight.before[row + r] + added);
    }
}

// ---- a piece of work ----

// How the memory of a workspace is used.
struct CodeRoom {
  int16_t* queries;  // [eights][head_dim / SHORTS][rows][SHORTS]
  float* sums;       // [eights][head_dim / SHORTS][2][EIGHT][LANES]
  int32_t* scores;   // [POSITIONS][STRIDE]
  float* floats;     // the same
  int16_t* pairs;    // of widen_group()
  Eight* eights;

  CodeRoom(float* workspace, size_t head_dim, size_t num_eights) {
    eights = reinterpret_cast<Eight*>(workspace);
    scores = reinterpret_cast<int32_t*>(eights + num_eights);
    floats = reinterpret_cast<float*>(scores + POSITIONS * STRIDE);
    pairs = reinterpret_cast<int16_t*>(floats + POSITIONS * STRIDE);
    queries = pairs + POSITIONS * 2 * SHORTS;
    sums = reinterpret_cast<float*>(queries + num_eights * EIGHT * head_dim);
  }
};

static_assert(MAX_ROWS / EIGHT * sizeof(Eight) + POSITIONS * (2 * STRIDE * 4 + 2 * SHORTS * 2) <= 4 * CODE_FLOATS,
              "a workspace has room for codes");

template <CacheType TYPE>
void attend_codes(const AttentionHead& head, const AttentionPart& part, float* workspace, float* state) {
  const size_t head_dim = head.head_dim, bytes = position_bytes(TYPE, head_dim), num_vectors = head_dim / SHORTS;
  const size_t num_eights = (part.num_rows + EIGHT - 1) / EIGHT;
  const CodeRoom room(workspace, head_dim, num_eights);
  memset(static_cast<void*>(room.eights), 0, num_eights * sizeof(Eight));
  memset(room.queries, 0, num_eights * EIGHT * head_dim * sizeof(int16_t));
  memset(room.sums, 0, num_eights * EIGHT * head_dim * sizeof(float));
  memset(room.scores, 0, POSITIONS * STRIDE * sizeof(int32_t));  // lanes without a row
  const float factor = reciprocal_root(head_dim) * LOG2_E;
  const auto rows_of = [&](size_t e) { return part.num_rows - e * EIGHT > 4 ? EIGHT : size_t{4}; };
  for (size_t e = 0; e < num_eights; e++) {
    begin(STRIDE, room.eights[e].maxima, room.eights[e].totals);
    for (size_t row = 0; row < EIGHT && e * EIGHT + row < part.num_rows; row++)
      round_query<TYPE>(Query(head, part.first_row + e * EIGHT + row, 1), head_dim, row, rows_of(e), factor,
                        room.queries + e * EIGHT * head_dim, room.eights[e]);
  }
  const size_t last = last_seen(head, part), last_row = part.first_row + part.num_rows;
  for (size_t position = part.first; position < last; position += POSITIONS) {
    const size_t count = last - position < POSITIONS ? last - position : POSITIONS;
    const uint8_t *keys = head.keys + position * bytes, *values = head.values + position * bytes;
    for (size_t e = 0; e < num_eights; e++) {
      Eight& eight = room.eights[e];
      const size_t first_row = part.first_row + e * EIGHT;
      const Seen<1> seen(head, first_row, first_row + EIGHT < last_row ? first_row + EIGHT : last_row, position, count);
      eight.num_positions = seen.by_any;
      if (seen.by_any == 0) continue;
      const auto score = rows_of(e) == 4 ? score_codes<TYPE, 4> : score_codes<TYPE, 8>;
      score(room.queries + e * EIGHT * head_dim, keys, bytes, seen.by_any, room.scores, e ? nullptr : values);
      soften_codes(seen, room.scores, room.floats, eight);
    }
    for (size_t v = 0; v < num_vectors; v += group_vectors<TYPE>()) {
      const size_t at = v / group_vectors<TYPE>() * SHORTS;
      widen_group<TYPE>(values + at, bytes, count, room.pairs, keys + count * bytes + at * count);
      for (size_t e = 0; e < num_eights; e++) {
        if (room.eights[e].num_positions == 0) continue;
        for (size_t u = 0; u < group_vectors<TYPE>(); u++)
          for (size_t row = 0; row < rows_of(e); row += VALUE_ROWS)
            add_vector<TYPE, VALUE_ROWS>(room.eights[e], row, room.pairs + 2 * u * SHORTS,
                                            room.sums + (e * num_vectors + v + u) * 2 * EIGHT * LANES);
      }
    }
  }
  for (size_t row = 0; row < part.num_rows; row++) {
    const Eight& eight = room.eights[row / EIGHT];
    state[row] = eight.maxima[row % EIGHT];
    state[part.num_rows + row] = eight.totals[row % EIGHT];
    float* out = state + 2 * part.num_rows + row * head_dim;
    for (size_t v = 0; v < num_vectors; v++)
      for (size_t half = 0; half < 2; half++) {
        const float* sums = room.sums + (((row / EIGHT * num_vectors + v) * 2 + half) * EIGHT + row % EIGHT) * LANES;
        // Interleaving takes four numbers of 128 bits for the low half, and four for the high half.
        for (size_t lane = 0; lane < LANES; lane++)
          out[code_dim<TYPE>(v, lane / 4 * 8 + half * 4 + lane % 4)] = sums[lane];
      }
  }
}

#endif

}  // namespace
}  // namespace qwonnx
