// Vector helpers of the AVX2 sources.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "blocks.h"

#define INLINE static inline __attribute__((always_inline))

namespace qwonnx {
namespace avx2 {

// avx2_activations.cpp and avx2_float.cpp
void quantize(const float* x, const Blocks& weights, void* codes, float* scales, float* sums);
void swiglu(const float* gate_up, size_t count, float* out);
void add_scaled(float* y, const float* x, float weight, size_t count);
// Lanes are 16 rows; for more than a few tokens.
void multiply_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride, ptrdiff_t ahead);
void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t ahead);

}  // namespace avx2

INLINE __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
INLINE void store(void* at, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(at), value); }

INLINE __m256i broadcast(const void* at) {
  int32_t value;
  memcpy(&value, at, sizeof value);
  return _mm256_set1_epi32(value);
}

// The first `count` of 32 bytes, then zeros: nothing past the end of a tensor is read.
static inline __m256i load_part(const void* at, size_t count) {
  alignas(32) uint8_t bytes[32] = {};
  memcpy(bytes, at, count);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

// A hint: the address need not exist.
INLINE void prefetch(const void* at, ptrdiff_t ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(ahead)), _MM_HINT_T0);
}

INLINE __m256i first_lanes(size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE float sum_of(__m256 lanes) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// 8 rows of 8 dwords -> row i has dword i of every row.
INLINE void transpose(__m256i* rows) {
  __m256i a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

// Planes of 8-bit codes hold 16 bits a code.
template <int BITS>
constexpr int num_planes() {
  return BITS == 2 ? 4 : 2;
}

template <int BITS>
INLINE __m256i plane(__m256i codes, int p) {
  if (BITS == 8) return p ? _mm256_srli_epi16(codes, 8) : _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
  return _mm256_and_si256(_mm256_srli_epi16(codes, BITS * p), _mm256_set1_epi8((1 << BITS) - 1));
}

template <int BITS>
INLINE __m256i multiply_plane(__m256i plane, __m256i x) {
  // 16 sums of two products in 16 bits, or 8 in 32 bits.
  return BITS == 8 ? _mm256_madd_epi16(plane, x) : _mm256_maddubs_epi16(plane, x);
}

template <int BITS>
INLINE __m256i add_products(__m256i total, __m256i products) {
  return BITS == 8 ? _mm256_add_epi32(total, products) : _mm256_add_epi16(total, products);
}

template <int BITS>
INLINE __m256i widen(__m256i total) {
  return BITS == 8 ? total : _mm256_madd_epi16(total, _mm256_set1_epi16(1));
}

// Minus the zero points of blocks first to first + count (at most 8) of a row; first is a multiple of 8.
template <int BITS>
INLINE __m256 negative_zeros(const Blocks& weights, size_t row, size_t first, size_t count) {
  if (!weights.zero_points) return _mm256_set1_ps(-weights.middle());
  const uint8_t* at = weights.zero_points + row * weights.zero_point_bytes() + first * BITS / 8;
  uint64_t bytes = 0;
  if (count == 8) {
    memcpy(&bytes, at, BITS);  // a constant size is one load
  } else {
    for (size_t i = 0; i < (count * BITS + 7) / 8; i++) bytes |= static_cast<uint64_t>(at[i]) << (8 * i);
  }
  __m256i points;
  if (BITS == 8) {
    points = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
  } else {
    const __m256i shifts = _mm256_setr_epi32(0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS);
    points = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(bytes)), shifts),
                              _mm256_set1_epi32((1 << BITS) - 1));
  }
  return _mm256_xor_ps(_mm256_cvtepi32_ps(points), _mm256_set1_ps(-0.0f));
}

}  // namespace qwonnx
