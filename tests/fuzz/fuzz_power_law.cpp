// The estimator under any options and any order of calls: a fit is a law that may be used or says
// why there is none, and is the one that fit_power_law gives for the same samples.
#include <sift_attention/power_law.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode/fit_power_law.h"
#include "fuzzed_input.h"

namespace sift {
namespace {

double length(Choices& choices) {
  return choices.coin() ? static_cast<double>(choices.between(1, 100000)) : choices.any_double();
}
double quantile(Choices& choices) { return choices.coin() ? choices.unit() : choices.any_double(); }

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

void check(const Fit& fit) {
  require(!explain(fit).empty() && !describe(fit.status).empty(), "every outcome has its words");
  if (fit.status != FitStatus::kOk) {
    require(fit.law.log_alpha == -INFINITY && fit.law.beta == 0, "no fit keeps every key");
  } else {
    require(!std::isnan(fit.law.log_alpha) && std::isfinite(fit.law.beta) && fit.law.beta >= 0,
            "a fit is a law that falls with the length");
    require(fit.r_squared <= 1, "r_squared is at most 1");
  }
  double last = 1;
  for (const double length : {0.0, 1.0, 7.0, 1e3, 1e9, 1e300, double{INFINITY}}) {
    const double theta = fit.law.predict(length);
    require(theta >= 0 && theta <= last, "theta falls from at most 1");
    last = theta;
  }
}

void fuzz_estimator(Choices& choices) {
  FitOptions options;
  if (choices.coin()) options.beta = choices.coin() ? 2 * choices.unit() : choices.any_double();
  if (choices.coin()) options.min_samples = static_cast<int>(choices.between(INT32_MIN, INT32_MAX));
  if (choices.coin()) options.min_length_ratio = choices.any_double();
  const bool is_valid = (!options.beta || (*options.beta >= 0 && std::isfinite(*options.beta))) &&
                        options.min_samples >= 1 && options.min_length_ratio > 1 &&
                        std::isfinite(options.min_length_ratio);
  try {
    PowerLawEstimator estimator(options);
    require(is_valid, "bad options are refused");
    std::vector<double> lengths, quantiles;
    for (int64_t i = choices.between(0, 40); i > 0; --i) {
      const double s = length(choices);
      const double p = quantile(choices);
      const int64_t action = choices.between(0, 15);
      if (action == 0) {
        estimator.clear();
        lengths.clear();
        quantiles.clear();
        continue;
      }
      if (action == 1 && !std::isnan(s)) {
        estimator.drop_longer_than(s);
        for (size_t j = lengths.size(); j-- > 0;) {
          if (lengths[j] <= s) continue;
          lengths.erase(lengths.begin() + static_cast<int64_t>(j));
          quantiles.erase(quantiles.begin() + static_cast<int64_t>(j));
        }
        continue;
      }
      try {
        estimator.add(s, p);
        require(s >= 1 && std::isfinite(s) && p >= 0 && p <= 1.001, "bad samples are refused");
        lengths.push_back(s);
        quantiles.push_back(p);
      } catch (const std::invalid_argument&) {
        require(!(s >= 1 && std::isfinite(s) && p >= 0 && p <= 1), "good samples are taken");
      }
    }
    const Fit fit = estimator.fit();
    check(fit);
    require(estimator.num_samples() == static_cast<int>(lengths.size()), "samples are counted");
    const Fit again = fit_power_law(lengths, quantiles, options);
    require(again.status == fit.status && same_bits(again.law.log_alpha, fit.law.log_alpha) &&
                same_bits(again.law.beta, fit.law.beta),
            "the estimator fits its samples");
  } catch (const std::invalid_argument&) {
    require(!is_valid, "good options are taken");
  }
}

// The operator: lengths as whole numbers and as floats, of any bits in either.
void fuzz_heads(Choices& choices) {
  FitPowerLawParams p;
  p.batch = choices.between(0, 3);
  p.num_q_heads = choices.between(0, 3);
  p.num_rows = choices.between(0, 20);
  if (choices.coin()) p.fixed_beta = 2 * choices.unit();
  if (const double any = choices.any_double(); any >= 0 && std::isfinite(any)) p.fixed_beta = any;
  const int64_t num_heads = p.batch * p.num_q_heads;
  std::vector<int32_t> int_lengths;
  for (int64_t i = 0; i < p.batch * p.num_rows; ++i) {
    const auto any = static_cast<int32_t>(choices.any_bits());
    int_lengths.push_back(choices.is_plain() ? any & 0xffff : any);
  }
  const std::vector<float> float_lengths(int_lengths.begin(), int_lengths.end());
  std::vector<float> quantiles;
  for (int64_t i = 0; i < num_heads * p.num_rows; ++i) {
    const auto unit = static_cast<float>(choices.any_bits()) * 0x1p-32f;
    quantiles.push_back(choices.is_plain() ? unit : choices.any_float());
  }
  p.quantiles = quantiles.data();
  std::vector<float> log_alpha(num_heads), beta(num_heads);
  std::vector<uint8_t> ok(num_heads);
  p.log_alpha = log_alpha.data();
  p.beta = beta.data();
  p.ok = reinterpret_cast<bool*>(ok.data());
  const auto run = [&] {
    for (int64_t i = 0; i < num_heads; ++i) {
      fit_head(p, i);
      require(ok[i] == 1 || (log_alpha[i] == -INFINITY && beta[i] == 0), "no fit keeps every key");
      require(!std::isnan(log_alpha[i]) && beta[i] >= 0, "a fit is a law");
    }
    return ok;
  };
  p.float_lengths = float_lengths.data();
  const std::vector<uint8_t> of_floats = run();
  p.float_lengths = nullptr;
  p.int_lengths = int_lengths.data();
  const std::vector<uint8_t> of_ints = run();
  if (choices.is_plain()) require(of_ints == of_floats, "the type of lengths makes no difference");
}

}  // namespace
}  // namespace sift

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sift::Choices choices(data, size);
  if (choices.coin()) {
    sift::fuzz_estimator(choices);
  } else {
    sift::fuzz_heads(choices);
  }
  return 0;
}
