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

// One row times T tokens: y[t * stride].
template <int BITS, int BLOCK, int T>
void row_by_few(const Blocks& weights, size_t row, const Activations* x, float* y, size_t stride, ptrdiff_t ahead,
                ptrdiff_t ahead_scales) {
  constexpr int CHUNK = 256 / BITS, PLANES = num_planes<BITS>();
  constexpr int CHUNKS = BLOCK < CHUNK ? 1 : BLOCK / CHUNK;    // of a block
  constexpr int IN_CHUNK = BLOCK < CHUNK ? CHUNK / BLOCK : 1;  // blocks in a chunk
  const size_t row_bytes = weights.row_bytes(), num_blocks = weights.num_blocks();
  const uint8_t* codes = weights.codes + row * row_bytes;
  const float* scales = weights.scales + row * num_blocks;
  const uint8_t* tokens[T];
  for (int t = 0; t < T; t++) tokens[t] = static_cast<const uint8_t*>(x[t].codes);
  // Where a chunk has several blocks, the factors of eight are laid out so that each half of a vector finds its own by
  // a shuffle within halves: `order` lays out, `places` plus the chunk's number shuffles.
  const __m256i order = IN_CHUNK == 2   ? _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)
                        : IN_CHUNK == 4 ? _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7)
                                        : _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i places = IN_CHUNK == 2   ? _mm256_setzero_si256()
                         : IN_CHUNK == 4 ? _mm256_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1)
                                         : _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
  __m256 sums[T];
  for (int t = 0; t < T; t++) sums[t] = _mm256_setzero_ps();
  for (size_t b0 = 0; b0 < num_blocks; b0 += 8) {
    const size_t left = num_blocks - b0 < 8 ? num_blocks - b0 : 8;
    const __m256i mask = first_lanes(left);
    const __m256 row_scales = _mm256_maskload_ps(scales + b0, mask);
    prefetch(scales + b0, ahead_scales);
    const __m256 zeros = _mm256_mul_ps(row_scales, negative_zeros<BITS>(weights, row, b0, left));
    alignas(32) float factors[T][8];
    for (int t = 0; t < T; t++) {
      sums[t] = _mm256_fmadd_ps(zeros, _mm256_maskload_ps(x[t].sums + b0, mask), sums[t]);
      const __m256 factor = _mm256_mul_ps(row_scales, _mm256_maskload_ps(x[t].scales + b0, mask));
      _mm256_store_ps(factors[t], IN_CHUNK > 1 ? _mm256_permutevar8x32_ps(factor, order) : factor);
    }
    const size_t steps = (left + IN_CHUNK - 1) / IN_CHUNK;
    for (size_t s = 0; s < steps; s++) {
      const size_t first = b0 / IN_CHUNK * CHUNKS + s * CHUNKS;
      const __m256i place = _mm256_add_epi32(places, _mm256_set1_epi32(static_cast<int>(s) * IN_CHUNK / 2));
      __m256i dots[T];
#pragma GCC unroll 2
      for (int c = 0; c < CHUNKS; c++) {
        const uint8_t* at = codes + 32 * (first + c);
        const bool whole = CHUNKS > 1 || 32 * (first + 1) <= row_bytes;
        if ((first + c) % 2 == 0) prefetch(at, ahead);
        const __m256i packed = whole ? load(at) : load_part(at, row_bytes % 32);
        for (int p = 0; p < PLANES; p++) {
          const __m256i values = plane<BITS>(packed, p);
#pragma GCC unroll 4
          for (int t = 0; t < T; t++) {
            const __m256i products = multiply_plane<BITS>(values, load(tokens[t] + ((first + c) * PLANES + p) * 32));
            dots[t] = c == 0 && p == 0 ? products : add_products<BITS>(dots[t], products);
          }
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        const __m256 factor = IN_CHUNK == 1 ? _mm256_broadcast_ss(factors[t] + s)
                                            : _mm256_permutevar_ps(_mm256_load_ps(factors[t]), place);
        sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(widen<BITS>(dots[t])), factor, sums[t]);
      }
    }
  }
  for (int t = 0; t < T; t++) y[t * stride] = sum_of(sums[t]);
}

// Row by row: two rows at once are two streams of memory, and slower.
template <int BITS, int BLOCK>
void by_few(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
            size_t stride, ptrdiff_t ahead) {
  const ptrdiff_t bytes = ahead ? ahead * static_cast<ptrdiff_t>(weights.row_bytes()) : static_cast<ptrdiff_t>(AHEAD);
  const ptrdiff_t scale_bytes = ahead ? ahead * static_cast<ptrdiff_t>(4 * weights.num_blocks()) : static_cast<ptrdiff_t>(AHEAD * 4 * weights.num_blocks() / weights.row_bytes());
  for (size_t row = first; row < last; row++, y++) {
    size_t t = 0;
    for (; t + 4 <= num_tokens; t += 4)
      row_by_few<BITS, BLOCK, 4>(weights, row, x + t, y + t * stride, stride, bytes, scale_bytes);
    if (num_tokens - t == 3) row_by_few<BITS, BLOCK, 3>(weights, row, x + t, y + t * stride, stride, bytes, scale_bytes);
    if (num_tokens - t == 2) row_by_few<BITS, BLOCK, 2>(weights, row, x + t, y + t * stride, stride, bytes, scale_bytes);
    if (num_tokens - t == 1) row_by_few<BITS, BLOCK, 1>(weights, row, x + t, y + t * stride, stride, bytes, scale_bytes);
  }
}

template <int BITS>
void multiply(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
              size_t stride, ptrdiff_t ahead) {
  // Measured: with short blocks, summing across lanes costs more.
  if (num_tokens > (weights.block >= 64 ? 4 : 3)) return avx2::multiply_panels(weights, first, last, x, num_tokens, y, stride, ahead);
  switch (weights.block) {
    case 16: return by_few<BITS, 16>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 32: return by_few<BITS, 32>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 64: return by_few<BITS, 64>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 128: return by_few<BITS, 128>(weights, first, last, x, num_tokens, y, stride, ahead);
    default: return by_few<BITS, 256>(weights, first, last, x, num_tokens, y, stride, ahead);
  }
}

void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t ahead) {
  switch (weights.bits) {
    case 2: return multiply<2>(weights, first, last, x, num_tokens, y, stride, ahead);
    case 4: return multiply<4>(weights, first, last, x, num_tokens, y, stride, ahead);
    default: return multiply<8>(weights, first, last, x, num_tokens, y, stride, ahead);
  }
}

}  // namespace

const InstructionSet avx2_set = {"avx2",         supported,      avx2::quantize,  multiply_int8,
                                 avx2::multiply_float, avx2::swiglu, avx2::add_scaled, avx2_attention};

}  // namespace qwonnx
#endif
