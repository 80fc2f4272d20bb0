// The level for AVX2, FMA and F16C.
#include "decode/cpu/simd_avx2.h"
// The vectors come first.
#include "decode/cpu/make_level.h"

namespace sift {
const Level kAvx2Level = make_level("avx2");
}  // namespace sift
