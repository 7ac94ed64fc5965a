// AVX-512: 32 registers hold 24 sums.
#if defined(__x86_64__)
#include <immintrin.h>

#define QWONNX_LANES 16
#define QWONNX_ACCUMULATORS 24
#define QWONNX_OWN_VECTORS
#include "attention_vectors.h"

namespace qwonnx {
namespace {

INLINE __m256 sum_halves(Floats vector) {
  return _mm256_add_ps(_mm512_castps512_ps256(vector), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(vector), 1)));
}

INLINE void sum_four(const Floats* vectors, float* sums) {
  const __m256 pairs = _mm256_hadd_ps(sum_halves(vectors[0]), sum_halves(vectors[1]));
  const __m256 halves = _mm256_hadd_ps(pairs, _mm256_hadd_ps(sum_halves(vectors[2]), sum_halves(vectors[3])));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

INLINE __m128i sixteen_bytes(const void* codes) { return _mm_loadu_si128(static_cast<const __m128i*>(codes)); }
INLINE Integers widen(SignedBytes codes) { return reinterpret_cast<Integers>(_mm512_cvtepi8_epi32(sixteen_bytes(&codes))); }
INLINE Integers widen(Bytes codes) { return reinterpret_cast<Integers>(_mm512_cvtepu8_epi32(sixteen_bytes(&codes))); }

}  // namespace
}  // namespace qwonnx

#include "attention_kernels.h"

namespace qwonnx {

const AttentionKernels avx512_attention = {attend, finish, quantize};

}  // namespace qwonnx
#endif
