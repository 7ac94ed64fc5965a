// AVX2 with FMA. Codes are unsigned, activations signed: vpmaddubsw adds 8 products of 4 bits each into 16 bits without
// overflow (8 * 2 * 15 * 127 < 2 ** 15). Codes of 8 bits are widened to 16 first.
//
// A chunk is 32 code bytes: 256 / bits columns. Its codes are taken apart by shifts and masks into planes; plane p has
// the columns whose number is p modulo the number of planes. Activations are stored by chunk and plane, so that no code
// is ever shuffled. Two products use this order:
//   few tokens:  lanes run along the columns of one row, which is read as it lies and fetched some KB ahead; up to four
//                tokens at once;
//   more tokens: lanes are 16 rows. Their codes are transposed and unpacked into the L1 cache, a slab of eight chunks
//                at a time, and used by four tokens at once. Nothing is summed across lanes.
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

template <int BITS>
INLINE __m256i multiply_plane(__m256i plane, __m256i x) {
  // 16 sums of two products in 16 bits, or 8 in 32 bits.
  return BITS == 8 ? _mm256_madd_epi16(plane, x) : _mm256_maddubs_epi16(plane, x);
}

template <int BITS>
INLINE __m256i add_products(__m256i total, __m256i products) {
  return BITS == 8 ? _mm256_add_epi32(total, products) : _mm256_add_epi16(total, products);
}

template <int BITS>
INLINE __m256i widen(__m256i total) {
  return BITS == 8 ? total : _mm256_madd_epi16(total, _mm256_set1_epi16(1));
}

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

// ---- more tokens ----

constexpr size_t ROWS = 16;        // of a panel: two vectors of lanes
constexpr size_t SLAB = 8;         // chunks
constexpr size_t MAX_BLOCKS = 64;  // of a slab: 2 bits in blocks of 16

struct Slab {
  alignas(64) uint8_t planes[SLAB * 8 * 4 * 64];  // [chunk, dword, plane, row, 4 columns]
  alignas(64) float scales[MAX_BLOCKS * ROWS];    // [block, row]
  alignas(64) float zeros[MAX_BLOCKS * ROWS];     // minus zero point times scale
  size_t first_chunk, chunks, first_block, blocks;
};

template <int BITS>
void unpack_slab(const Blocks& weights, size_t first, size_t num_rows, ptrdiff_t ahead, Slab& slab) {
  const size_t row_bytes = weights.row_bytes(), num_blocks = weights.num_blocks();
  for (size_t half = 0; half < 2; half++) {
    const uint8_t* rows[8];
    for (size_t r = 0; r < 8; r++) {
      const size_t row = half * 8 + r;  // rows past the end repeat the last one; their results are dropped
      rows[r] = weights.codes + (first + (row < num_rows ? row : num_rows - 1)) * row_bytes + 32 * slab.first_chunk;
    }
    for (size_t c = 0; c < slab.chunks; c++) {
      __m256i dwords[8];
      const bool whole = 32 * (slab.first_chunk + c + 1) <= row_bytes;
#pragma GCC unroll 8
      for (size_t r = 0; r < 8; r++) {
        dwords[r] = whole ? load(rows[r] + 32 * c) : load_part(rows[r] + 32 * c, row_bytes % 32);
        if (c % 2 == 0) prefetch(rows[r] + 32 * c, ahead);  // one line
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
      transpose(zeros);
      for (size_t i = 0; i < left; i++) {
        store(slab.scales + (b + i) * ROWS + half * 8, scales[i]);
        store(slab.zeros + (b + i) * ROWS + half * 8, zeros[i]);
      }
    }
}

// y [T, 16] (+)= one slab times T tokens. A step is one dword of codes of each row.
template <int BITS, int T>
void slab_by_tokens(const Slab& slab, int steps_per_block, const Activations* x, float* y, size_t stride) {
  constexpr int PLANES = num_planes<BITS>();
  constexpr int NARROW = BITS == 4 ? 4 : 8;  // steps whose sums fit 16 bits
  const uint8_t* tokens[T];
  for (int t = 0; t < T; t++) tokens[t] = static_cast<const uint8_t*>(x[t].codes) + slab.first_chunk * PLANES * 32;
  __m256 sums[T][2];
  for (int t = 0; t < T; t++)
    for (int h = 0; h < 2; h++) sums[t][h] = slab.first_chunk ? _mm256_loadu_ps(y + t * stride + 8 * h) : _mm256_setzero_ps();
  for (size_t b = 0; b < slab.blocks; b++) {
    __m256i dots[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dots[t][0] = dots[t][1] = _mm256_setzero_si256();
    const int first = static_cast<int>(b) * steps_per_block, last = first + steps_per_block;
    for (int group = first; group < last; group += NARROW) {
      const int end = last - group < NARROW ? last : group + NARROW;
      const size_t at = static_cast<size_t>(group >> 3) * PLANES * 32 + static_cast<size_t>(group & 7) * 4;
      const uint8_t* codes = slab.planes + static_cast<size_t>(group) * PLANES * 64;
      __m256i narrow[T][2];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
        for (int h = 0; h < 2; h++) narrow[t][h] = BITS == 8 ? dots[t][h] : _mm256_setzero_si256();
      for (int step = 0; step < end - group; step++, codes += PLANES * 64) {
        for (int p = 0; p < PLANES; p++) {
          const __m256i low = load(codes + p * 64), high = load(codes + p * 64 + 32);
#pragma GCC unroll 4
          for (int t = 0; t < T; t++) {
            const __m256i value = broadcast(tokens[t] + at + step * 4 + p * 32);
            narrow[t][0] = add_products<BITS>(narrow[t][0], multiply_plane<BITS>(low, value));
            narrow[t][1] = add_products<BITS>(narrow[t][1], multiply_plane<BITS>(high, value));
          }
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
        for (int h = 0; h < 2; h++)
          dots[t][h] = BITS == 8 ? narrow[t][h] : _mm256_add_epi32(dots[t][h], widen<BITS>(narrow[t][h]));
    }
    const size_t block = slab.first_block + b;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const __m256 x_scale = _mm256_set1_ps(x[t].scales[block]), x_sum = _mm256_set1_ps(x[t].sums[block]);
      for (int h = 0; h < 2; h++) {
        const __m256 factor = _mm256_mul_ps(_mm256_load_ps(slab.scales + b * ROWS + 8 * h), x_scale);
        sums[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][h]), factor, sums[t][h]);
        sums[t][h] = _mm256_fmadd_ps(_mm256_load_ps(slab.zeros + b * ROWS + 8 * h), x_sum, sums[t][h]);
      }
    }
  }
  for (int t = 0; t < T; t++)
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(y + t * stride + 8 * h, sums[t][h]);
}

// One panel of 16 rows (num_rows of them real) times any number of tokens into y [num_tokens, 16].
template <int BITS>
void panel_by_tokens(const Blocks& weights, size_t first, size_t num_rows, const Activations* x, size_t num_tokens,
                     float* y, size_t stride, ptrdiff_t ahead) {
  constexpr size_t CHUNK = 256 / BITS;
  const size_t chunks = (weights.columns + CHUNK - 1) / CHUNK, blocks_per_slab = SLAB * CHUNK / weights.block;
  const int steps_per_block = static_cast<int>(weights.block * BITS / 32);
  Slab slab;
  for (size_t c = 0; c < chunks; c += SLAB) {
    slab.first_chunk = c;
    slab.chunks = chunks - c < SLAB ? chunks - c : SLAB;
    slab.first_block = c * CHUNK / weights.block;
    const size_t left = weights.num_blocks() - slab.first_block;
    slab.blocks = left < blocks_per_slab ? left : blocks_per_slab;
    // The next slab of these rows or the first one of the next rows; or where `ahead` says.
    const size_t next = c + SLAB < chunks ? 32 * SLAB : ROWS * weights.row_bytes() - 32 * c;
    unpack_slab<BITS>(weights, first, num_rows,
                      ahead ? ahead * static_cast<ptrdiff_t>(weights.row_bytes()) : static_cast<ptrdiff_t>(next), slab);
    size_t t = 0;
    for (; t + 4 <= num_tokens; t += 4) slab_by_tokens<BITS, 4>(slab, steps_per_block, x + t, y + t * stride, stride);
    if (num_tokens - t == 3) slab_by_tokens<BITS, 3>(slab, steps_per_block, x + t, y + t * stride, stride);
    if (num_tokens - t == 2) slab_by_tokens<BITS, 2>(slab, steps_per_block, x + t, y + t * stride, stride);
    if (num_tokens - t == 1) slab_by_tokens<BITS, 1>(slab, steps_per_block, x + t, y + t * stride, stride);
  }
}

template <int BITS>
void by_tokens(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
               size_t stride, ptrdiff_t ahead) {
  for (size_t row = first; row < last; row += ROWS) {
    if (row + ROWS <= last) {
      panel_by_tokens<BITS>(weights, row, ROWS, x, num_tokens, y + (row - first), stride, ahead);
      continue;
    }
    constexpr size_t TILE = 32;
    alignas(32) float part[TILE * ROWS];
    for (size_t t = 0; t < num_tokens; t += TILE) {
      const size_t count = num_tokens - t < TILE ? num_tokens - t : TILE;
      panel_by_tokens<BITS>(weights, row, last - row, x + t, count, part, ROWS, ahead);
      for (size_t i = 0; i < count; i++)
        memcpy(y + (t + i) * stride + (row - first), part + i * ROWS, (last - row) * sizeof(float));
    }
  }
}

template <int BITS>
void multiply(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
              size_t stride, ptrdiff_t ahead) {
  // Measured: with short blocks, summing across lanes costs more.
  if (num_tokens > (weights.block >= 64 ? 16 : 8)) return by_tokens<BITS>(weights, first, last, x, num_tokens, y, stride, ahead);
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
                                 avx2::multiply_float, avx2::swiglu, avx2::add_scaled};

}  // namespace qwonnx
#endif
