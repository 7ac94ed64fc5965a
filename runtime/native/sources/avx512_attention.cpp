// AVX-512: 32 registers hold 24 sums.
#if defined(__x86_64__)
#include <immintrin.h>

#define QWONNX_LANES 16
#define QWONNX_ACCUMULATORS 24
#define QWONNX_OWN_VECTORS
#define QWONNX_CODE_PRODUCTS
#include "attention_vectors.h"
#include "avx512_lane_sums.h"
#include "x86_lane_sums.h"

namespace qwonnx {
namespace {

INLINE void sum_four(const Floats* vectors, float* sums) {
  _mm_storeu_ps(sums, sums_of_four(vectors[0], vectors[1], vectors[2], vectors[3]));
}

INLINE __m128i sixteen_bytes(const void* codes) { return _mm_loadu_si128(static_cast<const __m128i*>(codes)); }
INLINE Integers widen(SignedBytes codes) { return reinterpret_cast<Integers>(_mm512_cvtepi8_epi32(sixteen_bytes(&codes))); }
INLINE Integers widen(Bytes codes) { return reinterpret_cast<Integers>(_mm512_cvtepu8_epi32(sixteen_bytes(&codes))); }

constexpr size_t VALUE_ROWS = 8;  // whose sums of values the registers hold

INLINE __m512i thirty_two(Shorts shorts) { return reinterpret_cast<__m512i>(shorts); }
INLINE __m256i half_of(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
INLINE Shorts widen_signed(const uint8_t* at) { return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(half_of(at))); }
INLINE Shorts widen_unsigned(const uint8_t* at) { return reinterpret_cast<Shorts>(_mm512_cvtepu8_epi16(half_of(at))); }
INLINE Shorts interleave_low(Shorts a, Shorts b) {
  return reinterpret_cast<Shorts>(_mm512_unpacklo_epi16(thirty_two(a), thirty_two(b)));
}
INLINE Shorts interleave_high(Shorts a, Shorts b) {
  return reinterpret_cast<Shorts>(_mm512_unpackhi_epi16(thirty_two(a), thirty_two(b)));
}
INLINE Integers add_products(Integers sums, Shorts a, Shorts b) {
  return reinterpret_cast<Integers>(
      _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sums), thirty_two(a), thirty_two(b)));
}
template <size_t R>
INLINE void sum_lanes(const Integers* sums, int32_t* out) {
  __m256i halves[R];
  for (size_t i = 0; i < R; i++) {
    const __m512 whole = reinterpret_cast<__m512>(sums[i]);
    halves[i] = _mm256_add_epi32(_mm256_castps_si256(_mm512_castps512_ps256(whole)),
                                 _mm256_castpd_si256(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1)));
  }
  sum_whole_lanes<R>(halves, out);
}

}  // namespace
}  // namespace qwonnx

#include "attention_kernels.h"

namespace qwonnx {

const AttentionKernels avx512_attention = {attend, finish, quantize};

}  // namespace qwonnx
#endif
