// Vectors of N floats in the compilers' own vector types, so that one source serves every instruction set: the file that
// includes this is compiled with the flags of its own set, and N is the width of that set's registers.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "arithmetic.h"
#include "blocks.h"

namespace qwonnx {

#define LANES_INLINE static inline __attribute__((always_inline))

template <int N>
struct Vectors;
template <>
struct Vectors<4> {
  typedef float Floats __attribute__((vector_size(16)));
  typedef uint32_t Unsigned __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));
};
template <>
struct Vectors<8> {
  typedef float Floats __attribute__((vector_size(32)));
  typedef uint32_t Unsigned __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(16)));
};
template <>
struct Vectors<16> {
  typedef float Floats __attribute__((vector_size(64)));
  typedef uint32_t Unsigned __attribute__((vector_size(64)));
  typedef uint16_t Halves __attribute__((vector_size(32)));
};

// gcc 12 makes four instructions of __builtin_convertvector where processors have one.
template <int N>
LANES_INLINE typename Vectors<N>::Unsigned widened(typename Vectors<N>::Halves halves) {
  using Unsigned = typename Vectors<N>::Unsigned;
#if defined(__AVX512F__)
  if constexpr (N == 16) return (Unsigned)_mm512_cvtepu16_epi32((__m256i)halves);
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) return (Unsigned)_mm256_cvtepu16_epi32((__m128i)halves);
#endif
  return __builtin_convertvector(halves, Unsigned);
}

template <int N>
struct Lanes {
  using Floats = typename Vectors<N>::Floats;
  using Unsigned = typename Vectors<N>::Unsigned;

  LANES_INLINE Floats load(const float* at) {
    Floats value;
    memcpy(&value, at, sizeof value);
    return value;
  }
  // A bfloat16 is the upper half of a float.
  LANES_INLINE Floats load(const Bfloat16* at) {
    typename Vectors<N>::Halves halves;
    memcpy(&halves, at, sizeof halves);
    const Unsigned bits = widened<N>(halves) << 16;
    Floats value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
  LANES_INLINE void store(float* at, Floats value) { memcpy(at, &value, sizeof value); }
  LANES_INLINE Floats all(float x) { return x - Floats{}; }
  LANES_INLINE float sum(Floats value) {
    float parts[N];
    memcpy(parts, &value, sizeof parts);
    for (int width = N / 2; width > 0; width /= 2)
      for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
  }

  // As exponential() in arithmetic.h; NaN stays NaN.
  LANES_INLINE Floats exponentials(Floats x) {
    x = x > 88.0f ? all(88.0f) : x;
    x = x < -87.0f ? all(-87.0f) : x;
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // a whole number in the low bits
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + (r + 1.0f);
    Unsigned bits;  // NaN: may wrap
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    Floats power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
  }

  // x * sigmoid(x)
  LANES_INLINE Floats silu(Floats x) { return x / (1.0f + exponentials(-x)); }
};

static inline float as_float(float x) { return x; }
static inline float as_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float silu(float x) { return x / (1 + exponential(-x)); }

}  // namespace qwonnx
