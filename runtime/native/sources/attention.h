// Attention over a cache: what the operator (attention.cpp) and the kernels of an instruction set share.
//
// A query row is one query head of one token. The rows whose heads share a key/value head are attended to together:
// row r is the head r % group of token r / group, and it sees the positions 0 to past + r / group. Keys and values are
// read in the cache's own order, once for all rows.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace qwonnx {

constexpr size_t MAX_ROWS = 64;   // of one piece of work
constexpr size_t POSITIONS = 48;  // of a block: a multiple of every number of keys that a kernel takes at once

// How a buffer of keys or values stores a number: float32, or codes with one scale a channel. Four bits: two channels a
// byte, the even one in the low half, each as code + 8.
enum class CacheType { FLOAT32, INT8, INT4 };

static inline size_t position_bytes(CacheType type, size_t head_dim) {
  return type == CacheType::FLOAT32 ? 4 * head_dim : type == CacheType::INT8 ? head_dim : head_dim / 2;
}

// One key/value head of one sequence, and the query heads that share it.
struct AttentionHead {
  CacheType type;
  size_t head_dim, group;
  const float *key_scales, *value_scales;  // [head_dim]; null for float32
  const uint8_t *keys, *values;            // [positions, position_bytes]
  const float *query, *gate;               // of the first token and head of the group
  float* output;
  size_t token_stride;  // floats between tokens of query, gate and output
  size_t past;          // positions before the first token
};

// Rows first_row to first_row + num_rows - 1 of a head, over positions first to last - 1.
struct AttentionPart {
  size_t first_row, num_rows;
  size_t first, last;
};

// Running state of the softmax of num_rows rows, in base 2: maxima, then sums of weights relative to the maximum, then
// sums of values by these weights, [num_rows, head_dim].
static constexpr size_t state_floats(size_t head_dim, size_t num_rows) { return (head_dim + 2) * num_rows; }

// Floats of one position in scratch memory: no power of two, so that positions do not share a set of the cache.
static constexpr size_t padded_dim(size_t head_dim) { return (head_dim + 31) / 32 * 32 + 16; }

constexpr size_t CODE_FLOATS = 16384;  // what products of codes need beside queries and sums

// Scratch memory of one call of attend(): queries, sums, keys and values of a block, scores, maxima, totals.
static constexpr size_t workspace_floats(size_t head_dim) {
  return 2 * padded_dim(head_dim) * (MAX_ROWS + POSITIONS) + POSITIONS * MAX_ROWS + 2 * MAX_ROWS + CODE_FLOATS;
}

struct AttentionKernels {
  // Fills `state`, whose previous content does not matter. Reads no position behind that of a row's own token.
  void (*attend)(const AttentionHead& head, const AttentionPart& part, float* workspace, float* state);
  // Merges the states of consecutive parts, which lie `stride` floats apart, and writes output times sigmoid(gate) for
  // the part's rows number first to last - 1. A score that is not finite makes its row not finite.
  void (*finish)(const AttentionHead& head, const AttentionPart& rows, const float* states, size_t num_states,
                 size_t stride, size_t first, size_t last);
  // codes = clip(round(x * (1 / scale))), as a position of a cache of this type; ties to even, NaN becomes the least.
  void (*quantize)(CacheType type, const float* x, const float* scales, size_t head_dim, uint8_t* codes);
};

extern const AttentionKernels scalar_attention;
#if defined(__x86_64__)
extern const AttentionKernels avx2_attention;
extern const AttentionKernels avx512_attention;
#elif defined(__aarch64__)
extern const AttentionKernels neon_attention;
#endif

}  // namespace qwonnx
