// Stands for ONNX Runtime: an API table of our own, through which the library registers its operators, creates kernels and
// runs them. Every tensor has memory of its exact size, so that the sanitizers see each byte too many.
//
//   fuzz SECONDS SEED
#include "api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <map>
#include <random>
#include <string>
#include <vector>

namespace qwonnx {

struct OrtStatus {
  std::string message;
};
struct OrtTensorTypeAndShapeInfo {
  int type;
  std::vector<int64_t> dims;
};
struct OrtValue {
  OrtTensorTypeAndShapeInfo info;
  void* data;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> operators;
};
struct OrtSessionOptions {};
struct OrtKernelInfo {
  std::map<std::string, double> attributes;
  std::vector<OrtValue*> constants;  // by input; null: not a constant
};
struct OrtKernelContext {
  std::vector<OrtValue*> inputs;
  std::vector<OrtValue*> outputs;
  std::vector<OrtValue*> in_place;  // by output: the input whose memory it is to have, or null
  std::vector<int> output_types;
};

}  // namespace qwonnx

extern "C" qwonnx::OrtStatus* RegisterCustomOps(qwonnx::OrtSessionOptions*, const qwonnx::OrtApiBase*);
extern "C" int qwonnx_native_select(const char*);
extern "C" int qwonnx_native_self_test();

namespace {

using namespace qwonnx;

constexpr int INT8 = 3, INT64 = 7;
constexpr int64_t MOST_ELEMENTS = 1 << 18;

std::mt19937_64 random_bits;
OrtCustomOpDomain domain;
uint64_t statuses = 0;  // alive

int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_bits() % static_cast<uint64_t>(high - low + 1)); }
bool chance(int percent) { return pick(1, 100) <= percent; }
template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[pick(0, static_cast<int64_t>(values.size()) - 1)];
}

size_t size_of(int type) { return type == FLOAT ? 4 : type == BFLOAT16 ? 2 : type == INT64 ? 8 : 1; }

// -1: too large to be made.
int64_t elements(const std::vector<int64_t>& dims) {
  int64_t total = 1;
  for (int64_t dim : dims)
    if (dim < 0 || __builtin_mul_overflow(total, dim, &total)) return -1;
  return total <= MOST_ELEMENTS ? total : -1;
}

OrtStatus* status_of(const char* message) {
  statuses++;
  return new OrtStatus{message};
}

OrtValue* tensor(int type, std::vector<int64_t> dims) {
  const int64_t count = elements(dims);
  if (count < 0) return nullptr;
  OrtValue* value = new OrtValue{{type, std::move(dims)}, malloc(static_cast<size_t>(count) * size_of(type))};
  return value;
}

void drop(OrtValue* value) {
  if (!value) return;
  free(value->data);
  delete value;
}

// ---- the API's functions ----

OrtStatus* create_status(int, const char* message) { return status_of(message); }
const char* get_error_message(const OrtStatus* status) { return status->message.c_str(); }
void release_status(OrtStatus* status) {
  statuses--;
  delete status;
}
OrtStatus* create_domain(const char*, OrtCustomOpDomain** out) {
  *out = &domain;
  return nullptr;
}
OrtStatus* domain_add(OrtCustomOpDomain* to, const OrtCustomOp* op) {
  to->operators.push_back(op);
  return nullptr;
}
OrtStatus* add_domain(OrtSessionOptions*, OrtCustomOpDomain*) { return nullptr; }
OrtStatus* get_data(OrtValue* value, void** out) {
  *out = value->data;
  return nullptr;
}
OrtStatus* get_type(const OrtTensorTypeAndShapeInfo* info, int* out) {
  *out = info->type;
  return nullptr;
}
OrtStatus* get_rank(const OrtTensorTypeAndShapeInfo* info, size_t* out) {
  *out = info->dims.size();
  return nullptr;
}
OrtStatus* get_dims(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) {
  for (size_t i = 0; i < count; i++) out[i] = info->dims.at(i);
  return nullptr;
}
OrtStatus* get_info(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  *out = new OrtTensorTypeAndShapeInfo(value->info);
  return nullptr;
}
void release_info(OrtTensorTypeAndShapeInfo* info) { delete info; }
OrtStatus* get_int(const OrtKernelInfo* info, const char* name, int64_t* out) {
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end()) return status_of("there is no such attribute");
  const double value = found->second;
  *out = value >= 9.2e18 ? INT64_MAX : value <= -9.2e18 ? INT64_MIN : static_cast<int64_t>(value);
  return nullptr;
}
OrtStatus* get_float(const OrtKernelInfo* info, const char* name, float* out) {
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end()) return status_of("there is no such attribute");
  *out = static_cast<float>(found->second);
  return nullptr;
}
OrtStatus* get_constant(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) {
  *out = index < info->constants.size() ? info->constants[index] : nullptr;
  *is_constant = *out != nullptr;
  return nullptr;
}
OrtStatus* get_input(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  *out = index < context->inputs.size() ? context->inputs[index] : nullptr;
  return nullptr;
}
OrtStatus* get_output(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, OrtValue** out) {
  std::vector<int64_t> shape(dims, dims + rank);
  OrtValue* value = nullptr;
  if (OrtValue* same = context->in_place.at(index); same && same->info.dims == shape) {
    value = new OrtValue{same->info, same->data};
  } else {
    value = tensor(context->output_types.at(index), shape);
    if (!value) return status_of("the output is too large");
    context->in_place[index] = nullptr;
  }
  context->outputs.at(index) = *out = value;
  return nullptr;
}
// In some order, as threads would.
OrtStatus* parallel_for(const OrtKernelContext*, void (*work)(void*, size_t), size_t total, size_t, void* data) {
  const size_t first = total ? random_bits() % total : 0;
  const bool backwards = chance(50);
  for (size_t i = 0; i < total; i++) work(data, backwards ? (first + total - i) % total : (first + i) % total);
  return nullptr;
}
void missing() { abort(); }

const void* table[512];
const OrtApi* get_api(uint32_t) { return reinterpret_cast<const OrtApi*>(table); }
const char* get_version() { return "fuzz"; }

template <typename Function>
void put(size_t slot, Function function) {
  table[slot] = reinterpret_cast<const void*>(function);
}

// ---- cases ----

struct Input {
  int type;
  std::vector<int64_t> dims;
  int64_t least = 0, most = 255;  // of whole numbers
};

struct Case {
  std::vector<Input> inputs;
  std::map<std::string, double> attributes;
  std::vector<std::pair<size_t, size_t>> states;  // output, input that it may be in place of
  size_t first_constant = SIZE_MAX;
};

struct WeightCase {
  int64_t bits, block, rows, blocks;
};

void add_weight(Case& to, const WeightCase& w, int64_t stack, bool zero_points) {
  std::vector<int64_t> lead;
  if (stack) lead.push_back(stack);
  const auto with = [&](std::initializer_list<int64_t> rest) {
    std::vector<int64_t> dims = lead;
    dims.insert(dims.end(), rest);
    return dims;
  };
  to.inputs.push_back({UINT8, with({w.rows, w.blocks * w.block * w.bits / 8})});
  to.inputs.push_back({FLOAT, with({w.rows, w.blocks})});
  if (zero_points) to.inputs.push_back({UINT8, with({w.rows, (w.blocks * w.bits + 7) / 8})});
}

Case linear(bool zero_points) {
  Case made;
  const WeightCase w = {one_of<int64_t>({2, 4, 8}), one_of<int64_t>({16, 32, 64, 128, 256}), pick(1, 40), pick(1, 9)};
  made.inputs.push_back({FLOAT, {pick(0, 20), w.blocks * w.block}});
  if (chance(30)) made.inputs[0].dims.insert(made.inputs[0].dims.begin(), 1);
  made.first_constant = 1;
  add_weight(made, w, 0, zero_points);
  made.attributes = {{"bits", w.bits}, {"accuracy_level", one_of<double>({4, 1})}};
  return made;
}

Case norm_linear(bool zero_points) {
  Case made = linear(zero_points);
  made.inputs.insert(made.inputs.begin() + 1, {FLOAT, {made.inputs[0].dims.back()}});
  made.attributes["epsilon"] = 1e-6;
  return made;
}

Case rotary_angles() {
  const int64_t half = pick(1, 20);
  Case made;
  made.inputs = {{INT64, {3, pick(0, 3), one_of<int64_t>({0, 1, 1, 5, 200})}, 0, 1 << 20}, {FLOAT, {half}}, {FLOAT, {3, 1, 1, half}}};
  made.attributes = {{"factor", 1}};
  return made;
}

Case add_adapters() {
  const int64_t rows = pick(0, 5), tokens = one_of<int64_t>({0, 1, 1, 3, 20}), inputs = pick(1, 40), outputs = pick(1, 70);
  const int64_t slots = pick(1, 4), rank = one_of<int64_t>({0, 1, 5, 16, 40}), offset = pick(0, 9);
  Case made;
  made.inputs = {{FLOAT, {rows, tokens, outputs}},
                 {FLOAT, {rows, tokens, inputs}},
                 {INT64, {rows}, 0, slots - 1},
                 {FLOAT, {slots, offset + inputs + outputs + pick(0, 3), rank}}};
  made.attributes = {{"offset", static_cast<double>(offset)}};
  return made;
}

Case experts(bool zero_points) {
  Case made;
  const int64_t count = pick(1, 6), block = one_of<int64_t>({16, 32, 64}), tokens = pick(0, 12);
  const WeightCase up = {one_of<int64_t>({2, 4, 8}), block, 2 * block * pick(1, 2), pick(1, 3)};
  const WeightCase down = {one_of<int64_t>({2, 4, 8}), block, up.blocks * block, up.rows / 2 / block};
  made.inputs.push_back({FLOAT, {tokens, up.blocks * block}});
  made.inputs.push_back({FLOAT, {tokens, count}});
  made.first_constant = 2;
  add_weight(made, up, count, zero_points);
  add_weight(made, down, count, zero_points);
  made.attributes = {{"top_k", static_cast<double>(pick(1, count))},
                     {"gate_up_bits", up.bits},
                     {"down_bits", down.bits},
                     {"accuracy_level", one_of<double>({4, 1})}};
  return made;
}

Case delta_rule() {
  const int64_t batch = pick(0, 3), tokens = one_of<int64_t>({0, 1, 1, 2, 3, 17, 40}), keys = pick(1, 2);
  const int64_t values = keys * pick(1, 3), key_dim = pick(1, 40), value_dim = pick(1, 40);
  Case made;
  made.inputs = {{FLOAT, {batch, tokens, 2 * keys * key_dim + values * value_dim}},
                 {FLOAT, {batch, tokens, values}},
                 {FLOAT, {batch, tokens, values}},
                 {FLOAT, {values}},
                 {FLOAT, {values}},
                 {FLOAT, {batch, values, key_dim, value_dim}}};
  made.attributes = {{"num_key_heads", static_cast<double>(keys)}, {"epsilon", 1e-6}};
  made.states = {{1, 5}};
  return made;
}

Case causal_conv() {
  const int64_t batch = pick(0, 3), tokens = one_of<int64_t>({0, 1, 1, 2, 5, 70, 130}), channels = pick(0, 40), taps = pick(1, 16);
  Case made;
  made.inputs = {{FLOAT, {batch, tokens, channels}}, {FLOAT, {channels, 1, taps}}, {FLOAT, {batch, channels, taps - 1}}};
  made.states = {{1, 2}};
  return made;
}

int gates_type() { return one_of<int>({FLOAT, BFLOAT16}); }

Case mixture(bool zero_points) {
  Case made;
  const int64_t count = pick(1, 6), block = one_of<int64_t>({16, 32, 64}), tokens = pick(0, 12), blocks = pick(1, 3);
  const int64_t hidden = block * blocks;
  made.inputs = {{FLOAT, {1, tokens, hidden}}, {FLOAT, {1, tokens, hidden}}, {FLOAT, {hidden}}, {gates_type(), {count + 1, hidden}}};
  made.first_constant = 2;
  for (const char* name : {"", "shared_"}) {
    const int64_t stack = *name ? 0 : count;
    const WeightCase up = {one_of<int64_t>({2, 4, 8}), block, 2 * block * pick(1, 2), blocks};
    const WeightCase down = {one_of<int64_t>({2, 4, 8}), block, hidden, up.rows / 2 / block};
    add_weight(made, up, stack, zero_points);
    add_weight(made, down, stack, zero_points);
    made.attributes[std::string(name) + "gate_up_bits"] = static_cast<double>(up.bits);
    made.attributes[std::string(name) + "down_bits"] = static_cast<double>(down.bits);
  }
  made.attributes["top_k"] = static_cast<double>(pick(1, count));
  made.attributes["epsilon"] = 1e-6;
  made.attributes["accuracy_level"] = one_of<double>({4, 1});
  return made;
}

Case delta_net(bool zero_points) {
  const int64_t batch = pick(0, 3), tokens = one_of<int64_t>({0, 1, 1, 1, 2, 17}), keys = pick(1, 2), taps = pick(1, 16);
  const int64_t heads = keys * pick(1, 3), key_dim = pick(1, 40), value_dim = pick(1, 40), values = heads * value_dim;
  const int64_t channels = 2 * keys * key_dim + values;
  const WeightCase qkv = {one_of<int64_t>({2, 4, 8}), one_of<int64_t>({16, 32, 64}), channels, pick(1, 3)};
  const int64_t hidden = qkv.block * qkv.blocks, z_block = one_of<int64_t>({16, qkv.block});
  const WeightCase z = {one_of<int64_t>({2, 4, 8}), z_block, values, hidden / z_block};
  Case made;
  made.inputs = {{FLOAT, {batch, tokens, hidden}}, {FLOAT, {hidden}}, {gates_type(), {2 * heads, hidden}}};
  add_weight(made, qkv, 0, zero_points);
  add_weight(made, z, 0, zero_points);
  for (const std::vector<int64_t>& dims : std::vector<std::vector<int64_t>>{
           {channels, 1, taps}, {heads}, {heads}, {value_dim}, {batch, channels, taps - 1}, {batch, heads, key_dim, value_dim}})
    made.inputs.push_back({FLOAT, dims});
  const size_t num_inputs = made.inputs.size();
  made.states = {{1, num_inputs - 2}, {2, num_inputs - 1}};
  made.attributes = {{"num_key_heads", static_cast<double>(keys)},
                     {"epsilon", 1e-6},
                     {"norm_epsilon", 1e-6},
                     {"out_norm_epsilon", 1e-6},
                     {"qkv_bits", static_cast<double>(qkv.bits)},
                     {"z_bits", static_cast<double>(z.bits)},
                     {"accuracy_level", one_of<double>({4, 1})}};
  return made;
}

Case attention_inputs(bool zero_points) {
  const int64_t batch = pick(0, 3), tokens = one_of<int64_t>({0, 1, 1, 1, 2, 17, 70}), kv_heads = pick(1, 2);
  const int64_t heads = kv_heads * pick(1, 3), dim = pick(2, 40), half = pick(1, dim / 2);
  const int64_t block = one_of<int64_t>({16, 32, 64}), hidden = block * pick(1, 3);
  Case made;
  made.inputs = {{FLOAT, {batch, tokens, hidden}}, {FLOAT, {batch, tokens, half}}, {FLOAT, {batch, tokens, half}}, {FLOAT, {hidden}}};
  made.first_constant = 3;
  for (const char* name : {"q", "k", "v"}) {
    const int64_t own = one_of<int64_t>({16, block});
    const WeightCase w = {one_of<int64_t>({2, 4, 8}), own, (*name == 'q' ? 2 * heads : kv_heads) * dim, hidden / own};
    add_weight(made, w, 0, zero_points);
    made.attributes[std::string(name) + "_bits"] = static_cast<double>(w.bits);
  }
  for (int i = 0; i < 2; i++) made.inputs.push_back({FLOAT, {dim}});
  for (const char* name : {"norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"}) made.attributes[name] = 1e-6;
  made.attributes["accuracy_level"] = one_of<double>({4, 1});
  return made;
}

Case gated_norm() {
  const int64_t width = pick(1, 40), columns = width * pick(0, 4);
  Case made;
  made.inputs = {{FLOAT, {pick(0, 3), pick(0, 9), columns}}, {}, {FLOAT, {width}}};
  made.inputs[1] = made.inputs[0];
  made.attributes = {{"epsilon", 1e-6}};
  return made;
}

Case attention(int bits) {
  const int64_t batch = pick(0, 3), tokens = one_of<int64_t>({0, 1, 1, 2, 9, 33}), keys = pick(1, 3), group = pick(1, 4);
  const int64_t dim = 2 * pick(1, 20), capacity = tokens + pick(0, 40), stored = bits == 4 ? dim / 2 : dim;
  const int type = bits == 0 ? FLOAT : bits == 8 ? INT8 : UINT8;
  Case made;
  made.inputs = {{FLOAT, {batch, tokens, keys * group * dim}},     {FLOAT, {batch, tokens, keys * dim}},
                 {FLOAT, {batch, tokens, keys * dim}},             {FLOAT, {batch, tokens, keys * group * dim}},
                 {type, {batch, keys, capacity, stored}},          {type, {batch, keys, capacity, stored}},
                 {INT64, {batch}, 0, capacity - tokens}};
  if (bits)
    for (int i = 0; i < 2; i++) made.inputs.push_back({FLOAT, {1, keys, 1, dim}});
  made.attributes = {{"num_heads", static_cast<double>(keys * group)}};
  made.states = {{1, 4}, {2, 5}};
  return made;
}

Case valid_case(const std::string& name) {
  if (name == "QuantizedLinear" || name == "AffineLinear") return linear(name[0] == 'A');
  if (name == "QuantizedNormLinear" || name == "AffineNormLinear") return norm_linear(name[0] == 'A');
  if (name == "RotaryAngles") return rotary_angles();
  if (name == "AddAdapters") return add_adapters();
  if (name == "QuantizedExperts" || name == "AffineExperts") return experts(name[0] == 'A');
  if (name == "QuantizedMixture" || name == "AffineMixture") return mixture(name[0] == 'A');
  if (name == "QuantizedDeltaNet" || name == "AffineDeltaNet") return delta_net(name[0] == 'A');
  if (name == "QuantizedAttentionInputs" || name == "AffineAttentionInputs") return attention_inputs(name[0] == 'A');
  if (name == "GatedDeltaRule") return delta_rule();
  if (name == "CausalConv") return causal_conv();
  if (name == "GatedRMSNorm") return gated_norm();
  if (name == "GatedAttention") return attention(0);
  if (name == "GatedAttentionInt8") return attention(8);
  if (name == "GatedAttentionInt4") return attention(4);
  fprintf(stderr, "the driver does not know the operator %s: add it to valid_case()\n", name.c_str());
  exit(1);
}

void mutate(Case& made) {
  Input& input = made.inputs[static_cast<size_t>(pick(0, static_cast<int64_t>(made.inputs.size()) - 1))];
  std::vector<int64_t>& dims = input.dims;
  int64_t* dim = dims.empty() ? nullptr : &dims[static_cast<size_t>(pick(0, static_cast<int64_t>(dims.size()) - 1))];
  switch (pick(0, 9)) {
    case 0: if (dim && *dim < MOST_ELEMENTS) *dim += one_of<int64_t>({-1, 1}); break;
    case 1: if (dim && *dim < MOST_ELEMENTS) *dim = one_of<int64_t>({0, 1, *dim * 2, *dim / 2, *dim * 3, *dim + 16}); break;
    case 2:  // no elements, and a size that must not be trusted
      if (dim && dims.size() > 1) {
        *dim = one_of<int64_t>({1ll << 31, 1ll << 40, 1ll << 62, INT64_MAX});
        dims[dim == &dims[0] ? 1 : 0] = 0;
      }
      break;
    case 3: if (dim) dims.erase(dims.begin() + (dim - &dims[0])); break;
    case 4: dims.insert(dims.begin() + pick(0, static_cast<int64_t>(dims.size())), one_of<int64_t>({0, 1, 1, 2})); break;
    case 5: for (size_t i = dims.size(); i > 1; i--) std::swap(dims[i - 1], dims[static_cast<size_t>(pick(0, static_cast<int64_t>(i) - 1))]); break;
    case 6: input.type = one_of<int>({FLOAT, BFLOAT16, UINT8, INT8, INT64}); break;
    case 7:
      if (!made.attributes.empty()) {
        auto at = made.attributes.begin();
        std::advance(at, pick(0, static_cast<int64_t>(made.attributes.size()) - 1));
        if (chance(20))
          made.attributes.erase(at);
        else
          at->second = one_of<double>({0, -1, 1, 2, 3, 4, 5, 8, 16, 1e3, 4294967296.0, -4294967296.0, 1e18, 1e300, -1e300});
      }
      break;
    case 8:
      input.least = one_of<int64_t>({INT64_MIN, -1, 0});
      input.most = one_of<int64_t>({0, 1000, INT64_MAX - 1});
      break;
    default: made.inputs.pop_back(); made.inputs.push_back({one_of<int>({FLOAT, BFLOAT16, UINT8}), {pick(0, 4), pick(0, 64)}});
  }
}

void fill(OrtValue& value, const Input& input, bool hostile) {
  const int64_t count = elements(value.info.dims);
  for (int64_t i = 0; i < count; i++) {
    if (input.type == FLOAT) {
      const float normal = static_cast<float>(pick(-1000, 1000)) / 500;
      static_cast<float*>(value.data)[i] =
          hostile && chance(5) ? one_of<float>({__builtin_nanf(""), __builtin_inff(), -__builtin_inff(), 3e38f, -3e38f, 1e-40f, 0})
                               : normal;
    } else if (input.type == BFLOAT16) {
      // Of ordinary size: a sign, an exponent from 2 ** -7 to 2, and any fraction; hostile ones are any.
      const uint64_t bits = random_bits();
      static_cast<uint16_t*>(value.data)[i] =
          static_cast<uint16_t>(hostile && chance(5) ? bits : (bits & 0x807f) | static_cast<uint64_t>(pick(120, 127)) << 7);
    } else if (input.type == INT64) {
      const uint64_t span = static_cast<uint64_t>(input.most) - static_cast<uint64_t>(input.least) + 1;
      static_cast<int64_t*>(value.data)[i] = static_cast<int64_t>(static_cast<uint64_t>(input.least) + (span ? random_bits() % span : 0));
    } else {
      static_cast<uint8_t*>(value.data)[i] = static_cast<uint8_t>(random_bits());
    }
  }
}

struct Counts {
  uint64_t accepted = 0, refused = 0;
};

void run_case(const OrtCustomOp* op, Counts& counts) {
  const std::string name = op->get_name(op);
  Case made = valid_case(name);
  const bool is_valid = chance(30);
  if (!is_valid)
    for (int64_t i = pick(1, 3); i > 0; i--) mutate(made);
  const bool hostile = chance(50);
  OrtKernelContext context;
  OrtKernelInfo info;
  info.attributes = made.attributes;
  bool usable = made.inputs.size() <= op->get_input_count(op);
  for (size_t i = made.inputs.size(); usable && i < op->get_input_count(op); i++)
    usable = op->get_input_characteristic(op, i) == 1;  // optional
  for (const Input& input : made.inputs) {
    OrtValue* value = tensor(input.type, input.dims);
    usable = usable && value;
    if (value) fill(*value, input, hostile);
    context.inputs.push_back(value);
  }
  if (usable) {
    const size_t num_outputs = op->get_output_count(op);
    context.outputs.resize(num_outputs);
    context.in_place.resize(num_outputs);
    for (size_t i = 0; i < num_outputs; i++) context.output_types.push_back(op->get_output_type(op, i));
    const bool in_place = chance(50);
    for (const auto& [output, input] : made.states)
      if (in_place && context.inputs[input]->info.type == context.output_types[output])
        context.in_place[output] = context.inputs[input];
    info.constants.resize(made.inputs.size());
    if (chance(50))
      for (size_t i = made.first_constant; i < made.inputs.size(); i++) info.constants[i] = context.inputs[i];
    void* kernel = nullptr;
    OrtStatus* status = op->create_kernel_v2(op, get_api(0), &info, &kernel);
    if (!status) {
      for (int64_t runs = pick(1, 2); runs > 0 && !status; runs--) {
        status = op->compute_v2(kernel, &context);
        for (size_t i = 0; i < num_outputs; i++) {
          if (context.outputs[i] && context.in_place[i]) context.outputs[i]->data = nullptr;
          drop(context.outputs[i]);
          context.outputs[i] = nullptr;
        }
      }
      op->destroy(kernel);
    }
    status ? counts.refused++ : counts.accepted++;
    if (status && is_valid) {
      fprintf(stderr, "%s refuses a valid call: %s\n", name.c_str(), status->message.c_str());
      abort();
    }
    if (status) release_status(status);
    if (statuses) {
      fprintf(stderr, "%s leaves a status behind\n", name.c_str());
      abort();
    }
  }
  for (OrtValue* value : context.inputs) drop(value);
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? atof(arguments[1]) : 60;
  random_bits.seed(count > 2 ? strtoull(arguments[2], nullptr, 10) : 1);
  for (const void*& slot : table) slot = reinterpret_cast<const void*>(missing);
  put(0, create_status);
  put(2, get_error_message);
  put(26, create_domain);
  put(27, domain_add);
  put(28, add_domain);
  put(51, get_data);
  put(60, get_type);
  put(61, get_rank);
  put(62, get_dims);
  put(65, get_info);
  put(85, get_float);
  put(86, get_int);
  put(90, get_input);
  put(91, get_output);
  put(93, release_status);
  put(99, release_info);
  put(249, get_constant);
  put(274, parallel_for);
  const OrtApiBase base = {get_api, get_version};
  OrtSessionOptions options;
  if (RegisterCustomOps(&options, &base) || domain.operators.empty() || qwonnx_native_self_test() != 1) {
    fprintf(stderr, "the library does not register its operators, or fails its self-test\n");
    return 1;
  }
  std::map<std::string, Counts> counts;
  const double end = now() + seconds;
  uint64_t cases = 0;
  do {
    while (!qwonnx_native_select(one_of<const char*>({"", "", "amx", "avx512", "avx2", "neon", "scalar"}))) {
    }
    const OrtCustomOp* op = domain.operators[static_cast<size_t>(pick(0, static_cast<int64_t>(domain.operators.size()) - 1))];
    run_case(op, counts[op->get_name(op)]);
    cases++;
  } while (now() < end);
  for (const auto& [name, each] : counts)
    printf("%-24s %9llu accepted %9llu refused\n", name.c_str(), static_cast<unsigned long long>(each.accepted),
           static_cast<unsigned long long>(each.refused));
  printf("%llu cases, no finding\n", static_cast<unsigned long long>(cases));
  return 0;
}
