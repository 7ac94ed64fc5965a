// The first half of a linear-attention layer, in three steps: norms and quantised rows by token; all projections side by side;
// then, for one token, the convolution, the delta rule and the gated norm of a key head's channels in one task. Chunks run
// these three one after the other.
#include "layer_kernels.h"
#include "layers.h"
#include "product.h"
#include "rows.h"

namespace qwonnx {
namespace {

constexpr size_t GATE_ROWS = 16;  // of a task

struct Call {
  const InstructionSet& set;
  const LayerKernels& kernels;
  const DeltaNet& layer;
  size_t num_rows, hidden;
  const Rows& rows;    // of x, for qkv
  const Rows& z_rows;  // of x, for z; those of qkv if they are the same
  float* x = nullptr;       // [num_rows, hidden]
  float* scores = nullptr;  // [num_rows, 2 * value_heads]
  const Product* qkv = nullptr;
  const Product* z = nullptr;
  const CausalConv* conv = nullptr;
  const DeltaRule* rule = nullptr;
  const GatedNorm* norm = nullptr;

  size_t num_scores() const { return 2 * layer.rule.value_heads; }
  size_t score_tasks() const { return (num_scores() + GATE_ROWS - 1) / GATE_ROWS; }
};

void norm_row(void* data, size_t t) {
  const Call& call = *static_cast<Call*>(data);
  float* x = call.x + t * call.hidden;
  call.kernels.add_norm(call.layer.h + t * call.hidden, nullptr, call.layer.norm, call.layer.norm_epsilon, call.hidden, nullptr, x);
  call.rows.set(t, x, call.set);
  if (&call.z_rows != &call.rows) call.z_rows.set(t, x, call.set);
}

void project(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  if (index < call.score_tasks()) {
    const size_t first = index * GATE_ROWS, left = call.num_scores() - first;
    return call.kernels.products(call.layer.gates, first, left < GATE_ROWS ? left : GATE_ROWS, call.hidden, call.x,
                                 call.num_rows, call.scores + first, call.num_scores());
  }
  index -= call.score_tasks();
  if (index < call.qkv->num_tasks()) return call.qkv->task(index);
  call.z->task(index - call.qkv->num_tasks());
}

// One token of one row: a key head and the value heads that it serves.
void key_head(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const DeltaRule& rule = *call.rule;
  const size_t row = index / rule.key_heads, head = index % rule.key_heads, each = rule.value_heads / rule.key_heads;
  causal_conv_channels(*call.conv, row, head * rule.key_dim, rule.key_dim);
  causal_conv_channels(*call.conv, row, rule.key_width() + head * rule.key_dim, rule.key_dim);
  causal_conv_channels(*call.conv, row, 2 * rule.key_width() + head * each * rule.value_dim, each * rule.value_dim);
  for (size_t h = index * each; h < (index + 1) * each; h++) delta_rule_head(rule, h);
  gated_norm_groups(*call.norm, index * each, each);
}

}  // namespace

OrtStatus* delta_net(const DeltaNet& layer, bool int8, const Parallel& parallel) {
  CausalConv conv = layer.conv;
  DeltaRule rule = layer.rule;
  const size_t num_rows = conv.batch * conv.num_tokens, value_width = rule.value_heads * rule.value_dim;
  if (num_rows == 0) {
    QWONNX_RETURN_IF_ERROR(causal_conv(conv, parallel));
    return delta_rule(rule, parallel);
  }
  const InstructionSet& set = instructions();
  const Multiply multiply = int8 ? set.multiply_int8 : set.multiply_float;
  Rows rows(layer.qkv, num_rows, int8), own_z_rows(layer.z, num_rows, int8);
  Rows& z_rows = alike(layer.qkv, layer.z) ? rows : own_z_rows;
  Call call = {set, layer_kernels(), layer, num_rows, layer.qkv.columns, rows, z_rows};
  Scratch scratch;
  rows.reserve(scratch);
  if (&z_rows != &rows) z_rows.reserve(scratch);
  scratch.reserve(num_rows, call.hidden * sizeof(float));
  scratch.reserve(num_rows, call.num_scores() * sizeof(float));
  for (int i = 0; i < 2; i++) scratch.reserve(num_rows, conv.channels * sizeof(float));
  for (int i = 0; i < 2; i++) scratch.reserve(num_rows, value_width * sizeof(float));
  if (!scratch.allocate()) return refuse("there is no memory for a linear-attention layer of %zu tokens", num_rows);
  rows.take(scratch);
  if (&z_rows != &rows) z_rows.take(scratch);
  call.x = scratch.take<float>(num_rows * call.hidden);
  call.scores = scratch.take<float>(num_rows * call.num_scores());
  float* qkv = scratch.take<float>(num_rows * conv.channels);
  float* convolved = scratch.take<float>(num_rows * conv.channels);
  float* z = scratch.take<float>(num_rows * value_width);
  float* read = scratch.take<float>(num_rows * value_width);
  conv.x = qkv;
  conv.y = convolved;
  rule.qkv = convolved;
  rule.b = call.scores;
  rule.a = call.scores + rule.value_heads;
  rule.gate_stride = call.num_scores();
  rule.y = read;
  const GatedNorm norm = {num_rows * rule.value_heads, rule.value_dim, layer.out_norm_epsilon, read, z, layer.out_norm, layer.y};
  const Product of_qkv(layer.qkv, rows.activations(), num_rows, multiply, qkv);
  const Product of_z(layer.z, z_rows.activations(), num_rows, multiply, z);
  call.qkv = &of_qkv;
  call.z = &of_z;
  call.conv = &conv;
  call.rule = &rule;
  call.norm = &norm;
  QWONNX_RETURN_IF_ERROR(parallel.run_if_many(norm_row, num_rows, 8, &call));
  QWONNX_RETURN_IF_ERROR(parallel.run(project, call.score_tasks() + of_qkv.num_tasks() + of_z.num_tasks(), &call));
  if (conv.num_tokens == 1 && rule.value_dim <= MAX_ONCE) return parallel.run(key_head, conv.batch * rule.key_heads, &call);
  QWONNX_RETURN_IF_ERROR(causal_conv(conv, parallel));
  QWONNX_RETURN_IF_ERROR(delta_rule(rule, parallel));
  return gated_norm(norm, parallel);
}

}  // namespace qwonnx
