// What every kernel works on: a matrix of codes in blocks, rows of activations, and the table of one instruction set.
//
// The layout is the artifact's own and is read in place: nothing is repacked. Headers define only static functions,
// because each instruction set is compiled with its own flags and a shared copy could carry the wrong instructions.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "attention.h"

namespace qwonnx {

// [rows, columns] of `bits` wide codes. Each row has columns / block blocks; a block has one scale and one zero point.
struct Blocks {
  const uint8_t* codes;        // [rows, columns * bits / 8], low bits first
  const float* scales;         // [rows, columns / block]
  const uint8_t* zero_points;  // [rows, ceil(columns / block * bits / 8)], packed as codes; null: 2 ** (bits - 1)
  size_t rows, columns;
  unsigned bits, block;

  size_t row_bytes() const { return columns * bits / 8; }
  size_t num_blocks() const { return columns / block; }
  size_t zero_point_bytes() const { return (num_blocks() * bits + 7) / 8; }
  float middle() const { return static_cast<float>(1u << (bits - 1)); }

  // The matrix number `index` of a stack of such matrices.
  Blocks in_stack(size_t index) const {
    Blocks one = *this;
    one.codes += index * rows * row_bytes();
    one.scales += index * rows * num_blocks();
    if (zero_points) one.zero_points += index * rows * zero_point_bytes();
    return one;
  }
};

static inline float zero_point(const Blocks& matrix, size_t row, size_t block) {
  if (!matrix.zero_points) return matrix.middle();
  const size_t bit = block * matrix.bits;
  const uint8_t byte = matrix.zero_points[row * matrix.zero_point_bytes() + bit / 8];
  return static_cast<float>((byte >> (bit % 8)) & ((1u << matrix.bits) - 1));
}

struct Bfloat16 {
  uint16_t bits;
};

// [rows, columns] of floats as a checkpoint stores them.
struct FloatMatrix {
  const void* values;  // float, or Bfloat16
  bool is_bfloat16;
};

// Calls f with the width of the codes as a type, whose `value` is constant.
template <int BITS>
struct Bits {
  static constexpr int value = BITS;
};
template <typename F>
static inline void with_bits(const Blocks& matrix, const F& f) {
  switch (matrix.bits) {
    case 2: return f(Bits<2>{});
    case 4: return f(Bits<4>{});
    default: return f(Bits<8>{});
  }
}

// One row of activations. For int8 kernels: codes in the order that its instruction set chose, one scale a block and
// one sum a block, already multiplied by the scale (what a zero point multiplies). For float kernels: values alone.
struct Activations {
  const void* codes;
  const float* scales;
  const float* sums;
};

// Room for the codes of one row in any instruction set's order: at most two bytes each, padded to 128 columns. Three lines
// more: tokens that are a multiple of a page apart would share a few sets of the L1 cache.
static inline size_t activation_bytes(size_t columns) { return (columns + 127) / 128 * 256 + 192; }

// y[t, r - first] = sum over k of weights[r, k] * x[t, k], for rows first <= r < last and tokens t < num_tokens.
// y has `stride` floats between tokens. `ahead` is how many rows further the processor should start to fetch; 0: the
// next few kilobytes.
using Multiply = void (*)(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens,
                          float* y, size_t stride, ptrdiff_t ahead);

struct InstructionSet {
  const char* name;
  bool (*supported)();
  // Per block of x [columns]: scale = largest magnitude / 127, code = round to nearest even. A value that is not
  // finite makes its block's scale, and so the result, not finite.
  void (*quantize)(const float* x, const Blocks& weights, void* codes, float* scales, float* sums);
  Multiply multiply_int8;
  Multiply multiply_float;
  // out[i] = silu(gate_up[2i]) * gate_up[2i + 1]
  void (*swiglu)(const float* gate_up, size_t count, float* out);
  // y[i] += weight * x[i]
  void (*add_scaled)(float* y, const float* x, float weight, size_t count);
  const AttentionKernels& attention;
};

extern const InstructionSet scalar_set;
#if defined(__x86_64__)
extern const InstructionSet avx2_set;
#if !defined(QWONNX_WITHOUT_AVX512)  // the compiler is too old; likewise for AMX
extern const InstructionSet avx512_set;
#endif
#if !defined(QWONNX_WITHOUT_AMX)
extern const InstructionSet amx_set;
#endif
#elif defined(__aarch64__)
extern const InstructionSet neon_set;
#endif

// Members of scalar_set that another set may take over.
namespace scalar {
void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t ahead);
void swiglu(const float* gate_up, size_t count, float* out);
void add_scaled(float* y, const float* x, float weight, size_t count);
}  // namespace scalar

// The fastest set that this processor has, or the one that select() named.
const InstructionSet& instructions();
// False if there is no such set or this processor does not have it. "" means the fastest.
bool select(const char* name);

}  // namespace qwonnx
