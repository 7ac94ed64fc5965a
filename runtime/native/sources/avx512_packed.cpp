// Three to eight tokens by VNNI, for codes of 4 bits: lanes are rows, as in avx512_panels.cpp. 16 rows are transposed
// with two codes in a byte, and taken apart in registers between the products. So half the bytes are stored, and loaded
// once for all tokens. The 16 vectors of whole sums stay in registers for a block; float sums are in the L1 cache.
#if defined(__x86_64__)
#include "avx512_panels.h"

namespace qwonnx {
namespace {

constexpr size_t PACKED_BYTES = SLAB / 8 * 64 + 64;  // of a panel: no power of two

struct PackedSlab {
  alignas(64) uint8_t codes[2][PACKED_BYTES];  // [panel][dword, row, 4 bytes]
  size_t first_block, num_blocks;
};

// Not inlined into its caller, and the products neither: gcc 12 would keep too few of their vectors in registers.
__attribute__((noinline)) void pack_codes(const Blocks& weights, const PanelRows& rows, const PackedSlab& slab, uint8_t* out) {
  const size_t row_bytes = weights.row_bytes(), from = slab.first_block * weights.block / 2;
  const size_t bytes = slab.num_blocks * weights.block / 2;
  const uint8_t* codes[PANEL];
  for (size_t r = 0; r < PANEL; r++) codes[r] = weights.codes + rows[r] * row_bytes + from;
  for (size_t at = 0; at < bytes; at += 64, out += 16 * 64) {
    __m512i chunk[16];
#pragma GCC unroll 16
    for (size_t r = 0; r < PANEL; r++) chunk[r] = load_part(codes[r] + at, bytes - at);
    transpose(chunk);
#pragma GCC unroll 16
    for (size_t d = 0; d < 16; d++) _mm512_store_si512(out + 64 * d, chunk[d]);
  }
}

// sums [T, 32] += one slab times T tokens. A block has DWORDS dwords of codes in a chunk.
template <int T, size_t DWORDS, bool ZERO_POINTS>
__attribute__((noinline)) void slab_by_tokens(const Blocks& weights, const PackedSlab& slab, const SlabBlocks& scales,
                                              const Activations* x, float* sums, Fetch& fetch) {
  const __m512 minus_middle = _mm512_set1_ps(-weights.middle());
  const uint8_t* packed = slab.codes[0];
  constexpr size_t IN_CHUNK = 16 / DWORDS;  // blocks; a chunk has 128 columns, and 128 bytes of a token's codes
  const uint8_t* volatile tokens[T];  // in memory: gcc 12 would move them between kinds of registers
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) tokens[t] = static_cast<const uint8_t*>(x[t].codes);
  for (size_t b = 0; b < slab.num_blocks; b++) {
    const size_t block = slab.first_block + b;
    __m512i dots[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dots[t][0] = dots[t][1] = _mm512_setzero_si512();
    size_t at = DWORDS < 16 ? block / IN_CHUNK * 128 + block % IN_CHUNK * 4 * DWORDS : block * weights.block;
    for (size_t chunks = DWORDS < 16 ? 1 : weights.block / 128; chunks > 0; chunks--, at += 64)
      for (size_t dword = 0; dword < DWORDS; dword++, at += 4, packed += 64) {
        const __m512i first = _mm512_load_si512(packed), second = _mm512_load_si512(packed + PACKED_BYTES);
        const __m512i first_low = plane<4>(first, 0), first_high = plane<4>(first, 1);
        const __m512i second_low = plane<4>(second, 0), second_high = plane<4>(second, 1);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          int32_t low, high;
          const uint8_t* codes = tokens[t] + at;
          memcpy(&low, codes, sizeof low);
          memcpy(&high, codes + 64, sizeof high);
          const __m512i lows = _mm512_set1_epi32(low), highs = _mm512_set1_epi32(high);
          add_products(dots[t][0], first_low, lows);
          add_products(dots[t][1], second_low, lows);
          add_products(dots[t][0], first_high, highs);
          add_products(dots[t][1], second_high, highs);
        }
      }
    fetch.step();
    const size_t place = block - scales.first_block;
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const __m512 x_scale = _mm512_set1_ps(x[t].scales[block]), x_sum = _mm512_set1_ps(x[t].sums[block]);
      const __m512 middles = _mm512_mul_ps(x_sum, minus_middle);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        float* sum = sums + t * ROWS + h * PANEL;
        const __m512 zero = ZERO_POINTS ? _mm512_mul_ps(_mm512_load_ps(scales.zeros[place] + h * PANEL), x_sum) : middles;
        const __m512 dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][h]), x_scale, zero);
        _mm512_store_ps(sum, _mm512_fmadd_ps(dot, _mm512_load_ps(scales.scales[place] + h * PANEL), _mm512_load_ps(sum)));
      }
    }
  }
}

using ByTokens = void (*)(const Blocks&, const PackedSlab&, const SlabBlocks&, const Activations*, float*, Fetch&);

template <size_t DWORDS, bool ZERO_POINTS>
ByTokens by_tokens(size_t num_tokens) {
  constexpr ByTokens by_count[] = {
      slab_by_tokens<3, DWORDS, ZERO_POINTS>, slab_by_tokens<4, DWORDS, ZERO_POINTS>, slab_by_tokens<5, DWORDS, ZERO_POINTS>,
      slab_by_tokens<6, DWORDS, ZERO_POINTS>, slab_by_tokens<7, DWORDS, ZERO_POINTS>, slab_by_tokens<8, DWORDS, ZERO_POINTS>};
  return by_count[num_tokens - avx512::LEAST_PACKED];
}

template <size_t DWORDS>
ByTokens by_tokens(const Blocks& weights, size_t num_tokens) {
  return weights.zero_points ? by_tokens<DWORDS, true>(num_tokens) : by_tokens<DWORDS, false>(num_tokens);
}

ByTokens products_of(const Blocks& weights, size_t num_tokens) {
  switch (weights.block) {
    case 16: return by_tokens<2>(weights, num_tokens);
    case 32: return by_tokens<4>(weights, num_tokens);
    case 64: return by_tokens<8>(weights, num_tokens);
    default: return by_tokens<16>(weights, num_tokens);
  }
}

}  // namespace

namespace avx512 {

void multiply_packed(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride, ptrdiff_t ahead) {
  const size_t num_blocks = weights.num_blocks(), blocks_of_slab = SLAB / weights.block;
  const size_t blocks_of_scales = blocks_of_slab < 16 ? 16 : blocks_of_slab;  // transposing fewer would take as long
  const ByTokens multiply = products_of(weights, num_tokens);
  PackedSlab slab;
  SlabBlocks scales;
  alignas(64) float sums[MOST_PACKED * ROWS];
  for (size_t row = first; row < last; row += ROWS) {
    const size_t num_rows = last - row < ROWS ? last - row : ROWS;
    const PanelRows panels[2] = {PanelRows(row, num_rows, 0), PanelRows(row, num_rows, 1)};
    memset(sums, 0, num_tokens * ROWS * sizeof(float));
    for (size_t block = 0; block < num_blocks; block += blocks_of_slab) {
      const size_t left = num_blocks - block;
      if (block % blocks_of_scales == 0) {
        scales.first_block = block;
        scales.num_blocks = left < blocks_of_scales ? left : blocks_of_scales;
        for (size_t half = 0; half < 2; half++) load_scales<4>(weights, panels[half], half, scales);
      }
      slab.first_block = block;
      slab.num_blocks = left < blocks_of_slab ? left : blocks_of_slab;
      for (size_t half = 0; half < 2; half++) pack_codes(weights, panels[half], slab, slab.codes[half]);
      Fetch fetch(weights, block, slab.num_blocks, row + (ahead ? static_cast<size_t>(ahead) : ROWS), slab.num_blocks);
      multiply(weights, slab, scales, x, sums, fetch);
    }
    for (size_t t = 0; t < num_tokens; t++) memcpy(y + t * stride + (row - first), sums + t * ROWS, num_rows * sizeof(float));
  }
}

}  // namespace avx512
}  // namespace qwonnx
#endif
