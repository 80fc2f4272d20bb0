// fit_power_law of one head: what the CPU runs in a loop and CUDA in a thread of its own.
#pragma once

#include <sift_attention/fit_samples.h>

#include <cstdint>

#include "decode/params.h"

namespace sift {

// i counts the heads of all batch rows, [B, HQ].
constexpr void fit_head(const FitPowerLawParams& p, int64_t i) {
  const int64_t first_length = i / p.num_q_heads * p.num_rows;
  const float* quantiles = p.quantiles + i * p.num_rows;
  const FitOptions options = {.beta = p.fixed_beta};
  const Fit fit = p.int_lengths != nullptr
                      ? fit_samples(p.int_lengths + first_length, quantiles, p.num_rows, options)
                      : fit_samples(p.float_lengths + first_length, quantiles, p.num_rows, options);
  p.log_alpha[i] = static_cast<float>(fit.law.log_alpha);
  p.beta[i] = static_cast<float>(fit.law.beta);
  p.ok[i] = fit.status == FitStatus::kOk;
}

}  // namespace sift
