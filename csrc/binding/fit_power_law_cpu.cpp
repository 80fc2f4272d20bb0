// `fit_power_law` on the CPU.
#include "binding/fit_power_law.h"

#include <torch/csrc/stable/library.h>

#include "decode/fit_power_law.h"

namespace sift {
namespace {

void run(const FitPowerLawParams& params, Device) {
  for (int64_t i = 0; i < params.batch * params.num_q_heads; ++i) fit_head(params, i);
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CPU, library) {
  library.impl("fit_power_law", TORCH_BOX(&sift::fit_power_law<sift::run>));
}
