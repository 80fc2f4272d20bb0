// Random sequences that are fed to a sift::Attention in order, for its tests.
#pragma once

#include <sift_attention/attention.h>

#include <cstdint>
#include <vector>

namespace sift {

inline constexpr int64_t kQHeads = 4;
inline constexpr int64_t kKVHeads = 2;
inline constexpr int64_t kHeadDim = 32;
inline bool close(const at::Tensor& a, const at::Tensor& b, double tolerance = 2e-5) {
  return at::allclose(a.to(at::kFloat), b.to(at::kFloat), tolerance, tolerance);
}

// Random q, k and v of whole sequences, fed in order.
struct Sequences {
  explicit Sequences(int64_t length, int64_t batch = 1, at::ScalarType dtype = at::kFloat)
      : q((3.0 * at::randn({batch, kQHeads, length, kHeadDim})).to(dtype)),
        k(at::randn({batch, kKVHeads, length, kHeadDim}).to(dtype)),
        v(at::randn({batch, kKVHeads, length, kHeadDim}).to(dtype)) {}

  at::Tensor feed(Attention& attention, int64_t start, int64_t end,
                  const AttentionOptions& options = {}) const {
    const auto rows = [&](const at::Tensor& all) { return all.narrow(2, start, end - start); };
    return attention.forward(rows(q), rows(k), rows(v), options);
  }

  // Steps start..end - 1, side by side.
  at::Tensor steps(Attention& attention, int64_t start, int64_t end) const {
    std::vector<at::Tensor> outs;
    for (int64_t i = start; i < end; ++i) outs.push_back(feed(attention, i, i + 1));
    return at::cat(outs, 2);
  }

  // Dense and causal, of all rows.
  at::Tensor exact() const {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, true, {}, true);
  }

  at::Tensor q, k, v;
};

inline SiftConfig quantile_config(int64_t warmup_steps = 0) {
  return {.threshold = Threshold::kQuantile,
          .quantile = 0.8,
          .warmup_steps = warmup_steps,
          .min_keys = 0};
}

}  // namespace sift
