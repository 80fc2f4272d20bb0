// The power law and its estimator: recovery from noise, every refusal, clamps.
#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <sift_attention/power_law.h>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sift {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Samples {
  std::vector<double> lengths;
  std::vector<double> quantiles;
};

// `count` log-spaced lengths of a law, each quantile off by a factor exp(noise * N(0, 1)).
Samples sample_law(const PowerLaw& law, double first, double last, int count, double noise = 0.0) {
  std::mt19937 random(17);
  std::normal_distribution<double> normal;
  Samples samples;
  for (int i = 0; i < count; ++i) {
    const double length = first * std::pow(last / first, i / (count - 1.0));
    samples.lengths.push_back(length);
    samples.quantiles.push_back(law.predict(length) * std::exp(noise * normal(random)));
  }
  return samples;
}

Fit fit_power_law(const Samples& samples, const FitOptions& options = {}) {
  return sift::fit_power_law(samples.lengths, samples.quantiles, options);
}

bool keeps_every_key(const Fit& fit) {
  return fit.law.log_alpha == -kInf && fit.law.predict(1e5) == 0.0 && fit.r_squared == 0.0;
}

bool close(double value, double expected, double tolerance) {
  return std::abs(value - expected) <= tolerance;  // false for NaN
}

TEST_CASE("a law is recovered exactly from samples without noise") {
  const double beta = GENERATE(0.0, 0.5, 1.0, 1.4, 3.0);
  const double log_alpha = GENERATE(-6.0, -0.1);
  const Fit fit = fit_power_law(sample_law({log_alpha, beta}, 100.0, 1e5, 32));
  REQUIRE(fit.status == FitStatus::kOk);
  CHECK(close(fit.law.beta, beta, 1e-12));
  CHECK(close(fit.law.log_alpha, log_alpha, 1e-10));
  CHECK(close(fit.r_squared, 1.0, 1e-9));
  CHECK(fit.num_samples == 32);
  CHECK(fit.min_length == 100.0);
  CHECK(close(fit.max_length, 1e5, 1e-6));
}

TEST_CASE("a law is recovered from noisy samples within four standard errors") {
  const double noise = GENERATE(0.01, 0.1, 0.3);
  const int count = GENERATE(32, 512);
  const PowerLaw law{-2.0, 1.2};
  const Samples samples = sample_law(law, 256.0, 32768.0, count, noise);

  double mean = 0.0;
  double spread = 0.0;
  for (double length : samples.lengths) mean += std::log(length) / count;
  for (double length : samples.lengths) spread += std::pow(std::log(length) - mean, 2);
  const double slope_error = noise / std::sqrt(spread);

  SECTION("with a free slope") {
    const Fit fit = fit_power_law(samples);
    REQUIRE(fit.status == FitStatus::kOk);
    CHECK(close(fit.law.beta, law.beta, 4 * slope_error));
    const double intercept_error = noise * std::sqrt(1.0 / count + mean * mean / spread);
    CHECK(close(fit.law.log_alpha, law.log_alpha, 4 * intercept_error));
    CHECK(fit.r_squared > 0.9);
    CHECK(fit.r_squared < 1.0);
  }
  SECTION("with the true slope given") {
    const Fit fit = fit_power_law(samples, {.beta = law.beta});
    REQUIRE(fit.status == FitStatus::kOk);
    CHECK(fit.law.beta == law.beta);
    CHECK(close(fit.law.log_alpha, law.log_alpha, 4 * noise / std::sqrt(count)));
  }
}

TEST_CASE("lengths close together and far from the origin keep their precision") {
  const PowerLaw law{-3.0, 1.0};
  const FitOptions options{.min_length_ratio = 1.0000001};
  const Fit fit = fit_power_law(sample_law(law, 1e12, 1.000001e12, 100), options);
  REQUIRE(fit.status == FitStatus::kOk);
  CHECK(close(fit.law.beta, 1.0, 1e-6));
}

TEST_CASE("huge lengths are fitted and predicted", "[row 14]") {
  const PowerLaw law{-1.0, 1.1};
  const Fit fit = fit_power_law(sample_law(law, 1e6, 1e12, 16));
  REQUIRE(fit.status == FitStatus::kOk);
  CHECK(close(fit.law.beta, 1.1, 1e-12));
  CHECK(fit.law.predict(1e12) > 0.0);
  CHECK(fit.law.predict(1e300) >= 0.0);
}

TEST_CASE("too few samples are refused", "[row 12]") {
  const int count = GENERATE(0, 1, 2);
  Samples samples{{100.0, 1000.0}, {0.01, 0.001}};
  samples.lengths.resize(count);
  samples.quantiles.resize(count);
  const Fit fit = fit_power_law(samples);
  CHECK(fit.status == FitStatus::kTooFewSamples);
  CHECK(keeps_every_key(fit));
  CHECK(explain(fit) == "there are " + std::to_string(count) + " samples, a fit needs 3");
}

TEST_CASE("a free slope needs a range of lengths, a given slope does not") {
  const Samples narrow = sample_law({0.0, 1.0}, 700.0, 930.0, 10);
  const Fit refused = fit_power_law(narrow);
  CHECK(refused.status == FitStatus::kRangeTooSmall);
  CHECK(keeps_every_key(refused));
  CHECK(explain(refused) ==
        "the lengths span 1.32857x (from 700 to 930), a fit of the slope needs 4x");
  CHECK(fit_power_law(narrow, {.beta = 1.0}).status == FitStatus::kOk);

  SECTION("exactly the required range is enough") {
    CHECK(fit_power_law({{100, 200, 400}, {0.04, 0.02, 0.01}}).status == FitStatus::kOk);
    CHECK(fit_power_law({{100, 200, 399}, {0.04, 0.02, 0.01}}).status == FitStatus::kRangeTooSmall);
  }
  SECTION("one length, many times") {
    const Samples one{{500, 500, 500}, {0.002, 0.004, 0.008}};
    CHECK(fit_power_law(one).status == FitStatus::kRangeTooSmall);
    const Fit fit = fit_power_law(one, {.beta = 1.0});
    REQUIRE(fit.status == FitStatus::kOk);
    CHECK(close(fit.law.predict(500), 0.004, 1e-15));  // the geometric mean
    CHECK(fit.law.predict(1000) < fit.law.predict(500));
  }
}

TEST_CASE("absent samples are skipped, whatever their quantile") {
  const Samples samples{{0, 100, 0, 1000, 10000}, {kNan, 1e-2, 0.5, 1e-3, 1e-4}};
  const Fit fit = fit_power_law(samples);
  REQUIRE(fit.status == FitStatus::kOk);
  CHECK(fit.num_samples == 3);
  CHECK(fit.min_length == 100.0);
  CHECK(close(fit.law.beta, 1.0, 1e-12));
}

TEST_CASE("an invalid sample refuses the fit", "[row 12]") {
  const auto [length, quantile] =
      GENERATE(std::pair{kNan, 0.1}, std::pair{kInf, 0.1}, std::pair{-kInf, 0.1},
               std::pair{-3.0, 0.1}, std::pair{0.5, 0.1}, std::pair{10.0, kNan},
               std::pair{10.0, kInf}, std::pair{10.0, -1e-9}, std::pair{10.0, 1.001});
  Samples samples = sample_law({0.0, 1.0}, 100.0, 1e4, 8);
  samples.lengths[5] = length;
  samples.quantiles[5] = quantile;
  const Fit fit = fit_power_law(samples);
  CHECK(fit.status == FitStatus::kInvalidSample);
  CHECK(keeps_every_key(fit));
  CHECK(explain(fit) ==
        "the sample after 5 valid ones is not a finite length of at least 1 with a quantile in "
        "[0, 1]");
}

TEST_CASE("equal quantiles give a constant threshold", "[row 12]") {
  const Fit fit = fit_power_law({{100, 317, 1000, 9999}, {0.003, 0.003, 0.003, 0.003}});
  REQUIRE(fit.status == FitStatus::kOk);
  CHECK(fit.law.beta == 0.0);
  CHECK_FALSE(std::signbit(fit.law.beta));
  CHECK(fit.r_squared == 1.0);
  CHECK(close(fit.law.predict(1e9), 0.003, 1e-15));

  const Fit fixed = fit_power_law({{100, 1000, 10000}, {0.003, 0.003, 0.003}}, {.beta = 1.0});
  REQUIRE(fixed.status == FitStatus::kOk);
  CHECK(fixed.r_squared == 0.0);
}

TEST_CASE("a rising threshold is refused") {
  const Fit fit = fit_power_law({{100, 1000, 10000}, {0.001, 0.002, 0.004}});
  CHECK(fit.status == FitStatus::kRising);
  CHECK(keeps_every_key(fit));
  CHECK(explain(fit) ==
        "the quantiles rise with the length (beta would be -0.30103), a threshold must not");
}

TEST_CASE("a zero quantile counts as the smallest normal float32", "[row 12]") {
  const double smallest = std::numeric_limits<float>::min();
  const Fit zeros = fit_power_law({{100, 1000, 10000}, {0.0, 0.0, 0.0}});
  REQUIRE(zeros.status == FitStatus::kOk);
  CHECK(close(zeros.law.predict(5000) / smallest, 1.0, 1e-9));
  CHECK(zeros.law.predict(5000) > 0.0);

  SECTION("among others it lowers the threshold") {
    const FitOptions options{.beta = 1.0};
    const Fit without = fit_power_law({{100, 1000, 10000}, {1e-2, 1e-3, 1e-4}}, options);
    const Fit with = fit_power_law({{100, 1000, 10000}, {1e-2, 0.0, 1e-4}}, options);
    REQUIRE(with.status == FitStatus::kOk);
    CHECK(with.law.predict(5000) < without.law.predict(5000));
  }
}

TEST_CASE("predictions stay in [0, 1]", "[row 13]") {
  const PowerLaw law{5.0, 1.0};
  CHECK(law.predict(1.0) == 1.0);
  CHECK(law.predict(100.0) == 1.0);
  CHECK(law.predict(1000.0) < 1.0);
  CHECK(law.predict(0.0) == law.predict(1.0));
  CHECK(law.predict(kInf) == 0.0);
  CHECK(std::isnan(law.predict(kNan)));
  CHECK(PowerLaw{kInf, 1.0}.predict(100.0) == 1.0);
  CHECK(PowerLaw{-1.0, 400.0}.predict(1e12) == 0.0);
  CHECK(PowerLaw::exact().predict(kInf) == 0.0);
  CHECK(close(PowerLaw{-1.0, 0.0}.predict(kInf), std::exp(-1.0), 1e-15));
  CHECK(PowerLaw{kInf, 1e308}.predict(100.0) == 0.0);  // inf - inf
}

TEST_CASE("uniform and exact laws") {
  CHECK(close(PowerLaw::uniform(2.0).predict(1000.0), 0.002, 1e-15));
  CHECK(PowerLaw::uniform(2.0).predict(1.0) == 1.0);
  CHECK(PowerLaw::uniform(0.0).predict(1000.0) == 0.0);
  CHECK(PowerLaw::exact().predict(1.0) == 0.0);
  const double bad = GENERATE(-1.0, kInf, kNan);
  CHECK_THROWS_AS(PowerLaw::uniform(bad), std::invalid_argument);
}

TEST_CASE("bad options are named with their value") {
  const Samples samples = sample_law({0.0, 1.0}, 100.0, 1e4, 8);
  const double beta = GENERATE(-1.0, kNan, kInf);
  CHECK_THROWS_AS(fit_power_law(samples, {.beta = beta}), std::invalid_argument);
  CHECK_THROWS_AS(PowerLawEstimator({.beta = beta}), std::invalid_argument);
  CHECK_THROWS_WITH(fit_power_law(samples, {.beta = -0.5}),
                    "fit_power_law: beta must be a finite number of at least 0, got -0.5");
  CHECK_THROWS_WITH(fit_power_law(samples, {.min_samples = 0}),
                    "fit_power_law: min_samples must be at least 1, got 0");
  CHECK_THROWS_WITH(fit_power_law(samples, {.min_length_ratio = 1.0}),
                    "fit_power_law: min_length_ratio must be a finite number above 1, got 1");
  CHECK_THROWS_WITH(fit_power_law({{1.0, 2.0}, {0.5}}),
                    "fit_power_law: quantiles must be as many as lengths, 2, got 1");
}

TEST_CASE("the estimator fits what it holds") {
  PowerLawEstimator estimator;
  CHECK(estimator.predict(1000) == 0.0);
  CHECK(estimator.fit().status == FitStatus::kTooFewSamples);
  for (double length : {100.0, 1000.0, 10000.0}) estimator.add(length, 1.0 / length);
  CHECK(estimator.num_samples() == 3);
  CHECK(close(estimator.predict(2000), 1.0 / 2000, 1e-12));

  SECTION("samples beyond a cropped length are forgotten, the boundary stays") {
    estimator.add(20000, 1.0);
    estimator.drop_longer_than(10000);
    CHECK(estimator.num_samples() == 3);
    CHECK(close(estimator.predict(2000), 1.0 / 2000, 1e-12));
    estimator.drop_longer_than(0);
    CHECK(estimator.num_samples() == 0);
  }
  SECTION("clear") {
    estimator.clear();
    CHECK(estimator.fit().num_samples == 0);
  }
  SECTION("bad samples are refused and change nothing") {
    CHECK_THROWS_WITH(estimator.add(0, 0.1),
                      "PowerLawEstimator.add: length must be a finite number of at least 1, got 0");
    CHECK_THROWS_WITH(estimator.add(10, kNan),
                      "PowerLawEstimator.add: quantile must be in [0, 1], got nan");
    CHECK_THROWS_AS(estimator.add(10, 95.0), std::invalid_argument);
    CHECK_THROWS_AS(estimator.add(kInf, 0.1), std::invalid_argument);
    CHECK_THROWS_AS(estimator.drop_longer_than(kNan), std::invalid_argument);
    CHECK_THROWS_AS(estimator.predict(0), std::invalid_argument);
    CHECK_THROWS_AS(estimator.predict(kNan), std::invalid_argument);
    CHECK(estimator.num_samples() == 3);
  }
}

}  // namespace
}  // namespace sift
