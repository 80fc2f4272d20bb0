// `decode` on CUDA.
#include "binding/decode.h"

#include <torch/csrc/stable/library.h>

#include "binding/cuda_resources.h"
#include "decode/cuda/decode_cuda.h"

namespace sift {
namespace {

void run(const DecodeParams& params, Device device) {
  const DeviceGuard guard(device.index);
  const Tensor workspace = allocate_workspace(decode_cuda_workspace_bytes(params), device);
  decode_cuda(params, workspace.mutable_data_ptr(), current_stream(device));
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CUDA, library) {
  library.impl("decode", TORCH_BOX(&sift::decode<sift::run>));
}
