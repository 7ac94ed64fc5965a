// ONNX Runtime's C interface by number. No Python package holds its header; OrtApi is a table of function pointers that
// only ever grows, so the few slots used here keep their numbers. register.cpp tests them when the library is loaded.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace qwonnx {

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtApi;

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

constexpr uint32_t API_VERSION = 18;
constexpr int INVALID_ARGUMENT = 2;
constexpr int ANY_TYPE = 0, FLOAT = 1, UINT8 = 2, BFLOAT16 = 16;  // ONNXTensorElementDataType; any: of an input

struct Api {
  OrtStatus* (*create_status)(int code, const char* message);                              // 0
  const char* (*get_error_message)(const OrtStatus*);                                      // 2
  OrtStatus* (*create_custom_op_domain)(const char* name, OrtCustomOpDomain** out);        // 26
  OrtStatus* (*custom_op_domain_add)(OrtCustomOpDomain*, const struct OrtCustomOp*);       // 27
  OrtStatus* (*add_custom_op_domain)(OrtSessionOptions*, OrtCustomOpDomain*);              // 28
  OrtStatus* (*get_tensor_mutable_data)(OrtValue*, void** out);                            // 51
  OrtStatus* (*get_tensor_element_type)(const OrtTensorTypeAndShapeInfo*, int* out);       // 60
  OrtStatus* (*get_dimensions_count)(const OrtTensorTypeAndShapeInfo*, size_t* out);       // 61
  OrtStatus* (*get_dimensions)(const OrtTensorTypeAndShapeInfo*, int64_t* out, size_t);    // 62
  OrtStatus* (*get_tensor_type_and_shape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);   // 65
  OrtStatus* (*get_attribute_float)(const OrtKernelInfo*, const char* name, float* out);   // 85
  OrtStatus* (*get_attribute_int64)(const OrtKernelInfo*, const char* name, int64_t* out);  // 86
  OrtStatus* (*get_input)(const OrtKernelContext*, size_t index, const OrtValue** out);    // 90
  OrtStatus* (*get_output)(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**);  // 91
  void (*release_status)(OrtStatus*);                                                      // 93
  void (*release_tensor_type_and_shape)(OrtTensorTypeAndShapeInfo*);                       // 99
  OrtStatus* (*get_constant_input)(const OrtKernelInfo*, size_t, int* is_constant, const OrtValue**);  // 249
  // Calls work(data, 0 .. total - 1) on the session's own threads, in `batches` portions that threads take in turn.
  OrtStatus* (*parallel_for)(const OrtKernelContext*, void (*work)(void*, size_t), size_t total, size_t batches,
                             void* data);                                                  // 274

  void fill(const OrtApi* table) {
    const auto slots = reinterpret_cast<void (*const*)()>(table);
    take(create_status, slots[0]);
    take(get_error_message, slots[2]);
    take(create_custom_op_domain, slots[26]);
    take(custom_op_domain_add, slots[27]);
    take(add_custom_op_domain, slots[28]);
    take(get_tensor_mutable_data, slots[51]);
    take(get_tensor_element_type, slots[60]);
    take(get_dimensions_count, slots[61]);
    take(get_dimensions, slots[62]);
    take(get_tensor_type_and_shape, slots[65]);
    take(get_attribute_float, slots[85]);
    take(get_attribute_int64, slots[86]);
    take(get_input, slots[90]);
    take(get_output, slots[91]);
    take(release_status, slots[93]);
    take(release_tensor_type_and_shape, slots[99]);
    take(get_constant_input, slots[249]);
    take(parallel_for, slots[274]);
  }

 private:
  template <typename Function>
  static void take(Function& to, void (*from)()) {
    to = reinterpret_cast<Function>(from);
  }
};

extern Api api;

// The struct by which ONNX Runtime knows an operator. Its version says how many members there are to be read.
struct OrtCustomOp {
  uint32_t version;
  void* create_kernel;
  const char* (*get_name)(const OrtCustomOp*);
  const char* (*get_execution_provider)(const OrtCustomOp*);
  int (*get_input_type)(const OrtCustomOp*, size_t);
  size_t (*get_input_count)(const OrtCustomOp*);
  int (*get_output_type)(const OrtCustomOp*, size_t);
  size_t (*get_output_count)(const OrtCustomOp*);
  void* compute;
  void (*destroy)(void* kernel);
  int (*get_input_characteristic)(const OrtCustomOp*, size_t);
  int (*get_output_characteristic)(const OrtCustomOp*, size_t);
  int (*get_input_memory_type)(const OrtCustomOp*, size_t);
  int (*get_variadic_input_min_arity)(const OrtCustomOp*);
  int (*get_variadic_input_homogeneity)(const OrtCustomOp*);
  int (*get_variadic_output_min_arity)(const OrtCustomOp*);
  int (*get_variadic_output_homogeneity)(const OrtCustomOp*);
  OrtStatus* (*create_kernel_v2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*compute_v2)(void* kernel, OrtKernelContext*);
  void* infer_output_shape;
  void* get_start_version;
  void* get_end_version;
  void* get_may_inplace;
  void* release_may_inplace;
  void* get_alias_map;
  void* release_alias_map;
};

}  // namespace qwonnx
