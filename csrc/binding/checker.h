// Small checks of one argument, under the name of the operator it belongs to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include <torch/csrc/stable/tensor.h>

namespace sift {

using torch::stable::Tensor;

// As Python prints a shape: (2, 8, 64), (3,), ().
struct Shape {
  std::span<const int64_t> sizes;

  friend std::ostream& operator<<(std::ostream& stream, Shape shape) {
    stream << '(';
    for (size_t i = 0; i < shape.sizes.size(); ++i) stream << (i ? ", " : "") << shape.sizes[i];
    return stream << (shape.sizes.size() == 1 ? ",)" : ")");
  }
};

// As the C shim numbers it, e.g. aoti_torch_dtype_float32(); Tensor::scalar_type() is a dozen calls.
inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// A tensor argument. Each question to a tensor is a call into Torch, so it is asked once.
struct Argument {
  Argument(const char* name, const Tensor& tensor)
      : name(name), tensor(tensor), dtype(dtype_of(tensor)) {
    int64_t rank = 0;
    int64_t* first_size = nullptr;
    int64_t* first_stride = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &rank));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &first_size));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &first_stride));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device_index));
    sizes = {first_size, static_cast<size_t>(rank)};
    strides = {first_stride, static_cast<size_t>(rank)};
  }

  static std::optional<Argument> of(const char* name, const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Argument>(std::in_place, name, *tensor) : std::nullopt;
  }

  template <class T>
  const T* data() const {
    return static_cast<const T*>(tensor.const_data_ptr());
  }

  const char* name;
  const Tensor& tensor;
  std::span<const int64_t> sizes;
  std::span<const int64_t> strides;
  int32_t dtype;
  int32_t device_type = 0;
  int32_t device_index = 0;
};

// As Python names it.
inline std::string dtype_name(int32_t dtype) {
  const std::pair<int32_t, const char*> names[] = {
      {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_float32(), "float32"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},
      {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_int64(), "int64"},
      {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int16(), "int16"},
      {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_uint8(), "uint8"},
      {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_complex64(), "complex64"},
      {aoti_torch_dtype_complex128(), "complex128"},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn"},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2"},
  };
  for (const auto& [number, name] : names) {
    if (number == dtype) return name;
  }
  return "another one";
}

// As Python names it; an index below 0 stands for the only one.
inline std::string device_name(int32_t type, int32_t index) {
  const std::pair<int32_t, const char*> names[] = {{aoti_torch_device_type_cpu(), "cpu"},
                                                   {aoti_torch_device_type_cuda(), "cuda"},
                                                   {aoti_torch_device_type_meta(), "meta"}};
  for (const auto& [number, name] : names) {
    if (number != type) continue;
    return index < 0 ? std::string(name) : std::string(name) + ":" + std::to_string(index);
  }
  return "another one";
}

class Checker {
 public:
  // `first` names the operator's first argument: the others have to be on its device.
  Checker(const char* op, const Argument& first) : op_(op), first_(first) {}

  // Parts are what a stream can print; they are printed only when the check fails.
  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (holds) [[likely]]
      return;
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }

  void device_and_dtype(const Argument& argument, int32_t dtype) const {
    if (argument.device_type != first_.device_type || argument.device_index != first_.device_index)
        [[unlikely]] {
      require(false, argument.name, " must be on the device of ", first_.name, " = ",
              device_name(first_.device_type, first_.device_index), ", got ",
              device_name(argument.device_type, argument.device_index));
    }
    if (argument.dtype != dtype) [[unlikely]] {
      require(false, argument.name, " must have dtype ", dtype_name(dtype), ", got ",
              dtype_name(argument.dtype));
    }
  }

  // `letters` name the sizes in messages, e.g. "[B, HQ, D]".
  void rank(const Argument& argument, size_t wanted, const char* letters) const {
    require(argument.sizes.size() == wanted, argument.name, " must have shape ", letters, ", got ",
            Shape{argument.sizes});
  }

  void shape(const Argument& argument, std::initializer_list<int64_t> wanted,
             const char* letters) const {
    require(std::ranges::equal(argument.sizes, wanted), argument.name, " must have shape ", letters,
            " = ", Shape{{wanted.begin(), wanted.size()}}, ", got ", Shape{argument.sizes});
  }

  void last_stride_is_one(const Argument& argument) const {
    require(argument.sizes.back() <= 1 || argument.strides.back() == 1, argument.name,
            " must have a last stride of 1, got ", argument.strides.back());
  }

  void contiguous(const Argument& argument) const {
    require(argument.tensor.is_contiguous(), argument.name, " must be contiguous, got strides ",
            Shape{argument.strides});
  }

  void at_least_zero(const char* name, double value) const {
    require(value >= 0.0 && std::isfinite(value), name,
            " must be a finite number of at least 0, got ", value);
  }

 private:
  const char* op_;
  const Argument& first_;
};

}  // namespace sift
