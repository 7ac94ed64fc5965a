// Float activations: four rows of weights are turned into floats in the L1 cache, a slab at a time, and multiplied with
// three tokens at once.
#if defined(__x86_64__)
#include "avx2.h"

namespace qwonnx {
namespace {

constexpr size_t ROWS = 4;
constexpr size_t SLAB = 512;  // columns: a multiple of every block size

// `count` columns of one row from `first` on; both are multiples of 16.
template <int BITS>
void dequantize(const Blocks& weights, size_t row, size_t first, size_t count, float* out) {
  const uint8_t* codes = weights.codes + row * weights.row_bytes() + first * BITS / 8;
  const __m256i shifts = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(BITS));
  const __m256i mask = _mm256_set1_epi32((1 << BITS) - 1);
  for (size_t k = 0; k < count;) {
    const size_t block = (first + k) / weights.block;
    const float scale = weights.scales[row * weights.num_blocks() + block];
    const __m256 factor = _mm256_set1_ps(scale), zero = _mm256_set1_ps(-scale * zero_point(weights, row, block));
    for (const size_t end = k + weights.block; k < end; k += 8, codes += BITS) {
      __m256i values;
      if (BITS == 8) {
        values = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
      } else {
        uint32_t bits = 0;
        memcpy(&bits, codes, BITS);
        values = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(bits)), shifts), mask);
      }
      _mm256_storeu_ps(out + k, _mm256_fmadd_ps(_mm256_cvtepi32_ps(values), factor, zero));
    }
    prefetch(codes, 4096);
  }
}

void dequantize_row(const Blocks& weights, size_t row, size_t first, size_t count, float* out) {
  switch (weights.bits) {
    case 2: return dequantize<2>(weights, row, first, count, out);
    case 4: return dequantize<4>(weights, row, first, count, out);
    default: return dequantize<8>(weights, row, first, count, out);
  }
}

template <int T>
void slab_by_tokens(const float (*slab)[SLAB], size_t rows, size_t first, size_t count, const Activations* x, float* y,
                    size_t stride) {
  __m256 sums[T][ROWS];
  for (int t = 0; t < T; t++)
    for (size_t r = 0; r < ROWS; r++) sums[t][r] = _mm256_setzero_ps();
  for (size_t k = 0; k < count; k += 8) {
    __m256 values[T];
#pragma GCC unroll 3
    for (int t = 0; t < T; t++) values[t] = _mm256_loadu_ps(static_cast<const float*>(x[t].codes) + first + k);
#pragma GCC unroll 4
    for (size_t r = 0; r < ROWS; r++) {
      const __m256 weight = _mm256_load_ps(slab[r] + k);
#pragma GCC unroll 3
      for (int t = 0; t < T; t++) sums[t][r] = _mm256_fmadd_ps(weight, values[t], sums[t][r]);
    }
  }
  for (int t = 0; t < T; t++)
    for (size_t r = 0; r < rows; r++) {
      float* at = y + t * stride + r;
      *at = (first ? *at : 0) + sum_of(sums[t][r]);
    }
}

}  // namespace

namespace avx2 {

void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t) {
  alignas(32) float slab[ROWS][SLAB] = {};
  for (size_t row = first; row < last; row += ROWS) {
    const size_t rows = last - row < ROWS ? last - row : ROWS;
    for (size_t k = 0; k < weights.columns; k += SLAB) {
      const size_t count = weights.columns - k < SLAB ? weights.columns - k : SLAB;
      for (size_t r = 0; r < rows; r++) dequantize_row(weights, row + r, k, count, slab[r]);
      size_t t = 0;
      float* at = y + (row - first);
      for (; t + 3 <= num_tokens; t += 3) slab_by_tokens<3>(slab, rows, k, count, x + t, at + t * stride, stride);
      if (num_tokens - t == 2) slab_by_tokens<2>(slab, rows, k, count, x + t, at + t * stride, stride);
      if (num_tokens - t == 1) slab_by_tokens<1>(slab, rows, k, count, x + t, at + t * stride, stride);
    }
  }
}

}  // namespace avx2
}  // namespace qwonnx
#endif
