// Torch's memory and stream for the CUDA operators, which are free of Torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "binding/allocate.h"

namespace sift {

using torch::stable::accelerator::DeviceGuard;

// A cudaStream_t.
inline void* current_stream(Device device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index, &stream));
  return stream;
}

// Scratch memory on the device. The allocator hands it on in the order of the stream, so it may be
// given back while the kernels that use it are still queued.
inline torch::stable::Tensor allocate_workspace(int64_t num_bytes, Device device) {
  return allocate({num_bytes}, aoti_torch_dtype_uint8(), device);
}

}  // namespace sift
