// The softmax of a chunk and the selection of its keys. Included after a simd_*.h.
#pragma once

#include "decode/cpu/level.h"

namespace sift {
namespace {

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
        store(weights + h * kScoreStride + count, compress(e, lanes));
      }
      count += __builtin_popcount(lanes);
    }
  }
  for (int64_t h = 0; h < num_heads; ++h) {
    float* w = weights + h * kScoreStride;
    store(w + count, zero());
    Vec sum = zero();
    for (int64_t i = 0; i < count; i += kWidth) sum = add(sum, load(w + i));
    mass[h] = reduce_add(sum);
  }
  return count;
}

}  // namespace
}  // namespace sift
