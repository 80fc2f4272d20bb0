// Weighted sums of a list of rows of V. Included after a simd_*.h.
#pragma once

#include "decode/cpu/head_tiles.h"
#include "decode/cpu/level.h"
#include "decode/cpu/pairs.h"

namespace sift {
namespace {

// Adds kVectors vectors of a block of rows to the sums of kHeads heads; the first is vector kFirst of
// the pair at dimension d. Meanwhile it asks for the same dimensions of the next block, so that the
// requests are spread evenly over the arithmetic.
template <typename T, int kHeads, int kVectors, int kFirst = 0, bool kHalf = false>
void accumulate_tile(const void* const* rows, int64_t num_rows, bool is_prefetching,
                     const float* weights, float* sums, int64_t d) {
  constexpr int64_t kTileBytes = kVectors * kWidth * static_cast<int64_t>(sizeof(T));
  const int64_t first = d + kFirst * kWidth;
  Vec sum[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < kVectors; ++i)
      sum[h][i] = load(sums + h * kScoreStride + first + i * kWidth);
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    if (is_prefetching) {
      prefetch<kTileBytes>(rows[r + kRowsAhead], first * static_cast<int64_t>(sizeof(T)));
    }
    const T* row = static_cast<const T*>(rows[r]) + d;
    Vec x[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const T* pair = row + (kFirst + i) / 2 * kPairWidth;
      x[i] = (kFirst + i) % 2 == 0 ? load_elements<kHalf, 0>(pair) : load_elements<kHalf, 1>(pair);
    }
    for (int h = 0; h < kHeads; ++h) {
      const Vec w = broadcast(weights[h * kScoreStride + r]);
      for (int i = 0; i < kVectors; ++i) sum[h][i] = fma_in_place(w, x[i], sum[h][i]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < kVectors; ++i)
      store(sums + h * kScoreStride + first + i * kWidth, sum[h][i]);
  }
}

// A block of rows into the sums of kHeads heads, in the order of load_part.
template <typename T, int kHeads>
__attribute__((noinline)) void accumulate_heads(const void* const* rows, int64_t num_rows,
                                                bool is_prefetching, const float* weights,
                                                int64_t head_dim, float* sums) {
  constexpr int kVectors = kTileSums / kHeads < 8 ? kTileSums / kHeads : 8;
  constexpr int kShort = kVectors > 3 && kVectors % 2 == 1 ? 3 : 2;  // 5 and 3 make 8
  const auto num_vectors = head_dim / kPairWidth * 2;
  int64_t v = 0;
  const auto add_tile = [&]<int kCount>() {
    const auto tile =
        v % 2 == 0 ? accumulate_tile<T, kHeads, kCount, 0> : accumulate_tile<T, kHeads, kCount, 1>;
    tile(rows, num_rows, is_prefetching, weights, sums, v / 2 * kPairWidth);
    v += kCount;
  };
  while (v < num_vectors) {
    const int64_t rest = num_vectors - v;
    if (rest == kShort) {
      add_tile.template operator()<kShort>();
    } else if (rest < kVectors || rest == kVectors + 1) {  // never leaves a single one
      add_tile.template operator()<2>();
    } else {
      add_tile.template operator()<kVectors>();
    }
  }
  if constexpr (kHasHalfPair) {
    const int64_t d = num_vectors * kWidth;
    if (d < head_dim) {
      accumulate_tile<T, kHeads, 1, 0, true>(rows, num_rows, is_prefetching, weights, sums, d);
    }
  }
}

template <typename T>
void accumulate(const void* const* rows, int64_t num_rows, const float* weights, int64_t num_heads,
                int64_t head_dim, float* sums) {
  for (int64_t h = 0; h < num_heads; ++h) {
    for (int64_t d = 0; d < head_dim; d += kWidth) store(sums + h * kScoreStride + d, zero());
  }
  for (int64_t i = 0; i < num_rows; i += kRowsAhead) {
    const int64_t count = num_rows - i < kRowsAhead ? num_rows - i : kRowsAhead;
    for_each_head_tile(num_heads, [&]<int kHeads>(int64_t h) {
      accumulate_heads<T, kHeads>(rows + i, count, h == 0, weights + h * kScoreStride + i, head_dim,
                                  sums + h * kScoreStride);
    });
  }
  for (int64_t h = 0; h < num_heads; ++h) {
    for (int64_t d = 0; d + kPairWidth <= head_dim; d += kPairWidth) {
      restore_order(sums + h * kScoreStride + d, T{});
    }
  }
}

}  // namespace
}  // namespace sift
