// Float activations: four rows of weights are turned into floats in the L1 cache, a slab at a time, and multiplied with
// four tokens at once.
#if defined(__x86_64__)
#include "avx512.h"

namespace qwonnx {
namespace {

constexpr size_t ROWS = 4, TOKENS = 4;
constexpr size_t SLAB = 512;  // columns: a multiple of every block size

// `count` columns of one row from `first` on; both are multiples of 16.
template <int BITS>
void dequantize(const Blocks& weights, size_t row, size_t first, size_t count, float* out) {
  const uint8_t* codes = weights.codes + row * weights.row_bytes() + first * BITS / 8;
  const __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);  // of 2 bits
  for (size_t k = 0; k < count;) {
    const size_t block = (first + k) / weights.block;
    const float scale = weights.scales[row * weights.num_blocks() + block];
    const __m512 factor = _mm512_set1_ps(scale), zero = _mm512_set1_ps(-scale * zero_point(weights, row, block));
    for (const size_t end = k + weights.block; k < end; k += 16, codes += 2 * BITS) {
      __m512i values;
      if (BITS == 8) {
        values = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
      } else if (BITS == 4) {  // each byte in 64 bits, then its high half in their high dword
        values = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
        values = _mm512_and_si512(_mm512_or_si512(values, _mm512_slli_epi64(values, 28)), _mm512_set1_epi32(15));
      } else {
        int32_t bits;
        memcpy(&bits, codes, sizeof bits);
        values = _mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32(bits), shifts), _mm512_set1_epi32(3));
      }
      _mm512_store_ps(out + k, _mm512_fmadd_ps(_mm512_cvtepi32_ps(values), factor, zero));
    }
    prefetch(further(codes, 4096));
  }
}

void dequantize_row(const Blocks& weights, size_t row, size_t first, size_t count, float* out) {
  with_bits(weights, [&](auto bits) { dequantize<bits.value>(weights, row, first, count, out); });
}

template <int T>
void slab_by_tokens(const float (*slab)[SLAB], size_t rows, size_t first, size_t count, const Activations* x, float* y,
                    size_t stride) {
  __m512 sums[T][ROWS];
  for (int t = 0; t < T; t++)
    for (size_t r = 0; r < ROWS; r++) sums[t][r] = _mm512_setzero_ps();
  for (size_t k = 0; k < count; k += 16) {
    __m512 values[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) values[t] = _mm512_loadu_ps(static_cast<const float*>(x[t].codes) + first + k);
#pragma GCC unroll 4
    for (size_t r = 0; r < ROWS; r++) {
      const __m512 weight = _mm512_load_ps(slab[r] + k);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) sums[t][r] = _mm512_fmadd_ps(weight, values[t], sums[t][r]);
    }
  }
  for (int t = 0; t < T; t++)
    for (size_t r = 0; r < rows; r++) {
      float* at = y + t * stride + r;
      *at = (first ? *at : 0) + _mm512_reduce_add_ps(sums[t][r]);
    }
}

}  // namespace

namespace avx512 {

void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t) {
  alignas(64) float slab[ROWS][SLAB] = {};
  for (size_t row = first; row < last; row += ROWS) {
    const size_t rows = last - row < ROWS ? last - row : ROWS;
    for (size_t k = 0; k < weights.columns; k += SLAB) {
      const size_t count = weights.columns - k < SLAB ? weights.columns - k : SLAB;
      for (size_t r = 0; r < rows; r++) dequantize_row(weights, row + r, k, count, slab[r]);
      size_t t = 0;
      float* at = y + (row - first);
      for (; t + TOKENS <= num_tokens; t += TOKENS) slab_by_tokens<TOKENS>(slab, rows, k, count, x + t, at + t * stride, stride);
      if (num_tokens - t == 3) slab_by_tokens<3>(slab, rows, k, count, x + t, at + t * stride, stride);
      if (num_tokens - t == 2) slab_by_tokens<2>(slab, rows, k, count, x + t, at + t * stride, stride);
      if (num_tokens - t == 1) slab_by_tokens<1>(slab, rows, k, count, x + t, at + t * stride, stride);
    }
  }
}

}  // namespace avx512
}  // namespace qwonnx
#endif
