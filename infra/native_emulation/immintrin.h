// The AVX-512 and AMX instructions that the native kernels use, as plain C++, for processors that lack them. Found before
// the compiler's own header, which still has the narrower vectors.
//
// Names in the namespace of the kernels hide the compiler's. Each function is the manual's description, lane by lane. What
// the processor would refuse ends the program: a memory operand that is not aligned, tiles whose sizes do not fit.
#pragma once

#include_next <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// Macros in some compilers.
#undef _mm512_extractf64x4_pd
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi32
#undef _mm512_slli_epi64
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _tile_dpbsud
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero

namespace qwonnx {

#define EMULATED static __attribute__((noinline, unused))
#define EACH(i, count) for (int i = 0; i < count; i++)

namespace emulated {

typedef float F32 __attribute__((vector_size(64), may_alias));
typedef int32_t I32 __attribute__((vector_size(64), may_alias));
typedef uint32_t U32 __attribute__((vector_size(64), may_alias));
typedef uint64_t U64 __attribute__((vector_size(64), may_alias));
typedef uint16_t U16 __attribute__((vector_size(64), may_alias));

template <typename To, typename From>
EMULATED To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <typename Vector>
EMULATED Vector loaded(const void* at) {
  Vector value;
  memcpy(&value, at, sizeof value);
  return value;
}

EMULATED const void* aligned(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 64) __builtin_trap();
  return at;
}

}  // namespace emulated

// ---- memory ----

EMULATED __m512 _mm512_loadu_ps(const void* at) { return emulated::loaded<__m512>(at); }
EMULATED __m512i _mm512_loadu_si512(const void* at) { return emulated::loaded<__m512i>(at); }
EMULATED __m512 _mm512_load_ps(const void* at) { return emulated::loaded<__m512>(emulated::aligned(at)); }
EMULATED __m512i _mm512_load_si512(const void* at) { return emulated::loaded<__m512i>(emulated::aligned(at)); }
EMULATED void _mm512_store_ps(void* at, __m512 value) {
  emulated::aligned(at);
  memcpy(at, &value, sizeof value);
}
EMULATED void _mm512_store_si512(void* at, __m512i value) {
  emulated::aligned(at);
  memcpy(at, &value, sizeof value);
}
EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* at) {
  emulated::F32 value = {};
  EACH(i, 16)
    if (mask >> i & 1) value[i] = emulated::loaded<float>(static_cast<const char*>(at) + 4 * i);
  return emulated::as<__m512>(value);
}
EMULATED void _mm512_mask_storeu_ps(void* at, __mmask16 mask, __m512 value) {
  EACH(i, 16)
    if (mask >> i & 1) memcpy(static_cast<char*>(at) + 4 * i, reinterpret_cast<const char*>(&value) + 4 * i, 4);
}
EMULATED __m512i _mm512_maskz_loadu_epi8(uint64_t mask, const void* at) {
  uint8_t bytes[64] = {};
  EACH(i, 64)
    if (mask >> i & 1) bytes[i] = static_cast<const uint8_t*>(at)[i];
  return emulated::loaded<__m512i>(bytes);
}
EMULATED __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* at) {
  uint8_t bytes[16] = {};
  EACH(i, 16)
    if (mask >> i & 1) bytes[i] = static_cast<const uint8_t*>(at)[i];
  return emulated::loaded<__m128i>(bytes);
}

// ---- constants and casts ----

EMULATED __m512 _mm512_setzero_ps() { return __m512{}; }
EMULATED __m512i _mm512_setzero_si512() { return __m512i{}; }
EMULATED __m512 _mm512_set1_ps(float x) { return emulated::as<__m512>(x - emulated::F32{}); }
EMULATED __m512i _mm512_set1_epi32(int x) { return emulated::as<__m512i>(x - emulated::I32{}); }
EMULATED __m512i _mm512_set1_epi8(char x) {
  uint8_t bytes[64];
  memset(bytes, x, sizeof bytes);
  return emulated::loaded<__m512i>(bytes);
}
EMULATED __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k, int l, int m,
                                   int n, int o, int p) {
  return emulated::as<__m512i>(emulated::I32{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p});
}
EMULATED __m512i _mm512_castps_si512(__m512 x) { return emulated::as<__m512i>(x); }
EMULATED __m512d _mm512_castps_pd(__m512 x) { return emulated::as<__m512d>(x); }
EMULATED __m512 _mm512_castsi512_ps(__m512i x) { return emulated::as<__m512>(x); }
EMULATED __m256 _mm512_castps512_ps256(__m512 x) { return emulated::loaded<__m256>(&x); }
EMULATED __m256d _mm512_extractf64x4_pd(__m512d x, int half) {
  return emulated::loaded<__m256d>(reinterpret_cast<const char*>(&x) + 32 * half);
}

// ---- floats ----

EMULATED __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
EMULATED __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
EMULATED __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
EMULATED __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  emulated::F32 out;
  EACH(i, 16) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return emulated::as<__m512>(out);
}
EMULATED __m512 _mm512_abs_ps(__m512 a) { return emulated::as<__m512>(emulated::as<emulated::U32>(a) & 0x7fffffffu); }
// If either is not a number, or both are zero: b.
EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) {
  emulated::F32 out;
  EACH(i, 16) out[i] = a[i] > b[i] ? a[i] : b[i];
  return emulated::as<__m512>(out);
}
EMULATED __m512 _mm512_min_ps(__m512 a, __m512 b) {
  emulated::F32 out;
  EACH(i, 16) out[i] = a[i] < b[i] ? a[i] : b[i];
  return emulated::as<__m512>(out);
}
// Halves are added to halves, as the compilers do.
EMULATED float _mm512_reduce_add_ps(__m512 a) {
  float lanes[16];
  memcpy(lanes, &a, sizeof lanes);
  for (int width = 8; width; width /= 2)
    EACH(i, width) lanes[i] += lanes[i + width];
  return lanes[0];
}
EMULATED float _mm512_reduce_max_ps(__m512 a) {
  float most = a[0];
  EACH(i, 16) most = a[i] > most ? a[i] : most;
  return most;
}

// ---- whole numbers ----

EMULATED __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return emulated::as<__m512i>(emulated::as<emulated::U32>(a) + emulated::as<emulated::U32>(b));
}
EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
EMULATED __m512i _mm512_slli_epi32(__m512i a, unsigned bits) {
  return emulated::as<__m512i>(bits > 31 ? emulated::U32{} : emulated::as<emulated::U32>(a) << bits);
}
EMULATED __m512i _mm512_slli_epi64(__m512i a, unsigned bits) {
  return emulated::as<__m512i>(bits > 63 ? emulated::U64{} : emulated::as<emulated::U64>(a) << bits);
}
EMULATED __m512i _mm512_srli_epi16(__m512i a, unsigned bits) {
  return emulated::as<__m512i>(bits > 15 ? emulated::U16{} : emulated::as<emulated::U16>(a) >> static_cast<uint16_t>(bits));
}
EMULATED __m512i _mm512_srli_epi32(__m512i a, unsigned bits) {
  return emulated::as<__m512i>(bits > 31 ? emulated::U32{} : emulated::as<emulated::U32>(a) >> bits);
}
EMULATED __m512i _mm512_srlv_epi32(__m512i a, __m512i bits) {
  emulated::U32 out = emulated::as<emulated::U32>(a);
  const emulated::U32 by = emulated::as<emulated::U32>(bits);
  EACH(i, 16) out[i] = by[i] > 31 ? 0 : out[i] >> by[i];
  return emulated::as<__m512i>(out);
}
// Four products of an unsigned and a signed byte, added to each sum, which wraps around.
EMULATED __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
  uint8_t x[64];
  int8_t y[64];
  uint32_t out[16];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  memcpy(out, &sums, 64);
  EACH(i, 16) {
    int products = 0;
    EACH(j, 4) products += x[4 * i + j] * y[4 * i + j];
    out[i] += static_cast<uint32_t>(products);
  }
  return emulated::loaded<__m512i>(out);
}
// Two products of signed words, added to each sum, which wraps around.
EMULATED __m512i _mm512_dpwssd_epi32(__m512i sums, __m512i a, __m512i b) {
  int16_t x[32], y[32];
  uint32_t out[16];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  memcpy(out, &sums, 64);
  EACH(i, 32) out[i / 2] += static_cast<uint32_t>(x[i] * y[i]);
  return emulated::loaded<__m512i>(out);
}

// ---- conversions ----

EMULATED __m512 _mm512_cvtepi32_ps(__m512i a) {
  emulated::F32 out;
  EACH(i, 16) out[i] = static_cast<float>(emulated::as<emulated::I32>(a)[i]);
  return emulated::as<__m512>(out);
}
// To nearest, ties to even; what does not fit, and what is not a number, is the least number.
EMULATED __m512i _mm512_cvtps_epi32(__m512 a) {
  emulated::I32 out;
  EACH(i, 16) out[i] = _mm_cvtss_si32(_mm_set_ss(a[i]));
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_cvtepi8_epi32(__m128i a) {
  emulated::I32 out;
  EACH(i, 16) out[i] = reinterpret_cast<const int8_t*>(&a)[i];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_cvtepu8_epi32(__m128i a) {
  emulated::I32 out;
  EACH(i, 16) out[i] = reinterpret_cast<const uint8_t*>(&a)[i];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_cvtepi8_epi16(__m256i a) {
  emulated::U16 out;
  EACH(i, 32) out[i] = static_cast<uint16_t>(reinterpret_cast<const int8_t*>(&a)[i]);
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_cvtepu8_epi16(__m256i a) {
  emulated::U16 out;
  EACH(i, 32) out[i] = reinterpret_cast<const uint8_t*>(&a)[i];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_cvtepu8_epi64(__m128i a) {
  emulated::U64 out;
  EACH(i, 8) out[i] = reinterpret_cast<const uint8_t*>(&a)[i];
  return emulated::as<__m512i>(out);
}
EMULATED __m128i _mm512_cvtsepi32_epi8(__m512i a) {
  int8_t out[16];
  EACH(i, 16) {
    const int32_t x = emulated::as<emulated::I32>(a)[i];
    out[i] = static_cast<int8_t>(x > 127 ? 127 : x < -128 ? -128 : x);
  }
  return emulated::loaded<__m128i>(out);
}

// ---- order ----

EMULATED __m512 _mm512_permutexvar_ps(__m512i places, __m512 a) {
  emulated::F32 out;
  EACH(i, 16) out[i] = a[emulated::as<emulated::I32>(places)[i] & 15];
  return emulated::as<__m512>(out);
}
EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i places, __m512 b) {
  emulated::F32 out;
  EACH(i, 16) {
    const int place = emulated::as<emulated::I32>(places)[i];
    out[i] = place & 16 ? b[place & 15] : a[place & 15];
  }
  return emulated::as<__m512>(out);
}
// Within each 128 bits.
EMULATED __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  const emulated::U32 x = emulated::as<emulated::U32>(a), y = emulated::as<emulated::U32>(b);
  emulated::U32 out;
  EACH(i, 16) out[i] = i % 2 ? y[i / 4 * 4 + i % 4 / 2] : x[i / 4 * 4 + i % 4 / 2];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  const emulated::U32 x = emulated::as<emulated::U32>(a), y = emulated::as<emulated::U32>(b);
  emulated::U32 out;
  EACH(i, 16) out[i] = i % 2 ? y[i / 4 * 4 + 2 + i % 4 / 2] : x[i / 4 * 4 + 2 + i % 4 / 2];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) {
  const emulated::U16 x = emulated::as<emulated::U16>(a), y = emulated::as<emulated::U16>(b);
  emulated::U16 out;
  EACH(i, 32) out[i] = i % 2 ? y[i / 8 * 8 + i % 8 / 2] : x[i / 8 * 8 + i % 8 / 2];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) {
  const emulated::U16 x = emulated::as<emulated::U16>(a), y = emulated::as<emulated::U16>(b);
  emulated::U16 out;
  EACH(i, 32) out[i] = i % 2 ? y[i / 8 * 8 + 4 + i % 8 / 2] : x[i / 8 * 8 + 4 + i % 8 / 2];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  emulated::U64 out;
  EACH(i, 8) out[i] = emulated::as<emulated::U64>(i % 2 ? b : a)[i / 2 * 2];
  return emulated::as<__m512i>(out);
}
EMULATED __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  emulated::U64 out;
  EACH(i, 8) out[i] = emulated::as<emulated::U64>(i % 2 ? b : a)[i / 2 * 2 + 1];
  return emulated::as<__m512i>(out);
}
// 128 bits each: two of a, then two of b.
EMULATED __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int places) {
  char out[64];
  EACH(i, 4) memcpy(out + 16 * i, reinterpret_cast<const char*>(i < 2 ? &a : &b) + 16 * (places >> (2 * i) & 3), 16);
  return emulated::loaded<__m512i>(out);
}

// ---- tiles ----

namespace emulated {

struct Tiles {
  bool configured;
  size_t rows[8], row_bytes[8];
  uint8_t data[8][16][64];
};
static thread_local Tiles tiles __attribute__((unused));

EMULATED void require(bool fits) {
  if (!fits) __builtin_trap();
}
EMULATED void require_tile(int tile) { require(tiles.configured && tiles.rows[tile]); }

template <typename A, typename B>
EMULATED void add_tile_products(int sums, int a, int b) {
  require_tile(sums);
  require_tile(a);
  require_tile(b);
  require(tiles.rows[sums] == tiles.rows[a] && tiles.row_bytes[sums] == tiles.row_bytes[b]);
  require(tiles.row_bytes[a] == 4 * tiles.rows[b] && sums != a && sums != b && a != b);
  for (size_t m = 0; m < tiles.rows[sums]; m++) {
    uint32_t row[16];
    memcpy(row, tiles.data[sums][m], 64);
    for (size_t k = 0; k < tiles.rows[b]; k++)
      for (size_t n = 0; n < tiles.row_bytes[b] / 4; n++)
        EACH(j, 4)
          row[n] += static_cast<uint32_t>(static_cast<A>(tiles.data[a][m][4 * k + static_cast<size_t>(j)]) *
                                          static_cast<B>(tiles.data[b][k][4 * n + static_cast<size_t>(j)]));
    memcpy(tiles.data[sums][m], row, 64);
  }
}

}  // namespace emulated

EMULATED void _tile_loadconfig(const void* at) {
  const uint8_t* bytes = static_cast<const uint8_t*>(at);
  emulated::require(bytes[0] == 1 && bytes[1] == 0);
  for (int i = 2; i < 16; i++) emulated::require(bytes[i] == 0);
  memset(&emulated::tiles, 0, sizeof emulated::tiles);
  EACH(i, 16) {
    const size_t rows = bytes[48 + i], row_bytes = emulated::loaded<uint16_t>(bytes + 16 + 2 * i);
    emulated::require(i < 8 ? rows <= 16 && row_bytes <= 64 && !rows == !row_bytes : !rows && !row_bytes);
    if (i < 8) emulated::tiles.rows[i] = rows, emulated::tiles.row_bytes[i] = row_bytes;
  }
  emulated::tiles.configured = true;
}
EMULATED void _tile_release() { memset(&emulated::tiles, 0, sizeof emulated::tiles); }
EMULATED void _tile_zero(int tile) {
  emulated::require_tile(tile);
  memset(emulated::tiles.data[tile], 0, sizeof emulated::tiles.data[tile]);
}
EMULATED void _tile_loadd(int tile, const void* at, size_t stride) {
  _tile_zero(tile);
  for (size_t row = 0; row < emulated::tiles.rows[tile]; row++)
    memcpy(emulated::tiles.data[tile][row], static_cast<const char*>(at) + row * stride, emulated::tiles.row_bytes[tile]);
}
EMULATED void _tile_stored(int tile, void* at, size_t stride) {
  emulated::require_tile(tile);
  for (size_t row = 0; row < emulated::tiles.rows[tile]; row++)
    memcpy(static_cast<char*>(at) + row * stride, emulated::tiles.data[tile][row], emulated::tiles.row_bytes[tile]);
}
EMULATED void _tile_dpbsud(int sums, int a, int b) { emulated::add_tile_products<int8_t, uint8_t>(sums, a, b); }

#undef EACH
#undef EMULATED

}  // namespace qwonnx
