// Weighted sums of a list of rows of V. Included after a simd_*.h.
#pragma once

#include "decode/cpu/level.h"
#include "decode/cpu/pairs.h"

namespace sift {
namespace {

// So few rows at a time that their passes over the tiles look like one stream to the hardware.
constexpr int64_t kBlockRows = 8;
static_assert(kPrefetchRows + kBlockRows <= kRowPadding);

// Adds kPairs pairs of a block of rows to the sums of kHeads heads, in the order of load_pair.
template <typename T, int kHeads, int kPairs, bool kHalf = false>
inline void accumulate_tile(const void* const* rows, int64_t num_rows,
                            const float* const (&weights)[kHeads], float* const (&sums)[kHeads],
                            int64_t d) {
  Pair sum[kHeads][kPairs];
  for (int h = 0; h < kHeads; ++h) {
    for (int p = 0; p < kPairs; ++p) sum[h][p] = load_floats(sums[h] + d + p * kPairWidth);
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    const T* row = static_cast<const T*>(rows[i]) + d;
    Vec w[kHeads];
    for (int h = 0; h < kHeads; ++h) w[h] = broadcast(weights[h][i]);
    for (int p = 0; p < kPairs; ++p) {
      const Pair x = load_elements<kHalf>(row + p * kPairWidth);
      for (int h = 0; h < kHeads; ++h) {
        sum[h][p].first = fma(w[h], x.first, sum[h][p].first);
        sum[h][p].second = fma(w[h], x.second, sum[h][p].second);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int p = 0; p < kPairs; ++p) store_floats(sums[h] + d + p * kPairWidth, sum[h][p]);
  }
}

// A block of rows into the sums of kHeads heads (the last one repeated past num_heads).
template <typename T, int kHeads>
void accumulate_heads(const void* const* rows, int64_t num_rows, const float* weights,
                      int64_t num_heads, int64_t head_dim, float* sums) {
  constexpr int kPairs = kWidth / kHeads < 2 ? 1 : kWidth / kHeads / 2;
  const float* w[kHeads];
  float* out[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    const int64_t head = h < num_heads ? h : num_heads - 1;
    w[h] = weights + head * kWeightStride;
    out[h] = sums + head * kScoreStride;
  }
  int64_t d = 0;
  for (; d + kPairs * kPairWidth <= head_dim; d += kPairs * kPairWidth) {
    accumulate_tile<T, kHeads, kPairs>(rows, num_rows, w, out, d);
  }
  for (; d + kPairWidth <= head_dim; d += kPairWidth) {
    accumulate_tile<T, kHeads, 1>(rows, num_rows, w, out, d);
  }
  if constexpr (kHasHalfPair) {
    if (d < head_dim) accumulate_tile<T, kHeads, 1, true>(rows, num_rows, w, out, d);
  }
}

template <typename T>
void accumulate(const void* const* rows, int64_t num_rows, const float* weights, int64_t num_heads,
                int64_t head_dim, float* sums) {
  for (int64_t h = 0; h < num_heads; ++h) {
    for (int64_t d = 0; d < head_dim; d += kPairWidth) {
      store_floats(sums + h * kScoreStride + d, {zero(), zero()});
    }
  }
  const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(T));
  prefetch(rows, kPrefetchRows, row_bytes);
  for (int64_t i = 0; i < num_rows; i += kBlockRows) {
    const int64_t count = num_rows - i < kBlockRows ? num_rows - i : kBlockRows;
    prefetch(rows + i + kPrefetchRows, kBlockRows, row_bytes);
    for (int64_t h = 0; h < num_heads;) {
      const auto accumulate_some = num_heads - h > 2    ? accumulate_heads<T, 4>
                                   : num_heads - h == 2 ? accumulate_heads<T, 2>
                                                        : accumulate_heads<T, 1>;
      const int64_t some = num_heads - h > 4 ? 4 : num_heads - h;
      accumulate_some(rows + i, count, weights + h * kWeightStride + i, some, head_dim,
                      sums + h * kScoreStride);
      h += some;
    }
  }
  for (int64_t h = 0; h < num_heads; ++h) {
    for (int64_t d = 0; d + kPairWidth <= head_dim; d += kPairWidth) {
      restore_order(sums + h * kScoreStride + d, T{});
    }
  }
}

}  // namespace
}  // namespace sift
