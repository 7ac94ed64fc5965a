// Float activations. Few tokens: four rows of weights are turned into floats in the L1 cache, a slab at a time, and multiplied
// with three tokens at once. More: lanes are 16 rows, whose codes are transposed on their way, and which six tokens
// use at once; nothing is summed across lanes.
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
  with_bits(weights, [&](auto bits) { dequantize<bits.value>(weights, row, first, count, out); });
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

// ---- more tokens ----

constexpr size_t PANEL = 16;       // rows
constexpr size_t DEPTH = 256;      // columns of a slab: a multiple of every block size
constexpr size_t TOKENS = 6;       // 12 sums in registers
constexpr size_t LEAST_TOKENS = 4;  // measured: below, turning codes into columns costs more than it saves
constexpr size_t TILE = 256;       // tokens

struct Slab {
  alignas(64) float values[DEPTH][PANEL];
  alignas(64) float scales[DEPTH / 16][PANEL];
  alignas(64) float zeros[DEPTH / 16][PANEL];  // minus zero point times scale
};

// `count` columns from `column` on of rows from `first` on; rows past the end repeat the last one.
template <int BITS>
void unpack(const Blocks& weights, size_t first, size_t num_rows, size_t column, size_t count, Slab& slab) {
  constexpr size_t EACH = 32 / BITS;  // columns of a dword
  const size_t row_bytes = weights.row_bytes(), first_block = column / weights.block, blocks = count / weights.block;
  const uint8_t* rows[PANEL];
  for (size_t r = 0; r < PANEL; r++) {
    const size_t row = first + (r < num_rows ? r : num_rows - 1);
    rows[r] = weights.codes + row * row_bytes + column * BITS / 8;
    for (size_t b = 0; b < blocks; b++) {
      const float scale = weights.scales[row * weights.num_blocks() + first_block + b];
      slab.scales[b][r] = scale;
      slab.zeros[b][r] = -scale * zero_point(weights, row, first_block + b);
    }
  }
  const __m256i mask = _mm256_set1_epi32((1 << BITS) - 1);
  const size_t bytes = count * BITS / 8;
  const int block_shift = __builtin_ctz(weights.block);  // a division takes longer than eight columns
  for (size_t half = 0; half < PANEL; half += 8)
    for (size_t at = 0; at < bytes; at += 32) {
      const size_t left = bytes - at < 32 ? bytes - at : 32;
      __m256i dwords[8];
#pragma GCC unroll 8
      for (size_t r = 0; r < 8; r++) dwords[r] = left == 32 ? load(rows[half + r] + at) : load_part(rows[half + r] + at, left);
      transpose(dwords);
      for (size_t d = 0; d < left / 4; d++) {
        const size_t c = at * 8 / BITS + d * EACH, block = c >> block_shift;
        const __m256 scale = _mm256_load_ps(slab.scales[block] + half), zero = _mm256_load_ps(slab.zeros[block] + half);
#pragma GCC unroll 16
        for (size_t i = 0; i < EACH; i++) {
          const __m256i codes = _mm256_and_si256(_mm256_srli_epi32(dwords[d], static_cast<int>(BITS * i)), mask);
          _mm256_store_ps(slab.values[c + i] + half, _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, zero));
        }
      }
    }
}

// sums [T, PANEL] += slab * x
template <int T>
void panel_by_tokens(const Slab& slab, size_t column, size_t count, const Activations* x, float* sums) {
  const float* values[T];
  __m256 low[T], high[T];
#pragma GCC unroll 6
  for (int t = 0; t < T; t++) {
    values[t] = static_cast<const float*>(x[t].codes) + column;
    low[t] = _mm256_load_ps(sums + t * PANEL);
    high[t] = _mm256_load_ps(sums + t * PANEL + 8);
  }
  for (size_t k = 0; k < count; k++) {
    const __m256 first = _mm256_load_ps(slab.values[k]), second = _mm256_load_ps(slab.values[k] + 8);
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
      const __m256 value = _mm256_broadcast_ss(values[t] + k);
      low[t] = _mm256_fmadd_ps(first, value, low[t]);
      high[t] = _mm256_fmadd_ps(second, value, high[t]);
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; t++) {
    _mm256_store_ps(sums + t * PANEL, low[t]);
    _mm256_store_ps(sums + t * PANEL + 8, high[t]);
  }
}

template <int BITS>
void by_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
               size_t stride) {
  Slab slab;
  alignas(64) float sums[TILE * PANEL];
  for (size_t row = first; row < last; row += PANEL) {
    const size_t rows = last - row < PANEL ? last - row : PANEL;
    memset(sums, 0, num_tokens * PANEL * sizeof(float));
    for (size_t k = 0; k < weights.columns; k += DEPTH) {
      const size_t count = weights.columns - k < DEPTH ? weights.columns - k : DEPTH;
      unpack<BITS>(weights, row, rows, k, count, slab);
      // What comes next: the same rows' next columns, or the next rows' first ones.
      const uint8_t* next = weights.codes + (k + count < weights.columns ? row : row + PANEL) * weights.row_bytes() +
                            (k + count < weights.columns ? (k + count) * BITS / 8 : 0);
      for (size_t r = 0; r < PANEL; r++)
        for (size_t line = 0; line < DEPTH * BITS / 8; line += 64)
          prefetch(next, static_cast<ptrdiff_t>(r * weights.row_bytes() + line));
      size_t t = 0;
      for (; t + TOKENS <= num_tokens; t += TOKENS) panel_by_tokens<TOKENS>(slab, k, count, x + t, sums + t * PANEL);
      switch (num_tokens - t) {
        case 5: panel_by_tokens<5>(slab, k, count, x + t, sums + t * PANEL); break;
        case 4: panel_by_tokens<4>(slab, k, count, x + t, sums + t * PANEL); break;
        case 3: panel_by_tokens<3>(slab, k, count, x + t, sums + t * PANEL); break;
        case 2: panel_by_tokens<2>(slab, k, count, x + t, sums + t * PANEL); break;
        case 1: panel_by_tokens<1>(slab, k, count, x + t, sums + t * PANEL); break;
      }
    }
    for (size_t t = 0; t < num_tokens; t++) memcpy(y + t * stride + (row - first), sums + t * PANEL, rows * sizeof(float));
  }
}

void multiply_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride) {
  for (size_t t = 0; t < num_tokens; t += TILE) {
    const size_t count = num_tokens - t < TILE ? num_tokens - t : TILE;
    with_bits(weights, [&](auto bits) { by_panels<bits.value>(weights, first, last, x + t, count, y + t * stride, stride); });
  }
}

}  // namespace

namespace avx2 {

void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t) {
  if (num_tokens >= LEAST_TOKENS) return ::qwonnx::multiply_panels(weights, first, last, x, num_tokens, y, stride);
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
