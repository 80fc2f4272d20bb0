// `decode` for any device: checks, outputs, call of a backend.
#pragma once

#include <optional>
#include <tuple>

#include "binding/allocate.h"
#include "binding/checker.h"
#include "binding/checks.h"

namespace sift {

// kRun computes everything in the parameters' outputs, on q's device.
template <void (*kRun)(const DecodeParams&, Device)>
std::tuple<Tensor, Tensor, Tensor, Tensor> decode(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_alpha, const Tensor& beta,
    double scale, const std::optional<Tensor>& seq_lens, const std::optional<Tensor>& key_mask,
    const std::optional<Tensor>& v_sum, int64_t residual, double softcap,
    const std::optional<Tensor>& sinks, const std::optional<Tensor>& block_table) {
  DecodeParams params = check_decode(q, k, v, log_alpha, beta, scale, seq_lens, key_mask, v_sum,
                                     residual, softcap, sinks, block_table);
  const int64_t batch = params.batch;
  const int64_t num_q_heads = params.num_q_heads;
  const Device device = device_of(q);
  Tensor out = allocate({batch, num_q_heads, params.head_dim}, dtype_of(q), device);
  Tensor lse = allocate({batch, num_q_heads}, aoti_torch_dtype_float32(), device);
  Tensor kept_mass = allocate({batch, num_q_heads}, aoti_torch_dtype_float32(), device);
  Tensor num_loaded = allocate({batch, params.num_kv_heads}, aoti_torch_dtype_int32(), device);
  params.out = out.mutable_data_ptr();
  params.lse = static_cast<float*>(lse.mutable_data_ptr());
  params.kept_mass = static_cast<float*>(kept_mass.mutable_data_ptr());
  params.num_loaded = static_cast<int32_t*>(num_loaded.mutable_data_ptr());
  kRun(params, device);
  return {out, lse, kept_mass, num_loaded};
}

}  // namespace sift
