// The level that needs nothing of the processor.
#include "decode/cpu/simd_portable.h"
// The vectors come first.
#include "decode/cpu/make_level.h"

namespace sift {
const Level kPortableLevel = make_level("portable");
}  // namespace sift
