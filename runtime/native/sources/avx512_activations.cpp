// What AVX-512 does with activations: quantise a row into the order of avx512.h, SwiGLU, weighted sums.
#if defined(__x86_64__)
#include "avx512.h"

namespace qwonnx {
namespace {

// 16 int8 codes of consecutive columns from `column` on. Plane p of a chunk has its columns p, p + P, ... for P planes.
INLINE void place(__m128i codes, size_t column, unsigned bits, uint8_t* out) {
  if (bits == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + column), codes);
  } else if (bits == 4) {  // 8 even, 8 odd
    const __m128i split = _mm_shuffle_epi8(codes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    uint8_t* at = out + column / 128 * 128 + column % 128 / 2;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), split);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at + 64), _mm_unpackhi_epi64(split, split));
  } else {  // four planes of 4
    const __m128i split = _mm_shuffle_epi8(codes, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    uint8_t* at = out + column / 256 * 256 + column % 256 / 4;
    alignas(16) uint8_t parts[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(parts), split);
    for (int p = 0; p < 4; p++) memcpy(at + 64 * p, parts + 4 * p, 4);
  }
}

// As exponential() in arithmetic.h; NaN stays NaN.
INLINE __m512 exponentials(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), _mm512_min_ps(_mm512_set1_ps(88.0f), x));  // this order keeps a NaN
  const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)));
  const __m512 n = _mm512_cvtepi32_ps(whole);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(p, _mm512_castsi512_ps(power));
}

}  // namespace

namespace avx512 {
namespace {

// Wraps, as the lanes of a NaN are the smallest number. The compiler's own sum would be undefined then.
inline int32_t sum_lanes(__m512i x) {
  const __m512 bits = _mm512_castsi512_ps(x);
  const __m256i low = _mm256_castps_si256(_mm512_castps512_ps256(bits));
  const __m256i high = _mm256_castpd_si256(_mm512_extractf64x4_pd(_mm512_castps_pd(bits), 1));
  const __m256i eight = _mm256_add_epi32(low, high);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

}  // namespace

void quantize(const float* x, const Blocks& weights, void* codes, float* scales, float* sums) {
  uint8_t* out = static_cast<uint8_t*>(codes);
  const size_t chunk = 512 / weights.bits, bytes = 64 * 8 / weights.bits;
  // A chunk that is not full is read whole: zeros behind the last column.
  if (weights.columns % chunk) memset(out + weights.columns / chunk * bytes, 0, bytes);
  for (size_t b = 0; b < weights.num_blocks(); b++) {
    const float* values = x + b * weights.block;
    __m512 largest = _mm512_setzero_ps(), not_finite = _mm512_setzero_ps();
    for (unsigned i = 0; i < weights.block; i += 16) {
      const __m512 value = _mm512_loadu_ps(values + i);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(value));
      not_finite = _mm512_add_ps(not_finite, _mm512_sub_ps(value, value));  // 0, or NaN for an infinity or a NaN
    }
    const float most = _mm512_reduce_max_ps(largest), stray = _mm512_reduce_add_ps(not_finite);
    const bool usable = most > 1e-35f && stray == 0;  // below, 127 / most would overflow
    const __m512 inverse = _mm512_set1_ps(usable ? 127 / most : 0);
    __m512i sum = _mm512_setzero_si512();
    for (unsigned i = 0; i < weights.block; i += 16) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + i), inverse));
      sum = _mm512_add_epi32(sum, rounded);
      place(_mm512_cvtsepi32_epi8(rounded), b * weights.block + i, weights.bits, out);
    }
    scales[b] = most / 127 + stray;
    sums[b] = scales[b] * static_cast<float>(sum_lanes(sum));
  }
}

void swiglu(const float* gate_up, size_t count, float* out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (size_t i = 0; i < count; i += 16) {
    const size_t left = count - i;
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(2 * left), gate_up + 2 * i);
    const __m512 b = _mm512_maskz_loadu_ps(left > 8 ? first_lanes(2 * left - 16) : static_cast<__mmask16>(0), gate_up + 2 * i + 16);
    const __m512 gate = _mm512_permutex2var_ps(a, even, b), up = _mm512_permutex2var_ps(a, odd, b);
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1), exponentials(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
    _mm512_mask_storeu_ps(out + i, first_lanes(left), _mm512_mul_ps(_mm512_div_ps(gate, below), up));
  }
}

void add_scaled(float* y, const float* x, float weight, size_t count) {
  const __m512 factor = _mm512_set1_ps(weight);
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i)));
  }
}

}  // namespace avx512
}  // namespace qwonnx
#endif
