// Scores of a list of rows of K against the queries of a group. Included after a simd_*.h.
#pragma once

#include <bit>

#include "decode/cpu/head_tiles.h"
#include "decode/cpu/level.h"
#include "decode/cpu/pairs.h"

namespace sift {
namespace {

// How q . k is taken: kPairWidth elements at a time, as kParts products of vectors. A level with an
// instruction of its own specialises it.
template <typename T>
struct Product {
  using Operand = Vec;
  static constexpr int kParts = 2;
  template <bool kHalf, int kPart>
  static Operand row(const T* x) {
    return load_elements<kHalf, kPart>(x);
  }
  static Operand query(const float* x) { return load(x); }
  static void store_query(float* x, Operand q) { store(x, q); }
  static Vec add(Vec sum, Operand q, Operand k) { return fma_in_place(q, k, sum); }
};

template <typename T, bool kHalf, int kPart = 0>
void prepare_pair(const T* x, float* query) {
  Product<T>::store_query(query + kPart * kWidth, Product<T>::template row<kHalf, kPart>(x));
  if constexpr (kPart + 1 < Product<T>::kParts) prepare_pair<T, kHalf, kPart + 1>(x, query);
}

template <typename T>
void prepare_query(const void* q, int64_t head_dim, float* query) {
  const T* x = static_cast<const T*>(q);
  int64_t d = 0;
  for (; d + kPairWidth <= head_dim; d += kPairWidth) prepare_pair<T, false>(x + d, query + d);
  if constexpr (kHasHalfPair) {
    if (d < head_dim) prepare_pair<T, true>(x + d, query + d);
  }
}

// Keys of a tile of so many heads. A tile's sums stay in registers.
constexpr int tile_keys(int num_heads) { return num_heads == 1 ? kWidth : kTileSums / num_heads; }

// One step of a tile: the products at dimension d of all its rows and queries. Whichever side is
// smaller stays in registers.
template <typename T, bool kHalf, int kPart, int kHeads, int kKeys>
inline __attribute__((always_inline)) void score_step(const void* const* rows, const float* queries,
                                                      int64_t d, Vec (&sums)[kHeads][kKeys]) {
  using Operand = typename Product<T>::Operand;
  const auto load_row = [&](int i) __attribute__((always_inline)) {
    return Product<T>::template row<kHalf, kPart>(static_cast<const T*>(rows[i]) + d);
  };
  const auto load_query = [&](int h) __attribute__((always_inline)) {
    return Product<T>::query(queries + h * kQueryStride + d + kPart * kWidth);
  };
  if constexpr (kKeys <= kHeads) {
    Operand k[kKeys];
    for (int i = 0; i < kKeys; ++i) k[i] = load_row(i);
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      const Operand q = load_query(h);
      for (int i = 0; i < kKeys; ++i) sums[h][i] = Product<T>::add(sums[h][i], q, k[i]);
    }
  } else {
    Operand q[kHeads];
    for (int h = 0; h < kHeads; ++h) q[h] = load_query(h);
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) {
      const Operand k = load_row(i);
      for (int h = 0; h < kHeads; ++h) sums[h][i] = Product<T>::add(sums[h][i], q[h], k);
    }
  }
  if constexpr (!kHalf && kPart + 1 < Product<T>::kParts) {
    score_step<T, kHalf, kPart + 1>(rows, queries, d, sums);
  }
}

// Adds up the lanes of a tile's sums and writes scale times them, for every head some keys too many.
template <int kHeads, int kKeys>
inline __attribute__((always_inline)) void write_tile(const Vec (&sums)[kHeads][kKeys], float scale,
                                                      float* scores) {
  constexpr int kStored = std::bit_ceil(unsigned{kKeys});
  constexpr int kHeadsAtOnce = kWidth / kStored;
  static_assert(kStored <= kWidth);
  for (int h = 0; h < kHeads; h += kHeadsAtOnce) {
    Vec some[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int head = h + i / kStored < kHeads ? h + i / kStored : kHeads - 1;
      some[i] = sums[head][i % kStored < kKeys ? i % kStored : kKeys - 1];
    }
    float tile[kWidth];
    store(tile, mul(reduce(some), broadcast(scale)));
    for (int i = 0; i < kHeadsAtOnce && h + i < kHeads; ++i) {
      __builtin_memcpy(scores + (h + i) * kScoreStride, tile + i * kStored,
                       sizeof(float) * kStored);
    }
  }
}

// Rows of K are asked for this many bytes ahead. Nearer they come too late; at 8 KB and more ahead
// they were measured to come late, too (Zen 4).
constexpr int64_t kScorePrefetchBytes = 5 * 1024;

// They are asked for in bursts of at most this many lines: 48 at once, six rows of 512 bytes, took an
// eighth longer. Spread evenly over the arithmetic, rows of 192 bytes took up to 15 % longer.
constexpr int64_t kScoreBurstLines = 32;

template <typename T, int kHeads>
__attribute__((noinline)) void score_heads(const void* const* rows, int64_t num_rows,
                                           bool is_prefetching, int64_t prefetch_rows,
                                           const float* queries, int64_t head_dim, float scale,
                                           float* scores) {
  constexpr int kKeys = tile_keys(kHeads);
  static_assert(kRowsAhead + kKeys <= kRowPadding);
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  constexpr int64_t kBurstBytes = kScoreBurstLines / kKeys / 2 * 128;
  static_assert(kBurstBytes > 0);
  const int64_t row_bytes = head_dim * kBytes;
  for (int64_t i = 0; i < num_rows; i += kKeys) {
    Vec sums[kHeads][kKeys];
    for (auto& of_head : sums) {
      for (Vec& sum : of_head) sum = zero();
    }
    int64_t d = 0;
    for (int64_t begin = 0; begin < row_bytes; begin += kBurstBytes) {
      const int64_t end = begin + kBurstBytes < row_bytes ? begin + kBurstBytes : row_bytes;
      for (int64_t line = begin; is_prefetching && line < end; line += 64) {
        for (int j = 0; j < kKeys; ++j) prefetch<64>(rows[i + prefetch_rows + j], line);
      }
      for (; (d + kPairWidth) * kBytes <= end; d += kPairWidth) {
        score_step<T, false, 0>(rows + i, queries, d, sums);
      }
    }
    if constexpr (kHasHalfPair) {
      if (d < head_dim) score_step<T, true, 0>(rows + i, queries, d, sums);
    }
    write_tile(sums, scale, scores + i);
  }
}

// Keys that stay in L1 for all heads: whole tiles of 1, 2, 3 and 4 heads, if they can be.
constexpr int64_t kScoredKeys = 48;

template <typename T>
void score(const void* const* rows, int64_t num_rows, const float* queries, int64_t num_heads,
           int64_t head_dim, float scale, float* scores) {
  const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(T));
  const int64_t ahead = kScorePrefetchBytes / row_bytes;
  const int64_t prefetch_rows = ahead < kRowsAhead ? ahead : kRowsAhead;
  for (int64_t i = 0; i < num_rows; i += kScoredKeys) {
    const int64_t count = num_rows - i < kScoredKeys ? num_rows - i : kScoredKeys;
    for_each_head_tile(num_heads, [&]<int kHeads>(int64_t h) {
      score_heads<T, kHeads>(rows + i, count, h == 0, prefetch_rows, queries + h * kQueryStride,
                             head_dim, scale, scores + h * kScoreStride + i);
    });
  }
}

}  // namespace
}  // namespace sift
