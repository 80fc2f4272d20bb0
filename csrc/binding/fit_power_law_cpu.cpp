// `fit_power_law` on the CPU: one fit per batch row and head, in double.
#include <sift_attention/power_law.h>

#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "binding/allocate.h"
#include "binding/checker.h"
#include "binding/checks.h"

namespace sift {
namespace {

// `numbers` are float32 or int32, contiguous.
std::vector<double> to_doubles(const Tensor& numbers) {
  const auto convert = [&](const auto* begin) {
    return std::vector<double>(begin, begin + numbers.numel());
  };
  if (dtype_of(numbers) == aoti_torch_dtype_int32()) {
    return convert(static_cast<const int32_t*>(numbers.const_data_ptr()));
  }
  return convert(static_cast<const float*>(numbers.const_data_ptr()));
}

std::tuple<Tensor, Tensor, Tensor> fit_power_law_cpu(const Tensor& lengths, const Tensor& quantiles,
                                                     const std::optional<double>& beta) {
  check_fit_power_law(lengths, quantiles, beta);
  const int64_t batch = quantiles.size(0);
  const int64_t num_q_heads = quantiles.size(1);
  const auto num_rows = static_cast<size_t>(quantiles.size(2));
  const Device device = device_of(lengths);
  Tensor log_alphas = allocate({batch, num_q_heads}, aoti_torch_dtype_float32(), device);
  Tensor betas = allocate({batch, num_q_heads}, aoti_torch_dtype_float32(), device);
  Tensor oks = allocate({batch, num_q_heads}, aoti_torch_dtype_bool(), device);

  const std::vector<double> all_lengths = to_doubles(lengths);
  const std::vector<double> all_quantiles = to_doubles(quantiles);
  auto* log_alpha = static_cast<float*>(log_alphas.mutable_data_ptr());
  auto* slope = static_cast<float*>(betas.mutable_data_ptr());
  auto* ok = static_cast<bool*>(oks.mutable_data_ptr());
  for (int64_t i = 0; i < batch * num_q_heads; ++i) {
    const std::span row_lengths(all_lengths.data() + (i / num_q_heads) * num_rows, num_rows);
    const std::span row_quantiles(all_quantiles.data() + i * num_rows, num_rows);
    const Fit fit = fit_power_law(row_lengths, row_quantiles, {.beta = beta});
    log_alpha[i] = static_cast<float>(fit.law.log_alpha);
    slope[i] = static_cast<float>(fit.law.beta);
    ok[i] = fit.status == FitStatus::kOk;
  }
  return {log_alphas, betas, oks};
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CPU, library) {
  library.impl("fit_power_law", TORCH_BOX(&sift::fit_power_law_cpu));
}
