// Vectors of QWONNX_LANES floats by the compilers' vector extension, and what attention computes with them. An
// instruction set is a file that defines the numbers below, includes attention_kernels.h once, and is compiled with its
// flags. Everything is static: a shared copy could carry the wrong instructions.
//
//   QWONNX_LANES         floats of a vector: 4, 8 or 16
//   QWONNX_ACCUMULATORS  vectors of sums that the registers hold beside their factors: 12 of 16, 24 of 32
//   QWONNX_CODE_PRODUCTS  if it has products of 16 bits, whose functions the file defines too: see attention_codes.h
#pragma once

#include <string.h>

#include "attention.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace qwonnx {
namespace {

constexpr size_t LANES = QWONNX_LANES, ACCUMULATORS = QWONNX_ACCUMULATORS;
constexpr float LOWEST = -3.402823466e38f, LOG2_E = 1.44269504f;

typedef float Floats __attribute__((vector_size(4 * QWONNX_LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * QWONNX_LANES)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * QWONNX_LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * QWONNX_LANES)));  // twice as many
typedef uint8_t Bytes __attribute__((vector_size(QWONNX_LANES)));
typedef int8_t SignedBytes __attribute__((vector_size(QWONNX_LANES)));

INLINE Floats load(const float* at) {
  Floats value;
  memcpy(&value, at, sizeof value);
  return value;
}
INLINE void store(float* at, Floats value) { memcpy(at, &value, sizeof value); }
// The first `count` numbers, and zeros; the first `count` lanes.
INLINE Floats load_first(const float* at, size_t count) {
  if (count >= LANES) return load(at);
  float part[LANES] = {};
  for (size_t i = 0; i < count; i++) part[i] = at[i];
  return load(part);
}
INLINE void store_first(float* at, size_t count, Floats value) {
  if (count >= LANES) return store(at, value);
  float part[LANES];
  store(part, value);
  for (size_t i = 0; i < count; i++) at[i] = part[i];
}
INLINE Floats all(float value) { return value - Floats{}; }  // not a sum: -0 + 0 is 0, so a sum would be computed
INLINE Floats where(Integers mask, Floats yes, Floats no) {
  return reinterpret_cast<Floats>((mask & reinterpret_cast<Integers>(yes)) | (~mask & reinterpret_cast<Integers>(no)));
}
INLINE Floats larger(Floats a, Floats b) { return where(a > b, a, b); }

// 2 ** x for x <= 0, relative error 8e-8; below 2 ** -125 zero. 2 ** n times a polynomial on [-1/2, 1/2].
INLINE Floats power_of_two(Floats x) {
  const Floats bounded = where(x < -125.0f, all(-125.0f), x);
  const Floats shifted = bounded + 12582912.0f;  // its low bits are n, the nearest whole number
  const Floats r = bounded - (shifted - 12582912.0f);
  Floats p = r * 1.535336161e-4f + 1.339887452e-3f;
  p = p * r + 9.618437360e-3f;
  p = p * r + 5.550332471e-2f;
  p = p * r + 2.402264791e-1f;
  p = p * r + 6.931472029e-1f;
  p = p * r + 1.0f;
  const Unsigned bits = reinterpret_cast<Unsigned>(p) + (reinterpret_cast<Unsigned>(shifted) << 23);  // NaN: may wrap
  return where(x < -125.0f, all(0.0f), reinterpret_cast<Floats>(bits));
}

INLINE Floats sigmoid(Floats x) {
  const Floats power = power_of_two(where(x < 0.0f, x, -x) * LOG2_E);  // e ** -|x|
  return where(x < 0.0f, power, all(1)) / (power + 1.0f);
}

// Ties to even; for magnitudes below 2 ** 22.
INLINE Floats whole(Floats x) { return (x + 12582912.0f) - 12582912.0f; }

// A hint: the address need not exist.
INLINE void prefetch(const void* at) { __builtin_prefetch(at); }

// sums[i] = the sum of the lanes of vectors[i], for four vectors.
INLINE void sum_four(const Floats* vectors, float* sums);
INLINE Integers widen(SignedBytes codes);
INLINE Integers widen(Bytes codes);

#if !defined(QWONNX_OWN_VECTORS)  // else the file has better ones
INLINE void sum_four(const Floats* vectors, float* sums) {
  for (int i = 0; i < 4; i++) {
    float lanes[LANES], total = 0;
    store(lanes, vectors[i]);
    for (size_t lane = 0; lane < LANES; lane++) total += lanes[lane];
    sums[i] = total;
  }
}
INLINE Integers widen(SignedBytes codes) { return __builtin_convertvector(codes, Integers); }
INLINE Integers widen(Bytes codes) { return __builtin_convertvector(codes, Integers); }
#endif

// A pair is 2 * LANES numbers of a position, from the number `pair` on. The order in which int4 yields them is the one
// of pair_dim(): first the even ones, then the odd ones.
constexpr size_t PAIR = 2 * LANES;

template <CacheType TYPE>
constexpr size_t pair_bytes() {
  return TYPE == CacheType::FLOAT32 ? 4 * PAIR : TYPE == CacheType::INT8 ? PAIR : LANES;
}

template <CacheType TYPE>
constexpr size_t pair_dim(size_t place) {
  return TYPE == CacheType::INT4 ? place % LANES * 2 + place / LANES : place;
}

// The first or the second vector of a pair.
template <CacheType TYPE>
INLINE Floats load_half(const uint8_t* pair, int half) {
  if (TYPE == CacheType::FLOAT32) return load(reinterpret_cast<const float*>(pair) + half * LANES);
  if (TYPE == CacheType::INT8) {
    SignedBytes codes;
    memcpy(&codes, pair + half * sizeof codes, sizeof codes);
    return __builtin_convertvector(widen(codes), Floats);
  }
  Bytes codes;
  memcpy(&codes, pair, sizeof codes);
  const Integers wide = widen(codes);
  // A code below 16 in the low bits of 2 ** 23 is the float 2 ** 23 + code.
  const Integers bits = (half ? wide >> 4 : wide & 15) | 0x4b000000;
  return reinterpret_cast<Floats>(bits) - 8388616.0f;
}

}  // namespace
}  // namespace qwonnx
