// The operators GatedAttention, GatedAttentionInt8 and GatedAttentionInt4: new keys and values are written into the
// cache, then pieces of work of equal kind run on the session's threads: up to 64 rows of a head over a range of its
// positions. A few rows over a long cache are cut along its length, and the parts are merged in the cache's order. How
// work is cut depends on shapes and lengths alone, so results do not depend on the number of threads.
#include "attention.h"

#include <stdlib.h>
#include <string.h>

#include "attention_operator.h"
#include "scratch.h"

namespace qwonnx {
namespace {

constexpr size_t LEAST_POSITIONS = 256;  // of a part: merging costs as much as a few positions
constexpr size_t MOST_PARTS = 64;        // of a head: enough for 64 threads
constexpr size_t MERGED = 4;             // rows of a piece of merging
constexpr size_t TOKENS = 32;            // of a piece of writing
constexpr size_t COPIED = 1 << 20;       // bytes of a piece of copying
constexpr size_t WORKSPACES = 64;        // a thread's; more threads than that allocate their own

size_t pieces(size_t count, size_t each) { return (count + each - 1) / each; }
size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

struct Call {
  const Attention& step;
  const AttentionKernels& kernels;
  size_t group, num_rows, blocks;  // rows of one head, and their blocks
  size_t parts;                    // of the row of the batch that has most
  size_t state_stride;             // floats
  float* states;                   // [batch, num_kv_heads, blocks, parts]; null if no head has several parts
  float* workspaces;
  uint64_t taken;  // a bit for each workspace in use
  int out_of_memory;

  size_t parts_of(size_t row) const {
    const size_t length = static_cast<size_t>(step.past_lengths[row]) + step.num_tokens;
    const size_t most = MOST_PARTS / blocks;
    return most < 2 ? 1 : smaller(most, pieces(length, LEAST_POSITIONS));
  }
  size_t workspace_size() const { return pieces(workspace_floats(step.head_dim) + state_stride, 16) * 16; }  // aligned
};

AttentionHead head_of(const Call& call, size_t row, size_t kv_head) {
  const Attention& step = call.step;
  const size_t bytes = step.capacity * position_bytes(step.type, step.head_dim);
  const size_t stride = step.num_heads * step.head_dim, first = kv_head * call.group * step.head_dim;
  const size_t offset = row * step.num_tokens * stride + first;
  const uint8_t* keys = static_cast<const uint8_t*>(step.present_key) + (row * step.num_kv_heads + kv_head) * bytes;
  const uint8_t* values = static_cast<const uint8_t*>(step.present_value) + (row * step.num_kv_heads + kv_head) * bytes;
  const bool scaled = step.type != CacheType::FLOAT32;
  return {step.type, step.head_dim, call.group,
          scaled ? step.key_scales + kv_head * step.head_dim : nullptr,
          scaled ? step.value_scales + kv_head * step.head_dim : nullptr,
          keys, values, step.query + offset, step.gate + offset, step.output + offset, stride,
          static_cast<size_t>(step.past_lengths[row])};
}

// ---- writing the cache ----

// A piece is some bytes of keys, or of values.
void copy_piece(void* data, size_t index) {
  const Attention& step = static_cast<Call*>(data)->step;
  const size_t total = step.cache_bytes(), at = index / 2 * COPIED, count = smaller(COPIED, total - at);
  const void* from = index % 2 ? step.past_value : step.past_key;
  void* to = index % 2 ? step.present_value : step.present_key;
  if (from != to) memcpy(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, count);
}

// A piece is some tokens of one head.
void write_piece(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const Attention& step = call.step;
  const size_t each = pieces(step.num_tokens, TOKENS), first = index % each * TOKENS;
  const size_t last = smaller(step.num_tokens, first + TOKENS), head = index / each;  // of all rows
  const size_t row = head / step.num_kv_heads, kv_head = head % step.num_kv_heads;
  const size_t bytes = position_bytes(step.type, step.head_dim);
  for (int which = 0; which < 2; which++) {
    const float* x = which ? step.value : step.key;
    const float* scales = which ? step.value_scales : step.key_scales;
    uint8_t* cache = static_cast<uint8_t*>(which ? step.present_value : step.present_key);
    for (size_t t = first; t < last; t++) {
      const float* from = x + ((row * step.num_tokens + t) * step.num_kv_heads + kv_head) * step.head_dim;
      uint8_t* to = cache + (head * step.capacity + static_cast<size_t>(step.past_lengths[row]) + t) * bytes;
      if (step.type == CacheType::FLOAT32)
        memcpy(to, from, bytes);
      else
        call.kernels.quantize(step.type, from, scales + kv_head * step.head_dim, step.head_dim, to);
    }
  }
}

// ---- attending ----

// Memory for one piece at a time: the lowest free workspace, so that no more are touched than there are threads.
class Workspace {
 public:
  explicit Workspace(Call& call) : call_(call) {
    uint64_t taken = __atomic_load_n(&call.taken, __ATOMIC_RELAXED);
    while (~taken) {
      const int bit = __builtin_ctzll(~taken);
      if (!__atomic_compare_exchange_n(&call.taken, &taken, taken | (uint64_t{1} << bit), false, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED))
        continue;
      bit_ = uint64_t{1} << bit;
      memory_ = call.workspaces + static_cast<size_t>(bit) * call.workspace_size();
      return;
    }
    own_.reserve(call.workspace_size(), sizeof(float));
    if (own_.allocate())
      memory_ = own_.take<float>(call.workspace_size());
    else
      __atomic_store_n(&call.out_of_memory, 1, __ATOMIC_RELAXED);
  }
  ~Workspace() {
    if (bit_) __atomic_fetch_and(&call_.taken, ~bit_, __ATOMIC_RELEASE);
  }
  float* memory() const { return memory_; }

 private:
  Call& call_;
  Scratch own_;
  uint64_t bit_ = 0;
  float* memory_ = nullptr;
};

// Where a piece's rows lie.
struct Place {
  size_t row, kv_head, block, rest;

  Place(const Call& call, size_t index, size_t num_rest) {
    rest = index % num_rest;
    index /= num_rest;
    block = index % call.blocks;
    index /= call.blocks;
    kv_head = index % call.step.num_kv_heads;
    row = index / call.step.num_kv_heads;
  }
};

void attend_piece(void* data, size_t index) {
  Call& call = *static_cast<Call*>(data);
  const Place place(call, index, call.parts);
  const size_t parts = call.parts_of(place.row);
  if (place.rest >= parts) return;
  const AttentionHead head = head_of(call, place.row, place.kv_head);
  const size_t first_row = place.block * MAX_ROWS, length = head.past + call.step.num_tokens;
  const size_t each = pieces(pieces(length, parts), POSITIONS) * POSITIONS, first = place.rest * each;
  const AttentionPart part = {first_row, smaller(MAX_ROWS, call.num_rows - first_row), first,
                              smaller(length, first + each)};
  const Workspace workspace(call);
  if (!workspace.memory()) return;
  float* state = parts > 1 ? call.states + index * call.state_stride
                           : workspace.memory() + workspace_floats(call.step.head_dim);
  call.kernels.attend(head, part, workspace.memory(), state);
  if (parts == 1) call.kernels.finish(head, part, state, 1, 0, 0, part.num_rows);
}

void merge_piece(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const Place place(call, index, pieces(MAX_ROWS, MERGED));
  const size_t parts = call.parts_of(place.row), first_row = place.block * MAX_ROWS, first = place.rest * MERGED;
  const AttentionPart rows = {first_row, smaller(MAX_ROWS, call.num_rows - first_row), 0, 0};
  if (parts == 1 || first >= rows.num_rows) return;
  const size_t state = ((place.row * call.step.num_kv_heads + place.kv_head) * call.blocks + place.block) * call.parts;
  call.kernels.finish(head_of(call, place.row, place.kv_head), rows, call.states + state * call.state_stride, parts,
                      call.state_stride, first, smaller(rows.num_rows, first + MERGED));
}

}  // namespace

OrtStatus* attention(const Attention& step, const Parallel& parallel) {
  Call call = {step, instructions().attention, step.num_heads / step.num_kv_heads, 0, 0, 1, 0, nullptr, nullptr, 0, 0};
  if (step.past_key != step.present_key || step.past_value != step.present_value)
    QWONNX_RETURN_IF_ERROR(parallel.run(copy_piece, 2 * pieces(step.cache_bytes(), COPIED), &call));
  const size_t heads = step.batch * step.num_kv_heads;
  if (heads == 0 || step.num_tokens == 0) return nullptr;
  const size_t writes = heads * pieces(step.num_tokens, TOKENS);
  if (step.batch * step.num_tokens <= TOKENS)
    for (size_t i = 0; i < writes; i++) write_piece(&call, i);
  else
    QWONNX_RETURN_IF_ERROR(parallel.run(write_piece, writes, &call));
  call.num_rows = step.num_tokens * call.group;
  call.blocks = pieces(call.num_rows, MAX_ROWS);
  for (size_t row = 0; row < step.batch; row++)
    if (call.parts_of(row) > call.parts) call.parts = call.parts_of(row);
  call.state_stride = state_floats(step.head_dim, smaller(call.num_rows, MAX_ROWS));
  const size_t count = heads * call.blocks * call.parts, workspaces = smaller(count, WORKSPACES);
  Scratch scratch;
  scratch.reserve(workspaces * call.workspace_size(), sizeof(float));
  if (call.parts > 1) scratch.reserve(count * call.state_stride, sizeof(float));
  if (!scratch.allocate()) return refuse("there is no memory for attention of %zu rows", call.num_rows);
  call.workspaces = scratch.take<float>(workspaces * call.workspace_size());
  if (call.parts > 1) call.states = scratch.take<float>(count * call.state_stride);
  if (workspaces < WORKSPACES) call.taken = ~uint64_t{0} << workspaces;
  QWONNX_RETURN_IF_ERROR(parallel.run(attend_piece, count, &call));
  if (call.out_of_memory) return refuse("there is no memory for attention of %zu rows", call.num_rows);
  if (call.parts == 1) return nullptr;
  return parallel.run(merge_piece, heads * call.blocks * pieces(MAX_ROWS, MERGED), &call);
}

// ---- the self-test ----

namespace {

// Whole numbers are rounded (attention_codes.h), so their outputs of up to 3 may differ by more.
bool attention_agrees(CacheType type, size_t head_dim, float tolerance) {
  constexpr size_t HEADS = 6, DIM = 64, LENGTH = 70, TOKENS = 3, MOST_ROWS = HEADS * TOKENS;
  alignas(64) static uint8_t keys[LENGTH * DIM * 4], values[LENGTH * DIM * 4];
  alignas(64) static float query[MOST_ROWS * DIM], scales[DIM], output[2][MOST_ROWS * DIM],
      workspace[workspace_floats(DIM)], state[state_floats(DIM, MOST_ROWS)];
  uint32_t random = 1;
  const auto next = [&random] { return (random = random * 1664525u + 1013904223u) >> 16; };
  for (float& value : query) value = static_cast<float>(next() % 2001) / 1000 - 1;
  for (float& scale : scales) scale = 0.01f + static_cast<float>(next() % 64) / 4096;
  const AttentionKernels* sets[2] = {&instructions().attention, &scalar_attention};
  for (size_t tokens = 1; tokens <= TOKENS; tokens += TOKENS - 1) {
    for (size_t i = 0; i < LENGTH * head_dim; i++) {
      const float number = static_cast<float>(next() % 2001) / 1000 - 1;
      if (type == CacheType::FLOAT32) memcpy(keys + 4 * i, &number, 4), memcpy(values + 4 * i, &number, 4);
      if (type == CacheType::FLOAT32) continue;
      keys[i] = static_cast<uint8_t>(next());
      values[i] = static_cast<uint8_t>(next());
    }
    const float* scaled = type == CacheType::FLOAT32 ? nullptr : scales;
    for (int s = 0; s < 2; s++) {
      const AttentionHead head = {type,  head_dim, HEADS,     scaled,           scaled,         keys, values,
                                  query, query,    output[s], HEADS * head_dim, LENGTH - tokens};
      const AttentionPart part = {0, HEADS * tokens, 0, LENGTH};
      sets[s]->attend(head, part, workspace, state);
      sets[s]->finish(head, part, state, 1, 0, 0, part.num_rows);
    }
    for (size_t i = 0; i < HEADS * tokens * head_dim; i++) {
      const float difference = output[0][i] - output[1][i];
      if (!(difference < tolerance && difference > -tolerance)) return false;
    }
  }
  return true;
}

}  // namespace

bool attention_agrees() {
  constexpr CacheType types[] = {CacheType::FLOAT32, CacheType::INT8, CacheType::INT4};
  for (const CacheType type : types)
    if (!attention_agrees(type, 38, 1e-4f) || !attention_agrees(type, 64, type == CacheType::FLOAT32 ? 1e-4f : 1e-3f))
      return false;
  return true;
}

}  // namespace qwonnx
