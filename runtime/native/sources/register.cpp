// The library's door: the operators of the domain ai.qwonnx as ONNX Runtime sees them, and a self-test.
//
//   QuantizedLinear(x, codes, scales), AffineLinear(x, codes, scales, zero_points): bits
//   QuantizedNormLinear(x, norm, codes, scales), AffineNormLinear: the same of the RMS norm of x: epsilon, bits
//   QuantizedExperts(x, logits, gate_up codes, scales, down codes, scales): top_k, gate_up_bits, down_bits
//   AffineExperts: the same with zero points behind each scales
//   and those of attention_inputs_operator.cpp, delta_net_operator.cpp, mixture_operator.cpp, layer_operators.cpp,
//   rotary_angles_operator.cpp, attention_operator.cpp and add_adapters_operator.cpp
//
// accuracy_level 4 quantises activations to int8 by block, as com.microsoft.MatMulNBits does; every other value keeps
// them float. Attributes that the graph's own function bodies need are allowed and not read.
#include "add_adapters.h"
#include "attention_inputs_operator.h"
#include "attention_operator.h"
#include "custom_op.h"
#include "delta_net_operator.h"
#include "expert_memory.h"
#include "layer_operators.h"
#include "mixture_operator.h"
#include "operators.h"
#include "rotary_angles.h"

#include <stdlib.h>
#include <string.h>

namespace qwonnx {
namespace {

constexpr size_t MAX_INPUTS = 8;

enum class Kind { LINEAR, NORM_LINEAR, EXPERTS };

struct Operator : NamedOp {
  size_t num_inputs;
  Kind kind;
  bool has_zero_points;

  bool is_experts() const { return kind == Kind::EXPERTS; }
  size_t first_weight() const { return kind == Kind::LINEAR ? 1 : 2; }
  // Weights and the norm.
  size_t first_constant() const { return is_experts() ? 2 : 1; }
  bool is_float(size_t index) const {  // x, norm, logits and scales
    return index < first_weight() || (index - first_weight()) % (has_zero_points ? 3 : 2) == 1;
  }
};

struct Kernel {
  const Operator* op;
  int64_t bits, down_bits, top_k;
  float epsilon;
  bool int8;
  bool ready;                      // the weights are constant and were checked at creation
  const void* checked[MAX_INPUTS];  // their addresses at that time
  Blocks weights;
  const float* norm;  // [weights.columns]; null: x is not normed
  Experts layer;
};

const char* const input_names[2] = {"x", "logits"};

OrtStatus* read_weights(Kernel& kernel, const OrtValue* const* values) {
  const Operator& op = *kernel.op;
  const size_t each = op.has_zero_points ? 3 : 2;
  WeightTensors tensors[2];
  for (size_t i = op.first_weight(); i < op.num_inputs; i++) {
    WeightTensors& matrix = tensors[(i - op.first_weight()) / each];
    matrix.has_zero_points = op.has_zero_points;
    const size_t part = (i - op.first_weight()) % each;
    Tensor& tensor = part == 0 ? matrix.codes : part == 1 ? matrix.scales : matrix.zero_points;
    const char* name = part == 0 ? "codes" : part == 1 ? "scales" : "zero points";
    QWONNX_RETURN_IF_ERROR(read_tensor(name, values[i], part == 1 ? FLOAT : UINT8, tensor));
    kernel.checked[i] = tensor.data;
  }
  if (!op.is_experts()) {
    QWONNX_RETURN_IF_ERROR(read_blocks("weight", tensors[0], kernel.bits, 0, kernel.weights));
    if (op.kind == Kind::LINEAR) return nullptr;
    Tensor norm;
    QWONNX_RETURN_IF_ERROR(read_tensor("norm", values[1], FLOAT, norm));
    if (norm.rank != 1 || norm.dims[0] != static_cast<int64_t>(kernel.weights.columns))
      return refuse("norm is not [%zu], as the weight has columns", kernel.weights.columns);
    kernel.checked[1] = norm.data;
    kernel.norm = static_cast<const float*>(norm.data);
    return nullptr;
  }
  Experts& layer = kernel.layer;
  const int64_t num_experts = tensors[0].codes.dims[0];
  if (num_experts <= 0) return refuse("there are no experts");
  QWONNX_RETURN_IF_ERROR(read_blocks("gate_up", tensors[0], kernel.bits, num_experts, layer.gate_up));
  QWONNX_RETURN_IF_ERROR(read_blocks("down", tensors[1], kernel.down_bits, num_experts, layer.down));
  if (layer.gate_up.rows != 2 * layer.down.columns || layer.gate_up.columns != layer.down.rows)
    return refuse("gate_up is [%zu, %zu] and down [%zu, %zu]: they are not two matrices of one expert",
                  layer.gate_up.rows, layer.gate_up.columns, layer.down.rows, layer.down.columns);
  if (kernel.top_k < 1 || kernel.top_k > num_experts)
    return refuse("top_k is %lld of %lld experts", static_cast<long long>(kernel.top_k),
                  static_cast<long long>(num_experts));
  layer.num_experts = static_cast<size_t>(num_experts);
  layer.top_k = static_cast<size_t>(kernel.top_k);
  return nullptr;
}

OrtStatus* create(const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info, void** out) {
  const Operator& op = *static_cast<const Operator*>(custom);
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->op = &op;
  kernel->bits = attribute(info, op.is_experts() ? "gate_up_bits" : "bits", 4);
  kernel->down_bits = attribute(info, "down_bits", 4);
  kernel->top_k = attribute(info, "top_k", 0);
  kernel->epsilon = float_attribute(info, "epsilon", 0);
  kernel->int8 = attribute(info, "accuracy_level", 0) == 4;
  const OrtValue* values[MAX_INPUTS] = {};
  if (constant_inputs(info, op.first_constant(), op.num_inputs, values)) {
    if (OrtStatus* status = read_weights(*kernel, values)) {
      free(kernel);
      return status;
    }
    kernel->ready = true;
    if (op.is_experts()) kernel->layer.memory = join_experts(kernel->layer);
  }
  *out = kernel;
  return nullptr;
}

void destroy(void* data) {
  leave_experts(static_cast<Kernel*>(data)->layer.memory);
  free(data);
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  const Kernel& made = *static_cast<Kernel*>(data);
  const Operator& op = *made.op;
  const OrtValue* values[MAX_INPUTS] = {};
  bool same = made.ready;
  QWONNX_RETURN_IF_ERROR(get_inputs(context, op.first_constant(), op.num_inputs, made.checked, values, same));
  Kernel kernel = made;
  if (!same) {
    kernel.layer.memory = nullptr;  // which knows other addresses
    QWONNX_RETURN_IF_ERROR(read_weights(kernel, values));
  }
  Tensor x, logits;
  QWONNX_RETURN_IF_ERROR(read_tensor(input_names[0], values[0], FLOAT, x));
  const size_t columns = op.is_experts() ? kernel.layer.gate_up.columns : kernel.weights.columns;
  if (x.dims[x.rank - 1] != static_cast<int64_t>(columns))
    return refuse("x has %lld columns and the weight %zu", static_cast<long long>(x.dims[x.rank - 1]), columns);
  size_t num_tokens = 1;
  for (size_t i = 0; i + 1 < x.rank; i++) num_tokens *= static_cast<size_t>(x.dims[i]);
  if (op.is_experts()) {
    QWONNX_RETURN_IF_ERROR(read_tensor(input_names[1], values[1], FLOAT, logits));
    size_t rows = 1;
    for (size_t i = 0; i + 1 < logits.rank; i++) rows *= static_cast<size_t>(logits.dims[i]);
    if (rows != num_tokens || logits.dims[logits.rank - 1] != static_cast<int64_t>(kernel.layer.num_experts))
      return refuse("logits are not [%zu, %zu]", num_tokens, kernel.layer.num_experts);
  } else {
    x.dims[x.rank - 1] = static_cast<int64_t>(kernel.weights.rows);
  }
  OrtValue* output = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_output(context, 0, x.dims, x.rank, &output));
  void* y = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(output, &y));
  const Parallel parallel = {context};
  if (op.is_experts())
    return experts(kernel.layer, static_cast<float*>(x.data), static_cast<float*>(logits.data), kernel.layer.num_experts,
                   num_tokens, kernel.int8, static_cast<float*>(y), parallel);
  return linear(kernel.weights, static_cast<float*>(x.data), {kernel.norm, kernel.epsilon}, num_tokens, kernel.int8,
                static_cast<float*>(y), parallel);
}

const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

Operator make(const char* name, size_t num_inputs, Kind kind, bool has_zero_points) {
  Operator op;
  memset(static_cast<void*>(&op), 0, sizeof op);
  op.get_input_type = [](const OrtCustomOp* self, size_t index) { return of(self).is_float(index) ? FLOAT : UINT8; };
  op.get_input_count = [](const OrtCustomOp* self) { return of(self).num_inputs; };
  op.get_output_type = [](const OrtCustomOp*, size_t) { return FLOAT; };
  op.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(1); };
  op.num_inputs = num_inputs;
  op.kind = kind;
  op.has_zero_points = has_zero_points;
  finish(op, name, create, compute);
  op.destroy = destroy;
  return op;
}

Operator operators[6];
int registrations = 0;

// ONNX Runtime's slots are where they should be, as far as a status can tell.
bool slots_answer() {
  OrtStatus* status = api.create_status(INVALID_ARGUMENT, "qwonnx");
  if (!status) return false;
  const char* message = api.get_error_message(status);
  const bool right = message && !strcmp(message, "qwonnx");
  api.release_status(status);
  return right;
}

// The chosen instruction set against the scalar form: 20 rows of 256 columns, every width, and numbers of tokens for
// which sets have forms of their own.
bool kernels_agree() {
  constexpr size_t ROWS = 20, COLUMNS = 256, TOKENS = 17, BLOCK = 32;
  static uint8_t codes[ROWS * COLUMNS];
  static float scales[ROWS * COLUMNS / BLOCK], x[TOKENS][COLUMNS], x_scales[2][TOKENS][COLUMNS / BLOCK],
      x_sums[2][TOKENS][COLUMNS / BLOCK], y[2][TOKENS * ROWS];
  static uint8_t x_codes[2][TOKENS][512];
  uint32_t random = 1;
  const auto next = [&random] { return (random = random * 1664525u + 1013904223u) >> 16; };
  for (uint8_t& code : codes) code = static_cast<uint8_t>(next());
  for (float& scale : scales) scale = 0.01f + static_cast<float>(next() % 64) / 4096;
  for (auto& row : x)
    for (float& value : row) value = static_cast<float>(next() % 2001) / 1000 - 1;
  const InstructionSet* sets[2] = {&instructions(), &scalar_set};
  const size_t counts[] = {1, 3, TOKENS};
  for (unsigned bits = 2; bits <= 8; bits *= 2)
    for (const size_t tokens : counts)
      for (int level = 0; level < 2; level++) {
        const unsigned block = bits == 4 ? 4 * BLOCK : BLOCK;
        const Blocks weights = {codes, scales, nullptr, ROWS, COLUMNS, bits, block};
        for (int s = 0; s < 2; s++) {
          Activations rows[TOKENS];
          for (size_t t = 0; t < tokens; t++) {
            sets[s]->quantize(x[t], weights, x_codes[s][t], x_scales[s][t], x_sums[s][t]);
            rows[t] = {level ? static_cast<const void*>(x[t]) : x_codes[s][t], x_scales[s][t], x_sums[s][t]};
          }
          (level ? sets[s]->multiply_float : sets[s]->multiply_int8)(weights, 0, ROWS, rows, tokens, y[s], ROWS, 0);
        }
        for (size_t i = 0; i < tokens * ROWS; i++) {
          const float difference = y[0][i] - y[1][i];
          if (!(difference < 1e-2f && difference > -1e-2f)) return false;
        }
      }
  return true;
}

}  // namespace
}  // namespace qwonnx

#define EXPORTED extern "C" __attribute__((visibility("default")))

#ifndef QWONNX_SOURCES
#define QWONNX_SOURCES ""
#endif

// The digest of the sources that this library was built from.
EXPORTED const char* qwonnx_native_sources() { return QWONNX_SOURCES; }

EXPORTED const char* qwonnx_native_instructions() { return qwonnx::instructions().name; }

// 1 if the instruction set exists and this processor has it; "" chooses the fastest.
EXPORTED int qwonnx_native_select(const char* name) { return qwonnx::select(name); }

// 1 if the chosen instruction set computes what the scalar form does.
EXPORTED int qwonnx_native_self_test() {
  return qwonnx::kernels_agree() && qwonnx::layer_kernels_agree() && qwonnx::attention_agrees();
}

// How often RegisterCustomOps() went through.
EXPORTED int qwonnx_native_registrations() { return __atomic_load_n(&qwonnx::registrations, __ATOMIC_RELAXED); }

EXPORTED qwonnx::OrtStatus* RegisterCustomOps(qwonnx::OrtSessionOptions* options, const qwonnx::OrtApiBase* base) {
  using namespace qwonnx;
  const OrtApi* table = base->get_api(API_VERSION);
  if (!table) return nullptr;  // without a table there is no status either: the caller counts registrations
  api.fill(table);
  if (!slots_answer()) return nullptr;
  if (!operators[0].version) {
    operators[5] = make("AffineExperts", 8, Kind::EXPERTS, true);
    operators[4] = make("QuantizedExperts", 6, Kind::EXPERTS, false);
    operators[3] = make("AffineNormLinear", 5, Kind::NORM_LINEAR, true);
    operators[2] = make("QuantizedNormLinear", 4, Kind::NORM_LINEAR, false);
    operators[1] = make("AffineLinear", 4, Kind::LINEAR, true);
    operators[0] = make("QuantizedLinear", 3, Kind::LINEAR, false);
  }
  OrtCustomOpDomain* domain = nullptr;
  QWONNX_RETURN_IF_ERROR(api.create_custom_op_domain("ai.qwonnx", &domain));
  for (const Operator& op : operators) QWONNX_RETURN_IF_ERROR(api.custom_op_domain_add(domain, &op));
  QWONNX_RETURN_IF_ERROR(add_attention_inputs_operators(domain));
  QWONNX_RETURN_IF_ERROR(add_delta_net_operators(domain));
  QWONNX_RETURN_IF_ERROR(add_mixture_operators(domain));
  QWONNX_RETURN_IF_ERROR(add_layer_operators(domain));
  QWONNX_RETURN_IF_ERROR(add_rotary_angles_operator(domain));
  QWONNX_RETURN_IF_ERROR(add_attention_operators(domain));
  QWONNX_RETURN_IF_ERROR(add_add_adapters_operator(domain));
  QWONNX_RETURN_IF_ERROR(api.add_custom_op_domain(options, domain));
  __atomic_add_fetch(&registrations, 1, __ATOMIC_RELAXED);
  return nullptr;
}
