// Small checks of one argument, under the name of the operator it belongs to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace sift {

using torch::headeronly::ScalarType;
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

inline Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {{sizes.data(), sizes.size()}};
}

// As Python names a dtype.
inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

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

  void dtype(const char* name, const Tensor& tensor, ScalarType wanted) const {
    const ScalarType got = tensor.scalar_type();
    if (got != wanted) [[unlikely]]
      require(false, name, " must have dtype ", dtype_name(wanted), ", got ", dtype_name(got));
  }

  // `letters` name the sizes in messages, e.g. "[B, HQ, D]".
  void rank(const char* name, const Tensor& tensor, int64_t wanted, const char* letters) const {
    require(tensor.dim() == wanted, name, " must have shape ", letters, ", got ", shape_of(tensor));
  }

  void shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> wanted,
             const char* letters) const {
    const std::span<const int64_t> sizes = shape_of(tensor).sizes;
    require(std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end()), name,
            " must have shape ", letters, " = ", Shape{{wanted.begin(), wanted.size()}}, ", got ",
            Shape{sizes});
  }

  void last_stride_is_one(const char* name, const Tensor& tensor) const {
    const int64_t last = tensor.dim() - 1;
    require(tensor.size(last) <= 1 || tensor.stride(last) == 1, name,
            " must have a last stride of 1, got ", tensor.stride(last));
  }

  void contiguous(const char* name, const Tensor& tensor) const {
    const auto strides = tensor.strides();
    require(tensor.is_contiguous(), name, " must be contiguous, got strides ",
            Shape{{strides.data(), strides.size()}});
  }

  void at_least_zero(const char* name, double value) const {
    require(value >= 0.0 && std::isfinite(value), name,
            " must be a finite number of at least 0, got ", value);
  }

 private:
  const char* op_;
};

}  // namespace sift
