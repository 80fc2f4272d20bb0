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

// One vector of the pair at x; if kHalf the pair is kWidth elements in order, then zeros.
template <bool kHalf, int kPart, typename T>
inline Vec load_elements(const T* x) {
  if constexpr (!kHalf) {
    return load_part<kPart>(x);
  } else if constexpr (kPart == 0) {
    return load_natural(x);
  } else {
    return zero();
  }
}

// Asks for bytes [begin, begin + kBytes) of a row, to L2: more lines can be on their way to it than to
// L1.
template <int64_t kBytes>
inline void prefetch(const void* row, int64_t begin) {
  for (int64_t line = 0; line < kBytes; line += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + begin + line, 0, 2);
  }
}

}  // namespace
}  // namespace sift
