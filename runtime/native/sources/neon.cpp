// 64-bit ARM with the dot product instruction (ARMv8.2). Codes lose 2 ** (bits - 1) while they are unpacked, so that both
// factors are signed bytes; another zero point is corrected by the block's sum. Lanes run along the columns of one row,
// up to four tokens at once. Activations are int8 in the order of planes within 16 code bytes, as in avx2.cpp.
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "arithmetic.h"
#include "blocks.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace qwonnx {
namespace {

constexpr ptrdiff_t AHEAD = 4096;
constexpr size_t CHUNK_BYTES = 16;

bool supported() {
#if defined(__linux__)
  constexpr unsigned long HAS_DOT_PRODUCT = 1ul << 20;
  return getauxval(AT_HWCAP) & HAS_DOT_PRODUCT;
#else
  return true;  // every 64-bit Apple processor that macOS 11 runs on
#endif
}

// Column k lies in chunk k / C at plane k % P, place k % C / P, for chunks of C columns in P planes of 16 bytes.
void quantize(const float* x, const Blocks& weights, void* codes, float* scales, float* sums) {
  int8_t* out = static_cast<int8_t*>(codes);
  const size_t planes = 8 / weights.bits, chunk = CHUNK_BYTES * planes;
  if (weights.columns % chunk) memset(out + weights.columns / chunk * chunk, 0, chunk);
  for (size_t b = 0; b < weights.num_blocks(); b++) {
    const float* values = x + b * weights.block;
    float32x4_t largest = vdupq_n_f32(0), strays = vdupq_n_f32(0);
    for (unsigned i = 0; i < weights.block; i += 4) {
      const float32x4_t value = vld1q_f32(values + i);
      largest = vmaxnmq_f32(largest, vabsq_f32(value));
      strays = vaddq_f32(strays, vsubq_f32(value, value));  // 0, or NaN for an infinity or a NaN
    }
    const float most = vmaxvq_f32(largest), stray = vaddvq_f32(strays);
    const bool usable = most > 1e-35f && stray == 0;  // below, 127 / most would overflow
    const float inverse = usable ? 127 / most : 0;
    int32_t sum = 0;
    alignas(16) int8_t quantised[16];
    for (unsigned i = 0; i < weights.block; i += 16) {
      int32x4_t parts[4];
      for (int j = 0; j < 4; j++) {
        parts[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(values + i + 4 * j), inverse));
        sum += vaddvq_s32(parts[j]);
      }
      const int16x8_t low = vcombine_s16(vqmovn_s32(parts[0]), vqmovn_s32(parts[1]));
      const int16x8_t high = vcombine_s16(vqmovn_s32(parts[2]), vqmovn_s32(parts[3]));
      vst1q_s8(quantised, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
      const size_t first = b * weights.block + i;
      int8_t* at = out + first / chunk * chunk + first % chunk / planes;
      for (size_t k = 0; k < 16; k++) at[k % planes * CHUNK_BYTES + k / planes] = usable ? quantised[k] : 0;
    }
    scales[b] = most / 127 + stray;
    sums[b] = scales[b] * static_cast<float>(usable ? sum : 0);
  }
}

template <int BITS>
inline int8x16_t plane(uint8x16_t codes, int p) {
  if (BITS == 8) return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(0x80)));
  const uint8x16_t shifted = vshlq_u8(codes, vdupq_n_s8(static_cast<int8_t>(-BITS * p)));
  const uint8x16_t value = vandq_u8(shifted, vdupq_n_u8((1 << BITS) - 1));
  return vsubq_s8(vreinterpretq_s8_u8(value), vdupq_n_s8(BITS == 8 ? 0 : 1 << (BITS - 1)));
}

// One row times T tokens. A chunk of 16 code bytes has four lanes of four bytes.
template <int BITS, int T>
void row_by_few(const Blocks& weights, size_t row, const Activations* x, float* y, size_t stride, ptrdiff_t ahead) {
  constexpr size_t PLANES = 8 / BITS, CHUNK = CHUNK_BYTES * PLANES;
  const size_t row_bytes = weights.row_bytes(), num_blocks = weights.num_blocks();
  const uint8_t* codes = weights.codes + row * row_bytes;
  const float* scales = weights.scales + row * num_blocks;
  const int8_t* tokens[T];
  float32x4_t sums[T];
  float corrections[T];
  for (int t = 0; t < T; t++) {
    tokens[t] = static_cast<const int8_t*>(x[t].codes);
    sums[t] = vdupq_n_f32(0);
    corrections[t] = 0;
  }
  if (weights.zero_points)
    for (size_t b = 0; b < num_blocks; b++) {
      const float off = scales[b] * (weights.middle() - zero_point(weights, row, b));
      for (int t = 0; t < T; t++) corrections[t] += off * x[t].sums[b];
    }
  const size_t chunks_per_block = weights.block >= CHUNK ? weights.block / CHUNK : 1;
  const size_t blocks_per_chunk = weights.block >= CHUNK ? 1 : CHUNK / weights.block;
  for (size_t b = 0; b < num_blocks; b += blocks_per_chunk) {
    int32x4_t dots[T];
    for (int t = 0; t < T; t++) dots[t] = vdupq_n_s32(0);
    for (size_t c = 0; c < chunks_per_block; c++) {
      const size_t chunk = b * weights.block / CHUNK + c, at = chunk * CHUNK_BYTES;
      __builtin_prefetch(
          reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(codes + at) + static_cast<uintptr_t>(ahead)));
      uint8x16_t packed;
      if (at + CHUNK_BYTES <= row_bytes) {
        packed = vld1q_u8(codes + at);
      } else {  // nothing past the end of a tensor is read
        uint8_t part[CHUNK_BYTES] = {};
        memcpy(part, codes + at, row_bytes - at);
        packed = vld1q_u8(part);
      }
      for (size_t p = 0; p < PLANES; p++) {
        const int8x16_t values = plane<BITS>(packed, static_cast<int>(p));
        for (int t = 0; t < T; t++)
          dots[t] = vdotq_s32(dots[t], values, vld1q_s8(tokens[t] + chunk * CHUNK + p * CHUNK_BYTES));
      }
    }
    for (int t = 0; t < T; t++) {
      float factors[4];
      for (size_t lane = 0; lane < 4; lane++) {
        const size_t block = b + lane * blocks_per_chunk / 4;
        factors[lane] = block < num_blocks ? scales[block] * x[t].scales[block] : 0;
      }
      sums[t] = vfmaq_f32(sums[t], vcvtq_f32_s32(dots[t]), vld1q_f32(factors));
    }
  }
  for (int t = 0; t < T; t++) y[t * stride] = vaddvq_f32(sums[t]) + corrections[t];
}

template <int BITS>
void multiply(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
              size_t stride, ptrdiff_t ahead) {
  const ptrdiff_t bytes = ahead ? ahead * static_cast<ptrdiff_t>(weights.row_bytes()) : AHEAD;
  for (size_t row = first; row < last; row++, y++) {
    size_t t = 0;
    for (; t + 4 <= num_tokens; t += 4) row_by_few<BITS, 4>(weights, row, x + t, y + t * stride, stride, bytes);
    if (num_tokens - t == 3) row_by_few<BITS, 3>(weights, row, x + t, y + t * stride, stride, bytes);
    if (num_tokens - t == 2) row_by_few<BITS, 2>(weights, row, x + t, y + t * stride, stride, bytes);
    if (num_tokens - t == 1) row_by_few<BITS, 1>(weights, row, x + t, y + t * stride, stride, bytes);
  }
}

void multiply_int8(const Blocks& weights, size_t first, size_t last, const Activations* x, size_t num_tokens, float* y,
                   size_t stride, ptrdiff_t ahead) {
  with_bits(weights, [&](auto bits) { multiply<bits.value>(weights, first, last, x, num_tokens, y, stride, ahead); });
}

}  // namespace

// Float activations and what is left use the plain form, which compilers vectorise for this processor.
const InstructionSet neon_set = {
    "neon", supported, quantize, multiply_int8, scalar::multiply_float, scalar::swiglu, scalar::add_scaled, neon_attention};

}  // namespace qwonnx
#endif
