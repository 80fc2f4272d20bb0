// The loops of a level (level.h), written once over the vectors of a simd_*.h, included before.
//
// All names here are local to the translation unit: its flags must not reach code that others link.
#pragma once

#include "decode/cpu/element.h"
#include "decode/cpu/level.h"

namespace sift {
namespace {

// Elements are loaded as pairs of vectors, in whatever order is cheapest. Queries and keys share
// the order, so dot products do not notice; sums over V are put back by store_pair.
constexpr int64_t kPairWidth = 2 * kWidth;

// Head dimensions are multiples of 16: vectors of 16 floats leave half a pair at head_dim 80.
constexpr bool kHasHalfPair = kPairWidth > 16;

inline Pair load_floats(const float* x) { return {load(x), load(x + kWidth)}; }
inline void store_floats(float* x, Pair pair) {
  store(x, pair.first);
  store(x + kWidth, pair.second);
}

inline float reduce_max(Vec x) {
  float lanes[kWidth];
  store(lanes, x);
  for (int i = 1; i < kWidth; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

inline float reduce_add(Vec x) {
  float lanes[kWidth];
  store(lanes, x);
  for (int n = kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

// kPairWidth elements; if kHalf only the first half of them, then zeros.
template <bool kHalf, typename T>
inline Pair load_elements(const T* x) {
  if constexpr (kHalf) {
    return {load_natural(x), zero()};
  } else {
    return load_pair(x);
  }
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

// ---- Scores ------------------------------------------------------------------------------------

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
                                                      int64_t d, Vec (&sums)[kHeads][kKeys]) {
  using Operand = typename Product<T>::Operand;
  const auto load_row = [&](int i) {
    return Product<T>::template row<kHalf>(static_cast<const T*>(rows[i]) + d);
  };
  if constexpr (kKeys <= kHeads) {
    Operand k[kKeys];
    for (int i = 0; i < kKeys; ++i) k[i] = load_row(i);
    for (int h = 0; h < kHeads; ++h) {
      const Operand q = Product<T>::query(queries[h] + d);
      for (int i = 0; i < kKeys; ++i) sums[h][i] = Product<T>::add(sums[h][i], q, k[i]);
    }
  } else {
    Operand q[kHeads];
    for (int h = 0; h < kHeads; ++h) q[h] = Product<T>::query(queries[h] + d);
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) {
      const Operand k = load_row(i);
      for (int h = 0; h < kHeads; ++h) sums[h][i] = Product<T>::add(sums[h][i], q[h], k);
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
    Vec sums[kHeads][kKeys];
    for (auto& of_head : sums) {
      for (Vec& sum : of_head) sum = zero();
    }
    int64_t d = 0;
    for (; d + kPairWidth <= head_dim; d += kPairWidth) score_step<T, false>(rows + i, q, d, sums);
    if constexpr (kHasHalfPair) {
      if (d < head_dim) score_step<T, true>(rows + i, q, d, sums);
    }
    float tile[kHeads][kKeys];
    store(tile[0], mul(reduce(sums[0]), broadcast(scale)));
    for (int h = 0; h < kHeads && h < num_heads; ++h) {
      __builtin_memcpy(scores + h * kScoreStride + i, tile[h], sizeof(tile[h]));
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

// ---- Softmax -----------------------------------------------------------------------------------

// exp(x) for x <= 88; 0 below the least normal result, relative error 1e-7. With n = round(x / ln 2)
// and r = x - n ln 2 it is 2^n times a polynomial in r (least relative error, fixed to 1 at 0).
inline Vec exp(Vec x) {
  const Vec shift = broadcast(0x1.8p23f + 127);  // adding it rounds, and leaves n + 127 in the
  const Vec t = fma(x, broadcast(0x1.715476p0f), shift);  // low bits: the exponent of 2^n
  const Vec n = sub(t, shift);
  Vec r = fma(n, broadcast(-0x1.63p-1f), x);  // ln 2, first the bits that make n ln 2 exact
  r = fma(n, broadcast(0x1.bd0106p-13f), r);
  Vec y = broadcast(8.290272178e-3f);
  y = fma(y, r, broadcast(4.189816000e-2f));
  y = fma(y, r, broadcast(1.666763813e-1f));
  y = fma(y, r, broadcast(4.999914784e-1f));
  y = fma(y, r, broadcast(9.999997063e-1f));
  y = fma(y, r, broadcast(1.0f));
  const Vec least = broadcast(-87.33654f);  // ln of the least normal number
  return select_less(x, least, zero(), mul(y, low_bits_as_exponent(t)));
}

// Odd polynomial near 0, where 1 - 2 / (exp(2 |x|) + 1) cancels.
inline Vec tanh(Vec x) {
  const Vec y = max(sub(zero(), x), x);  // |x|
  const Vec bounded = select_less(broadcast(20.0f), y, broadcast(20.0f), y);
  const Vec one = broadcast(1.0f);
  const Vec two = broadcast(2.0f);
  const Vec large = sub(one, div(two, add(exp(mul(two, bounded)), one)));
  const Vec z = mul(x, x);
  Vec small = broadcast(-5.704981528e-3f);
  small = fma(small, z, broadcast(2.063908255e-2f));
  small = fma(small, z, broadcast(-5.373971371e-2f));
  small = fma(small, z, broadcast(1.333144218e-1f));
  small = fma(small, z, broadcast(-3.333328194e-1f));
  small = fma(mul(small, z), x, x);
  const Vec signed_large = select_less(x, zero(), sub(zero(), large), large);
  return select_less(y, broadcast(0.625f), small, signed_large);
}

void softcap(float* scores, int64_t num_keys, float cap) {
  for (int64_t i = 0; i < num_keys; i += kWidth) {
    store(scores + i, mul(broadcast(cap), tanh(div(load(scores + i), broadcast(cap)))));
  }
}

// The last, partial vector of n floats, filled up with -inf.
inline Vec load_tail(const float* x, int64_t n) {
  float tail[kWidth];
  for (int i = 0; i < kWidth; ++i) tail[i] = i < n ? x[i] : -__builtin_inff();
  return load(tail);
}

MaxSum exponentiate(const float* scores, int64_t num_keys, float* exps) {
  const int64_t whole = num_keys / kWidth * kWidth;
  Vec largest = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < whole; i += kWidth) largest = max(load(scores + i), largest);
  if (whole < num_keys) largest = max(load_tail(scores + whole, num_keys - whole), largest);
  const float chunk_max = reduce_max(largest);
  // Without a score above -inf the reference is 0: every exponential is then 0, or NaN.
  const Vec reference = broadcast(chunk_max == -__builtin_inff() ? 0.0f : chunk_max);

  Vec sum = zero();
  const auto put = [&](int64_t i, Vec score) {
    const Vec e = exp(sub(score, reference));
    store(exps + i, e);
    sum = add(sum, e);
  };
  int64_t i = 0;
  for (; i < whole; i += kWidth) put(i, load(scores + i));
  if (whole < num_keys) put(whole, load_tail(scores + whole, num_keys - whole)), i += kWidth;
  for (; i % kBlockKeys != 0; i += kWidth) store(exps + i, zero());
  return {chunk_max, reduce_add(sum)};
}

// ---- Selection ---------------------------------------------------------------------------------

int64_t select(const float* exps, int64_t num_keys, int64_t num_heads, const float* thresholds,
               int32_t* selected, float* weights, float* mass) {
  constexpr int kVectors = kBlockKeys / kWidth;
  int64_t count = 0;
  for (int64_t block = 0; block < num_keys; block += kBlockKeys) {
    const auto is_wanted = [&](int64_t h, int v) {
      return not_less_equal(load(exps + h * kScoreStride + block + v * kWidth),
                            broadcast(thresholds[h]));
    };
    Mask wanted[kVectors];
    for (int v = 0; v < kVectors; ++v) wanted[v] = is_wanted(0, v);
    for (int64_t h = 1; h < num_heads; ++h) {
      for (int v = 0; v < kVectors; ++v) wanted[v] = either(wanted[v], is_wanted(h, v));
    }
    for (int v = 0; v < kVectors; ++v) {
      const int64_t first = block + v * kWidth;
      uint32_t lanes = to_lanes(wanted[v]);
      if (num_keys - first < kWidth) {
        lanes &= num_keys > first ? (1u << (num_keys - first)) - 1 : 0;
      }
      if (lanes == 0) continue;
      store_indices(selected + count, static_cast<int32_t>(first), lanes);
      for (int64_t h = 0; h < num_heads; ++h) {
        const Vec e = load(exps + h * kScoreStride + first);
        store(weights + h * kWeightStride + count, compress(e, lanes));
      }
      count += __builtin_popcount(lanes);
    }
  }
  for (int64_t h = 0; h < num_heads; ++h) {
    float* w = weights + h * kWeightStride;
    store(w + count, zero());
    Vec sum = zero();
    for (int64_t i = 0; i < count; i += kWidth) sum = add(sum, load(w + i));
    mass[h] = reduce_add(sum);
  }
  return count;
}

// ---- Weighted sums of V ------------------------------------------------------------------------

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

// ---- The table ---------------------------------------------------------------------------------

template <typename T>
constexpr RowKernels row_kernels() {
  return {prepare_query<T>, score<T>, accumulate<T>};
}

constexpr Level make_level(const char* name) {
  return {name,
          {row_kernels<float>(), row_kernels<BFloat16>(), row_kernels<Float16>()},
          softcap,
          exponentiate,
          select};
}

}  // namespace
}  // namespace sift
