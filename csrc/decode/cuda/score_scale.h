// From products q . k, and from sinks, to scores in log2 units, softcap included.
#pragma once

#include <cstdint>

#include "device.h"

namespace sift {

constexpr float kLog2E = 1.44269504f;

struct ScoreScale {
  float factor = 0;   // to log2 units, or with a softcap to its argument
  float softcap = 0;  // in log2 units; 0: none

  // Turns products into scores.
  template <int kCount>
  SIFT_DEVICE void apply(float (&products)[kCount]) const {
    for (float& x : products) x *= factor;
    if (softcap == 0) return;
    for (float& x : products) x = softcap * dev::tanh(x);
  }
};

// Head h's sink in log2 units; -inf: none.
SIFT_DEVICE float sink_of(const float* sinks, int64_t h) {
  return sinks == nullptr ? -dev::infinity() : sinks[h] * kLog2E;
}

inline ScoreScale make_score_scale(float scale, float softcap) {
  if (softcap == 0) return {scale * kLog2E, 0.0f};
  return {scale / softcap, softcap * kLog2E};
}

}  // namespace sift
