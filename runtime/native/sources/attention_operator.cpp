// The operators of attention as ONNX Runtime sees them:
//
//   GatedAttention(query, key, value, gate, past_key, past_value, past_lengths) -> (output, present_key, present_value)
//   GatedAttentionInt8, GatedAttentionInt4: the same with key_scale and value_scale behind
//
// with the attribute num_heads. One more input is allowed and not read: the graph's own function bodies need it. Every
// shape and every length is checked before memory is touched.
#include "attention_operator.h"

#include <stdlib.h>
#include <string.h>

#include "custom_op.h"

namespace qwonnx {
namespace {

constexpr size_t MAX_READ = 9;
constexpr int INT8 = 3, INT64 = 7;  // ONNXTensorElementDataType

enum Input { QUERY, KEY, VALUE, GATE, PAST_KEY, PAST_VALUE, PAST_LENGTHS, KEY_SCALE, VALUE_SCALE };
const char* const input_names[MAX_READ] = {"query",      "key",          "value",     "gate",       "past_key",
                                             "past_value", "past_lengths", "key_scale", "value_scale"};

struct AttentionOperator : NamedOp {
  CacheType type;

  size_t num_read() const { return type == CacheType::FLOAT32 ? 7 : 9; }
  int cache_element() const { return type == CacheType::FLOAT32 ? FLOAT : type == CacheType::INT8 ? INT8 : UINT8; }
  int element(size_t input) const {
    if (input == PAST_KEY || input == PAST_VALUE) return cache_element();
    return input == PAST_LENGTHS || input == num_read() ? INT64 : FLOAT;
  }
};

struct Kernel {
  const AttentionOperator* op;
  int64_t num_heads;
};

const AttentionOperator& of(const OrtCustomOp* op) { return *static_cast<const AttentionOperator*>(op); }

OrtStatus* create(const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info, void** out) {
  const int64_t num_heads = attribute(info, "num_heads", 0);
  if (num_heads < 1) return refuse("%s: num_heads is %lld", of(custom).name, static_cast<long long>(num_heads));
  Kernel* kernel = static_cast<Kernel*>(calloc(1, sizeof(Kernel)));
  if (!kernel) return refuse("there is no memory");
  kernel->op = &of(custom);
  kernel->num_heads = num_heads;
  *out = kernel;
  return nullptr;
}

OrtStatus* check_shape(const char* name, const Tensor& tensor, size_t rank, int64_t a, int64_t b, int64_t c,
                       int64_t d) {
  const int64_t shape[4] = {a, b, c, d};
  bool same = tensor.rank == rank;
  for (size_t i = 0; same && i < rank; i++) same = tensor.dims[i] == shape[i];
  if (same) return nullptr;
  if (rank == 1) return refuse("%s is not [%lld]", name, static_cast<long long>(a));
  if (rank == 3)
    return refuse("%s is not [%lld, %lld, %lld]", name, static_cast<long long>(a), static_cast<long long>(b),
                  static_cast<long long>(c));
  return refuse("%s is not [%lld, %lld, %lld, %lld]", name, static_cast<long long>(a), static_cast<long long>(b),
                static_cast<long long>(c), static_cast<long long>(d));
}

// Checks every size against every other and fills all of `step` but its outputs.
OrtStatus* read_step(const Kernel& kernel, const Tensor* in, Attention& step) {
  const AttentionOperator& op = *kernel.op;
  if (in[PAST_KEY].rank != 4) return refuse("past_key has %zu dimensions instead of 4", in[PAST_KEY].rank);
  if (in[QUERY].rank != 3) return refuse("query has %zu dimensions instead of 3", in[QUERY].rank);
  const int64_t batch = in[QUERY].dims[0], num_tokens = in[QUERY].dims[1], width = in[QUERY].dims[2];
  const int64_t kv_heads = in[PAST_KEY].dims[1], capacity = in[PAST_KEY].dims[2], stored = in[PAST_KEY].dims[3];
  if (width < 1 || width % kernel.num_heads)
    return refuse("query is %lld wide, which num_heads %lld do not divide", static_cast<long long>(width),
                  static_cast<long long>(kernel.num_heads));
  const int64_t head_dim = width / kernel.num_heads;
  if (op.type == CacheType::INT4 ? head_dim % 2 || stored != head_dim / 2 : stored != head_dim)
    return refuse("a position of past_key has %lld elements, and a head of query %lld", static_cast<long long>(stored),
                  static_cast<long long>(head_dim));
  if (kv_heads < 1 || kernel.num_heads % kv_heads)
    return refuse("%lld heads of past_key do not divide num_heads %lld", static_cast<long long>(kv_heads),
                  static_cast<long long>(kernel.num_heads));
  const int64_t kv_width = kv_heads * head_dim;  // at most width
  QWONNX_RETURN_IF_ERROR(check_shape("gate", in[GATE], 3, batch, num_tokens, width, 0));
  QWONNX_RETURN_IF_ERROR(check_shape("key", in[KEY], 3, batch, num_tokens, kv_width, 0));
  QWONNX_RETURN_IF_ERROR(check_shape("value", in[VALUE], 3, batch, num_tokens, kv_width, 0));
  QWONNX_RETURN_IF_ERROR(check_shape("past_key", in[PAST_KEY], 4, batch, kv_heads, capacity, stored));
  QWONNX_RETURN_IF_ERROR(check_shape("past_value", in[PAST_VALUE], 4, batch, kv_heads, capacity, stored));
  QWONNX_RETURN_IF_ERROR(check_shape("past_lengths", in[PAST_LENGTHS], 1, batch, 0, 0, 0));
  for (size_t i = KEY_SCALE; i < op.num_read(); i++)
    QWONNX_RETURN_IF_ERROR(check_shape(input_names[i], in[i], 4, 1, kv_heads, 1, head_dim));
  step.past_lengths = static_cast<const int64_t*>(in[PAST_LENGTHS].data);
  for (int64_t row = 0; row < batch; row++) {
    const int64_t length = step.past_lengths[row];
    if (length < 0 || length > capacity - num_tokens)
      return refuse("past_lengths[%lld] is %lld: a cache of %lld positions has no room for %lld tokens behind it",
                    static_cast<long long>(row), static_cast<long long>(length), static_cast<long long>(capacity),
                    static_cast<long long>(num_tokens));
  }
  step.type = op.type;
  step.batch = static_cast<size_t>(batch);
  step.num_tokens = static_cast<size_t>(num_tokens);
  step.num_heads = static_cast<size_t>(kernel.num_heads);
  step.num_kv_heads = static_cast<size_t>(kv_heads);
  step.head_dim = static_cast<size_t>(head_dim);
  step.capacity = static_cast<size_t>(capacity);
  step.query = static_cast<const float*>(in[QUERY].data);
  step.key = static_cast<const float*>(in[KEY].data);
  step.value = static_cast<const float*>(in[VALUE].data);
  step.gate = static_cast<const float*>(in[GATE].data);
  step.past_key = in[PAST_KEY].data;
  step.past_value = in[PAST_VALUE].data;
  step.key_scales = op.num_read() > KEY_SCALE ? static_cast<const float*>(in[KEY_SCALE].data) : nullptr;
  step.value_scales = op.num_read() > KEY_SCALE ? static_cast<const float*>(in[VALUE_SCALE].data) : nullptr;
  return nullptr;
}

OrtStatus* make_output(OrtKernelContext* context, size_t index, const Tensor& like, void** data) {
  OrtValue* output = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_output(context, index, like.dims, like.rank, &output));
  return api.get_tensor_mutable_data(output, data);
}

// A present buffer is the past one, or has nothing in common with it.
bool overlaps(const void* past, const void* present, size_t bytes) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(past), b = reinterpret_cast<uintptr_t>(present);
  return a != b && (a < b ? b - a : a - b) < bytes;
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<Kernel*>(data);
  Tensor in[MAX_READ];
  for (size_t i = 0; i < kernel.op->num_read(); i++) {
    const OrtValue* value = nullptr;
    QWONNX_RETURN_IF_ERROR(api.get_input(context, i, &value));
    QWONNX_RETURN_IF_ERROR(read_tensor(input_names[i], value, kernel.op->element(i), in[i]));
  }
  Attention step;
  memset(static_cast<void*>(&step), 0, sizeof step);
  QWONNX_RETURN_IF_ERROR(read_step(kernel, in, step));
  void* output = nullptr;
  QWONNX_RETURN_IF_ERROR(make_output(context, 0, in[QUERY], &output));
  QWONNX_RETURN_IF_ERROR(make_output(context, 1, in[PAST_KEY], &step.present_key));
  QWONNX_RETURN_IF_ERROR(make_output(context, 2, in[PAST_VALUE], &step.present_value));
  step.output = static_cast<float*>(output);
  if (overlaps(step.past_key, step.present_key, step.cache_bytes()) ||
      overlaps(step.past_value, step.present_value, step.cache_bytes()))
    return refuse("a cache overlaps its past: bind both to the same buffer, or to two");
  return attention(step, {context});
}

void make(AttentionOperator& op, const char* name, CacheType type) {
  memset(static_cast<void*>(&op), 0, sizeof op);
  op.get_input_type = [](const OrtCustomOp* self, size_t index) { return of(self).element(index); };
  op.get_input_count = [](const OrtCustomOp* self) { return of(self).num_read() + 1; };
  op.get_output_type = [](const OrtCustomOp* self, size_t index) { return index ? of(self).cache_element() : FLOAT; };
  op.get_output_count = [](const OrtCustomOp*) { return static_cast<size_t>(3); };
  op.get_input_characteristic = [](const OrtCustomOp* self, size_t index) {
    return index == of(self).num_read() ? 1 : 0;  // optional
  };
  op.type = type;
  finish(op, name, create, compute);
}

AttentionOperator operators[3];

}  // namespace

OrtStatus* add_attention_operators(OrtCustomOpDomain* domain) {
  if (!operators[0].version) {
    make(operators[2], "GatedAttentionInt4", CacheType::INT4);
    make(operators[1], "GatedAttentionInt8", CacheType::INT8);
    make(operators[0], "GatedAttention", CacheType::FLOAT32);
  }
  for (const AttentionOperator& op : operators) QWONNX_RETURN_IF_ERROR(api.custom_op_domain_add(domain, &op));
  return nullptr;
}

}  // namespace qwonnx
