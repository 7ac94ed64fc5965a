// AVX2 with FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#define QWONNX_LANES 8
#define QWONNX_ACCUMULATORS 12
#define QWONNX_OWN_VECTORS
#define QWONNX_CODE_PRODUCTS
#include "attention_vectors.h"
#include "x86_lane_sums.h"

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

constexpr size_t VALUE_ROWS = 4;  // whose sums of values the registers hold

INLINE __m256i sixteen(Shorts shorts) { return reinterpret_cast<__m256i>(shorts); }
INLINE Shorts widen_signed(const uint8_t* at) {
  return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
INLINE Shorts widen_unsigned(const uint8_t* at) {
  return reinterpret_cast<Shorts>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
INLINE Shorts interleave_low(Shorts a, Shorts b) {
  return reinterpret_cast<Shorts>(_mm256_unpacklo_epi16(sixteen(a), sixteen(b)));
}
INLINE Shorts interleave_high(Shorts a, Shorts b) {
  return reinterpret_cast<Shorts>(_mm256_unpackhi_epi16(sixteen(a), sixteen(b)));
}
INLINE Integers add_products(Integers sums, Shorts a, Shorts b) {
  const __m256i products = _mm256_madd_epi16(sixteen(a), sixteen(b));
  asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products));  // GCC would copy every sum into another register
  return sums;
}
template <size_t R>
INLINE void sum_lanes(const Integers* sums, int32_t* out) {
  sum_whole_lanes<R>(reinterpret_cast<const __m256i*>(sums), out);
}

}  // namespace
}  // namespace qwonnx

#include "attention_kernels.h"

namespace qwonnx {

const AttentionKernels avx2_attention = {attend, finish, quantize};

}  // namespace qwonnx
#endif
