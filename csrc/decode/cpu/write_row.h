// One row of the output. Included after a simd_*.h.
#pragma once

#include "decode/cpu/level.h"

namespace sift {
namespace {

template <typename T>
void write_row(const float* const* parts, const double* weights, int64_t num_parts,
               int64_t head_dim, void* out) {
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    Vec sum = zero();
    for (int64_t i = 0; i < num_parts; ++i) {
      sum = fma(broadcast(static_cast<float>(weights[i])), load(parts[i] + d), sum);
    }
    store_natural(static_cast<T*>(out) + d, sum);
  }
}

}  // namespace
}  // namespace sift
