// Vector helpers of the AVX-512 sources, and what they have in common.
//
// A chunk is 64 code bytes: 512 / bits columns. Shifts and masks take its codes apart into planes of bytes; plane p has
// the columns whose number is p modulo the number of planes. Activations are stored by chunk and plane, 64 bytes each,
// so that no code is shuffled to meet its activation.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "blocks.h"

#define INLINE static inline __attribute__((always_inline))

namespace qwonnx {
namespace avx512 {

// avx512_activations.cpp
void quantize(const float* x, const Blocks& weights, void* codes, float* scales, float* sums);
void swiglu(const float* gate_up, size_t count, float* out);
void add_scaled(float* y, const float* x, float weight, size_t count);
// avx512_float.cpp
void multiply_float(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                    size_t stride, ptrdiff_t ahead);
// avx512.cpp: for any number of tokens
void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t ahead);
// avx512_packed.cpp: for codes of 4 bits and this many tokens
constexpr size_t LEAST_PACKED = 3, MOST_PACKED = 8;
void multiply_packed(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride, ptrdiff_t ahead);
// avx512_panels.cpp: for more than a few
void multiply_panels(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                     size_t stride, ptrdiff_t ahead);

}  // namespace avx512

// The address `bytes` further. It may be outside of the tensor: it is only prefetched.
template <typename T>
INLINE const T* further(const T* at, ptrdiff_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(bytes));
}

// A hint: the address need not exist.
INLINE void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

INLINE __mmask16 first_lanes(size_t count) { return static_cast<__mmask16>(count < 16 ? (1u << count) - 1 : 0xffff); }

// The first `count` of 64 bytes, then zeros: nothing past the end of a tensor is read.
INLINE __m512i load_part(const uint8_t* at, size_t count) {
  if (count >= 64) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi8((1ull << count) - 1, at);
}

// 16 rows of 16 dwords -> row i has dword i of every row.
INLINE void transpose(__m512i* rows) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  // b[4 * i + j] has the dwords j, j + 4, j + 8 and j + 12 of the rows 4 * i to 4 * i + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512i low = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88), high = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
    rows[j + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    rows[j + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    rows[j + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
}

// sums += four products of each 32 bits. In assembly, because gcc 12 copies the sums before and after the intrinsic.
INLINE void add_products(__m512i& sums, __m512i codes, __m512i x) {
#if defined(QWONNX_EMULATED)  // infra/native_emulation
  sums = _mm512_dpbusd_epi32(sums, codes, x);
#elif defined(__clang__)  // it would store a vector to use "vm"
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(x));
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "vm"(x));
#endif
}

template <int BITS>
constexpr int PLANES = 8 / BITS;

template <int BITS>
INLINE __m512i plane(__m512i codes, int p) {
  if (BITS == 8) return codes;
  const __m512i shifted = p ? _mm512_srli_epi16(codes, static_cast<unsigned>(BITS * p)) : codes;
  return _mm512_and_si512(shifted, _mm512_set1_epi8(static_cast<char>((1 << BITS) - 1)));
}

// Minus the zero points of blocks first to first + count (at most 16) of a row, then anything.
template <int BITS>
INLINE __m512 negative_zeros(const Blocks& weights, size_t row, size_t first, size_t count) {
  if (!weights.zero_points) return _mm512_set1_ps(-weights.middle());
  const size_t bit = first * BITS;
  const uint8_t* at = weights.zero_points + row * weights.zero_point_bytes() + bit / 8;
  __m512i points;
  if (BITS == 2) {  // a group may begin inside a byte
    const size_t bytes = (bit % 8 + count * BITS + 7) / 8;
    uint64_t bits = 0;
    for (size_t i = 0; i < bytes; i++) bits |= static_cast<uint64_t>(at[i]) << (8 * i);
    const __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    points = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(bits >> (bit % 8))), shifts);
    points = _mm512_and_si512(points, _mm512_set1_epi32(3));
  } else {
    const size_t bytes = (count * BITS + 7) / 8;
    const __m128i packed = _mm_maskz_loadu_epi8(first_lanes(bytes), at);
    if (BITS == 8) {
      points = _mm512_cvtepu8_epi32(packed);
    } else {  // each byte in 64 bits, then its high half in their high dword
      const __m512i wide = _mm512_cvtepu8_epi64(packed);
      points = _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi64(wide, 28)), _mm512_set1_epi32(15));
    }
  }
  return _mm512_sub_ps(_mm512_setzero_ps(), _mm512_cvtepi32_ps(points));
}

}  // namespace qwonnx
