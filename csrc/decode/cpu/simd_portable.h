// Vectors of 4 floats in the language of GCC and Clang, for any processor. The other simd_*.h offer
// the same names; this one says what they mean.
#pragma once

#include <cstdint>

#include "decode/cpu/element.h"

namespace sift {
namespace {

constexpr int kWidth = 4;
using Vec = float __attribute__((vector_size(16)));
using Mask = int32_t __attribute__((vector_size(16)));

// Sums that a tile of scores holds in registers.
constexpr int kTileSums = 8;

inline Vec zero() { return Vec{}; }
inline Vec broadcast(float x) { return Vec{x, x, x, x}; }
inline Vec load(const float* x) {
  Vec v;
  __builtin_memcpy(&v, x, sizeof(v));
  return v;
}
inline void store(float* x, Vec v) { __builtin_memcpy(x, &v, sizeof(v)); }

inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // may round once or twice
inline Vec fma_in_place(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where either is NaN
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }

// The low 9 bits as sign and exponent of a float without fraction.
inline Vec low_bits_as_exponent(Vec x) {
  using Bits = uint32_t __attribute__((vector_size(16)));
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) << 23);
}

// Lane i: the sum of the lanes of sums[i], i < kWidth, added in the same order for every i.
inline Vec reduce(const Vec* sums) {
  Vec r;
  for (int i = 0; i < kWidth; ++i) r[i] = (sums[i][0] + sums[i][2]) + (sums[i][1] + sums[i][3]);
  return r;
}

// Masks, and as numbers with bit i for lane i.
inline Mask not_less_equal(Vec a, Vec b) { return ~(a <= b); }  // true where either is NaN
inline Mask either(Mask a, Mask b) { return a | b; }
inline uint32_t to_lanes(Mask m) { return (m[0] & 1u) | (m[1] & 2u) | (m[2] & 4u) | (m[3] & 8u); }

// The chosen lanes first, then anything.
inline Vec compress(Vec v, uint32_t lanes) {
  Vec r{};
  for (int i = 0, n = 0; i < kWidth; ++i) {
    if (lanes >> i & 1) r[n++] = v[i];
  }
  return r;
}

// first + the number of each chosen lane; writes kWidth numbers.
inline void store_indices(int32_t* out, int32_t first, uint32_t lanes) {
  for (int i = 0, n = 0; i < kWidth; ++i) {
    if (lanes >> i & 1) out[n++] = first + i;
  }
}

// kWidth elements in order.
template <typename T>
inline Vec load_natural(const T* x) {
  return Vec{to_float(x[0]), to_float(x[1]), to_float(x[2]), to_float(x[3])};
}

// And back, rounded to the nearest, ties to even.
template <typename T>
inline void store_natural(T* x, Vec v) {
  for (int i = 0; i < kWidth; ++i) x[i] = from_float<T>(v[i]);
}

// 2 * kWidth elements in an order of the level's choice: their first or second kWidth. And floats in
// that order put back in place.
template <int kPart, typename T>
inline Vec load_part(const T* x) {
  return load_natural(x + kPart * kWidth);
}
template <typename T>
inline void restore_order(float*, T) {}

}  // namespace
}  // namespace sift
