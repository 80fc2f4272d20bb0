// Pairs of vectors: how rows of elements are read. Included after a simd_*.h.
//
// All names of a level's headers are local to its translation unit: the flags of one must not reach
// code that others link.
#pragma once

#include <cstdint>

namespace sift {
namespace {

// Elements are loaded in pairs of vectors, in whatever order is cheapest. Queries and keys share the
// order, so dot products do not notice; sums over V are put back by restore_order.
constexpr int64_t kPairWidth = 2 * kWidth;

// Head dimensions are multiples of 16: vectors of 16 floats leave half a pair at head_dim 80.
constexpr bool kHasHalfPair = kPairWidth > 16;

// kPairWidth elements; if kHalf only the first half of them, then zeros.
template <bool kHalf, typename T>
inline Pair load_elements(const T* x) {
  if constexpr (kHalf) {
    return {load_natural(x), zero()};
  } else {
    return load_pair(x);
  }
}

// Floats in the order of load_pair.
inline Pair load_floats(const float* x) { return {load(x), load(x + kWidth)}; }
inline void store_floats(float* x, Pair pair) {
  store(x, pair.first);
  store(x + kWidth, pair.second);
}

// Rows are fetched this far ahead, into L2: more lines can be on their way to it than to L1.
constexpr int64_t kPrefetchRows = 32;

inline void prefetch(const void* const* rows, int64_t num_rows, int64_t row_bytes) {
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int64_t line = 0; line < row_bytes; line += 64) {
      __builtin_prefetch(static_cast<const char*>(rows[i]) + line, 0, 2);
    }
  }
}

}  // namespace
}  // namespace sift
