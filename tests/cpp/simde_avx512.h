// AVX-512 intrinsics in plain C++ (SIMDe), so that the AVX-512 levels run on any x86 processor.
#pragma once

#include <immintrin.h>
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#pragma GCC diagnostic pop

// Those that SIMDe 0.7 lacks.
namespace sift_emulated {

template <typename To, typename From>
To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

struct Halves {
  __m256i low, high;
};

inline simde__m512 cvtph_ps(__m256i x) {
  struct {
    __m256 low, high;
  } wide{_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
         _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  return bits_as<simde__m512>(wide);
}

inline __m256i cvtps_ph(simde__m512 x, int) {
  struct Floats {
    __m256 low, high;
  };
  const auto wide = bits_as<Floats>(x);
  return _mm256_set_m128i(_mm256_cvtps_ph(wide.high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(wide.low, _MM_FROUND_TO_NEAREST_INT));
}

inline __m256i cvtepi32_epi16(simde__m512i x) {
  uint32_t wide[16];
  uint16_t narrow[16];
  __builtin_memcpy(wide, &x, sizeof(wide));
  for (int i = 0; i < 16; ++i) narrow[i] = static_cast<uint16_t>(wide[i]);
  return bits_as<__m256i>(narrow);
}

inline simde__m512i cvtepu16_epi32(__m256i x) {
  return bits_as<simde__m512i>(Halves{_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                                      _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))});
}

inline simde__m512i zextsi256_si512(__m256i x) {
  return bits_as<simde__m512i>(Halves{x, _mm256_setzero_si256()});
}

inline simde__m512 shuffle_f32x4(simde__m512 a, simde__m512 b, int selection) {
  struct Quarters {
    float quarter[4][4];
  };
  const auto x = bits_as<Quarters>(a);
  const auto y = bits_as<Quarters>(b);
  Quarters r;
  for (int i = 0; i < 4; ++i) {
    const Quarters& source = i < 2 ? x : y;
    __builtin_memcpy(r.quarter[i], source.quarter[selection >> (2 * i) & 3], 16);
  }
  return bits_as<simde__m512>(r);
}

}  // namespace sift_emulated

#define _mm512_cvtph_ps(x) sift_emulated::cvtph_ps(x)
#define _mm512_cvtps_ph(x, rounding) sift_emulated::cvtps_ph(x, rounding)
#define _mm512_cvtepi32_epi16(x) sift_emulated::cvtepi32_epi16(x)
#define _mm512_cvtepu16_epi32(x) sift_emulated::cvtepu16_epi32(x)
#define _mm512_zextsi256_si512(x) sift_emulated::zextsi256_si512(x)
#define _mm512_shuffle_f32x4(a, b, selection) sift_emulated::shuffle_f32x4(a, b, selection)
