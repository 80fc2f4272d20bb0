// `score_quantile` for any device: checks, output, call of a backend.
#pragma once

#include <optional>

#include "binding/allocate.h"
#include "binding/checks.h"

namespace sift {

// kRun computes the parameters' quantiles, on q's device.
template <void (*kRun)(const ScoreQuantileParams&, Device)>
Tensor score_quantile(const Tensor& q, const Tensor& k, const Tensor& lengths, double quantile,
                      double scale, const std::optional<Tensor>& key_mask, double softcap,
                      const std::optional<Tensor>& sinks,
                      const std::optional<Tensor>& block_table) {
  ScoreQuantileParams params =
      check_score_quantile(q, k, lengths, quantile, scale, key_mask, softcap, sinks, block_table);
  const Device device = device_of(q);
  Tensor quantiles = allocate({params.batch, params.num_q_heads, params.num_rows},
                              aoti_torch_dtype_float32(), device);
  params.quantiles = static_cast<float*>(quantiles.mutable_data_ptr());
  kRun(params, device);
  return quantiles;
}

}  // namespace sift
