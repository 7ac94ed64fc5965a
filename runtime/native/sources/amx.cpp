// AMX: a tile product multiplies the int8 activations of up to 16 tokens by the unsigned codes of 16 rows, 64 columns at
// once, and adds them to 256 sums of 32 bits. Fewer than a dozen tokens are AVX-512's.
//
// Two panels of 16 rows meet two groups of 16 tokens in four tiles of sums. After each block these are stored and scaled
// into floats, where lanes are rows. That takes as long as the products, so it is laid between the products of the next
// block. Groups that are not full have smaller tiles, which take less time.
#if defined(__x86_64__)
#include "avx512_panels.h"
#include "processor.h"

namespace qwonnx {
namespace {

constexpr size_t GROUP = 16;           // tokens of a tile
constexpr size_t TOKENS = 128;         // of a call of rows_by_tokens
constexpr size_t STRIPE = 64;          // rows for which activations are packed once
constexpr size_t LEAST_TOKENS = 12;    // else AVX-512
constexpr size_t LEAST_BLOCK = 32;     // a tile of 16 columns would be a quarter full

struct TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfiguration) == 64, "the processor reads 64 bytes");

// Tiles 0 and 1 are the sums of the first group with each panel, 2 and 3 those of the second one; 4 and 5 the groups'
// activations; 6 and 7 the panels' codes.
void configure(size_t first_tokens, size_t second_tokens, size_t columns) {
  TileConfiguration tiles;
  for (int i = 0; i < 8; i++) {
    const bool codes = i >= 6, second = i == 2 || i == 3 || i == 5;
    tiles.rows[i] = static_cast<uint8_t>(codes ? columns / 4 : second ? second_tokens : first_tokens);
    tiles.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? columns : 64);
    if (!tiles.rows[i]) tiles.row_bytes[i] = 0;
  }
  _tile_loadconfig(&tiles);
}

// ---- activations ----

// Codes of a slab, by groups of tokens: [tile, token, columns of a tile], where a block's codes are in the order of its
// unpacked weights.
struct Packed {
  alignas(64) int8_t codes[TOKENS / GROUP][SLAB * GROUP];
};

template <size_t BYTES>
void pack_runs(const uint8_t* codes, const Runs& runs, size_t first_block, size_t num_blocks, size_t columns, int8_t* out) {
  size_t at = 0;  // bytes of this token
  for (size_t b = 0; b < num_blocks; b++) {
    const uint8_t* block = codes + runs.offset(first_block + b);
    for (size_t run = 0; run < runs.count; run++, at += BYTES)
      memcpy(out + at / columns * columns * GROUP + at % columns, block + 64 * run, BYTES);
  }
}

void pack(const Runs& runs, const Slab& slab, const Activations* x, size_t num_tokens, size_t columns, Packed& packed) {
  const auto run = runs.dwords == 16 ? pack_runs<64> : runs.dwords == 8 ? pack_runs<32> : runs.dwords == 4 ? pack_runs<16> : pack_runs<8>;
  for (size_t t = 0; t < num_tokens; t++)
    run(static_cast<const uint8_t*>(x[t].codes), runs, slab.first_block, slab.num_blocks, columns,
        packed.codes[t / GROUP] + t % GROUP * columns);
}

// ---- products ----

// Sums of one block: [panel, token, row].
struct Sums {
  alignas(64) int32_t of[2][2 * GROUP][PANEL];
};

// What one group's block is scaled by.
struct Factors {
  alignas(64) float scales[MAX_BLOCKS][2 * GROUP];
  alignas(64) float sums[MAX_BLOCKS][2 * GROUP];  // without zero points: times minus the middle
};

// The scaling of one block, done a few tokens at a time.
template <bool ZERO_POINTS>
struct Scaling {
  const Slab& slab;
  const Factors& factors;
  const size_t num_tokens;
  float* const floats;  // [num_tokens, 32]
  const Sums* sums = nullptr;
  size_t block = 0, next = 0;

  __attribute__((always_inline)) void begin(const Sums& of, size_t number) {
    sums = &of;
    block = number;
    next = 0;
  }

  __attribute__((always_inline)) void until(size_t token) {
    __asm__ volatile("" : : : "memory");  // compilers would lay all of it before or behind the products
    const __m512 scales[2] = {_mm512_load_ps(slab.scales[block]), _mm512_load_ps(slab.scales[block] + PANEL)};
    __m512 zeros[2];
    for (size_t h = 0; h < 2 && ZERO_POINTS; h++) zeros[h] = _mm512_load_ps(slab.zeros[block] + h * PANEL);
    for (const size_t end = token < num_tokens ? token : num_tokens; next < end; next++) {
      const __m512 x_scale = _mm512_set1_ps(factors.scales[block][next]), x_sum = _mm512_set1_ps(factors.sums[block][next]);
      float* at = floats + next * ROWS;
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; h++) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(sums->of[h][next]));
        const __m512 zero = ZERO_POINTS ? _mm512_mul_ps(zeros[h], x_sum) : x_sum;
        _mm512_store_ps(at + h * PANEL, _mm512_fmadd_ps(_mm512_fmadd_ps(dot, x_scale, zero), scales[h], _mm512_load_ps(at + h * PANEL)));
      }
    }
    __asm__ volatile("" : : : "memory");
  }
};

// One block: TILES tile products of each group with each panel, and between them the scaling of the block before.
template <int GROUPS, int TILES, bool ZERO_POINTS>
INLINE void multiply_block(const uint8_t* low, const uint8_t* high, const int8_t* first, const int8_t* second, size_t columns,
                           Sums& sums, Scaling<ZERO_POINTS>& before) {
  constexpr size_t STEPS = 2 * TILES, EACH = (GROUPS * GROUP + STEPS - 1) / STEPS;
  _tile_zero(0);
  _tile_zero(1);
  if (GROUPS == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
#pragma GCC unroll 4
  for (size_t tile = 0; tile < TILES; tile++) {
    _tile_loadd(4, first + tile * 64 * GROUP, columns);
    _tile_loadd(6, low + tile * 1024, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, high + tile * 1024, 64);
    _tile_dpbsud(1, 4, 7);
    before.until((2 * tile + 1) * EACH);
    if (GROUPS == 2) {
      _tile_loadd(5, second + tile * 64 * GROUP, columns);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    before.until((2 * tile + 2) * EACH);
  }
  _tile_stored(0, sums.of[0][0], 64);
  _tile_stored(1, sums.of[1][0], 64);
  if (GROUPS == 2) {
    _tile_stored(2, sums.of[0][GROUP], 64);
    _tile_stored(3, sums.of[1][GROUP], 64);
  }
}

// floats [num_tokens, 32] += one slab times one or two groups of tokens.
template <int GROUPS, int TILES, bool ZERO_POINTS>
void slab_by_groups(const Slab& slab, const int8_t* codes, size_t columns, size_t block_columns, const Factors& factors,
                    size_t num_tokens, float* floats, Fetch& fetch) {
  Sums sums[2];
  Scaling<ZERO_POINTS> before = {slab, factors, num_tokens, floats};
  before.next = num_tokens;  // there is no block before the first one
  for (size_t b = 0; b < slab.num_blocks; b++) {
    const size_t weights_at = b * block_columns * PANEL, tokens_at = b * block_columns * GROUP;
    multiply_block<GROUPS, TILES, ZERO_POINTS>(slab.codes[0] + weights_at, slab.codes[1] + weights_at, codes + tokens_at,
                                               codes + sizeof(Packed::codes[0]) + tokens_at, columns, sums[b % 2], before);
    before.begin(sums[b % 2], b);
    fetch.step();
  }
  before.until(num_tokens);
}

using SlabByGroups = void (*)(const Slab& slab, const int8_t* codes, size_t columns, size_t block_columns,
                              const Factors& factors, size_t num_tokens, float* floats, Fetch& fetch);

template <int GROUPS, bool ZERO_POINTS>
SlabByGroups by_tiles(size_t tiles) {
  return tiles == 4 ? slab_by_groups<GROUPS, 4, ZERO_POINTS>
         : tiles == 2 ? slab_by_groups<GROUPS, 2, ZERO_POINTS>
                      : slab_by_groups<GROUPS, 1, ZERO_POINTS>;
}

// At most STRIPE rows times at most TOKENS tokens into y.
void rows_by_tokens(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t ahead) {
  const size_t num_blocks = weights.num_blocks(), blocks_of_slab = SLAB / weights.block;
  const size_t columns = weights.block < 64 ? weights.block : 64, tiles = weights.block / columns;
  const Runs runs(weights);
  const SlabByGroups two = weights.zero_points ? by_tiles<2, true>(tiles) : by_tiles<2, false>(tiles);
  const SlabByGroups one = weights.zero_points ? by_tiles<1, true>(tiles) : by_tiles<1, false>(tiles);
  Slab slab;
  Packed packed;
  Factors factors[TOKENS / (2 * GROUP)];
  alignas(64) float floats[STRIPE / ROWS][TOKENS][ROWS];  // not in y, where tokens may be a multiple of a page apart
  memset(floats, 0, (last - first + ROWS - 1) / ROWS * sizeof floats[0]);
  for (size_t block = 0; block < num_blocks; block += blocks_of_slab) {
    slab.first_block = block;
    slab.num_blocks = num_blocks - block < blocks_of_slab ? num_blocks - block : blocks_of_slab;
    pack(runs, slab, x, num_tokens, columns, packed);
    for (size_t t = 0; t < num_tokens; t++)
      for (size_t b = 0; b < slab.num_blocks; b++) {
        factors[t / (2 * GROUP)].scales[b][t % (2 * GROUP)] = x[t].scales[block + b];
        factors[t / (2 * GROUP)].sums[b][t % (2 * GROUP)] = x[t].sums[block + b] * (weights.zero_points ? 1 : -weights.middle());
      }
    for (size_t row = first; row < last; row += ROWS) {
      unpack(weights, row, last - row < ROWS ? last - row : ROWS, slab);
      Fetch fetch(weights, slab.first_block, slab.num_blocks, row + (ahead ? static_cast<size_t>(ahead) : ROWS), (num_tokens + 2 * GROUP - 1) / (2 * GROUP) * slab.num_blocks);
      size_t configured = 0;  // tokens
      for (size_t t = 0; t < num_tokens; t += 2 * GROUP) {
        const size_t count = num_tokens - t < 2 * GROUP ? num_tokens - t : 2 * GROUP;
        if (count != configured) configure(count < GROUP ? count : GROUP, count > GROUP ? count - GROUP : 0, columns);
        configured = count;
        (count > GROUP ? two : one)(slab, packed.codes[t / GROUP], columns, weights.block, factors[t / (2 * GROUP)], count,
                                     floats[(row - first) / ROWS][t], fetch);
      }
    }
  }
  for (size_t row = first; row < last; row += ROWS) {
    const size_t rows = last - row < ROWS ? last - row : ROWS;
    for (size_t t = 0; t < num_tokens; t++)
      memcpy(y + t * stride + (row - first), floats[(row - first) / ROWS][t], rows * sizeof(float));
  }
}

void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t ahead) {
  if (num_tokens < LEAST_TOKENS || weights.block < LEAST_BLOCK)
    return avx512::multiply_int8(weights, first, last, x, num_tokens, y, stride, ahead);
  for (size_t row = first; row < last; row += STRIPE)
    for (size_t t = 0; t < num_tokens; t += TOKENS)
      rows_by_tokens(weights, row, last - row < STRIPE ? last : row + STRIPE, x + t,
                     num_tokens - t < TOKENS ? num_tokens - t : TOKENS, y + t * stride + (row - first), stride, ahead);
  _tile_release();  // the system need not save tiles that are not in use
}

}  // namespace

const InstructionSet amx_set = {"amx",          has_amx_int8,       avx512::quantize, multiply_int8, avx512::multiply_float,
                                avx512::swiglu, avx512::add_scaled, avx512_attention};

}  // namespace qwonnx
#endif
