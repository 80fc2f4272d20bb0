// Which level runs.
#pragma once

#include <vector>

#include "decode/cpu/level.h"

namespace sift {

// The levels that this processor runs, best first.
std::vector<const Level*> supported_levels();

// The one that SIFT_CPU_ISA names, else the best. The variable is read at every call.
// Throws std::invalid_argument.
const Level& active_level();

}  // namespace sift
