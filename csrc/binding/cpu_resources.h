// Torch's memory and threads for the CPU operators, which are free of Torch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>

#include "binding/allocate.h"

namespace sift {

// Scratch memory for one call. That of a short one lies on the stack: what takes a tenth of a call
// from the heap is then free. 256 KB hold a chunk of a group of 12 heads on one thread, of 5 on two.
class Scratch {
 public:
  explicit Scratch(int64_t num_bytes) {
    if (num_bytes > static_cast<int64_t>(short_.size())) {
      long_ = allocate({num_bytes}, aoti_torch_dtype_uint8(), {aoti_torch_device_type_cpu(), -1});
    }
  }
  void* data() { return long_ ? long_->mutable_data_ptr() : short_.data(); }

 private:
  alignas(64) std::array<std::byte, 256 * 1024> short_;  // left as it is
  std::optional<torch::stable::Tensor> long_;
};

inline void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/1, body);
}

}  // namespace sift
