// Tensors for results and workspace.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "binding/checker.h"

namespace sift {

// As the C shim numbers devices; the index of the CPU is -1.
struct Device {
  int32_t type;
  int32_t index;
};

inline Device device_of(const torch::stable::Tensor& tensor) {
  Device device{};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}

// A contiguous tensor; dtype as the C shim counts them, e.g. aoti_torch_dtype_float32(). A short
// call spends most of its time on allocations, and this takes half as long as
// torch::stable::empty, which goes through the dispatcher.
inline torch::stable::Tensor allocate(std::initializer_list<int64_t> sizes, int32_t dtype,
                                      Device device) {
  const auto rank = static_cast<int64_t>(sizes.size());
  std::array<int64_t, 3> strides{};
  int64_t stride = 1;
  for (int64_t i = rank - 1; i >= 0; --i) {
    strides.at(i) = stride;
    stride *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(rank, sizes.begin(), strides.data(), dtype, device.type,
                               device.index, &handle) != AOTI_TORCH_SUCCESS) {
    // Torch has printed why. Programs look for " out of memory." to try again with less.
    throw std::runtime_error("sift_attention: " + device_name(device.type, device.index) +
                             " is out of memory. A tensor of " + std::to_string(stride) +
                             " elements could not be allocated");
  }
  return torch::stable::Tensor(handle);
}

}  // namespace sift
