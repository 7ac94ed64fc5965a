// QuantizedDeltaNet(h, norm, gates, codes and scales of qkv and z, conv_weight, decay_scale, dt_bias, out_norm, past_conv,
// past_state), AffineDeltaNet: the same with zero points behind each scales:
//   num_key_heads, epsilon, norm_epsilon, out_norm_epsilon, accuracy_level, qkv_bits, z_bits -> y, present_conv, present_state
//
// export/targets/cpu_functions.py defines them. Every size is checked when a node runs: there is no more to it than to a
// look at each tensor, of which only codes and scales are large.
#include "delta_net_operator.h"

#include <stdlib.h>
#include <string.h>

#include "custom_op.h"
#include "layer_kernels.h"
#include "layers.h"

namespace qwonnx {
namespace {

enum Before { H, NORM, GATES, FIRST_WEIGHT };
enum Behind { CONV_WEIGHT, DECAY_SCALE, DT_BIAS, OUT_NORM, PAST_CONV, PAST_STATE, NUM_BEHIND };
constexpr size_t MAX_INPUTS = FIRST_WEIGHT + 6 + NUM_BEHIND;

const char* const before_names[FIRST_WEIGHT] = {"h", "norm", "gates"};
const char* const behind_names[NUM_BEHIND] = {"conv_weight", "decay_scale", "dt_bias", "out_norm", "past_conv", "past_state"};

struct DeltaNetOperator : NamedOp {
  bool has_zero_points;

  size_t parts() const { return has_zero_points ? 3 : 2; }
  size_t behind() const { return FIRST_WEIGHT + 2 * parts(); }
  size_t num_inputs() const { return behind() + NUM_BEHIND; }
  bool is_float(size_t input) const {
    return input < FIRST_WEIGHT || input >= behind() || (input - FIRST_WEIGHT) % parts() == 1;
  }
};

struct Kernel {
  const DeltaNetOperator* op;
  int64_t qkv_bits, z_bits, num_key_heads;
  float epsilon, norm_epsilon, out_norm_epsilon;
  bool int8;
};

const DeltaNetOperator& of(const OrtCustomOp* op) { return *static_cast<const DeltaNetOperator*>(op); }

OrtStatus* create(const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->op = &of(custom);
  kernel->qkv_bits = attribute(info, "qkv_bits", 4);
  kernel->z_bits = attribute(info, "z_bits", 4);
  kernel->num_key_heads = attribute(info, "num_key_heads", 0);
  kernel->epsilon = float_attribute(info, "epsilon", 0);
  kernel->norm_epsilon = float_attribute(info, "norm_epsilon", 0);
  kernel->out_norm_epsilon = float_attribute(info, "out_norm_epsilon", 0);
  kernel->int8 = attribute(info, "accuracy_level", 0) == 4;
  *out = kernel;
  return nullptr;
}

OrtStatus* check(const char* name, const Tensor& tensor, size_t rank, int64_t a, int64_t b = 0, int64_t c = 0) {
  const int64_t shape[3] = {a, b, c};
  if (tensor.rank == rank && !memcmp(tensor.dims, shape, rank * sizeof *shape)) return nullptr;
  return refuse("%s does not have the shape that fits past_state, past_conv and h: %lld, %lld, %lld", name,
                static_cast<long long>(a), static_cast<long long>(b), static_cast<long long>(c));
}

// The sizes of `layer`, checked against each other.
OrtStatus* read_sizes(const Kernel& kernel, const Tensor* before, const Tensor* behind, DeltaNet& layer) {
  const Tensor &h = before[H], &state = behind[PAST_STATE], &conv = behind[CONV_WEIGHT];
  if (h.rank != 3 || state.rank != 4 || conv.rank != 3)
    return refuse("h, past_state and conv_weight have %zu, %zu and %zu dimensions", h.rank, state.rank, conv.rank);
  const int64_t batch = h.dims[0], tokens = h.dims[1], hidden = h.dims[2], key_heads = kernel.num_key_heads;
  const int64_t heads = state.dims[1], key_dim = state.dims[2], value_dim = state.dims[3], taps = conv.dims[2];
  if (state.dims[0] != batch || heads < 1 || key_dim < 1 || value_dim < 1 || hidden < 1)
    return refuse("past_state is not of %lld rows of heads", static_cast<long long>(batch));
  if (key_dim > static_cast<int64_t>(MAX_KEY_DIM) || taps < 1 || taps > static_cast<int64_t>(MAX_TAPS))
    return refuse("keys of %lld values and %lld taps; at most %zu and %zu are supported", static_cast<long long>(key_dim),
                  static_cast<long long>(taps), MAX_KEY_DIM, MAX_TAPS);
  if (key_heads < 1 || key_heads > heads || heads % key_heads != 0)
    return refuse("num_key_heads is %lld, and past_state has %lld value heads", static_cast<long long>(key_heads),
                  static_cast<long long>(heads));
  // Of tensors in memory, so that products cannot overflow: conv_weight has the channels, and gates have the heads.
  const int64_t channels = conv.dims[0], value_width = static_cast<int64_t>(layer.z.rows);
  if (value_width / heads != value_dim || value_width % heads != 0 || (channels - value_width) / 2 / key_heads != key_dim ||
      (channels - value_width) % (2 * key_heads) != 0)
    return refuse("conv_weight has %lld channels and z %lld rows: they are not those of past_state's heads",
                  static_cast<long long>(channels), static_cast<long long>(value_width));
  if (layer.qkv.rows != static_cast<size_t>(channels) || layer.qkv.columns != static_cast<size_t>(hidden) ||
      layer.z.columns != static_cast<size_t>(hidden))
    return refuse("qkv is [%zu, %zu] and z has %zu columns, for %lld channels and h of %lld columns", layer.qkv.rows,
                  layer.qkv.columns, layer.z.columns, static_cast<long long>(channels), static_cast<long long>(hidden));
  QWONNX_RETURN_IF_ERROR(check("norm", before[NORM], 1, hidden));
  QWONNX_RETURN_IF_ERROR(check("gates", before[GATES], 2, 2 * heads, hidden));
  QWONNX_RETURN_IF_ERROR(check("conv_weight", conv, 3, channels, 1, taps));
  QWONNX_RETURN_IF_ERROR(check("past_conv", behind[PAST_CONV], 3, batch, channels, taps - 1));
  QWONNX_RETURN_IF_ERROR(check("decay_scale", behind[DECAY_SCALE], 1, heads));
  QWONNX_RETURN_IF_ERROR(check("dt_bias", behind[DT_BIAS], 1, heads));
  QWONNX_RETURN_IF_ERROR(check("out_norm", behind[OUT_NORM], 1, value_dim));
  // The state is in memory, so only tokens that are none can make sizes overflow.
  int64_t most = 0;
  if (__builtin_mul_overflow(batch ? batch : 1, tokens, &most) || __builtin_mul_overflow(most, 4 * channels, &most))
    return refuse("h has too many tokens");
  layer.conv.batch = layer.rule.batch = static_cast<size_t>(batch);
  layer.conv.num_tokens = layer.rule.num_tokens = static_cast<size_t>(tokens);
  layer.conv.channels = static_cast<size_t>(channels);
  layer.conv.num_taps = static_cast<size_t>(taps);
  layer.rule.key_heads = static_cast<size_t>(key_heads);
  layer.rule.value_heads = static_cast<size_t>(heads);
  layer.rule.key_dim = static_cast<size_t>(key_dim);
  layer.rule.value_dim = static_cast<size_t>(value_dim);
  return nullptr;
}

OrtStatus* output(OrtKernelContext* context, size_t index, const Tensor& like, float** data) {
  OrtValue* value = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_output(context, index, like.dims, like.rank, &value));
  return api.get_tensor_mutable_data(value, reinterpret_cast<void**>(data));
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(data);
  const DeltaNetOperator& op = *kernel.op;
  Tensor before[FIRST_WEIGHT], behind[NUM_BEHIND];
  WeightTensors weights[2];
  DeltaNet layer = {};
  for (size_t i = 0; i < op.num_inputs(); i++) {
    const OrtValue* value = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_input(context, i, &value));
    if (i == GATES) {
      QWONNX_RETURN_IF_ERROR(read_floats(before_names[i], value, before[i], layer.gates));
    } else if (i < FIRST_WEIGHT) {
      QWONNX_RETURN_IF_ERROR(read_tensor(before_names[i], value, FLOAT, before[i]));
    } else if (i >= op.behind()) {
      QWONNX_RETURN_IF_ERROR(read_tensor(behind_names[i - op.behind()], value, FLOAT, behind[i - op.behind()]));
    } else {
      WeightTensors& matrix = weights[(i - FIRST_WEIGHT) / op.parts()];
      matrix.has_zero_points = op.has_zero_points;
      Tensor* const parts[3] = {&matrix.codes, &matrix.scales, &matrix.zero_points};
      QWONNX_RETURN_IF_ERROR(read_tensor("a projection's weight", value, op.is_float(i) ? FLOAT : UINT8,
                                         *parts[(i - FIRST_WEIGHT) % op.parts()]));
    }
  }
  QWONNX_RETURN_IF_ERROR(read_blocks("qkv", weights[0], kernel.qkv_bits, 0, layer.qkv));
  QWONNX_RETURN_IF_ERROR(read_blocks("z", weights[1], kernel.z_bits, 0, layer.z));
  QWONNX_RETURN_IF_ERROR(read_sizes(kernel, before, behind, layer));
  const auto floats = [](const Tensor& tensor) { return static_cast<const float*>(tensor.data); };
  layer.h = floats(before[H]);
  layer.norm = floats(before[NORM]);
  layer.norm_epsilon = kernel.norm_epsilon;
  layer.conv.weight = floats(behind[CONV_WEIGHT]);
  layer.conv.past = floats(behind[PAST_CONV]);
  layer.rule.decay_scale = floats(behind[DECAY_SCALE]);
  layer.rule.dt_bias = floats(behind[DT_BIAS]);
  layer.rule.past = floats(behind[PAST_STATE]);
  layer.rule.epsilon = kernel.epsilon;
  layer.out_norm = floats(behind[OUT_NORM]);
  layer.out_norm_epsilon = kernel.out_norm_epsilon;
  Tensor y = before[H];
  y.dims[2] = static_cast<int64_t>(layer.z.rows);
  QWONNX_RETURN_IF_ERROR(output(context, 0, y, &layer.y));
  QWONNX_RETURN_IF_ERROR(output(context, 1, behind[PAST_CONV], &layer.conv.present));
  QWONNX_RETURN_IF_ERROR(output(context, 2, behind[PAST_STATE], &layer.rule.present));
  return layer.conv.batch ? delta_net(layer, kernel.int8, {context}) : nullptr;
}

DeltaNetOperator make(const char* name, bool has_zero_points) {
  DeltaNetOperator op;
  memset(static_cast<void*>(&op), 0, sizeof op);
  op.get_input_type = [](const OrtCustomOp* self, size_t index) {
    return index == GATES ? ANY_TYPE : of(self).is_float(index) ? FLOAT : UINT8;
  };
  op.get_input_count = [](const OrtCustomOp* self) { return of(self).num_inputs(); };
  op.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
  op.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(3); };
  op.has_zero_points = has_zero_points;
  finish(op, name, create, compute);
  return op;
}

DeltaNetOperator operators[2];

}  // namespace

OrtStatus* add_delta_net_operators(OrtCustomOpDomain* domain) {
  if (!operators[0].version) {
    operators[1] = make("AffineDeltaNet", true);
    operators[0] = make("QuantizedDeltaNet", false);
  }
  for (const DeltaNetOperator& op : operators) QWONNX_RETURN_IF_ERROR(api.custom_op_domain_add(domain, &op));
  return nullptr;
}

}  // namespace qwonnx
