// More than a few tokens: lanes are 16 rows. Their codes are transposed and unpacked into the L1 cache, a slab of eight
// chunks at a time, and used by four tokens at once. Nothing is summed across lanes.
#if defined(__x86_64__)
#include "avx2.h"

namespace qwonnx {
namespace {

constexpr size_t ROWS = 16;        // of a panel: two vectors of lanes
constexpr size_t SLAB = 8;         // chunks
constexpr size_t MAX_BLOCKS = 64;  // of a slab: 2 bits in blocks of 16

struct Slab {
  alignas(64) uint8_t planes[SLAB * 8 * 4 * 64];  // [chunk, dword, plane, row, 4 columns]
  alignas(64) float scales[MAX_BLOCKS * ROWS];    // [block, row]
  alignas(64) float zeros[MAX_BLOCKS * ROWS];     // minus zero point times scale
  size_t first_chunk, chunks, first_block, blocks;
};

// What is to be fetched while a slab is multiplied: the same columns of 16 other rows, a row (four lines of codes, one of
// scales) at a time, so that memory is busy all the time and never has more to do than it can keep track of.
struct Fetch {
  const uint8_t* codes;
  const float* scales;
  ptrdiff_t code_stride, scale_stride;  // bytes
  unsigned every, count;                // groups of dwords from one row to the next

  __attribute__((always_inline)) void step() {
    if (--count) return;
    count = every;
    for (ptrdiff_t line = 0; line < 4; line++) prefetch(codes, 64 * line);
    prefetch(scales, 0);
    codes = further(codes, code_stride);
    scales = further(scales, scale_stride);
  }

  // As prefetch(): the address need not exist.
  template <typename T>
  static const T* further(const T* at, ptrdiff_t bytes) {
    return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(bytes));
  }
};

template <int BITS>
void unpack_slab(const Blocks& weights, size_t first, size_t num_rows, Slab& slab) {
  const size_t row_bytes = weights.row_bytes(), num_blocks = weights.num_blocks();
  for (size_t half = 0; half < 2; half++) {
    const uint8_t* rows[8];
    for (size_t r = 0; r < 8; r++) {
      const size_t row = half * 8 + r;  // rows past the end repeat the last one; their results are dropped
      rows[r] = weights.codes + (first + (row < num_rows ? row : num_rows - 1)) * row_bytes + 32 * slab.first_chunk;
    }
    const size_t whole = row_bytes / 32 - slab.first_chunk < slab.chunks ? row_bytes / 32 - slab.first_chunk : slab.chunks;
    for (size_t c = 0; c < slab.chunks; c++) {
      __m256i dwords[8];
      if (__builtin_expect(c < whole, 1)) {
#pragma GCC unroll 8
        for (size_t r = 0; r < 8; r++) dwords[r] = load(rows[r] + 32 * c);
      } else {
        for (size_t r = 0; r < 8; r++) dwords[r] = load_part(rows[r] + 32 * c, row_bytes % 32);
      }
      transpose(dwords);
      uint8_t* out = slab.planes + c * 8 * num_planes<BITS>() * 64 + half * 32;
#pragma GCC unroll 8
      for (int d = 0; d < 8; d++)
        for (int p = 0; p < num_planes<BITS>(); p++) store(out + (d * num_planes<BITS>() + p) * 64, plane<BITS>(dwords[d], p));
    }
  }
  for (size_t half = 0; half < 2; half++)
    for (size_t b = 0; b < slab.blocks; b += 8) {
      const size_t left = slab.blocks - b < 8 ? slab.blocks - b : 8, block = slab.first_block + b;
      const __m256i mask = first_lanes(left);
      __m256i scales[8], zeros[8];
      for (size_t r = 0; r < 8; r++) {
        const size_t row = first + (half * 8 + r < num_rows ? half * 8 + r : num_rows - 1);
        const __m256 scale = _mm256_maskload_ps(weights.scales + row * num_blocks + block, mask);
        scales[r] = _mm256_castps_si256(scale);
        zeros[r] = _mm256_castps_si256(_mm256_mul_ps(scale, negative_zeros<BITS>(weights, row, block, left)));
      }
      transpose(scales);
      for (size_t i = 0; i < left; i++) store(slab.scales + (b + i) * ROWS + half * 8, scales[i]);
      if (!weights.zero_points) continue;
      transpose(zeros);
      for (size_t i = 0; i < left; i++) store(slab.zeros + (b + i) * ROWS + half * 8, zeros[i]);
    }
}

// Compilers reorder sums of whole numbers, hold all products, and spill the sums.
INLINE void in_order(__m256i& sum) { __asm__("" : "+x"(sum)); }

// Products of GROUP dwords of codes of each row with T tokens, added to `dots`; with codes of less than 8 bits they are added
// in 16 bits first, which hold those of 4 dwords.
template <int BITS, int T, int GROUP>
INLINE void multiply_group(const uint8_t* codes, const uint8_t* const* tokens, size_t at, __m256i (&dots)[T][2]) {
  constexpr int PLANES = num_planes<BITS>();
  static_assert(BITS == 8 || 4 * PLANES * 2 * ((1 << BITS) - 1) * 127 < 1 << 15, "16 bits overflow");
  __m256i narrow[T][2];
#pragma GCC unroll 4
  for (int step = 0; step < GROUP; step++)
#pragma GCC unroll 4
    for (int p = 0; p < PLANES; p++, codes += 64) {
      const __m256i low = load(codes), high = load(codes + 32);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        const __m256i value = broadcast(tokens[t] + at + step * 4 + p * 32);
        const __m256i products[2] = {multiply_plane<BITS>(low, value), multiply_plane<BITS>(high, value)};
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
          narrow[t][h] = step == 0 && p == 0 ? products[h] : add_products<BITS>(narrow[t][h], products[h]);
      }
      // Compilers would load all codes first, and reorder sums of whole numbers, and have too few registers for either.
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) __asm__ volatile("" : "+x"(narrow[t][0]), "+x"(narrow[t][1]) : : "memory");
    }
#pragma GCC unroll 4
  for (int t = 0; t < T; t++)
    for (int h = 0; h < 2; h++) dots[t][h] = _mm256_add_epi32(dots[t][h], widen<BITS>(narrow[t][h]));
}

// sums [T, 16] += one slab times T tokens. A block of a row is `groups` times GROUP dwords.
template <int BITS, int T, int GROUP, bool ZERO_POINTS>
void slab_by_tokens(const Slab& slab, int groups, float middle, const Activations* x, float* sums, Fetch& fetch) {
  constexpr size_t PLANES = num_planes<BITS>();
  const uint8_t* tokens[T];
  for (int t = 0; t < T; t++) tokens[t] = static_cast<const uint8_t*>(x[t].codes) + slab.first_chunk * PLANES * 32;
  const __m256 minus_middle = _mm256_set1_ps(-middle);
  const uint8_t* codes = slab.planes;
  size_t dword = 0;
  for (size_t b = 0; b < slab.blocks; b++) {
    __m256i dots[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dots[t][0] = dots[t][1] = _mm256_setzero_si256();
    int group = groups;
    do {
      multiply_group<BITS, T, GROUP>(codes, tokens, dword / 8 * PLANES * 32 + dword % 8 * 4, dots);
      fetch.step();
      dword += GROUP;
      codes += GROUP * PLANES * 64;
    } while (--group > 0);
    const size_t block = slab.first_block + b;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const __m256 x_scale = _mm256_broadcast_ss(x[t].scales + block), x_sum = _mm256_broadcast_ss(x[t].sums + block);
      const __m256 zero = _mm256_mul_ps(x_sum, minus_middle);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m256 dot = _mm256_cvtepi32_ps(dots[t][h]), scale = _mm256_load_ps(slab.scales + b * ROWS + 8 * h);
        float* at = sums + t * ROWS + 8 * h;
        __m256 sum = _mm256_load_ps(at);
        if (ZERO_POINTS) {
          sum = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, x_scale), sum);
          sum = _mm256_fmadd_ps(_mm256_load_ps(slab.zeros + b * ROWS + 8 * h), x_sum, sum);
        } else {
          sum = _mm256_fmadd_ps(_mm256_fmadd_ps(dot, x_scale, zero), scale, sum);
        }
        _mm256_store_ps(at, sum);
      }
    }
  }
}

template <int BITS, int GROUP, bool ZERO_POINTS>
void slab_by_all(const Slab& slab, int groups, float middle, const Activations* x, size_t num_tokens, float* sums,
                 Fetch& fetch) {
  size_t t = 0;
  for (; t + 4 <= num_tokens; t += 4)
    slab_by_tokens<BITS, 4, GROUP, ZERO_POINTS>(slab, groups, middle, x + t, sums + t * ROWS, fetch);
  switch (num_tokens - t) {
    case 3: return slab_by_tokens<BITS, 3, GROUP, ZERO_POINTS>(slab, groups, middle, x + t, sums + t * ROWS, fetch);
    case 2: return slab_by_tokens<BITS, 2, GROUP, ZERO_POINTS>(slab, groups, middle, x + t, sums + t * ROWS, fetch);
    case 1: return slab_by_tokens<BITS, 1, GROUP, ZERO_POINTS>(slab, groups, middle, x + t, sums + t * ROWS, fetch);
  }
}

constexpr size_t TILE = 128;  // tokens

// One panel of 16 rows (num_rows of them real) times at most TILE tokens into y.
template <int BITS>
void panel_by_tokens(const Blocks& weights, size_t first, size_t num_rows, const Activations* x, size_t num_tokens,
                     float* y, size_t stride, ptrdiff_t ahead) {
  constexpr size_t CHUNK = 256 / BITS;
  const size_t chunks = (weights.columns + CHUNK - 1) / CHUNK, blocks_per_slab = SLAB * CHUNK / weights.block;
  const int steps = static_cast<int>(weights.block * BITS / 32);  // dwords of a block
  Slab slab;
  alignas(64) float sums[TILE * ROWS];  // not in y, where tokens may be a multiple of a page apart
  memset(sums, 0, num_tokens * ROWS * sizeof(float));
  for (size_t c = 0; c < chunks; c += SLAB) {
    slab.first_chunk = c;
    slab.chunks = chunks - c < SLAB ? chunks - c : SLAB;
    slab.first_block = c * CHUNK / weights.block;
    const size_t left = weights.num_blocks() - slab.first_block;
    slab.blocks = left < blocks_per_slab ? left : blocks_per_slab;
    unpack_slab<BITS>(weights, first, num_rows, slab);
    const size_t tiles = (num_tokens + 3) / 4, next = first + (ahead ? static_cast<size_t>(ahead) : ROWS);
    const unsigned every = static_cast<unsigned>(tiles * (steps >= 4 ? 1 : 4 / steps));
    Fetch fetch = {Fetch::further(weights.codes, static_cast<ptrdiff_t>(next * weights.row_bytes() + 32 * c)),
                   Fetch::further(weights.scales, static_cast<ptrdiff_t>(4 * (next * weights.num_blocks() + slab.first_block))),
                   static_cast<ptrdiff_t>(weights.row_bytes()), static_cast<ptrdiff_t>(4 * weights.num_blocks()), every, 1};
    const auto run = weights.zero_points
                         ? (steps >= 4   ? slab_by_all<BITS, 4, true>
                            : steps == 2 ? slab_by_all<BITS, 2, true>
                                         : slab_by_all<BITS, 1, true>)
                         : (steps >= 4   ? slab_by_all<BITS, 4, false>
                            : steps == 2 ? slab_by_all<BITS, 2, false>
                                         : slab_by_all<BITS, 1, false>);
    run(slab, steps >= 4 ? steps / 4 : 1, weights.middle(), x, num_tokens, sums, fetch);
  }
  for (size_t t = 0; t < num_tokens; t++) memcpy(y + t * stride, sums + t * ROWS, num_rows * sizeof(float));
}

template <int BITS>
void by_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
               size_t stride, ptrdiff_t ahead) {
  for (size_t row = first; row < last; row += ROWS)
    for (size_t t = 0; t < num_tokens; t += TILE) {
      const size_t rows = last - row < ROWS ? last - row : ROWS, count = num_tokens - t < TILE ? num_tokens - t : TILE;
      panel_by_tokens<BITS>(weights, row, rows, x + t, count, y + t * stride + (row - first), stride, ahead);
    }
}

}  // namespace

namespace avx2 {

void multiply_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride, ptrdiff_t ahead) {
  with_bits(weights, [&](auto bits) { by_panels<bits.value>(weights, first, last, x, num_tokens, y, stride, ahead); });
}

}  // namespace avx2
}  // namespace qwonnx
#endif
