// Scores of a list of rows of K against the queries of a group. Included after a simd_*.h.
#pragma once

#include "decode/cpu/level.h"
#include "decode/cpu/pairs.h"

namespace sift {
namespace {

// q . k by operands of kPairWidth elements. A level with an instruction of its own specialises it.
template <typename T>
struct Product {
  using Operand = Pair;
  template <bool kHalf>
  static Operand row(const T* x) {
    return load_elements<kHalf>(x);
  }
  static Operand query(const float* x) { return load_floats(x); }
  static void store_query(float* x, Operand q) { store_floats(x, q); }
  static Vec add(Vec sum, Operand q, Operand k) {
    return fma(q.second, k.second, fma(q.first, k.first, sum));
  }
};

template <typename T>
void prepare_query(const void* q, int64_t head_dim, float* query) {
  const T* x = static_cast<const T*>(q);
  int64_t d = 0;
  for (; d + kPairWidth <= head_dim; d += kPairWidth) {
    Product<T>::store_query(query + d, Product<T>::template row<false>(x + d));
  }
  if constexpr (kHasHalfPair) {
    if (d < head_dim) Product<T>::store_query(query + d, Product<T>::template row<true>(x + d));
  }
}

// One step of a tile: the operands at dimension d of all its rows and queries. Whichever side is
// smaller stays in registers.
template <typename T, bool kHalf, int kHeads, int kKeys>
inline __attribute__((always_inline)) void score_step(const void* const* rows,
                                                      const float* const (&queries)[kHeads],
                                                      int64_t d, Vec (&sums)[kHeads * kKeys]) {
  using Operand = typename Product<T>::Operand;
  const auto load_row = [&](int i) {
    return Product<T>::template row<kHalf>(static_cast<const T*>(rows[i]) + d);
  };
  if constexpr (kKeys <= kHeads) {
    Operand k[kKeys];
    for (int i = 0; i < kKeys; ++i) k[i] = load_row(i);
    for (int h = 0; h < kHeads; ++h) {
      const Operand q = Product<T>::query(queries[h] + d);
      for (int i = 0; i < kKeys; ++i) {
        sums[h * kKeys + i] = Product<T>::add(sums[h * kKeys + i], q, k[i]);
      }
    }
  } else {
    Operand q[kHeads];
    for (int h = 0; h < kHeads; ++h) q[h] = Product<T>::query(queries[h] + d);
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) {
      const Operand k = load_row(i);
      for (int h = 0; h < kHeads; ++h) {
        sums[h * kKeys + i] = Product<T>::add(sums[h * kKeys + i], q[h], k);
      }
    }
  }
}

// Scores of kHeads heads (the last one repeated past num_heads) against kWidth / kHeads keys at a
// time: kWidth sums in registers, reduced together.
template <typename T, int kHeads>
void score_heads(const void* const* rows, int64_t num_rows, int64_t prefetch_bytes,
                 const float* queries, int64_t num_heads, int64_t head_dim, float scale,
                 float* scores) {
  constexpr int kKeys = kWidth / kHeads;
  static_assert(kPrefetchRows + kKeys <= kRowPadding);
  const float* q[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    q[h] = queries + (h < num_heads ? h : num_heads - 1) * kQueryStride;
  }
  for (int64_t i = 0; i < num_rows; i += kKeys) {
    prefetch(rows + i + kPrefetchRows, kKeys, prefetch_bytes);
    Vec sums[kWidth];  // [head][key]
    for (Vec& sum : sums) sum = zero();
    int64_t d = 0;
    for (; d + kPairWidth <= head_dim; d += kPairWidth)
      score_step<T, false, kHeads, kKeys>(rows + i, q, d, sums);
    if constexpr (kHasHalfPair) {
      if (d < head_dim) score_step<T, true, kHeads, kKeys>(rows + i, q, d, sums);
    }
    float tile[kWidth];
    store(tile, mul(reduce(sums), broadcast(scale)));
    for (int h = 0; h < kHeads && h < num_heads; ++h) {
      __builtin_memcpy(scores + h * kScoreStride + i, tile + h * kKeys, sizeof(float) * kKeys);
    }
  }
}

template <typename T>
void score(const void* const* rows, int64_t num_rows, const float* queries, int64_t num_heads,
           int64_t head_dim, float scale, float* scores) {
  const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < num_rows; i += kBlockKeys) {  // a block stays in L1 for all heads
    const int64_t count = num_rows - i < kBlockKeys ? num_rows - i : kBlockKeys;
    for (int64_t h = 0; h < num_heads;) {
      const auto score_some = num_heads - h > 2    ? score_heads<T, 4>
                              : num_heads - h == 2 ? score_heads<T, 2>
                                                   : score_heads<T, 1>;
      const int64_t some = num_heads - h > 4 ? 4 : num_heads - h;
      score_some(rows + i, count, h == 0 ? row_bytes : 0, queries + h * kQueryStride, some,
                 head_dim, scale, scores + h * kScoreStride + i);
      h += some;
    }
  }
}

}  // namespace
}  // namespace sift
