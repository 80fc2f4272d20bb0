// fit_power_law on CUDA: one thread fits one head of one batch row, in double.
#include <cstdint>

#include "decode/cuda/decode_cuda.h"
#include "decode/fit_power_law.h"
#include "device.h"
#include "launch.h"

namespace sift {
namespace {

constexpr int kFitThreads = 64;  // few: the heads of a model spread over its multiprocessors

SIFT_KERNEL(kFitThreads, 1) fit_power_law_kernel(SIFT_GRID_CONSTANT const FitPowerLawParams p) {
  const int64_t i = int64_t{dev::block()} * kFitThreads + dev::thread();
  if (i < p.batch * p.num_q_heads) fit_head(p, i);
}

}  // namespace

void fit_power_law_cuda(const FitPowerLawParams& params, void* stream) {
  const int64_t num_heads = params.batch * params.num_q_heads;
  if (num_heads == 0) return;
  const auto num_blocks = static_cast<int>((num_heads + kFitThreads - 1) / kFitThreads);
  dev::launch("fit_power_law_kernel", fit_power_law_kernel, {num_blocks, kFitThreads, 0}, stream,
              params);
}

}  // namespace sift
