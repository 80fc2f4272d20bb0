// Random numbers at the cost of a multiplication.
#pragma once

#include <cstdint>

namespace sift::simt {

class Random {
 public:
  explicit Random(uint32_t seed = 0) : state_((seed + 1) * 0x9e3779b97f4a7c15u) {
    for (int i = 0; i < 4; ++i) below(1);
  }
  // Uniform in [0, bound).
  int below(int bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int>((state_ >> 32) * static_cast<uint32_t>(bound) >> 32);
  }

 private:
  uint64_t state_;
};

}  // namespace sift::simt
