// Dense attention of prompts and skipped layers. Used by Attention.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace sift::detail {

// bool [B or 1, 1, R, N]: row i of the newest R attends key_mask's keys up to its own.
inline at::Tensor causal_mask(int64_t num_rows, int64_t num_keys,
                              const std::optional<at::Tensor>& key_mask, at::Device device) {
  const at::Tensor causal =
      at::ones({num_rows, num_keys}, at::TensorOptions(device).dtype(at::kBool))
          .tril(num_keys - num_rows)
          .unsqueeze(0)
          .unsqueeze(0);
  return key_mask ? causal & key_mask->unsqueeze(1).unsqueeze(1) : causal;
}

// Attention with what SDPA cannot do, in the dtype of q.
inline at::Tensor capped_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& mask, double scale, double softcap,
                                   const std::optional<at::Tensor>& sinks) {
  constexpr int64_t kRows = 128;  // at a time; [B, HQ, kRows, N] scores have to fit in memory
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor all_k = k.repeat_interleave(group, 1).transpose(2, 3);
  const at::Tensor all_v = v.repeat_interleave(group, 1);
  std::vector<at::Tensor> parts;
  for (int64_t start = 0; start < q.size(2); start += kRows) {
    const int64_t count = std::min(kRows, q.size(2) - start);
    at::Tensor scores = at::matmul(q.narrow(2, start, count), all_k).to(at::kFloat) * scale;
    if (softcap > 0.0) scores = at::tanh(scores / softcap) * softcap;
    // Not -inf: a row of left padding attends no key, and NaN would stay in the cache.
    scores.masked_fill_(~mask.narrow(2, start, count), std::numeric_limits<float>::lowest());
    if (sinks) {
      const at::Tensor column = sinks->view({1, -1, 1, 1}).expand({q.size(0), -1, count, 1});
      scores = at::cat({scores, column}, -1);
    }
    const at::Tensor probabilities = scores.softmax(-1).narrow(3, 0, k.size(2));
    parts.push_back(at::matmul(probabilities.to(v.scalar_type()), all_v));
  }
  return at::cat(parts, 2);
}

// q [B, HQ, R, D] attends k, v [B, HK, N, D], causally: row R - 1 sees all N keys, or those of
// key_mask (bool [B, N]). sinks float32 [HQ].
inline at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const std::optional<at::Tensor>& key_mask, double scale,
                                  double softcap, const std::optional<at::Tensor>& sinks) {
  const int64_t num_rows = q.size(2);
  const int64_t num_keys = k.size(2);
  if (softcap > 0.0 || sinks) {
    const at::Tensor mask = causal_mask(num_rows, num_keys, key_mask, q.device());
    return capped_attention(q, k, v, mask, scale, softcap, sinks);
  }
  const bool is_causal = !key_mask && num_rows == num_keys && num_rows > 1;
  std::optional<at::Tensor> mask;
  if (key_mask || (num_rows > 1 && !is_causal)) {
    mask = causal_mask(num_rows, num_keys, key_mask, q.device());
  }
  return at::scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale,
                                          q.size(1) != k.size(1));
}

}  // namespace sift::detail
