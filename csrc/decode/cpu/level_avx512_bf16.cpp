// The level for AVX-512 with BF16: dot products of bfloat16 need no conversion.
#include "decode/cpu/simd_avx512.h"
// The vectors come first.
#include "decode/cpu/make_level.h"

namespace sift {
namespace {

// NOTE: vdpbf16ps takes subnormal elements for zero.
template <>
struct Product<BFloat16> {
  using Operand = __m512bh;
  static constexpr int kParts = 1;
  template <bool kHalf, int kPart>
  static Operand row(const BFloat16* x) {
    if constexpr (kHalf) {
      const __m512i padded = _mm512_zextsi256_si512(load_256(x));
      return from_memory(&padded);
    } else {
      return from_memory(x);
    }
  }
  static Operand query(const float* x) { return from_memory(x); }
  static void store_query(float* x, Operand q) { __builtin_memcpy(x, &q, sizeof(q)); }
  static Vec add(Vec sum, Operand q, Operand k) { return _mm512_dpbf16_ps(sum, q, k); }

  static Operand from_memory(const void* x) {
    Operand operand;
    __builtin_memcpy(&operand, x, sizeof(operand));
    return operand;
  }
};

}  // namespace

const Level kAvx512Bf16Level = make_level("avx512_bf16");
}  // namespace sift
