// fit_power_law on CUDA, its threads run as fibers, against the estimator.
#include <sift_attention/power_law.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "catch2.h"
#include "decode/cuda/decode_cuda.h"

namespace sift {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Samples {
  int64_t batch;
  int64_t num_q_heads;
  std::vector<int32_t> lengths;  // [B, R]
  std::vector<float> quantiles;  // [B, HQ, R]

  int64_t num_rows() const { return static_cast<int64_t>(lengths.size()) / batch; }
};

// Laws with noise: some heads fall, some rise.
Samples random_samples(int64_t batch, int64_t num_q_heads, int64_t num_rows) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  Samples samples = {batch, num_q_heads, {}, {}};
  for (int64_t i = 0; i < batch * num_rows; ++i) {
    samples.lengths.push_back(static_cast<int32_t>(random() % 1000));
  }
  for (int64_t i = 0; i < batch * num_q_heads * num_rows; ++i) {
    const int64_t head = i / num_rows;
    const double length = samples.lengths[head / num_q_heads * num_rows + i % num_rows];
    const double slope = head % 3 == 0 ? 0.1 : -1.0;
    samples.quantiles.push_back(
        static_cast<float>(std::exp(-3 + slope * std::log(length) + 0.2 * normal(random))));
    if (length == 0) samples.quantiles.back() = kNaN;  // not read
  }
  return samples;
}

// REQUIREs that each head gets what the estimator says; returns how many are ok.
int check(const Samples& samples, const std::optional<double>& beta) {
  const int64_t num_rows = samples.num_rows();
  const auto num_heads = static_cast<size_t>(samples.batch * samples.num_q_heads);
  std::vector<float> log_alphas(num_heads, kNaN);
  std::vector<float> betas(num_heads, kNaN);
  std::vector<uint8_t> oks(num_heads, 7);
  const std::vector<float> float_lengths(samples.lengths.begin(), samples.lengths.end());
  int num_ok = 0;
  for (const bool is_float : {false, true}) {
    fit_power_law_cuda({.int_lengths = is_float ? nullptr : samples.lengths.data(),
                        .float_lengths = is_float ? float_lengths.data() : nullptr,
                        .quantiles = samples.quantiles.data(),
                        .log_alpha = log_alphas.data(),
                        .beta = betas.data(),
                        .ok = reinterpret_cast<bool*>(oks.data()),
                        .batch = samples.batch,
                        .num_q_heads = samples.num_q_heads,
                        .num_rows = num_rows,
                        .fixed_beta = beta},
                       nullptr);
    for (size_t i = 0; i < num_heads; ++i) {
      const auto b = static_cast<int64_t>(i) / samples.num_q_heads;
      const std::vector<double> lengths(samples.lengths.begin() + b * num_rows,
                                        samples.lengths.begin() + (b + 1) * num_rows);
      const auto first = samples.quantiles.begin() + static_cast<int64_t>(i) * num_rows;
      const std::vector<double> quantiles(first, first + num_rows);
      const Fit expected = fit_power_law(lengths, quantiles, {.beta = beta});
      CAPTURE(i, explain(expected));
      REQUIRE(oks[i] == (expected.status == FitStatus::kOk));
      REQUIRE(log_alphas[i] == static_cast<float>(expected.law.log_alpha));
      REQUIRE(betas[i] == static_cast<float>(expected.law.beta));
      num_ok += oks[i];
    }
  }
  return num_ok / 2;
}

}  // namespace

TEST_CASE("fit_power_law on CUDA gives every head what the estimator gives") {
  REQUIRE(check(random_samples(3, 50, 32), std::nullopt) > 75);
  REQUIRE(check(random_samples(3, 50, 32), 1.0) == 150);
  REQUIRE(check(random_samples(1, 1, 3), std::nullopt) == 0);
}

TEST_CASE("fit_power_law on CUDA refuses what the estimator refuses") {
  const auto num_ok = [](std::vector<int32_t> lengths, std::vector<float> quantiles,
                         const std::optional<double>& beta = std::nullopt) {
    return check({1, 1, std::move(lengths), std::move(quantiles)}, beta);
  };
  REQUIRE(num_ok({100, 300, 400}, {0.1f, 0.05f, 0.01f}) == 1);
  REQUIRE(num_ok({100, 300}, {0.1f, 0.01f}) == 0);
  REQUIRE(num_ok({100, 300, 0}, {0.1f, 0.01f, kNaN}) == 0);
  REQUIRE(num_ok({100, 300, 399}, {0.1f, 0.05f, 0.01f}) == 0);
  REQUIRE(num_ok({100, 300, 399}, {0.1f, 0.05f, 0.01f}, 1.0) == 1);
  REQUIRE(num_ok({100, 300, 400}, {0.1f, 0.2f, 0.3f}) == 0);
  REQUIRE(num_ok({100, 300, 400}, {0.1f, kNaN, 0.01f}, 1.0) == 0);
  REQUIRE(num_ok({100, -300, 400}, {0.1f, 0.1f, 0.01f}) == 0);
  REQUIRE(num_ok({100, 300, 400}, {0.1f, 1.1f, 0.01f}) == 0);
  REQUIRE(num_ok({100, 300, 400}, {0.1f, 0.05f, 0.0f}) == 1);
}

TEST_CASE("fit_power_law on CUDA takes no rows and no heads") {
  REQUIRE(check({2, 3, {}, {}}, std::nullopt) == 0);
  REQUIRE(check({2, 0, {100, 300}, {}}, std::nullopt) == 0);
}

}  // namespace sift
