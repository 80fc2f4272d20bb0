// The largest scores of a long list, in memory for little more than twice their number.
#pragma once

#include <cstdint>
#include <limits>

#include "decode/cpu/level.h"

namespace sift {

// Reorders x so that its k largest come first and the least of them is x[k - 1]; 1 <= k <= n.
// Nothing may be NaN. In no particular order, several times as fast as std::nth_element.
void partition_largest(float* x, int64_t n, int64_t k);

// Keeps the `wanted` largest of the scores added to it, and some others. No score may be NaN. Time
// is linear in their number, whatever their order.
class Largest {
 public:
  // Floats that `values` must have room for when at most num_scores are added.
  static int64_t capacity(int64_t wanted, int64_t num_scores);

  Largest(float* values, int64_t capacity, int64_t wanted)
      : values_(values), capacity_(capacity), wanted_(wanted) {}

  // Adds up to kChunkKeys scores.
  void add(const float* scores, int64_t num_scores);

  const float* values() const { return values_; }
  int64_t count() const { return count_; }

 private:
  float* values_;
  int64_t capacity_;
  int64_t wanted_;
  int64_t count_ = 0;
  // As many as are wanted were kept that are no less, so scores up to this are not. NaN: all are.
  float threshold_ = std::numeric_limits<float>::quiet_NaN();
};

}  // namespace sift
