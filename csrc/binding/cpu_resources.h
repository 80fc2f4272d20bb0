// Torch's memory and threads for the CPU operators, which are free of Torch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>

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

// Scratch memory for one call. That of a short one lies on the stack: what takes a tenth of a call
// from the heap is then free. 128 KB hold a chunk of a group of 12 heads on one thread.
class Scratch {
 public:
  explicit Scratch(int64_t num_bytes) {
    if (num_bytes > static_cast<int64_t>(short_.size())) {
      long_ = allocate({num_bytes}, aoti_torch_dtype_uint8());
    }
  }
  void* data() { return long_ ? long_->mutable_data_ptr() : short_.data(); }

 private:
  alignas(64) std::array<std::byte, 128 * 1024> short_;  // left as it is
  std::optional<torch::stable::Tensor> long_;
};

inline void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/1, body);
}

}  // namespace sift
