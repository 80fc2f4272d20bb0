// `score_quantile` on the CPU: checks, output, call.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "binding/checks.h"
#include "binding/cpu_resources.h"
#include "decode/cpu/decode_cpu.h"

namespace sift {
namespace {

Tensor score_quantile(const Tensor& q, const Tensor& k, const Tensor& lengths, double quantile,
                      double scale, const std::optional<Tensor>& key_mask, double softcap,
                      const std::optional<Tensor>& sinks,
                      const std::optional<Tensor>& block_table) {
  ScoreQuantileParams params =
      check_score_quantile(q, k, lengths, quantile, scale, key_mask, softcap, sinks, block_table);
  Tensor quantiles =
      allocate({params.batch, params.num_q_heads, params.num_rows}, aoti_torch_dtype_float32());
  params.quantiles = static_cast<float*>(quantiles.mutable_data_ptr());
  const auto num_threads = static_cast<int>(torch::stable::get_num_threads());
  Scratch workspace(score_quantile_cpu_workspace_bytes(params, num_threads));
  score_quantile_cpu(params, workspace.data(), num_threads, parallel_for);
  return quantiles;
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CPU, library) {
  library.impl("score_quantile", TORCH_BOX(&sift::score_quantile));
}
