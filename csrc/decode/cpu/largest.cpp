#include "decode/cpu/largest.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace sift {
namespace {

// Moves the elements that satisfy a predicate to the front; returns their number. Without a branch:
// no processor predicts which side of a pivot an element falls on.
template <typename Predicate>
int64_t partition(float* x, int64_t n, const Predicate& is_first) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float t = x[i];
    x[i] = x[count];
    x[count] = t;
    count += is_first(t);
  }
  return count;
}

constexpr int64_t kSample = 64;  // half and twice as many were slower, of 1,500 to 32,768 values

// An element of x near the k-th largest, on the side where partitioning then discards more: the
// order statistic of a sample, one standard deviation away from the expected rank.
float choose_pivot(const float* x, int64_t n, int64_t k) {
  float sample[kSample];
  for (int64_t i = 0; i < kSample; ++i) sample[i] = x[i * n / kSample];
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const double deviation = std::sqrt(share * (1 - share) / kSample);
  const double rank = kSample * (share <= 0.5 ? share + deviation : share - deviation);
  float pivot = std::numeric_limits<float>::infinity();
  for (const float candidate : sample) {
    int32_t above = 0;
    for (const float other : sample) above += other > candidate;
    if (above <= rank) pivot = std::min(pivot, candidate);
  }
  return pivot;
}

}  // namespace

void partition_largest(float* x, int64_t n, int64_t k) {
  // Invariant: nothing before x is less than what lies in x[0, n), and nothing behind is more.
  // A few rounds do, unless every sample misleads.
  for (int round = 0; n > 2 * kSample && round < 20; ++round) {
    const float pivot = choose_pivot(x, n, k);
    int64_t num_first = partition(x, n, [=](float t) { return t > pivot; });
    if (num_first == 0) {  // the pivot is the largest, and may have equals
      num_first = partition(x, n, [=](float t) { return t == pivot; });
      if (k <= num_first) return;
    }
    if (k <= num_first) {
      n = num_first;
    } else {
      x += num_first;
      n -= num_first;
      k -= num_first;
    }
  }
  std::nth_element(x, x + (k - 1), x + n, std::greater<>());
}

// With room for twice the wanted and a chunk, half of the values and more go at once.
int64_t Largest::capacity(int64_t wanted, int64_t num_scores) {
  return std::min(num_scores, 2 * wanted + kChunkKeys) + 1;
}

void Largest::add(const float* scores, int64_t num_scores) {
  if (count_ + num_scores >= capacity_) {
    partition_largest(values_, count_, wanted_);
    count_ = wanted_;
    threshold_ = values_[wanted_ - 1];
  }
  const float threshold = threshold_;
  int64_t count = count_;
  for (int64_t i = 0; i < num_scores; ++i) {
    const float x = scores[i];
    values_[count] = x;
    count += !(x <= threshold);
  }
  count_ = count;
}

}  // namespace sift
