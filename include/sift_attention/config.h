// What a program chooses once for a model. No Torch.
#pragma once

#include <sift_attention/repr.h>
#include <sift_attention/residual.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace sift {

enum class Threshold {
  kUniform,   // theta = c / S
  kQuantile,  // a power law per sequence and head, fitted to quantiles of the prompt's exact
              // probabilities
};

// How the layers of a model sift.
struct SiftConfig {
  Threshold threshold = Threshold::kUniform;
  double c = 2.0;  // of kUniform: multiple of uniform attention below which keys are dropped; 0:
                   // exact attention
  double quantile = 0.95;             // of kQuantile: which quantile the law follows, in [0, 1);
                                      // 0.95 asks for about 5 % of the keys
  std::optional<double> slope = 1.0;  // of kQuantile: beta of the law; none: fitted
  int64_t prompt_rows = 32;  // query rows sampled from a prompt for every factor of 4 in length
  int64_t warmup_steps = 0;  // exact decode steps whose quantiles join the fit
  Residual residual = Residual::kMean;
  int64_t min_keys = 256;                 // with fewer attended keys than this, decode exactly
  std::vector<int64_t> skip_layers = {};  // indices of the layers that stay exact
};

// Throws std::invalid_argument where a field is outside the range above.
inline void check(const SiftConfig& config) {
  const auto require = [](bool holds, const std::string& field, const std::string& requirement,
                          const std::string& value) {
    if (!holds) {
      throw std::invalid_argument("SiftConfig: " + field + " must be " + requirement + ", got " +
                                  value);
    }
  };
  const auto not_negative = [&](const char* field, int64_t value) {
    require(value >= 0, field, "not negative", std::to_string(value));
  };
  const auto is_finite_from_0 = [](double value) { return value >= 0.0 && std::isfinite(value); };
  const double slope = config.slope.value_or(0.0);
  require(is_finite_from_0(config.c), "c", "finite and not negative", detail::repr(config.c));
  require(config.quantile >= 0.0 && config.quantile < 1.0, "quantile", "in [0, 1)",
          detail::repr(config.quantile));
  require(is_finite_from_0(slope), "slope", "\"fit\" or a finite number that is not negative",
          detail::repr(slope));
  not_negative("prompt_rows", config.prompt_rows);
  not_negative("warmup_steps", config.warmup_steps);
  not_negative("min_keys", config.min_keys);
  require(std::ranges::none_of(config.skip_layers, [](int64_t layer) { return layer < 0; }),
          "skip_layers", "layer indices that are not negative", detail::repr(config.skip_layers));
}

}  // namespace sift
