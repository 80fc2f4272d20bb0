// The power law, its estimator and the words for every outcome of a fit.
#include <sift_attention/fit_samples.h>
#include <sift_attention/power_law.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace sift {
namespace {

// Written so that NaN fails.
bool valid_factor(double factor) { return factor >= 0.0 && std::isfinite(factor); }

std::string to_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

void check(bool holds, const std::string& requirement, double value) {
  if (!holds) throw std::invalid_argument(requirement + ", got " + to_text(value));
}

void check(const FitOptions& options, const std::string& caller) {
  if (options.beta) {
    check(valid_factor(*options.beta), caller + ": beta must be a finite number of at least 0",
          *options.beta);
  }
  check(options.min_samples >= 1, caller + ": min_samples must be at least 1", options.min_samples);
  check(options.min_length_ratio > 1.0 && std::isfinite(options.min_length_ratio),
        caller + ": min_length_ratio must be a finite number above 1", options.min_length_ratio);
}

}  // namespace

PowerLaw PowerLaw::uniform(double c) {
  check(valid_factor(c), "PowerLaw.uniform: c must be a finite number of at least 0", c);
  if (c == 0.0) return exact();
  return {.log_alpha = std::log(c), .beta = 1.0};
}

double PowerLaw::predict(double length) const {
  if (std::isnan(length)) return length;
  const double decay = beta == 0.0 ? 0.0 : beta * std::log(std::max(length, 1.0));
  const double log_theta = log_alpha - decay;
  return std::isnan(log_theta) ? 0.0 : std::exp(std::min(log_theta, 0.0));
}

std::string_view describe(FitStatus status) {
  switch (status) {
    case FitStatus::kOk:
      return "ok";
    case FitStatus::kTooFewSamples:
      return "too few samples";
    case FitStatus::kRangeTooSmall:
      return "the lengths span too little";
    case FitStatus::kInvalidSample:
      return "a sample is invalid";
    case FitStatus::kRising:
      return "the threshold rises with the length";
  }
  throw std::invalid_argument("describe: unknown FitStatus");
}

std::string explain(const Fit& fit) {
  const FitOptions& options = fit.options;
  switch (fit.status) {
    case FitStatus::kOk:
      return "theta = exp(" + to_text(fit.law.log_alpha) + ") * S^-" + to_text(fit.law.beta) +
             ", fitted to " + std::to_string(fit.num_samples) + " samples at lengths from " +
             to_text(fit.min_length) + " to " + to_text(fit.max_length);
    case FitStatus::kTooFewSamples:
      return "there are " + std::to_string(fit.num_samples) + " samples, a fit needs " +
             std::to_string(options.min_samples);
    case FitStatus::kRangeTooSmall:
      return "the lengths span " + to_text(fit.max_length / fit.min_length) + "x (from " +
             to_text(fit.min_length) + " to " + to_text(fit.max_length) +
             "), a fit of the slope needs " + to_text(options.min_length_ratio) + "x";
    case FitStatus::kInvalidSample:
      return "the sample after " + std::to_string(fit.num_samples) +
             " valid ones is not a finite length of at least 1 with a quantile in [0, 1]";
    case FitStatus::kRising:
      return "the quantiles rise with the length (beta would be " + to_text(fit.slope) +
             "), a threshold must not";
  }
  throw std::invalid_argument("explain: unknown FitStatus");
}

Fit fit_power_law(std::span<const double> lengths, std::span<const double> quantiles,
                  const FitOptions& options) {
  check(options, "fit_power_law");
  if (lengths.size() != quantiles.size()) {
    throw std::invalid_argument("fit_power_law: quantiles must be as many as lengths, " +
                                std::to_string(lengths.size()) + ", got " +
                                std::to_string(quantiles.size()));
  }
  return fit_samples(lengths.data(), quantiles.data(), static_cast<int64_t>(lengths.size()),
                     options);
}

PowerLawEstimator::PowerLawEstimator(const FitOptions& options) : options_(options) {
  check(options, "PowerLawEstimator");
}

void PowerLawEstimator::add(double length, double quantile) {
  check(is_sample_length(length),
        "PowerLawEstimator.add: length must be a finite number of at least 1", length);
  check(is_sample_quantile(quantile), "PowerLawEstimator.add: quantile must be in [0, 1]",
        quantile);
  lengths_.push_back(length);
  quantiles_.push_back(quantile);
}

void PowerLawEstimator::drop_longer_than(double length) {
  check(!std::isnan(length), "PowerLawEstimator.drop_longer_than: length must be a number", length);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < lengths_.size(); ++i) {
    if (lengths_[i] > length) continue;
    lengths_[kept] = lengths_[i];
    quantiles_[kept] = quantiles_[i];
    ++kept;
  }
  lengths_.resize(kept);
  quantiles_.resize(kept);
}

void PowerLawEstimator::clear() {
  lengths_.clear();
  quantiles_.clear();
}

Fit PowerLawEstimator::fit() const { return fit_power_law(lengths_, quantiles_, options_); }

double PowerLawEstimator::predict(double length) const {
  check(length >= 1.0, "PowerLawEstimator.predict: length must be at least 1", length);
  return fit().law.predict(length);
}

}  // namespace sift
