// SiLU of the depthwise causal convolution, channels last, without a transpose of the tokens: a task is a tile of channels and
// tokens. Weights and states have a channel's numbers side by side; they are transposed into the L1 cache.
//
// The present state is written when all tasks have read the past one, because both may be the same memory. With few
// tokens a task has all of them, and writes the state itself.
#include "layer_kernels.h"
#include "layers.h"

#include <string.h>

namespace qwonnx {
namespace {

constexpr size_t CHANNELS = 256;
constexpr size_t TOKENS = 64;
static_assert(TOKENS >= MAX_TAPS, "the state of a row of several tiles must not reach into the past state");

struct Call {
  const LayerKernels& kernels;
  const CausalConv& layer;
  size_t channel_tiles, token_tiles;
};

// The inputs of token t of a row, oldest first, for the channels from `first` on; `before` has the past state.
void inputs_of(const CausalConv& layer, size_t row, size_t t, size_t first, const float* before, const float** inputs) {
  const size_t history = layer.num_taps - 1;
  for (size_t j = 0; j < layer.num_taps; j++) {
    const size_t back = history - j;
    inputs[j] = back <= t ? layer.x + (row * layer.num_tokens + t - back) * layer.channels + first
                          : before + (history + t - back) * CHANNELS;
  }
}

void write_state(const Call& call, size_t row, size_t first, size_t count, const float* before) {
  const CausalConv& layer = call.layer;
  const float* inputs[MAX_TAPS];
  inputs_of(layer, row, layer.num_tokens - 1, first, before, inputs);
  const size_t history = layer.num_taps - 1;
  call.kernels.to_rows(inputs + 1, count, history, layer.present + (row * layer.channels + first) * history);
}

// At most CHANNELS channels, tokens start to end.
void convolve_channels(const Call& call, size_t row, size_t first, size_t count, size_t start, size_t end) {
  const CausalConv& layer = call.layer;
  const size_t taps = layer.num_taps, history = taps - 1;
  alignas(64) float weights[MAX_TAPS * CHANNELS], before[MAX_TAPS * CHANNELS];
  call.kernels.to_columns(layer.weight + first * taps, count, taps, weights, CHANNELS);
  if (start == 0)
    call.kernels.to_columns(layer.past + (row * layer.channels + first) * history, count, history, before, CHANNELS);
  for (size_t t = start; t < end; t++) {
    const float* inputs[MAX_TAPS];
    inputs_of(layer, row, t, first, before, inputs);
    call.kernels.convolve(inputs, weights, CHANNELS, taps, count,
                          layer.y + (row * layer.num_tokens + t) * layer.channels + first);
  }
  if (call.token_tiles == 1) write_state(call, row, first, count, before);
}

void convolve_tile(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const CausalConv& layer = call.layer;
  const size_t first = index % call.channel_tiles * CHANNELS, rest = index / call.channel_tiles;
  const size_t row = rest / call.token_tiles, start = rest % call.token_tiles * TOKENS;
  const size_t count = layer.channels - first < CHANNELS ? layer.channels - first : CHANNELS;
  const size_t end = layer.num_tokens - start < TOKENS ? layer.num_tokens : start + TOKENS;
  convolve_channels(call, row, first, count, start, end);
}

// Of rows with more tokens than taps.
void write_states(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const size_t first = index % call.channel_tiles * CHANNELS, channels = call.layer.channels;
  write_state(call, index / call.channel_tiles, first, channels - first < CHANNELS ? channels - first : CHANNELS,
              nullptr);
}

}  // namespace

void causal_conv_channels(const CausalConv& layer, size_t row, size_t first, size_t count) {
  const Call call = {layer_kernels(), layer, 0, 1};
  for (size_t end = first + count; first < end; first += CHANNELS)
    convolve_channels(call, row, first, end - first < CHANNELS ? end - first : CHANNELS, 0, 1);
}

OrtStatus* causal_conv(const CausalConv& layer, const Parallel& parallel) {
  if (layer.num_tokens == 0) {
    if (layer.present != layer.past)
      memcpy(layer.present, layer.past, layer.batch * layer.channels * (layer.num_taps - 1) * sizeof(float));
    return nullptr;
  }
  Call call = {layer_kernels(), layer, (layer.channels + CHANNELS - 1) / CHANNELS,
               (layer.num_tokens + TOKENS - 1) / TOKENS};
  const size_t tiles = layer.batch * call.channel_tiles;
  QWONNX_RETURN_IF_ERROR(parallel.run(convolve_tile, tiles * call.token_tiles, &call));
  return call.token_tiles == 1 ? nullptr : parallel.run(write_states, tiles, &call);
}

}  // namespace qwonnx
