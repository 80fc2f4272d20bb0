// The fit of a power law to samples, inline: the CPU and the CUDA kernel run this very code. All of
// it is constexpr, which is how nvcc takes it for the device too. No Torch.
#pragma once

#include <sift_attention/power_law.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace sift {

// A straight line through points that arrive one at a time, without storing them: running means and
// centred second moments (Welford). Stable where all points lie close together and far from the
// origin, as log lengths do, and exactly zero spread for equal values.
struct LeastSquares {
  double count = 0.0;
  double mean_x = 0.0;
  double mean_y = 0.0;
  double sum_xx = 0.0;  // sum of (x - mean_x)^2
  double sum_xy = 0.0;
  double sum_yy = 0.0;

  constexpr void add(double x, double y) {
    count += 1.0;
    const double dx = x - mean_x;
    const double dy = y - mean_y;
    mean_x += dx / count;
    mean_y += dy / count;
    sum_xx += dx * (x - mean_x);
    sum_xy += dx * (y - mean_y);
    sum_yy += dy * (y - mean_y);
  }

  constexpr double slope() const { return sum_xx > 0.0 ? sum_xy / sum_xx : 0.0; }

  constexpr double intercept(double slope) const { return mean_y - slope * mean_x; }

  // 1 - residual / total sum of squares of the line through the means; with equal ys 1 for a flat
  // line and 0 for any other.
  constexpr double r_squared(double slope) const {
    const double explained = slope * (2.0 * sum_xy - slope * sum_xx);
    if (sum_yy > 0.0) return std::min(explained / sum_yy, 1.0);
    return explained < 0.0 ? 0.0 : 1.0;
  }
};

// Written so that NaN fails.
constexpr bool is_sample_length(double length) {
  return length >= 1.0 && length <= std::numeric_limits<double>::max();
}
// Probabilities computed in float32 exceed 1 by rounding.
constexpr bool is_sample_quantile(double quantile) {
  return quantile >= 0.0 && quantile <= 1.0 + 1e-5;
}

// Whether the samples carry a fit, or why not; all of `fit` but its outcome is known.
constexpr FitStatus judge(const Fit& fit) {
  const FitOptions& options = fit.options;
  if (fit.num_samples < options.min_samples) return FitStatus::kTooFewSamples;
  if (options.beta) return FitStatus::kOk;
  if (!(fit.max_length >= options.min_length_ratio * fit.min_length)) {
    return FitStatus::kRangeTooSmall;
  }
  return fit.slope < 0.0 ? FitStatus::kRising : FitStatus::kOk;
}

// fit_power_law (power_law.h) of count samples with numbers of any type, converted one by one. The
// options are not checked.
template <typename Length, typename Quantile>
constexpr Fit fit_samples(const Length* lengths, const Quantile* quantiles, int64_t count,
                          const FitOptions& options) {
  Fit fit{.options = options};
  LeastSquares line;
  for (int64_t i = 0; i < count; ++i) {
    const auto length = static_cast<double>(lengths[i]);
    const auto quantile = static_cast<double>(quantiles[i]);
    if (length == 0.0) continue;
    if (!is_sample_length(length) || !is_sample_quantile(quantile)) {
      fit.status = FitStatus::kInvalidSample;
      return fit;
    }
    constexpr double kMinQuantile = std::numeric_limits<float>::min();
    line.add(std::log(length), std::log(std::max(quantile, kMinQuantile)));
    fit.min_length = fit.num_samples == 0 ? length : std::min(fit.min_length, length);
    fit.max_length = std::max(fit.max_length, length);
    ++fit.num_samples;
  }
  const double line_slope = options.beta ? -*options.beta : line.slope();
  fit.slope = 0.0 - line_slope;  // never -0
  fit.status = judge(fit);
  if (fit.status != FitStatus::kOk) return fit;
  fit.law = {.log_alpha = line.intercept(line_slope), .beta = fit.slope};
  fit.r_squared = line.r_squared(line_slope);
  return fit;
}

}  // namespace sift
