// What a forward of Attention takes besides q, k and v, and the checks of all of it.
#pragma once

#include <ATen/ATen.h>
#include <sift_attention/kv_cache.h>
#include <sift_attention/repr.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace sift {

struct AttentionOptions {
  std::optional<double> scale = std::nullopt;         // of the scores; none: 1 / sqrt(D)
  double softcap = 0.0;                               // of the scores; 0: none
  std::optional<at::Tensor> sinks = std::nullopt;     // [HQ], logits that join the denominator
  std::optional<at::Tensor> key_mask = std::nullopt;  // bool [B, N] over all keys, the new ones
                                                      // included: false for left padding
};

namespace detail {

// Whether q fits the new rows k, which a cache took, and num_q_heads, where there were heads
// before; and whether the mask fits all num_keys keys.
inline void check_forward(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options,
                          int64_t num_keys, std::optional<int64_t> num_q_heads) {
  if (q.scalar_type() != k.scalar_type()) {
    refuse("Attention: k must have dtype ", dtype_name(q), ", got ", dtype_name(k));
  }
  if (q.device() != k.device()) {
    refuse("Attention: k must be on the device of q = ", q.device().str(), ", got ",
           k.device().str());
  }
  if (q.dim() != 4 || k.size(2) == 0) {
    refuse("Attention: q must have shape [B, HQ, R, D] with at least one row, got ", shape_of(q));
  }
  const std::vector<int64_t> shape = {k.size(0), num_q_heads.value_or(q.size(1)), k.size(2),
                                      k.size(3)};
  if (q.sizes() != shape) {
    refuse("Attention: q must have shape [B, HQ, R, D] = ", repr(shape), ", got ", shape_of(q));
  }
  if (q.size(1) == 0 || k.size(1) == 0 || q.size(1) % k.size(1) != 0) {
    refuse("Attention: the heads of q must be a positive multiple of the heads of k, got ",
           std::to_string(q.size(1)), " and ", std::to_string(k.size(1)));
  }
  if (!options.key_mask) return;
  const at::Tensor& mask = *options.key_mask;
  if (mask.scalar_type() != at::kBool) {
    refuse("Attention: key_mask must have dtype bool, got ", dtype_name(mask));
  }
  const std::vector<int64_t> mask_shape = {k.size(0), num_keys};
  if (mask.sizes() != mask_shape) {
    refuse("Attention: key_mask must have shape [B, N] = ", repr(mask_shape), ", got ",
           shape_of(mask));
  }
}

}  // namespace detail
}  // namespace sift
