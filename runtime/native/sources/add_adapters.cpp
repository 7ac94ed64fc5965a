// Tokens of one slot are taken together, whichever rows they are of, so that a step reads each adapter once for up to eight
// rows that decode.
#include "add_adapters.h"

#include <string.h>

#include "layer_kernels.h"
#include "scratch.h"

namespace qwonnx {
namespace {

struct Tile {
  size_t first, count, slot;  // of the tokens in their order by slots
};

struct Work {
  const AddAdapters& step;
  const size_t* order;  // [tokens]
  const Tile* tiles;
};

void run_tile(void* data, size_t index) {
  const Work& work = *static_cast<const Work*>(data);
  const AddAdapters& step = work.step;
  const Tile& tile = work.tiles[index];
  const float *x[MAX_ADAPTED], *base[MAX_ADAPTED];
  float* y[MAX_ADAPTED];
  for (size_t i = 0; i < tile.count; i++) {
    const size_t token = work.order[tile.first + i];
    x[i] = step.x + token * step.inputs;
    base[i] = step.base + token * step.outputs;
    y[i] = step.y + token * step.outputs;
  }
  if (tile.slot == 0) {
    for (size_t i = 0; i < tile.count; i++) memcpy(y[i], base[i], step.outputs * sizeof(float));
    return;
  }
  const float* down = step.adapters + (tile.slot * step.width + step.offset) * step.rank;
  const LowRank matrices = {down, down + step.inputs * step.rank, step.inputs, step.rank, step.outputs};
  layer_kernels().adapt(matrices, x, base, y, tile.count);
}

}  // namespace

OrtStatus* add_adapters(const AddAdapters& step, const Parallel& parallel) {
  const size_t tokens = step.num_rows * step.num_tokens;
  if (tokens == 0) return nullptr;
  Scratch scratch;
  scratch.reserve(tokens, sizeof(size_t));
  scratch.reserve(tokens + step.num_slots, sizeof(Tile));
  if (!scratch.allocate()) return refuse("there is no memory for %zu tokens", tokens);
  size_t* order = scratch.take<size_t>(tokens);
  Tile* tiles = scratch.take<Tile>(tokens + step.num_slots);
  size_t num_tiles = 0, filled = 0;
  for (size_t slot = 0; slot < step.num_slots && filled < tokens; slot++) {
    const size_t first = filled;
    for (size_t row = 0; row < step.num_rows; row++)
      if (static_cast<size_t>(step.slots[row]) == slot)
        for (size_t t = 0; t < step.num_tokens; t++) order[filled++] = row * step.num_tokens + t;
    for (size_t at = first; at < filled; at += MAX_ADAPTED)
      tiles[num_tiles++] = {at, filled - at < MAX_ADAPTED ? filled - at : MAX_ADAPTED, slot};
  }
  Work work = {step, order, tiles};
  return parallel.run_if_many(run_tile, num_tiles, 2, &work);
}

}  // namespace qwonnx
