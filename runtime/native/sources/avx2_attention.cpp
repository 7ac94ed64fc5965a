// AVX2 with FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#define QWONNX_LANES 8
#define QWONNX_ACCUMULATORS 12
#define QWONNX_OWN_VECTORS
#include "attention_vectors.h"

namespace qwonnx {
namespace {

INLINE void sum_four(const Floats* vectors, float* sums) {
  const __m256 pairs = _mm256_hadd_ps(vectors[0], vectors[1]), others = _mm256_hadd_ps(vectors[2], vectors[3]);
  const __m256 halves = _mm256_hadd_ps(pairs, others);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

INLINE __m128i eight_bytes(const void* codes) { return _mm_loadl_epi64(static_cast<const __m128i*>(codes)); }
INLINE Integers widen(SignedBytes codes) { return reinterpret_cast<Integers>(_mm256_cvtepi8_epi32(eight_bytes(&codes))); }
INLINE Integers widen(Bytes codes) { return reinterpret_cast<Integers>(_mm256_cvtepu8_epi32(eight_bytes(&codes))); }

}  // namespace
}  // namespace qwonnx

#include "attention_kernels.h"

namespace qwonnx {

const AttentionKernels avx2_attention = {attend, finish, quantize};

}  // namespace qwonnx
#endif
