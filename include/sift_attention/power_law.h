// The threshold's power law, theta(S) = exp(log_alpha) * S^-beta, and its estimator. No Torch.
#pragma once

#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sift {

// A key is kept where its probability exceeds theta at S attended keys.
struct PowerLaw {
  double log_alpha = -std::numeric_limits<double>::infinity();  // natural log; -inf keeps every key
  double beta = 0.0;

  static PowerLaw exact() { return {}; }

  // theta = c / S: keep the keys with more than c times uniform attention; c = 0 keeps every key.
  // Throws std::invalid_argument unless c is finite and at least 0.
  static PowerLaw uniform(double c);

  // theta at S = length attended keys, at most 1. Lengths below 1 count as 1; NaN gives NaN. Where
  // the law is no number (inf - inf) it is 0, which keeps every key, as in the operators.
  double predict(double length) const;
};

enum class FitStatus {
  kOk,
  kTooFewSamples,  // fewer than min_samples samples
  kRangeTooSmall,  // longest / shortest length below min_length_ratio (free slope only)
  kInvalidSample,  // a length or quantile was NaN, infinite or outside its range
  kRising,         // the fitted threshold would rise with the length (free slope only)
};

// The status in a few words, e.g. "too few samples".
std::string_view describe(FitStatus status);

struct FitOptions {
  std::optional<double> beta = std::nullopt;  // the slope, finite, at least 0; none: fitted
  int min_samples = 3;
  double min_length_ratio = 4.0;
};

struct Fit {
  PowerLaw law = {};  // keeps every key unless status is kOk
  FitStatus status = FitStatus::kTooFewSamples;
  double r_squared = 0.0;   // in log-log; negative where a fixed slope misses
  int num_samples = 0;      // used; up to the invalid one where there is one
  double min_length = 0.0;  // of the samples used; 0: none
  double max_length = 0.0;
  double slope = 0.0;       // least-squares beta before any refusal; 0 where there is none
  FitOptions options = {};  // what was asked for
};

// The outcome in one sentence with its values, e.g. "the lengths span 1.33x (from 700 to 930), a
// fit of the slope needs 4x".
std::string explain(const Fit& fit);

// Least squares of log(quantile) on log(length), in double. A sample is a probability at a length:
// a length of 0 marks an absent sample, other lengths are at least 1; quantiles lie in [0, 1]. A
// quantile of 0 (underflow) counts as the smallest normal float32 number, 1.2e-38: keys at or below
// it carry no measurable mass, and the law errs towards keeping keys.
// Bad samples are reported by the status. Throws std::invalid_argument for bad options and for
// lengths and quantiles of different size.
Fit fit_power_law(std::span<const double> lengths, std::span<const double> quantiles,
                  const FitOptions& options = {});

// Collects (length, quantile) samples and fits a power law to them.
class PowerLawEstimator {
 public:
  explicit PowerLawEstimator(const FitOptions& options = {});

  // Adds the tau-quantile of a row's attention probabilities over `length` attended keys. Throws
  // std::invalid_argument unless length is finite and >= 1 and quantile is in [0, 1].
  void add(double length, double quantile);

  // Forgets the samples with more than `length` keys, as after a cache was cropped to it.
  void drop_longer_than(double length);

  void clear();

  // The fit to the samples held now.
  Fit fit() const;

  // theta of that fit at `length` keys; 0, which keeps every key, where the fit was refused.
  // Throws std::invalid_argument unless length is at least 1.
  double predict(double length) const;

  int num_samples() const { return static_cast<int>(lengths_.size()); }
  const FitOptions& options() const { return options_; }

 private:
  FitOptions options_;
  std::vector<double> lengths_;
  std::vector<double> quantiles_;
};

}  // namespace sift
