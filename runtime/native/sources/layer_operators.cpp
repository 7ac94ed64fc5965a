// GatedDeltaRule(qkv, b, a, decay_scale, dt_bias, past_state): num_key_heads, epsilon -> y, present_state
// CausalConv(x, weight, past_state) -> y, present_state
// GatedRMSNorm(x, gate, weight): epsilon -> y
//
// export/operators/ops.py has their shapes and op_bodies.py defines them. Every size is checked when a node runs.
#include "layer_operators.h"

#include <stdlib.h>
#include <string.h>

#include "custom_op.h"
#include "layer_kernels.h"
#include "layers.h"

namespace qwonnx {
namespace {

constexpr size_t MAX_INPUTS = 6;

struct Kernel;

struct LayerOperator : NamedOp {
  size_t num_inputs, num_outputs;
  OrtStatus* (*run)(const Kernel&, const Tensor* inputs, OrtKernelContext*);
};

struct Kernel {
  const LayerOperator* op;
  int64_t num_key_heads;
  float epsilon;
};

bool has_shape(const Tensor& tensor, size_t rank, const int64_t* dims) {
  return tensor.rank == rank && !memcmp(tensor.dims, dims, rank * sizeof *dims);
}

OrtStatus* output(OrtKernelContext* context, size_t index, const Tensor& like, float** data) {
  OrtValue* value = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_output(context, index, like.dims, like.rank, &value));
  return api.get_tensor_mutable_data(value, reinterpret_cast<void**>(data));
}

// A product of sizes that must be addressable even if a tensor has none of them.
bool fits(const int64_t* dims, size_t count) {
  int64_t total = sizeof(float);
  for (size_t i = 0; i < count; i++)
    if (dims[i] < 0 || __builtin_mul_overflow(total, dims[i] ? dims[i] : 1, &total)) return false;
  return true;
}

OrtStatus* run_delta_rule(const Kernel& kernel, const Tensor* in, OrtKernelContext* context) {
  const Tensor &qkv = in[0], &b = in[1], &a = in[2], &decay_scale = in[3], &dt_bias = in[4], &past = in[5];
  if (qkv.rank != 3 || past.rank != 4) return refuse("qkv has %zu dimensions and past_state %zu", qkv.rank, past.rank);
  const int64_t batch = qkv.dims[0], tokens = qkv.dims[1];
  const int64_t key_heads = kernel.num_key_heads, heads = past.dims[1], key_dim = past.dims[2], value_dim = past.dims[3];
  if (past.dims[0] != batch)
    return refuse("past_state is of %lld rows and qkv of %lld", static_cast<long long>(past.dims[0]),
                  static_cast<long long>(batch));
  const int64_t sizes[] = {batch, heads, key_dim, value_dim, tokens, 3};
  if (heads < 1 || key_dim < 1 || value_dim < 1 || !fits(sizes, 6)) return refuse("past_state has no heads or values");
  if (key_dim > static_cast<int64_t>(MAX_KEY_DIM))
    return refuse("keys of %lld values; at most %zu are supported", static_cast<long long>(key_dim), MAX_KEY_DIM);
  if (key_heads < 1 || key_heads > heads || heads % key_heads != 0)
    return refuse("num_key_heads is %lld, and past_state has %lld value heads", static_cast<long long>(key_heads),
                  static_cast<long long>(heads));
  if (qkv.dims[2] != 2 * key_heads * key_dim + heads * value_dim)
    return refuse("qkv has %lld columns instead of %lld", static_cast<long long>(qkv.dims[2]),
                  static_cast<long long>(2 * key_heads * key_dim + heads * value_dim));
  const int64_t by_head[3] = {batch, tokens, heads};
  if (!has_shape(b, 3, by_head) || !has_shape(a, 3, by_head) || !has_shape(decay_scale, 1, &heads) ||
      !has_shape(dt_bias, 1, &heads))
    return refuse("b, a, decay_scale or dt_bias are not of %lld heads", static_cast<long long>(heads));
  DeltaRule layer = {};
  layer.batch = static_cast<size_t>(batch);
  layer.num_tokens = static_cast<size_t>(tokens);
  layer.key_heads = static_cast<size_t>(key_heads);
  layer.value_heads = static_cast<size_t>(heads);
  layer.key_dim = static_cast<size_t>(key_dim);
  layer.value_dim = static_cast<size_t>(value_dim);
  layer.epsilon = kernel.epsilon;
  layer.gate_stride = layer.value_heads;
  const float** const data[] = {&layer.qkv, &layer.b, &layer.a, &layer.decay_scale, &layer.dt_bias, &layer.past};
  for (size_t i = 0; i < 6; i++) *data[i] = static_cast<const float*>(in[i].data);
  Tensor y = qkv;
  y.dims[2] = heads * value_dim;
  QWONNX_RETURN_IF_ERROR(output(context, 0, y, &layer.y));
  QWONNX_RETURN_IF_ERROR(output(context, 1, past, &layer.present));
  return batch == 0 ? nullptr : delta_rule(layer, {context});
}

OrtStatus* run_causal_conv(const Kernel&, const Tensor* in, OrtKernelContext* context) {
  const Tensor &x = in[0], &weight = in[1], &past = in[2];
  if (x.rank != 3 || weight.rank != 3 || weight.dims[1] != 1)
    return refuse("x has %zu dimensions, and the weight is not [channels, 1, taps]", x.rank);
  const int64_t batch = x.dims[0], tokens = x.dims[1], channels = weight.dims[0], taps = weight.dims[2];
  if (taps < 1 || taps > static_cast<int64_t>(MAX_TAPS))
    return refuse("%lld taps; 1 to %zu are supported", static_cast<long long>(taps), MAX_TAPS);
  const int64_t state[3] = {batch, channels, taps - 1};
  const int64_t sizes[] = {batch, tokens, channels, taps};
  if (x.dims[2] != channels || !has_shape(past, 3, state) || !fits(sizes, 4))
    return refuse("x or past_state are not of %lld channels and %lld taps", static_cast<long long>(channels),
                  static_cast<long long>(taps));
  CausalConv layer = {static_cast<size_t>(batch),
                      static_cast<size_t>(tokens),
                      static_cast<size_t>(channels),
                      static_cast<size_t>(taps),
                      static_cast<const float*>(x.data),
                      static_cast<const float*>(weight.data),
                      static_cast<const float*>(past.data),
                      nullptr,
                      nullptr};
  QWONNX_RETURN_IF_ERROR(output(context, 0, x, &layer.y));
  QWONNX_RETURN_IF_ERROR(output(context, 1, past, &layer.present));
  return batch == 0 || channels == 0 ? nullptr : causal_conv(layer, {context});
}

OrtStatus* run_gated_norm(const Kernel& kernel, const Tensor* in, OrtKernelContext* context) {
  const Tensor &x = in[0], &gate = in[1], &weight = in[2];
  const int64_t width = weight.dims[0];
  if (weight.rank != 1 || width < 1 || x.dims[x.rank - 1] % width != 0 || !has_shape(gate, x.rank, x.dims))
    return refuse("x and gate differ, or their %lld columns are not groups of the weight's %lld",
                  static_cast<long long>(x.dims[x.rank - 1]), static_cast<long long>(width));
  if (!fits(x.dims, x.rank)) return refuse("x is too large");
  size_t count = 1;
  for (size_t i = 0; i < x.rank; i++) count *= static_cast<size_t>(x.dims[i]);
  GatedNorm layer = {count / static_cast<size_t>(width),
                     static_cast<size_t>(width),
                     kernel.epsilon,
                     static_cast<const float*>(x.data),
                     static_cast<const float*>(gate.data),
                     static_cast<const float*>(weight.data),
                     nullptr};
  QWONNX_RETURN_IF_ERROR(output(context, 0, x, &layer.y));
  return gated_norm(layer, {context});
}

OrtStatus* create(const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->op = static_cast<const LayerOperator*>(custom);
  kernel->num_key_heads = attribute(info, "num_key_heads", 0);
  kernel->epsilon = float_attribute(info, "epsilon", 0);
  *out = kernel;
  return nullptr;
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(data);
  Tensor inputs[MAX_INPUTS];
  for (size_t i = 0; i < kernel.op->num_inputs; i++) {
    const OrtValue* value = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_input(context, i, &value));
    char name[16] = "input 0";
    name[6] = static_cast<char>('0' + i);
    QWONNX_RETURN_IF_ERROR(read_tensor(name, value, FLOAT, inputs[i]));
  }
  return kernel.op->run(kernel, inputs, context);
}

const LayerOperator& of(const OrtCustomOp* op) { return *static_cast<const LayerOperator*>(op); }

LayerOperator make(const char* name, size_t num_inputs, size_t num_outputs,
                   OrtStatus* (*run)(const Kernel&, const Tensor*, OrtKernelContext*)) {
  LayerOperator op;
  memset(static_cast<void*>(&op), 0, sizeof op);
  op.get_input_type = op.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
  op.get_input_count = [](const OrtCustomOp* self) { return of(self).num_inputs; };
  op.get_output_count = [](const OrtCustomOp* self) { return of(self).num_outputs; };
  op.num_inputs = num_inputs;
  op.num_outputs = num_outputs;
  op.run = run;
  finish(op, name, create, compute);
  return op;
}

LayerOperator operators[3];

bool close(float a, float b) { return a - b < 1e-4f && b - a < 1e-4f; }

}  // namespace

const LayerKernels& layer_kernels() {
#if defined(__x86_64__)
  const char* name = instructions().name;
  if (!strcmp(name, "avx2")) return avx2_layer_kernels;
#if !defined(QWONNX_WITHOUT_AVX512)
  if (!strcmp(name, "avx512") || !strcmp(name, "amx")) return avx512_layer_kernels;
#endif
#endif
  return plain_layer_kernels;
}

OrtStatus* add_layer_operators(OrtCustomOpDomain* domain) {
  if (!operators[0].version) {
    operators[2] = make("GatedRMSNorm", 3, 1, run_gated_norm);
    operators[1] = make("CausalConv", 3, 2, run_causal_conv);
    operators[0] = make("GatedDeltaRule", 6, 2, run_delta_rule);
  }
  for (const LayerOperator& op : operators) QWONNX_RETURN_IF_ERROR(api.custom_op_domain_add(domain, &op));
  return nullptr;
}

bool layer_kernels_agree() {
  constexpr size_t ROWS = 12, COLUMNS = 16, TAPS = 4;
  struct Results {
    float present[ROWS * COLUMNS], state[ROWS * COLUMNS], y[COLUMNS], convolved[COLUMNS], gated[COLUMNS],
        sum[COLUMNS], normed[COLUMNS], rotated[2 * COLUMNS], products[5 * 5], upper[5 * 5],
        adapted[5 * 2 * COLUMNS];
    PairSums sums;
  };
  uint32_t random = 1;
  float values[8 * ROWS * COLUMNS];
  for (float& value : values) value = static_cast<float>((random = random * 1664525u + 1013904223u) >> 16) / 65536 - 0.5f;
  Bfloat16 halves[5 * (2 * COLUMNS + 3)];
  for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
    uint32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    halves[i].bits = static_cast<uint16_t>(bits >> 16);
  }
  const LayerKernels* const tables[2] = {&layer_kernels(), &plain_layer_kernels};
  if (tables[0]->width < COLUMNS || tables[1]->width < COLUMNS) return false;
  static Results results[2];
  for (int i = 0; i < 2; i++) {
    const LayerKernels& kernels = *tables[i];
    Results& to = results[i];
    const float* keys = values + ROWS * COLUMNS;
    const float* const deltas[2] = {keys + COLUMNS, keys + 2 * COLUMNS};
    float buffer[ROWS * MAX_WIDTH];
    kernels.delta_once({ROWS, COLUMNS, 0.9f, 0.5f, keys, keys + ROWS, deltas[0], to.y}, values, to.present, values);
    kernels.delta_first(values, COLUMNS, ROWS, COLUMNS - 1, keys, buffer, to.sums);
    kernels.delta_pair(buffer, ROWS, 1, keys, deltas, to.sums);
    kernels.delta_pair(buffer, ROWS, 0.5f, keys + COLUMNS, deltas, to.sums);
    kernels.delta_store(buffer, ROWS, 0.75f, to.state, COLUMNS, COLUMNS);
    const float* inputs[TAPS];
    for (size_t j = 0; j < TAPS; j++) inputs[j] = values + j * COLUMNS;
    kernels.convolve(inputs, keys, COLUMNS, TAPS, COLUMNS, to.convolved);
    kernels.add_norm(values, keys, keys + COLUMNS, 1e-6f, COLUMNS, to.sum, to.normed);
    kernels.norm_rotate(values, keys, 1e-6f, 2 * COLUMNS - 1, keys, values + COLUMNS, COLUMNS - 6, to.rotated);
    kernels.products({values, false}, 0, 5, 2 * COLUMNS + 3, keys, 5, to.products, 5);
    kernels.products({halves, true}, 0, 5, 2 * COLUMNS + 3, keys, 5, to.upper, 5);
    const float *xs[5], *bases[5];
    float* adapted[5];
    for (size_t t = 0; t < 5; t++) {
      xs[t] = keys + t;
      bases[t] = values + t;
      adapted[t] = to.adapted + t * 2 * COLUMNS;
    }
    // Two ranks of 5 and of 17: beside and beyond the lanes.
    kernels.adapt({values, keys, 3, 5, COLUMNS}, xs, bases, adapted, 5);
    kernels.adapt({values, keys, 7, 17, COLUMNS + 3}, xs, bases, adapted, 5);
    kernels.gate(values, kernels.dot(values, values, COLUMNS), keys, keys + COLUMNS, COLUMNS, to.gated);
  }
  for (Results& result : results) {  // tables differ in their width
    float* const sums[] = {result.sums.before, result.sums.after, result.sums.remembered[0], result.sums.remembered[1]};
    for (float* each : sums) memset(each + COLUMNS, 0, (MAX_WIDTH - COLUMNS) * sizeof(float));
  }
  const float *first = reinterpret_cast<const float*>(&results[0]), *second = reinterpret_cast<const float*>(&results[1]);
  for (size_t i = 0; i < sizeof(Results) / sizeof(float); i++)
    if (!close(first[i], second[i])) return false;
  return true;
}

}  // namespace qwonnx
