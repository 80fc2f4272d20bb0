// Vectors of 16 floats: AVX-512 F, BW, DQ, VL. simd_portable.h says what the names mean.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of deliberately undefined operands in its own header (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "decode/cpu/element.h"

namespace sift {
namespace {

constexpr int kWidth = 16;
using Vec = __m512;
using Mask = __mmask16;
constexpr int kTileSums = 16;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* x, Vec v) { _mm512_storeu_ps(x, v); }

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec fma_in_place(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
inline Vec low_bits_as_exponent(Vec x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
}

// Four vectors to one: in each 128-bit quarter, lane i is the sum of that quarter of the i-th.
inline Vec reduce_quads(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}
// Neighbouring quarters added: two of the first vector, then two of the second.
inline Vec add_quarters(Vec a, Vec b) {
  return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

inline Vec reduce(const Vec* x) {
  const Vec a = reduce_quads(x[0], x[1], x[2], x[3]);
  const Vec b = reduce_quads(x[4], x[5], x[6], x[7]);
  const Vec c = reduce_quads(x[8], x[9], x[10], x[11]);
  const Vec d = reduce_quads(x[12], x[13], x[14], x[15]);
  return add_quarters(add_quarters(a, b), add_quarters(c, d));
}

inline Mask not_less_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
inline uint32_t to_lanes(Mask m) { return m; }

// In registers, followed by a whole store: compressing into memory is slow on some processors.
inline Vec compress(Vec v, uint32_t lanes) {
  return _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes), v);
}
inline void store_indices(int32_t* out, int32_t first, uint32_t lanes) {
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(
      out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes),
                                       _mm512_add_epi32(_mm512_set1_epi32(first), numbers)));
}

inline __m256i load_256(const void* x) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(x));
}

inline Vec load_natural(const float* x) { return load(x); }
inline Vec load_natural(const Float16* x) { return _mm512_cvtph_ps(load_256(x)); }
inline Vec load_natural(const BFloat16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_256(x)), 16));
}

inline void store_256(void* x, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(x), v); }

inline void store_natural(float* x, Vec v) { store(x, v); }
inline void store_natural(Float16* x, Vec v) {
  store_256(x, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_natural(BFloat16* x, Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), is_odd));
  const __m512i quiet_nan = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i wide =
      _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), rounded, quiet_nan);
  store_256(x, _mm512_cvtepi32_epi16(_mm512_srli_epi32(wide, 16)));
}

template <int kPart, typename T>
inline Vec load_part(const T* x) {
  return load_natural(x + kPart * kWidth);
}
inline void restore_order(float*, float) {}
inline void restore_order(float*, Float16) {}

// bfloat16: even elements first, then odd ones; a shift and a mask make floats of them.
template <int kPart>
inline Vec load_part(const BFloat16* x) {
  const __m512i bits = _mm512_loadu_si512(x);
  return _mm512_castsi512_ps(kPart == 0 ? _mm512_slli_epi32(bits, 16)
                                        : _mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}
inline void restore_order(float* x, BFloat16) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  const Vec even = load(x);
  const Vec odd = load(x + kWidth);
  store(x, _mm512_permutex2var_ps(even, first, odd));
  store(x + kWidth, _mm512_permutex2var_ps(even, second, odd));
}

}  // namespace
}  // namespace sift
