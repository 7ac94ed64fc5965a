// Sums over the lanes of several vectors of eight whole numbers.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace qwonnx {
namespace {

// The sums of vectors 0 to 3 in both halves of a vector, of each half of them.
static inline __attribute__((always_inline)) __m256i sum_halves_of_four(const __m256i* vectors) {
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(vectors[0], vectors[1]),
                                     _mm256_unpackhi_epi32(vectors[0], vectors[1]));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(vectors[2], vectors[3]),
                                     _mm256_unpackhi_epi32(vectors[2], vectors[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

// out[i] = the sum of the lanes of vectors[i], for R vectors: 4 or 8.
template <size_t R>
static inline __attribute__((always_inline)) void sum_whole_lanes(const __m256i* vectors, int32_t* out) {
  const __m256i four = sum_halves_of_four(vectors);
  if (R == 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
    return;
  }
  const __m256i more = sum_halves_of_four(vectors + R - 4);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_add_epi32(_mm256_permute2x128_si256(four, more, 0x20),
                                       _mm256_permute2x128_si256(four, more, 0x31)));
}

}  // namespace
}  // namespace qwonnx
