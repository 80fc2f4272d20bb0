// `fit_power_law` on CUDA.
#include "binding/fit_power_law.h"

#include <torch/csrc/stable/library.h>

#include "binding/cuda_resources.h"
#include "decode/cuda/decode_cuda.h"

namespace sift {
namespace {

void run(const FitPowerLawParams& params, Device device) {
  const DeviceGuard guard(device.index);
  fit_power_law_cuda(params, current_stream(device));
}

}  // namespace
}  // namespace sift

STABLE_TORCH_LIBRARY_IMPL(sift_attention, CUDA, library) {
  library.impl("fit_power_law", TORCH_BOX(&sift::fit_power_law<sift::run>));
}

// Programs that link this library take the address of this function, so that linkers keep it.
extern "C" [[gnu::visibility("default")]] void sift_attention_cuda_anchor() {}
