// `score_quantile` on CUDA.
#include "binding/score_quantile.h"

#include <torch/csrc/stable/library.h>

#include "binding/cuda_resources.h"
#include "decode/cuda/decode_cuda.h"

namespace sift {
namespace {

void run(const ScoreQuantileParams& params, Device device) {
  const DeviceGuard guard(device.index);
  const Tensor workspace = allocate_workspace(score_quantile_cuda_workspace_bytes(params), device);
  score_quantile_cuda(params, workspace.mutable_data_ptr(), current_stream(device));
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CUDA, library) {
  library.impl("score_quantile", TORCH_BOX(&sift::score_quantile<sift::run>));
}
