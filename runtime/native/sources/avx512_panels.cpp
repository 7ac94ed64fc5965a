// More than a few tokens by VNNI: lanes are rows. Up to eight tokens use each unpacked vector of codes; their 16 vectors
// of sums stay in registers for a block. Nothing is summed across lanes.
#if defined(__x86_64__)
#include "avx512_panels.h"

namespace qwonnx {
namespace {

constexpr size_t TILE = 128;  // tokens

// sums [T, 32] += one slab times T tokens.
template <int T, bool ZERO_POINTS>
void slab_by_tokens(const Slab& slab, const Runs& runs, float middle, const Activations* x, float* sums, Fetch& fetch) {
  const uint8_t *low = slab.codes[0], *high = slab.codes[1];
  const __m512 minus_middle = _mm512_set1_ps(-middle);
  for (size_t b = 0; b < slab.num_blocks; b++) {
    const size_t block = slab.first_block + b, offset = runs.offset(block);
    const uint8_t* tokens[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) tokens[t] = static_cast<const uint8_t*>(x[t].codes) + offset;
    __m512i dots[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dots[t][0] = dots[t][1] = _mm512_setzero_si512();
    for (size_t run = 0; run < runs.count; run++)
      for (size_t at = run * 64; at < run * 64 + 4 * runs.dwords; at += 4, low += 64, high += 64) {
        const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          int32_t codes;
          memcpy(&codes, tokens[t] + at, sizeof codes);
          const __m512i value = _mm512_set1_epi32(codes);
          add_products(dots[t][0], first, value);
          add_products(dots[t][1], second, value);
        }
      }
    fetch.step();
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const __m512 x_scale = _mm512_set1_ps(x[t].scales[block]), x_sum = _mm512_set1_ps(x[t].sums[block]);
      const __m512 middles = _mm512_mul_ps(x_sum, minus_middle);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m512 dot = _mm512_cvtepi32_ps(dots[t][h]);
        const __m512 zero = ZERO_POINTS ? _mm512_mul_ps(_mm512_load_ps(slab.zeros[b] + h * PANEL), x_sum) : middles;
        float* at = sums + t * ROWS + h * PANEL;
        _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_fmadd_ps(dot, x_scale, zero), _mm512_load_ps(slab.scales[b] + h * PANEL), _mm512_load_ps(at)));
      }
    }
  }
}

template <bool ZERO_POINTS>
void slab_by_all(const Slab& slab, const Runs& runs, float middle, const Activations* x, size_t num_tokens, float* sums,
                 Fetch& fetch) {
  size_t t = 0;
  for (; t + 8 <= num_tokens; t += 8) slab_by_tokens<8, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
  switch (num_tokens - t) {
    case 7: return slab_by_tokens<7, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
    case 6: return slab_by_tokens<6, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
    case 5: return slab_by_tokens<5, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
    case 4: return slab_by_tokens<4, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
    case 3: return slab_by_tokens<3, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
    case 2: return slab_by_tokens<2, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
    case 1: return slab_by_tokens<1, ZERO_POINTS>(slab, runs, middle, x + t, sums + t * ROWS, fetch);
  }
}

// 32 rows (num_rows of them real) times at most TILE tokens into y.
void rows_by_tokens(const Blocks& weights, size_t first, size_t num_rows, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t ahead) {
  const size_t num_blocks = weights.num_blocks(), blocks_of_slab = SLAB / weights.block;
  const Runs runs(weights);
  Slab slab;
  alignas(64) float sums[TILE * ROWS];  // not in y, where tokens may be a multiple of a page apart
  memset(sums, 0, num_tokens * ROWS * sizeof(float));
  for (size_t block = 0; block < num_blocks; block += blocks_of_slab) {
    slab.first_block = block;
    slab.num_blocks = num_blocks - block < blocks_of_slab ? num_blocks - block : blocks_of_slab;
    unpack(weights, first, num_rows, slab);
    Fetch fetch(weights, slab, first + (ahead ? static_cast<size_t>(ahead) : ROWS), (num_tokens + 7) / 8 * slab.num_blocks);
    (weights.zero_points ? slab_by_all<true> : slab_by_all<false>)(slab, runs, weights.middle(), x, num_tokens, sums, fetch);
  }
  for (size_t t = 0; t < num_tokens; t++) memcpy(y + t * stride, sums + t * ROWS, num_rows * sizeof(float));
}

}  // namespace

namespace avx512 {

void multiply_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride, ptrdiff_t ahead) {
  for (size_t row = first; row < last; row += ROWS)
    for (size_t t = 0; t < num_tokens; t += TILE) {
      const size_t rows = last - row < ROWS ? last - row : ROWS, count = num_tokens - t < TILE ? num_tokens - t : TILE;
      rows_by_tokens(weights, row, rows, x + t, count, y + t * stride + (row - first), stride, ahead);
    }
}

}  // namespace avx512
}  // namespace qwonnx
#endif
