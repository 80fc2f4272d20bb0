// `decode` on the CPU: checks, outputs, call.
#include "decode/cpu/decode_cpu.h"

#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "binding/checks.h"
#include "binding/cpu_resources.h"

namespace sift {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> decode(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_alpha, const Tensor& beta,
    double scale, const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& key_mask,
    const std::optional<Tensor>& v_sum, int64_t residual, double softcap,
    const std::optional<Tensor>& sinks, const std::optional<Tensor>& block_table) {
  using torch::headeronly::ScalarType;
  DecodeParams params = check_decode(q, k, v, log_alpha, beta, scale, seq_lens, key_mask, v_sum,
                                     residual, softcap, sinks, block_table);
  const auto [batch, num_q_heads] = std::pair(params.batch, params.num_q_heads);
  Tensor out = torch::stable::empty({batch, num_q_heads, params.head_dim}, q.scalar_type());
  Tensor lse = torch::stable::empty({batch, num_q_heads}, ScalarType::Float);
  Tensor kept_mass = torch::stable::empty({batch, num_q_heads}, ScalarType::Float);
  Tensor num_loaded = torch::stable::empty({batch, params.num_kv_heads}, ScalarType::Int);
  if (out.numel() > 0) {
    params.out = out.mutable_data_ptr();
    params.lse = static_cast<float*>(lse.mutable_data_ptr());
    params.kept_mass = static_cast<float*>(kept_mass.mutable_data_ptr());
    params.num_loaded = static_cast<int32_t*>(num_loaded.mutable_data_ptr());
    const int num_threads = static_cast<int>(torch::stable::get_num_threads());
    Tensor workspace = workspace_of(decode_cpu_workspace_bytes(params, num_threads));
    decode_cpu(params, workspace.mutable_data_ptr(), num_threads, parallel_for);
  }
  return {out, lse, kept_mass, num_loaded};
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CPU, library) {
  library.impl("decode", TORCH_BOX(&sift::decode));
}
