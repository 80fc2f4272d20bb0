// The level for AVX-512 F, BW, DQ and VL.
#include "decode/cpu/simd_avx512.h"
// The vectors come first.
#include "decode/cpu/make_level.h"

namespace sift {
const Level kAvx512Level = make_level("avx512");
}  // namespace sift
