// What AVX2 does with activations: quantise a row into the order of avx2.cpp, SwiGLU, weighted sums.
#if defined(__x86_64__)
#include "arithmetic.h"
#include "avx2.h"

namespace qwonnx {
namespace {

INLINE __m256 magnitudes(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

INLINE float largest_of(__m256 lanes) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

INLINE __m256 exponentials(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), _mm256_min_ps(_mm256_set1_ps(88.0f), x));  // this order keeps a NaN
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

// 16 int8 codes of consecutive columns, to be put in planes.
INLINE __m128i codes_of(const float* x, __m256 inverse, __m256i& sum) {
  const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
  sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// 16 columns from `column` on. Plane p of a chunk has its columns p, p + P, ... for P planes.
INLINE void place(__m128i codes, size_t column, unsigned bits, uint8_t* out) {
  if (bits == 4) {  // 8 even, 8 odd
    const __m128i split = _mm_shuffle_epi8(codes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    uint8_t* at = out + column / 64 * 64 + column % 64 / 2;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), split);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at + 32), _mm_unpackhi_epi64(split, split));
  } else if (bits == 8) {  // the same, in 16 bits
    const __m128i split = _mm_shuffle_epi8(codes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    uint8_t* at = out + column / 32 * 64 + column % 32;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_cvtepi8_epi16(split));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 32), _mm_cvtepi8_epi16(_mm_unpackhi_epi64(split, split)));
  } else {  // four planes of 4
    const __m128i split = _mm_shuffle_epi8(codes, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    uint8_t* at = out + column / 128 * 128 + column % 128 / 4;
    alignas(16) uint8_t parts[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(parts), split);
    for (int p = 0; p < 4; p++) memcpy(at + 32 * p, parts + 4 * p, 4);
  }
}

}  // namespace

namespace avx2 {

void quantize(const float* x, const Blocks& weights, void* codes, float* scales, float* sums) {
  uint8_t* out = static_cast<uint8_t*>(codes);
  const size_t chunk = 256 / weights.bits, tail = weights.columns % chunk;
  if (tail) {  // a chunk that is not full is read whole: zeros behind the last column
    const size_t bytes = weights.bits == 2 ? 128 : 64;
    memset(out + weights.columns / chunk * bytes, 0, bytes);
  }
  for (size_t b = 0; b < weights.num_blocks(); b++) {
    const float* values = x + b * weights.block;
    __m256 largest = _mm256_setzero_ps(), not_finite = _mm256_setzero_ps();
    for (unsigned i = 0; i < weights.block; i += 8) {
      const __m256 value = _mm256_loadu_ps(values + i);
      largest = _mm256_max_ps(largest, magnitudes(value));
      not_finite = _mm256_add_ps(not_finite, _mm256_sub_ps(value, value));  // 0, or NaN for an infinity or a NaN
    }
    const float most = largest_of(largest), stray = sum_of(not_finite);
    const bool usable = most > 1e-35f && stray == 0;  // below, 127 / most would overflow
    const __m256 inverse = _mm256_set1_ps(usable ? 127 / most : 0);
    __m256i sum = _mm256_setzero_si256();
    for (unsigned i = 0; i < weights.block; i += 16)
      place(codes_of(values + i, inverse, sum), b * weights.block + i, weights.bits, out);
    scales[b] = most / 127 + stray;
    sums[b] = scales[b] * sum_of(_mm256_cvtepi32_ps(sum));
  }
}

void swiglu(const float* gate_up, size_t count, float* out) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 a = _mm256_loadu_ps(gate_up + 2 * i), b = _mm256_loadu_ps(gate_up + 2 * i + 8);
    const __m256d gates = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), ups = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    const __m256 gate = _mm256_castpd_ps(_mm256_permute4x64_pd(gates, 0xd8)), up = _mm256_castpd_ps(_mm256_permute4x64_pd(ups, 0xd8));
    const __m256 below = _mm256_add_ps(_mm256_set1_ps(1), exponentials(_mm256_xor_ps(gate, _mm256_set1_ps(-0.0f))));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_div_ps(gate, below), up));
  }
  for (; i < count; i++) out[i] = gate_up[2 * i] / (1 + exponential(-gate_up[2 * i])) * gate_up[2 * i + 1];
}

void add_scaled(float* y, const float* x, float weight, size_t count) {
  const __m256 factor = _mm256_set1_ps(weight);
  size_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  for (; i < count; i++) y[i] += weight * x[i];
}

}  // namespace avx2
}  // namespace qwonnx
#endif
