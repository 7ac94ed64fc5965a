// QuantizedAttentionInputs(h, cos, sin, norm, codes and scales of q, k and v, q_norm, k_norm), AffineAttentionInputs: the
// same with zero points behind each scales:
//   norm_epsilon, q_norm_epsilon, k_norm_epsilon, accuracy_level, q_bits, k_bits, v_bits -> query, key, value, gate
//
// export/targets/cpu_functions.py defines them. Sizes are checked when a session is created, or when the node runs if a
// weight is not constant.
#include "attention_inputs_operator.h"

#include <stdlib.h>
#include <string.h>

#include "custom_op.h"
#include "layers.h"

namespace qwonnx {
namespace {

enum Input { H, COS, SIN, NORM, FIRST_WEIGHT };
enum Matrix { Q, K, V, NUM_MATRICES };
enum Behind { Q_NORM, K_NORM, NUM_BEHIND };
constexpr size_t MAX_INPUTS = FIRST_WEIGHT + 3 * NUM_MATRICES + NUM_BEHIND;

const char* const names[NUM_MATRICES] = {"q", "k", "v"};
const char* const bits_names[NUM_MATRICES] = {"q_bits", "k_bits", "v_bits"};

struct InputsOperator : NamedOp {
  bool has_zero_points;

  size_t parts() const { return has_zero_points ? 3 : 2; }
  size_t behind() const { return FIRST_WEIGHT + parts() * NUM_MATRICES; }
  size_t num_inputs() const { return behind() + NUM_BEHIND; }
  bool is_float(size_t input) const {
    return input < FIRST_WEIGHT || input >= behind() || (input - FIRST_WEIGHT) % parts() == 1;
  }
};

struct Kernel {
  const InputsOperator* op;
  int64_t bits[NUM_MATRICES];
  bool int8;
  bool ready;                       // what does not change was checked at creation
  const void* checked[MAX_INPUTS];  // its addresses at that time
  AttentionInputs layer;            // with epsilons
};

OrtStatus* read_vector(const char* name, const OrtValue* value, Tensor& tensor) {
  QWONNX_RETURN_IF_ERROR(read_tensor(name, value, FLOAT, tensor));
  return tensor.rank == 1 && tensor.dims[0] > 0 ? nullptr : refuse("%s is not a vector", name);
}

// Checks every size against every other.
OrtStatus* read_weights(Kernel& kernel, const OrtValue* const* values) {
  const InputsOperator& op = *kernel.op;
  AttentionInputs& layer = kernel.layer;
  Tensor norm, q_norm, k_norm;
  const size_t q_norm_at = op.behind() + Q_NORM, k_norm_at = op.behind() + K_NORM;
  QWONNX_RETURN_IF_ERROR(read_vector("norm", values[NORM], norm));
  QWONNX_RETURN_IF_ERROR(read_vector("q_norm", values[q_norm_at], q_norm));
  QWONNX_RETURN_IF_ERROR(read_vector("k_norm", values[k_norm_at], k_norm));
  kernel.checked[NORM] = norm.data;
  kernel.checked[q_norm_at] = q_norm.data;
  kernel.checked[k_norm_at] = k_norm.data;
  Blocks* const matrices[NUM_MATRICES] = {&layer.q, &layer.k, &layer.v};
  size_t at = FIRST_WEIGHT;
  for (size_t m = 0; m < NUM_MATRICES; m++) {
    WeightTensors tensors;
    tensors.has_zero_points = op.has_zero_points;
    Tensor* const parts[3] = {&tensors.codes, &tensors.scales, &tensors.zero_points};
    for (size_t part = 0; part < op.parts(); part++, at++) {
      QWONNX_RETURN_IF_ERROR(read_tensor(names[m], values[at], op.is_float(at) ? FLOAT : UINT8, *parts[part]));
      kernel.checked[at] = parts[part]->data;
    }
    QWONNX_RETURN_IF_ERROR(read_blocks(names[m], tensors, kernel.bits[m], 0, *matrices[m]));
    if (matrices[m]->columns != static_cast<size_t>(norm.dims[0]))
      return refuse("%s has %zu columns and norm %lld values", names[m], matrices[m]->columns,
                    static_cast<long long>(norm.dims[0]));
  }
  const size_t dim = static_cast<size_t>(q_norm.dims[0]);
  if (k_norm.dims[0] != q_norm.dims[0])
    return refuse("q_norm has %zu values and k_norm %lld", dim, static_cast<long long>(k_norm.dims[0]));
  if (layer.q.rows / 2 % dim != 0 || layer.q.rows % 2 != 0 || layer.k.rows % dim != 0 || layer.v.rows != layer.k.rows)
    return refuse("q, k and v have %zu, %zu and %zu rows: they are not heads of %zu, with a gate for each query", layer.q.rows,
                  layer.k.rows, layer.v.rows, dim);
  layer.head_dim = dim;
  layer.num_heads = layer.q.rows / 2 / dim;
  layer.num_kv_heads = layer.k.rows / dim;
  layer.norm = static_cast<const float*>(norm.data);
  layer.q_norm = static_cast<const float*>(q_norm.data);
  layer.k_norm = static_cast<const float*>(k_norm.data);
  return nullptr;
}

const InputsOperator& of(const OrtCustomOp* op) { return *static_cast<const InputsOperator*>(op); }

OrtStatus* create(const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->op = &of(custom);
  for (size_t m = 0; m < NUM_MATRICES; m++) kernel->bits[m] = attribute(info, bits_names[m], 4);
  kernel->int8 = attribute(info, "accuracy_level", 0) == 4;
  kernel->layer.norm_epsilon = float_attribute(info, "norm_epsilon", 0);
  kernel->layer.q_epsilon = float_attribute(info, "q_norm_epsilon", 0);
  kernel->layer.k_epsilon = float_attribute(info, "k_norm_epsilon", 0);
  const OrtValue* values[MAX_INPUTS] = {};
  if (constant_inputs(info, NORM, kernel->op->num_inputs(), values)) {
    if (OrtStatus* status = read_weights(*kernel, values)) {
      free(kernel);
      return status;
    }
    kernel->ready = true;
  }
  *out = kernel;
  return nullptr;
}

// The tensors of a step, checked against the weights.
OrtStatus* read_step(const Tensor& h, const Tensor& cos, const Tensor& sin, AttentionInputs& layer) {
  if (h.rank != 3 || h.dims[2] != static_cast<int64_t>(layer.q.columns))
    return refuse("h has %zu dimensions and %lld columns; the weights have %zu columns", h.rank,
                  static_cast<long long>(h.dims[h.rank - 1]), layer.q.columns);
  if (cos.rank != 3 || cos.dims[0] != h.dims[0] || cos.dims[1] != h.dims[1] || sin.rank != 3 ||
      memcmp(sin.dims, cos.dims, sizeof(int64_t) * 3))
    return refuse("cos or sin are not of the %lld rows and %lld tokens of h", static_cast<long long>(h.dims[0]),
                  static_cast<long long>(h.dims[1]));
  if (cos.dims[2] < 1 || cos.dims[2] > static_cast<int64_t>(layer.head_dim / 2))
    return refuse("cos has %lld values, for heads of %zu", static_cast<long long>(cos.dims[2]), layer.head_dim);
  layer.num_tokens = static_cast<size_t>(h.dims[0]) * static_cast<size_t>(h.dims[1]);
  layer.half = static_cast<size_t>(cos.dims[2]);
  layer.h = static_cast<const float*>(h.data);
  layer.cos = static_cast<const float*>(cos.data);
  layer.sin = static_cast<const float*>(sin.data);
  return nullptr;
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  const Kernel& made = *static_cast<Kernel*>(data);
  const OrtValue* values[MAX_INPUTS] = {};
  bool same = made.ready;
  QWONNX_RETURN_IF_ERROR(get_inputs(context, NORM, made.op->num_inputs(), made.checked, values, same));
  Kernel kernel = made;
  if (!same) QWONNX_RETURN_IF_ERROR(read_weights(kernel, values));
  AttentionInputs& layer = kernel.layer;
  Tensor h, cos, sin;
  QWONNX_RETURN_IF_ERROR(read_tensor("h", values[H], FLOAT, h));
  QWONNX_RETURN_IF_ERROR(read_tensor("cos", values[COS], FLOAT, cos));
  QWONNX_RETURN_IF_ERROR(read_tensor("sin", values[SIN], FLOAT, sin));
  QWONNX_RETURN_IF_ERROR(read_step(h, cos, sin, layer));
  float** const outputs[] = {&layer.query, &layer.key, &layer.value, &layer.gate};
  for (size_t i = 0; i < 4; i++) {
    const size_t heads = i == 0 || i == 3 ? layer.num_heads : layer.num_kv_heads;
    const int64_t shape[3] = {h.dims[0], h.dims[1], static_cast<int64_t>(heads * layer.head_dim)};
    OrtValue* output = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_output(context, i, shape, 3, &output));
    QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(output, reinterpret_cast<void**>(outputs[i])));
  }
  return attention_inputs(layer, kernel.int8, {context});
}

InputsOperator make(const char* name, bool has_zero_points) {
  InputsOperator op;
  memset(static_cast<void*>(&op), 0, sizeof op);
  op.get_input_type = [](const OrtCustomOp* self, size_t index) { return of(self).is_float(index) ? FLOAT : UINT8; };
  op.get_input_count = [](const OrtCustomOp* self) { return of(self).num_inputs(); };
  op.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
  op.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(4); };
  op.has_zero_points = has_zero_points;
  finish(op, name, create, compute);
  return op;
}

InputsOperator operators[2];

}  // namespace

OrtStatus* add_attention_inputs_operators(OrtCustomOpDomain* domain) {
  if (!operators[0].version) {
    operators[1] = make("AffineAttentionInputs", true);
    operators[0] = make("QuantizedAttentionInputs", false);
  }
  for (const InputsOperator& op : operators) QWONNX_RETURN_IF_ERROR(api.custom_op_domain_add(domain, &op));
  return nullptr;
}

}  // namespace qwonnx
