// `decode` on the CPU: checks, outputs, call.
#include "decode/cpu/decode_cpu.h"

#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "binding/checker.h"
#include "binding/checks.h"
#include "binding/cpu_resources.h"

namespace sift {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> decode(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_alpha, const Tensor& beta,
    double scale, const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& key_mask,
    const std::optional<Tensor>& v_sum, int64_t residual, double softcap,
    const std::optional<Tensor>& sinks, const std::optional<Tensor>& block_table) {
  DecodeParams params = check_decode(q, k, v, log_alpha, beta, scale, seq_lens, key_mask, v_sum,
                                     residual, softcap, sinks, block_table);
  const int64_t batch = params.batch;
  const int64_t num_q_heads = params.num_q_heads;
  Tensor out = allocate({batch, num_q_heads, params.head_dim}, dtype_of(q));
  Tensor lse = allocate({batch, num_q_heads}, aoti_torch_dtype_float32());
  Tensor kept_mass = allocate({batch, num_q_heads}, aoti_torch_dtype_float32());
  Tensor num_loaded = allocate({batch, params.num_kv_heads}, aoti_torch_dtype_int32());
  params.out = out.mutable_data_ptr();
  params.lse = static_cast<float*>(lse.mutable_data_ptr());
  params.kept_mass = static_cast<float*>(kept_mass.mutable_data_ptr());
  params.num_loaded = static_cast<int32_t*>(num_loaded.mutable_data_ptr());
  const auto num_threads = static_cast<int>(torch::stable::get_num_threads());
  Scratch workspace(decode_cpu_workspace_bytes(params, num_threads));
  decode_cpu(params, workspace.data(), num_threads, parallel_for);
  return {out, lse, kept_mass, num_loaded};
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CPU, library) {
  library.impl("decode", TORCH_BOX(&sift::decode));
}
