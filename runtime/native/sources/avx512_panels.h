// For more than a few tokens: 32 rows of weights (two panels of 16) and 512 columns at a time are unpacked into the L1
// cache, with rows as lanes, for avx512_panels.cpp and amx.cpp.
//
// A block's codes are dwords of four columns, in the order (plane, dword of codes): all of its first plane, then all of
// the second. A dword of 16 rows is a vector, so 16 dwords are the second operand of a tile product as they lie.
#pragma once

#include "avx512.h"

namespace qwonnx {
namespace {

constexpr size_t PANEL = 16, ROWS = 2 * PANEL;
constexpr size_t SLAB = 512;              // columns: a multiple of every block and every chunk
constexpr size_t MAX_BLOCKS = SLAB / 16;  // of a slab
constexpr size_t PANEL_BYTES = SLAB * PANEL + 64;  // no power of two, so that panels do not share a set of the cache

// Blocks of 32 rows, and their scales.
struct SlabBlocks {
  alignas(64) float scales[MAX_BLOCKS][ROWS];
  alignas(64) float zeros[MAX_BLOCKS][ROWS];  // minus zero points; not set if the weights have none
  size_t first_block, num_blocks;
};

struct Slab : SlabBlocks {
  alignas(64) uint8_t codes[2][PANEL_BYTES];  // [panel][block, dword, row, 4 columns]
};

// The rows of a panel: those past the end repeat the last one, and their results are dropped.
struct PanelRows {
  size_t first, count;

  // Panel `half` of num_rows rows from `begin` on.
  PanelRows(size_t begin, size_t num_rows, size_t half) {
    const size_t skipped = half * PANEL;
    first = begin + (skipped < num_rows ? skipped : num_rows - 1);
    count = skipped >= num_rows ? 1 : num_rows - skipped < PANEL ? num_rows - skipped : PANEL;
  }
  size_t operator[](size_t r) const { return first + (r < count ? r : count - 1); }
};

// Where a block's activations lie, and how they are cut: `runs` runs of `dwords` dwords, 64 bytes apart.
struct Runs {
  size_t count, dwords;     // of a block
  size_t in_chunk;          // blocks of a chunk, or 1
  size_t bytes;             // of a chunk, or of a block that has several

  explicit Runs(const Blocks& weights) {
    const size_t chunk = 512 / weights.bits, planes = 8 / weights.bits;
    in_chunk = weights.block < chunk ? chunk / weights.block : 1;
    dwords = 16 / in_chunk;
    count = weights.block / (4 * dwords);
    bytes = in_chunk > 1 ? 64 * planes : weights.block;
  }
  size_t offset(size_t block) const { return block / in_chunk * bytes + block % in_chunk * dwords * 4; }
};

template <int BITS>
void unpack_codes(const Blocks& weights, const PanelRows& rows, const SlabBlocks& slab, uint8_t* out) {
  constexpr size_t CHUNK = 512 / BITS;
  const size_t row_bytes = weights.row_bytes(), from = slab.first_block * weights.block * BITS / 8;
  const size_t bytes = slab.num_blocks * weights.block * BITS / 8;
  const size_t dwords = weights.block < CHUNK ? weights.block * BITS / 32 : 16;  // of codes, of a block in a chunk
  size_t places[16];  // of a chunk's dwords, in their first plane
  for (size_t d = 0; d < 16; d++) places[d] = (d / dwords * PLANES<BITS> * dwords + d % dwords) * 64;
  const uint8_t* codes[PANEL];
  for (size_t r = 0; r < PANEL; r++) codes[r] = weights.codes + rows[r] * row_bytes + from;
  for (size_t at = 0; at < bytes; at += 64, out += 16 * PLANES<BITS> * 64) {
    __m512i chunk[16];
#pragma GCC unroll 16
    for (size_t r = 0; r < PANEL; r++) chunk[r] = load_part(codes[r] + at, bytes - at);
    transpose(chunk);
#pragma GCC unroll 16
    for (size_t d = 0; d < 16; d++)
#pragma GCC unroll 4
      for (int p = 0; p < PLANES<BITS>; p++)
        _mm512_store_si512(out + places[d] + static_cast<size_t>(p) * dwords * 64, plane<BITS>(chunk[d], p));
  }
}

// Of panel `half`. Not inlined, and one kind after the other, so that the 16 vectors stay in registers.
template <int BITS>
__attribute__((noinline)) void load_scales(const Blocks& weights, const PanelRows& rows, size_t half, SlabBlocks& slab) {
  const size_t num_blocks = weights.num_blocks();
  for (size_t b = 0; b < slab.num_blocks; b += 16) {
    const size_t left = slab.num_blocks - b < 16 ? slab.num_blocks - b : 16, block = slab.first_block + b;
    __m512i vectors[16];
#pragma GCC unroll 16
    for (size_t r = 0; r < PANEL; r++)
      vectors[r] = _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(left), weights.scales + rows[r] * num_blocks + block));
    transpose(vectors);
    for (size_t i = 0; i < left; i++) _mm512_store_si512(slab.scales[b + i] + half * PANEL, vectors[i]);
    if (!weights.zero_points) continue;
    for (size_t r = 0; r < PANEL; r++) vectors[r] = _mm512_castps_si512(negative_zeros<BITS>(weights, rows[r], block, left));
    transpose(vectors);
    for (size_t i = 0; i < left; i++) _mm512_store_si512(slab.zeros[b + i] + half * PANEL, vectors[i]);
  }
}

template <int BITS>
void unpack_slab(const Blocks& weights, size_t first, size_t num_rows, Slab& slab) {
  for (size_t half = 0; half < 2; half++) {
    const PanelRows rows(first, num_rows, half);
    unpack_codes<BITS>(weights, rows, slab, slab.codes[half]);
    load_scales<BITS>(weights, rows, half, slab);
  }
}

void unpack(const Blocks& weights, size_t first, size_t num_rows, Slab& slab) {
  with_bits(weights, [&](auto bits) { unpack_slab<bits.value>(weights, first, num_rows, slab); });
}

// What is fetched while a slab is multiplied: the same columns of 32 other rows, a row at a time, so that memory is busy
// all the time and never has more to do than it can keep track of.
struct Fetch {
  const uint8_t* codes;
  const float* scales;
  ptrdiff_t code_stride, scale_stride;  // bytes
  size_t lines;                         // of a row's codes
  size_t steps, done, rows;             // calls of step() that a slab takes and that were; rows that were fetched

  Fetch(const Blocks& weights, size_t first_block, size_t num_blocks, size_t next, size_t num_steps)
      : codes(further(weights.codes, static_cast<ptrdiff_t>(next * weights.row_bytes() + first_block * weights.block * weights.bits / 8))),
        scales(further(weights.scales, static_cast<ptrdiff_t>(4 * (next * weights.num_blocks() + first_block)))),
        code_stride(static_cast<ptrdiff_t>(weights.row_bytes())),
        scale_stride(static_cast<ptrdiff_t>(4 * weights.num_blocks())),
        lines((num_blocks * weights.block * weights.bits / 8 + 63) / 64),
        steps(num_steps),
        done(0),
        rows(0) {}

  __attribute__((always_inline)) void step() {
    for (done += ROWS; rows * steps < done && rows < ROWS; rows++) {
      for (size_t line = 0; line < lines; line++) prefetch(further(codes, static_cast<ptrdiff_t>(64 * line)));
      prefetch(scales);
      codes = further(codes, code_stride);
      scales = further(scales, scale_stride);
    }
  }
};

}  // namespace
}  // namespace qwonnx
