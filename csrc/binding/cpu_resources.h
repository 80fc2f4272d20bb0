// Torch's memory and threads for the CPU operators, which are free of Torch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>

namespace sift {

// A contiguous tensor; dtype as the C shim counts them, e.g. aoti_torch_dtype_float32(). A short
// call spends most of its time on allocations, and this takes half as long as
// torch::stable::empty, which goes through the dispatcher.
inline torch::stable::Tensor allocate(std::initializer_list<int64_t> sizes, int32_t dtype) {
  const auto rank = static_cast<int64_t>(sizes.size());
  std::array<int64_t, 3> strides{};
  int64_t stride = 1;
  for (int64_t i = rank - 1; i >= 0; --i) {
    strides.at(i) = stride;
    stride *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.begin(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

inline int32_t dtype_of(const torch::stable::Tensor& tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

inline void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/1, body);
}

}  // namespace sift
