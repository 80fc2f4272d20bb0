// `score_quantile` on the CPU.
#include "binding/score_quantile.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "binding/cpu_resources.h"
#include "decode/cpu/decode_cpu.h"

namespace sift {
namespace {

void run(const ScoreQuantileParams& params, Device) {
  const auto num_threads = static_cast<int>(torch::stable::get_num_threads());
  Scratch workspace(score_quantile_cpu_workspace_bytes(params, num_threads));
  score_quantile_cpu(params, workspace.data(), num_threads, parallel_for);
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CPU, library) {
  library.impl("score_quantile", TORCH_BOX(&sift::score_quantile<sift::run>));
}
