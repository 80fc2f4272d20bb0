// Torch's threads and memory for the CPU operators, which are free of Torch.
#pragma once

#include <array>
#include <cstdint>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace sift {

inline void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/1, body);
}

inline torch::stable::Tensor workspace_of(int64_t num_bytes) {
  const std::array<int64_t, 1> size{num_bytes};
  return torch::stable::empty(size, torch::headeronly::ScalarType::Byte);
}

}  // namespace sift
