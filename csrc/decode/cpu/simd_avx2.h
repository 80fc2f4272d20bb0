// Vectors of 8 floats: AVX2, FMA, F16C. simd_portable.h says what the names mean.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "decode/cpu/element.h"

namespace sift {
namespace {

constexpr int kWidth = 8;
using Vec = __m256;
using Mask = __m256;
constexpr int kTileSums = 12;  // and 4 more registers for the operands

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* x, Vec v) { _mm256_storeu_ps(x, v); }

inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec fma_in_place(Vec a, Vec b, Vec c) {
  __asm__("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
  return c;
}
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Vec low_bits_as_exponent(Vec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
}

// Four vectors to one: in each 128-bit half, lane i is the sum of that half of the i-th.
inline Vec reduce_quads(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const Vec cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  return add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
}

inline Vec reduce(const Vec* x) {
  const Vec low = reduce_quads(x[0], x[1], x[2], x[3]);
  const Vec high = reduce_quads(x[4], x[5], x[6], x[7]);
  return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

inline Mask not_less_equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
inline Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
inline uint32_t to_lanes(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }

// entry[lanes]: the numbers of the chosen lanes, ascending, one per byte
struct LaneTable {
  uint64_t entry[256];
};
constexpr LaneTable make_lane_table() {
  LaneTable table{};
  for (uint32_t lanes = 0; lanes < 256; ++lanes) {
    int n = 0;
    for (uint64_t i = 0; i < 8; ++i) {
      if (lanes >> i & 1) table.entry[lanes] |= i << (8 * n++);
    }
  }
  return table;
}
constexpr LaneTable kLaneTable = make_lane_table();

inline __m256i lane_numbers(uint32_t lanes) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kLaneTable.entry[lanes])));
}
inline Vec compress(Vec v, uint32_t lanes) {
  return _mm256_permutevar8x32_ps(v, lane_numbers(lanes));
}
inline void store_indices(int32_t* out, int32_t first, uint32_t lanes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_add_epi32(_mm256_set1_epi32(first), lane_numbers(lanes)));
}

inline void store_natural(float* x, Vec v) { store(x, v); }
inline void store_natural(Float16* x, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_natural(BFloat16* x, Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), is_odd));
  const __m256i quiet_nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet_nan, is_nan), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(x),
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}

template <int kPart>
inline Vec load_part(const float* x) {
  return load(x + kPart * kWidth);
}
inline void restore_order(float*, float) {}

template <int kPart>
inline Vec load_part(const Float16* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + kPart * kWidth)));
}
inline void restore_order(float*, Float16) {}

// bfloat16: even elements first, then odd ones; a shift and a mask make floats of them.
template <int kPart>
inline Vec load_part(const BFloat16* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm256_castsi256_ps(kPart == 0 ? _mm256_slli_epi32(bits, 16)
                                        : _mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
}
inline void restore_order(float* x, BFloat16) {
  const Vec even = load(x);
  const Vec odd = load(x + kWidth);
  const Vec low = _mm256_unpacklo_ps(even, odd);
  const Vec high = _mm256_unpackhi_ps(even, odd);
  store(x, _mm256_permute2f128_ps(low, high, 0x20));
  store(x + kWidth, _mm256_permute2f128_ps(low, high, 0x31));
}

}  // namespace
}  // namespace sift
