// Sums over the lanes of vectors of 16 floats, always in one order.
#pragma once

#include <immintrin.h>

namespace qwonnx {
namespace {

static inline __attribute__((always_inline)) __m256 sum_halves(__m512 x) {
  return _mm256_add_ps(_mm512_castps512_ps256(x), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
}

// Lane i is the sum of the lanes of vector i.
static inline __attribute__((always_inline)) __m128 sums_of_four(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(sum_halves(a), sum_halves(b)), _mm256_hadd_ps(sum_halves(c), sum_halves(d)));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

}  // namespace
}  // namespace qwonnx
