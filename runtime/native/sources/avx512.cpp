// AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned codes by 64 signed activations and adds them to 16 sums of 32 bits.
// The order of activations is in avx512.h. Three products use it:
//   few tokens:  lanes run along the columns of one row, or of some rows, which are read as they lie and fetched some KB
//                ahead; each unpacked code meets up to four tokens;
//   some tokens: avx512_packed.cpp, if codes have 4 bits;
//   more tokens: avx512_panels.cpp.
#if defined(__x86_64__)
#include "avx512.h"
#include "avx512_lane_sums.h"
#include "processor.h"

namespace qwonnx {
namespace {

// Bytes: the processor itself looks ahead only to the end of a page.
constexpr ptrdiff_t AHEAD = 8192;

// How many tokens meet four rows at once: their sums and the rows' unpacked codes must fit the registers.
template <int BITS, int BLOCK>
constexpr size_t MOST_AT_ONCE = BLOCK < 32 || BLOCK > 128 || BITS == 2 ? 2 : 4;

// How many tokens are few; others take more. Measured on a Zen 5: the shorter a row, the more of its time goes into the
// sums across its lanes, which only a few tokens need.
template <int BITS>
size_t most_few(const Blocks& weights) {
  constexpr size_t LEAST = BITS == 4 ? avx512::LEAST_PACKED - 1 : 3, MOST = BITS == 4 ? avx512::MOST_PACKED - 1 : 8;
  const size_t most = weights.columns / 512;
  return most < LEAST ? LEAST : most > MOST ? MOST : most;
}

// Bytes of a row's codes. Of shorter rows, one token takes four at once.
constexpr size_t SHORT = 512;

// Loaded once: gcc would rather load it again in each product that uses it.
INLINE __m512i loaded(const uint8_t* at) {
  __m512i vector = _mm512_loadu_si512(at);
#if !defined(QWONNX_EMULATED)
  __asm__("" : "+v"(vector));
#endif
  return vector;
}

// One or four rows (R) times T tokens. Blocks come in groups of 16, whose factors (the row's scale times the token's) are computed at
// once and stored; each step takes the codes of one block, or of one chunk if that has several blocks.
template <int BITS, int BLOCK, int R, int T>
struct RowsByFew {
  static constexpr int CHUNK = 512 / BITS, BYTES = 64 * PLANES<BITS>;  // columns, and bytes of activations
  static constexpr int CHUNKS = BLOCK < CHUNK ? 1 : BLOCK / CHUNK;     // of a block
  static constexpr int IN_CHUNK = BLOCK < CHUNK ? CHUNK / BLOCK : 1;   // blocks of a chunk
  static constexpr int GROUP = 16;                                     // blocks

  const Blocks& weights;
  const uint8_t* codes[R];
  const float* scales[R];
  const Activations* const x;
  const ptrdiff_t ahead, ahead_scales;
  __m512 sums[R][T];
  alignas(64) float factors[R][T][GROUP];

  // Of a group. Its share of the zero points is one multiply-add of vectors of blocks.
  __attribute__((always_inline)) void factors_of(const size_t* rows, size_t block, size_t count) {
    const __mmask16 mask = first_lanes(count);
    __m512 x_scales[T], x_sums[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      x_scales[t] = _mm512_maskz_loadu_ps(mask, x[t].scales + block);
      x_sums[t] = _mm512_maskz_loadu_ps(mask, x[t].sums + block);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      prefetch(further(scales[r] + block, ahead_scales));
      const __m512 scale = _mm512_maskz_loadu_ps(mask, scales[r] + block);
      const __m512 zero = _mm512_mul_ps(scale, negative_zeros<BITS>(weights, rows[r], block, count));
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        _mm512_store_ps(factors[r][t], _mm512_mul_ps(scale, x_scales[t]));
        sums[r][t] = _mm512_fmadd_ps(zero, x_sums[t], sums[r][t]);
      }
    }
  }

  // Step s of a group, whose first chunk has this number; `bytes` are left of its last chunk.
  __attribute__((always_inline)) void step(size_t chunk, int s, size_t bytes) {
    __m512i planes[R][CHUNKS][PLANES<BITS>];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < CHUNKS; c++) {
        const uint8_t* at = codes[r] + 64 * (chunk + c);
        prefetch(further(at, ahead));
        const __m512i packed = load_part(at, c == CHUNKS - 1 ? bytes : 64);
#pragma GCC unroll 4
        for (int p = 0; p < PLANES<BITS>; p++) planes[r][c][p] = plane<BITS>(packed, p);
      }
    // The lanes of a chunk's first block use factor s * IN_CHUNK, those of the next block the next one, and so on.
    const __m512i places = _mm512_add_epi32(
        _mm512_srli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                          static_cast<unsigned>(IN_CHUNK == 1    ? 4
                                                : IN_CHUNK == 2  ? 3
                                                : IN_CHUNK == 4  ? 2
                                                : IN_CHUNK == 8  ? 1
                                                                 : 0)),
        _mm512_set1_epi32(s * IN_CHUNK));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const uint8_t* tokens = static_cast<const uint8_t*>(x[t].codes) + BYTES * chunk;
      __m512i x_codes[CHUNKS][PLANES<BITS>];
#pragma GCC unroll 4
      for (int c = 0; c < CHUNKS; c++)
#pragma GCC unroll 4
        for (int p = 0; p < PLANES<BITS>; p++) x_codes[c][p] = loaded(tokens + BYTES * c + 64 * p);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        __m512i dots = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int c = 0; c < CHUNKS; c++)
#pragma GCC unroll 4
          for (int p = 0; p < PLANES<BITS>; p++)
            add_products(dots, planes[r][c][p], x_codes[c][p]);
        const __m512 factor = IN_CHUNK == 1 ? _mm512_set1_ps(factors[r][t][s])
                                            : _mm512_permutexvar_ps(places, _mm512_load_ps(factors[r][t]));
        sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[r][t]);
      }
    }
  }

  __attribute__((always_inline)) void run(const size_t* rows, float* y, size_t stride) {
    const size_t num_blocks = weights.num_blocks(), row_bytes = weights.row_bytes();
    for (int r = 0; r < R; r++) {
      codes[r] = weights.codes + rows[r] * row_bytes;
      scales[r] = weights.scales + rows[r] * num_blocks;
      for (int t = 0; t < T; t++) sums[r][t] = _mm512_setzero_ps();
    }
    size_t block = 0, chunk = 0;
    for (; block + GROUP <= num_blocks; block += GROUP) {
      factors_of(rows, block, GROUP);
#pragma GCC unroll 2
      for (int s = 0; s < GROUP / IN_CHUNK; s++, chunk += CHUNKS) step(chunk, s, 64);
    }
    if (block < num_blocks) {
      factors_of(rows, block, num_blocks - block);
      for (int s = 0; 64 * chunk < row_bytes; s++, chunk += CHUNKS) {
        const size_t left = row_bytes - 64 * (chunk + CHUNKS - 1);
        step(chunk, s, left < 64 ? left : 64);
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const __m128 four = sums_of_four(sums[0][t], sums[1 % R][t], sums[2 % R][t], sums[3 % R][t]);
      if (R == 4) {
        _mm_storeu_ps(y + t * stride, four);
      } else {
        _mm_store_ss(y + t * stride, four);
      }
    }
  }
};

template <int BITS, int BLOCK, int R, int T>
void rows_by_few(const Blocks& weights, const size_t* rows, const Activations* x, float* y, size_t stride,
                 ptrdiff_t ahead) {
  const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(weights.row_bytes());
  const ptrdiff_t scale_bytes = static_cast<ptrdiff_t>(4 * weights.num_blocks());
  const ptrdiff_t bytes = ahead ? ahead * row_bytes : AHEAD;
  const ptrdiff_t ahead_scales = ahead ? ahead * scale_bytes : AHEAD * scale_bytes / row_bytes;
  RowsByFew<BITS, BLOCK, R, T> all = {weights, {}, {}, x, bytes, ahead_scales, {}, {}};
  all.run(rows, y, stride);
}

// At most MOST_AT_ONCE tokens with four rows. How many they were?
template <int BITS, int BLOCK>
size_t four_rows_by_some(const Blocks& weights, const size_t* rows, const Activations* x, size_t num_tokens, float* y,
                         size_t stride, ptrdiff_t ahead) {
  if constexpr (MOST_AT_ONCE<BITS, BLOCK> == 4) {
    if (num_tokens >= 4) return rows_by_few<BITS, BLOCK, 4, 4>(weights, rows, x, y, stride, ahead), 4;
    if (num_tokens == 3) return rows_by_few<BITS, BLOCK, 4, 3>(weights, rows, x, y, stride, ahead), 3;
  }
  if (num_tokens >= 2) return rows_by_few<BITS, BLOCK, 4, 2>(weights, rows, x, y, stride, ahead), 2;
  return rows_by_few<BITS, BLOCK, 4, 1>(weights, rows, x, y, stride, ahead), 1;
}

// One token: row by row, which is one stream of memory. More tokens, or short rows: four rows, so that a token's codes
// are loaded once for all of them.
template <int BITS, int BLOCK>
void by_few(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
            size_t stride, ptrdiff_t ahead) {
  const bool by_fours = num_tokens > 1 || weights.row_bytes() <= SHORT;
  for (size_t row = first; row < last;) {
    const size_t rows[4] = {row, row + 1, row + 2, row + 3};
    const bool four = by_fours && row + 4 <= last;
    float* at = y + (row - first);
    for (size_t t = 0; t < num_tokens;)
      if (four) {
        t += four_rows_by_some<BITS, BLOCK>(weights, rows, x + t, num_tokens - t, at + t * stride, stride, ahead);
      } else {
        rows_by_few<BITS, BLOCK, 1, 1>(weights, rows, x + t, at + t * stride, stride, ahead);
        t++;
      }
    row += four ? 4 : 1;
  }
}

template <int BITS, int BLOCK>
void multiply_by_block(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                       size_t stride, ptrdiff_t ahead) {
  if (num_tokens > most_few<BITS>(weights)) {
    const bool packed = BITS == 4 && num_tokens <= avx512::MOST_PACKED;
    return (packed ? avx512::multiply_packed : avx512::multiply_panels)(weights, first, last, x, num_tokens, y, stride, ahead);
  }
  by_few<BITS, BLOCK>(weights, first, last, x, num_tokens, y, stride, ahead);
}

template <int BITS>
void multiply(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
              size_t stride, ptrdiff_t ahead) {
  switch (weights.block) {
    case 16: return multiply_by_block<BITS, 16>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 32: return multiply_by_block<BITS, 32>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 64: return multiply_by_block<BITS, 64>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 128: return multiply_by_block<BITS, 128>(weights, first, last, x, num_tokens, y, stride, ahead);
    default: return multiply_by_block<BITS, 256>(weights, first, last, x, num_tokens, y, stride, ahead);
  }
}

}  // namespace

namespace avx512 {

void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t ahead) {
  with_bits(weights, [&](auto bits) { multiply<bits.value>(weights, first, last, x, num_tokens, y, stride, ahead); });
}

}  // namespace avx512

const InstructionSet avx512_set = {"avx512",           has_avx512_vnni, avx512::quantize,   avx512::multiply_int8, avx512::multiply_float,
                                   avx512::swiglu, avx512::add_scaled, avx512_attention};

}  // namespace qwonnx
#endif
