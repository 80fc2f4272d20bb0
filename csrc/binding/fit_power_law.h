// `fit_power_law` for any device: checks, outputs, call of a backend.
#pragma once

#include <optional>
#include <tuple>

#include "binding/allocate.h"
#include "binding/checker.h"
#include "decode/params.h"

namespace sift {

// As check_decode in checks.h.
inline FitPowerLawParams check_fit_power_law(const Tensor& lengths_, const Tensor& quantiles_,
                                             const std::optional<double>& beta) {
  const Argument lengths("lengths", lengths_);
  const Argument quantiles("quantiles", quantiles_);
  const Checker checker("fit_power_law", lengths);
  const bool has_ints = lengths.dtype == aoti_torch_dtype_int32();
  if (!has_ints && lengths.dtype != aoti_torch_dtype_float32()) {
    checker.require(false, "lengths must have dtype int32 or float32, got ",
                    dtype_name(lengths.dtype));
  }
  checker.rank(lengths, 2, "[B, R]");
  checker.contiguous(lengths);
  checker.device_and_dtype(quantiles, aoti_torch_dtype_float32());
  checker.rank(quantiles, 3, "[B, HQ, R]");
  checker.shape(quantiles, {lengths.sizes[0], quantiles.sizes[1], lengths.sizes[1]}, "[B, HQ, R]");
  checker.contiguous(quantiles);
  if (beta) checker.at_least_zero("beta", *beta);
  return {.int_lengths = has_ints ? lengths.data<int32_t>() : nullptr,
          .float_lengths = has_ints ? nullptr : lengths.data<float>(),
          .quantiles = quantiles.data<float>(),
          .batch = quantiles.sizes[0],
          .num_q_heads = quantiles.sizes[1],
          .num_rows = quantiles.sizes[2],
          .fixed_beta = beta};
}

// kRun computes everything in the parameters' outputs, on the device of lengths.
template <void (*kRun)(const FitPowerLawParams&, Device)>
std::tuple<Tensor, Tensor, Tensor> fit_power_law(const Tensor& lengths, const Tensor& quantiles,
                                                 const std::optional<double>& beta) {
  FitPowerLawParams params = check_fit_power_law(lengths, quantiles, beta);
  const Device device = device_of(lengths);
  const std::initializer_list<int64_t> heads = {params.batch, params.num_q_heads};
  Tensor log_alpha = allocate(heads, aoti_torch_dtype_float32(), device);
  Tensor slope = allocate(heads, aoti_torch_dtype_float32(), device);
  Tensor ok = allocate(heads, aoti_torch_dtype_bool(), device);
  params.log_alpha = static_cast<float*>(log_alpha.mutable_data_ptr());
  params.beta = static_cast<float*>(slope.mutable_data_ptr());
  params.ok = static_cast<bool*>(ok.mutable_data_ptr());
  kRun(params, device);
  return {log_alpha, slope, ok};
}

}  // namespace sift
