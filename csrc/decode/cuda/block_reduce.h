// Sums over the lanes of a warp; sums and the maximum over the threads of a block.
#pragma once

#include <cstdint>

#include "device.h"

namespace sift {

// The sum over the lanes up to and including this one. Whole warp.
template <class T>
SIFT_DEVICE T running_sum(T x) {
  for (int delta = 1; delta < dev::kWarpSize; delta *= 2) {
    const T lower = dev::shuffle_up(x, delta);
    if (dev::lane() >= delta) x += lower;
  }
  return x;
}

template <class T>
struct BlockSum {
  T before;  // over the threads before this one
  T total;
};

// All threads of the block; warp_sums is shared memory for one T per warp, free again afterwards.
template <class T>
SIFT_DEVICE BlockSum<T> sum_block(T x, T* warp_sums) {
  const T up_to_this = running_sum(x);
  if (dev::lane() == dev::kWarpSize - 1) warp_sums[dev::warp()] = up_to_this;
  dev::sync_block();
  BlockSum<T> sum = {up_to_this - x, 0};
  for (int warp = 0; warp < dev::num_threads() / dev::kWarpSize; ++warp) {
    if (warp < dev::warp()) sum.before += warp_sums[warp];
    sum.total += warp_sums[warp];
  }
  dev::sync_block();
  return sum;
}

// The largest x of the block, under the same terms.
SIFT_DEVICE uint32_t max_block(uint32_t x, uint32_t* warp_maxima) {
  for (int lanes = dev::kWarpSize / 2; lanes > 0; lanes /= 2) {
    const uint32_t other = dev::shuffle_xor(x, lanes);
    if (other > x) x = other;
  }
  if (dev::lane() == 0) warp_maxima[dev::warp()] = x;
  dev::sync_block();
  for (int warp = 0; warp < dev::num_threads() / dev::kWarpSize; ++warp) {
    if (warp_maxima[warp] > x) x = warp_maxima[warp];
  }
  dev::sync_block();
  return x;
}

}  // namespace sift
