// AVX2 with FMA. Codes are unsigned, activations signed: vpmaddubsw adds 8 products of 4 bits each into 16 bits without
// overflow (8 * 2 * 15 * 127 < 2 ** 15). Codes of 8 bits are widened to 16 first.
//
// A chunk is 32 code bytes: 256 / bits columns. Its codes are taken apart by shifts and masks into planes; plane p has
// the columns whose number is p modulo the number of planes. Activations are stored by chunk and plane, so that no code
// is ever shuffled. Two products use this order:
//   few tokens:  lanes run along the columns of one row, which is read as it lies and fetched some KB ahead; up to four
//                tokens at once;
//   more tokens: avx2_panels.cpp.
#if defined(__x86_64__)
#include <cpuid.h>

#include "avx2.h"

namespace qwonnx {
namespace {

// The processor has AVX2 and FMA, and the system saves their registers.
bool supported() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  constexpr unsigned FMA = 1u << 12, OSXSAVE = 1u << 27;
  if ((c & (FMA | OSXSAVE)) != (FMA | OSXSAVE)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5));
}

// Bytes: the processor itself looks ahead only to the end of a page.
constexpr size_t AHEAD = 8192;

// ---- few tokens ----

INLINE __m256 load_lanes(const float* at, size_t count) {
  if (count == 8) return _mm256_loadu_ps(at);
  if (count == 4) return _mm256_zextps128_ps256(_mm_loadu_ps(at));
  return _mm256_maskload_ps(at, first_lanes(count));
}

// The forms that are worth their time to compile.
template <int BITS, int BLOCK>
constexpr bool COMMON = BITS == 4 && BLOCK >= 32 && BLOCK <= 128;

// From more tokens on panels are faster. Measured: with short blocks, summing across lanes costs more.
template <int BITS, int BLOCK>
constexpr size_t MOST_FEW = !COMMON<BITS, BLOCK> ? 2 : BLOCK >= 64 ? 4 : 3;

// One row times T tokens. Blocks come in groups of eight, whose factors are computed at once. Where a chunk has several
// blocks, the factors are laid out so that each half of a vector finds its own by a shuffle within halves: `order` lays
// out, `places` plus the chunk's number shuffles.
template <int BITS, int BLOCK, int T>
struct RowByFew {
  static constexpr int CHUNK = 256 / BITS, PLANES = num_planes<BITS>();
  static constexpr int CHUNKS = BLOCK < CHUNK ? 1 : BLOCK / CHUNK;    // of a block
  static constexpr int IN_CHUNK = BLOCK < CHUNK ? CHUNK / BLOCK : 1;  // blocks in a chunk
  static constexpr int CHAINS = COMMON<BITS, BLOCK> && T <= 2 ? 2 : 1;  // of sums: a multiply-add takes 4 cycles

  const Blocks& weights;
  const size_t row;
  const Activations* const x;
  __m256 sums[CHAINS][T], zeros[T];

  __attribute__((always_inline)) __m256i order() const {
    if (IN_CHUNK == 2) return _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    if (IN_CHUNK == 4) return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  }

  // The scales' factors of a group, and its share of the zero points.
  __attribute__((always_inline)) void factors_of(size_t block, size_t count, __m256 scales, __m256* factors) {
    const __m256 zero = _mm256_mul_ps(scales, negative_zeros<BITS>(weights, row, block, count));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      zeros[t] = _mm256_fmadd_ps(zero, load_lanes(x[t].sums + block, count), zeros[t]);
      factors[t] = _mm256_mul_ps(scales, load_lanes(x[t].scales + block, count));
      if (IN_CHUNK > 1) factors[t] = _mm256_permutevar8x32_ps(factors[t], order());
    }
  }

  // The blocks of one step: one block, or those of one chunk.
  __attribute__((always_inline)) void step(const uint8_t* codes, size_t chunk, int s, const __m256* factors,
                                           const float (*stored)[8], __m256* chain, ptrdiff_t ahead, size_t bytes) {
    __m256i dots[T];
#pragma GCC unroll 2
    for (int c = 0; c < CHUNKS; c++) {
      if (CHUNKS > 1 ? c % 2 == 0 : s % 2 == 0) prefetch(codes + 32 * c, ahead);
      const __m256i packed = bytes == 32 ? load(codes + 32 * c) : load_part(codes + 32 * c, bytes);
#pragma GCC unroll 4
      for (int p = 0; p < PLANES; p++) {
        const __m256i values = plane<BITS>(packed, p);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const uint8_t* at = static_cast<const uint8_t*>(x[t].codes) + ((chunk + c) * PLANES + p) * 32;
          const __m256i products = multiply_plane<BITS>(values, load(at));
          dots[t] = c == 0 && p == 0 ? products : add_products<BITS>(dots[t], products);
          if (T > 2) __asm__("" : "+x"(dots[t]));  // compilers reorder sums of whole numbers and run out of registers
        }
      }
    }
    const __m256i places = IN_CHUNK == 2   ? _mm256_setzero_si256()
                           : IN_CHUNK == 4 ? _mm256_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1)
                                           : _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const __m256 factor = IN_CHUNK == 1 ? _mm256_broadcast_ss(stored[t] + s)
                                          : _mm256_permutevar_ps(factors[t], _mm256_add_epi32(places, _mm256_set1_epi32(s * IN_CHUNK / 2)));
      chain[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(widen<BITS>(dots[t])), factor, chain[t]);
    }
  }

  __attribute__((always_inline)) void run(float* y, size_t stride, ptrdiff_t ahead, ptrdiff_t ahead_scales) {
    const size_t row_bytes = weights.row_bytes(), num_blocks = weights.num_blocks();
    const uint8_t* codes = weights.codes + row * row_bytes;
    const float* scales = weights.scales + row * num_blocks;
    for (int t = 0; t < T; t++) {
      zeros[t] = _mm256_setzero_ps();
      for (int i = 0; i < CHAINS; i++) sums[i][t] = _mm256_setzero_ps();
    }
    alignas(32) float stored[T][8];
    __m256 factors[T];
    const auto store = [&]() __attribute__((always_inline)) {
      for (int t = 0; t < T; t++) _mm256_store_ps(stored[t], factors[t]);
    };
    size_t block = 0, chunk = 0;
    constexpr int STEPS = 8 / IN_CHUNK;
    for (; block + 8 <= num_blocks; block += 8) {
      prefetch(scales + block, ahead_scales);
      factors_of(block, 8, _mm256_loadu_ps(scales + block), factors);
      if (IN_CHUNK == 1) store();
      if constexpr (COMMON<BITS, BLOCK>) {
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; s++, chunk += CHUNKS)
          step(codes + 32 * chunk, chunk, s, factors, stored, sums[s % CHAINS], ahead, 32);
      } else {
        for (int s = 0; s < STEPS; s++, chunk += CHUNKS)
          step(codes + 32 * chunk, chunk, s, factors, stored, sums[0], ahead, 32);
      }
    }
    if constexpr (COMMON<BITS, BLOCK> && BLOCK >= 64) {
      if (block + 4 == num_blocks) {  // experts' down rows: 512 columns in blocks of 128
        prefetch(scales + block, ahead_scales);
        factors_of(block, 4, _mm256_zextps128_ps256(_mm_loadu_ps(scales + block)), factors);
        store();
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++, chunk += CHUNKS)
          step(codes + 32 * chunk, chunk, s, factors, stored, sums[s % CHAINS], ahead, 32);
        block = num_blocks;
      }
    }
    if (block < num_blocks) {
      const size_t left = num_blocks - block;
      factors_of(block, left, load_lanes(scales + block, left), factors);
      store();
      for (int s = 0; s * IN_CHUNK < static_cast<int>(left); s++, chunk += CHUNKS) {
        const size_t bytes = 32 * (chunk + 1) <= row_bytes ? 32 : row_bytes % 32;
        step(codes + 32 * chunk, chunk, s, factors, stored, sums[0], ahead, bytes);
      }
    }
    for (int t = 0; t < T; t++) {
      __m256 total = _mm256_add_ps(zeros[t], sums[0][t]);
      for (int i = 1; i < CHAINS; i++) total = _mm256_add_ps(total, sums[i][t]);
      y[t * stride] = sum_of(total);
    }
  }
};

// Row by row: two rows at once are two streams of memory, and slower.
template <int BITS, int BLOCK, int T>
void rows_by_few(const Blocks& weights, size_t first, size_t last, const Activations* x, float* y, size_t stride,
                 ptrdiff_t ahead) {
  const ptrdiff_t bytes = ahead ? ahead * static_cast<ptrdiff_t>(weights.row_bytes()) : static_cast<ptrdiff_t>(AHEAD);
  const size_t scales = 4 * weights.num_blocks();  // bytes of a row
  const ptrdiff_t scale_bytes = ahead ? ahead * static_cast<ptrdiff_t>(scales)
                                      : static_cast<ptrdiff_t>(AHEAD * scales / weights.row_bytes());
  for (size_t row = first; row < last; row++, y++)
    RowByFew<BITS, BLOCK, T>{weights, row, x, {}, {}}.run(y, stride, bytes, scale_bytes);
}

template <int BITS, int BLOCK>
void by_few(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
            size_t stride, ptrdiff_t ahead) {
  if constexpr (MOST_FEW<BITS, BLOCK> >= 4)
    if (num_tokens == 4) return rows_by_few<BITS, BLOCK, 4>(weights, first, last, x, y, stride, ahead);
  if constexpr (MOST_FEW<BITS, BLOCK> >= 3)
    if (num_tokens == 3) return rows_by_few<BITS, BLOCK, 3>(weights, first, last, x, y, stride, ahead);
  if (num_tokens == 2) return rows_by_few<BITS, BLOCK, 2>(weights, first, last, x, y, stride, ahead);
  rows_by_few<BITS, BLOCK, 1>(weights, first, last, x, y, stride, ahead);
}

template <int BITS, int BLOCK>
void multiply_by_block(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                       size_t stride, ptrdiff_t ahead) {
  if (num_tokens == 0) return;
  if (num_tokens > MOST_FEW<BITS, BLOCK>)
    avx2::multiply_panels(weights, first, last, x, num_tokens, y, stride, ahead);
  else
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

void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t ahead) {
  with_bits(weights, [&](auto bits) { multiply<bits.value>(weights, first, last, x, num_tokens, y, stride, ahead); });
}

}  // namespace

const InstructionSet avx2_set = {"avx2",         supported,      avx2::quantize,  multiply_int8,
                                 avx2::multiply_float, avx2::swiglu, avx2::add_scaled, avx2_attention};

}  // namespace qwonnx
#endif
