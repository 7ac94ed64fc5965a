#include "tensors.h"

#include <stdarg.h>
#include <stdio.h>

namespace qwonnx {

Api api;

OrtStatus* refuse(const char* format, ...) {
  char message[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return api.create_status(INVALID_ARGUMENT, message);
}

// ANY_TYPE stands for FLOAT and BFLOAT16. `type` becomes the tensor's.
static OrtStatus* read_typed(const char* name, const OrtValue* value, int element_type, Tensor& out, int& type) {
  if (!value) return refuse("%s is missing", name);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  QWONNX_RETURN_IF_ERROR(api.get_tensor_type_and_shape(value, &info));
  OrtStatus* status = api.get_tensor_element_type(info, &type);
  if (!status) status = api.get_dimensions_count(info, &out.rank);
  if (!status && (out.rank == 0 || out.rank > MAX_RANK)) status = refuse("%s has %zu dimensions", name, out.rank);
  if (!status) status = api.get_dimensions(info, out.dims, out.rank);
  api.release_tensor_type_and_shape(info);
  if (status) return status;
  if (element_type == ANY_TYPE && type != FLOAT && type != BFLOAT16)
    return refuse("%s has element type %d; %d (float) and %d (bfloat16) are supported", name, type, FLOAT, BFLOAT16);
  if (element_type != ANY_TYPE && type != element_type)
    return refuse("%s has element type %d instead of %d", name, type, element_type);
  QWONNX_RETURN_IF_ERROR(api.get_tensor_mutable_data(const_cast<OrtValue*>(value), &out.data));
  const unsigned size = type == FLOAT ? 4 : type == BFLOAT16 ? 2 : 1;
  if (reinterpret_cast<uintptr_t>(out.data) % size != 0)
    return refuse("%s does not lie at a multiple of %u bytes: its offset in the weight file is wrong", name, size);
  return nullptr;
}

OrtStatus* read_tensor(const char* name, const OrtValue* value, int element_type, Tensor& out) {
  int type = 0;
  return read_typed(name, value, element_type, out, type);
}

OrtStatus* read_floats(const char* name, const OrtValue* value, Tensor& out, FloatMatrix& matrix) {
  int type = 0;
  QWONNX_RETURN_IF_ERROR(read_typed(name, value, ANY_TYPE, out, type));
  matrix = {out.data, type == BFLOAT16};
  return nullptr;
}

static bool has_shape(const Tensor& tensor, const int64_t* dims, size_t rank) {
  if (tensor.rank != rank) return false;
  for (size_t i = 0; i < rank; i++)
    if (tensor.dims[i] != dims[i]) return false;
  return true;
}

OrtStatus* read_blocks(const char* name, const WeightTensors& tensors, int64_t bits, int64_t num_stacked, Blocks& out) {
  if (bits != 2 && bits != 4 && bits != 8)
    return refuse("%s: codes of %lld bits; 2, 4 and 8 are supported", name, static_cast<long long>(bits));
  const Tensor &codes = tensors.codes, &scales = tensors.scales;
  const size_t lead = num_stacked ? 1 : 0;
  if (scales.rank != lead + 2) return refuse("%s: scales have %zu dimensions", name, scales.rank);
  for (size_t i = 0; i < scales.rank; i++)
    if (scales.dims[i] <= 0) return refuse("%s: scales are empty", name);
  for (size_t i = 0; i < codes.rank; i++)
    if (codes.dims[i] <= 0) return refuse("%s: codes are empty", name);
  if (lead && (scales.dims[0] != num_stacked || codes.dims[0] != num_stacked))
    return refuse("%s: scales of %lld and codes of %lld experts, and the router chooses among %lld", name,
                  static_cast<long long>(scales.dims[0]), static_cast<long long>(codes.dims[0]),
                  static_cast<long long>(num_stacked));
  const int64_t rows = scales.dims[lead], blocks = scales.dims[lead + 1];
  int64_t row_bytes = 0;
  if (codes.rank == lead + 2) {
    row_bytes = codes.dims[lead + 1];
  } else if (!lead && codes.rank == 3 && codes.dims[1] == blocks) {
    row_bytes = codes.dims[1] * codes.dims[2];  // cannot overflow: the tensor is in memory
  }
  if (row_bytes == 0 || codes.dims[lead] != rows || row_bytes % blocks != 0)
    return refuse("%s: codes do not have the rows and blocks of their scales (%lld rows of %lld blocks)", name,
                  static_cast<long long>(rows), static_cast<long long>(blocks));
  const int64_t block_bytes = row_bytes / blocks, block = block_bytes * 8 / bits;
  if (block != 16 && block != 32 && block != 64 && block != 128 && block != 256)
    return refuse("%s: blocks of %lld columns; 16, 32, 64, 128 and 256 are supported", name, static_cast<long long>(block));
  if (tensors.has_zero_points) {
    const int64_t bytes = (blocks * bits + 7) / 8;
    const int64_t shape[3] = {lead ? num_stacked : rows, lead ? rows : bytes, bytes};
    // MatMulNBits also takes them as one row.
    const int64_t flat[1] = {rows * bytes};
    if (!has_shape(tensors.zero_points, shape, lead + 2) && (lead || !has_shape(tensors.zero_points, flat, 1)))
      return refuse("%s: zero points do not have %lld bytes a row", name, static_cast<long long>(bytes));
  }
  out.codes = static_cast<const uint8_t*>(codes.data);
  out.scales = static_cast<const float*>(scales.data);
  out.zero_points = tensors.has_zero_points ? static_cast<const uint8_t*>(tensors.zero_points.data) : nullptr;
  out.rows = static_cast<size_t>(rows);
  out.columns = static_cast<size_t>(blocks * block);
  out.bits = static_cast<unsigned>(bits);
  out.block = static_cast<unsigned>(block);
  return nullptr;
}

namespace {

template <typename Value>
Value value_or(OrtStatus* (*get)(const OrtKernelInfo*, const char*, Value*), const OrtKernelInfo* info, const char* name,
               Value otherwise) {
  Value value = otherwise;
  if (OrtStatus* status = get(info, name, &value)) {
    api.release_status(status);
    return otherwise;
  }
  return value;
}

}  // namespace

int64_t attribute(const OrtKernelInfo* info, const char* name, int64_t otherwise) {
  return value_or(api.get_attribute_int64, info, name, otherwise);
}

float float_attribute(const OrtKernelInfo* info, const char* name, float otherwise) {
  return value_or(api.get_attribute_float, info, name, otherwise);
}

}  // namespace qwonnx
