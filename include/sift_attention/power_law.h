// The threshold's power law, theta(S) = exp(log_alpha) * S^-beta, and its estimator. No Torch.
#pragma once

#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

namespace sift {

struct PowerLaw {
  double log_alpha = -std::numeric_limits<double>::infinity();  // natural log; -inf keeps every key
  double beta = 0.0;

  // theta at S = length attended keys, clamped to [0, 1].
  double predict(double length) const;
};

enum class FitStatus {
  kOk,
  kTooFewSamples,   // fewer than min_samples usable samples
  kRangeTooSmall,   // longest / shortest length below min_length_ratio (free slope only)
  kNotFinite,       // a sample was NaN or infinite
  kRising,          // the fitted threshold would rise with the length
};

// One sentence for users, e.g. "the lengths span 1.3x, a fit of the slope needs 4x".
std::string_view describe(FitStatus status);

struct FitOptions {
  std::optional<double> beta;     // fix the slope, fit log_alpha alone
  int min_samples = 3;
  double min_length_ratio = 4.0;
};

struct Fit {
  PowerLaw law;                   // keeps every key unless status is kOk
  FitStatus status = FitStatus::kTooFewSamples;
  double r_squared = 0.0;         // of log quantile against log length
  std::size_t num_samples = 0;    // samples used
  double min_length = 0.0;
  double max_length = 0.0;
};

// Least squares of log(quantile) on log(length). Samples with length 0 are absent.
Fit fit_power_law(std::span<const double> lengths, std::span<const double> quantiles,
                  const FitOptions& options = {});

}  // namespace sift
