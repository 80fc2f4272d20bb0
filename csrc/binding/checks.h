// The checks of attention that every backend runs before it allocates anything. What passes them is
// safe to hand to a kernel, and comes back as the kernel's parameters without outputs.
//
// Failures throw std::runtime_error with one sentence: "decode: k must ..., got ...".
// Lengths, block ids and the numbers inside tensors live on the device and are not looked at.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "decode/params.h"

namespace sift {

using torch::stable::Tensor;

DecodeParams check_decode(const Tensor& q, const Tensor& k, const Tensor& v,
                          const Tensor& log_alpha, const Tensor& beta, double scale,
                          const std::optional<Tensor>& seq_lens,
                          const std::optional<Tensor>& key_mask, const std::optional<Tensor>& v_sum,
                          int64_t residual, double softcap, const std::optional<Tensor>& sinks,
                          const std::optional<Tensor>& block_table);

ScoreQuantileParams check_score_quantile(const Tensor& q, const Tensor& k, const Tensor& lengths,
                                         double quantile, double scale,
                                         const std::optional<Tensor>& key_mask, double softcap,
                                         const std::optional<Tensor>& sinks,
                                         const std::optional<Tensor>& block_table);

}  // namespace sift
