// QuantizedMixture(residual, mixed, norm, gates, and codes and scales of gate_up, down, shared_gate_up, shared_down),
// AffineMixture: the same with zero points behind each scales:
//   top_k, epsilon, accuracy_level, gate_up_bits, down_bits, shared_gate_up_bits, shared_down_bits -> y
//
// export/targets/cpu_functions.py defines them. Sizes are checked when a session is created, or when the node runs if a
// weight is not constant.
#include "mixture_operator.h"

#include <stdlib.h>
#include <string.h>

#include "custom_op.h"
#include "expert_memory.h"
#include "operators.h"

namespace qwonnx {
namespace {

enum Input { RESIDUAL, MIXED, NORM, GATES, FIRST_WEIGHT };
enum Matrix { GATE_UP, DOWN, SHARED_GATE_UP, SHARED_DOWN, NUM_MATRICES };
constexpr size_t MAX_INPUTS = FIRST_WEIGHT + 3 * NUM_MATRICES;

const char* const names[NUM_MATRICES] = {"gate_up", "down", "shared_gate_up", "shared_down"};
const char* const bits_names[NUM_MATRICES] = {"gate_up_bits", "down_bits", "shared_gate_up_bits", "shared_down_bits"};

struct MixtureOperator : NamedOp {
  bool has_zero_points;

  size_t parts() const { return has_zero_points ? 3 : 2; }
  size_t num_inputs() const { return FIRST_WEIGHT + parts() * NUM_MATRICES; }
  bool is_float(size_t input) const { return input < FIRST_WEIGHT || (input - FIRST_WEIGHT) % parts() == 1; }
};

struct Kernel {
  const MixtureOperator* op;
  int64_t bits[NUM_MATRICES];
  int64_t top_k;
  float epsilon;
  bool int8;
  bool ready;                       // what does not change was checked at creation
  const void* checked[MAX_INPUTS];  // its addresses at that time
  Mixture layer;
};

OrtStatus* read_weights(Kernel& kernel, const OrtValue* const* values) {
  const MixtureOperator& op = *kernel.op;
  Mixture& layer = kernel.layer;
  Tensor norm, gates;
  QWONNX_RETURN_IF_ERROR(read_tensor("norm", values[NORM], FLOAT, norm));
  QWONNX_RETURN_IF_ERROR(read_floats("gates", values[GATES], gates, layer.gates));
  kernel.checked[NORM] = norm.data;
  kernel.checked[GATES] = gates.data;
  if (gates.rank != 2 || gates.dims[0] < 2 || gates.dims[1] < 1) return refuse("gates are not [experts + 1, hidden]");
  const int64_t num_experts = gates.dims[0] - 1;
  Blocks* const matrices[NUM_MATRICES] = {&layer.routed.gate_up, &layer.routed.down, &layer.shared_gate_up,
                                          &layer.shared_down};
  size_t at = FIRST_WEIGHT;
  for (size_t m = 0; m < NUM_MATRICES; m++) {
    WeightTensors tensors;
    tensors.has_zero_points = op.has_zero_points;
    Tensor* const parts[3] = {&tensors.codes, &tensors.scales, &tensors.zero_points};
    for (size_t part = 0; part < op.parts(); part++, at++) {
      QWONNX_RETURN_IF_ERROR(read_tensor(names[m], values[at], op.is_float(at) ? FLOAT : UINT8, *parts[part]));
      kernel.checked[at] = parts[part]->data;
    }
    const int64_t stacked = m == GATE_UP || m == DOWN ? num_experts : 0;
    QWONNX_RETURN_IF_ERROR(read_blocks(names[m], tensors, kernel.bits[m], stacked, *matrices[m]));
  }
  const size_t hidden = static_cast<size_t>(gates.dims[1]);
  if (norm.rank != 1 || norm.dims[0] != gates.dims[1]) return refuse("norm is not [%zu]", hidden);
  for (size_t m = 0; m < NUM_MATRICES; m += 2) {
    const Blocks &up = *matrices[m], &down = *matrices[m + 1];
    if (up.columns != hidden || down.rows != hidden || up.rows != 2 * down.columns)
      return refuse("%s is [%zu, %zu] and %s [%zu, %zu]: they are not an expert of %zu values", names[m], up.rows, up.columns,
                    names[m + 1], down.rows, down.columns, hidden);
  }
  if (kernel.top_k < 1 || kernel.top_k > num_experts)
    return refuse("top_k is %lld of %lld experts", static_cast<long long>(kernel.top_k),
                  static_cast<long long>(num_experts));
  layer.routed.num_experts = static_cast<size_t>(num_experts);
  layer.routed.top_k = static_cast<size_t>(kernel.top_k);
  layer.norm = static_cast<const float*>(norm.data);
  layer.epsilon = kernel.epsilon;
  return nullptr;
}

const MixtureOperator& of(const OrtCustomOp* op) { return *static_cast<const MixtureOperator*>(op); }

OrtStatus* create(const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->op = &of(custom);
  for (size_t m = 0; m < NUM_MATRICES; m++) kernel->bits[m] = attribute(info, bits_names[m], 4);
  kernel->top_k = attribute(info, "top_k", 0);
  kernel->epsilon = float_attribute(info, "epsilon", 0);
  kernel->int8 = attribute(info, "accuracy_level", 0) == 4;
  const OrtValue* values[MAX_INPUTS] = {};
  if (constant_inputs(info, NORM, kernel->op->num_inputs(), values)) {
    if (OrtStatus* status = read_weights(*kernel, values)) {
      free(kernel);
      return status;
    }
    kernel->ready = true;
    kernel->layer.routed.memory = join_experts(kernel->layer.routed);
  }
  *out = kernel;
  return nullptr;
}

void destroy(void* data) {
  leave_experts(static_cast<Kernel*>(data)->layer.routed.memory);
  free(data);
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  const Kernel& made = *static_cast<Kernel*>(data);
  const OrtValue* values[MAX_INPUTS] = {};
  bool same = made.ready;
  QWONNX_RETURN_IF_ERROR(get_inputs(context, NORM, made.op->num_inputs(), made.checked, values, same));
  Kernel kernel = made;
  if (!same) {
    kernel.layer.routed.memory = nullptr;  // which knows other addresses
    QWONNX_RETURN_IF_ERROR(read_weights(kernel, values));
  }
  Tensor residual, mixed;
  QWONNX_RETURN_IF_ERROR(read_tensor("residual", values[RESIDUAL], FLOAT, residual));
  QWONNX_RETURN_IF_ERROR(read_tensor("mixed", values[MIXED], FLOAT, mixed));
  const size_t hidden = kernel.layer.shared_down.rows;
  if (residual.rank != mixed.rank || memcmp(residual.dims, mixed.dims, residual.rank * sizeof *residual.dims))
    return refuse("residual and mixed have different shapes");
  if (residual.dims[residual.rank - 1] != static_cast<int64_t>(hidden))
    return refuse("residual has %lld columns and the weights %zu", static_cast<long long>(residual.dims[residual.rank - 1]),
                  hidden);
  size_t num_tokens = 1;
  for (size_t i = 0; i + 1 < residual.rank; i++) num_tokens *= static_cast<size_t>(residual.dims[i]);
  OrtValue* output = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_output(context, 0, residual.dims, residual.rank, &output));
  void* y = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(output, &y));
  return mixture(kernel.layer, static_cast<float*>(residual.data), static_cast<float*>(mixed.data), num_tokens, kernel.int8,
                 static_cast<float*>(y), {context});
}

MixtureOperator make(const char* name, bool has_zero_points) {
  MixtureOperator op;
  memset(static_cast<void*>(&op), 0, sizeof op);
  op.get_input_type = [](const OrtCustomOp* self, size_t index) {
    return index == GATES ? ANY_TYPE : of(self).is_float(index) ? FLOAT : UINT8;
  };
  op.get_input_count = [](const OrtCustomOp* self) { return of(self).num_inputs(); };
  op.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
  op.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(1); };
  op.has_zero_points = has_zero_points;
  finish(op, name, create, compute);
  op.destroy = destroy;
  return op;
}

MixtureOperator operators[2];

}  // namespace

OrtStatus* add_mixture_operators(OrtCustomOpDomain* domain) {
  if (!operators[0].version) {
    operators[1] = make("AffineMixture", true);
    operators[0] = make("QuantizedMixture", false);
  }
  for (const MixtureOperator& op : operators) QWONNX_RETURN_IF_ERROR(api.custom_op_domain_add(domain, &op));
  return nullptr;
}

}  // namespace qwonnx
