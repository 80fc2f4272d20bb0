// Calls the CPU kernel and the estimator without Torch: one head, two keys, the second of which is
// a thousand times as probable as the first.
#include <sift_attention/decode_cpu.h>
#include <sift_attention/power_law.h>

#include <array>
#include <cmath>
#include <iostream>
#include <vector>

bool is_right() {
  constexpr int64_t kNumKeys = 2;
  constexpr int64_t kHeadDim = 64;
  std::vector<float> q(kHeadDim, 0.0f);
  std::vector<float> k(kNumKeys * kHeadDim, 0.0f);
  std::vector<float> v(kNumKeys * kHeadDim, 1.0f);
  q[0] = 1.0f;
  k[kHeadDim] = std::log(1000.0f);
  for (int64_t d = 0; d < kHeadDim; ++d) v[kHeadDim + d] = static_cast<float>(d);

  const sift::PowerLaw law = sift::PowerLaw::uniform(1.0);
  const auto log_alpha = static_cast<float>(law.log_alpha);
  const auto beta = static_cast<float>(law.beta);
  std::array<float, kHeadDim> out;
  float lse = 0.0f;
  float kept_mass = 0.0f;
  int32_t num_loaded = 0;
  const sift::DecodeParams params = {
      .q = q.data(),
      .k = {.data = k.data(), .stride_n = kHeadDim},
      .v = {.data = v.data(), .stride_n = kHeadDim},
      .keys = {},
      .log_alpha = &log_alpha,
      .beta = &beta,
      .out = out.data(),
      .lse = &lse,
      .kept_mass = &kept_mass,
      .num_loaded = &num_loaded,
      .batch = 1,
      .num_q_heads = 1,
      .num_kv_heads = 1,
      .capacity = kNumKeys,
      .head_dim = kHeadDim,
      .residual = sift::Residual::kRenormalize,
  };
  std::vector<char> workspace(sift::decode_cpu_workspace_bytes(params, 1));
  sift::decode_cpu(params, workspace.data(), 1,
                   [](int64_t count, const auto& body) { body(0, count); });
  std::cout << sift::cpu_isa() << ": " << num_loaded << " row loaded, lse " << lse << "\n";

  const std::vector<double> lengths = {100, 1000, 10000};
  const std::vector<double> quantiles = {0.1, 0.01, 0.001};
  const sift::Fit fit = sift::fit_power_law(lengths, quantiles);
  std::cout << sift::explain(fit) << "\n";
  return num_loaded == 1 && std::abs(out[63] - 63.0f) < 1e-4f &&
         std::abs(lse - std::log(1001.0f)) < 1e-5f && std::abs(fit.law.beta - 1.0) < 1e-9;
}
