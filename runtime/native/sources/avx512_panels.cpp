// More than a few tokens by VNNI: lanes are rows. Up to six tokens use each unpacked vector of codes. Their 12 vectors of
// whole sums stay in registers for a block, and their 12 vectors of float sums for a slab. Nothing is summed across lanes.
#if defined(__x86_64__)
#include "avx512_panels.h"

namespace qwonnx {
namespace {

constexpr size_t TILE = 128;  // tokens

constexpr size_t MOST = 6;    // tokens of a group: with two panels their sums leave eight of 32 registers

// What one slab and a group of tokens need. `offsets`: of the slab's blocks in a token's codes; a block has `count` runs of
// `dwords` dwords there.
struct Part {
  const Slab& slab;
  const Runs& runs;
  const uint32_t* offsets;
  float middle;
};

// sums [T, 32] += one slab times T tokens. Runs have a multiple of UNROLLED dwords.
template <int T, int UNROLLED, bool ZERO_POINTS>
void slab_by_tokens(const Part& part, const Activations* x, float* sums, Fetch& fetch) {
  const Slab& slab = part.slab;
  const uint8_t* weights = slab.codes[0];
  const size_t run_bytes = 4 * part.runs.dwords;
  const __m512 minus_middle = _mm512_set1_ps(-part.middle);
  const uint8_t* tokens[T];
  __m512 totals[T][2];
#pragma GCC unroll 6
  for (int t = 0; t < T; t++) {
    tokens[t] = static_cast<const uint8_t*>(x[t].codes);
    totals[t][0] = _mm512_load_ps(sums + t * ROWS);
    totals[t][1] = _mm512_load_ps(sums + t * ROWS + PANEL);
  }
  for (size_t b = 0; b < slab.num_blocks; b++) {
    __m512i dots[T][2];
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) dots[t][0] = dots[t][1] = _mm512_setzero_si512();
    size_t at = part.offsets[b];
    for (size_t run = part.runs.count; run > 0; run--, at += 64 - run_bytes)
      for (const size_t end = at + run_bytes; at != end;) {
#pragma GCC unroll 4
        for (int u = 0; u < UNROLLED; u++, at += 4, weights += 64) {
          const __m512i first = _mm512_load_si512(weights), second = _mm512_load_si512(weights + PANEL_BYTES);
#pragma GCC unroll 6
          for (int t = 0; t < T; t++) {
            int32_t codes;
            memcpy(&codes, tokens[t] + at, sizeof codes);
            const __m512i value = _mm512_set1_epi32(codes);
            add_products(dots[t][0], first, value);
            add_products(dots[t][1], second, value);
          }
        }
      }
    fetch.step();
    const size_t block = slab.first_block + b;
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) {
      const __m512 x_scale = _mm512_set1_ps(x[t].scales[block]), x_sum = _mm512_set1_ps(x[t].sums[block]);
      const __m512 middles = _mm512_mul_ps(x_sum, minus_middle);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m512 zero = ZERO_POINTS ? _mm512_mul_ps(_mm512_load_ps(slab.zeros[b] + h * PANEL), x_sum) : middles;
        const __m512 dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][h]), x_scale, zero);
        totals[t][h] = _mm512_fmadd_ps(dot, _mm512_load_ps(slab.scales[b] + h * PANEL), totals[t][h]);
      }
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < T; t++) {
    _mm512_store_ps(sums + t * ROWS, totals[t][0]);
    _mm512_store_ps(sums + t * ROWS + PANEL, totals[t][1]);
  }
}

// Groups of tokens as even as they can be: eight are four and four.
size_t num_groups(size_t num_tokens) { return (num_tokens + MOST - 1) / MOST; }

template <int UNROLLED, bool ZERO_POINTS>
void slab_by_all(const Part& part, const Activations* x, size_t num_tokens, float* sums, Fetch& fetch) {
  constexpr decltype(&slab_by_tokens<1, UNROLLED, ZERO_POINTS>) by_count[MOST] = {
      slab_by_tokens<1, UNROLLED, ZERO_POINTS>, slab_by_tokens<2, UNROLLED, ZERO_POINTS>,
      slab_by_tokens<3, UNROLLED, ZERO_POINTS>, slab_by_tokens<4, UNROLLED, ZERO_POINTS>,
      slab_by_tokens<5, UNROLLED, ZERO_POINTS>, slab_by_tokens<6, UNROLLED, ZERO_POINTS>};
  for (size_t t = 0; t < num_tokens;) {
    const size_t groups = num_groups(num_tokens - t), count = (num_tokens - t + groups - 1) / groups;
    by_count[count - 1](part, x + t, sums + t * ROWS, fetch);
    t += count;
  }
}

// 32 rows (num_rows of them real) times at most TILE tokens into y.
void rows_by_tokens(const Blocks& weights, size_t first, size_t num_rows, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t ahead) {
  const size_t num_blocks = weights.num_blocks(), blocks_of_slab = SLAB / weights.block;
  const Runs runs(weights);
  const auto by_all = runs.dwords % 4 ? (weights.zero_points ? slab_by_all<1, true> : slab_by_all<1, false>)
                                      : (weights.zero_points ? slab_by_all<4, true> : slab_by_all<4, false>);
  Slab slab;
  uint32_t offsets[MAX_BLOCKS];
  alignas(64) float sums[TILE * ROWS];  // not in y, where tokens may be a multiple of a page apart
  memset(sums, 0, num_tokens * ROWS * sizeof(float));
  for (size_t block = 0; block < num_blocks; block += blocks_of_slab) {
    slab.first_block = block;
    slab.num_blocks = num_blocks - block < blocks_of_slab ? num_blocks - block : blocks_of_slab;
    unpack(weights, first, num_rows, slab);
    for (size_t b = 0; b < slab.num_blocks; b++) offsets[b] = static_cast<uint32_t>(runs.offset(block + b));
    Fetch fetch(weights, slab.first_block, slab.num_blocks, first + (ahead ? static_cast<size_t>(ahead) : ROWS), num_groups(num_tokens) * slab.num_blocks);
    by_all({slab, runs, offsets, weights.middle()}, x, num_tokens, sums, fetch);
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
